"""What was wrong with the arguments of `postprocess`, in the caller's words.

The compiled core checks everything it is given, fast and tersely. Once it has refused, these functions find the reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import InputError
from .spec import HeadSpec

Array = npt.NDArray[np.generic]

_INT32_MAX = 2**31 - 1


def checked_maps(maps: Mapping[str, Array], spec: HeadSpec) -> tuple[Array, ...]:
    if not isinstance(spec, HeadSpec):
        raise InputError("spec is not a HeadSpec", received=type(spec).__name__, expected="a HeadSpec")
    if not isinstance(maps, Mapping):
        raise InputError("maps is not a mapping", received=type(maps).__name__, expected="a dict of name to array")
    names = spec.input_names
    missing = [n for n in names if n not in maps]
    if missing:
        raise InputError(
            "Raw maps are missing",
            received=sorted(str(n) for n in maps),
            expected=f"also {missing}",
            fix="Name the maps as spec.input_names does",
        )
    arrays = {n: maps[n] for n in names}
    first = arrays[names[0]]
    for name, array in arrays.items():
        _check_array(f"Raw map {name}", array, (np.float32, np.float16))
        if array.dtype != first.dtype:
            raise InputError(
                f"Raw map {name} has another dtype than {names[0]}", received=array.dtype, expected=first.dtype
            )
        level = arrays[f"box_{name.split('_')[1]}"].shape
        if array.ndim != 4 or array.shape != (first.shape[0], spec.channels(name), *level[2:]) or 0 in array.shape:
            raise InputError(
                f"Raw map {name} has the wrong shape",
                received=list(array.shape),
                expected=f"[B, {spec.channels(name)}, H, W], B and a level's H and W the same in all its maps",
            )
    return tuple(arrays.values())


def check_decoded(boxes: Array, scores: Array) -> None:
    for name, array in (("boxes", boxes), ("scores", scores)):
        _check_array(name, array, (np.float32,))
        if array.ndim != 3 or 0 in array.shape:
            expected = "[B, A, 4]" if name == "boxes" else "[B, A, C]"
            raise InputError(f"{name} has the wrong shape", received=list(array.shape), expected=expected)
    if boxes.shape[:2] != scores.shape[:2] or boxes.shape[2] != 4:
        raise InputError(
            "Boxes and scores do not fit each other",
            received=f"boxes {list(boxes.shape)}, scores {list(scores.shape)}",
            expected="[B, A, 4] and [B, A, C]",
        )


def _check_array(name: str, array: object, dtypes: Sequence[type[np.generic]]) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"{name} is not a numpy array",
            received=type(array).__name__,
            expected="numpy.ndarray",
            fix="Use np.asarray",
        )
    if array.dtype not in dtypes or not array.dtype.isnative:
        expected = " or ".join(np.dtype(d).name for d in dtypes)
        raise InputError(f"{name} has the wrong dtype", received=array.dtype, expected=expected, fix="Use .astype")
    if not array.flags.c_contiguous or not array.flags.aligned:
        raise InputError(
            f"{name} is not C-contiguous",
            received=f"shape {list(array.shape)}, strides {list(array.strides)}",
            expected="row-major memory without gaps",
            fix="Use np.ascontiguousarray",
        )


def check_out(
    out: Sequence[Array],
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[type[np.generic]],
    inputs: Iterable[Array],
) -> None:
    """Each array of `out` must be writable as it is, and lie apart from all others."""
    if not isinstance(out, (tuple, list)) or len(out) != len(names):
        raise InputError("out is not the right tuple", received=type(out).__name__, expected=f"({', '.join(names)})")
    for name, array, shape, dtype in zip(names, out, shapes, dtypes, strict=True):
        _check_array(f"out {name}", array, (dtype,))
        if array.shape != shape:
            raise InputError(f"out {name} has the wrong shape", received=list(array.shape), expected=list(shape))
        if not array.flags.writeable:
            raise InputError(f"out {name} is read-only", expected="an array that can be written")
    spans = sorted((*_span(a), i) for i, a in enumerate((*out, *inputs)))
    end, owner = -1, len(out)
    for first, last, i in spans:
        if first < end and min(i, owner) < len(out):  # two inputs may share memory
            raise InputError(f"out {names[min(i, owner)]} overlaps another array", expected="memory of its own")
        if last > end:
            end, owner = last, i
        elif i < len(out):
            owner = i


def _span(array: Array) -> tuple[int, int]:
    start = int(array.__array_interface__["data"][0])
    return start, start + array.nbytes


def check_detections(out: Sequence[Array], batch: int, max_det: int, inputs: Iterable[Array]) -> None:
    shapes = ((batch, 1), (batch, max_det, 4), (batch, max_det), (batch, max_det), (batch,))
    dtypes = (np.int32, np.float32, np.float32, np.int32, np.int32)
    names = ("num_dets", "det_boxes", "det_scores", "det_classes", "dropped")
    check_out(out, names, shapes, dtypes, inputs)


def check_limits(conf: float, iou: float, max_candidates: int, max_det: int) -> None:
    for name, value, high in (("conf", conf, 1.0), ("iou", iou, math.inf)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0.0 <= number <= high:
            expected = "a number from 0 to 1" if high == 1.0 else "a number of at least 0"
            raise InputError(f"{name} is out of range", received=repr(value), expected=expected)
    for name, value in (("max_candidates", max_candidates), ("max_det", max_det)):
        count(name, value)


def count(name: str, value: object) -> int:
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        count = 0
    if isinstance(value, bool) or not 1 <= count <= _INT32_MAX:
        raise InputError(f"{name} is out of range", received=repr(value), expected="an integer of at least 1")
    return count


def check_simd(simd: str | None) -> None:
    if simd is not None and simd not in _core.simd_levels():
        raise InputError(
            "The SIMD level is not available here", received=repr(simd), expected=f"one of {_core.simd_levels()}"
        )
