"""Small ONNX helpers of the surgery tests; they share nothing with dhead_trt.surgery."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dhead_trt.errors import GraphError
from dhead_trt.surgery import convert

__all__ = ["dims", "metadata", "run", "set_initializer", "small_detector", "xyxy"]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a model by name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def refused(source: Any, pattern: str, **options: Any) -> None:
    """`convert` raises a GraphError in whose text `pattern` is found."""
    with pytest.raises(GraphError, match=pattern):
        convert(source, **options)


def dims(value: onnx.ValueInfoProto) -> list[int | str]:
    """Dimensions of an input or output."""
    return [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Metadata as a dict."""
    return {p.key: p.value for p in model.metadata_props}


def xyxy(rows: np.ndarray) -> np.ndarray:
    """Ultralytics' [B, 4+C, A] xywh → boxes [B, A, 4] xyxy."""
    boxes = rows[:, :4].astype(np.float64).transpose(0, 2, 1)
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def set_initializer(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    """Replaces the values of an initializer."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), name))


def small_detector(
    *,
    bins: int = 16,
    classes: int = 64,
    strides: tuple[int, ...] = (8, 16),
    size: tuple[int, int] = (64, 96),
    weights: float = 1.0,
    tail_strides: tuple[float, ...] | None = None,
    offset: float = 0.5,
    projection: np.ndarray | None = None,
    class_order: tuple[int, ...] | None = None,
    column_major: bool = False,
    names: dict[int, str] | None = None,
    bias_apart: bool = False,
) -> onnx.ModelProto:
    """A static Ultralytics-like detector written node by node, whose tail can be made wrong in one place."""
    rng = np.random.default_rng(3)
    nodes: list[Any] = []
    constants: list[onnx.TensorProto] = []

    def const(name: str, values: Any, dtype: Any = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def conv(source: str, channels: tuple[int, int], kernel: int, name: str) -> str:
        weight = const(f"{name}.w", rng.normal(0, weights, (channels[1], channels[0], kernel, kernel)))
        bias = rng.normal(0, weights, channels[1])
        strides_ = [kernel, kernel]
        if bias_apart:
            bare = node("Conv", [source, weight], f"{name}.bare", kernel_shape=[kernel] * 2, strides=strides_)
            return node("Add", [bare, const(f"{name}.b", bias.reshape(1, -1, 1, 1))], name)
        return node(
            "Conv", [source, weight, const(f"{name}.b", bias)], name, kernel_shape=[kernel] * 2, strides=strides_
        )

    boxes, scores, centers, scales = [], [], [], []
    order = class_order or tuple(range(len(strides)))
    cells = [(size[0] // s, size[1] // s) for s in strides]
    for i, stride in enumerate(strides):
        feature = conv("images", (3, 8), stride, f"feature{i}")
        box = conv(feature, (8, 4 * bins), 1, f"a{i}")
        cls = conv(feature, (8, classes), 1, f"b{i}")
        boxes.append(node("Reshape", [box, const(f"box_shape{i}", [1, 4 * bins, -1], np.int64)], f"box_flat{i}"))
        scores.append(node("Reshape", [cls, const(f"cls_shape{i}", [1, classes, -1], np.int64)], f"cls_flat{i}"))
        y, x = np.meshgrid(np.arange(cells[i][0]) + offset, np.arange(cells[i][1]) + offset, indexing="ij")
        grid = np.stack([x, y])
        centers.append((grid.transpose(0, 2, 1) if column_major else grid).reshape(2, -1))
        scales.append(np.full(cells[i][0] * cells[i][1], (tail_strides or strides)[i]))
    box = node("Concat", boxes, "boxes_all", axis=2)
    cls = node("Concat", [scores[i] for i in order], "scores_all", axis=2)
    anchors = sum(h * w for h, w in cells)
    box = node("Reshape", [box, const("dfl_shape", [1, 4, bins, anchors], np.int64)], "dfl_in")
    box = node("Transpose", [box], "dfl_t", perm=[0, 2, 1, 3])
    box = node("Softmax", [box], "dfl_soft", axis=1)
    weight = np.arange(bins) if projection is None else projection
    box = node("Conv", [box, const("dfl_weight", weight.reshape(1, bins, 1, 1))], "dfl_out", kernel_shape=[1, 1])
    box = node("Reshape", [box, const("ltrb_shape", [1, 4, anchors], np.int64)], "ltrb")
    nodes.append(
        helper.make_node("Split", [box, const("halves", [2, 2], np.int64)], ["lt", "rb"], axis=1, name="halve")
    )
    grid_name = const("anchors", np.concatenate(centers, axis=1)[None])
    low, high = node("Sub", [grid_name, "lt"], "low"), node("Add", [grid_name, "rb"], "high")
    middle = node("Div", [node("Add", [low, high], "sum"), const("two", 2.0)], "middle")
    joined = node("Concat", [middle, node("Sub", [high, low], "extent")], "xywh", axis=1)
    joined = node("Mul", [joined, const("scale", np.concatenate(scales)[None])], "pixels")
    node("Concat", [joined, node("Sigmoid", [cls], "probability")], "output0", axis=1)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4 + classes, anchors])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
    helper.set_model_props(
        model,
        {
            "task": "detect",
            "stride": str(max(strides)),
            "imgsz": str(list(size)),
            "names": str(names if names is not None else {i: f"class {i}" for i in range(classes)}),
        },
    )
    onnx.checker.check_model(model)
    return model
