"""Calibration data → batches of network inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifact import TensorInfo
from ..errors import InputError
from ..images import expand_paths
from ..shapes import takes_features
from ..spec import HeadSpec
from .items import Batch, Item, NpzFile, array_items, checked, image_item, is_path, is_picture, npz_items

__all__ = ["CalibrationBatches", "calibration_batches", "check_source"]

_KINDS = "a folder, glob or list of images, an .npz file (or several), or an iterable of arrays or dicts of arrays"


class CalibrationBatches:
    """Batches of inputs, one after the other; only one is in memory.

    Attributes:
        source: what they are made of, for messages.
        count: how many items there are, or None where that shows only at the end.
        again: whether they can be read more than once.
        items: what they are put together from, where they can be read again.
    """

    def __init__(
        self,
        source: str,
        make: Callable[[], Iterator[tuple[str, Batch]]] | None = None,
        *,
        items: Sequence[Item] | None = None,
        size: int = 1,
        salt: str = "",
    ) -> None:
        """Of `items`, `size` in each batch, with `salt` in the hash; or what `make` gives, which is read once."""
        if (make is None) == (items is None):
            raise TypeError("make or items")
        self.source, self.items = source, items
        self.count = None if items is None else len(items)
        self.again = items is not None
        self._make, self._size, self._salt = make, size, salt
        self._started = False

    def __iter__(self) -> Iterator[Batch]:
        return (batch for _, batch in self.named())

    def named(self) -> Iterator[tuple[str, Batch]]:
        """(what it is, batch) pairs: the name is for messages.

        Raises:
            InputError: the data was a generator, and has been read.
        """
        if self._started and not self.again:
            raise InputError("The calibration data can be read once only", received=self.source, fix="Give it again")
        self._started = True
        if self._make is not None:
            return self._make()
        return self._batches()

    def _batches(self) -> Iterator[tuple[str, Batch]]:
        for start in range(0, len(self.items or ()), self._size):
            part = (self.items or ())[start : start + self._size]
            rows = [item.load() for item in part]
            rows += [rows[k % len(part)] for k in range(self._size - len(part))]  # what is missing is filled up
            yield part[0].name, _joined(part, rows) if len(rows) > 1 else rows[0]

    def _of(self, items: Sequence[Item]) -> CalibrationBatches:
        return CalibrationBatches(self.source, items=items, size=self._size, salt=self._salt)

    def split(self, every: int) -> tuple[CalibrationBatches, CalibrationBatches] | None:
        """(the others, every `every`-th item); None where there are fewer, or they can be read only once."""
        if self.items is None or len(self.items) < every:
            return None
        rest = [item for i, item in enumerate(self.items) if i % every != every - 1]
        return self._of(rest), self._of(self.items[every - 1 :: every])

    def spread(self, limit: int) -> CalibrationBatches:
        """At most so many of the items, evenly from all of them; these batches where they can be read only once."""
        return self if self.items is None else self._of(_spread(list(self.items), limit))

    def without(self, other: CalibrationBatches) -> tuple[CalibrationBatches, list[str]]:
        """These without the items of `other` (the same file, or the same content), and the names of those taken out.

        What can be read only once is not looked at.
        """
        if self.items is None or other.items is None:
            return self, []
        known = {item.key for item in other.items}
        out = [item.name for item in self.items if item.key in known]
        return (self._of([i for i in self.items if i.key not in known]), out) if out else (self, [])

    def sha256(self) -> str | None:
        """SHA-256 of the data, where it can be told without using it up."""
        if self.items is None:
            return None
        digest = hashlib.sha256(self._salt.encode())
        for item in self.items:
            digest.update(item.key.encode())
        return digest.hexdigest()


def _joined(part: Sequence[Item], rows: Sequence[Batch]) -> Batch:
    for name, first in rows[0].items():
        for item, row in zip(part, rows, strict=False):
            if row[name].shape != first.shape:
                raise InputError(
                    f"{item.name} has another shape than {part[0].name}, and both are of one batch",
                    received=list(row[name].shape),
                    expected=list(first.shape),
                )
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def calibration_batches(
    source: Any,
    inputs: Sequence[TensorInfo],
    spec: HeadSpec | None = None,
    *,
    limit: int | None = None,
    batch: int = 1,
    image_size: tuple[int, int] | None = None,
) -> CalibrationBatches:
    """Batches of a network's inputs from what users have.

    Args:
        source: a folder, glob or list of images (letterboxed as the Detector does it); an .npz file whose arrays are
            called like the inputs, each [N, C, H, W], or a list or folder of such files; arrays by input name; a list
            or an iterable of arrays (one input), sequences or dicts of arrays, each a batch. Images may also be uint8
            arrays [H, W, 3] or PIL images.
        inputs: the network's, from `dhead_trt.shapes.tensor_infos`.
        spec: of its head: tells images from features, and the image size where the graph leaves it open.
        limit: take so many items at most, evenly spread; of an iterable the first ones.
        batch: items per batch where the inputs leave it open. A graph of fixed batch gets that; what is left over at
            the end is filled up with repetitions.
        image_size: (height, width) for graphs of free size.

    Raises:
        InputError: there is no data, or it does not fit. Errors of a single image or value are raised when it is
            reached, and name it.
    """
    if limit is not None and limit < 1:
        raise InputError("limit is out of range", received=limit, expected="at least 1, or None")
    fixed = inputs[0].shape[0]
    size = fixed if fixed != -1 else batch
    images = not takes_features(inputs, spec) and len(inputs) == 1 and inputs[0].shape[1] == 3

    def made(items: list[Item], label: str, salt: str = "") -> CalibrationBatches:
        if not items:
            raise InputError("There is no calibration data", received=label, expected=_KINDS)
        return CalibrationBatches(label, items=_spread(items, limit), size=size, salt=salt)

    def one(item: Any, index: int) -> list[Item]:
        if is_path(item) or is_picture(item):
            return [image_item(item, index, inputs[0], _canvas(inputs[0], spec, image_size))]
        return array_items(f"item {index}", _named(item, f"item {index}", inputs), inputs)

    files, label = _files(source)
    if files == []:
        return made([], label)
    if files is not None:
        if all(is_path(f) and str(f).endswith(".npz") for f in files):
            return made(npz_items([Path(f) for f in files], inputs), label)
        if not images:
            names = ", ".join(t.name for t in inputs)
            raise InputError(
                f"This model takes {names}, not images",
                received=label,
                expected=f".npz files with arrays {names}, or an iterable of them",
                fix="Calibrate the whole detector on images, or save the features of some images with numpy.savez",
            )
        return made([item for i, f in enumerate(files) for item in one(f, i)], label, _salt(inputs, spec, image_size))
    if isinstance(source, np.ndarray):
        source = {inputs[0].name: source} if len(inputs) == 1 else source
    if isinstance(source, Mapping):
        arrays = {str(k): np.asarray(v) for k, v in source.items()}
        return made(array_items("arrays", arrays, inputs), "arrays")
    if isinstance(source, (list, tuple)):
        return made([item for i, part in enumerate(source) for item in one(part, i)], f"{len(source)} batches")
    if not isinstance(source, Iterable):
        raise InputError("This is not calibration data", received=type(source).__name__, expected=_KINDS)
    return CalibrationBatches(
        type(source).__name__, lambda: _from_iterable(source, inputs, spec, limit, size, image_size)
    )


def check_source(source: Any) -> None:
    """Looks whether data is there at all, before a model is.

    Raises:
        InputError: a file or folder is missing, holds nothing, or is damaged (.npz); or this is no data.
    """
    files, label = _files(source)
    if files is not None:
        if not files:
            raise InputError("There is no calibration data", received=label, expected=_KINDS)
        for path in [Path(f) for f in files if is_path(f)]:
            if not path.is_file():
                raise InputError("The calibration data is not there", received=str(path), expected=_KINDS)
            if path.suffix == ".npz":
                NpzFile(path, {})
    elif not isinstance(source, Iterable):
        raise InputError("This is not calibration data", received=type(source).__name__, expected=_KINDS)
    elif isinstance(source, (list, tuple, Mapping)) and not source:
        raise InputError("There is no calibration data", received=label, expected=_KINDS)


# -- what was given --


def _files(source: Any) -> tuple[list[Any] | None, str]:
    """The files (or images) of a source, None where it is something else, and what to call it."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            saved = sorted(path.glob("*.npz"))
            return (list(saved) if saved else _expanded(source)), str(source)
        return _expanded(source), str(source)
    if isinstance(source, (list, tuple)):
        paths = all(is_path(s) for s in source)
        pictures = all(is_path(s) or is_picture(s) for s in source)
        if pictures:
            return list(source), f"{len(source)} {'files' if paths else 'images'}"
    return None, type(source).__name__


def _expanded(source: str | os.PathLike[str]) -> list[Any]:
    found = expand_paths(source)
    if found is not None:
        return list(found)
    if not Path(source).exists():
        raise InputError("The calibration data is not there", received=source, expected=_KINDS)
    return [Path(source)]


def _spread(items: list[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, evenly spread."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _canvas(tensor: TensorInfo, spec: HeadSpec | None, asked: tuple[int, int] | None) -> tuple[int, int]:
    shape = tensor.shape if tensor.profile is None else tensor.profile[1]
    fallback = asked or (spec.image_size if spec is not None else None)
    sizes = [d if d != -1 else (fallback[i] if fallback else -1) for i, d in enumerate(shape[2:])]
    if -1 in sizes:
        raise InputError(
            "The model's image size is open", received=tensor.describe(), fix="Give image_size (--image-size)"
        )
    return int(sizes[0]), int(sizes[1])


def _salt(inputs: Sequence[TensorInfo], spec: HeadSpec | None, asked: tuple[int, int] | None) -> str:
    """What the inputs depend on besides the files."""
    return repr(_canvas(inputs[0], spec, asked))


def _named(item: Any, name: str, inputs: Sequence[TensorInfo]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one batch by input."""
    if isinstance(item, Mapping):
        missing = [t.name for t in inputs if t.name not in item]
        if missing:
            raise InputError(f"{name} lacks {missing[0]!r}", received=", ".join(map(str, item)))
        return {t.name: _array(item[t.name]) for t in inputs}
    if isinstance(item, (list, tuple)) and len(item) == len(inputs):
        return {t.name: _array(v) for t, v in zip(inputs, item, strict=True)}
    if len(inputs) == 1:
        return {inputs[0].name: _array(item)}
    raise InputError(
        f"{name} does not give every input", received=type(item).__name__, expected=f"{len(inputs)} arrays"
    )


def _array(value: Any) -> npt.NDArray[Any]:
    """An array [N, C, H, W] from what it is given as; one item gets a batch of its own."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    return array[None] if array.ndim == 3 else array


# -- what can be read once --


def _from_iterable(
    source: Iterable[Any],
    inputs: Sequence[TensorInfo],
    spec: HeadSpec | None,
    limit: int | None,
    size: int,
    image_size: tuple[int, int] | None,
) -> Iterator[tuple[str, Batch]]:
    taken = 0
    for i, item in enumerate(source):
        if limit is not None and taken >= limit:
            return
        name = f"item {i}"
        if is_path(item) or is_picture(item):
            row = image_item(item, i, inputs[0], _canvas(inputs[0], spec, image_size)).load()
            batch = {key: np.repeat(value, max(inputs[0].shape[0], 1), axis=0) for key, value in row.items()}
        else:
            batch = checked(name, _named(item, name, inputs), inputs)
        taken += len(next(iter(batch.values())))
        yield name, batch
