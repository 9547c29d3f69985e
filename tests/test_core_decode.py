"""The compiled decode against the oracle, on every SIMD level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import CASES, Case, assert_same_decode
from cases import cases as random_cases
from dhead_trt import HeadSpec, decode, reference, simd_levels

CASE = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)


def bits(array: np.ndarray) -> np.ndarray:
    """The bits of an array, any NaN being like any other."""
    return np.where(np.isnan(array), np.float32(np.nan), array).view(np.uint32)


@CASE
def test_decode_equals_the_oracle(case: Case) -> None:
    maps = case.maps()
    assert_same_decode(decode(maps, case.spec), reference.decode(maps, case.spec))


@CASE
def test_every_simd_level_and_thread_count_gives_the_same_bits(case: Case) -> None:
    maps = case.maps(1)
    want = [bits(x) for x in decode(maps, case.spec, simd="scalar", threads=1)]
    for simd in simd_levels():
        for threads in (1, 2, 4):
            got = [bits(x) for x in decode(maps, case.spec, simd=simd, threads=threads)]
            np.testing.assert_array_equal(got[0], want[0], f"boxes, {simd}, {threads} threads")
            np.testing.assert_array_equal(got[1], want[1], f"scores, {simd}, {threads} threads")


@PROPERTY
@given(random_cases(), st.integers(0, 2**31))
def test_decode_of_anything(case: Case, seed: int) -> None:
    maps = case.maps(seed)
    got = decode(maps, case.spec)
    assert_same_decode(got, reference.decode(maps, case.spec))
    for simd in simd_levels():
        for g, w in zip(decode(maps, case.spec, simd=simd), got, strict=True):
            np.testing.assert_array_equal(bits(g), bits(w), simd)


@pytest.mark.parametrize("simd", simd_levels())
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sigmoid_over_its_whole_range(simd: str, dtype: str) -> None:
    side = 256
    logits = np.concatenate([np.linspace(-120, 120, side * side - 64), np.geomspace(1e-7, 6e4, 32)])
    logits = np.concatenate([logits, -logits[-32:]]).astype(dtype)
    logits[:3] = np.inf, -np.inf, np.nan
    spec = HeadSpec(num_classes=1, strides=(8,), bins=1)
    maps = {"box_0": np.zeros((1, 4, side, side), dtype), "cls_0": logits.reshape(1, 1, side, side)}
    scores = decode(maps, spec, simd=simd)[1].reshape(-1)
    assert scores[0] == 1
    assert scores[1] == 0
    assert np.isnan(scores[2])
    with np.errstate(over="ignore"):
        want = 1 / (1 + np.exp(-logits[3:].astype(np.float64)))
    assert np.abs(scores[3:] - want).max() <= 1.2e-7
    order = np.argsort(logits[3:], kind="stable")
    assert (np.diff(scores[3:][order]) >= 0).all(), "not monotone"
    low = scores[3:][(logits[3:] < -1) & (logits[3:] > -80)]
    relative = np.abs(low / want[(logits[3:] < -1) & (logits[3:] > -80)] - 1)
    assert relative.max() < 6e-6, "the lower tail is not accurate"


@pytest.mark.parametrize("simd", simd_levels())
def test_every_half_is_read_exactly(simd: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    spec = HeadSpec(num_classes=1, strides=(1,), bins=1, distance_unit="pixel")
    box = np.zeros((1, 4, 256, 256), np.float16)
    box[0, 2] = every.reshape(256, 256)  # right: x2 = centre + value
    maps = {"box_0": box, "cls_0": np.zeros((1, 1, 256, 256), np.float16)}
    x2 = decode(maps, spec, simd=simd)[0][0, :, 2]
    centre = np.tile(np.arange(256, dtype=np.float32) + np.float32(0.5), 256)
    with np.errstate(invalid="ignore"):  # signalling NaN
        want = centre + every.astype(np.float32)
    np.testing.assert_array_equal(bits(x2), bits(want))


@pytest.mark.parametrize("num_classes", [1, 5, 15, 16, 17, 31, 33, 80])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_out_is_filled_exactly_whatever_its_alignment(num_classes: int, offset: int) -> None:
    spec = HeadSpec(num_classes=num_classes, strides=(8, 16), bins=3)
    maps = Case("out", spec, ((7, 9), (3, 5)), batch=2).maps()
    anchors = 7 * 9 + 3 * 5
    guard = np.float32(12345)

    def guarded(size: int) -> tuple[np.ndarray, np.ndarray]:
        whole = np.full(offset + size + 64, guard)
        return whole, whole[offset : offset + size]

    whole_boxes, boxes = guarded(2 * anchors * 4)
    whole_scores, scores = guarded(2 * anchors * num_classes)
    out = boxes.reshape(2, anchors, 4), scores.reshape(2, anchors, num_classes)
    got = decode(maps, spec, out=out)
    assert got[0] is out[0]
    assert got[1] is out[1]
    for g, w in zip(out, decode(maps, spec), strict=True):
        np.testing.assert_array_equal(g, w)
    for whole, part in ((whole_boxes, boxes), (whole_scores, scores)):
        assert (whole[:offset] == guard).all()
        assert (whole[offset + part.size :] == guard).all()


def test_large_output_that_is_written_past_the_caches() -> None:
    spec = HeadSpec(num_classes=80, strides=(8,), bins=2)  # 3 × 25 600 anchors: 23 MiB of scores
    rng = np.random.default_rng(3)
    maps = {
        "box_0": rng.normal(size=(3, 8, 160, 160)).astype(np.float32),
        "cls_0": rng.normal(size=(3, 80, 160, 160)).astype(np.float32),
    }
    assert_same_decode(decode(maps, spec), reference.decode(maps, spec))
    want = bits(decode(maps, spec, simd="scalar")[1])
    for simd in simd_levels():
        np.testing.assert_array_equal(bits(decode(maps, spec, simd=simd, threads=2)[1]), want, simd)


def test_new_arrays_start_at_a_cache_line() -> None:
    case = CASES[0]
    for array in decode(case.maps(), case.spec):
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous
        assert array.dtype == np.float32
