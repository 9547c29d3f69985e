"""A safetensors file of one kind: tensors by name, and in its metadata the kind and what else belongs to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..errors import BackendUnavailable, InputError
from ..files import atomic_path

__all__ = ["TensorFile"]

T = TypeVar("T")

_WRONG = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, InputError)  # what a wrong content leads to


@dataclass(frozen=True)
class TensorFile:
    """How the files of one kind are written and read.

    Attributes:
        format: the metadata's "format"; no file with another one is read.
        missing: the error where there is no file.
        wrong: the error where the file is another or damaged; the path comes before it.
        expected: what such a file is, for the error.
    """

    format: str
    missing: str
    wrong: str
    expected: str

    def write(self, path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
        """Writes through to the disk; the file appears whole or not at all.

        Raises:
            InputError: the file cannot be written.
            BackendUnavailable: safetensors is not installed.
        """
        stored = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        content = _Safetensors().save(stored, metadata={"format": self.format, **metadata})
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return Path(path)

    def read(self, path: str | os.PathLike[str], make: Callable[[dict[str, str], dict[str, Tensor]], T]) -> T:
        """What `make` makes of the metadata and the tensors; its errors say that the file is wrong.

        Raises:
            InputError: there is no such file, or it is not of this kind.
            BackendUnavailable: safetensors is not installed.
        """
        package = _Safetensors()
        if not Path(path).is_file():
            raise InputError(self.missing, received=str(path))
        try:
            with package.safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != self.format:
                    raise ValueError(f"format {metadata.get('format')!r}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no mapping
            return make(metadata, tensors)
        except (
            package.SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RuntimeError,
            InputError,
        ) as e:
            raise InputError(
                f"{path} {self.wrong}", received=f"{type(e).__name__}: {str(e).splitlines()[0]}", expected=self.expected
            ) from e


class _Safetensors:
    def __init__(self) -> None:
        try:
            import safetensors
            import safetensors.torch
        except ImportError as e:
            raise BackendUnavailable(
                "Files of weights need safetensors", received=str(e), fix='pip install "dhead-trt[train]"'
            ) from e
        self.save: Any = safetensors.torch.save
        self.safe_open: Any = safetensors.safe_open
        self.SafetensorError: Any = safetensors.SafetensorError
