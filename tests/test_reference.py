"""The oracle against hand-computed values and against slow formulations that share nothing with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import BY_NAME, CASES, Case, assert_same_decode, assert_same_detections, cases, dump
from compare import _pools_of_maps, detections_of, explain
from dhead_trt import HeadSpec, InputError, reference

SMALL = [c for c in CASES if c.num_anchors * c.batch <= 1100]


def one_anchor(box: Any, cls: Any, **spec: Any) -> tuple[dict[str, np.ndarray], HeadSpec]:
    """Maps of a single anchor, stride 8."""
    box, cls = np.asarray(box, float), np.asarray(cls, float)
    maps = {"box_0": box.reshape(1, -1, 1, 1), "cls_0": cls.reshape(1, -1, 1, 1)}
    return maps, HeadSpec(num_classes=cls.size, strides=(8,), bins=box.size // 4, **spec)


# -- decode by hand ---------------------------------------------------------------------------------------------------


def test_one_bin_is_the_distance_itself() -> None:
    maps, spec = one_anchor([1, 2, 3, -4], [0, math.log(3)])
    boxes, scores = reference.decode(maps, spec)
    assert boxes.tolist() == [[[4 - 8, 4 - 16, 4 + 24, 4 - 32]]]
    np.testing.assert_allclose(scores, [[[0.5, 0.75]]], rtol=1e-15)


def test_pixel_unit_does_not_multiply_by_the_stride() -> None:
    maps, spec = one_anchor([1, 2, 3, 4], [0], distance_unit="pixel")
    assert reference.decode(maps, spec)[0].tolist() == [[[3, 2, 7, 8]]]


def test_expectation_over_bins() -> None:
    # left: uniform over 3 bins → 1; top: all on bin 2; right: weights 1, 3, 0 → 0.75; bottom: weights 1, 1, 2 → 1.25
    ninf = -math.inf
    box = [[5, 5, 5], [ninf, ninf, 7], [0, math.log(3), ninf], [0, 0, math.log(2)]]
    maps, spec = one_anchor(box, [0])
    boxes, _ = reference.decode(maps, spec)
    np.testing.assert_allclose(boxes[0, 0], [4 - 8, 4 - 16, 4 + 6, 4 + 10], rtol=1e-15)


def test_objectness_multiplies() -> None:
    maps, spec = one_anchor([1, 1, 1, 1], [math.log(3), 0], objectness=True)
    maps["obj_0"] = np.full((1, 1, 1, 1), math.log(4))
    np.testing.assert_allclose(reference.decode(maps, spec)[1], [[[0.75 * 0.8, 0.5 * 0.8]]], rtol=1e-15)


def test_anchors_run_level_by_level_row_major() -> None:
    spec = HeadSpec(num_classes=2, strides=(4, 10), bins=1)
    shapes = ((2, 3), (1, 2))
    maps = {}
    for i, (h, w) in enumerate(shapes):
        maps[f"box_{i}"] = np.zeros((1, 4, h, w))
        maps[f"cls_{i}"] = np.arange(2 * h * w, dtype=float).reshape(1, 2, h, w)
    boxes, scores = reference.decode(maps, spec)
    centers = [(2, 2), (6, 2), (10, 2), (2, 6), (6, 6), (10, 6), (5, 5), (15, 5)]
    assert boxes[0].tolist() == [[x, y, x, y] for x, y in centers]
    logits = np.log(scores / (1 - scores))[0]
    np.testing.assert_allclose(logits, [[k, k + 6] for k in range(6)] + [[0, 2], [1, 3]], atol=1e-9)


def test_nan_propagates_where_it_is_and_nowhere_else() -> None:
    case = BY_NAME["special_objectness"]
    maps = case.maps()
    clean = {n: np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) for n, x in maps.items()}
    boxes, scores = reference.decode(maps, case.spec)
    boxes_clean, scores_clean = reference.decode(clean, case.spec)
    assert np.isnan(boxes).any()
    assert np.isnan(scores).any()
    flat = np.concatenate([x.reshape(2, 4, 17, -1) for n, x in maps.items() if n.startswith("box")], axis=-1)
    # +inf or NaN in a side's bins, or nothing but -inf, make NaN of that side; -inf alone is an impossible bin
    bad = (np.isnan(flat) | (flat == np.inf)).any(axis=2) | (flat == -np.inf).all(axis=2)
    np.testing.assert_array_equal(np.isnan(boxes), bad.transpose(0, 2, 1))
    untouched = np.isfinite(flat).all(axis=2).transpose(0, 2, 1)
    np.testing.assert_array_equal(boxes[untouched], boxes_clean[untouched])
    assert np.isfinite(scores_clean).all()


# -- decode and detect by brute force ---------------------------------------------------------------------------------


def brute_decode(maps: dict[str, np.ndarray], spec: HeadSpec, b: int) -> list[dict[str, Any]]:
    """One anchor at a time, one number at a time."""
    anchors = []
    for i, stride in enumerate(spec.strides):
        box, cls = maps[f"box_{i}"][b], maps[f"cls_{i}"][b]
        for y in range(box.shape[1]):
            for x in range(box.shape[2]):
                sides = []
                for k in range(4):
                    z = [float(v) for v in box[k * spec.bins : (k + 1) * spec.bins, y, x]]
                    if spec.bins == 1:
                        d = z[0]
                    elif any(math.isnan(v) or v == math.inf for v in z) or all(v == -math.inf for v in z):
                        d = math.nan
                    else:
                        weights = [math.exp(v - max(z)) for v in z]
                        d = math.fsum(j * w for j, w in enumerate(weights)) / math.fsum(weights)
                    sides.append(d * (stride if spec.distance_unit == "stride" else 1))
                cx, cy = stride * x + stride / 2, stride * y + stride / 2
                obj = float(maps[f"obj_{i}"][b, 0, y, x]) if spec.objectness else math.inf
                anchors.append(
                    {
                        "box": (cx - sides[0], cy - sides[1], cx + sides[2], cy + sides[3]),
                        "logits": [float(v) for v in cls[:, y, x]],
                        "scores": [sigmoid(float(v)) * sigmoid(obj) for v in cls[:, y, x]],
                    }
                )
    return anchors


def sigmoid(x: float) -> float:
    if math.isnan(x):
        return math.nan
    return math.exp(min(x, 0)) / (1 + math.exp(-abs(x)))


def iou_of(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float]:
    """Intersection and union."""
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = [max(0, q[2] - q[0]) * max(0, q[3] - q[1]) for q in (a, b)]
    return inter, sum(area) - inter


def brute_detect(
    maps: dict[str, np.ndarray],
    spec: HeadSpec,
    b: int,
    conf: float = 0.25,
    iou: float = 0.7,
    max_candidates: int = 4096,
    max_det: int = 300,
    classes: list[int] | None = None,
    class_agnostic: bool = False,
    multi_label: bool = False,
) -> tuple[list[tuple[int, int]], int]:
    """The kept (anchor, class) pairs, and how many candidates were dropped."""
    anchors, found = brute_decode(maps, spec, b), []
    for a, anchor in enumerate(anchors):
        logits = [-math.inf if math.isnan(v) else v for v in anchor["logits"]]
        for c in range(spec.num_classes):
            if not multi_label and c != logits.index(max(logits)):
                continue
            key = anchor["scores"][c] if spec.objectness else logits[c]
            if spec.objectness:
                passes = key > conf
            elif conf >= 1 or logits[c] == -math.inf:
                passes = False
            else:
                passes = conf <= 0 or logits[c] > math.log(conf / (1 - conf))
            if passes and all(map(math.isfinite, anchor["box"])) and (classes is None or c in classes):
                found.append((-key, a, c))
    found.sort()
    kept: list[tuple[int, int]] = []
    for _, a, c in found[:max_candidates]:
        against = [anchors[k]["box"] for k, kc in kept if class_agnostic or kc == c]
        overlaps = [iou_of(anchors[a]["box"], k) for k in against]
        if len(kept) < max_det and not any(inter > iou * union for inter, union in overlaps):
            kept.append((a, c))
    return kept, max(0, len(found) - max_candidates)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_brute_force_agrees(case: Case) -> None:
    maps = case.maps(1)
    boxes, scores = reference.decode(maps, case.spec)
    found = reference.detect(maps, case.spec, **case.options)
    assert boxes.shape == (case.batch, case.num_anchors, 4)
    for b in range(case.batch):
        anchors = brute_decode(maps, case.spec, b)
        want = np.array([[a["box"] for a in anchors]]), np.array([[a["scores"] for a in anchors]])
        assert_same_decode((boxes[b : b + 1], scores[b : b + 1]), want, box_tol=1e-9, score_tol=1e-15)
        kept, dropped = brute_detect(maps, case.spec, b, **case.options)
        n = len(kept)
        assert found.num_dets[b, 0] == n
        assert found.dropped[b] == dropped
        assert list(zip(found.anchors[b, :n], found.classes[b, :n], strict=True)) == kept
        assert (found.anchors[b, n:] == -1).all()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_cases_hold_what_they_are_named_for(case: Case) -> None:
    found = reference.detect(case.maps(), case.spec, **case.options)
    if case.survivors is not None:
        assert (found.num_dets > 0).all() == case.survivors
        assert (found.num_dets == 0).all() == (not case.survivors)
    for name, x in case.maps().items():
        assert x.dtype == case.dtype
        assert x.shape == (case.batch, case.spec.channels(name), *case.shapes[int(name[-1])])
        np.testing.assert_array_equal(x, case.maps()[name])


def test_the_table_makes_every_step_act() -> None:
    """Suppression, dropping, ties between anchors and between classes, max_det: each happens in several cases."""
    suppressed = dropped = capped = tied = special = 0
    for case in CASES:
        maps = case.maps()
        found = reference.detect(maps, case.spec, **case.options)
        wanted = {k: v for k, v in case.options.items() if k in ("conf", "classes", "multi_label")}
        pools = reference.candidates(maps, case.spec, **wanted)
        limit = case.options.get("max_det", 300)
        survivors = sum(min(len(p.keys), case.options.get("max_candidates", 4096)) for p in pools)
        suppressed += bool(found.num_dets.max() < limit and survivors > found.num_dets.sum())
        dropped += bool(found.dropped.any())
        capped += bool((found.num_dets == limit).any())
        tied += any((p.keys[1:] == p.keys[:-1]).any() for p in pools)
        special += any(not np.isfinite(x).all() for x in maps.values())
    assert suppressed >= 30
    assert min(dropped, capped, tied, special) >= 5


# -- detect by hand ---------------------------------------------------------------------------------------------------


def two_boxes(second_left: float, logits: tuple[float, float], **more: Any) -> tuple[dict[str, np.ndarray], HeadSpec]:
    """Anchors 0 and 1 of a 1×2 map: boxes [0, 0, 16, 16] and [second_left, 0, second_left + 16, 16]."""
    spec = HeadSpec(num_classes=1, strides=(8,), bins=1, distance_unit="pixel", **more)
    sides = [[4, 12 - second_left], [4, 4], [12, second_left + 4], [12, 12]]
    return {"box_0": np.array(sides).reshape(1, 4, 1, 2), "cls_0": np.array(logits).reshape(1, 1, 1, 2)}, spec


def test_nms_suppresses_beyond_the_threshold_only() -> None:
    maps, spec = two_boxes(8, (1.0, 2.0))  # intersection 8·16, union 24·16: IoU = 1/3
    for iou, want in ((0.33, [1]), (1 / 3 + 1e-9, [1, 0]), (0.34, [1, 0])):
        found = reference.detect(maps, spec, iou=iou)
        assert found.anchors[0, : len(want)].tolist() == want
        assert found.num_dets.tolist() == [[len(want)]]
    assert reference.detect(maps, spec, iou=0.34).boxes[0, :2].tolist() == [[8, 0, 24, 16], [0, 0, 16, 16]]


def test_equal_iou_does_not_suppress() -> None:
    maps, spec = two_boxes(0, (2.0, 1.0))  # identical boxes: IoU exactly 1
    assert reference.detect(maps, spec, iou=1.0).num_dets[0, 0] == 2
    assert reference.detect(maps, spec, iou=0.999).anchors[0, :2].tolist() == [0, -1]
    maps, spec = two_boxes(16, (2.0, 1.0))  # they touch: intersection 0
    assert reference.detect(maps, spec, iou=0.0).num_dets[0, 0] == 2


def test_ties_go_to_the_lowest_anchor_and_class() -> None:
    maps, spec = two_boxes(4, (1.5, 1.5))
    assert reference.detect(maps, spec, iou=0.1).anchors[0, :2].tolist() == [0, -1]
    maps, spec = one_anchor([1, 1, 1, 1], [-3, 2, 2, 0.5])
    assert reference.detect(maps, spec).classes[0, :2].tolist() == [1, -1]
    several = reference.detect(maps, spec, multi_label=True)
    assert several.classes[0, :4].tolist() == [1, 2, 3, -1]
    maps, spec = one_anchor([1, 1, 1, 1], [-0.0, 0.0])
    assert reference.detect(maps, spec).classes[0, 0] == 0


def test_threshold_is_strict_and_taken_on_the_logit() -> None:
    maps, spec = one_anchor([1, 1, 1, 1], [0.0])
    assert reference.detect(maps, spec, conf=0.5).num_dets[0, 0] == 0
    assert reference.detect(maps, spec, conf=0.4999).num_dets[0, 0] == 1
    logit = math.log(0.25 / 0.75)
    assert reference.detect(*one_anchor([1, 1, 1, 1], [logit])).num_dets[0, 0] == 0
    assert reference.detect(*one_anchor([1, 1, 1, 1], [math.nextafter(logit, 0)])).num_dets[0, 0] == 1


@pytest.mark.parametrize(
    ("logits", "conf", "want"),
    [
        ([math.nan], 0.0, []),
        ([-math.inf], 0.0, []),
        ([-1e4], 0.0, [0]),
        ([math.inf], 1.0, []),
        ([math.inf], 0.999, [0]),
        ([math.nan, 3.0, math.nan], 0.5, [1]),
        ([math.nan, -math.inf], 0.0, []),
    ],
)
def test_special_logits(logits: list[float], conf: float, want: list[int]) -> None:
    found = reference.detect(*one_anchor([1, 1, 1, 1], logits), conf=conf)
    assert found.classes[0, : len(want) + 1].tolist() == [*want, -1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_boxes_that_are_not_finite_are_no_candidates(value: float) -> None:
    found = reference.detect(*one_anchor([1, value, 1, 1], [5.0]))
    assert found.num_dets[0, 0] == 0
    assert found.dropped[0] == 0


def test_nan_objectness_is_dropped() -> None:
    maps, spec = one_anchor([1, 1, 1, 1], [5.0], objectness=True)
    for value, want in ((5.0, 1), (math.nan, 0), (-math.inf, 0), (math.inf, 1)):
        maps["obj_0"] = np.full((1, 1, 1, 1), value)
        assert reference.detect(maps, spec, conf=0.1).num_dets[0, 0] == want


def test_order_is_by_logit_beyond_the_saturation_of_the_score() -> None:
    maps, spec = two_boxes(16, (40.0, 41.0))  # both scores are 1.0
    found = reference.detect(maps, spec)
    assert found.anchors[0, :2].tolist() == [1, 0]
    assert found.scores[0, :2].tolist() == [1.0, 1.0]


def test_unwanted_best_class_gives_nothing() -> None:
    maps, spec = one_anchor([1, 1, 1, 1], [3.0, 2.0])
    assert reference.detect(maps, spec, classes=[1]).num_dets[0, 0] == 0
    assert reference.detect(maps, spec, classes=[1], multi_label=True).classes[0, 0] == 1


def test_classes_suppress_each_other_only_if_agnostic() -> None:
    maps, spec = one_anchor([1, 1, 1, 1], [3.0, 2.0])
    assert reference.detect(maps, spec, multi_label=True).num_dets[0, 0] == 2
    assert reference.detect(maps, spec, multi_label=True, class_agnostic=True).num_dets[0, 0] == 1


@given(case=cases(max_classes=8, max_levels=3), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_case_is_a_greedy_nms(case: Case, seed: int) -> None:
    """The declarative form: no row is suppressed by an earlier one; what is missing is, or lies beyond a cap."""
    maps = case.maps(seed)
    found = reference.detect(maps, case.spec, **case.options)
    pools = _pools_of_maps(maps, case.spec, 0.0, 1e-12, case.options)
    for got, pool in zip(detections_of(found), pools, strict=True):
        assert explain(got, pool, box_tol=1e-9, score_tol=1e-12, **case.options) is None


@pytest.mark.parametrize("name", ["clustered", "odd_sizes", "crowd_candidates", "class_agnostic", "multi_label"])
def test_nms_of_decoded_outputs_equals_detect(name: str) -> None:
    case = BY_NAME[name]
    maps = case.maps()
    a, b = (
        reference.detect(maps, case.spec, **case.options),
        reference.nms(*reference.decode(maps, case.spec), **case.options),
    )
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    boxes, scores = reference.decode(maps, case.spec)
    single = reference.nms(boxes[0], scores[0], **case.options)
    np.testing.assert_array_equal(single.anchors[0], b.anchors[0])


def test_bad_input() -> None:
    case = BY_NAME["objectness"]
    maps = case.maps()
    with pytest.raises(InputError, match=r"missing.*obj_2"):
        reference.decode({n: x for n, x in maps.items() if n != "obj_2"}, case.spec)
    for wrong in (maps["cls_1"][:, 1:], maps["cls_1"][:1], maps["cls_1"][..., 1:], maps["cls_1"][0]):
        with pytest.raises(InputError, match="cls_1 has the wrong shape"):
            reference.decode({**maps, "cls_1": wrong}, case.spec)
    with pytest.raises(InputError, match="wanted class"):
        reference.detect(maps, case.spec, classes=[5])
    for option in ({"conf": math.nan}, {"iou": math.nan}, {"max_det": 0}, {"max_candidates": 0}):
        with pytest.raises(InputError, match=next(iter(option))):
            reference.detect(maps, case.spec, **option)
    with pytest.raises(InputError, match="do not fit"):
        reference.nms(np.zeros((3, 4)), np.zeros((2, 5)))


# -- the comparison ---------------------------------------------------------------------------------------------------


def in_float32(case: Case, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a float32 program might answer: decoded maps rounded to float32, order by logit where it is exact."""
    maps = case.maps(seed)
    rounded = reference.decode(maps, case.spec)[0].astype(np.float32)
    options = {"iou": 0.7, "max_candidates": 4096, "max_det": 300, "class_agnostic": False, **case.options}
    wanted = {k: v for k, v in case.options.items() if k in ("conf", "classes", "multi_label")}
    pools = reference.candidates(maps, case.spec, **wanted)
    pools32 = [p._replace(boxes=rounded[b][p.anchors].astype(float)) for b, p in enumerate(pools)]
    found = reference._suppress(
        pools32, options["iou"], options["max_candidates"], options["max_det"], options["class_agnostic"]
    )
    return maps, {n: x.astype(np.float32) if x.dtype == np.float64 else x for n, x in found._asdict().items()}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_comparison_accepts_rounding(case: Case) -> None:
    maps, got = in_float32(case, 0)
    want = reference.detect(maps, case.spec, **case.options)
    assert_same_detections(got, want, maps=maps, spec=case.spec, **case.options)


def _remove_row(d: dict[str, Any], r: int, n: int) -> None:
    for name, empty in (("boxes", 0), ("scores", 0), ("classes", -1)):
        d[name][0, r : n - 1] = d[name][0, r + 1 : n].copy()
        d[name][0, n - 1] = empty
    d["num_dets"][0] -= 1


def _swap_rows(d: dict[str, Any], r: int, n: int) -> None:
    other = (r + 1) % n
    for name in ("boxes", "scores", "classes"):
        d[name][0, [r, other]] = d[name][0, [other, r]]


def _add_suppressed(d: dict[str, Any], r: int, n: int) -> None:
    for name in ("boxes", "scores", "classes"):
        d[name][0, n] = d[name][0, n - 1]
    d["num_dets"][0] += 1


DAMAGE = {
    "row removed": _remove_row,
    "rows swapped": _swap_rows,
    "row repeated": _add_suppressed,
    "box moved": lambda d, r, n: d["boxes"].__setitem__((0, r, 2), d["boxes"][0, r, 2] + 0.001),
    "box NaN": lambda d, r, n: d["boxes"].__setitem__((0, r, 0), np.nan),
    "score NaN": lambda d, r, n: d["scores"].__setitem__((0, r), np.nan),
    "score changed": lambda d, r, n: d["scores"].__setitem__((0, r), d["scores"][0, r] - 1e-5),
    "class changed": lambda d, r, n: d["classes"].__setitem__((0, r), (d["classes"][0, r] + 1) % 80),
    "dropped miscounted": lambda d, r, n: d["dropped"].__setitem__(0, d["dropped"][0] + 1),
    "unused row written": lambda d, r, n: d["boxes"].__setitem__((0, n, 0), 1.0),
    "count too large": lambda d, r, n: d["num_dets"].__setitem__((0, 0), n + 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["clustered", "clustered_17_bins", "objectness", "float16"])
@pytest.mark.parametrize("with_pool", ["maps", "decoded", "nothing"])
def test_comparison_rejects_damage(name: str, damage: str, with_pool: str) -> None:
    case = BY_NAME[name]
    maps, got = in_float32(case, 3)
    want = reference.detect(maps, case.spec)
    more: dict[str, Any] = {"maps": {"maps": maps, "spec": case.spec}, "nothing": {}}.get(
        with_pool, {"decoded": reference.decode(maps, case.spec)}
    )
    assert_same_detections(got, want, **more)
    n = int(got["num_dets"][0, 0])
    for r in range(0, n, 3):
        damaged = {k: x.copy() for k, x in got.items()}
        DAMAGE[damage](damaged, r, n)
        with pytest.raises(AssertionError):
            assert_same_detections(damaged, want, **more)


def test_comparison_accepts_a_near_tie_of_the_iou() -> None:
    maps, spec = two_boxes(8, (1.0, 2.0))
    one, two = (reference.detect(maps, spec, iou=1 / 3 + e) for e in (-1e-9, 1e-9))
    assert (one.num_dets[0, 0], two.num_dets[0, 0]) == (1, 2)
    assert_same_detections(one, two, maps=maps, spec=spec, iou=1 / 3)
    assert_same_detections(two, one, maps=maps, spec=spec, iou=1 / 3)
    with pytest.raises(AssertionError, match="missing"):
        assert_same_detections(one, two, maps=maps, spec=spec, iou=0.3336)
    with pytest.raises(AssertionError, match="suppressed"):
        assert_same_detections(two, one, maps=maps, spec=spec, iou=0.3330)


def test_comparison_accepts_a_near_tie_of_the_score_only_where_scores_decide() -> None:
    boxes = np.array([[0.0, 0, 16, 16], [32, 0, 48, 16]])
    a = reference.nms(boxes, [[0.9], [0.9 + 1e-9]])
    b = reference.nms(boxes, [[0.9 + 1e-9], [0.9]])
    assert a.anchors[0, 0] != b.anchors[0, 0]
    assert_same_detections(a, b, decoded=(boxes, [[0.9 + 1e-9], [0.9]]))
    maps, spec = two_boxes(16, (40.0, 41.0))
    right = reference.detect(maps, spec)
    wrong = reference.detect({**maps, "cls_0": maps["cls_0"][..., ::-1]}, spec)
    assert_same_detections(wrong, right, maps=maps, spec=spec, exact_logits=False)
    with pytest.raises(AssertionError, match="stands after"):
        assert_same_detections(wrong, right, maps=maps, spec=spec)


def test_dump(tmp_path: Any) -> None:
    dump(tmp_path)
    lines = (tmp_path / "cases.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines] == [c.name for c in CASES]
    case = BY_NAME["float16_one_bin"]
    for name, x in case.maps().items():
        np.testing.assert_array_equal(np.fromfile(tmp_path / case.name / f"{name}.bin", "<f2"), x.ravel())
    boxes = np.fromfile(tmp_path / case.name / "boxes.bin", "<f8")
    np.testing.assert_array_equal(boxes, reference.decode(case.maps(), case.spec)[0].ravel())
