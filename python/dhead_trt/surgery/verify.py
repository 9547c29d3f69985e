"""Proof of a cut: the numpy decode of the raw maps against the original graph, in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import GraphError, InputError
from ..reference import decode
from ..spec import HeadSpec
from .metadata import read_facts
from .probe import BoxFormat, TailFunction, joined
from .run import Arrays, Session, graph_inputs, random_inputs, with_outputs
from .tail import Tail, input_sizes, tail_function

__all__ = ["tolerances", "verify_cut", "verify_same"]

Check = dict[str, Any]
_SCALES = (1.0, 4.0)  # of the random maps: flat and peaked distributions


def tolerances(spec: HeadSpec, extent: float, dtype: str) -> tuple[float, float]:
    """Largest allowed (box error in px, score error).

    Two runs of ONNX Runtime with different optimisation differ by up to 9.6e-3 px and 5e-5; a float16 graph rounds
    coordinates up to `extent` px, and distances up to `bins` bins, to 11 bits.
    """
    if dtype == "float32":
        return 0.02 + 1e-5 * extent, 2e-4
    reach = spec.bins * (max(spec.strides) if spec.distance_unit == "stride" else 1)
    return 0.05 + 2.0**-9 * (extent + 2 * reach), 5e-3


def verify_cut(original: Any, raw: Any, tail: Tail, *, seed: int = 0) -> list[Check]:
    """Compares a raw cut with the graph it was cut from.

    1. The tail alone, on random maps of two scales: this does not depend on the weights, so a swapped level, a wrong
       number of bins, stride or unit cannot hide behind flat outputs.
    2. The whole: the original's outputs against the decode of the raw graph's outputs, on random input; again at a
       second batch or size where the graph is dynamic.

    Args:
        original: native onnx.ModelProto.
        raw: the cut, with the outputs `tail.spec.input_names`.
        tail: what `find_tail(original)` gave; its `spec`, `maps` and `box_format` are what is being verified.
        seed: of the random numbers.

    Returns:
        One dict per check: what, shape, anchors, max_box_error_px, max_score_error, the tolerances.

    Raises:
        GraphError: a check failed; the message gives the error and where it was.
    """
    inputs = graph_inputs(original)
    facts = read_facts(original)
    before, after = Session(with_outputs(original, [*tail.maps.values(), *tail.outputs])), Session(raw)
    function: TailFunction | None = None
    checks: list[Check] = []
    dynamic = any(i.dynamic_size for i in inputs), any(i.dynamic_batch for i in inputs)
    for run in range(2 if any(dynamic) else 1):
        batch = 2 if run and dynamic[1] else 1
        sizes = input_sizes(inputs, tail.spec, facts, grow=run if dynamic[0] else 0)
        feeds = random_inputs(inputs, batch, sizes, seed + run)
        arrays = before.run(feeds)
        taps = {tensor: arrays[tensor] for tensor in tail.maps.values()}
        function = function or tail_function(original, taps, feeds, tail.outputs)
        function = function.at(feeds, {tensor: a.shape for tensor, a in taps.items()})
        for scale in _SCALES:
            maps = function.random_maps(seed + run, scale, limit=4 * scale)
            named = {name: maps[tensor] for name, tensor in tail.maps.items()}
            what = f"tail on random maps (σ = {scale:g})"
            checks.append(_compare(what, function(maps), named, tail, feeds))
        rows = joined(arrays, tail.outputs, None)
        checks.append(_compare("whole graph on random input", rows, after.run(feeds), tail, feeds))
    return checks


def verify_same(first: Any, second: Any, tail: Tail, names: dict[str, str]) -> list[Check]:
    """Compares the raw maps of two graphs (tensor name in `first` → in `second`) on random input, for equality."""
    inputs = graph_inputs(second)
    feeds = random_inputs(inputs, 1, input_sizes(inputs, tail.spec, None), seed=0)
    before, after = Session(with_outputs(first, list(names))).run(feeds), Session(second).run(feeds)
    worst = max(float(np.abs(before[a].astype(np.float64) - after[b]).max(initial=0.0)) for a, b in names.items())
    if not worst <= 1e-3:
        raise GraphError(
            "The raw maps changed in the conversion", received=f"a difference of {worst:.3g}", expected="none"
        )
    return [{"what": "raw maps before and after", "max_map_error": worst}]


def _compare(what: str, rows: npt.NDArray[np.float64], maps: Arrays, tail: Tail, feeds: Arrays) -> Check:
    shape = {k: list(v.shape) for k, v in feeds.items()}
    try:
        boxes, scores = decode({name: maps[name] for name in tail.spec.input_names}, tail.spec)
    except (InputError, KeyError) as e:
        raise _failed(what, f"raw maps that the spec does not describe ({e})", shape) from e
    expected = np.concatenate([_formatted(boxes, tail.box_format), scores], axis=2).transpose(0, 2, 1)
    if rows.shape != expected.shape:
        raise _failed(what, f"the graph gives {list(rows.shape)}, the decode of the cut {list(expected.shape)}", shape)
    finite = np.isfinite(rows) & np.isfinite(expected)
    if not np.array_equal(np.isnan(rows), np.isnan(expected)) or finite.mean() < 0.5:
        raise _failed(what, f"only {finite.mean():.1%} of the outputs are finite in both", shape)
    apart = _infinite_in_one(rows, expected, tail.map_dtypes["box_0"])
    if apart.any():
        image, row, anchor = np.argwhere(apart)[0]
        values = f"{rows[image, row, anchor]:g} in the graph, {expected[image, row, anchor]:g} in the decode of the cut"
        raise _failed(what, f"{int(apart.sum())} outputs are infinite in one only (row {row}: {values})", shape)
    error = np.where(finite, np.abs(rows - np.where(finite, expected, 0)), 0.0)
    box_error, score_error = float(error[:, :4].max()), float(error[:, 4:].max())
    extent = float(np.abs(boxes[np.isfinite(boxes)]).max(initial=0.0))
    box_limit, score_limit = tolerances(tail.spec, extent, tail.map_dtypes["box_0"])
    if not (box_error <= box_limit and score_error <= score_limit):
        part = error[:, :4] if box_error > box_limit else error[:, 4:]
        image, row, anchor = np.unravel_index(int(part.argmax()), part.shape)
        where = f"box row {row}" if box_error > box_limit else f"class {row}"
        raise _failed(
            what,
            f"boxes differ by up to {box_error:.4g} px (allowed {box_limit:.3g}), scores by {score_error:.3g} "
            f"(allowed {score_limit:.1g}), worst at image {image}, {where}, anchor {anchor} of {rows.shape[2]}",
            shape,
        )
    return {
        "what": what,
        "input_shapes": shape,
        "anchors": int(rows.shape[2]),
        "max_box_error_px": box_error,
        "max_score_error": score_error,
        "box_tolerance_px": box_limit,
        "score_tolerance": score_limit,
        "finite": float(finite.mean()),
        "score_range": [float(np.nanmin(rows[:, 4:])), float(np.nanmax(rows[:, 4:]))],
    }


def _infinite_in_one(
    rows: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], dtype: str
) -> npt.NDArray[np.bool_]:
    """Where one side is infinite and the other is not the same, overflow of the graph's own type excepted."""
    differ = (np.isinf(rows) | np.isinf(expected)) & ~np.isnan(expected) & (rows != expected)
    overflow = (
        np.isinf(rows) & (np.abs(expected) > 0.5 * float(np.finfo(dtype).max)) & (np.sign(rows) == np.sign(expected))
    )
    return np.asarray(differ & ~overflow)


def _formatted(boxes: npt.NDArray[np.float64], box_format: BoxFormat) -> npt.NDArray[np.float64]:
    if box_format == "xyxy":
        return boxes
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=-1)


def _failed(what: str, received: str, shape: object) -> GraphError:
    return GraphError(
        f"The cut does not compute what the original graph computes ({what}, input {shape})",
        received=received,
        expected="the numpy decode of the raw maps to equal the original output",
        fix="Please report this graph: dhead_trt does not understand its tail and will not cut it",
    )
