"""The proof that ONNX Runtime computes what torch computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import GraphError
from .inputs import Inputs, require

__all__ = ["TOLERANCES", "verify_export"]

# boxes: px, in proportion more beyond 1024 px, where only untrained weights point; scores: 1;
# raw maps: of the largest value in the map, at least 1. Two ONNX Runtime runs of one graph differ by a fifth of it.
TOLERANCES = {"boxes": 0.05, "scores": 1e-4, "maps": 1e-3}


def verify_export(
    torch: Any, proto: Any, wrapper: Any, inputs: Inputs, names: Sequence[str], dynamic_batch: bool, dynamic_size: bool
) -> tuple[dict[str, dict[str, float]], list[dict[str, tuple[int, ...]]]]:
    """Runs both at several batches and sizes, as far as they are dynamic.

    Returns:
        The largest and the mean absolute difference of each output over all runs, and the input shapes of the runs.

    Raises:
        GraphError: an output is off by more than its tolerance, or has another shape, or the graph does not run.
    """
    ort = require("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a few runs, beside torch's threads
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's exceptions have no common base
        raise GraphError("ONNX Runtime cannot load the exported graph", received=_line(e)) from e
    differences: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
    runs = []
    batch = int(inputs.example[0].shape[0])
    for seed, (b, grow) in enumerate(_sizes(batch, dynamic_batch, dynamic_size)):
        tensors = inputs.random(torch, b, grow, wrapper.spec.strides, seed)
        shapes = {n: tuple(t.shape) for n, t in zip(inputs.names, tensors, strict=True)}
        runs.append(shapes)
        want = wrapper(*(t.to(inputs.example[0].device) for t in tensors))
        try:
            got = session.run(list(names), {n: t.numpy() for n, t in zip(inputs.names, tensors, strict=True)})
        except Exception as e:
            raise GraphError(f"The exported graph fails at input shapes {shapes}", received=_line(e)) from e
        for name, g, w in zip(names, got, want, strict=True):
            differences[name].append(_difference(name, g, w.cpu().numpy(), shapes))
    parity = {
        n: {"max": max(float(d.max()) for d in ds), "mean": float(np.concatenate([d.ravel() for d in ds]).mean())}
        for n, ds in differences.items()
    }
    return parity, runs


def _sizes(batch: int, dynamic_batch: bool, dynamic_size: bool) -> list[tuple[int, int]]:
    """(batch, growth) of each run."""
    runs = [(batch, 0)]
    if dynamic_batch:
        runs.append((batch + 2, 0))
    if dynamic_size:
        runs += [(1 if dynamic_batch else batch, 1), (2 if dynamic_batch else batch, 3)]
    return runs


def _difference(name: str, got: Any, want: Any, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray[Any, Any]:
    where = f"of output {name} at input shapes {dict(shapes)}"
    if got.shape != want.shape:
        raise GraphError(f"The shape {where} is wrong", received=got.shape, expected=want.shape)
    finite = np.isfinite(want)
    if not np.array_equal(np.isfinite(got), finite):
        raise GraphError(
            f"ONNX Runtime and torch do not agree where the values {where} are finite",
            received=f"{int((~np.isfinite(got)).sum())} not finite",
            expected=f"{int((~finite).sum())}",
        )
    difference = np.where(finite, np.abs(np.where(finite, got, 0).astype(np.float64) - np.where(finite, want, 0)), 0)
    limit = TOLERANCES.get(name, TOLERANCES["maps"])
    if name != "scores":
        size = float(np.abs(np.where(finite, want, 0)).max())
        limit *= max(1.0, size / 1024 if name == "boxes" else size)
    if difference.max() > limit:
        raise GraphError(
            f"The exported graph does not compute what the model computes: values {where}",
            received=f"off by {difference.max():.3g}, {difference.mean():.3g} on average",
            expected=f"at most {limit:.3g}",
            fix="Is the model's result independent of its earlier calls, and of the values of its input?",
        )
    return difference


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
