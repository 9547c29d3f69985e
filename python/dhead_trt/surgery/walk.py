"""The walk from a graph's outputs back to the convolutions that make its raw maps; by edges, never by names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import GraphError
from .edges import constant, producer

__all__ = ["RAW_EXPORT", "Walk", "walk_back"]

RAW_EXPORT = (
    "Export a plain detect model: Ultralytics YOLOv8/v9/v10/11/12 with model.export(format='onnx') "
    "(v10: nms=None in ultralytics >= 8.4; without NMS in the graph), or a head of dhead_trt with `dhead-trt export`"
)

_LAYOUT = {
    "Cast", "Concat", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity", "QuantizeLinear", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_MATH = {
    "Add",
    "Clip",
    "Div",
    "Einsum",
    "Exp",
    "Mul",
    "Neg",
    "Pow",
    "ReduceMax",
    "ReduceSum",
    "Sigmoid",
    "Softmax",
    "Sub",
    "Max",
}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "QLinearConv", "QLinearMatMul", "MatMulInteger"}
_CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
_SELECTS = {"NonMaxSuppression": "NMS", "TopK": "an end-to-end (NMS-free) selection", "NonZero": "a score filter"}


@dataclass
class Walk:
    """What the walk met.

    Attributes:
        frontier: outputs of the real convolutions nearest to the graph's outputs, in the order met.
        nodes: the nodes between them and the outputs: the tail.
        dfl: lengths of the DFL weights 0..n-1 met, by the name of what applies them.
    """

    frontier: list[Any] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    dfl: dict[str, int] = field(default_factory=dict)

    def ops(self) -> dict[str, int]:
        """How often each operator occurs in the tail."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[node.op] = counts.get(node.op, 0) + 1
        return dict(sorted(counts.items()))


def walk_back(graph: Any) -> Walk:
    """Walks all data edges from the outputs of an onnx_graphsurgeon.Graph back to real convolutions.

    Raises:
        GraphError: an operator on the way does not belong to a detect tail; the message names it.
    """
    result, seen, data = Walk(), set[int](), _data_nodes(graph)
    pending = list(reversed(graph.outputs))
    inputs = {id(t) for t in graph.inputs}
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if id(tensor) in inputs:
            raise GraphError(
                "An output depends on a graph input without a convolution between: this is not a detector's tail",
                received=f"the input {tensor.name!r} of shape {tensor.shape}",
                expected="a decode that rests on the convolutions of a detection head",
                fix=RAW_EXPORT,
            )
        node = producer(tensor)
        if node is None or id(node) not in data:
            continue  # constants, and anchor grids made from shapes
        if node.op in _WEIGHTED and not _is_dfl(node, result):
            if node.op != "Conv":
                raise _not_a_tail(graph, node, "where a detection head has convolutions")
            result.frontier.append(_raw_map(tensor, {id(t) for t in graph.outputs}))
            continue
        _refuse(graph, node)
        _note_product(node, result)
        if id(node) not in seen:
            seen.add(id(node))
            result.nodes.append(node)
            pending.extend(reversed(node.inputs))
    return result


def _data_nodes(graph: Any) -> set[int]:
    """Nodes whose outputs depend on the values (not only the shapes) of the graph's inputs."""
    owners: dict[int, Any] = {}
    for node in graph.nodes:
        owners |= {id(inner): node for inner in _inner_nodes(node)}
    found, pending = set[int](), [node for t in graph.inputs for node in t.outputs]
    while pending:
        node = pending.pop()
        if id(node) not in found and node.op not in ("Shape", "Size"):
            found.add(id(node))
            pending.extend(consumer for t in node.outputs for consumer in t.outputs)
            pending.extend([owners[id(node)]] if id(node) in owners else [])
    return found


def _inner_nodes(node: Any) -> list[Any]:
    """The nodes of a node's subgraphs, at every depth: they may read tensors of the outer graph."""
    inner = [n for value in node.attrs.values() if type(value).__name__ == "Graph" for n in value.nodes]
    return inner + [n for deeper in inner for n in _inner_nodes(deeper)]


def _raw_map(tensor: Any, outputs: set[int]) -> Any:
    """Follows a convolution's output over its separate bias and its Q/DQ pair: all that belongs to the map itself."""
    while len(tensor.outputs) == 1 and id(tensor) not in outputs:
        node = tensor.outputs[0]
        bias = node.op == "Add" and any(
            (value := constant(other)) is not None
            and value.ndim in (3, 4)
            and value.shape[-2:] == (1, 1)
            and value.size > 1
            for other in node.inputs
        )
        if not (bias or node.op in ("Identity", "QuantizeLinear", "DequantizeLinear")):
            break
        tensor = node.outputs[0]
    return tensor


def _is_dfl(node: Any, result: Walk) -> bool:
    """Tells the DFL expectation (weights 0..bins-1 behind a softmax) from a real convolution or matrix product."""
    if node.op not in ("Conv", "MatMul", "Gemm") or len(node.inputs) < 2:
        return False
    weight = next((w for w in map(constant, reversed(node.inputs[:2])) if w is not None), None)
    if weight is None or not any(_behind_softmax(t) for t in node.inputs[:2]):
        return False
    outputs = weight.size if weight.ndim < 2 else weight.size // max(weight.shape)
    if weight.ndim >= 2 and outputs != 1:
        return False
    _note_projection(node, weight, result)
    return True


def _note_projection(node: Any, weight: npt.NDArray[Any], result: Walk) -> None:
    flat = weight.reshape(-1).astype(np.float64)
    if not np.allclose(flat, np.arange(flat.size), rtol=0, atol=1e-3):
        raise GraphError(
            "The weight behind the DFL softmax is not the DFL projection",
            received=f"{node.op} {node.name!r} with weight {np.array2string(flat, precision=3, threshold=8)}",
            expected=f"0, 1, …, {flat.size - 1}",
            fix="A trained or altered DFL projection cannot be decoded by dhead_trt; " + RAW_EXPORT,
        )
    result.dfl[node.name or node.outputs[0].name] = flat.size


def _note_product(node: Any, result: Walk) -> None:
    """Notes a DFL written as softmax · constant, then a sum."""
    if node.op == "Mul" and any(_behind_softmax(t) for t in node.inputs):
        weight = next((w for w in map(constant, node.inputs) if w is not None), None)
        if weight is not None and weight.size > 1:
            _note_projection(node, weight, result)


def _behind_softmax(tensor: Any) -> bool:
    for _ in range(8):
        node = producer(tensor)
        if node is None:
            return False
        if node.op == "Softmax":
            return True
        if node.op not in _LAYOUT:
            return False
        tensor = node.inputs[0]
    return False


def _refuse(graph: Any, node: Any) -> None:
    known = node.op in _LAYOUT | _MATH | _WEIGHTED and not node.domain
    if known:
        return
    if node.op in _SELECTS or "NMS" in node.op or node.op.startswith("Gather") or node.op == "ScatterND":
        what = _SELECTS.get(node.op, "NMS" if "NMS" in node.op else "a selection of detections")
        raise GraphError(
            f"The graph holds {what}, so its output is detections, not the decode of every anchor",
            received=f"{_described(node)} before {_outputs(graph)}",
            expected="an output with one row per anchor, [B, 4+classes, anchors]",
            fix="Export without it: ultralytics >= 8.4: model.export(format='onnx', nms=None); "
            "before: model.model.model[-1].end2end = False, nms=False. dhead_trt adds its own NMS",
        )
    if node.op in ("Cos", "Sin", "Atan", "Atan2"):
        raise GraphError(
            "This is an oriented-box (OBB) head: its tail rotates boxes",
            received=f"{_described(node)} before {_outputs(graph)}",
            expected="an axis-aligned detect head",
            fix="Oriented boxes are not supported. " + RAW_EXPORT,
        )
    if node.op in _CONTROL or any(type(v).__name__ == "Graph" for v in node.attrs.values()):
        raise GraphError(
            "The tail of the graph has control flow",
            received=f"{_described(node)} before {_outputs(graph)}",
            expected="a tail without If, Loop or Scan",
            fix=RAW_EXPORT,
        )
    raise _not_a_tail(graph, node, "which no detect tail has")


def _not_a_tail(graph: Any, node: Any, why: str) -> GraphError:
    task = "This looks like a classifier. " if _classifies(graph) else ""
    return GraphError(
        "This graph does not end in a DFL decode tail",
        received=f"{_described(node)} {why}, before {_outputs(graph)}",
        expected="Softmax → 0..bins-1 projection → box arithmetic, and Sigmoid, on the convolutions of a detect head",
        fix=task + RAW_EXPORT,
    )


def _classifies(graph: Any) -> bool:
    shape = graph.outputs[0].shape if len(graph.outputs) == 1 else None
    return bool(shape and len(shape) == 2)


def _described(node: Any) -> str:
    return f"the operator {node.domain + '::' if node.domain else ''}{node.op} ({node.name!r})"


def _outputs(graph: Any) -> str:
    return ", ".join(f"{t.name} {list(t.shape) if t.shape is not None else '[?]'}" for t in graph.outputs)
