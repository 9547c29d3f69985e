"""The comparison layer by layer: it finds the tensor where an engine departs, whatever fits into one build."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from dhead_trt import InputError
from dhead_trt.build import build
from dhead_trt.parity import LAYER_TOLERANCES, compare_layers, plot_layers
from dhead_trt.parity.layers import _compare, _Tensor

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")
import small_models as small  # noqa: E402

PLANTED = "planted/down_output_0"


def with_cancellation() -> bytes:
    """The small head with x + 1000 - 1000 behind its first convolution: nothing in fp32, all of bfloat16's digits.

    Both are convolutions with the identity, since elementwise neighbours would be fused into one.
    """
    model = onnx.load_from_string(small.onnx_bytes("head"))
    nodes = list(model.graph.node)
    place = next(i for i, n in enumerate(nodes) if n.op_type == "Conv")
    name = nodes[place].output[0]
    for node in nodes:
        node.input[:] = [PLANTED if x == name else x for x in node.input]
    channels = small.CHANNELS[0]
    constants = {
        "eye": np.eye(channels)[..., None, None],
        "up": np.full(channels, 1e3),
        "down": np.full(channels, -1e3),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value.astype(np.float32), key) for key, value in constants.items()
    )
    planted = [
        onnx.helper.make_node("Conv", [name, "eye", "up"], ["planted/up_output_0"], name="planted/up"),
        onnx.helper.make_node("Conv", ["planted/up_output_0", "eye", "down"], [PLANTED], name="planted/down"),
    ]
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: place + 1], *planted, *nodes[place + 1 :]])
    data: bytes = model.SerializeToString()
    return data


def test_every_tensor_is_compared_in_order() -> None:
    graph = onnx.load_from_string(small.onnx_bytes("detector")).graph
    report = compare_layers(small.onnx_bytes("detector"), batch=2, threads=2, name="detector")
    names = [x.tensor for x in report.layers]
    computes = ("Conv", "Mul", "Sigmoid", "Tanh")
    assert sorted(names) == sorted(name for n in graph.node if n.op_type in computes for name in n.output)
    made_from = {name: set(n.input) & set(names) for n in graph.node for name in n.output}
    for i, name in enumerate(names):
        assert made_from[name] <= set(names[:i])
    assert report.passed
    assert report.builds == 1
    assert all(x.shape[0] == 2 and x.scale > 0 and x.relative < 1e-5 for x in report.layers)
    assert report.tolerance == LAYER_TOLERANCES["fp32"]


def test_groups_bound_the_memory_and_change_nothing() -> None:
    whole = compare_layers(small.onnx_bytes("head"), precision="bf16", threads=2)
    split = compare_layers(small.onnx_bytes("head"), precision="bf16", threads=2, budget=60_000)
    assert whole.builds == 1
    assert 2 < split.builds < len(split.layers)
    assert [x.tensor for x in split.layers] == [x.tensor for x in whole.layers]
    assert split.passed
    assert whole.passed


def test_the_layer_that_departs_is_named(tmp_path: Path) -> None:
    """The same graph passes in fp32. In bfloat16 the sum is as exact as any tensor, and the difference is noise."""
    data = with_cancellation()
    assert compare_layers(data, threads=2, tolerance=5e-3).passed
    report = compare_layers(data, precision="bf16", threads=2, name="planted")
    if report.computed_in != "bf16":
        pytest.skip(f"this CPU has no bf16: computed in {report.computed_in}")
    first = report.first
    assert first is not None
    assert (first.tensor, first.op, first.node) == (PLANTED, "Conv", "planted/down")
    assert first.growth is not None
    assert first.growth > 100
    up = next(x for x in report.layers if x.tensor == "planted/up_output_0")
    assert up.relative < 5e-3
    assert not report.passed
    assert f"the first: {PLANTED!r}, made by Conv 'planted/down'" in report.render()
    data_of = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data_of["first"] == PLANTED
    assert data_of["passed"] is False
    picture = plot_layers(report, tmp_path / "l.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="no known format"):
        plot_layers(report, tmp_path / "l.foo")


def test_an_engine_says_what_to_build(tmp_path: Path) -> None:
    made = build(small.onnx_bytes("head"), "openvino", output=tmp_path / "e", precision="fp16", verify=False)
    report = compare_layers(small.onnx_bytes("head"), engine=made.plan, threads=2)
    assert (report.backend, report.precision) == ("openvino", "fp16")
    assert report.passed
    assert max(x.relative for x in report.layers) > 1e-4  # the weights are rounded


@pytest.mark.parametrize(
    ("got", "want", "relative"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([math.nan, 4.0], [3.0, 4.0], math.inf),
        ([math.nan, math.inf], [math.nan, math.inf], 0),
        ([math.nan, 4.0], [math.nan, 4.4], 0.4 / 4.4),
        ([1e-9, 0.0], [0.0, 0.0], math.inf),
        ([3.0, math.inf], [3.0, 4.0], math.inf),
    ],
)
def test_relative_error(got: list[float], want: list[float], relative: float) -> None:
    found = _compare(_Tensor("t", "Op", "n"), np.array([got]), np.array([want]))
    assert found.relative == pytest.approx(relative)
    json.dumps(found.to_dict(), allow_nan=False)


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="'t' of the engine has another shape"):
        _compare(_Tensor("t", "Op", "n"), np.zeros((1, 2)), np.zeros((2, 1)))


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"tolerance": -1.0}, {"tolerance": math.nan}])
def test_arguments_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="out of range"):
        compare_layers(small.onnx_bytes("head"), **wrong)  # type: ignore[arg-type]
