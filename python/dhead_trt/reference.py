"""The numpy oracle: decode and NMS in float64, written to be read.

Everything else in the package is checked against this file, so it shares no code with the fused kernels and makes no
attempt to be fast. Semantics:

- Decode: anchor (x, y) of a level with stride s has its centre at ((x+½)s, (y+½)s). A side's distance is
  Σ_j j·softmax(z)_j over its bins (with one bin: the value itself), in units of s or, for `distance_unit="pixel"`, in
  pixels. Box = centre ∓ distance, xyxy. Score = σ(cls), or σ(cls)·σ(obj). NaN propagates.
- Detect: per anchor the best class (lowest index on ties; a NaN logit counts as -inf), kept where its score passes
  `conf`: tested on the logit where there is no objectness. Order: by logit (by score with objectness), then lowest
  anchor, then lowest class. At most `max_candidates` go into a greedy NMS, at most `max_det` come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .spec import HeadSpec

__all__ = ["Candidates", "OracleDetections", "candidates", "decode", "detect", "nms"]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class OracleDetections(NamedTuple):
    """Detections of one batch; K = max_det. Unused rows: boxes 0, scores 0, classes -1, anchors -1."""

    num_dets: I32  # [B, 1]
    boxes: F64  # [B, K, 4] xyxy, pixels of the network input
    scores: F64  # [B, K], falling
    classes: I32  # [B, K]
    dropped: I32  # [B] candidates beyond max_candidates
    anchors: I32  # [B, K] which anchor each detection comes from


class Candidates(NamedTuple):
    """What passes the threshold in one image, in NMS order, before `max_candidates`."""

    anchors: I64  # [N]
    classes: I64  # [N]
    keys: F64  # [N] what they are ordered by: logits, or scores
    scores: F64  # [N]
    boxes: F64  # [N, 4]


def decode(maps: Mapping[str, npt.ArrayLike], spec: HeadSpec) -> tuple[F64, F64]:
    """Decodes every anchor of every image.

    Args:
        maps: raw maps by name (`spec.input_names`), each [B, channels, Hi, Wi], any float type.
        spec: what the maps are.

    Returns:
        boxes [B, A, 4] xyxy in pixels of the network input, and scores [B, A, C], level by level, row-major.

    Raises:
        InputError: a map is missing or has the wrong shape.
    """
    arrays = _checked(maps, spec)
    boxes, scores = [], []
    for level, stride in enumerate(spec.strides):
        box, cls = arrays[f"box_{level}"], arrays[f"cls_{level}"]
        batch, _, height, width = box.shape
        distance = _expectation(box.reshape(batch, 4, spec.bins, height, width))
        if spec.distance_unit == "stride":
            distance = distance * stride
        center_x = (np.arange(width) + 0.5) * stride  # [W]
        center_y = ((np.arange(height) + 0.5) * stride)[:, None]  # [H, 1]
        left, top, right, bottom = (distance[:, side] for side in range(4))
        corners = np.stack([center_x - left, center_y - top, center_x + right, center_y + bottom], axis=-1)
        boxes.append(corners.reshape(batch, height * width, 4))
        score = _sigmoid(cls)
        if spec.objectness:
            score = score * _sigmoid(arrays[f"obj_{level}"])
        scores.append(_by_anchor(score))
    return np.concatenate(boxes, axis=1), np.concatenate(scores, axis=1)


def detect(
    maps: Mapping[str, npt.ArrayLike],
    spec: HeadSpec,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    max_candidates: int = 4096,
    max_det: int = 300,
    classes: Iterable[int] | None = None,
    class_agnostic: bool = False,
    multi_label: bool = False,
) -> OracleDetections:
    """Decodes, filters and suppresses.

    Args:
        maps: raw maps by name (`spec.input_names`), each [B, channels, Hi, Wi], any float type.
        spec: what the maps are.
        conf: a candidate's score must be greater.
        iou: a box is suppressed where its IoU with a better one is greater.
        max_candidates: at most so many per image enter the NMS; the rest are counted in `dropped`.
        max_det: K, at most so many per image come out.
        classes: the wanted classes, all if None. An anchor whose best class is not wanted gives nothing.
        class_agnostic: boxes of different classes suppress each other too.
        multi_label: every class of an anchor that passes is a candidate, not only the best.

    Raises:
        InputError: a map is missing or has the wrong shape, or an option is out of range.
    """
    _check_options(conf, iou, max_candidates, max_det)
    per_image = candidates(maps, spec, conf=conf, classes=classes, multi_label=multi_label)
    return _suppress(per_image, iou, max_candidates, max_det, class_agnostic)


def candidates(
    maps: Mapping[str, npt.ArrayLike],
    spec: HeadSpec,
    *,
    conf: float = 0.25,
    classes: Iterable[int] | None = None,
    multi_label: bool = False,
) -> list[Candidates]:
    """What `detect` would hand to the NMS, per image, in its order and before `max_candidates`."""
    arrays = _checked(maps, spec)
    boxes, scores = decode(maps, spec)
    logits = np.concatenate([_by_anchor(arrays[f"cls_{i}"]) for i in range(spec.num_levels)], axis=1)  # [B, A, C]
    if spec.objectness:
        objectness = np.concatenate([_by_anchor(arrays[f"obj_{i}"]) for i in range(spec.num_levels)], axis=1)
        passes = ~np.isnan(objectness) & (scores > conf)  # [B, A, C]; comparisons with NaN are false
        keys = scores
    else:
        passes = logits > _logit(conf)
        keys = logits
    passes &= np.isfinite(boxes).all(axis=-1, keepdims=True)
    wanted = _class_mask(classes, spec.num_classes)
    return [
        _collect(boxes[b], scores[b], logits[b], keys[b], passes[b] & wanted, multi_label)
        for b in range(boxes.shape[0])
    ]


def nms(
    boxes: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    max_candidates: int = 4096,
    max_det: int = 300,
    classes: Iterable[int] | None = None,
    class_agnostic: bool = False,
    multi_label: bool = False,
) -> OracleDetections:
    """Filters and suppresses outputs that are decoded already, such as a native graph's.

    Args:
        boxes: [A, 4] or [B, A, 4] xyxy, pixels.
        scores: [A, C] or [B, A, C], sigmoid applied. Candidates are ordered by it.
        conf, iou, max_candidates, max_det, classes, class_agnostic, multi_label: as for `detect`.

    Returns:
        Detections with a batch axis (B = 1 for unbatched input).

    Raises:
        InputError: the shapes do not fit, or an option is out of range.
    """
    _check_options(conf, iou, max_candidates, max_det)
    box, score = np.asarray(boxes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if box.ndim == 2 and score.ndim == 2:
        box, score = box[None], score[None]
    if box.ndim != 3 or score.ndim != 3 or box.shape[-1] != 4 or box.shape[:2] != score.shape[:2] or not score.shape[2]:
        raise InputError(
            "Boxes and scores do not fit each other",
            received=f"boxes {list(np.shape(boxes))}, scores {list(np.shape(scores))}",
            expected="[A, 4] and [A, C], or [B, A, 4] and [B, A, C]",
        )
    passes = (score > conf) & np.isfinite(box).all(axis=-1, keepdims=True) & _class_mask(classes, score.shape[2])
    per_image = [_collect(x, s, s, s, p, multi_label) for x, s, p in zip(box, score, passes, strict=True)]
    return _suppress(per_image, iou, max_candidates, max_det, class_agnostic)


def _collect(
    boxes: F64, scores: F64, ranking: F64, keys: F64, passes: npt.NDArray[np.bool_], multi_label: bool
) -> Candidates:
    """The passing (anchor, class) pairs of one image, sorted; `ranking` [A, C] chooses the best class."""
    if not multi_label:
        best = np.argmax(np.where(np.isnan(ranking), -np.inf, ranking), axis=1)  # the first of equals
        only_best = np.zeros_like(passes)
        only_best[np.arange(len(best)), best] = True
        passes = passes & only_best
    anchors, classes = np.nonzero(passes)  # by anchor, then class
    order = np.argsort(-keys[anchors, classes], kind="stable")
    anchors, classes = anchors[order], classes[order]
    return Candidates(anchors, classes, keys[anchors, classes], scores[anchors, classes], boxes[anchors])


def _suppress(
    per_image: list[Candidates], iou: float, max_candidates: int, max_det: int, class_agnostic: bool
) -> OracleDetections:
    batch = len(per_image)
    out = OracleDetections(
        num_dets=np.zeros((batch, 1), np.int32),
        boxes=np.zeros((batch, max_det, 4)),
        scores=np.zeros((batch, max_det)),
        classes=np.full((batch, max_det), -1, np.int32),
        dropped=np.zeros(batch, np.int32),
        anchors=np.full((batch, max_det), -1, np.int32),
    )
    for b, found in enumerate(per_image):
        out.dropped[b] = max(0, len(found.keys) - max_candidates)
        kept = _greedy(found.boxes[:max_candidates], found.classes[:max_candidates], iou, max_det, class_agnostic)
        out.num_dets[b] = len(kept)
        for row, i in enumerate(kept):
            out.boxes[b, row], out.scores[b, row] = found.boxes[i], found.scores[i]
            out.classes[b, row], out.anchors[b, row] = found.classes[i], found.anchors[i]
    return out


def _greedy(boxes: F64, classes: I64, iou: float, max_det: int, class_agnostic: bool) -> list[int]:
    """Indices that survive, in order: each kept box removes what overlaps it too much."""
    kept: list[int] = []
    alive = np.ones(len(boxes), dtype=bool)
    area = np.maximum(0, boxes[:, 2] - boxes[:, 0]) * np.maximum(0, boxes[:, 3] - boxes[:, 1])
    for i in range(len(boxes)):
        if len(kept) == max_det:
            break
        if not alive[i]:
            continue
        kept.append(i)
        x1, y1 = np.maximum(boxes[i, 0], boxes[:, 0]), np.maximum(boxes[i, 1], boxes[:, 1])
        x2, y2 = np.minimum(boxes[i, 2], boxes[:, 2]), np.minimum(boxes[i, 3], boxes[:, 3])
        inter = np.maximum(0, x2 - x1) * np.maximum(0, y2 - y1)
        overlaps = inter > iou * (area[i] + area - inter)
        alive &= ~(overlaps & ((classes == classes[i]) | class_agnostic))
    return kept


def _expectation(z: F64) -> F64:
    """Σ_j j·softmax(z)_j over axis 2 of [B, 4, bins, H, W]; the value itself where there is one bin."""
    if z.shape[2] == 1:
        return z[:, :, 0]
    with np.errstate(invalid="ignore"):  # inf - inf: NaN, as it should be
        e = np.exp(z - z.max(axis=2, keepdims=True))
    bins: F64 = np.arange(z.shape[2], dtype=np.float64)[:, None, None]
    result: F64 = (e * bins).sum(axis=2) / e.sum(axis=2)
    return result


def _sigmoid(x: F64) -> F64:
    with np.errstate(over="ignore"):  # exp(710) is inf, and 1/inf is 0
        result: F64 = 1.0 / (1.0 + np.exp(-x))
    return result


def _logit(conf: float) -> float:
    """The logit whose sigmoid is `conf`; nothing is greater than +inf, all but -inf and NaN than -inf."""
    if conf <= 0:
        return -math.inf
    return math.inf if conf >= 1 else math.log(conf / (1 - conf))


def _by_anchor(x: F64) -> F64:
    """[B, C, H, W] → [B, H·W, C]."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height * width).transpose(0, 2, 1)


def _class_mask(classes: Iterable[int] | None, num_classes: int) -> npt.NDArray[np.bool_]:
    if classes is None:
        return np.ones(num_classes, dtype=bool)
    wanted = np.zeros(num_classes, dtype=bool)
    for c in classes:
        if not 0 <= c < num_classes:
            raise InputError("A wanted class is out of range", received=c, expected=f"0 to {num_classes - 1}")
        wanted[c] = True
    return wanted


def _checked(maps: Mapping[str, npt.ArrayLike], spec: HeadSpec) -> dict[str, F64]:
    """The maps as float64, each of the shape that the spec gives it."""
    missing = [n for n in spec.input_names if n not in maps]
    if missing:
        raise InputError("Raw maps are missing", received=sorted(maps), expected=f"also {missing}")
    arrays: dict[str, F64] = {n: np.asarray(maps[n]).astype(np.float64) for n in spec.input_names}
    first: tuple[Any, ...] = arrays["box_0"].shape
    for name, x in arrays.items():
        level = arrays[f"box_{name.split('_')[1]}"].shape
        want = (first[:1] or (0,)) + (spec.channels(name),) + tuple(level[2:])
        if x.ndim != 4 or x.shape != want or 0 in x.shape:
            raise InputError(
                f"Raw map {name} has the wrong shape",
                received=list(x.shape),
                expected=f"[B, {spec.channels(name)}, H, W], B and a level's H and W the same in all its maps",
            )
    return arrays


def _check_options(conf: float, iou: float, max_candidates: int, max_det: int) -> None:
    for name, value in (("conf", conf), ("iou", iou)):
        if math.isnan(value):
            raise InputError(f"{name} is not a number", received=value, expected="a number from 0 to 1")
    for name, count in (("max_candidates", max_candidates), ("max_det", max_det)):
        if count < 1:
            raise InputError(f"{name} is out of range", received=count, expected="at least 1")
