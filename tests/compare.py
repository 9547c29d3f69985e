"""How the results of two rungs are compared.

Detections of a float32 program and of the float64 oracle may differ rightly where a decision is a near-tie: an IoU
within rounding of the threshold, two scores within rounding of each other. `assert_same_detections` accepts equal
results, and otherwise demands that every difference follows from such a tie: it checks that the result is *a* greedy
NMS of the candidates under perturbations no larger than the tolerances. Where there is no near-tie only one result
passes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dhead_trt import HeadSpec, reference

BOX_TOL = 2e-4  # pixels; see box_tolerance
SCORE_TOL = 1e-6
ROUNDING = 1e-5  # relative, of an IoU computed in float32


def box_tolerance(boxes: np.ndarray, box_tol: float = BOX_TOL) -> np.ndarray:
    """Pixels that each box [..., 4] may be off: [..., 1].

    That is `box_tol`, and in proportion more for a box longer than 512 px or further out than 1024 px: a float32
    expectation is good to about 4e-7 of the distance, whatever adds it up.
    """
    finite = np.where(np.isfinite(boxes), boxes, 0)
    reach = np.abs(finite).max(axis=-1, keepdims=True, initial=0) / 1024
    length = np.abs(finite[..., 2:] - finite[..., :2]).max(axis=-1, keepdims=True, initial=0) / 512
    return box_tol * np.maximum(1, np.maximum(reach, length))


def assert_same_decode(
    got: tuple[Any, Any], want: tuple[Any, Any], *, box_tol: float = BOX_TOL, score_tol: float = SCORE_TOL
) -> tuple[float, float]:
    """Boxes [B, A, 4] and scores [B, A, C] agree; NaN and ±inf stand in the same places.

    Returns:
        The largest error of a box (px) and of a score.
    """
    errors = []
    for what, g, w in zip(("boxes", "scores"), map(_f64, got), map(_f64, want), strict=True):
        assert g.shape == w.shape, f"{what}: got shape {g.shape}, want {w.shape}"
        finite = np.isfinite(w)
        np.testing.assert_array_equal(np.where(finite, 0, g), np.where(finite, 0, w), f"{what}: NaN or inf")
        error = np.abs(np.where(finite, g - np.where(finite, w, 0), 0))
        assert not np.isnan(error).any(), f"{what}: NaN where a number is wanted"
        limit = np.broadcast_to(box_tolerance(w, box_tol) if what == "boxes" else np.float64(score_tol), error.shape)
        at = np.unravel_index(np.argmax(error - limit), error.shape) if error.size else None
        if at is not None:
            assert error[at] <= limit[at], f"{what}{list(at)}: got {g[at]}, want {w[at]}, off by {error[at]:.3g}"
        errors.append(float(error.max(initial=0)))
    return errors[0], errors[1]


@dataclass(frozen=True)
class _Rows:
    """One image's detections."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    dropped: int | None


def detections_of(result: Any) -> list[_Rows]:
    """The rows of any rung's result, a named tuple or a mapping; checks that counts and unused rows are in order."""
    get = result.get if isinstance(result, Mapping) else lambda n: getattr(result, n, None)

    def named(*names: str) -> np.ndarray | None:
        found = [get(n) for n in names]
        return next((np.asarray(x) for x in found if x is not None), None)

    counts, dropped = named("num_dets"), named("dropped")
    boxes, scores, classes = (named(f"det_{n}", n) for n in ("boxes", "scores", "classes"))
    if counts is None or boxes is None or scores is None or classes is None:
        raise AssertionError("outputs are missing")
    batch, rows = scores.shape
    shapes = (boxes.shape, classes.shape, counts.size)
    assert shapes == ((batch, rows, 4), (batch, rows), batch), f"shapes {shapes}, scores {scores.shape}"
    assert {counts.dtype.kind, classes.dtype.kind} == {"i"}, "counts and classes are not integers"
    images = []
    for b, n in enumerate(int(n) for n in counts.reshape(-1)):
        assert 0 <= n <= rows, f"image {b}: {n} detections in {rows} rows"
        assert not boxes[b, n:].any(), f"image {b}: boxes of unused rows are not 0"
        assert not scores[b, n:].any(), f"image {b}: scores of unused rows are not 0"
        assert (classes[b, n:] == -1).all(), f"image {b}: classes of unused rows are not -1"
        missing = None if dropped is None else int(dropped.reshape(-1)[b])
        images.append(_Rows(_f64(boxes[b, :n]), _f64(scores[b, :n]), classes[b, :n].astype(np.int64), missing))
    return images


def assert_same_detections(
    got: Any,
    want: Any,
    *,
    maps: Mapping[str, Any] | None = None,
    spec: HeadSpec | None = None,
    decoded: tuple[Any, Any] | None = None,
    exact_logits: bool = True,
    box_tol: float = BOX_TOL,
    score_tol: float = SCORE_TOL,
    **options: Any,
) -> None:
    """`got` holds the detections of `want`, in order, but for decisions that are near-ties.

    Args:
        got, want: results of detect or nms of any rung (attributes or keys num_dets, det_boxes or boxes, …).
        maps, spec: what `want` was computed from; or
        decoded: boxes and scores that `want` was computed from. Without either, no near-tie is accepted.
        exact_logits: `got` saw these very maps, so that without objectness its thresholds and order are exact. Pass
            False where the maps went through another engine.
        options: those of detect.
    """
    got_images, want_images = detections_of(got), detections_of(want)
    assert len(got_images) == len(want_images), f"got {len(got_images)} images, want {len(want_images)}"
    pools: list[_Pool] | None = None
    for b, (g, w) in enumerate(zip(got_images, want_images, strict=True)):
        difference = _difference(g, w, box_tol, score_tol)
        if difference is None:
            continue
        if maps is not None and spec is not None:
            pools = pools or _pools_of_maps(maps, spec, 0.0 if exact_logits else score_tol, score_tol, options)
        elif decoded is not None:
            pools = pools or _pools_of_scores(_batched(decoded[0]), _batched(decoded[1]), score_tol, options)
        assert pools is not None, f"image {b}: {difference}"
        unexplained = explain(g, pools[b], box_tol=box_tol, score_tol=score_tol, **options)
        assert unexplained is None, f"image {b}: {difference}; not a near-tie: {unexplained}"


def _difference(g: _Rows, w: _Rows, box_tol: float, score_tol: float) -> str | None:
    if len(g.scores) != len(w.scores):
        return f"{len(g.scores)} detections, want {len(w.scores)}"
    if None not in (g.dropped, w.dropped) and g.dropped != w.dropped:
        return f"{g.dropped} candidates dropped, want {w.dropped}"
    wrong = g.classes != w.classes
    wrong |= ~(np.abs(g.scores - w.scores) <= score_tol)  # so that NaN is wrong
    wrong |= ~(np.abs(g.boxes - w.boxes) <= box_tolerance(w.boxes, box_tol)).all(axis=1)
    if not wrong.any():
        return None
    r = int(np.argmax(wrong))
    show = [f"class {x.classes[r]} score {x.scores[r]:.7f} box {np.round(x.boxes[r], 4).tolist()}" for x in (g, w)]
    return f"row {r}: {show[0]}, want {show[1]}"


# -- near-ties --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool:
    """The (anchor, class) pairs of one image that may be candidates, in the oracle's order."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    keys: np.ndarray
    surely: np.ndarray  # [N] bool: a candidate whatever the rounding
    key_tol: float


def explain(
    got: _Rows,
    pool: _Pool,
    *,
    box_tol: float = BOX_TOL,
    score_tol: float = SCORE_TOL,
    iou: float = 0.7,
    max_candidates: int = 4096,
    max_det: int = 300,
    class_agnostic: bool = False,
    **_: Any,
) -> str | None:
    """None if `got` is a greedy NMS of the pool within the tolerances, else what shows that it is not."""
    limit = box_tolerance(pool.boxes, box_tol)[:, 0]
    rows: list[int] = []  # the pool index of each row of got
    free = np.ones(len(pool.keys), dtype=bool)
    for r in range(len(got.scores)):
        fits = free & (pool.classes == got.classes[r]) & (np.abs(pool.scores - got.scores[r]) <= score_tol)
        fits &= np.abs(pool.boxes - got.boxes[r]).max(axis=1, initial=0) <= limit
        if not fits.any():
            return f"row {r} is no candidate"
        rows.append(int(np.argmax(fits)))
        free[rows[-1]] = False
    keys, exact = pool.keys, pool.key_tol == 0
    index = np.arange(len(keys))
    for a, b in itertools.pairwise(rows):
        if (exact and a > b) or keys[b] > keys[a] + pool.key_tol:
            return f"candidate {b} stands after candidate {a}"
    if len(rows) > max_det:
        return f"{len(rows)} detections, more than {max_det}"
    for n, i in enumerate(rows):
        surely_before = index < i if exact else pool.surely & (keys > keys[i] + pool.key_tol)
        if surely_before.sum() >= max_candidates:
            return f"candidate {i} lies beyond max_candidates"
        surely, _maybe = _suppresses(pool, limit, np.array(rows[:n], int), i, iou, class_agnostic)
        if surely.any():
            return f"candidate {i} is suppressed by an earlier row, yet present"
    for i in np.flatnonzero(free & pool.surely):
        before = index < i if exact else keys >= keys[i] - pool.key_tol
        if before.sum() - (not exact) >= max_candidates:
            continue
        if len(rows) == max_det and (rows[-1] < i if exact else keys[i] <= keys[rows[-1]] + pool.key_tol):
            continue
        better = np.array([r for r in rows if before[r]], dtype=int)
        if not _suppresses(pool, limit, better, int(i), iou, class_agnostic)[1].any():
            return f"candidate {i} (class {pool.classes[i]}, score {pool.scores[i]:.7f}) is missing"
    least, most = (max(0, int(n) - max_candidates) for n in (pool.surely.sum(), len(keys)))
    if got.dropped is not None and not least <= got.dropped <= most:
        return f"{got.dropped} candidates dropped, want {least} to {most}"
    return None


def _suppresses(
    pool: _Pool, limit: np.ndarray, by: np.ndarray, i: int, iou: float, class_agnostic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the candidates `by` suppress candidate i: [N] surely, and [N] maybe."""
    box, others = pool.boxes[i], pool.boxes[by]
    overlap = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])  # [N, 2]
    slack = 2 * np.maximum(limit[by], limit[i])[:, None]

    def area(sides: np.ndarray) -> np.ndarray:
        return np.maximum(0, sides).prod(axis=-1)

    def sides(boxes: np.ndarray) -> np.ndarray:
        return boxes[..., 2:] - boxes[..., :2]

    inter = [area(overlap - slack), area(overlap + slack)]
    areas = [area(sides(others) + sign * slack) + area(sides(box) + sign * slack) for sign in (-1, 1)]
    same = (pool.classes[by] == pool.classes[i]) | class_agnostic
    surely = inter[0] * (1 - ROUNDING) > iou * (1 + ROUNDING) * np.maximum(0, areas[1] - inter[0])
    maybe = inter[1] * (1 + ROUNDING) > iou * (1 - ROUNDING) * np.maximum(0, areas[0] - inter[1])
    return surely & same, maybe & same


def _pools_of_maps(
    maps: Mapping[str, Any], spec: HeadSpec, logit_tol: float, score_tol: float, options: Mapping[str, Any]
) -> list[_Pool]:
    if spec.objectness or logit_tol > 0:
        return _pools_of_scores(*reference.decode(maps, spec), score_tol, options)
    wanted = {k: v for k, v in options.items() if k in ("conf", "classes", "multi_label")}
    return [
        _Pool(c.boxes, c.scores, c.classes, c.keys, np.ones(len(c.keys), dtype=bool), 0.0)
        for c in reference.candidates(maps, spec, **wanted)
    ]


def _pools_of_scores(boxes: np.ndarray, scores: np.ndarray, tol: float, options: Mapping[str, Any]) -> list[_Pool]:
    conf, classes = float(options.get("conf", 0.25)), options.get("classes")
    wanted = np.isin(np.arange(scores.shape[2]), range(scores.shape[2]) if classes is None else _ints(classes))
    pools = []
    for box, score in zip(boxes, scores, strict=True):
        usable = np.where(np.isnan(score), -math.inf, score)
        ranked = np.sort(usable, axis=1)[:, ::-1]
        best, second = ranked[:, :1], ranked[:, 1:2] if score.shape[1] > 1 else np.full((len(score), 1), -math.inf)
        all_labels = bool(options.get("multi_label"))
        possible = (usable > conf - tol) & wanted & np.isfinite(box).all(axis=1, keepdims=True)
        surely = possible & (usable > conf + tol)
        if not all_labels:
            possible &= usable >= best - tol
            surely &= (usable == best) & (best > second + tol)
        anchor, label = np.nonzero(possible)
        order = np.argsort(-score[anchor, label], kind="stable")
        anchor, label = anchor[order], label[order]
        values = score[anchor, label]
        pools.append(_Pool(box[anchor], values, label, values, surely[anchor, label], tol))
    return pools


def _ints(classes: Iterable[int]) -> list[int]:
    return [int(c) for c in classes]


def _batched(x: Any) -> np.ndarray:
    array = _f64(x)
    return array[None] if array.ndim == 2 else array


def _f64(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)
