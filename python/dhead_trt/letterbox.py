"""Letterbox: an image on the network's canvas, and the network's boxes back on the image.

The geometry is that of Ultralytics' LetterBox: one gain for both axes, sizes rounded half to even, centred, padding
114. The sampling is OpenCV's INTER_LINEAR for 8-bit images, bit for bit. On the way back: the resized image has whole
pixels, so the scale that was really applied differs a little between the axes; `to_image` divides by the scale of each
axis, as Ultralytics 8.4.190 does. Older versions (8.3.0) divide both by the gain before rounding; `uniform=True` does
the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import InputError

__all__ = ["PAD_VALUE", "Letterbox", "letterbox", "plan_letterbox"]

PAD_VALUE = 114
MAX_SIDE = 1 << 20
_MANY_PIXELS = 1 << 18  # of a canvas: from here on, several threads pay


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies on a canvas; maps boxes there and back.

    Attributes:
        source: (height, width) of the image, pixels.
        size: (height, width) of the canvas.
        resized: (height, width) of the image on the canvas.
        pad: (top, left) padding, pixels; what is left over lies at the bottom and the right.
        gain: min over the axes of canvas / image, before `resized` was rounded to whole pixels.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    resized: tuple[int, int]
    pad: tuple[int, int]
    gain: float

    @property
    def gains(self) -> tuple[float, float]:
        """(vertical, horizontal) canvas pixels per image pixel, as really applied."""
        return self.resized[0] / self.source[0], self.resized[1] / self.source[1]

    def to_network(self, boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Boxes [..., 4] xyxy in image pixels → canvas pixels, float64. Not clipped."""
        scale, offset = self._transform(False)
        return _boxes(boxes) * scale + offset

    def to_image(self, boxes: npt.ArrayLike, *, clip: bool = True, uniform: bool = False) -> npt.NDArray[np.float64]:
        """Boxes [..., 4] xyxy in canvas pixels → image pixels, float64; the inverse of `to_network`.

        Args:
            boxes: xyxy on the canvas.
            clip: limit to the image, 0 … width and 0 … height.
            uniform: divide both axes by `gain`, as scale_boxes of older Ultralytics (8.3.0) does (up to half a canvas
                pixel off at the far edge), instead of by the scale really applied to each.
        """
        scale, offset = self._transform(uniform)
        out = (_boxes(boxes) - offset) / scale
        if clip:
            height, width = self.source
            np.clip(out, 0, np.array([width, height, width, height], dtype=np.float64), out=out)
        return out

    def _transform(self, uniform: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        y, x = (self.gain, self.gain) if uniform else self.gains
        top, left = self.pad
        return np.array([x, y, x, y], dtype=np.float64), np.array([left, top, left, top], dtype=np.float64)


def plan_letterbox(
    source: tuple[int, int], size: tuple[int, int], *, rect: bool = False, stride: int = 32, scaleup: bool = True
) -> Letterbox:
    """The geometry alone.

    Args:
        source: (height, width) of the image.
        size: (height, width) of the canvas; with `rect`, the most it may be.
        rect: pad only to the next multiples of `stride` (taken off `size`), not to the whole canvas.
        stride: the network's largest stride; used by `rect`.
        scaleup: False leaves images that are smaller than the canvas at their size.

    Raises:
        InputError: a side is not from 1 to 1048576.
    """
    return _describe(_geometry(source, size, rect, stride, scaleup))


def letterbox(
    image: npt.NDArray[np.uint8],
    size: tuple[int, int],
    *,
    dtype: npt.DTypeLike = np.float32,
    rect: bool = False,
    stride: int = 32,
    scaleup: bool = True,
    pad_value: int = PAD_VALUE,
    out: npt.NDArray[Any] | None = None,
    threads: int | None = None,
    simd: str | None = None,
) -> tuple[npt.NDArray[Any], Letterbox]:
    """Resizes, pads, scales to 0 … 1 and makes planar, in one pass and with the GIL released.

    Args:
        image: uint8 [height, width, 3]; any strides, so crops, flips, image[:, :, ::-1] (BGR to RGB) and broadcast
            grey are read in place.
        size: (height, width) of the canvas.
        dtype: float32 or float16.
        rect, stride, scaleup: see `plan_letterbox`.
        pad_value: 0 … 255, of the border.
        out: [3, H, W] of `dtype`, C-contiguous, written in place (a slice of a batch); None allocates.
        threads: at most so many; None: up to 4 for large canvases.
        simd: one of `dhead_trt.simd_levels()`; None for the best. All give the same bits.

    Returns:
        The canvas [3, H, W], 0 … 1, channels in the image's order, and the Letterbox that maps boxes back.

    Raises:
        InputError: wrong shape or dtype, an empty image, an unknown `simd`, or `out` does not fit.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(
            "The image cannot be letterboxed",
            received=_describe_array(image),
            expected="uint8 [height, width, 3]",
            fix="dhead_trt.images.load_image turns other images into this",
        )
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float16):
        raise InputError("The letterbox writes floating point", received=kind.name, expected="float32 or float16")
    if not 0 <= pad_value <= 255:
        raise InputError("pad_value is out of range", received=pad_value, expected="0 to 255")
    geometry = _geometry((image.shape[0], image.shape[1]), size, rect, stride, scaleup)
    shape = (3, geometry.height, geometry.width)
    if out is None:
        out = np.empty(shape, dtype=kind)
    elif out.shape != shape or out.dtype != kind or not out.flags.c_contiguous or not out.flags.writeable:
        raise InputError(
            "out does not fit",
            received=_describe_array(out),
            expected=f"writeable C-contiguous {kind.name} {list(shape)}",
        )
    _core.letterbox(image, geometry, out, int(pad_value), _threads(threads, shape[1] * shape[2]), simd)
    return out, _describe(geometry)


def _geometry(
    source: tuple[int, int], size: tuple[int, int], rect: bool, stride: int, scaleup: bool
) -> _core.LetterboxGeometry:
    numbers = (*source, *size, stride)
    if len(source) != 2 or len(size) != 2 or not all(1 <= n <= MAX_SIDE for n in numbers):
        raise InputError(
            "An image, canvas or stride has no such size",
            received=f"image {tuple(source)}, canvas {tuple(size)}, stride {stride}",
            expected=f"(height, width) of 1 to {MAX_SIDE} pixels each",
        )
    (h, w), (height, width) = source, size
    return _core.letterbox_geometry(int(h), int(w), int(height), int(width), bool(scaleup), bool(rect), int(stride))


def _describe(g: _core.LetterboxGeometry) -> Letterbox:
    return Letterbox(
        source=(g.source_height, g.source_width),
        size=(g.height, g.width),
        resized=(g.resized_height, g.resized_width),
        pad=(g.top, g.left),
        gain=g.gain,
    )


def _threads(threads: int | None, pixels: int) -> int:
    if threads is None:
        return 1 if pixels < _MANY_PIXELS else min(4, _processors())
    if threads < 1:
        raise InputError("threads is out of range", received=threads, expected="at least 1, or None")
    return int(threads)


def _processors() -> int:
    """Processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _boxes(boxes: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != 4:
        raise InputError("These are not boxes", received=f"shape {list(array.shape)}", expected="[..., 4] xyxy")
    return array


def _describe_array(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} {list(value.shape)}"
    return type(value).__name__
