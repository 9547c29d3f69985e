"""Data by the name that a user gives it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from .data import CocoDataset, Scenes, YoloDataset
from .loader import Detections

__all__ = ["VAL_SEED", "has_split", "open_data"]

VAL_SEED = 1_000_003  # added to the seed: validation scenes are never training scenes


def open_data(
    text: str,
    images: str | os.PathLike[str] | None,
    size: tuple[int, int],
    *,
    split: str = "train",
    scenes: int = 20000,
    seed: int = 0,
    like: Any = None,
) -> Detections:
    """Scenes, a COCO data set or a YOLO data set.

    Args:
        text: "scenes", "scenes:DOMAIN", a COCO JSON file, or a YOLO folder or data.yaml.
        images: folder of the images of a COCO file; default: beside it.
        size: (height, width) of the network input.
        split: "train" or "val".
        scenes: how many.
        seed: of the scenes.
        like: a data set whose classes these data must have.

    Raises:
        InputError: there is no such data.
    """
    kind, _, domain = text.partition(":")
    names = None if like is None else tuple(like.names)
    if kind == "scenes":
        drawn: Detections = Scenes(
            scenes, size, domain or "mixed", seed=seed + (VAL_SEED if split == "val" else 0), classes=names
        )
        return drawn
    path = Path(text)
    if path.suffix.lower() == ".json":
        if not path.is_file():
            raise InputError("There is no such file of annotations", received=text)
        coco: Detections = CocoDataset(path, images or path.parent, size, names=names)
        return coco
    if path.is_dir() or path.suffix.lower() in {".yaml", ".yml"}:
        yolo: Detections = YoloDataset(path, size, split=split, names=names)
        return yolo
    raise InputError(
        "There are no such data", received=repr(text), expected="scenes, a COCO JSON file, or a YOLO folder"
    )


def has_split(text: str, split: str) -> bool:
    """Whether a YOLO folder or data.yaml has a part of this name; other data have none."""
    path = Path(text)
    if path.is_dir():
        return (path / "images" / split).is_dir() or (path / split / "images").is_dir()
    if path.suffix.lower() in {".yaml", ".yml"} and path.is_file():
        return any(line.startswith(f"{split}:") for line in path.read_text("utf-8").splitlines())
    return False
