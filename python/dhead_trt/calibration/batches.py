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
from ..files import sha256_of
from ..images import expand_paths, load_image
from ..letterbox import letterbox
from ..shapes import takes_features
from ..spec import HeadSpec

__all__ = ["CalibrationBatches", "calibration_batches"]

Batch = dict[str, npt.NDArray[np.float32]]
_KINDS = "a folder, glob or list of images, an .npz file (or several), or an iterable of arrays or dicts of arrays"


class CalibrationBatches:
    """Batches of inputs, one after the other; only one is in memory.

    Attributes:
        source: what they are made of, for messages.
        count: how many items there are, or None where that shows only at the end.
        again: whether they can be read more than once.
    """

    def __init__(
        self,
        source: str,
        make: Callable[[], Iterator[tuple[str, Batch]]],
        *,
        count: int | None,
        again: bool,
        fingerprint: Callable[[], str] | None,
        parts: Callable[[int], tuple[CalibrationBatches, CalibrationBatches] | None] | None = None,
    ) -> None:
        self.source, self.count, self.again = source, count, again
        self._make, self._fingerprint, self._parts = make, fingerprint, parts
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
        return self._make()

    def split(self, every: int) -> tuple[CalibrationBatches, CalibrationBatches] | None:
        """(the others, every `every`-th item); None where the items are not files or images, or fewer than `every`."""
        return None if self._parts is None else self._parts(every)

    def sha256(self) -> str | None:
        """SHA-256 of the data, where it can be told without using it up."""
        return None if self._fingerprint is None else self._fingerprint()


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
            called like the inputs, each [N, C, H, W], or a list or folder of such files; or an iterable of arrays (one
            input), sequences or dicts of arrays, each a batch. Images may also be uint8 arrays [H, W, 3] or PIL images.
        inputs: the network's, from `dhead_trt.shapes.tensor_infos`.
        spec: of its head: tells images from features, and the image size where the graph leaves it open.
        limit: take so many items at most, evenly spread over a list of files.
        batch: items per batch where the inputs leave it open. A graph of fixed batch gets that; what is left over at
            the end is filled up with repetitions.
        image_size: (height, width) for graphs of free size.

    Raises:
        InputError: there is no data, or it does not fit. Errors of a single item are raised when it is reached, and
            name it.
    """
    if limit is not None and limit < 1:
        raise InputError("limit is out of range", received=limit, expected="at least 1, or None")
    fixed = inputs[0].shape[0]
    size = fixed if fixed != -1 else batch
    images = not takes_features(inputs, spec) and len(inputs) == 1 and inputs[0].shape[1] == 3
    files, label = _files(source)
    if files is not None:
        if not files:
            raise InputError("There is no calibration data", received=label, expected=_KINDS)
        if all(str(f).endswith(".npz") for f in files):
            return _from_npz([Path(f) for f in files], label, inputs, limit, size)
        if not images:
            names = ", ".join(t.name for t in inputs)
            raise InputError(
                f"This model takes {names}, not images",
                received=label,
                expected=f".npz files with arrays {names}, or an iterable of them",
                fix="Calibrate the whole detector on images, or save the features of some images with numpy.savez",
            )
        canvas = _canvas(inputs[0], spec, image_size)
        return _from_images(_spread(files, limit), label, inputs[0], canvas, size)
    if isinstance(source, np.ndarray):
        source = {inputs[0].name: source} if len(inputs) == 1 else source
    if isinstance(source, Mapping):
        arrays = {str(k): np.asarray(v) for k, v in source.items()}
        return CalibrationBatches(
            "arrays",
            lambda: _slices("arrays", arrays, inputs, size, limit),
            count=min(limit or 1 << 62, len(next(iter(arrays.values()), ()))),
            again=True,
            fingerprint=lambda: _hash_arrays(arrays),
        )
    if not isinstance(source, Iterable):
        raise InputError("This is not calibration data", received=type(source).__name__, expected=_KINDS)
    return CalibrationBatches(
        type(source).__name__,
        lambda: _from_iterable(source, inputs, spec, limit, size, image_size),
        count=None,
        again=False,
        fingerprint=None,
    )


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
        paths = all(_is_path(s) for s in source)
        pictures = all(_is_path(s) or _is_picture(s) for s in source)
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


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike))


def _is_picture(item: Any) -> bool:
    if isinstance(item, np.ndarray):
        return item.dtype in (np.uint8, np.uint16) and item.ndim in (2, 3)
    return type(item).__module__.startswith("PIL.")


def _spread(items: list[Any], limit: int | None) -> list[Any]:
    """At most `limit` items, evenly spread."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _canvas(tensor: TensorInfo, spec: HeadSpec | None, asked: tuple[int, int] | None) -> tuple[int, int]:
    shape = tensor.shape if tensor.profile is None else tensor.profile[1]
    fallback = asked or (spec.image_size if spec is not None else None)
    sizes = [d if d != -1 else (fallback[i] if fallback else -1) for i, d in enumerate(shape[2:])]
    if -1 in sizes:
        raise InputError("The model's image size is open", received=tensor.describe(), fix="Give image_size")
    return int(sizes[0]), int(sizes[1])


# -- batches --


def _from_images(
    files: list[Any], label: str, tensor: TensorInfo, canvas: tuple[int, int], size: int
) -> CalibrationBatches:
    def parts(every: int) -> tuple[CalibrationBatches, CalibrationBatches] | None:
        if len(files) < every:
            return None
        held = files[every - 1 :: every]
        rest = [f for i, f in enumerate(files) if i % every != every - 1]
        return _from_images(rest, label, tensor, canvas, size), _from_images(held, label, tensor, canvas, size)

    return CalibrationBatches(
        label,
        lambda: _letterboxed(files, tensor, canvas, size),
        count=len(files),
        again=True,
        fingerprint=(lambda: _hash_files(files, canvas)) if all(_is_path(f) for f in files) else None,
        parts=parts,
    )


def _letterboxed(
    files: list[Any], tensor: TensorInfo, canvas: tuple[int, int], size: int
) -> Iterator[tuple[str, Batch]]:
    for start in range(0, len(files), size):
        part = files[start : start + size]
        out = np.empty((size, 3, *canvas), np.float32)
        for k, item in enumerate(part):
            letterbox(load_image(item), canvas, out=out[k])
        for k in range(len(part), size):
            out[k] = out[k % len(part)]
        yield _label(part[0], start), {tensor.name: out}


def _label(item: Any, index: int) -> str:
    return Path(item).name if _is_path(item) else f"image {index}"


def _from_npz(
    files: list[Path], label: str, inputs: Sequence[TensorInfo], limit: int | None, size: int
) -> CalibrationBatches:
    def make() -> Iterator[tuple[str, Batch]]:
        left = limit
        for path in files:
            try:
                with np.load(path, allow_pickle=False) as saved:
                    arrays = {name: saved[name] for name in saved.files}
            except Exception as e:  # numpy raises what zip, pickle and the disk do
                raise InputError("The .npz file cannot be read", received=f"{path}: {e}") from e
            if len(inputs) == 1 and len(arrays) == 1:
                arrays = {inputs[0].name: next(iter(arrays.values()))}
            yield from _slices(path.name, arrays, inputs, size, left)
            if left is not None:
                left -= len(next(iter(arrays.values())))
                if left <= 0:
                    return

    def fingerprint() -> str:
        digest = hashlib.sha256(repr((limit, size)).encode())
        for path in files:
            digest.update(sha256_of(path).encode())
        return digest.hexdigest()

    return CalibrationBatches(label, make, count=None, again=True, fingerprint=fingerprint)


def _slices(
    name: str, arrays: Mapping[str, npt.NDArray[Any]], inputs: Sequence[TensorInfo], size: int, limit: int | None
) -> Iterator[tuple[str, Batch]]:
    missing = [t.name for t in inputs if t.name not in arrays]
    if missing:
        raise InputError(
            f"{name} lacks an input of the model",
            received=f"arrays {', '.join(sorted(arrays)) or 'none'}",
            expected=", ".join(t.name for t in inputs),
        )
    lengths = {t.name: len(arrays[t.name]) if np.ndim(arrays[t.name]) else 0 for t in inputs}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise InputError(f"{name} holds no equal number of items of each input", received=lengths)
    total = min(next(iter(lengths.values())), limit or 1 << 62)
    for start in range(0, total, size):
        index = [start + k if start + k < total else start + k % (total - start) for k in range(size)]
        batch = {t.name: arrays[t.name][index] for t in inputs}
        yield f"{name}[{start}]", _checked(f"{name}[{start}]", batch, inputs)


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
        if _is_path(item) or _is_picture(item):
            canvas = _canvas(inputs[0], spec, image_size)
            (_, batch), *_rest = _letterboxed([item], inputs[0], canvas, max(inputs[0].shape[0], 1))
        elif isinstance(item, Mapping):
            missing = [t.name for t in inputs if t.name not in item]
            if missing:
                raise InputError(f"{name} lacks {missing[0]!r}", received=", ".join(map(str, item)))
            batch = {t.name: _array(item[t.name]) for t in inputs}
        elif isinstance(item, (list, tuple)) and len(item) == len(inputs):
            batch = {t.name: _array(v) for t, v in zip(inputs, item, strict=True)}
        elif len(inputs) == 1:
            batch = {inputs[0].name: _array(item)}
        else:
            raise InputError(
                f"{name} does not give every input", received=type(item).__name__, expected=f"{len(inputs)} arrays"
            )
        taken += len(next(iter(batch.values())))
        yield name, _checked(name, batch, inputs)


def _array(value: Any) -> npt.NDArray[Any]:
    """An array [N, C, H, W] from what it is given as; one item gets a batch of its own."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    return array[None] if array.ndim == 3 else array


def _checked(name: str, batch: Mapping[str, npt.NDArray[Any]], inputs: Sequence[TensorInfo]) -> Batch:
    """float32 and of the model's shape."""
    made: Batch = {}
    for t in inputs:
        array = batch[t.name]
        if array.dtype.kind != "f":
            raise InputError(
                f"{name} is not floating point at input {t.name!r}",
                received=array.dtype.name,
                expected="float32, scaled as the network wants it (images: 0 to 1)",
            )
        shape = tuple(array.shape)
        if len(shape) != len(t.shape) or any(w not in (-1, d) for w, d in zip(t.shape, shape, strict=True)):
            raise InputError(
                f"{name} has another shape than input {t.name!r}", received=list(shape), expected=t.describe()
            )
        made[t.name] = np.ascontiguousarray(array, np.float32)
    return made


def _hash_files(files: list[Any], canvas: tuple[int, int]) -> str:
    digest = hashlib.sha256(repr(canvas).encode())
    for path in files:
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()


def _hash_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
