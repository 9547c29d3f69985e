"""Data sets as files: COCO's JSON with PNG images, and a picture of a few samples."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...detections import Detections
from ...draw import draw
from ...errors import BackendUnavailable, InputError
from ...files import atomic_path
from .augment import Samples

__all__ = ["contact_sheet", "write_coco"]


def write_coco(data: Samples, folder: str | os.PathLike[str], *, limit: int | None = None) -> Path:
    """Writes `annotations.json` and `images/000000.png` …, as `dhead-trt val` reads them; returns the JSON's path.

    The JSON is written last, so a folder that has one is complete.

    Args:
        data: the samples; [3, H, W] images are written as they are.
        folder: made where it is missing.
        limit: only the first so many.

    Raises:
        InputError: nothing to write, or the folder cannot be written to.
        BackendUnavailable: Pillow is not installed.
    """
    pillow = _pillow()
    number = len(data) if limit is None else min(limit, len(data))
    if number < 1:
        raise InputError("There are no samples to write", received=f"{len(data)} samples, limit {limit}")
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for i in range(number):
        image, targets = data[i]
        name = f"{i:06d}.png"
        with atomic_path(folder / "images" / name) as path:
            pillow.fromarray(_picture(image)).save(path, format="PNG", compress_level=1)
        rows.append({"id": i + 1, "file_name": name, "width": int(image.shape[2]), "height": int(image.shape[1])})
        for class_id, x1, y1, x2, y2 in targets.tolist():
            w, h = x2 - x1, y2 - y1
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": i + 1,
                    "category_id": int(class_id) + 1,
                    "bbox": [round(v, 3) for v in (x1, y1, w, h)],
                    "area": round(w * h, 3),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(data.names)]
    with atomic_path(folder / "annotations.json") as path:
        path.write_text(json.dumps({"images": rows, "categories": categories, "annotations": boxes}), "utf-8")
    return folder / "annotations.json"


def contact_sheet(
    samples: Sequence[tuple[Tensor, Tensor]], names: Sequence[str], *, columns: int = 4, zoom: int = 2, gap: int = 6
) -> Any:
    """A PIL image of several samples of one size with their boxes.

    Args:
        samples: images uint8 [3, H, W] and targets [N, 5].
        names: of the classes.
        columns: samples side by side.
        zoom: each pixel becomes zoom × zoom.
        gap: white pixels between samples.

    Raises:
        InputError: no samples.
        BackendUnavailable: Pillow is not installed.
    """
    pillow = _pillow()
    if not samples:
        raise InputError("There are no samples to show")
    pictures = [_drawn(image, targets, names, zoom) for image, targets in samples]
    width, height = pictures[0].size
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = pillow.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def _drawn(image: Tensor, targets: Tensor, names: Sequence[str], zoom: int) -> Any:
    pixels = np.repeat(np.repeat(_picture(image), zoom, axis=0), zoom, axis=1)
    labels = targets.numpy()
    detections = Detections(
        labels[:, 1:] * zoom,
        np.ones(len(labels), np.float32),
        labels[:, 0].astype(np.int64),
        tuple(names),
        (pixels.shape[0], pixels.shape[1]),
    )
    return draw(pixels, detections, confidence=False, line_width=1, font_size=10, fill=0)


def _picture(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as e:
        raise BackendUnavailable("Writing images needs Pillow", fix='pip install "dhead-trt[image]"') from e
    return Image
