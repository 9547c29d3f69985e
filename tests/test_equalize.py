"""Channel equalization: the float32 graph computes the same, int8 rounds it better."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dhead_trt.calibration import calibrate
from dhead_trt.errors import InputError
from dhead_trt.precision import to_int8
from dhead_trt.precision.equalize import channel_ranges, equalize
from dhead_trt.precision.raw_run import MapRunner

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SPREAD = np.array([1, 20, 1, 0.5, 8, 1, 40, 2], np.float32)  # planted: what SiLU's channels are multiplied by


def _model(*, read_elsewhere: bool = False) -> Any:
    """Stem, SiLU, Split, a residual bottleneck, Concat, MaxPool, Resize and two convolutions behind."""
    rng = np.random.default_rng(3)
    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    constants = {
        "w0": rng.normal(size=(8, 3, 3, 3)) * SPREAD[:, None, None, None] / 4,
        "b0": rng.normal(size=8),
        "w1": rng.normal(size=(4, 4, 3, 3)) / 6,
        "w2": rng.normal(size=(8, 12, 1, 1)) / np.concatenate([SPREAD, SPREAD[4:]])[None, :, None, None],
        "b2": rng.normal(size=8),
        "w3": rng.normal(size=(8, 1, 3, 3)) / 3,
        "w4": rng.normal(size=(5, 8, 1, 1)) / 3,
    }
    initializers = [tensor(v.astype(np.float32), k) for k, v in constants.items()]
    initializers += [tensor(np.array([4, 4], np.int64), "halves"), tensor(np.array([1, 1, 2, 2], np.float32), "twice")]

    def silu(x: str, y: str) -> list[Any]:
        return [make("Sigmoid", [x], [f"{y}_s"], name=f"{y}_s"), make("Mul", [x, f"{y}_s"], [y], name=y)]

    nodes = [
        make("Conv", ["images", "w0", "b0"], ["c0"], name="stem", pads=[1, 1, 1, 1]),
        *silu("c0", "a0"),
        make("Split", ["a0", "halves"], ["left", "right"], name="split", axis=1),
        make("Conv", ["right", "w1"], ["c1"], name="inner", pads=[1, 1, 1, 1]),
        *silu("c1", "a1"),
        make("Add", ["right", "a1"], ["sum"], name="sum"),
        make("Concat", ["left", "right", "sum"], ["all"], name="concat", axis=1),
        make("Conv", ["all", "w2", "b2"], ["c2"], name="mix"),
        *silu("c2", "a2"),
        make("MaxPool", ["a2"], ["pool"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("Resize", ["pool", "", "twice"], ["up"], name="resize", mode="nearest"),
        make("Conv", ["up", "w3"], ["c3"], name="depthwise", pads=[1, 1, 1, 1], group=8),
        make("Conv", ["c3", "w4"], ["out"], name="last"),
    ]
    value = onnx.helper.make_tensor_value_info
    outputs = [value("out", 1, None)]
    if read_elsewhere:
        nodes.append(make("Softmax", ["left"], ["soft"], name="soft", axis=1))
        outputs.append(value("soft", 1, None))
    graph = onnx.helper.make_graph(nodes, "g", [value("images", 1, ["n", 3, 16, 16])], outputs, initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


def _batches(number: int = 6) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    return [{"images": rng.random((2, 3, 16, 16), dtype=np.float32)} for _ in range(number)]


def _far(a: Any, b: Any) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_float32_graph_computes_the_same(alpha: float) -> None:
    model, batches = _model(), _batches()
    before = model.SerializeToString()
    made = equalize(model, channel_ranges(model, batches), alpha=alpha)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made.model, full_check=True)
    assert made.tensors >= 3
    for batch in _batches(8)[-2:]:
        want, got = MapRunner(model).run(batch)["out"], MapRunner(made.model).run(batch)["out"]
        assert _far(got, want) < 1e-5


def test_planted_outlier_channels_round_better() -> None:
    model, batches = _model(), _batches()
    made = equalize(model, channel_ranges(model, batches), alpha=1.0).model
    errors = []
    for graph in (model, made):
        quantized = to_int8(graph, calibrate(graph, batches), last_layers="int8").model
        errors.append(
            np.mean([_far(MapRunner(quantized).run(b)["out"], MapRunner(model).run(b)["out"]) for b in batches])
        )
    assert errors[1] < 0.5 * errors[0], errors


def test_channels_have_one_range_after_it() -> None:
    model, batches = _model(), _batches()
    before = channel_ranges(model, batches)["a0"]
    made = equalize(model, channel_ranges(model, batches), alpha=1.0, max_factor=1e6)
    after = channel_ranges(made.model, batches)
    spread = [np.abs(r).max(axis=0).max() / np.abs(r).max(axis=0).min() for r in (before, after["a0"])]
    assert spread[0] > 10
    # channels that the sum ties to those of "a1" share their larger range; the left half is even
    left = np.abs(after["a0"]).max(axis=0)[:4]
    assert left.max() / left.min() < 1.001


def test_alpha_0_changes_nothing() -> None:
    model, batches = _model(), _batches(1)
    made = equalize(model, channel_ranges(model, batches), alpha=0)
    assert (made.tensors, made.added, made.factors) == (0, 0, 1.0)


def test_a_channel_read_elsewhere_keeps_its_values() -> None:
    model, batches = _model(read_elsewhere=True), _batches()
    made = equalize(model, channel_ranges(model, batches)).model
    got, want = MapRunner(made).run(batches[0]), MapRunner(model).run(batches[0])
    assert _far(got["soft"], want["soft"]) < 1e-6
    assert _far(got["out"], want["out"]) < 1e-5


def test_what_it_refuses() -> None:
    model, batches = _model(), _batches(1)
    ranges = channel_ranges(model, batches)
    with pytest.raises(InputError, match="alpha"):
        equalize(model, ranges, alpha=1.5)
    with pytest.raises(InputError, match="max_factor"):
        equalize(model, ranges, max_factor=0.5)
    with pytest.raises(InputError, match="another graph"):
        equalize(model, {name: r[:, :1] for name, r in ranges.items()})
    with pytest.raises(InputError, match="no calibration data"):
        channel_ranges(model, [])
    with pytest.raises(InputError, match="does not fit"):
        channel_ranges(model, [{"images": np.zeros((1, 4, 16, 16), np.float32)}])
