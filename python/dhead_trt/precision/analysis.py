"""What a precision pass must know of a graph: types, data flow, and where the decode tail begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["GraphView", "captured_names", "drop_unused", "hoist_constants", "reads", "subgraphs"]

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul"}
MOVING = {
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}  # every value they write is one that they read
LAYOUT = MOVING | {"Pad"}  # they move values and change none, but may add some of their own


class GraphView:
    """A graph's nodes, seen by their edges. Constant nodes must have been hoisted.

    Attributes:
        nodes: of the top-level graph, in its order.
        types: tensor name → ONNX element type, where it could be inferred.
        initializers: name → TensorProto.
        producer: tensor name → index of the node that makes it.
        data: indices of the nodes whose results depend on the values, not only the shapes, of the graph's inputs.
        network: data nodes that a learned layer is made of or depends on: all but the decode tail.
        last: learned layers that no other learned layer follows.
    """

    def __init__(self, onnx: Any, model: Any) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.initializers = {t.name: t for t in graph.initializer}
        self.types = _types(onnx, model)
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.inputs = [[*filter(None, node.input), *captured_names(node)] for node in self.nodes]
        self.data = self._data({i.name for i in graph.input})
        layers = {i for i in self.data if self._is_layer(i)}
        before = self._ancestors(layers)
        self.network, self.last = layers | before, layers - before

    def _data(self, inputs: set[str]) -> set[int]:
        live, found = set(inputs), set()
        for i, node in enumerate(self.nodes):  # in topological order, as ONNX demands
            if node.op_type not in ("Shape", "Size") and live.intersection(self.inputs[i]):
                found.add(i)
                live.update(filter(None, node.output))
        return found

    def _ancestors(self, nodes: set[int]) -> set[int]:
        """Data nodes that the given ones depend on."""
        found: set[int] = set()
        pending = list(nodes)
        while pending:
            made = {self.producer[name] for name in self.inputs[pending.pop()] if name in self.producer}
            new = (made & self.data) - found
            found |= new
            pending += new
        return found

    def raw_path(self, output: str) -> set[int]:
        """The nodes from the last layers to an output that only moves their results (and adds a bias); else empty."""
        found: set[int] = set()
        pending = [output]
        while pending:
            name = pending.pop()
            if name in self.initializers:
                continue
            i = self.producer.get(name, -1)
            if i < 0:
                return set()
            node = self.nodes[i]
            found.add(i)
            if i in self.last:
                continue
            bias = node.op_type == "Add" and any(n in self.initializers for n in node.input)
            if i not in self.data or not (node.op_type in LAYOUT or bias):
                return set()
            pending += [n for n in node.input if n in self.producer and self.producer[n] in self.data]
        return found

    def _is_layer(self, index: int) -> bool:
        node = self.nodes[index]
        if any(n.op_type in WEIGHTED for g in subgraphs(node) for n in _all_nodes(g)):
            return True
        return node.op_type in WEIGHTED and not self.is_dfl(index)

    def is_dfl(self, index: int) -> bool:
        """Whether a node is the expectation over DFL bins: weights 0, 1, …, n-1 for one output, behind a softmax."""
        node = self.nodes[index]
        if node.op_type not in ("Conv", "MatMul", "Gemm") or len([*filter(None, node.input)]) != 2:
            return False
        for data, weight in (node.input, reversed(node.input)):
            if weight in self.initializers and data not in self.initializers:
                values = _array(self.initializers[weight])
                single = values.size == max(values.shape, default=0) > 1
                if single and np.allclose(values.ravel(), np.arange(values.size), rtol=0, atol=1e-3):
                    return self._behind_softmax(data)
        return False

    def _behind_softmax(self, name: str) -> bool:
        while name in self.producer:
            node = self.nodes[self.producer[name]]
            if node.op_type == "Softmax":
                return True
            if node.op_type not in LAYOUT | {"Cast"}:
                return False
            name = node.input[0]
        return False


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs that a node holds (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: Any) -> set[str]:
    """The tensors a node depends on, also those that its subgraphs take from outside."""
    return {*filter(None, node.input), *captured_names(node)}


def drop_unused(graph: Any) -> None:
    """Takes out the initializers that no node reads and that are no output."""
    used = {name for node in graph.node for name in reads(node)} | {o.name for o in graph.output}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def captured_names(node: Any) -> set[str]:
    """Names that a node's subgraphs take from outside."""
    found: set[str] = set()
    for graph in subgraphs(node):
        inside = {t.name for t in graph.initializer} | {i.name for i in graph.input}
        for inner in graph.node:
            found |= (set(filter(None, inner.input)) | captured_names(inner)) - inside
            inside.update(inner.output)
        found |= {o.name for o in graph.output} - inside
    return found


def hoist_constants(onnx: Any, graph: Any) -> None:
    """Constant nodes of the top-level graph become initializers; initializers are no longer inputs."""
    kept = []
    for node in graph.node:
        tensor = _constant_value(onnx, node) if node.op_type == "Constant" else None
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)
    names = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in names]
    if len(inputs) != len(graph.input):
        del graph.input[:]
        graph.input.extend(inputs)


def _constant_value(onnx: Any, node: Any) -> Any:
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name in kinds:
        return onnx.numpy_helper.from_array(
            np.asarray(onnx.helper.get_attribute_value(attribute), kinds[attribute.name])
        )
    return None  # strings, sparse tensors


def _array(tensor: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _types(onnx: Any, model: Any) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
    return types


def _all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from _all_nodes(inner)
