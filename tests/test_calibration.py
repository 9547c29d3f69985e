"""Calibration: thresholds, batches, ranges, the cache, and bad data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper
from PIL import Image

from dhead_trt.artifact import TensorInfo
from dhead_trt.calibration import Histogram, Ranges, calibrate, calibration_batches, model_sha256
from dhead_trt.errors import DheadError, InputError
from dhead_trt.letterbox import letterbox
from int8_models import chain

IMAGES = (TensorInfo("images", "float32", (1, 3, 32, 48)),)


def feed(*seeds: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.random.default_rng(s).standard_normal((1, 3, 16, 16)).astype(np.float32)} for s in seeds]


# -- histograms --


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    hnp.arrays(np.float32, st.integers(1, 400), elements=st.floats(-1e4, 1e4, width=32)),
    st.integers(1, 5),
)
def test_a_histogram_in_parts_is_the_whole(values: np.ndarray, parts: int) -> None:
    """Whatever the order and size of the parts: extremes and totals are exact, thresholds within one bin."""
    split, whole = Histogram(), Histogram()
    for part in np.array_split(values, parts):
        split.add(part)
    whole.add(values)
    assert (
        (split.low, split.high, split.seen)
        == (whole.low, whole.high, whole.seen)
        == (values.min(), values.max(), values.size)
    )
    assert split.counts.sum() == whole.counts.sum() == np.count_nonzero(values)
    assert abs(split.percentile(90) - whole.percentile(90)) <= 2 * (split.width + whole.width)
    for top in (split.percentile(99), split.mse(), split.entropy()):
        assert 0 <= top <= np.abs(values).max()


def test_percentile_leaves_outliers_out() -> None:
    values = np.linspace(0, 1, 10001, dtype=np.float32)[1:]
    values[-1] = 100.0
    h = Histogram()
    h.add(values)
    assert h.amax == 100.0
    assert h.percentile(99) == pytest.approx(0.99, abs=2 * h.width)
    assert h.percentile(100) == 100.0


def test_zeros_do_not_count() -> None:
    """Padding and dead channels do not move a percentile."""
    h, padded = Histogram(), Histogram()
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    h.add(values)
    padded.add(np.concatenate([values, np.zeros(100000, np.float32)]))
    assert padded.percentile(99.9) == h.percentile(99.9)
    assert padded.mse() == h.mse()


def test_mse_beats_every_fixed_threshold() -> None:
    values = np.random.default_rng(1).laplace(size=200_000).astype(np.float32)
    h = Histogram()
    h.add(values)

    def error(top: float) -> float:
        step = top / 127
        return float(np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2))

    best = error(h.mse())
    assert h.mse() < h.amax
    assert all(best <= 1.02 * error(f * h.amax) for f in np.linspace(0.1, 1, 60))


def test_entropy_clips_a_long_tail() -> None:
    values = np.random.default_rng(2).standard_normal(200_000).astype(np.float32)
    values[:3] = 60.0
    h = Histogram()
    h.add(values)
    assert 2.0 < h.entropy() < 20.0


def test_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        Histogram().add(np.array([1.0, np.nan], np.float32))


# -- batches --


def test_images_are_letterboxed_as_the_detector_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    batches = calibration_batches(tmp_path, IMAGES)
    assert batches.count == 3
    made = list(batches)
    for i, batch in enumerate(made):
        want, _ = letterbox(np.asarray(Image.open(tmp_path / f"{i}.png")), (32, 48))
        np.testing.assert_array_equal(batch["images"][0], want)
    assert [b["images"].shape for b in list(batches)] == [(1, 3, 32, 48)] * 3  # again
    two = calibration_batches(tmp_path, (TensorInfo("images", "float32", (2, 3, 32, 48)),))
    filled = list(two)
    assert [b["images"].shape[0] for b in filled] == [2, 2]  # the last is filled up
    np.testing.assert_array_equal(filled[1]["images"][1], filled[1]["images"][0])


def test_split_and_limit(tmp_path: Path) -> None:
    for i in range(8):
        Image.new("RGB", (20, 20), (i * 30, 0, 0)).save(tmp_path / f"{i}.png")
    parts = calibration_batches(tmp_path, IMAGES).split(4)
    assert parts is not None
    assert [p.count for p in parts] == [6, 2]
    names = [{name for name, _ in p.named()} for p in parts]
    assert names[1] == {"3.png", "7.png"}
    assert not names[0] & names[1]
    assert [n for n, _ in calibration_batches(tmp_path, IMAGES, limit=2).named()] == ["0.png", "4.png"]
    assert calibration_batches(tmp_path, IMAGES, limit=3).split(4) is None


def test_npz_and_generators(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((3, 3, 32, 48)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=x)
    np.testing.assert_array_equal(np.concatenate([b["images"] for b in calibration_batches(tmp_path, IMAGES)]), x)
    once = calibration_batches((row for row in x), IMAGES, limit=2)
    np.testing.assert_array_equal(np.concatenate([b["images"] for b in once]), x[:2])
    with pytest.raises(InputError, match="once only"):
        list(once)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "none", "not there"),
        (lambda d: d, "holds no image"),
        (lambda d: [], "no calibration data"),
        (lambda d: 3, "not calibration data"),
        (lambda d: [np.zeros((1, 3, 10, 10), np.float32)], "another shape"),
        (lambda d: iter([np.zeros((1, 3, 32, 48), np.int32)]), "not floating point"),
        (lambda d: iter([{"other": 1}]), "lacks 'images'"),
        (lambda d: {"images": np.zeros((0, 3, 32, 48), np.float32)}, "no equal number"),
    ],
)
def test_bad_sources(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(calibration_batches(make(tmp_path), IMAGES))


def test_bad_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match=r"a\.npz"):
        list(calibration_batches(tmp_path, IMAGES))


# -- calibrate --


def test_ranges_are_those_of_the_activations() -> None:
    model, data = chain(), feed(0, 1)
    ranges = calibrate(model, iter(data))
    both = np.concatenate([d["x"] for d in data])
    assert ranges.tensors["x"] == (float(both.min()), float(both.max()))
    assert ranges.images == 2
    assert set(ranges.tensors) >= {"x", "m0", "m1"}
    low, high = ranges.tensors["m0"]
    assert -0.2785 <= low < 0 < high  # SiLU


def test_methods_differ_as_they_should() -> None:
    model, data = chain(), feed(0, 1, 2)
    tops = {m: calibrate(model, iter(data), method=m).tensors["m1"][1] for m in ("minmax", "percentile", "mse")}
    assert tops["percentile"] <= tops["minmax"]
    assert tops["mse"] <= tops["minmax"]
    lower = calibrate(model, iter(data), method="percentile", percentile=90).tensors["m1"][1]
    assert lower < tops["percentile"]


def test_cache(tmp_path: Path) -> None:
    model, data, path = chain(), {"x": np.concatenate([d["x"] for d in feed(0, 1)])}, tmp_path / "c.json"
    inputs = (TensorInfo("x", "float32", (-1, 3, 16, 16)),)
    first = calibrate(model, calibration_batches(data, inputs), cache=path)
    calls: list[str] = []
    again = calibrate(model, calibration_batches(data, inputs), cache=path, progress=lambda p, f=None: calls.append(p))
    assert again == first == Ranges.load(path)
    assert not calls  # nothing ran
    for what, kwargs in (
        ("model", {"model": chain(seed=1)}),
        ("data", {"data": {"x": data["x"] * 2}}),
        ("method", {"method": "mse"}),
    ):
        use = {"model": model, "data": data, "method": "minmax"} | kwargs
        with pytest.raises(InputError, match=f"another {what}"):
            calibrate(use["model"], calibration_batches(use["data"], inputs), method=use["method"], cache=path)
    assert Ranges.load(path) == first
    with pytest.raises(InputError, match="read twice"):
        calibrate(model, iter(feed(0)), cache=path)


def test_damaged_cache(tmp_path: Path) -> None:
    for text, message in (("{", "cannot be read"), ("{}", "not a calibration")):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(InputError, match=message):
            Ranges.load(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("batches", "kwargs", "message"),
    [
        ([], {}, "no calibration data"),
        ([{"x": np.full((1, 3, 16, 16), np.nan, np.float32)}], {}, "NaN or infinity at batch 0"),
        ([{"x": np.zeros((1, 4, 16, 16), np.float32)}], {}, "cannot take batch 0"),
        (feed(0), {"expected": 2}, "fewer calibration images"),
        (feed(0), {"method": "best"}, "method is not known"),
        (feed(0), {"percentile": 99}, "belongs to method"),
        (feed(0), {"method": "percentile", "percentile": 10}, "out of range"),
    ],
)
def test_bad_data(batches: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(DheadError, match=message):
        calibrate(chain(), iter(batches), **kwargs)


def test_an_overflow_in_the_network_is_named() -> None:
    model = chain()
    for t in model.graph.initializer:
        if t.name == "b0":
            t.CopyFrom(numpy_helper.from_array(np.full(8, 3e38, np.float32), "b0"))
        if t.name == "w1":
            t.CopyFrom(numpy_helper.from_array(np.full((8, 8, 3, 3), 3e38, np.float32), "w1"))
    with pytest.raises(DheadError, match="does not give numbers for batch 0"):
        calibrate(model, iter(feed(0)))


def test_the_model_hash_is_of_the_network() -> None:
    """Metadata and the batch do not count; weights and wiring do."""
    model = chain()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.metadata_props.add(key="a", value="b")
    other.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    assert model_sha256(other) == model_sha256(model)
    assert model_sha256(chain(seed=1)) != model_sha256(model)


def test_ranges_refuse_nonsense() -> None:
    for pair in ((1.0, -1.0), (0.0, float("inf")), ("a", 1.0)):
        with pytest.raises(InputError, match="range of 'x'"):
            Ranges({"x": pair}, "minmax")  # type: ignore[dict-item]
    assert Ranges({"x": (2.0, 3.0)}, "minmax").tensors["x"] == (0.0, 3.0)
