"""Detections: what a detector found on one image, in pixels of that image."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import BackendUnavailable, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Detection", "Detections"]

SCHEMA = 1


class Detection(NamedTuple):
    """One row of a `Detections`: plain Python numbers.

    Attributes:
        xyxy: left, top, right, bottom in image pixels (edges, not pixel centres).
        confidence: score, 0 … 1.
        class_id: index of the class.
        name: the class's name, or its number as text where there are no names.
    """

    xyxy: tuple[float, float, float, float]
    confidence: float
    class_id: int
    name: str


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one image; immutable, validated, possibly empty.

    Iterating gives `Detection` rows; indexing with an integer, slice, mask or index array gives `Detections`.

    Attributes:
        xyxy: float32 [N, 4], image pixels: left, top, right, bottom.
        confidence: float32 [N].
        class_id: int64 [N].
        names: one name per class, or empty.
        image_size: (height, width) of the image, pixels.
        source: where the image came from (a path), or None.

    Raises:
        InputError: arrays that do not fit each other, or values that are not finite or out of range.
    """

    xyxy: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    class_id: npt.NDArray[np.int64]
    names: tuple[str, ...]
    image_size: tuple[int, int]
    source: str | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the one place where a frozen field is normalised
        set_(self, "xyxy", _frozen("xyxy", self.xyxy, np.float32, (-1, 4)))
        rows = len(self.xyxy)
        set_(self, "confidence", _frozen("confidence", self.confidence, np.float32, (rows,)))
        set_(self, "class_id", _frozen("class_id", self.class_id, np.int64, (rows,)))
        if isinstance(self.names, (str, bytes, Mapping)):
            raise InputError("Detections.names is not a sequence of names", received=repr(self.names)[:80])
        set_(self, "names", tuple(str(n) for n in self.names))
        size = tuple(int(s) for s in self.image_size)
        if len(size) != 2 or min(size) < 1:
            raise InputError("Detections.image_size is not (height, width)", received=self.image_size)
        set_(self, "image_size", size)
        if rows and (
            (self.xyxy[:, 2:] < self.xyxy[:, :2]).any() or self.confidence.min() < 0 or self.confidence.max() > 1
        ):
            raise InputError(
                "Detections are out of range",
                received="a box with right < left or bottom < top, or a confidence outside 0 … 1",
                expected="xyxy boxes and confidences from 0 to 1",
            )
        highest = len(self.names) - 1 if self.names else np.iinfo(np.int64).max
        if rows and (self.class_id.min() < 0 or self.class_id.max() > highest):
            raise InputError(
                "A class_id is out of range",
                received=f"{self.class_id.min()} to {self.class_id.max()}",
                expected=f"0 to {highest}" if self.names else "0 or more",
            )

    @classmethod
    def empty(cls, image_size: tuple[int, int], names: Sequence[str] = (), *, source: str | None = None) -> Detections:
        """No detections on an image of `image_size` (height, width)."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            tuple(names),
            image_size,
            source,
        )

    def __len__(self) -> int:
        return len(self.confidence)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, label in zip(self.xyxy.tolist(), self.confidence.tolist(), self.class_id.tolist(), strict=True):
            yield Detection((box[0], box[1], box[2], box[3]), score, label, self.name_of(label))

    def __getitem__(self, rows: int | slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any]) -> Detections:
        """Some rows, as `Detections`: an integer gives one row, a mask [N] or indices give what they select."""
        if isinstance(rows, (int, np.integer)) and not isinstance(rows, bool):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} of {len(self)} detections")
            rows = [int(rows)]
        index: Any = rows
        if not isinstance(rows, slice):
            index = np.asarray(rows)
            if index.size == 0 and index.dtype.kind == "f":
                index = index.astype(np.int64)  # an empty list
        return self._with(self.xyxy[index], self.confidence[index], self.class_id[index])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        return (
            (self.names, self.image_size, self.source) == (other.names, other.image_size, other.source)
            and np.array_equal(self.xyxy, other.xyxy)
            and np.array_equal(self.confidence, other.confidence)
            and np.array_equal(self.class_id, other.class_id)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        height, width = self.image_size
        found = ", ".join(f"{count} {name}" for name, count in self.counts().items()) or "nothing"
        where = f" in {self.source!r}" if self.source else ""
        return f"<Detections: {found}{where} ({width} × {height} pixels)>"

    @property
    def xywh(self) -> npt.NDArray[np.float32]:
        """float32 [N, 4]: left, top, width, height."""
        return np.concatenate([self.xyxy[:, :2], self.xyxy[:, 2:] - self.xyxy[:, :2]], axis=1)

    @property
    def area(self) -> npt.NDArray[np.float32]:
        """float32 [N], square pixels."""
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        return sides[:, 0] * sides[:, 1]

    @property
    def class_names(self) -> list[str]:
        """The name of each row's class."""
        return [self.name_of(c) for c in self.class_id.tolist()]

    def name_of(self, class_id: int) -> str:
        """Name of a class, or its number as text where there are no names."""
        return self.names[class_id] if self.names else str(class_id)

    def counts(self) -> dict[str, int]:
        """Rows per class that occurs, most frequent first."""
        ids, numbers = np.unique(self.class_id, return_counts=True)
        pairs = sorted(zip(ids.tolist(), numbers.tolist(), strict=True), key=lambda p: (-p[1], p[0]))
        return {self.name_of(i): n for i, n in pairs}

    def filter(
        self,
        *,
        conf: float | None = None,
        classes: Iterable[int | str] | int | str | None = None,
        min_area: float = 0.0,
    ) -> Detections:
        """The rows with confidence > `conf`, of `classes` (ids or names) and of at least `min_area` square pixels.

        Raises:
            InputError: a class name is not one of `names`.
        """
        keep = self.area >= min_area
        if conf is not None:
            keep &= self.confidence.astype(np.float64) > conf
        if classes is not None:
            keep &= np.isin(self.class_id, class_ids(classes, self.names))
        return self[keep]

    def scaled(self, image_size: tuple[int, int]) -> Detections:
        """The same detections on a copy of the image that was resized to `image_size` (height, width)."""
        y, x = image_size[0] / self.image_size[0], image_size[1] / self.image_size[1]
        boxes = (self.xyxy.astype(np.float64) * [x, y, x, y]).astype(np.float32)
        return Detections(boxes, self.confidence, self.class_id, self.names, image_size, self.source)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; numbers as written here read back to the same float32. See `from_dict`."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "image_size": list(self.image_size),
            "names": list(self.names),
            "detections": [
                {
                    "class_id": int(label),
                    "name": self.name_of(int(label)),
                    "confidence": _shortest(score),
                    "xyxy": [_shortest(v) for v in box],
                }
                for box, score, label in zip(self.xyxy, self.confidence, self.class_id, strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Detections:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            rows = data["detections"]
            return cls(
                np.array([r["xyxy"] for r in rows], dtype=np.float32).reshape(-1, 4),
                np.array([r["confidence"] for r in rows], dtype=np.float32),
                np.array([r["class_id"] for r in rows], dtype=np.int64),
                tuple(data["names"]),
                tuple(data["image_size"]),
                data.get("source"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise InputError("This is not a Detections object", received=f"{type(e).__name__}: {e}") from e

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Detections:
        """Reads JSON text, or a file that `save_json` wrote.

        Raises:
            InputError: no such file, or not that JSON.
        """
        try:
            text = source if isinstance(source, str) and source.lstrip()[:1] == "{" else Path(source).read_text("utf-8")
            return cls.from_dict(json.loads(text))
        except (OSError, UnicodeDecodeError) as e:
            raise InputError("The JSON file cannot be read", received=f"{source}: {e}") from e
        except json.JSONDecodeError as e:
            raise InputError("This is not JSON", received=str(e), expected="what Detections.save_json wrote") from e

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows in COCO's result format: image_id, category_id, bbox (left, top, width, height), score.

        Args:
            image_id: COCO's id of the image.
            category_ids: COCO's category id of each of our classes; None: the class ids themselves.
        """
        return [
            {
                "image_id": image_id,
                "category_id": int(label) if category_ids is None else int(category_ids[int(label)]),
                "bbox": [_shortest(v) for v in box],
                "score": _shortest(score),
            }
            for box, score, label in zip(self.xywh, self.confidence, self.class_id, strict=True)
        ]

    def to_yolo(self, *, confidence: bool = True) -> str:
        """YOLO text, one line a row: class, centre x, centre y, width, height as parts of the image, and confidence."""
        height, width = self.image_size
        lines = []
        for (x1, y1, x2, y2), score, label, _ in self:
            numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label} " + " ".join(f"{n:.9g}" for n in (*numbers, *([score] if confidence else []))))
        return "".join(line + "\n" for line in lines)

    def to_csv(self) -> str:
        """CSV with a header: source, class_id, name, confidence, left, top, right, bottom."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("source", "class_id", "name", "confidence", "left", "top", "right", "bottom"))
        for box, score, label in zip(self.xyxy, self.confidence, self.class_id, strict=True):
            row = (
                self.source or "",
                int(label),
                self.name_of(int(label)),
                _shortest(score),
                *(_shortest(v) for v in box),
            )
            writer.writerow(row)
        return text.getvalue()

    def save_json(self, path: str | os.PathLike[str]) -> Path:
        """Writes `to_json` to a file, whole or not at all; returns its path."""
        return self._save(path, self.to_json() + "\n")

    def save_yolo(self, path: str | os.PathLike[str], *, confidence: bool = True) -> Path:
        """Writes `to_yolo` to a file; returns its path."""
        return self._save(path, self.to_yolo(confidence=confidence))

    def save_csv(self, path: str | os.PathLike[str]) -> Path:
        """Writes `to_csv` to a file; returns its path."""
        return self._save(path, self.to_csv())

    def to_supervision(self) -> Any:
        """A `supervision.Detections`, with the class names under data["class_name"].

        Raises:
            BackendUnavailable: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as e:
            raise BackendUnavailable("supervision is not installed", fix="pip install supervision") from e
        return supervision.Detections(
            xyxy=self.xyxy.copy(),
            confidence=self.confidence.copy(),
            class_id=self.class_id.copy(),
            data={"class_name": np.array(self.class_names, dtype=str)},
        )

    def draw(self, image: Any, path: str | os.PathLike[str] | None = None, **style: Any) -> Image:
        """The image with boxes and labels; also written to `path` if given. See `dhead_trt.draw.draw`."""
        from .draw import draw

        return draw(image, self, path, **style)

    def _with(self, boxes: Any, confidence: Any, class_id: Any) -> Detections:
        return Detections(boxes, confidence, class_id, self.names, self.image_size, self.source)

    @staticmethod
    def _save(path: str | os.PathLike[str], text: str) -> Path:
        from .files import atomic_path

        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path may be no text
        return Path(path)


def ordered(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Boxes [N, 4] with no right < left or bottom < top: heads without bins can predict sides beyond each other, and
    such a box is empty, at its left or top edge."""
    return np.concatenate([boxes[:, :2], np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


def class_ids(classes: Iterable[int | str] | int | str, names: Sequence[str]) -> list[int]:
    """Class ids from ids and names.

    Raises:
        InputError: a name is not in `names`, or an id is out of range.
    """
    given = list(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else [classes]
    ids = []
    for item in given:
        if isinstance(item, str):
            if item not in names:
                known = ", ".join(names) if names else "ids (this detector has no names)"
                raise InputError("There is no such class", received=repr(item), expected=known)
            ids.append(list(names).index(item))
        elif (
            isinstance(item, bool)
            or not isinstance(item, (int, np.integer))
            or item < 0
            or (names and item >= len(names))
        ):
            raise InputError(
                "There is no such class", received=repr(item), expected=f"0 to {len(names) - 1}" if names else "ids"
            )
        else:
            ids.append(int(item))
    return ids


def _frozen(field: str, value: Any, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    expected = f"numbers of shape [{', '.join('N' if s < 0 else str(s) for s in shape)}]"
    try:
        given = np.asarray(value)
        array = np.array(given, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as e:
        raise InputError(
            f"Detections.{field} is not an array of numbers", received=type(value).__name__, expected=expected
        ) from e
    if array.size == 0 and shape in ((-1, 4), (0,)):
        array = array.reshape(0, *shape[1:])
    fits = array.ndim == len(shape) and all(s in (-1, n) for s, n in zip(shape, array.shape, strict=True))
    if not fits or given.dtype.kind not in "iuf":
        raise InputError(
            f"Detections.{field} does not fit", received=f"{given.dtype} {list(given.shape)}", expected=expected
        )
    if not np.isfinite(array).all():
        raise InputError(f"Detections.{field} holds NaN or infinity", expected="finite numbers")
    if array.dtype.kind == "i" and given.dtype.kind == "f" and not np.array_equal(array, given):
        raise InputError(f"Detections.{field} holds fractions", expected="whole numbers")
    array.setflags(write=False)
    return array


def _shortest(value: np.floating[Any]) -> float:
    """The shortest decimal that reads back to this float32, as a Python float."""
    return float(np.format_float_positional(np.float32(value), unique=True, trim="0"))
