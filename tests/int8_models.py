"""Small convolution graphs for the int8 tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH = 8


class Graph:
    """Nodes and initializers, put together one by one."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def conv(self, x: str, tag: str, inside: int, outside: int, kernel: int = 3, group: int = 1) -> str:
        """A convolution; returns its output's name."""
        fan = inside // group * kernel**2
        weight = self.rng.standard_normal((outside, inside // group, kernel, kernel)) * (1.5 / fan**0.5)
        self.constant(f"w{tag}", weight.astype(np.float32))
        self.constant(f"b{tag}", (self.rng.standard_normal(outside) * 0.2).astype(np.float32))
        pads = [kernel // 2] * 4
        return self.node("Conv", [x, f"w{tag}", f"b{tag}"], f"c{tag}", pads=pads, group=group)

    def silu(self, x: str, tag: str) -> str:
        """x · sigmoid(x)."""
        return self.node("Mul", [x, self.node("Sigmoid", [x], f"s{tag}")], f"m{tag}")

    def constant(self, name: str, value: np.ndarray) -> str:
        """An initializer."""
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node named after its output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"n_{output}", **attributes))
        return output

    def model(self, output: str, channels: int, opset: int = 17, size: int = 16) -> onnx.ModelProto:
        """x [N, 3, size, size] → output."""
        x = helper.make_tensor_value_info("x", 1, ["n", 3, size, size])
        y = helper.make_tensor_value_info(output, 1, ["n", channels, size, size])
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def chain(seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """conv, SiLU, conv, SiLU, conv: the middle of a head."""
    g = Graph(seed)
    x = g.silu(g.conv("x", "0", 3, WIDTH), "0")
    x = g.silu(g.conv(x, "1", WIDTH, WIDTH), "1")
    return g.model(g.conv(x, "2", WIDTH, 5, kernel=1), 5, opset)


def block(seed: int = 0, opset: int = 17, shrink: float = 1.0) -> onnx.ModelProto:
    """A C2f block: split, residual sum, concat; then max pooling of the same size, concat, and the last layer."""
    g = Graph(seed)
    x = g.silu(g.conv("x", "0", 3, 2 * WIDTH, kernel=1), "0")
    if opset >= 13:
        g.nodes.append(
            helper.make_node("Split", [x, g.constant("half", np.array([WIDTH] * 2))], ["sa", "sb"], "n_split", axis=1)
        )
    else:
        g.nodes.append(helper.make_node("Split", [x], ["sa", "sb"], "n_split", axis=1, split=[WIDTH] * 2))
    y = g.silu(g.conv("sb", "1", WIDTH, WIDTH), "1")
    if shrink != 1.0:
        y = g.node("Mul", [y, g.constant("shrink", np.float32(shrink))], "small")
    y = g.node("Add", ["sb", y], "sum")
    x = g.node("Concat", ["sa", "sb", y], "cat", axis=1)
    x = g.silu(g.conv(x, "2", 3 * WIDTH, WIDTH, kernel=1), "2")
    p = g.node("MaxPool", [x], "pool", kernel_shape=[3, 3], pads=[1] * 4)
    x = g.node("Concat", [x, p], "cat2", axis=1)
    x = g.silu(g.conv(x, "3", 2 * WIDTH, WIDTH), "3")
    return g.model(g.conv(x, "4", WIDTH, 5, kernel=1), 5, opset)


def yolo_like() -> onnx.ModelProto:
    """Convolutions with and without bias, Split, sum, Concat, pooling, depthwise, attention, and Resize."""
    g = Graph(5)
    x = g.silu(g.conv("x", "0", 3, 2 * WIDTH), "0")
    g.nodes.append(
        helper.make_node("Split", [x, g.constant("half", np.array([WIDTH] * 2))], ["sa", "sb"], "split", axis=1)
    )
    y = g.node("Conv", ["sb", g.constant("bare", weights(1, WIDTH, WIDTH, 3))], "c1", pads=[1] * 4)
    y = g.node("Add", ["sb", g.silu(y, "1")], "sum")
    x = g.node("Concat", ["sa", "sb", y], "cat", axis=1)
    x = g.silu(g.conv(x, "2", 3 * WIDTH, WIDTH, kernel=1), "2")
    p = g.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    q = g.node("Reshape", [p, g.constant("flat", np.array([0, WIDTH, -1]))], "flatten")
    k = g.node("Transpose", [q], "turned", perm=[0, 2, 1])
    a = g.node("Softmax", [g.node("MatMul", [k, q], "scores")], "soft", axis=-1)
    v = g.node("MatMul", [q, a], "mixed")
    shape = g.node("Shape", [p], "shape")
    p = g.node("Add", [g.node("Reshape", [v, shape], "grid"), p], "attended")
    p = g.silu(g.conv(p, "3", WIDTH, WIDTH, group=WIDTH), "3")
    u = g.node("Resize", [p, "", g.constant("twice", np.array([1, 1, 2, 2], np.float32))], "up", mode="nearest")
    x = g.silu(g.conv(g.node("Concat", [u, x], "cat2", axis=1), "4", 2 * WIDTH, WIDTH), "4")
    g.node("Relu", [x], "nobody")
    return g.model(g.conv(x, "5", WIDTH, 5, kernel=1), 5)


def weights(seed: int, outside: int, inside: int, kernel: int) -> np.ndarray:
    """Of a convolution that keeps sizes about as they are."""
    values = np.random.default_rng(seed).normal(size=(outside, inside, kernel, kernel)) / inside**0.5 / kernel
    return np.asarray(values, np.float32)


def noise(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Inputs of these graphs."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Value of an initializer."""
    return np.asarray(numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)))
