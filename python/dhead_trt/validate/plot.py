"""Pictures of the reports: PR curves, deltas, and the worst images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._figure import saved_figure
from ..detections import Detections
from .agreement import IOUS, Agreement
from .mean_ap import ValReport

__all__ = ["plot_agreement", "plot_validation"]

_SHOWN = 3  # worst images
_SIDE = 900  # of a shown image, pixels


def plot_validation(report: ValReport, path: str | Path) -> Path:
    """PR curves of every class at IoU 0.5, their AP as bars, and the worst images: labels left, detections right.

    Args:
        report: what `validate` returned.
        path: the picture to write; its suffix chooses the format.

    Raises:
        BackendUnavailable: matplotlib or Pillow is not installed.
        InputError: the suffix is not one that matplotlib writes.
    """
    worst = report.worst(_SHOWN)
    pairs = [(report.truth[i], report.found[i], f"F1 {report.f1[i]:.2f}") for i in worst]
    sides = ("labels", f"found (conf {report.f1_conf:g})")
    title = f"{report.model}: mAP50-95 {report.mean():.4f}, mAP50 {report.mean('ap50'):.4f}, {report.images} images"

    def top(left: Any, right: Any) -> None:
        recall = np.linspace(0, 1, 101)
        shown = [c for c in report.classes if c.labels]
        for c in shown:
            left.plot(recall, c.precision, linewidth=0.9, alpha=0.7, label=c.name)
        if shown:
            mean = np.mean([c.precision for c in shown], axis=0)
            left.plot(recall, mean, color="black", linewidth=2.2, label="all")
        if len(shown) <= 20:
            left.legend(fontsize=7, loc="lower left", frameon=False)
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="IoU 0.5")
        by_ap = sorted(shown, key=lambda c: c.ap)[-40:]
        right.barh([c.name for c in by_ap], [c.ap50 for c in by_ap], color="#c9d8e8", label="AP50")
        right.barh([c.name for c in by_ap], [c.ap for c in by_ap], color="#2b5d8a", label="AP50-95")
        right.set(xlim=(0, 1), xlabel="average precision")
        right.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)

    return _figure(path, title, top, pairs, sides)


def plot_agreement(
    report: Agreement, first: Sequence[Detections], second: Sequence[Detections], path: str | Path
) -> Path:
    """F1 of every image, box and score deltas of all pairs, and the images that agree least, side by side.

    Args:
        report: of `first` and `second`.
        first, second: the results that were compared.
        path, raises: as for `plot_validation`.
    """
    worst = report.worst(_SHOWN)
    pairs = [(first[i], second[i], f"F1 {report.images[i].f1():.2f}") for i in worst]
    scores = ", ".join(f"{iou:g}: {report.f1(level):.4f}" for level, iou in enumerate(IOUS))
    title = f"{report.names[0]} against {report.names[1]}: F1 at IoU {scores}"

    def top(left: Any, right: Any) -> None:
        for axis, values, label in (
            (left, [v for i in report.images for v in i.box], "largest box difference of a pair [px]"),
            (right, [v for i in report.images for v in i.score], "score difference of a pair"),
        ):
            floor = 1e-7
            data = np.maximum(values, floor)
            high = max(float(data.max()) * 1.5 if len(data) else 1.0, floor * 10)
            axis.hist(data, bins=np.geomspace(floor, high, 60), color="#2b5d8a")
            axis.set(xscale="log", xlabel=label, ylabel="pairs")

    return _figure(path, title, top, pairs, report.names)


def _figure(
    path: str | Path,
    title: str,
    top: Any,
    pairs: Sequence[tuple[Detections, Detections, str]],
    sides: tuple[str, str],
) -> Path:
    shown = [p for p in pairs if p[0].source is not None and Path(p[0].source).is_file()]
    with saved_figure(path, (12, 4.6 + 5.2 * len(shown)), title=title, dpi=110) as figure:
        grid = figure.add_gridspec(1 + len(shown), 2, height_ratios=[4.2, *([5.2] * len(shown))])
        top(figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1]))
        for row, (a, b, note) in enumerate(shown, 1):
            for column, (found, side) in enumerate(zip((a, b), sides, strict=True)):
                axis = figure.add_subplot(grid[row, column])
                axis.imshow(_drawn(found, str(a.source)))
                axis.set_axis_off()
                axis.set_title(f"{Path(str(a.source)).name}, {note}: {side}, {len(found)} boxes", fontsize=9)
    return Path(path)


def _drawn(found: Detections, source: str) -> Any:
    """The image with boxes, made smaller first where it is large."""
    from PIL import Image

    from ..images import load_image

    pixels = load_image(source)
    scale = min(1.0, _SIDE / max(pixels.shape[:2]))
    if scale < 1:
        size = max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale))
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size[::-1], Image.Resampling.LANCZOS))
        found = found.scaled(size)
    return np.asarray(found.draw(pixels))
