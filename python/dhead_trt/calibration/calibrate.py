"""Runs a graph on calibration data and reads the ranges of its activations."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._ort import cpu_session
from ..errors import GraphError, InputError
from ..progress import ProgressCallback
from .batches import CalibrationBatches
from .histogram import Histogram
from .ranges import Ranges, model_sha256

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["METHODS", "PERCENTILE", "calibrate", "method_options"]

METHODS = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99
_MEMORY = 512 << 20  # bytes of activations fetched at once


def calibrate(
    model: ModelProto,
    batches: CalibrationBatches | Iterable[dict[str, npt.NDArray[np.float32]]],
    *,
    method: str = "minmax",
    percentile: float | None = None,
    cache: str | os.PathLike[str] | None = None,
    expected: int | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Ranges:
    """The ranges of the activations that `to_int8` needs.

    The graph runs in ONNX Runtime; of each activation only a histogram is kept.

    Args:
        model: float32 graph, of any form.
        batches: from `calibration_batches`.
        method: "minmax": all that occurred; "percentile": without the largest outliers; "entropy": TensorRT's
            calibration, the clipping that loses the least information; "mse": the clipping of least squared error.
        percentile: for that method; default 99.99.
        cache: JSON file. Where it exists and is of this model, data and method, nothing is run; where it is of others,
            it is refused. Else it is written.
        expected: how many images were asked for; fewer is an error of its own.
        threads: of ONNX Runtime.
        progress: called with (phase, fraction done or None).

    Raises:
        InputError: there is no data, too little, not finite or of another shape; method or percentile is not known; the
            cache is of something else.
        GraphError: ONNX Runtime cannot run the graph, or it overflows.
        BackendUnavailable: onnx or onnxruntime is not installed.
    """
    options = method_options(method, percentile)
    data = batches if isinstance(batches, CalibrationBatches) else _wrapped(batches)
    identity = model_sha256(model)
    fingerprint = data.sha256()
    if cache is not None:
        if fingerprint is None:
            raise InputError(
                "A calibration cache needs data that can be read twice",
                received=data.source,
                expected="files or arrays",
                fix="Save the batches as .npz, or calibrate without a cache and keep the Ranges",
            )
        known = _cached(Path(cache), identity, fingerprint, method, options)
        if known is not None:
            return known
    histograms, images, seen = _collect(model, data, method != "minmax", fingerprint is None, threads, progress)
    if images == 0:
        raise InputError("There is no calibration data", received=data.source, expected="at least one image")
    if expected is not None and images < expected:
        raise InputError(
            "There are fewer calibration images than asked for", received=images, expected=f"at least {expected}"
        )
    tensors = {name: _range(h, method, options) for name, h in histograms.items()}
    ranges = Ranges(tensors, method, identity, fingerprint or seen, images, options)
    if cache is not None:
        ranges.save(cache)
    return ranges


def method_options(method: str, percentile: float | None) -> dict[str, float]:
    """The options of a method as `Ranges` records them.

    Raises:
        InputError: the method is not known, or percentile does not fit.
    """
    if method not in METHODS:
        raise InputError("The calibration method is not known", received=repr(method), expected=", ".join(METHODS))
    if method != "percentile":
        if percentile is not None:
            raise InputError("percentile belongs to method='percentile'", received=f"method={method!r}")
        return {}
    try:
        value = PERCENTILE if percentile is None else float(percentile)
    except (TypeError, ValueError):
        value = float("nan")
    if not 50 <= value <= 100:
        raise InputError("percentile is out of range", received=percentile, expected="50 to 100")
    return {"percentile": value}


def _cached(path: Path, model: str, data: str, method: str, options: dict[str, float]) -> Ranges | None:
    if not path.exists():
        return None
    known = Ranges.load(path)
    other = [
        what
        for what, have, want in (
            ("model", known.model_sha256, model),
            ("data", known.data_sha256, data),
            ("method", (known.method, dict(known.options)), (method, options)),
        )
        if have != want
    ]
    if other:
        raise InputError(
            f"The calibration cache is of another {' and another '.join(other)}",
            received=path,
            fix="Delete it to calibrate anew, or name another file",
        )
    return known


def _wrapped(batches: Iterable[dict[str, npt.NDArray[np.float32]]]) -> CalibrationBatches:
    def make() -> Iterator[tuple[str, dict[str, npt.NDArray[np.float32]]]]:
        for i, batch in enumerate(batches):
            yield f"batch {i}", batch

    return CalibrationBatches(type(batches).__name__, make)


def _range(histogram: Histogram, method: str, options: dict[str, float]) -> tuple[float, float]:
    if histogram.amax == 0:
        return 0.0, 0.0
    if method == "minmax":
        top = histogram.amax
    elif method == "percentile":
        top = histogram.percentile(options["percentile"])
    else:
        top = histogram.entropy() if method == "entropy" else histogram.mse()
    return max(histogram.low, -top), min(histogram.high, top)


def _collect(
    model: ModelProto,
    data: CalibrationBatches,
    count: bool,
    hashing: bool,
    threads: int | None,
    progress: ProgressCallback | None,
) -> tuple[dict[str, Histogram], int, str]:
    """(histogram of each tensor, images seen, hash of the data)."""
    tell = progress or _silent
    phase = "calibrating"
    tell(phase, 0.0 if data.count else None)
    probe, tensors = _probe(model)
    session = cpu_session(probe, threads=threads)
    shapes: dict[str, int] = {}
    histograms = {name: Histogram() for name in tensors}
    inside = [n for n in tensors if n not in {i.name for i in session.get_inputs()}]
    images, digest = 0, hashlib.sha256()
    for label, batch in data.named():
        for name in sorted(batch):
            if not np.isfinite(batch[name]).all():
                raise InputError(f"The calibration data holds NaN or infinity at {label}", received=f"input {name!r}")
            if hashing:
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(batch[name]).tobytes())
            if name in histograms:
                histograms[name].add(batch[name], count=count)
        for part in _parts(inside, shapes):
            for name, value in zip(part, _run(session, part, batch, label), strict=True):
                shapes[name] = value.nbytes
                try:
                    histograms[name].add(value, count=count)
                except ValueError as e:
                    raise GraphError(
                        f"The network does not give numbers for {label}", received=f"NaN or infinity in {name!r}"
                    ) from e
        images += len(next(iter(batch.values())))
        tell(phase, min(images / data.count, 1.0) if data.count else None)
    if data.count is not None:
        images = min(images, data.count)  # without those that fill up the last batch
    return histograms, images, digest.hexdigest()


def _silent(phase: str, done: float | None = None) -> None:
    """Progress that says nothing."""


def _parts(names: Sequence[str], sizes: dict[str, int]) -> list[list[str]]:
    """Tensors to fetch together; one by one where their sizes are not known yet."""
    if not sizes:
        return [[name] for name in names[:1]] + ([list(names[1:])] if len(names) > 1 else [])
    parts: list[list[str]] = [[]]
    room = _MEMORY
    for name in names:
        need = sizes.get(name, _MEMORY)
        if need > room and parts[-1]:
            parts.append([])
            room = _MEMORY
        parts[-1].append(name)
        room -= need
    return parts


def _probe(model: ModelProto) -> tuple[Any, list[str]]:
    """The graph with its activations as outputs, and nothing behind the network."""
    from ..precision.layers import activation_tensors, import_onnx, inspect

    onnx = import_onnx()
    tensors = activation_tensors(model)
    if not tensors:
        raise GraphError("The graph has nothing to calibrate", expected="a Conv of constant float32 weights")
    found = inspect(model)
    view, probe = found.view, found.model
    needed = [node for i, node in enumerate(view.nodes) if i in view.network or i not in view.data]
    made = {n for node in needed for n in node.output} | {i.name for i in probe.graph.input}
    outputs = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in tensors if n in made]
    inputs = {i.name for i in probe.graph.input}
    del probe.graph.node[:], probe.graph.output[:], probe.graph.value_info[:]
    probe.graph.node.extend(needed)
    probe.graph.output.extend(v for v in outputs if v.name not in inputs)
    return probe, tensors


def _run(session: Any, names: list[str], batch: dict[str, npt.NDArray[np.float32]], label: str) -> list[Any]:
    try:
        return list(session.run(names, batch))
    except Exception as e:
        raise InputError(
            f"The network cannot take {label}",
            received=", ".join(f"{k} {list(v.shape)}" for k, v in batch.items()) + f": {str(e).splitlines()[0][:200]}",
            expected=", ".join(f"{i.name} {i.shape}" for i in session.get_inputs()),
        ) from e
