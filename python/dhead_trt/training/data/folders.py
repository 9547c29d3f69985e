"""Labelled images on disk: COCO's JSON, and the text files of YOLO."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ...errors import InputError
from ...images import IMAGE_SUFFIXES, load_image
from ...validate.coco import CocoData
from .labels import Label, LabelCounts, Targets, check_size, clean, load_sample
from .scenes import Sample
from .yolo_files import YoloFiles, read_labels

__all__ = ["CocoDataset", "YoloDataset"]


class _Folder(Dataset[Sample]):
    """Images read and letterboxed when they are asked for; their labels were checked at the start.

    Attributes:
        names: of the classes.
        size: (height, width) of the canvas.
        paths: of the images.
        counts: what became of the labels.
    """

    def __init__(self, paths: Sequence[Path], targets: Sequence[Targets], names: Sequence[str], size: tuple[int, int]):
        self.paths, self.names, self.size = tuple(paths), tuple(names), size
        self.counts = LabelCounts()
        self._targets = tuple(targets)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """Image uint8 RGB [3, H, W] and targets float32 [N, 5]: class, x1, y1, x2, y2 in pixels of the canvas.

        Raises:
            InputError: the image cannot be read any more.
        """
        return load_sample(self.paths[index], self._targets[index], self.size)


class CocoDataset(_Folder):
    """Images with COCO's annotations. Crowds are left out; an image without annotations is an empty one.

    Args:
        annotations: the JSON file, or what is in it.
        images: the folder that `file_name` is relative to.
        size: (height, width) of the canvas that images are letterboxed to.
        names: categories to train on, in this order; annotations of others are left out. None: all, by rising id.

    Raises:
        InputError: the file is not COCO's, an image is missing, a name is no category, or a box is not one.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str] | Mapping[str, Any],
        images: str | os.PathLike[str],
        size: tuple[int, int],
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        size = check_size(size)
        data = CocoData.load(annotations, images)
        if names is None:
            categories = list(data.categories)
        else:
            known = {name: i for i, name in data.categories.items()}
            strange = [n for n in names if n not in known]
            if strange or not names:
                raise InputError(
                    "The annotations have no such category",
                    received=", ".join(strange) or "no names",
                    expected=", ".join(known),
                )
            categories = [known[n] for n in names]
        number = {category: i for i, category in enumerate(categories)}
        labels: dict[int, list[Label]] = defaultdict(list)
        for a in data.annotations:
            if a["category_id"] in number and not a["iscrowd"]:
                x, y, w, h = a["bbox"]
                box = (x, y, x + w, y + h)
                labels[a["image_id"]].append(Label(number[a["category_id"]], box, f"Annotation {a['id']}"))
        counts = LabelCounts()
        targets = [clean(labels[i.id], _size_of(i.path), len(categories), counts) for i in data.images]
        super().__init__([i.path for i in data.images], targets, [data.categories[c] for c in categories], size)
        self.counts = counts


class YoloDataset(_Folder):
    """Images with a text file each: `class x-centre y-centre width height`, as shares of the image.

    Args:
        source: a data.yaml (keys `path`, `train`, `val`, `names`), or a folder. In a folder, images lie in
            `images/<split>`, `<split>/images`, `images` or the folder itself; labels lie where `images` is replaced by
            `labels`, or beside them. An image without a text file, or with an empty one, is an empty image.
        size: (height, width) of the canvas that images are letterboxed to.
        split: which part.
        names: of the classes; None: from data.yaml, classes.txt or names.txt, else the numbers that occur.

    Rows of more numbers than five are outlines (class x1 y1 x2 y2 x3 y3 …): their box is taken.

    Raises:
        InputError: no images, a row that is not a label, an unknown class.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        size: tuple[int, int],
        *,
        split: str = "train",
        names: Sequence[str] | None = None,
    ) -> None:
        size = check_size(size)
        files = YoloFiles.find(Path(source), split)
        rows = [read_labels(path) if path else [] for path in files.labels]
        chosen = tuple(names) if names is not None else files.names
        if not chosen:
            highest = max((label.class_id for image in rows for label in image), default=0)
            chosen = tuple(str(i) for i in range(highest + 1))
        counts = LabelCounts()
        targets = []
        for path, labels in zip(files.images, rows, strict=True):
            height, width = _size_of(path)
            scaled = [
                Label(r.class_id, (r.box[0] * width, r.box[1] * height, r.box[2] * width, r.box[3] * height), r.place)
                for r in labels
            ]
            targets.append(clean(scaled, (height, width), len(chosen), counts))
        super().__init__(files.images, targets, chosen, size)
        self.counts = counts


def _size_of(path: Path) -> tuple[int, int]:
    """(height, width) as `load_image` will return it: from the header alone, unless that tells of a rotation."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return _shape(load_image(path))
    try:
        from PIL import Image

        with Image.open(path) as image:
            if image.getexif().get(0x0112, 1) == 1:
                return image.height, image.width
    except (ImportError, OSError):
        pass  # load_image says what is wrong
    return _shape(load_image(path))


def _shape(image: np.ndarray[Any, Any]) -> tuple[int, int]:
    return int(image.shape[0]), int(image.shape[1])
