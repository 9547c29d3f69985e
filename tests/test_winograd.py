"""Winograd convolutions in the graph: the same result, and only where they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import small_models as small
from dhead_trt.build import build
from dhead_trt.engine import Engine
from dhead_trt.shapes import run_reference
from dhead_trt.winograd import use_winograd


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (6, 24), (20, 14)])
def test_winograd_computes_the_same(bias: bool, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((32, 16, 3, 3)) / 12, "b": rng.standard_normal(32)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"] if bias else ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="wide"),
        helper.make_node("Sigmoid", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, height, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items() if bias or k != "b"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    before = model.SerializeToString()
    fast, count = use_winograd(model, min_channels=16)
    assert count == 1
    assert model.SerializeToString() == before
    assert "w" not in {i.name for i in fast.graph.initializer}
    x = rng.standard_normal((2, 16, height, width)).astype(np.float32)
    for name, want in run_reference(model, {"x": x}).items():
        np.testing.assert_allclose(run_reference(fast, {"x": x})[name], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "why",
    ["stride", "pads", "group", "dilation", "auto_pad", "odd", "tiny", "narrow", "1x1", "fp16", "variable", "opset"],
)
def test_winograd_leaves_other_convolutions_alone(why: str) -> None:
    attributes: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    shape, size, opset, dtype = [16, 16, 3, 3], (12, 12), 17, np.float32
    if why == "stride":
        attributes["strides"] = [2, 2]
    elif why == "pads":
        attributes["pads"] = [0, 0, 0, 0]
    elif why == "group":
        attributes["group"], shape = 2, [32, 16, 3, 3]
    elif why == "dilation":
        attributes |= {"dilations": [2, 2], "pads": [2, 2, 2, 2]}
    elif why == "auto_pad":
        attributes = {"auto_pad": "SAME_UPPER"}
    elif why == "odd":
        size = (13, 12)
    elif why == "tiny":
        size = (10, 14)
    elif why == "narrow":
        shape = [16, 8, 3, 3]
    elif why == "1x1":
        attributes, shape = {}, [16, 16, 1, 1]
    elif why == "fp16":
        dtype = np.float16
    elif why == "opset":
        opset = 10
    weight = onnx.numpy_helper.from_array(np.ones(shape, dtype), "w")
    kind = weight.data_type
    channels = shape[1] * attributes.get("group", 1)
    inputs = [helper.make_tensor_value_info("x", kind, [1, channels, *size])]
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)]
    inits = [weight]
    if why == "variable":
        inputs.append(helper.make_tensor_value_info("w", kind, shape))
        inits = []
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", kind, None)], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    same, count = use_winograd(model, min_channels=16)
    assert count == 0
    assert same.SerializeToString() == model.SerializeToString()


def test_a_wide_head_is_built_with_winograd(tmp_path: Path) -> None:
    from dhead_trt.heads import YOLOv8DecoupledHead

    with small.seeded(0):
        head = YOLOv8DecoupledHead(num_classes=2, in_channels=(192, 16, 16)).eval()
    x = [
        np.random.default_rng(0).standard_normal((2, c, 96 // s, 96 // s)).astype(np.float32)
        for c, s in zip((192, 16, 16), (8, 16, 32), strict=True)
    ]
    want = small.torch_maps(head, x)
    for options, count in ((None, 4), ({"winograd": False}, 0)):
        artifact = build(head, "openvino", output=tmp_path / "e", image_size=96, batch=(1, 1, 2), options=options)
        assert artifact.options["winograd"] == count
        with Engine(artifact.plan, output="raw", threads=2) as engine:
            got = engine.infer(x)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-4 * max(1.0, np.abs(value).max()))
