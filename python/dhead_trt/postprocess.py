"""Decode, detection and NMS on the CPU: raw maps in, boxes and scores or detections out.

The arithmetic is in C++ (csrc/include/dhead/decode.h); results have the same bits for every SIMD level and number of
threads. Arguments are validated here, once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import InputError
from .spec import HeadSpec

__all__ = ["Array", "DetectResult", "decode", "detect", "empty_detections", "nms", "simd_levels"]

Array = npt.NDArray[np.generic]

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector store
_INT32_MAX = 2**31 - 1


class DetectResult(NamedTuple):
    """Detections of a batch, in falling order of score; also what `detect(out=...)` fills.

    Attributes:
        num_dets: int32 [B, 1], rows used per image.
        det_boxes: float32 [B, K, 4], xyxy in pixels of the network input; unused rows are 0.
        det_scores: float32 [B, K]; unused rows are 0.
        det_classes: int32 [B, K]; unused rows are -1.
        dropped: int32 [B], candidates that were left out because there were more than `max_candidates`.
    """

    num_dets: npt.NDArray[np.int32]
    det_boxes: npt.NDArray[np.float32]
    det_scores: npt.NDArray[np.float32]
    det_classes: npt.NDArray[np.int32]
    dropped: npt.NDArray[np.int32]


def simd_levels() -> list[str]:
    """SIMD levels that this machine can run, best last; `simd=None` means the last one."""
    return _core.simd_levels()


def decode(
    maps: Mapping[str, Array],
    spec: HeadSpec,
    *,
    out: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
    threads: int | None = None,
    simd: str | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Decodes every anchor.

    Args:
        maps: raw maps by name (`spec.input_names`), each [B, channels, Hi, Wi], C-contiguous, all float32 or all
            float16. Other entries are ignored.
        spec: what the maps are.
        out: (boxes, scores) to write to; then nothing is allocated.
        threads: at most so many, the calling one included; None for one per processor.
        simd: one of `simd_levels()`; None for the best.

    Returns:
        boxes float32 [B, A, 4], xyxy in pixels of the network input, and scores float32 [B, A, C]; anchors run level by
        level, row-major. A NaN in the maps gives NaN where it is used.

    Raises:
        InputError: a map or output is missing, or has the wrong type, shape or layout, or an option is out of range.
    """
    arrays = _checked_maps(maps, spec)
    batch, anchors = arrays.batch, arrays.num_anchors
    if out is None:
        boxes, scores = _empty((batch, anchors, 4)), _empty((batch, anchors, spec.num_classes))
    else:
        names = ("boxes", "scores")
        shapes = ((batch, anchors, 4), (batch, anchors, spec.num_classes))
        boxes, scores = _checked_out(out, names, shapes, (np.float32, np.float32), arrays.all)
    _core.decode(*arrays.arguments, boxes, scores, threads=_threads(threads), simd=_simd(simd))
    return boxes, scores


def detect(
    maps: Mapping[str, Array],
    spec: HeadSpec,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    max_candidates: int = 4096,
    max_det: int = 300,
    classes: Iterable[int] | None = None,
    class_agnostic: bool = False,
    multi_label: bool = False,
    out: DetectResult | None = None,
    threads: int | None = None,
    simd: str | None = None,
) -> DetectResult:
    """Finds the detections: threshold on the logit, decode of the survivors only, then deterministic greedy NMS.

    Args:
        maps: raw maps by name (`spec.input_names`), each [B, channels, Hi, Wi], C-contiguous, all float32 or all
            float16. Other entries are ignored.
        spec: what the maps are.
        conf: keep where the score is greater, 0 to 1.
        iou: suppress where the IoU with a better box is greater, at least 0.
        max_candidates: at most so many per image enter the NMS: the best ones, by score, then lowest anchor.
        max_det: K, at most so many per image come out.
        classes: the wanted classes, None for all. An anchor whose best class is not wanted gives nothing.
        class_agnostic: boxes of different classes suppress each other too.
        multi_label: every class of an anchor that passes is a candidate, not only its best.
        out: arrays to write to, of the shapes that `DetectResult` names; then nothing is allocated.
        threads: at most so many, the calling one included; None for one per processor.
        simd: one of `simd_levels()`; None for the best.

    Raises:
        InputError: a map or output is missing, or has the wrong type, shape or layout, or an option is out of range.
    """
    arrays = _checked_maps(maps, spec)
    limits = _limits(conf, iou, max_candidates, max_det)
    mask = _class_mask(classes, spec.num_classes)
    result = _result(out, arrays.batch, limits[3], arrays.all)
    _core.detect(
        *arrays.arguments,
        *limits,
        mask,
        bool(class_agnostic),
        bool(multi_label),
        result,
        threads=_threads(threads),
        simd=_simd(simd),
    )
    return result


def nms(
    boxes: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    max_candidates: int = 4096,
    max_det: int = 300,
    classes: Iterable[int] | None = None,
    class_agnostic: bool = False,
    multi_label: bool = False,
    out: DetectResult | None = None,
    threads: int | None = None,
    simd: str | None = None,
) -> DetectResult:
    """Filters and suppresses boxes that are decoded already, such as a native graph's.

    Args:
        boxes: float32 [B, A, 4], xyxy, C-contiguous.
        scores: float32 [B, A, C], sigmoid applied, C-contiguous. Candidates are ordered by it.
        conf, iou, max_candidates, max_det, classes, class_agnostic, multi_label, out, threads, simd: as for `detect`.

    Raises:
        InputError: an array has the wrong type, shape or layout, or an option is out of range.
    """
    for name, array in (("boxes", boxes), ("scores", scores)):
        _check_array(name, array, (np.float32,))
        if array.ndim != 3 or 0 in array.shape:
            raise InputError(
                f"{name} has the wrong shape",
                received=list(array.shape),
                expected="[B, A, 4]" if name == "boxes" else "[B, A, C]",
            )
    if boxes.shape[:2] != scores.shape[:2] or boxes.shape[2] != 4:
        raise InputError(
            "Boxes and scores do not fit each other",
            received=f"boxes {list(boxes.shape)}, scores {list(scores.shape)}",
            expected="[B, A, 4] and [B, A, C]",
        )
    limits = _limits(conf, iou, max_candidates, max_det)
    mask = _class_mask(classes, scores.shape[2])
    result = _result(out, boxes.shape[0], limits[3], (boxes, scores))
    _core.nms(
        boxes,
        scores,
        *limits,
        mask,
        bool(class_agnostic),
        bool(multi_label),
        result,
        threads=_threads(threads),
        simd=_simd(simd),
    )
    return result


def empty_detections(batch: int, max_det: int = 300) -> DetectResult:
    """Arrays for `out=` of `detect` and `nms`; their content is undefined until they are filled."""
    return DetectResult(
        np.empty((batch, 1), np.int32),
        np.empty((batch, max_det, 4), np.float32),
        np.empty((batch, max_det), np.float32),
        np.empty((batch, max_det), np.int32),
        np.empty(batch, np.int32),
    )


class _Maps(NamedTuple):
    boxes: list[Array]
    classes: list[Array]
    objects: list[Array]
    spec: HeadSpec

    @property
    def batch(self) -> int:
        return int(self.classes[0].shape[0])

    @property
    def num_anchors(self) -> int:
        return sum(int(c.shape[2]) * int(c.shape[3]) for c in self.classes)

    @property
    def all(self) -> tuple[Array, ...]:
        return (*self.boxes, *self.classes, *self.objects)

    @property
    def arguments(self) -> tuple[list[Array], list[Array], list[Array], list[float], int, bool]:
        """The head's arguments of a function of `_core`."""
        s = self.spec
        return self.boxes, self.classes, self.objects, [float(x) for x in s.strides], s.bins, s.distance_unit == "pixel"


def _checked_maps(maps: Mapping[str, Array], spec: HeadSpec) -> _Maps:
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
    levels = range(spec.num_levels)
    return _Maps(
        [arrays[f"box_{i}"] for i in levels],
        [arrays[f"cls_{i}"] for i in levels],
        [arrays[f"obj_{i}"] for i in levels] if spec.objectness else [],
        spec,
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


def _checked_out(
    out: Sequence[Array],
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    dtypes: Sequence[type[np.generic]],
    inputs: Iterable[Array],
) -> tuple[npt.NDArray[np.float32], ...]:
    """`out`, once each array is known to be writable as it is and to lie apart from all others."""
    if not isinstance(out, tuple) or len(out) != len(names):
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
    return tuple(out)


def _span(array: Array) -> tuple[int, int]:
    start = int(array.__array_interface__["data"][0])
    return start, start + array.nbytes


def _result(out: DetectResult | None, batch: int, max_det: int, inputs: Iterable[Array]) -> DetectResult:
    if out is None:
        return empty_detections(batch, max_det)
    shapes = ((batch, 1), (batch, max_det, 4), (batch, max_det), (batch, max_det), (batch,))
    dtypes = (np.int32, np.float32, np.float32, np.int32, np.int32)
    _checked_out(out, DetectResult._fields, shapes, dtypes, inputs)
    return DetectResult(*out)


def _empty(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """An uninitialised float32 array that starts at a cache line, so that whole lines can be written."""
    size = math.prod(shape) * 4
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -int(raw.__array_interface__["data"][0]) % _ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


def _limits(conf: float, iou: float, max_candidates: int, max_det: int) -> tuple[float, float, int, int]:
    numbers = []
    for name, value, high in (("conf", conf, 1.0), ("iou", iou, math.inf)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0.0 <= number <= high:
            expected = "a number from 0 to 1" if high == 1.0 else "a number of at least 0"
            raise InputError(f"{name} is out of range", received=repr(value), expected=expected)
        numbers.append(number)
    counts = [_count(name, value) for name, value in (("max_candidates", max_candidates), ("max_det", max_det))]
    return numbers[0], numbers[1], counts[0], counts[1]


def _count(name: str, value: object) -> int:
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        count = 0
    if isinstance(value, bool) or not 1 <= count <= _INT32_MAX:
        raise InputError(f"{name} is out of range", received=repr(value), expected="an integer of at least 1")
    return count


def _class_mask(classes: Iterable[int] | None, num_classes: int) -> npt.NDArray[np.uint8] | None:
    if classes is None:
        return None
    mask = np.zeros(num_classes, np.uint8)
    try:
        wanted = [operator.index(c) for c in classes]
    except TypeError as e:
        raise InputError("classes is not a list of integers", received=repr(classes), expected="class numbers") from e
    for c in wanted:
        if not 0 <= c < num_classes:
            raise InputError("A wanted class is out of range", received=c, expected=f"0 to {num_classes - 1}")
        mask[c] = 1
    return mask


def _threads(threads: int | None) -> int:
    return 0 if threads is None else _count("threads", threads)


def _simd(simd: str | None) -> str | None:
    if simd is not None and simd not in _core.simd_levels():
        raise InputError(
            "The SIMD level is not available here", received=repr(simd), expected=f"one of {_core.simd_levels()}"
        )
    return simd
