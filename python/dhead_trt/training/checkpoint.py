"""Checkpoints of a training run in one safetensors file: tensors by name, everything else as JSON in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from .tensor_file import TensorFile

__all__ = ["flatten", "read_checkpoint", "unflatten", "write_checkpoint"]

_FILE = TensorFile(
    format="dhead_trt.checkpoint.1",
    missing="There is no such checkpoint",
    wrong="is not a checkpoint",
    expected="a file that dhead-trt train wrote",
)


def write_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> Path:
    """Writes nested dicts and lists of tensors and plain values; the file appears whole or not at all.

    Raises:
        InputError: something in it is neither a tensor nor a plain value, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    plain = flatten(state, tensors)
    return _FILE.write(path, tensors, {"state": json.dumps(plain)})


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What `write_checkpoint` was given, bit by bit.

    Raises:
        InputError: there is no such file, or it is not a checkpoint.
    """
    return _FILE.read(path, lambda metadata, tensors: unflatten(json.loads(metadata["state"]), tensors))


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
