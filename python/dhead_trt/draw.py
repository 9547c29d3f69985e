"""Draws detections on an image, readable on small and large ones."""

from __future__ import annotations

import colorsys
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import BackendUnavailable, InputError
from .files import atomic_path
from .images import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from .detections import Detections

__all__ = ["class_colour", "draw"]

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
Boxes = npt.NDArray[np.float64]


def class_colour(class_id: int) -> Colour:
    """A strong colour, the same for a class on every image; neighbours in number are far apart in hue."""
    hue = (class_id * 0.61803398875 + 0.58) % 1.0
    value = (0.86, 0.68, 0.78)[class_id % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: Any,
    detections: Detections,
    path: str | os.PathLike[str] | None = None,
    *,
    bgr: bool = False,
    labels: bool = True,
    confidence: bool = True,
    line_width: int | None = None,
    font_size: float | None = None,
    fill: float = 0.08,
) -> Image:
    """A copy of the image with a box and a label for each detection; the most confident are drawn last, on top.

    Args:
        image: anything `load_image` takes; the size must be the detections' image_size.
        detections: what to draw.
        path: also write it there, in the format of the suffix.
        bgr: the array's channels are B, G, R.
        labels, confidence: write the class name, and the score behind it.
        line_width, font_size: pixels; None: from the image's size.
        fill: 0 … 1, how strongly the inside of a box is tinted.

    Raises:
        InputError: the image has another size, or `path` has no image suffix or cannot be written.
        BackendUnavailable: Pillow is not installed.
    """
    try:
        from PIL import Image as pillow
        from PIL import ImageDraw, ImageFont
    except ImportError as e:
        raise BackendUnavailable("Drawing needs Pillow", fix='pip install "dhead-trt[image]"') from e
    pixels = load_image(image, bgr=bgr)
    height, width = pixels.shape[:2]
    if (height, width) != detections.image_size:
        raise InputError(
            "The detections are of an image of another size",
            received=f"{width} × {height} pixels",
            expected="{1} × {0}".format(*detections.image_size),
            fix="Draw on the image that was detected on, or use detections.scaled((height, width))",
        )
    canvas = pillow.fromarray(np.ascontiguousarray(pixels))
    scale = (height * width) ** 0.5
    line = max(1, round(scale / 600)) if line_width is None else max(1, line_width)
    size = max(9.0, min(scale / 85, 64.0)) if font_size is None else max(1.0, font_size)
    font = ImageFont.load_default(size=size)
    rows = list(detections)[::-1]  # ascending confidence
    if fill > 0 and rows:
        tint = canvas.copy()
        shade = ImageDraw.Draw(tint)
        for row in rows:
            shade.rectangle(_pixels(row.xyxy), fill=class_colour(row.class_id))
        canvas = pillow.blend(canvas, tint, min(fill, 1.0))
    pen = ImageDraw.Draw(canvas)
    for row in rows:
        pen.rectangle(_pixels(row.xyxy), outline=class_colour(row.class_id), width=line)
    boxes = detections.xyxy.astype(np.float64)
    taken = np.zeros((0, 4))
    for index, row in enumerate(detections) if labels else ():
        text = f"{row.name} {row.confidence:.2f}" if confidence else row.name
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        pad = max(1, round(size / 6))
        box = _place(index, (right - left + 2 * pad, bottom - top + 2 * pad), (width, height), boxes, taken)
        taken = np.concatenate([taken, [box]])
        colour = class_colour(row.class_id)
        pen.rectangle(_pixels(box), fill=colour)
        red, green, blue = colour
        ink = (255, 255, 255) if 0.299 * red + 0.587 * green + 0.114 * blue < 150 else (0, 0, 0)
        pen.text((box[0] + pad - left, box[1] + pad - top), text, fill=ink, font=font)
    if path is not None:
        _save(canvas, path)
    return canvas


def _place(row: int, size: tuple[float, float], image: tuple[int, int], boxes: Boxes, labels: Boxes) -> Box:
    """Where the label of a box goes: at its outside corners if that hides nothing, else where it hides least.

    Hiding another label is worst, another box next; hiding the box itself is better than either.
    """
    (x1, y1, x2, y2), (w, h), (width, height) = boxes[row], size, image
    corners = [(x1, y1 - h), (x2 - w, y1 - h), (x2, y1), (x1 - w, y1), (x1, y2), (x2 - w, y2), (x2 - w, y1), (x1, y1)]
    places = np.array(corners, dtype=np.float64)
    places = np.clip(places, 0, np.maximum(0, [width - w, height - h]))
    places = np.hstack([places, np.add(places, [w, h])])
    others = np.delete(boxes, row, axis=0)
    hidden = 8 * _overlap(places, labels) + 2 * _overlap(places, others) + _overlap(places, boxes[row : row + 1])
    best = places[int(np.argmin(hidden))].tolist()  # the first of equals
    return best[0], best[1], best[2], best[3]


def _overlap(a: Boxes, b: Boxes) -> Boxes:
    """Area of each of a [N, 4] that the boxes b [M, 4] cover, summed over b: [N]."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    area: Boxes = np.maximum(0, high - low).prod(axis=2).sum(axis=1)
    return area


def _pixels(box: Box) -> Box:
    """Box edges → the inclusive pixels Pillow draws."""
    x1, y1 = round(box[0]), round(box[1])
    return x1, y1, max(x1, round(box[2]) - 1), max(y1, round(box[3]) - 1)


def _save(image: Image, path: str | os.PathLike[str]) -> None:
    try:
        with atomic_path(path) as temporary:
            image.save(temporary)
    except (OSError, ValueError, KeyError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(
            "The picture cannot be written", received=f"{os.fspath(path)}: {e}", expected="a .png or .jpg path"
        ) from e
