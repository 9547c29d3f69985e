"""COCO's annotation file, checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..detections import Detections
from ..errors import InputError

__all__ = ["CocoData", "CocoImage"]


@dataclass(frozen=True)
class CocoImage:
    """An image that has annotations, or none.

    Attributes:
        id: COCO's id.
        path: its file.
    """

    id: int
    path: Path


@dataclass(frozen=True)
class CocoData:
    """Labelled images.

    Attributes:
        images: in the file's order.
        categories: category id → name, by rising id.
        annotations: COCO's own dicts, with `area`, `iscrowd` and `id` filled in where the file leaves them out.
    """

    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    annotations: tuple[dict[str, Any], ...]

    @classmethod
    def load(
        cls,
        data: str | os.PathLike[str] | Mapping[str, Any],
        folder: str | os.PathLike[str],
        *,
        limit: int | None = None,
    ) -> CocoData:
        """Reads an annotation file.

        Args:
            data: the JSON file, or what is in it.
            folder: where the images are; `file_name` is relative to it.
            limit: only the first so many images.

        Raises:
            InputError: it cannot be read, is not COCO's format, or an image's file is missing.
        """
        content: Any = data
        if not isinstance(data, Mapping):
            try:
                content = json.loads(Path(data).read_text("utf-8"))
            except OSError as e:
                raise InputError("The annotations cannot be read", received=f"{data}: {e.strerror}") from e
            except ValueError as e:
                raise InputError("The annotations are not JSON", received=str(e), expected="COCO's format") from e
        try:
            categories = {int(c["id"]): str(c["name"]) for c in content["categories"]}
            rows = [(int(i["id"]), str(i["file_name"])) for i in content["images"]]
            given = [dict(a) for a in content["annotations"]]
            boxes = [[float(v) for v in a["bbox"]] for a in given]
            places = [(int(a["image_id"]), int(a["category_id"])) for a in given]
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(
                "The annotations are not in COCO's format",
                received=f"{type(e).__name__}: {e}",
                expected="images (id, file_name), categories (id, name), annotations (image_id, category_id, bbox)",
            ) from e
        if len({i for i, _ in rows}) != len(rows):
            raise InputError("Two images of the annotations have the same id")
        known = {i for i, _ in rows}
        annotations = []
        for number, (annotation, box, (image, category)) in enumerate(zip(given, boxes, places, strict=True), 1):
            if image not in known or category not in categories or len(box) != 4 or not all(map(math.isfinite, box)):
                raise InputError(
                    f"Annotation {number} does not fit the file",
                    received=f"image {image}, category {category}, bbox {box}",
                    expected="an image and a category of the file, and left, top, width, height",
                )
            filled = {"area": box[2] * box[3], "iscrowd": 0, **annotation}
            annotations.append({**filled, "id": number, "image_id": image, "category_id": category, "bbox": box})
        rows = rows[:limit]
        images = tuple(CocoImage(i, Path(folder) / name) for i, name in rows)
        if not images:
            raise InputError("The annotations hold no images")
        missing = [i.path for i in images if not i.path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(images)} images are missing",
                received=str(missing[0]),
                fix="Name the folder that `file_name` is relative to with --images",
            )
        kept = {i.id for i in images}
        return cls(images, dict(sorted(categories.items())), tuple(a for a in annotations if a["image_id"] in kept))

    def category_ids(self, names: Sequence[str], num_classes: int) -> list[int]:
        """The category of each class of a model: by name where all names occur, else by order.

        Raises:
            InputError: neither names nor numbers of classes agree.
        """
        by_name = {name.strip().lower(): i for i, name in self.categories.items()}
        wanted = [n.strip().lower() for n in names]
        if wanted and all(n in by_name for n in wanted) and len(set(wanted)) == len(wanted):
            return [by_name[n] for n in wanted]
        if len(self.categories) == num_classes:
            return list(self.categories)
        strange = [n for n in names if n.strip().lower() not in by_name]
        raise InputError(
            "The model's classes are not the categories of the data",
            received=f"{num_classes} classes, of which {', '.join(strange[:5]) or 'none has a name'}",
            expected=", ".join(list(self.categories.values())[:12]),
        )

    def truth(
        self, image: CocoImage, categories: Sequence[int], names: Sequence[str], size: tuple[int, int]
    ) -> Detections:
        """The labels of an image (without crowds) as Detections of confidence 1."""
        index = {category: i for i, category in enumerate(categories)}
        rows = [
            a
            for a in self.annotations
            if a["image_id"] == image.id and not a["iscrowd"] and a["category_id"] in index and min(a["bbox"][2:]) >= 0
        ]
        boxes = np.array([a["bbox"] for a in rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = [index[a["category_id"]] for a in rows]
        ones = np.ones(len(rows), np.float32)
        return Detections(
            boxes.astype(np.float32), ones, np.array(classes, np.int64), tuple(names), size, str(image.path)
        )
