"""The layers of a graph that int8 is for: what they read, what they weigh, and how much work they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendUnavailable, GraphError
from .analysis import MOVING, GraphView, hoist_constants

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Layer", "activation_tensors", "data_inputs", "import_onnx", "inspect", "node_name", "passes", "quantizable"]

FLOAT = 1  # onnx.TensorProto.FLOAT

# Operators that hand values on unchanged: one scale serves their inputs and outputs, and engines run them in int8.
# (Resize: see passes. Pad's own value may lie on no int8 level.)
_PASSING = MOVING | {"MaxPool"}
_REFERENCE_SIDE = 640  # pixels assumed for free spatial dimensions when work is counted


@dataclass(frozen=True)
class Layer:
    """A convolution that could compute in int8.

    Attributes:
        name: of its node in the float32 graph (or of the node's output, where it has no name).
        op: its operator.
        macs: multiply-accumulates for one image; free dimensions are taken as a 640-pixel image's.
        input: tensor of activations it reads.
        weight: initializer that holds its weights.
        output: tensor it writes.
        group: of the convolution.
        last: no other learned layer follows it: it makes a raw map.
    """

    name: str
    op: str
    macs: int
    input: str
    weight: str
    output: str
    group: int
    last: bool


@dataclass(frozen=True)
class Inspection:
    """A graph ready for a pass: constants hoisted, seen by its edges, its layers listed."""

    model: Any
    view: GraphView
    layers: tuple[Layer, ...]
    total_macs: int  # of all learned layers, quantizable or not


def quantizable(model: ModelProto) -> list[Layer]:
    """Convolutions of constant float32 weights that can compute in int8, in the graph's order.

    The expectation over DFL bins, which exports write as a convolution, is not one of them; depthwise convolutions are,
    other grouped ones where each group has a multiple of four channels.

    Raises:
        GraphError: the graph is not valid.
        BackendUnavailable: the onnx package is not installed.
    """
    return list(inspect(model).layers)


def activation_tensors(model: ModelProto) -> list[str]:
    """Tensors whose ranges `to_int8` may ask for: what the layers read, back to where those values are made, and the
    operands of sums."""
    found = inspect(model)
    view, wanted = found.view, [layer.input for layer in found.layers]
    seen: dict[str, None] = {}
    while wanted:
        name = wanted.pop(0)
        if name in seen or name in view.initializers or view.types.get(name) != FLOAT:
            continue
        seen[name] = None
        node = view.nodes[view.producer[name]] if name in view.producer else None
        if node is not None and (passes(node) or node.op_type == "Add"):
            wanted += data_inputs(view, node)
    return list(seen)


def passes(node: Any) -> bool:
    """Whether a node only moves or selects values: nothing is computed, so nothing leaves an int8 grid."""
    if node.op_type == "Resize":
        return _text(node, "mode", "nearest") == "nearest"
    return node.op_type in _PASSING and not node.domain


def data_inputs(view: GraphView, node: Any) -> list[str]:
    """The float inputs of a node that depend on the graph's inputs."""
    candidates = node.input if node.op_type in ("Concat", "Add") else node.input[:1]
    return [n for n in candidates if n and n not in view.initializers and view.types.get(n) == FLOAT]


def node_name(node: Any) -> str:
    """What a node is called in `keep` and in reports."""
    return str(node.name or node.output[0])


def inspect(model: ModelProto) -> Inspection:
    """A copy of the graph with its constants hoisted, and its layers.

    Raises:
        GraphError: the types of the graph cannot be inferred.
        BackendUnavailable: the onnx package is not installed.
    """
    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    hoist_constants(onnx, copy.graph)
    try:
        copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
        view = GraphView(onnx, copy)
    except Exception as e:  # onnx.shape_inference.InferenceError and the like
        raise GraphError(
            "The types of this graph cannot be inferred", received=" ".join(str(e).split())[:300], expected="valid ONNX"
        ) from e
    shapes = _shapes(copy)
    layers, total = [], 0
    for i, node in enumerate(view.nodes):
        if i not in view.network:
            continue
        macs = _macs(view, node, shapes)
        total += macs if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else 0
        if node.op_type == "Conv" and _fits(view, i):
            layers.append(
                Layer(
                    name=node_name(node),
                    op=node.op_type,
                    macs=macs,
                    input=node.input[0],
                    weight=node.input[1],
                    output=node.output[0],
                    group=_attribute(node, "group", 1),
                    last=i in view.last,
                )
            )
    return Inspection(copy, view, tuple(layers), total)


def import_onnx() -> Any:
    """The onnx package.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        import onnx
    except ImportError as e:
        raise BackendUnavailable(
            "Precision passes need onnx", received=str(e), fix='pip install "dhead-trt[onnx]"'
        ) from e
    return onnx


def _fits(view: GraphView, index: int) -> bool:
    node = view.nodes[index]
    weight = view.initializers.get(node.input[1])
    if weight is None or weight.data_type != FLOAT or len(weight.dims) != 4 or view.is_dfl(index):
        return False
    if view.types.get(node.input[0]) != FLOAT or node.input[0] in view.initializers:
        return False
    group = _attribute(node, "group", 1)
    depthwise = weight.dims[1] == 1 and group == weight.dims[0]
    return group == 1 or depthwise or (weight.dims[1] % 4 == 0 and (weight.dims[0] // group) % 4 == 0)


def _macs(view: GraphView, node: Any, shapes: dict[str, list[int]]) -> int:
    """Multiply-accumulates of a node for one image; 0 where its shapes are not known."""
    weight = next((view.initializers[n] for n in node.input[1:2] if n in view.initializers), None)
    if node.op_type in ("Conv", "ConvTranspose") and weight is not None:
        shape = shapes.get(node.output[0] if node.op_type == "Conv" else node.input[0], [])
        if len(shape) != len(weight.dims):
            return 0
        return int(np.prod([weight.dims[0], *shape[2:], *weight.dims[1:]], dtype=np.int64))
    if node.op_type in ("Gemm", "MatMul"):
        out, inner = shapes.get(node.output[0], []), shapes.get(node.input[0], [])
        return int(np.prod([*out[1:], *inner[-1:]], dtype=np.int64)) if out and inner else 0
    return 0


def _shapes(model: Any) -> dict[str, list[int]]:
    """Shapes for counting work: one image, free dimensions as a 640-pixel image would make them."""
    onnx = import_onnx()
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    free = [v for v in probe.graph.input if any(not d.HasField("dim_value") for d in v.type.tensor_type.shape.dim)]
    if free:
        _fix(probe, free)
        del probe.graph.value_info[:]
        for value in probe.graph.output:
            value.type.tensor_type.ClearField("shape")
        try:
            probe = onnx.shape_inference.infer_shapes(probe, data_prop=True)
        except Exception:  # then the shapes stay those of the graph
            probe = model
    shapes = {}
    for value in (*probe.graph.input, *probe.graph.value_info, *probe.graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = [
                d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else 1
                for d in value.type.tensor_type.shape.dim
            ]
            shapes[value.name] = dims
    return shapes


def _fix(model: Any, free: list[Any]) -> None:
    """Gives free dimensions the numbers of one 640-pixel image; of feature maps the first is the largest."""
    strides = [8 * 2**i for i in range(len(model.graph.input))] if len(model.graph.input) > 1 else [1]
    metadata = {p.key: p.value for p in model.metadata_props}
    if "dhead_spec" in metadata:
        from ..spec import HeadSpec

        spec = HeadSpec.from_json(metadata["dhead_spec"])
        features = len(model.graph.input) == spec.num_levels and (
            len(model.graph.input) > 1 or model.graph.input[0].type.tensor_type.shape.dim[1].dim_value not in (1, 3, 4)
        )
        if features:
            strides = list(spec.strides)
    by_name = {v.name: strides[min(i, len(strides) - 1)] for i, v in enumerate(model.graph.input)}
    for value in free:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = 1 if axis < 2 else -(-_REFERENCE_SIDE // by_name[value.name])


def _text(node: Any, name: str, default: str) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == name), default)


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
