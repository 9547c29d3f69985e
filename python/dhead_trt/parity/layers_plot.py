"""The picture of a layer report: how far each tensor of the graph is off, in the order of the graph."""

from __future__ import annotations

import math
from pathlib import Path

from .._figure import saved_figure
from ..errors import InputError
from .layers import LayerReport

__all__ = ["plot_layers"]

_WITHIN, _BEYOND = "#2b7a4b", "#b3261e"


def plot_layers(report: LayerReport, path: str | Path) -> Path:
    """Draws relative errors on a logarithmic axis, the tolerance as a line, and names the first tensor beyond it.

    Args:
        path: the picture to write; its suffix (.png, .svg, .pdf) chooses the format.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        InputError: no tensor was compared, or the suffix is not one that matplotlib writes.
    """
    if not report.layers:
        raise InputError("There is nothing to draw", received="a report without tensors")
    shown = [x.relative for x in report.layers if 0 < x.relative < math.inf]
    low = 10 ** math.floor(math.log10(min([*shown, report.tolerance])) - 0.3)
    high = 10 ** math.ceil(math.log10(max([*shown, report.tolerance])) + 0.3)
    heights = [min(max(x.relative, low), high) for x in report.layers]
    colors = [_WITHIN if x.relative <= report.tolerance else _BEYOND for x in report.layers]
    first = report.first
    verdict = "all within" if first is None else "first beyond at " + str(report.layers.index(first))
    what = f"{report.backend} {report.precision}, computed in {report.computed_in}"
    title = f"Layers of {report.model}: {what}, against ONNX Runtime fp32: {verdict}"
    with saved_figure(path, (11, 4.5), title=title) as figure:
        axis = figure.subplots()
        axis.set_yscale("log")
        axis.set_ylim(low, high)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.vlines(range(len(heights)), low, heights, color=colors, linewidth=1)
        axis.scatter(range(len(heights)), heights, c=colors, s=14, zorder=3)
        axis.axhline(report.tolerance, color="black", linewidth=1.2)
        axis.text(0, report.tolerance, f"tolerance {report.tolerance:g}", va="bottom", fontsize=8)
        axis.set_xlabel("tensor, in the order of the graph (numbers as in the table)")
        axis.set_ylabel("relative error ‖engine − reference‖ / ‖reference‖")
        if first is not None:
            place = report.layers.index(first)
            right = place > len(heights) / 2
            axis.annotate(
                f"{first.tensor} ({first.op})",
                (place, heights[place]),
                xytext=(-8 if right else 8, 8),
                textcoords="offset points",
                ha="right" if right else "left",
                color=_BEYOND,
                fontsize=8,
            )
    return Path(path)
