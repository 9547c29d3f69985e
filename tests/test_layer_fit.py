"""One convolution's fit: what a convolution reads, least squares, and rounding that makes up for its own errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhead_trt.precision.layer_fit import Fit, Window, draw_positions, nearest, patches, weight_scale

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def fit_of(x: np.ndarray, y: np.ndarray) -> Fit:
    """In two parts, as images come."""
    fit = Fit(x.shape[1], y.shape[1])
    for part in (slice(None, len(x) // 2), slice(len(x) // 2, None)):
        fit.add(x[part].astype(np.float32), y[part].astype(np.float32))
    return fit


def problem(seed: int, *, inputs: int = 12, outputs: int = 5, count: int = 400, noise: float = 0.05) -> tuple[Any, ...]:
    """Correlated inputs that are not centred, outputs of a linear layer with noise, and the layer."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, inputs)) @ rng.normal(size=(inputs, inputs)) / inputs**0.5 + rng.normal(size=inputs)
    weight, bias = rng.normal(size=(outputs, inputs)), rng.normal(size=outputs)
    y = x @ weight.T + bias + noise * rng.normal(size=(count, outputs))
    return x, y, weight, bias


def rms(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> float:
    return float(np.sqrt(np.square(x @ weight.reshape(len(weight), -1).T + bias - y).mean()))


# -- what a convolution reads --


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_patches_times_weights_are_the_convolution(data: st.DataObject) -> None:
    draw = data.draw
    kernel, strides, dilations = (draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), label) for label in "ksd")
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4), "top, left, bottom, right")
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    size = [draw(st.integers(max(r - pads[i] - pads[i + 2], 1), r + 6)) for i, r in enumerate(reach)]
    channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(1, channels, *size)).astype(np.float32)
    weight = rng.normal(size=(outputs, channels, *kernel)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    want = convolution(x, weight, bias, strides=strides, dilations=dilations, pads=pads)[0]
    rows, columns = (a.ravel() for a in np.indices(want.shape[1:]))
    read = patches(x[0], Window(kernel, strides, dilations, pads), rows, columns)
    assert read.shape == (rows.size, channels * kernel[0] * kernel[1])
    got = (read @ weight.reshape(outputs, -1).T + bias).T.reshape(want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **attributes: Any) -> np.ndarray:
    import onnxruntime as ort

    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [tensor(weight, "w"), tensor(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_positions_are_most_where_objects_are() -> None:
    importance = np.zeros((8, 8), np.float32)
    importance[2, 5] = 1.0
    rows, columns = draw_positions((16, 24), importance, 300, np.random.default_rng(0))
    inside = (rows // 2 == 2) & (columns // 3 == 5)
    assert rows.size == columns.size == 300
    assert 0.7 <= inside.mean() < 0.75  # 70 % by importance, the rest anywhere
    assert len({*zip(rows[~inside], columns[~inside], strict=True)}) > 60


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 200), st.booleans())
@settings(deadline=None)
def test_positions_are_in_the_map(height: int, width: int, count: int, zero: bool) -> None:
    importance = np.zeros((5, 7), np.float32) if zero else np.full((5, 7), 0.5, np.float32)
    rows, columns = draw_positions((height, width), importance, count, np.random.default_rng(count))
    assert rows.size == min(count, height * width)
    assert rows.min() >= 0
    assert rows.max() < height
    assert columns.min() >= 0
    assert columns.max() < width


def test_without_objects_positions_are_anywhere() -> None:
    rows, columns = draw_positions((20, 20), np.zeros((4, 4), np.float32), 400, np.random.default_rng(1))
    counts = np.bincount(rows // 10 * 2 + columns // 10, minlength=4)
    assert counts.min() > 70  # 100 in each quarter on average


# -- least squares --


@pytest.mark.parametrize("seed", range(3))
def test_without_ridge_it_is_least_squares(seed: int) -> None:
    x, y, weight, bias = problem(seed)
    want = np.linalg.lstsq(np.concatenate([x, np.ones((len(x), 1))], axis=1), y, rcond=None)[0]
    start = weight + np.random.default_rng(9).normal(size=weight.shape)
    got, free = fit_of(x, y).solve(start, bias, 1e-9)
    np.testing.assert_allclose(got, want[:-1].T, atol=3e-3)  # sums are of float32
    np.testing.assert_allclose(free, want[-1], atol=3e-3)
    assert rms(x, y, got, free) < rms(x, y, weight, bias) < 0.06


def test_the_ridge_holds_the_weights_and_leaves_the_bias() -> None:
    x, y, weight, bias = problem(0)
    start = weight + 0.1
    fit = fit_of(x, y)
    held, free = fit.solve(start, bias, 1e9)
    np.testing.assert_allclose(held, start, atol=1e-6)
    np.testing.assert_allclose(free, (y - x @ start.T).mean(axis=0), atol=1e-3)
    steps = [float(np.abs(fit.solve(start, bias, ridge)[0] - start).sum()) for ridge in (1e-4, 1e-2, 1.0, 100.0)]
    assert steps == sorted(steps, reverse=True)


def test_the_shape_of_the_weights_stays() -> None:
    x, y, weight, bias = problem(4)
    fit, shaped = fit_of(x, y), weight.reshape(5, 3, 2, 2)
    fitted, free = fit.solve(shaped, bias, 1e-2)
    rounded, _ = fit.round(fitted, free, weight_scale(fitted))
    assert fitted.shape == rounded.shape == shaped.shape
    np.testing.assert_array_equal(fitted.reshape(5, -1), fit.solve(weight, bias, 1e-2)[0])


@given(st.integers(0, 1000), st.floats(0.0, 3.0))
@settings(max_examples=30, deadline=None)
def test_the_error_is_the_root_mean_square(seed: int, off: float) -> None:
    x, y, weight, bias = problem(seed, count=200)
    fit = fit_of(x, y)
    size = float(np.sqrt(np.square(y).mean()))
    assert fit.count == 200
    assert fit.size == pytest.approx(size, rel=1e-5)
    want = rms(x, y, weight + off, bias - off)
    assert fit.error(weight + off, bias - off) == pytest.approx(want, rel=1e-3, abs=1e-3 * size)


def test_an_exact_layer_has_no_error() -> None:
    x, _, weight, bias = problem(2)
    y = x @ weight.T + bias
    assert fit_of(x, y).error(weight, bias) < 1e-3 * np.sqrt(np.square(y).mean())


# -- rounding --


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_rounded_weights_lie_on_their_grid(seed: int) -> None:
    x, y, weight, bias = problem(seed)
    scale = weight_scale(weight) * np.linspace(0.5, 2, 5)  # some too small: those weights are clipped
    rounded, _ = fit_of(x, y).round(weight, bias, scale)
    levels = rounded / scale[:, None]
    assert np.abs(levels).max() <= 127
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-9)
    np.testing.assert_array_equal(rounded, np.rint(levels) * scale[:, None])


def test_rounding_beats_the_nearest_on_correlated_inputs() -> None:
    """Also on positions that it has not seen; coarse scales, as 4 bits would have, so that rounding is all of it."""
    seen, other = [], []
    for seed in range(12):
        x, y, weight, bias = problem(seed, inputs=24, count=1200, noise=0.0)
        scale = weight_scale(weight) * 16
        fit = fit_of(x[:800], y[:800])
        plain, made = nearest(weight, scale), fit.round(weight, bias, scale)
        seen.append(fit.error(*made) / fit.error(plain, bias))
        other.append(rms(x[800:], y[800:], *made) / rms(x[800:], y[800:], plain, bias))
    assert np.mean(seen) < 0.7
    assert max(seen) < 1
    assert np.mean(other) < 0.7


def test_the_bias_takes_the_mean_of_the_error() -> None:
    x, y, weight, bias = problem(3, noise=0.0)
    rounded, free = fit_of(x, y).round(weight, bias, weight_scale(weight) * 16)
    off = x @ rounded.T + free - y
    np.testing.assert_allclose(off.mean(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1000.0, 1e-20, 1e15])
@pytest.mark.parametrize("live", [0, 1])
def test_inputs_that_do_not_vary_give_finite_weights(value: float, live: int) -> None:
    """Singular sums; where the mean is large, float32 leaves only noise of what varies."""
    rng = np.random.default_rng(0)
    x = np.full((500, 9), value, np.float32)
    x[:, :live] = rng.normal(size=(500, live))
    weight, bias = rng.normal(size=(4, 9)), rng.normal(size=4)
    fit = fit_of(x, x @ weight.T.astype(np.float32) + bias.astype(np.float32))
    assert fit.finite
    fitted, free = fit.solve(weight, bias, 1e-2)
    rounded, free = fit.round(fitted, free, weight_scale(fitted))
    assert np.isfinite(rounded).all()
    assert np.isfinite(free).all()
    assert np.abs(rounded - weight).max() < 0.1


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_is_no_number_or_too_large_is_seen(value: float) -> None:
    x, y = np.ones((20, 3), np.float32), np.ones((20, 2), np.float32)
    assert fit_of(x, y).finite
    y[7, 1] = value
    assert fit_of(x, y).finite is (value == 1e30)  # of inputs alone the squares are summed in float32
    x[3, 1] = value
    assert not fit_of(x, np.ones((20, 2))).finite


def test_scales_are_float32_and_above_0() -> None:
    weight = np.array([[127.0, -254.0], [0.0, 0.0], [1e-44, 0.0], [0.1, 0.3]])
    scale = weight_scale(weight)
    np.testing.assert_array_equal(scale, scale.astype(np.float32))
    np.testing.assert_allclose(scale, [2, 1, np.finfo(np.float32).tiny, 0.3 / 127], rtol=1e-7)
    np.testing.assert_array_equal(nearest(weight, scale)[:3], [[128.0, -254.0], [0, 0], [0, 0]])


def test_nearest_clips() -> None:
    np.testing.assert_array_equal(nearest(np.array([[300.0, -300.0, 1.6]]), np.array([2.0])), [[254.0, -254.0, 2.0]])
