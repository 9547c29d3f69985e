"""Augmentation without mosaic: flip, scale and shift, colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from ...letterbox import PAD_VALUE
from .scenes import Sample

__all__ = ["Augmentation", "augment", "flip", "rescale"]

_KEPT_SIDE = 2.0  # pixels


@dataclass(frozen=True)
class Augmentation:
    """How samples are varied.

    Attributes:
        flip: share of the samples that are mirrored left to right.
        flip_vertical: share that is mirrored top to bottom.
        scale: the size is multiplied by 1 / (1 + scale) … 1 + scale; the canvas stays as it is.
        keep: share of a box's area that must be left in the frame; boxes with less are dropped.
        brightness, contrast, saturation: the value is multiplied by 1 - x … 1 + x.

    Raises:
        InputError: a value out of range.
    """

    flip: float = 0.5
    flip_vertical: float = 0.0
    scale: float = 0.4
    keep: float = 0.3
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), 4.0 if field.name == "scale" else 1.0
            if not 0 <= value <= most:
                raise InputError(
                    f"Augmentation.{field.name} is out of range", received=value, expected=f"0 to {most:g}"
                )

    def __call__(self, image: Tensor, targets: Tensor, rng: np.random.Generator) -> Sample:
        """`augment` by these settings: what the trainer's loader calls."""
        return augment(image, targets, self, rng)


class Samples(Protocol):
    """A data set of samples with the attributes ours have."""

    names: tuple[str, ...]
    size: tuple[int, int]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def augment(image: Tensor, targets: Tensor, how: Augmentation, rng: np.random.Generator) -> Sample:
    """One varied sample.

    Args:
        image: uint8 [3, H, W]; not changed.
        targets: float32 [N, 5]: class, xyxy in pixels; not changed.
        how: how much.
        rng: where the chance comes from.
    """
    draws = rng.random(8).tolist()
    for axis, share, draw in ((2, how.flip, draws[0]), (1, how.flip_vertical, draws[1])):
        if draw < share:
            image, targets = flip(image, targets, axis)
    if how.scale:
        factor = (1 + how.scale) ** (2 * draws[2] - 1)
        image, targets = rescale(image, targets, factor, (draws[3], draws[4]), how.keep)
    gains = [
        1 + amount * (2 * d - 1)
        for amount, d in zip((how.brightness, how.contrast, how.saturation), draws[5:], strict=True)
    ]
    return _recolour(image, gains), targets


def flip(image: Tensor, targets: Tensor, axis: int) -> Sample:
    """Mirrored along axis 2 (left to right) or 1 (top to bottom) of [3, H, W]."""
    low, high = (1, 3) if axis == 2 else (2, 4)
    mirrored = targets.clone()
    mirrored[:, low], mirrored[:, high] = image.shape[axis] - targets[:, high], image.shape[axis] - targets[:, low]
    return image.flip(axis), mirrored


def rescale(image: Tensor, targets: Tensor, factor: float, place: Sequence[float], keep: float) -> Sample:
    """Larger or smaller on a canvas of the same size; what it does not cover is padding, what it lacks is cut off.

    Args:
        image: uint8 [3, H, W].
        targets: float32 [N, 5]: class, xyxy.
        factor: of the size; both sides are rounded to whole pixels, and boxes follow those.
        place: 0 … 1 down and 0 … 1 across: where the smaller image lies, or where the larger one is cut.
        keep: boxes of which less than this share of the area is left, or less than 2 pixels either way, are dropped.
    """
    height, width = image.shape[1:]
    new_h, new_w = max(1, round(height * factor)), max(1, round(width * factor))
    scaled = functional.interpolate(
        image[None].float(), (new_h, new_w), mode="bilinear", align_corners=False, antialias=factor < 1
    )[0]
    top, left = round((height - new_h) * place[0]), round((width - new_w) * place[1])
    canvas = image.new_full(image.shape, PAD_VALUE)
    rows, columns = slice(max(top, 0), min(top + new_h, height)), slice(max(left, 0), min(left + new_w, width))
    part = scaled[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    canvas[:, rows, columns] = part.round().clamp(0, 255).to(torch.uint8)
    gain = targets.new_tensor([new_w / width, new_h / height] * 2)
    moved = targets[:, 1:] * gain + targets.new_tensor([left, top] * 2)
    inside = torch.minimum(moved.clamp(min=0), targets.new_tensor([width, height] * 2))
    sides, whole = inside[:, 2:] - inside[:, :2], moved[:, 2:] - moved[:, :2]
    kept = (sides.min(1).values >= _KEPT_SIDE) & (sides.prod(1) >= keep * whole.prod(1))
    return canvas, torch.cat([targets[:, :1], inside], dim=1)[kept]


def _recolour(image: Tensor, gains: Sequence[float]) -> Tensor:
    """Brightness, contrast around the mean, and saturation around the grey of each pixel."""
    brightness, contrast, saturation = gains
    if brightness == contrast == saturation == 1:
        return image
    pixels = image.float()
    grey = pixels.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1).mul(pixels).sum(0, keepdim=True)
    pixels = grey + (pixels - grey) * saturation
    mean = grey.mean()
    pixels = (mean + (pixels - mean) * contrast) * brightness
    return pixels.round_().clamp_(0, 255).to(torch.uint8)
