"""Checkpoints of a training run in one safetensors file: tensors by name, everything else as JSON in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..files import atomic_path
from .model import _safetensors

__all__ = ["flatten", "read_checkpoint", "unflatten", "write_checkpoint"]

FORMAT = "dhead_trt.checkpoint.1"


def write_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> Path:
    """Writes nested dicts and lists of tensors and plain values; the file appears whole or not at all.

    Raises:
        InputError: something in it is neither a tensor nor a plain value, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    plain = flatten(state, tensors)
    metadata = {"format": FORMAT, "state": json.dumps(plain)}
    stored = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(_safetensors().save(stored, metadata=metadata))
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What `write_checkpoint` was given, bit by bit.

    Raises:
        InputError: there is no such file, or it is not a checkpoint.
    """
    package = _safetensors()
    if not Path(path).is_file():
        raise InputError("There is no such checkpoint", received=str(path))
    try:
        with package.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no mapping
        if metadata.get("format") != FORMAT:
            raise ValueError(f"format {metadata.get('format')!r}")
        return unflatten(json.loads(metadata["state"]), tensors)
    except (package.SafetensorError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{path} is not a checkpoint",
            received=f"{type(e).__name__}: {str(e).splitlines()[0]}",
            expected="a file that dhead-trt train wrote",
        ) from e


def flatten(value: Any, tensors: dict[str, Tensor], name: str = "state") -> Any:
    """The JSON form of `value`; its tensors go into `tensors`, and their places hold {"tensor": name}."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs: the keys of an optimizer's state are numbers
        return {"map": [[k, flatten(v, tensors, f"{name}/{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [flatten(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError("A checkpoint cannot hold this", received=f"{name}: {type(value).__name__}")


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undoes `flatten`; tuples come back as lists."""
    if isinstance(value, list):
        return [unflatten(v, tensors) for v in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {k: unflatten(v, tensors) for k, v in value["map"]}
    return value
