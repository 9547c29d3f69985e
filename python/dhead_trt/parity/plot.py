"""The picture of a parity report: how the errors of every rung are distributed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .._figure import saved_figure
from ..errors import InputError
from .measure import QUANTILES, ParityReport, Rung, Stats

__all__ = ["plot"]

_COLORS = {"passed": "#2b7a4b", "failed": "#b3261e"}


def plot(report: ParityReport, path: str | Path) -> Path:
    """Draws the report: one row for each rung, boxes on the left and scores on the right, on logarithmic axes.

    A thin line spans the errors from the median to the largest, a thick one those from the median to p99.9; the mean
    is a dot and the limit a tick. A rung without any error has a remark instead.

    Args:
        path: the picture to write; its suffix (.png, .svg, .pdf) chooses the format.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        InputError: no rung has run, or the suffix is not one that matplotlib writes.
    """
    rungs = [r for r in report.rungs if r.stats]
    if not rungs:
        raise InputError("There is nothing to draw", received="a report in which no rung ran")
    title = f"Parity of {report.model}: {_verdict(report)}"
    with saved_figure(path, (11, 1.7 + 0.36 * len(rungs)), title=title) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axis, output, label in (
            (left, "boxes", "box error [px of the network input]"),
            (right, "scores", "score error"),
        ):
            _panel(axis, rungs, output, label)
        left.set_yticks(range(len(rungs)), [r.name for r in rungs])
        for tick, rung in zip(left.get_yticklabels(), rungs, strict=True):
            tick.set_color(_COLORS.get(rung.status, "black"))
        left.set_ylim(len(rungs) - 0.4, -0.6)
        figure.supxlabel(
            "thick: median to p99.9 · thin: to the largest · dot: mean · tick: limit"
            + f"\nreference: {next((r.name for r in report.rungs if r.status == 'reference'), 'none')}",
            fontsize=8,
            color="#555555",
        )
    return Path(path)


def _panel(axis: Any, rungs: list[Rung], output: str, label: str) -> None:
    stats = [r.of(output) for r in rungs]
    positive = [v for s in stats if s is not None for v in (s.mean, s.max) if 0 < v < math.inf]
    limits = [getattr(r.tolerance, output) for r in rungs if r.tolerance is not None]
    low = 10 ** math.floor(math.log10(min([*positive, *limits], default=1e-6)) - 0.3)
    high = 10 ** math.ceil(math.log10(max([*positive, *limits], default=1.0)) + 0.1)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.grid(axis="x", which="major", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(label)
    axis.tick_params(axis="y", length=0)
    for row, (rung, s) in enumerate(zip(rungs, stats, strict=True)):
        if s is None or not s.quantiles:
            continue
        color = _COLORS.get(rung.status, "#444444")
        if rung.tolerance is not None:
            axis.plot([getattr(rung.tolerance, output)] * 2, [row - 0.34, row + 0.34], color="black", linewidth=1.6)
        if s.max == 0:
            axis.text(low * 1.3, row, "no error at all", va="center", color=color, fontsize=8)
            continue
        if not math.isfinite(s.max):
            axis.text(low * 1.3, row, "not finite where the reference is", va="center", color=color, fontsize=8)
            continue
        median = max(_quantile(s, 0.5), low)
        axis.plot([median, s.max], [row, row], color=color, linewidth=1.2, solid_capstyle="butt")
        axis.plot(
            [median, max(s.p999, median)], [row, row], color=color, linewidth=6, alpha=0.45, solid_capstyle="butt"
        )
        axis.plot([s.max] * 2, [row - 0.16, row + 0.16], color=color, linewidth=1.2)
        axis.plot(max(s.mean, low), row, "o", color=color, markersize=4)


def _quantile(stats: Stats, probability: float) -> float:
    return float(np.interp(probability, QUANTILES, stats.quantiles))


def _verdict(report: ParityReport) -> str:
    skipped = sum(r.status == "skipped" for r in report.rungs)
    failed = sum(r.status == "failed" for r in report.rungs)
    ran = f"{sum(r.status == 'passed' for r in report.rungs)} rungs passed"
    return ran + (f", {failed} FAILED" if failed else "") + (f", {skipped} not run here" if skipped else "")
