"""The picture of a bench report: latencies, throughput against batch, where the time goes."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from .._figure import saved_figure
from ..errors import InputError
from .report import CLOCKS, BenchReport, Cell, machine_line, versions_line

__all__ = ["plot_bench"]

_COLORS = ("#1f6f8b", "#c1552b", "#4d8b31", "#7a4b9a", "#a08023", "#444444")
_STAGES = {"letterbox": "#8fb8ca", "prepare": "#d8c48a", "engine": "#3c6e8f", "decode": "#c1552b"}


def plot_bench(report: BenchReport, path: str | os.PathLike[str]) -> Path:
    """Draws the report: histogram of latencies, images a second against batch, mean time by stage.

    Args:
        path: the picture to write; its suffix (.png, .svg, .pdf) chooses the format.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        InputError: the report is empty, or the suffix is not one that matplotlib writes.
    """
    if not report.cells:
        raise InputError("There is nothing to draw", received="a report without a measurement")
    rows = max(len(report.cells), 4)
    with saved_figure(path, (13, 2.6 + 0.32 * rows), title=textwrap.fill(report.command, 150)) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 0.8, 1.1))
        _histogram(left, report)
        _throughput(middle, report)
        _breakdown(right, report)
        figure.supxlabel(
            f"{machine_line(report.machine)}\n{versions_line(report.versions)}",
            fontsize=7,
            color="#555555",
            x=0.01,
            ha="left",
        )
    return Path(path)


def _series(report: BenchReport) -> dict[tuple[str, int | None], list[Cell]]:
    series: dict[tuple[str, int | None], list[Cell]] = {}
    for cell in report.cells:
        series.setdefault((cell.model, cell.threads), []).append(cell)
    return series


def _histogram(axis: Any, report: BenchReport) -> None:
    """The first batch size, in milliseconds, on a logarithmic axis; each bar's height is a share of the calls."""
    batch = report.cells[0].batch
    cells = [c for c in report.cells if c.batch == batch]
    clock = cells[0].stages_of
    shown = [(c, np.asarray(c.clocks[clock].samples_ms)) for c in cells if clock in c.clocks]
    low = min(float(v.min()) for _, v in shown) * 0.97
    high = max(float(np.percentile(v, 99.5)) for _, v in shown) * 1.05
    bins = int(np.clip(4 * np.sqrt(max(len(v) for _, v in shown)), 16, 60))
    edges = np.geomspace(low, high, bins + 1)
    for (cell, values), color in zip(shown, _cycle(len(shown)), strict=True):
        counts, _ = np.histogram(values.clip(low, high), edges)
        axis.stairs(counts / len(values), edges, color=color, fill=True, alpha=0.35)
        axis.stairs(counts / len(values), edges, color=color, linewidth=1.0)
        axis.axvline(
            float(np.median(values)),
            color=color,
            linewidth=1.0,
            linestyle=":",
            label=f"{cell.label}: {np.median(values):.3g} ms",
        )
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    _plain_log(axis.xaxis, high / low)
    axis.set_xlabel(f"milliseconds of a call, batch {batch}\n{CLOCKS[clock]}; dotted: median")
    axis.set_ylabel("share of the calls")
    axis.legend(fontsize=7, frameon=False)
    axis.set_title("Latency", fontsize=10, loc="left")


def _throughput(axis: Any, report: BenchReport) -> None:
    """Images a second; one line for each model and number of threads."""
    series = _series(report)
    batches = sorted({c.batch for c in report.cells})
    for ((model, threads), cells), color in zip(series.items(), _cycle(len(series)), strict=True):
        label = model if threads is None else f"{model}, {threads} thr."
        points = sorted((c.batch, c.clocks[c.stages_of].images_per_second) for c in cells)
        axis.plot(
            [batches.index(b) for b, _ in points], [v for _, v in points], "o-", color=color, markersize=4, label=label
        )
    axis.set_xticks(range(len(batches)), [str(b) for b in batches])
    axis.set_xlim(-0.4, len(batches) - 0.6)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_xlabel("images of a call (batch)")
    axis.set_ylabel("images a second")
    axis.legend(fontsize=7, frameon=False)
    axis.set_title("Throughput", fontsize=10, loc="left")


def _breakdown(axis: Any, report: BenchReport) -> None:
    """Milliseconds for an image; one bar for each cell."""
    labels = []
    longest = max(sum(c.stages.values()) / c.batch for c in report.cells)
    for row, cell in enumerate(report.cells):
        left = 0.0
        for stage, ms in cell.stages.items():
            width = ms / cell.batch
            axis.barh(
                row,
                width,
                left=left,
                height=0.66,
                color=_STAGES.get(stage, "#999999"),
                label=stage if not row else None,
            )
            left += width
        axis.text(left + longest * 0.01, row, f"{left:.3g}", va="center", fontsize=7)
        labels.append(f"{cell.label}\nbatch {cell.batch}" if len({c.batch for c in report.cells}) > 1 else cell.label)
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlim(0, longest * 1.12)
    axis.set_xlabel("mean milliseconds for an image, by stage")
    axis.legend(fontsize=7, frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.0), borderaxespad=0)
    axis.set_ylim(len(labels) - 0.4, -1.2)
    axis.set_title("Where the time goes", fontsize=10, loc="left")


def _plain_log(axis: Any, span: float) -> None:
    """Numbers such as 0.5, 2 and 30 on a logarithmic axis, instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    subs = (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.3, 2.6, 3, 3.5, 4, 5, 6, 7, 8, 9)
    axis.set_major_locator(LogLocator(subs=subs[:: 1 if span < 1.6 else 2] if span < 4 else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def _cycle(count: int) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(count)]
