"""Decode, detection and NMS on the CPU: raw maps in, boxes and scores or detections out.

The arithmetic is in C++ (csrc/include/dhead/decode.h); results have the same bits for every SIMD level and number of
threads. The core validates its arguments; what it refuses is explained here. Arrays in a GPU's memory go to
`dhead_trt.cuda`, which gives the same results there.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core
from ._device import on_gpu
from ._explain import check_decoded, check_detections, check_limits, check_out, check_simd, checked_maps, count
from .errors import InputError
from .spec import HeadSpec

_MOST_ROWS = 1 << 20  # they are memory, used or not

__all__ = ["Array", "DetectResult", "decode", "detect", "empty_detections", "nms", "simd_levels"]

Array = npt.NDArray[np.generic]

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector store
# What unfit arguments end in, before or inside _core. The slow path then finds out what was wrong with them.
_REFUSED = (InputError, TypeError, ValueError, KeyError, AttributeError, IndexError)


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
    maps: Mapping[str, Any],
    spec: HeadSpec,
    *,
    out: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
    threads: int | None = None,
    simd: str | None = None,
    stream: Any = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Decodes every anchor.

    Args:
        maps: raw maps by name (`spec.input_names`), each [B, channels, Hi, Wi], C-contiguous, all float32 or all
            float16. Other entries are ignored. Numpy arrays, or arrays on a GPU with `__cuda_array_interface__` or
            DLPack: these are decoded there, as by `dhead_trt.cuda.decode_cuda`.
        spec: what the maps are.
        out: (boxes, scores) to write to, of the kind of the maps; then nothing is allocated.
        threads: at most so many, the calling one included; None for one per processor. Unused on a GPU.
        simd: one of `simd_levels()`; None for the best. Unused on a GPU.
        stream: of maps on a GPU: an integer, or a stream of torch, CuPy or PyCUDA; None as of `decode_cuda`.

    Returns:
        boxes float32 [B, A, 4], xyxy in pixels of the network input, and scores float32 [B, A, C]; anchors run level by
        level, row-major. A NaN in the maps gives NaN where it is used. On the GPU where the maps are.

    Raises:
        InputError: a map or output is missing, or has the wrong type, shape or layout, or an option is out of range.
        BackendUnavailable: the maps are on a GPU, and there is none here, or this was built without CUDA.
    """
    gpu = False
    try:
        head = _arguments(maps, spec)
        if type(head[1][0]) is not np.ndarray or stream is not None:
            gpu = on_gpu(head[1][0], stream)
            if gpu:
                from .cuda import decode_cuda

                return decode_cuda(maps, spec, out=out, stream=stream)
        if out is None:
            shape = head[1][0].shape[0], sum(c.shape[2] * c.shape[3] for c in head[1])
            boxes, scores = _empty((*shape, 4)), _empty((*shape, spec.num_classes))
        else:
            boxes, scores = out
        _core.decode(*head, boxes, scores, threads=_threads(threads), simd=simd)
    except _REFUSED:
        if gpu:
            raise
        arrays = checked_maps(maps, spec)
        if out is not None:
            shape = len(arrays[0]), sum(a.shape[2] * a.shape[3] for a in arrays[0 : 2 * spec.num_levels : 2])
            shapes = ((*shape, 4), (*shape, spec.num_classes))
            check_out(out, ("boxes", "scores"), shapes, (np.float32, np.float32), arrays)
        check_simd(simd)
        raise
    return boxes, scores


def detect(
    maps: Mapping[str, Any],
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
    stream: Any = None,
) -> DetectResult:
    """Finds the detections: threshold on the logit, decode of the survivors only, then deterministic greedy NMS.

    Args:
        maps: raw maps by name (`spec.input_names`), each [B, channels, Hi, Wi], C-contiguous, all float32 or all
            float16. Other entries are ignored. Numpy arrays, or arrays on a GPU with `__cuda_array_interface__` or
            DLPack: the detections are found there, as by `dhead_trt.cuda.detect_cuda`, and stay there.
        spec: what the maps are.
        conf: keep where the score is greater, 0 to 1.
        iou: suppress where the IoU with a better box is greater, at least 0.
        max_candidates: at most so many per image enter the NMS: the best ones, by score, then lowest anchor.
        max_det: K, at most so many per image come out.
        classes: the wanted classes, None for all. An anchor whose best class is not wanted gives nothing.
        class_agnostic: boxes of different classes suppress each other too.
        multi_label: every class of an anchor that passes is a candidate, not only its best.
        out: arrays to write to, of the kind of the maps and the shapes that `DetectResult` names.
        threads: at most so many, the calling one included; None for one per processor. Unused on a GPU.
        simd: one of `simd_levels()`; None for the best. Unused on a GPU.
        stream: of maps on a GPU: an integer, or a stream of torch, CuPy or PyCUDA; None as of `decode_cuda`.

    Raises:
        InputError: a map or output is missing, or has the wrong type, shape or layout, or an option is out of range.
        BackendUnavailable: the maps are on a GPU, and there is none here, or this was built without CUDA.
    """
    options = _Options(conf, iou, max_candidates, max_det, classes, class_agnostic, multi_label)
    gpu = False
    try:
        head = _arguments(maps, spec)
        if type(head[1][0]) is not np.ndarray or stream is not None:
            gpu = on_gpu(head[1][0], stream)
            if gpu:
                from .cuda import detect_cuda

                return DetectResult(*detect_cuda(maps, spec, **options._asdict(), out=out, stream=stream))
        return _select(_core.detect, head, head[1][0].shape[0], spec.num_classes, options, out, threads, simd)
    except _REFUSED:
        if not gpu:
            _explain(checked_maps(maps, spec), options, out, simd)
        raise


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
    options = _Options(conf, iou, max_candidates, max_det, classes, class_agnostic, multi_label)
    try:
        return _select(_core.nms, (boxes, scores), scores.shape[0], scores.shape[-1], options, out, threads, simd)
    except _REFUSED:
        check_decoded(boxes, scores)
        _explain((boxes, scores), options, out, simd)
        raise


def empty_detections(batch: int, max_det: int = 300) -> DetectResult:
    """Arrays for `out=` of `detect` and `nms`; their content is undefined until they are filled."""
    return DetectResult(
        np.empty((batch, 1), np.int32),
        np.empty((batch, max_det, 4), np.float32),
        np.empty((batch, max_det), np.float32),
        np.empty((batch, max_det), np.int32),
        np.empty(batch, np.int32),
    )


class _Options(NamedTuple):
    conf: float
    iou: float
    max_candidates: int
    max_det: int
    classes: Iterable[int] | None
    class_agnostic: bool
    multi_label: bool


def _select(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    batch: int,
    num_classes: int,
    options: _Options,
    out: DetectResult | None,
    threads: int | None,
    simd: str | None,
) -> DetectResult:
    """Calls a function of `_core` that ends in detections."""
    if out is None and isinstance(options.max_det, int) and options.max_det > _MOST_ROWS:
        raise InputError("max_det is out of range", received=options.max_det, expected=f"1 to {_MOST_ROWS}")
    result = empty_detections(batch, options.max_det) if out is None else out
    function(
        *arguments,
        *options[:4],
        _class_mask(options.classes, num_classes),
        bool(options.class_agnostic),
        bool(options.multi_label),
        result,
        threads=_threads(threads),
        simd=simd,
    )
    return result if type(result) is DetectResult else DetectResult(*result)


def _explain(arrays: tuple[Array, ...], options: _Options, out: DetectResult | None, simd: str | None) -> None:
    """Finds out what `_select` refused; the arrays themselves are fine.

    Raises:
        InputError: what was wrong, if it was one of these.
    """
    check_limits(*options[:4])
    if out is not None:
        check_detections(out, len(arrays[0]), options.max_det, arrays)
    check_simd(simd)


@functools.lru_cache(maxsize=64)
def _head(spec: HeadSpec) -> tuple[list[str], list[str], list[str], list[float], int, int, bool]:
    """Names of the maps by kind, and the rest of a head's arguments."""
    levels = range(spec.num_levels)
    return (
        [f"box_{i}" for i in levels],
        [f"cls_{i}" for i in levels],
        [f"obj_{i}" for i in levels] if spec.objectness else [],
        [float(s) for s in spec.strides],
        spec.num_classes,
        spec.bins,
        spec.distance_unit == "pixel",
    )


def _arguments(
    maps: Mapping[str, Array], spec: HeadSpec
) -> tuple[list[Array], list[Array], list[Array], list[float], int, int, bool]:
    """The head's arguments of a function of `_core`."""
    boxes, classes, objects, strides, num_classes, bins, pixel_distance = _head(spec)
    get = maps.__getitem__
    found = list(map(get, boxes)), list(map(get, classes)), list(map(get, objects))
    return *found, strides, num_classes, bins, pixel_distance


def _empty(shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """An uninitialised float32 array that starts at a cache line, so that whole lines can be written."""
    size = math.prod(shape) * 4
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -int(raw.__array_interface__["data"][0]) % _ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


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
    return 0 if threads is None else count("threads", threads)
