"""Draws detections on an image, readable on small and large ones."""

from __future__ import annotations

import colorsys
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BackendUnavailable, InputError
from .files import atomic_path
from .images import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from .detections import Detections

__all__ = ["class_colour", "draw"]

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]


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
    line = max(1, round(scale / 500)) if line_width is None else max(1, line_width)
    size = max(9.0, min(scale / 70, 64.0)) if font_size is None else max(1.0, font_size)
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
    taken: list[Box] = []
    for row in rows[::-1] if labels else ():
        text = f"{row.name} {row.confidence:.2f}" if confidence else row.name
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        pad = max(1, round(size / 6))
        box = _place(row.xyxy, (right - left + 2 * pad, bottom - top + 2 * pad), (width, height), taken)
        taken.append(box)
        colour = class_colour(row.class_id)
        pen.rectangle(_pixels(box), fill=colour)
        red, green, blue = colour
        ink = (255, 255, 255) if 0.299 * red + 0.587 * green + 0.114 * blue < 150 else (0, 0, 0)
        pen.text((box[0] + pad - left, box[1] + pad - top), text, fill=ink, font=font)
    if path is not None:
        _save(canvas, path)
    return canvas


def _place(target: Box, size: tuple[float, float], image: tuple[int, int], taken: list[Box]) -> Box:
    """Where a label goes: the first of above, inside, below, left and right aligned, that is free and on the image."""
    (x1, y1, x2, y2), (w, h), (width, height) = target, size, image
    places = [(x, y) for y in (y1 - h, y1, y2, y2 - h) for x in (x1, x2 - w)]
    boxes = []
    for x, y in places:
        x, y = min(max(x, 0.0), max(width - w, 0.0)), min(max(y, 0.0), max(height - h, 0.0))
        boxes.append((x, y, x + w, y + h))
    free = (b for b in boxes if all(_overlap(b, t) == 0 for t in taken))
    return next(free, None) or min(boxes, key=lambda b: sum(_overlap(b, t) for t in taken))


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


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
