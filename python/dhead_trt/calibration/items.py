"""Single items of calibration data that can be read again: image files, images, rows of .npz files and of arrays."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifact import TensorInfo
from ..errors import InputError
from ..files import sha256_of
from ..images import load_image
from ..letterbox import letterbox

__all__ = ["Batch", "Item", "NpzFile", "array_items", "checked", "image_item", "is_path", "is_picture", "npz_items"]

Batch = dict[str, npt.NDArray[np.float32]]
Layout = Mapping[str, tuple[tuple[int, ...], "np.dtype[Any]"]]  # array → shape and type


class Item:
    """One image, or one row of features, that is read when it is needed.

    Attributes:
        name: for messages.
        load: the network's inputs, each [1, C, H, W].
    """

    def __init__(self, name: str, load: Callable[[], Batch], digest: Callable[[], str]) -> None:
        self.name, self.load = name, load
        self._digest, self._key = digest, ""

    @property
    def key(self) -> str:
        """SHA-256 of its content: of the file's bytes, or of the values."""
        self._key = self._key or self._digest()
        return self._key


def is_path(item: Any) -> bool:
    """Whether it names a file."""
    return isinstance(item, (str, os.PathLike))


def is_picture(item: Any) -> bool:
    """Whether it is an image in memory, and not inputs that are ready for the network."""
    if isinstance(item, np.ndarray):
        return item.dtype in (np.uint8, np.uint16) and item.ndim in (2, 3)
    return type(item).__module__.startswith("PIL.")


def image_item(image: Any, index: int, tensor: TensorInfo, canvas: tuple[int, int]) -> Item:
    """A file or an image in memory, letterboxed as the Detector does it."""

    def load() -> Batch:
        out = np.empty((1, 3, *canvas), np.float32)
        letterbox(load_image(image), canvas, out=out[0])
        return {tensor.name: out}

    def digest() -> str:
        if is_path(image):
            try:
                return sha256_of(Path(image))
            except OSError as e:
                raise InputError("The image cannot be opened", received=f"{image}: {e.strerror}") from e
        pixels = np.ascontiguousarray(load_image(image))
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    return Item(Path(image).name if is_path(image) else f"image {index}", load, digest)


class NpzFile:
    """An .npz file whose arrays are read when one is needed, and dropped when another file's are.

    Args:
        path: of the file.
        open_file: holds the file that is open last, shared by those of one source, so that one is in memory.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, path: Path, open_file: dict[Path, dict[str, npt.NDArray[Any]]]) -> None:
        self.path, self._open = path, open_file
        try:
            self.layout: Layout = _layout(path)
        except Exception as e:  # numpy raises what zip, pickle and the disk do
            raise InputError("The .npz file cannot be read", received=f"{path}: {e}") from e

    def array(self, name: str) -> npt.NDArray[Any]:
        """One of its arrays."""
        if self.path not in self._open:
            self._open.clear()
            try:
                with np.load(self.path, allow_pickle=False) as saved:
                    self._open[self.path] = {name: saved[name] for name in saved.files}
            except Exception as e:
                raise InputError("The .npz file cannot be read", received=f"{self.path}: {e}") from e
        return self._open[self.path][name]


def _layout(path: Path) -> Layout:
    """Shapes and types of the arrays, from their headers."""
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            found[entry.removesuffix(".npy")] = (tuple(shape), dtype)
    return found


def npz_items(files: Sequence[Path], inputs: Sequence[TensorInfo]) -> list[Item]:
    """Every row of every file.

    Raises:
        InputError: a file cannot be read, lacks an input, or its arrays do not fit.
    """
    items: list[Item] = []
    last: dict[Path, dict[str, npt.NDArray[Any]]] = {}
    for path in files:
        saved = NpzFile(path, last)
        names = {t.name: t.name for t in inputs}
        if len(inputs) == 1 and len(saved.layout) == 1:
            names = {inputs[0].name: next(iter(saved.layout))}
        layout = {mine: saved.layout[theirs] for mine, theirs in names.items() if theirs in saved.layout}
        count = _count(path.name, layout, inputs, sorted(saved.layout))
        items += [
            _row(f"{path.name}[{i}]", i, lambda saved=saved, names=names: _pick(saved, names), inputs)  # type: ignore[misc]
            for i in range(count)
        ]
    return items


def _pick(saved: NpzFile, names: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    return {mine: saved.array(theirs) for mine, theirs in names.items()}


def array_items(name: str, arrays: Mapping[str, npt.NDArray[Any]], inputs: Sequence[TensorInfo]) -> list[Item]:
    """Every row of arrays in memory.

    Raises:
        InputError: an input is missing, or the arrays do not fit.
    """
    layout = {t.name: (arrays[t.name].shape, arrays[t.name].dtype) for t in inputs if t.name in arrays}
    count = _count(name, layout, inputs, sorted(arrays))
    return [_row(f"{name}[{i}]" if count > 1 else name, i, lambda: arrays, inputs) for i in range(count)]


def _row(
    name: str, index: int, arrays: Callable[[], Mapping[str, npt.NDArray[Any]]], inputs: Sequence[TensorInfo]
) -> Item:
    def rows() -> dict[str, npt.NDArray[Any]]:
        found = arrays()
        return {t.name: found[t.name][index : index + 1] for t in inputs}

    def digest() -> str:
        made = hashlib.sha256()
        for key, value in sorted(rows().items()):
            made.update(f"{key} {value.dtype} {value.shape}".encode())
            made.update(np.ascontiguousarray(value).tobytes())
        return made.hexdigest()

    return Item(name, lambda: checked(name, rows(), inputs, any_batch=True), digest)


def _count(name: str, layout: Layout, inputs: Sequence[TensorInfo], given: Sequence[str]) -> int:
    """How many rows the arrays have, after a look at their names, types and shapes."""
    if any(t.name not in layout for t in inputs):
        raise InputError(
            f"{name} lacks an input of the model",
            received=f"arrays {', '.join(given) or 'none'}",
            expected=", ".join(t.name for t in inputs),
        )
    lengths = {t.name: layout[t.name][0][0] if layout[t.name][0] else 0 for t in inputs}
    if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
        raise InputError(f"{name} holds no equal number of items of each input", received=lengths)
    for t in inputs:
        _fits(name, t, *layout[t.name], any_batch=True)
    return next(iter(lengths.values()))


def _fits(name: str, t: TensorInfo, shape: Sequence[int], dtype: np.dtype[Any], *, any_batch: bool) -> None:
    if dtype.kind != "f":
        raise InputError(
            f"{name} is not floating point at input {t.name!r}",
            received=dtype.name,
            expected="float32, scaled as the network wants it (images: 0 to 1)",
        )
    wanted = (-1, *t.shape[1:]) if any_batch else t.shape
    if len(shape) != len(wanted) or any(w not in (-1, d) for w, d in zip(wanted, shape, strict=True)):
        raise InputError(f"{name} has another shape than input {t.name!r}", received=list(shape), expected=t.describe())


def checked(
    name: str, batch: Mapping[str, npt.NDArray[Any]], inputs: Sequence[TensorInfo], *, any_batch: bool = False
) -> Batch:
    """The arrays as float32, if they are of the model's shape (`any_batch`: but for the batch) and finite.

    Raises:
        InputError: they are not.
    """
    made: Batch = {}
    for t in inputs:
        array = batch[t.name]
        _fits(name, t, array.shape, array.dtype, any_batch=any_batch)
        made[t.name] = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(made[t.name]).all():
            raise InputError(f"The data holds NaN or infinity at {name}", received=f"input {t.name!r}")
    return made
