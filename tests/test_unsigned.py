"""Signed Q/DQ as unsigned: the same values everywhere, and right ones in OpenVINO."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import small_models
from dhead_trt.backends.openvino import new_core
from dhead_trt.calibration import calibrate
from dhead_trt.precision.int8 import to_int8
from dhead_trt.precision.raw_run import MapRunner
from dhead_trt.precision.unsigned import unsigned_activations


def concat_model(channels: int = 32) -> onnx.ModelProto:
    """Two inputs → Concat → Q/DQ → 1×1 convolution of int8 weights: what OpenVINO's signed path gets wrong."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (16, 2 * channels, 1, 1))
    scale = (np.abs(weight).reshape(16, -1).max(axis=1) / 127).astype(np.float32)
    constants = {
        "s": np.float32(0.02),
        "z": np.int8(0),
        "w": np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(np.int8),
        "ws": scale,
        "wz": np.zeros(16, np.int8),
    }
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
        helper.make_node("QuantizeLinear", ["both", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["dq", "wd"], ["y"]),
    ]
    shape = [1, channels, 16, 16]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "ab"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 16, 16])]
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_values_are_the_same() -> None:
    model = onnx.load_from_string(small_models.onnx_bytes("detector"))
    signed = to_int8(model, calibrate(model, [{"images": small_models.images(4)}], threads=1)).model
    before = signed.SerializeToString()
    made = unsigned_activations(signed)
    onnx.checker.check_model(made, full_check=True)
    assert signed.SerializeToString() == before
    kinds = {t.name: t.data_type for t in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            assert kinds[node.input[2]] == TensorProto.UINT8
        if node.op_type == "DequantizeLinear" and node.input[0] in kinds:
            assert kinds[node.input[0]] == kinds[node.input[2]] == TensorProto.INT8  # weights stay as they are
    images = {"images": small_models.images(2, 9)}
    want, got = MapRunner(signed, threads=1).run(images), MapRunner(made, threads=1).run(images)
    assert all(np.array_equal(got[n], want[n]) for n in want)


def test_openvino_computes_what_the_graph_says() -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = concat_model()
    rng = np.random.default_rng(1)
    feeds: Any = {n: rng.normal(0, 1, (1, 32, 16, 16)).astype(np.float32) for n in "ab"}
    want = MapRunner(model, threads=1).run(feeds)["y"]

    def error(graph: onnx.ModelProto) -> float:
        core = new_core(openvino)
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", options)
        (got,) = compiled(feeds).values()
        return float(np.linalg.norm(got - want) / np.linalg.norm(want))

    assert error(unsigned_activations(model)) < 1e-3
