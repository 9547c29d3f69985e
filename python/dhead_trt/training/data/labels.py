"""Labels as people write them → labels that can be trained on.

What is wrong is refused with its place: numbers that are not finite, boxes whose right is left of their left, classes
that do not exist. What is only of no use is mended and counted: boxes that reach over the image's edge are clipped, and
those of which less than `MIN_SIDE` pixels are left either way (outside the image, or of zero area) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...errors import InputError
from ...images import load_image
from ...letterbox import letterbox
from .scenes import Sample

__all__ = ["MIN_SIDE", "Label", "LabelCounts", "check_size", "clean", "load_sample"]

MIN_SIDE = 1.0  # pixels of the image; smaller boxes are left out

Targets = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Label:
    """One label as it was read.

    Attributes:
        class_id: number of its class.
        box: x1, y1, x2, y2 in pixels of the image.
        place: where it stands: a file and line, or an annotation's number.
    """

    class_id: int
    box: tuple[float, float, float, float]
    place: str


@dataclass
class LabelCounts:
    """What became of the labels.

    Attributes:
        kept: used, clipped ones included.
        clipped: reached over the image's edge.
        dropped: outside the image, or of no area.
    """

    kept: int = 0
    clipped: int = 0
    dropped: int = 0


def clean(labels: Sequence[Label], size: tuple[int, int], num_classes: int, counts: LabelCounts) -> Targets:
    """Targets [N, 5] (class, xyxy) of the labels of one image of `size` (height, width); adds to `counts`.

    Raises:
        InputError: a number that is not finite, a box inside out, or an unknown class.
    """
    height, width = size
    rows = []
    for label in labels:
        box = np.array(label.box, dtype=np.float64)
        if not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            raise InputError(
                f"{label.place} is not a box",
                received=f"x1, y1, x2, y2 = {', '.join(f'{v:g}' for v in label.box)}",
                expected="finite numbers, x1 <= x2 and y1 <= y2",
            )
        if not 0 <= label.class_id < num_classes:
            raise InputError(
                f"{label.place} has an unknown class",
                received=label.class_id,
                expected=f"0 to {num_classes - 1}",
                fix="Name all classes of the data",
            )
        inside = np.clip(box, 0, [width, height, width, height])
        if min(inside[2] - inside[0], inside[3] - inside[1]) < MIN_SIDE:
            counts.dropped += 1
            continue
        counts.kept += 1
        counts.clipped += bool((inside != box).any())
        rows.append((label.class_id, *inside))
    return np.array(rows, dtype=np.float32).reshape(-1, 5)


def load_sample(path: Path, targets: Targets, size: tuple[int, int]) -> Sample:
    """An image file on a canvas of `size`, as the engines will see it (our letterbox), and its targets there."""
    image = load_image(path)
    canvas, geometry = letterbox(image, size)
    moved = targets.copy()
    moved[:, 1:] = geometry.to_network(targets[:, 1:])
    pixels = np.rint(canvas * np.float32(255)).astype(np.uint8)  # the letterbox samples in 8 bits: nothing is lost
    return torch.from_numpy(pixels), torch.from_numpy(moved)


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the canvas.

    Raises:
        InputError: not two sides of 32 to 8192 pixels.
    """
    if len(size) != 2 or not all(32 <= s <= 8192 for s in size):
        raise InputError("There is no such canvas", received=size, expected="(height, width), 32 to 8192 pixels each")
    return int(size[0]), int(size[1])
