"""Arrays in and out of an engine: taken as they come, checked against what the engine says, and handed back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .artifact import TensorInfo
from .errors import InputError

__all__ = ["Arrays", "bind", "by_name", "copy_out", "pick_out", "refuse_non_finite"]

Arrays = dict[str, NDArray[Any]]


def bind(expected: Sequence[TensorInfo], inputs: Any) -> Arrays:
    """Inputs by name, C-contiguous, of the dtypes and shapes expected; copied only where they are not contiguous.

    Args:
        expected: the engine's inputs.
        inputs: a dict by name, a sequence in order, or the array itself where one is expected. Arrays are numpy, torch
            on the CPU, or anything with DLPack or `__array__`.

    Raises:
        InputError: a name, dtype, shape or device does not fit, or the batches differ.
    """
    named = by_name(expected, inputs)
    bound = {t.name: _array(t, named[t.name]) for t in expected}
    batches = {name: a.shape[0] for name, a in bound.items()}
    if len(set(batches.values())) > 1:
        raise InputError("The inputs differ in batch size", received=batches, expected="the same for all")
    return bound


def by_name(expected: Sequence[TensorInfo], inputs: Any) -> dict[str, Any]:
    """The arrays by name, whatever they are; every name expected and no other.

    Raises:
        InputError: a name is missing or unknown, or their number is wrong.
    """
    named: dict[str, Any]
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    elif isinstance(inputs, (list, tuple)):
        if len(inputs) != len(expected):
            raise InputError("Wrong number of inputs", received=len(inputs), expected=_signature(expected))
        named = {t.name: a for t, a in zip(expected, inputs, strict=True)}
    elif len(expected) == 1:
        named = {expected[0].name: inputs}
    else:
        raise InputError(
            "One array for an engine of several inputs", received=_what(inputs), expected=_signature(expected)
        )
    names = {t.name for t in expected}
    if named.keys() != names:
        unknown, missing = sorted(map(str, set(named) - names)), sorted(names - set(named))
        raise InputError(
            "The input names do not match",
            received=f"unknown {unknown}, missing {missing}",
            expected=_signature(expected),
        )
    return named


def _signature(expected: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{t.name} {t.describe()} {t.dtype}" for t in expected)


def _array(tensor: TensorInfo, value: Any) -> NDArray[Any]:
    """`value` as a C-contiguous numpy array of exactly the tensor's dtype and an accepted shape."""
    array = value if isinstance(value, np.ndarray) else _to_numpy(tensor, value)
    if array.dtype != np.dtype(tensor.dtype):
        fix: str | None = f"Convert it: x.astype(np.{tensor.dtype})"
        if array.dtype == np.uint8 and tensor.dtype.startswith("float"):
            fix = (
                f"Pixels go in as RGB from 0 to 1: x.astype(np.{tensor.dtype}) / 255, or use Detector, which does that"
            )
        raise InputError(
            f"Input {tensor.name!r} has the wrong dtype", received=array.dtype, expected=tensor.dtype, fix=fix
        )
    if not tensor.accepts(array.shape):
        fix = None
        usual = (tensor.profile[1] if tensor.profile else tensor.shape)[:1]  # batch
        if array.ndim == len(tensor.shape) - 1 and tensor.accepts((1, *array.shape)):
            fix = "Add the batch axis: x[None]"
        elif array.ndim == 4 and tensor.accepts((array.shape[0], array.shape[3], *array.shape[1:3])):
            fix = "Put the channels first: x.transpose(0, 3, 1, 2)"
        elif array.ndim == 4 and array.shape[0] > 0 and tensor.accepts((*usual, *array.shape[1:])):
            fix = f"Build the engine for this batch: batch=(1, …, {array.shape[0]})"
        raise InputError(
            f"Input {tensor.name!r} has the wrong shape",
            received=list(array.shape),
            expected=tensor.describe(),
            fix=fix,
        )
    return np.ascontiguousarray(array)


def _to_numpy(tensor: TensorInfo, value: Any) -> NDArray[Any]:
    device = getattr(value, "device", None)
    # The device first: torch raises when a tensor with gradients is asked for its interface.
    if getattr(device, "type", "cpu") not in ("cpu", None) or hasattr(value, "__cuda_array_interface__"):
        raise InputError(
            f"Input {tensor.name!r} lies on a GPU, and this engine runs on the CPU",
            received=f"{type(value).__name__} on {device}",
            expected="host memory",
            fix="Copy it: x.cpu(), or cupy.asnumpy(x)",
        )
    if not hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        raise InputError(
            f"Input {tensor.name!r} is not an array", received=_what(value), expected="numpy, torch or DLPack"
        )
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
    except Exception as e:  # each library raises its own: gradients, types numpy lacks, foreign devices
        raise InputError(
            f"Input {tensor.name!r} cannot be read as an array",
            received=f"{_what(value)} ({e})",
            fix="Pass x.detach().numpy()",
        ) from e


def refuse_non_finite(arrays: Arrays) -> None:
    """Looks at every value.

    Raises:
        InputError: some are NaN or infinite.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise InputError(f"Input {name!r} holds NaN or infinity", received=f"{count} of {array.size} values")


def copy_out(raw: Arrays, out: Mapping[str, NDArray[Any]] | None) -> Arrays:
    """The engine's memory copied to the caller's: to new arrays, or to those of `out`.

    Raises:
        InputError: an array of `out` does not fit.
    """
    if out is None:
        return {name: np.array(value) for name, value in raw.items()}
    picked = dict(zip(raw, pick_out(out, tuple(raw)) or (), strict=True))
    for name, value in raw.items():
        if picked[name].shape != value.shape or picked[name].dtype != value.dtype or not picked[name].flags.writeable:
            raise InputError(
                f"out[{name!r}] does not fit",
                received=f"{picked[name].dtype} {list(picked[name].shape)}"
                + ("" if picked[name].flags.writeable else ", read-only"),
                expected=f"{value.dtype} {list(value.shape)}, writeable",
            )
        np.copyto(picked[name], value)
    return picked


def pick_out(out: Mapping[str, NDArray[Any]] | None, names: Sequence[str]) -> tuple[NDArray[Any], ...] | None:
    """The arrays of `out` in the order of `names`; None where there is no `out`.

    Raises:
        InputError: `out` has other names, or values that are no arrays.
    """
    if out is None:
        return None
    if not isinstance(out, Mapping) or set(out) != set(names):
        received = sorted(map(str, out)) if isinstance(out, Mapping) else type(out).__name__
        raise InputError("out does not name the outputs", received=received, expected=list(names))
    for name in names:
        if not isinstance(out[name], np.ndarray):
            raise InputError(f"out[{name!r}] is not a numpy array", received=_what(out[name]))
    return tuple(out[name] for name in names)


def _what(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {list(shape)}" if shape is not None else "")
