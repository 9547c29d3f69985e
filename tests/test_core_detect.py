"""The compiled detect and NMS: against the oracle, and exactly against our own dense decode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES, Case, assert_same_detections, detect_options
from cases import cases as random_cases
from dhead_trt import DetectResult, HeadSpec, decode, detect, nms, reference, simd_levels

CASE = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)


def assert_equal(got: DetectResult, want: DetectResult, message: str = "") -> None:
    for name, g, w in zip(DetectResult._fields, got, want, strict=True):
        np.testing.assert_array_equal(g, w, f"{name} {message}")


def oracle(case: Case, maps: dict[str, np.ndarray], got: DetectResult) -> None:
    want = reference.detect(maps, case.spec, **case.options)
    assert_same_detections(got, want, maps=maps, spec=case.spec, **case.options)


def by_dense(case: Case, maps: dict[str, np.ndarray]) -> DetectResult:
    """Detections out of the dense decode's own bits, in plain float32 numpy, by the rules of the contract."""
    spec = case.spec
    o: dict[str, Any] = {"conf": 0.25, "iou": 0.7, "max_candidates": 4096, "max_det": 300, "classes": None}
    o |= {"class_agnostic": False, "multi_label": False} | dict(case.options)
    boxes, scores = decode(maps, spec)
    rows = [maps[f"cls_{i}"].astype(np.float32) for i in range(spec.num_levels)]
    logits = np.concatenate([x.reshape(*x.shape[:2], -1) for x in rows], axis=2).transpose(0, 2, 1)
    batch, k = len(boxes), o["max_det"]
    out = DetectResult(
        np.zeros((batch, 1), np.int32),
        np.zeros((batch, k, 4), np.float32),
        np.zeros((batch, k), np.float32),
        np.full((batch, k), -1, np.int32),
        np.zeros(batch, np.int32),
    )
    conf = o["conf"]
    limit = -math.inf if conf <= 0 else math.inf if conf >= 1 else math.log(conf / (1 - conf))
    for b in range(batch):
        keys = scores[b] if spec.objectness else logits[b]
        with np.errstate(invalid="ignore"):
            passing = keys.astype(np.float64) > (conf if spec.objectness else limit)
        passing &= np.isfinite(boxes[b]).all(axis=1)[:, None]
        if not o["multi_label"]:
            best = np.where(np.isnan(logits[b]), -np.inf, logits[b]).argmax(axis=1)
            passing &= np.arange(spec.num_classes) == best[:, None]
        if o["classes"] is not None:
            passing &= np.isin(np.arange(spec.num_classes), o["classes"])
        anchors, classes = np.nonzero(passing)
        order = np.argsort(-keys[anchors, classes], kind="stable")
        out.dropped[b] = max(0, len(order) - o["max_candidates"])
        order = order[: o["max_candidates"]]
        anchors, classes = anchors[order], classes[order]
        kept: list[int] = []
        x = boxes[b, anchors]
        zero = np.float32(0)
        area = np.maximum(x[:, 2] - x[:, 0], zero) * np.maximum(x[:, 3] - x[:, 1], zero)
        iou = np.float32(o["iou"])
        for i in range(len(x)):
            if len(kept) == k:
                break
            others = [j for j in kept if o["class_agnostic"] or classes[j] == classes[i]]
            w = np.maximum(np.minimum(x[others, 2], x[i, 2]) - np.maximum(x[others, 0], x[i, 0]), zero)
            h = np.maximum(np.minimum(x[others, 3], x[i, 3]) - np.maximum(x[others, 1], x[i, 1]), zero)
            inter = w * h
            if not (inter > iou * ((area[others] + area[i]) - inter)).any():
                kept.append(i)
        n = len(kept)
        out.num_dets[b] = n
        out.det_boxes[b, :n] = x[kept]
        out.det_scores[b, :n] = scores[b, anchors[kept], classes[kept]]
        out.det_classes[b, :n] = classes[kept]
    return out


@CASE
def test_detect_equals_the_oracle(case: Case) -> None:
    maps = case.maps()
    got = detect(maps, case.spec, **case.options)
    oracle(case, maps, got)
    if case.survivors is not None:
        assert (got.num_dets.sum() > 0) == case.survivors


@CASE
def test_filtered_and_dense_agree_exactly(case: Case) -> None:
    for seed in (0, 1):
        maps = case.maps(seed)
        assert_equal(detect(maps, case.spec, **case.options), by_dense(case, maps))


@CASE
def test_every_simd_level_and_thread_count_gives_the_same_bits(case: Case) -> None:
    maps = case.maps(1)
    want = detect(maps, case.spec, simd="scalar", threads=1, **case.options)
    for simd in simd_levels():
        for threads in (1, 2, 4):
            got = detect(maps, case.spec, simd=simd, threads=threads, **case.options)
            assert_equal(got, want, f"{simd}, {threads} threads")


@PROPERTY
@given(random_cases(), st.integers(0, 2**31))
def test_detect_of_anything(case: Case, seed: int) -> None:
    maps = case.maps(seed)
    got = detect(maps, case.spec, **case.options)
    assert_equal(got, by_dense(case, maps))
    oracle(case, maps, got)
    for simd in simd_levels():
        assert_equal(detect(maps, case.spec, simd=simd, **case.options), got, simd)


@PROPERTY
@given(st.data())
def test_nms_of_decoded_boxes(data: st.DataObject) -> None:
    batch, anchors, classes = (data.draw(st.integers(1, n)) for n in (3, 60, 5))
    options = data.draw(detect_options(classes))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    boxes = rng.uniform(0, 100, (batch, anchors, 4)).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + rng.uniform(-5, 80, (batch, anchors, 2)).astype(np.float32)
    scores = rng.uniform(0, 1, (batch, anchors, classes)).astype(np.float32)
    if data.draw(st.booleans()):
        scores = np.round(scores * 4) / np.float32(4)  # ties
    if data.draw(st.booleans()):
        scores[rng.random(scores.shape) < 0.1] = np.nan
        boxes[rng.random(boxes.shape) < 0.03] = rng.choice([np.nan, np.inf, -np.inf])
    got = nms(boxes, scores, **options)
    want = reference.nms(boxes, scores, **options)
    assert_same_detections(got, want, decoded=(boxes, scores), **options)
    for simd in simd_levels():
        assert_equal(nms(boxes, scores, simd=simd, threads=2, **options), got, simd)


def crowd(num_classes: int, side: int, seed: int = 0) -> tuple[dict[str, np.ndarray], HeadSpec]:
    """Every anchor passes, all boxes are small."""
    rng = np.random.default_rng(seed)
    spec = HeadSpec(num_classes=num_classes, strides=(8,), bins=1)
    maps = {
        "box_0": rng.uniform(0.1, 1.5, (1, 4, side, side)).astype(np.float32),
        "cls_0": rng.normal(1, 0.3, (1, num_classes, side, side)).clip(min=-0.5).astype(np.float32),
    }
    return maps, spec


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_many_candidates(class_agnostic: bool) -> None:
    """40 000 anchors pass; 30 000 are looked at; no row is lost between the sort, the segments and the limit."""
    maps, spec = crowd(3, 200)
    options = {"max_candidates": 30000, "max_det": 30000, "class_agnostic": class_agnostic, "iou": 0.5}
    got = detect(maps, spec, **options)
    assert got.dropped[0] == 10000
    n = int(got.num_dets[0, 0])
    assert 1000 < n < 30000
    assert (np.diff(got.det_scores[0, :n]) <= 0).all()
    small_maps, _ = crowd(3, 40, 5)
    case = Case("crowd", spec, ((40, 40),), options=options | {"max_candidates": 1500})
    assert_equal(detect(small_maps, spec, **case.options), by_dense(case, small_maps))
    few = detect(maps, spec, **options | {"max_det": 50})
    np.testing.assert_array_equal(few.det_boxes[0], got.det_boxes[0, :50])


def test_multi_label_can_give_more_candidates_than_anchors() -> None:
    maps, spec = crowd(147, 24)
    options = {"multi_label": True, "max_candidates": 30000, "max_det": 2000}
    got = detect(maps, spec, **options)
    assert got.dropped[0] == 24 * 24 * 147 - 30000
    case = Case("multi", spec, ((24, 24),), options=options)
    assert_equal(got, by_dense(case, maps))


def test_the_threshold_is_exact() -> None:
    """A logit just above log(conf / (1 - conf)) passes, that float itself does not, for many values of conf."""
    spec = HeadSpec(num_classes=1, strides=(8,), bins=1)
    for conf in [0.5, 0.25, 1e-3, 0.999, 1e-30, *np.random.default_rng(0).uniform(0, 1, 200)]:
        limit = math.log(conf / (1 - conf))
        near = np.float32(limit)
        around = np.array([np.nextafter(near, np.float32(-9e9)), near, np.nextafter(near, np.float32(9e9))])
        maps = {"box_0": np.ones((1, 4, 1, 3), np.float32), "cls_0": around.reshape(1, 1, 1, 3)}
        got = detect(maps, spec, conf=float(conf), iou=1.0)
        assert got.num_dets[0, 0] == (around.astype(np.float64) > limit).sum(), conf


def test_out_is_used_and_its_unused_rows_are_cleared() -> None:
    case = Case("out", HeadSpec(num_classes=4, strides=(8, 16), bins=4), ((9, 9), (5, 5)), batch=2)
    maps = case.maps()
    out = DetectResult(
        np.full((2, 1), 9, np.int32),
        np.full((2, 50, 4), 9, np.float32),
        np.full((2, 50), 9, np.float32),
        np.full((2, 50), 9, np.int32),
        np.full(2, 9, np.int32),
    )
    got = detect(maps, case.spec, max_det=50, out=out)
    assert got is out
    assert_equal(got, detect(maps, case.spec, max_det=50))
    assert (got.num_dets < 50).all()
    for b, n in enumerate(got.num_dets[:, 0]):
        assert (got.det_boxes[b, n:] == 0).all()
        assert (got.det_scores[b, n:] == 0).all()
        assert (got.det_classes[b, n:] == -1).all()
