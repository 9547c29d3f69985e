"""float32 → float16, where it is safe, with as few casts as the graph allows."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import GraphError, InputError
from .analysis import LAYOUT, GraphView, captured_names, drop_unused, hoist_constants, subgraphs
from .layers import import_onnx
from .names import Names

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["MAX_WEIGHT_ERROR", "Fp16Conversion", "convert_fp16", "to_fp16"]

FLOAT, HALF = 1, 10  # onnx.TensorProto.FLOAT, FLOAT16
MAX_WEIGHT_ERROR = 0.01  # relative, in the 2-norm: a tensor that loses more keeps its node in float32
DHEAD = "dhead"

# Sums over many values, and norms: fp16 cannot hold their intermediate results.
_SUMS = {
    "CumSum",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceSum",
    "ReduceSumSquare",
}
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_ALL_ALIKE = {"BatchNormalization", "Pow"}  # ONNX lets the types of their inputs differ, engines do not


@dataclass(frozen=True)
class Fp16Conversion:
    """What `convert_fp16` made.

    Attributes:
        model: the graph in half precision.
        half_nodes, float_nodes: how many nodes of the graph compute in float16, and in float32.
        casts: how many Cast nodes were added.
        kept: node → why it stays in float32, where that is not the rule for its operator or place.
        flushed: initializer → how many of its values became 0.
    """

    model: ModelProto
    half_nodes: int
    float_nodes: int
    casts: int
    kept: Mapping[str, str] = field(default_factory=dict)
    flushed: Mapping[str, int] = field(default_factory=dict)


def to_fp16(
    model: ModelProto,
    *,
    io_dtype: str | Mapping[str, str] = "float32",
    keep: Collection[str] = (),
    last_layers: str = "float32",
) -> ModelProto:
    """The graph with weights and activations in float16: `convert_fp16` without its report.

    A UserWarning names the nodes that stay in float32 because their weights do not survive the conversion.

    Raises:
        GraphError, InputError, BackendUnavailable: as `convert_fp16`.
    """
    conversion = convert_fp16(model, io_dtype=io_dtype, keep=keep, last_layers=last_layers)
    for node, why in conversion.kept.items():
        warnings.warn(f"to_fp16: {node} stays in float32: {why}", stacklevel=2)
    return conversion.model


def convert_fp16(
    model: ModelProto,
    *,
    io_dtype: str | Mapping[str, str] = "float32",
    keep: Collection[str] = (),
    last_layers: str = "float32",
) -> Fp16Conversion:
    """Rewrites a strongly typed graph in half precision.

    The network, that is every node that a learned layer (Conv, Gemm, MatMul) is or depends on, computes in float16. The
    last layers, which make the raw maps (about 1% of the work), stay in float32: a logit of 10 is good to 0.004 only in
    float16, which is 0.8 px in a wide distribution at stride 32. So do the decode tail behind them (softmax, DFL, grid,
    sigmoid), shape arithmetic, scales of Resize, sums and norms, subgraphs, and whatever ONNX does not define in
    float16. Casts stand where the two meet, one per tensor. Nodes of the domain `dhead` answer in float32.

    Args:
        model: any ONNX model, opset 11 or later; it is not changed.
        io_dtype: "float32": inputs and outputs keep their types. "float16": inputs of the network and the raw maps are
            float16, and the last layers with them; boxes and scores of a decode stay float32, for float16 holds pixels
            beyond 1024 to 1 px only. A mapping from input and output names to either decides one by one.
        keep: names or operator types of nodes that stay in float32.
        last_layers: "float16" to convert them too: fewer and smaller casts, and raw maps in float16 for a `dhead` node.

    Returns:
        A graph that passes the ONNX checker, and what was done.

    Raises:
        GraphError: the graph holds no layer, or is not valid.
        InputError: io_dtype or keep does not fit the graph.
        BackendUnavailable: the onnx package is not installed.
    """
    onnx = import_onnx()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    hoist_constants(onnx, copy.graph)
    del copy.graph.value_info[:]
    try:
        view = GraphView(onnx, copy)
    except Exception as e:  # onnx.shape_inference.InferenceError and the like
        raise GraphError("The types of this graph cannot be inferred", received=_line(e), expected="valid ONNX") from e
    if not view.network:
        raise GraphError(
            "The graph has nothing to convert: no layer depends on its inputs",
            received=f"{len(view.nodes)} nodes",
            expected="a Conv, Gemm or MatMul",
        )
    if last_layers not in ("float32", "float16"):
        raise InputError("last_layers is not a type", received=repr(last_layers), expected="'float32' or 'float16'")
    io = _io(copy, view, io_dtype)
    raw = set[int]().union(*(view.raw_path(o.name) for o in copy.graph.output if io.get(o.name) == HALF))
    kept = _kept(view, keep) | (view.last - raw if last_layers == "float32" else set())
    work = _Rewrite(onnx, copy, view, io, kept, view.network | raw)
    work.run()
    return work.finish()


def _io(model: Any, view: GraphView, io_dtype: str | Mapping[str, str]) -> dict[str, int | None]:
    """Wanted type of every float32 input and output; None: as the network makes or takes it."""
    floats = [v.name for v in (*model.graph.input, *model.graph.output) if view.types.get(v.name) == FLOAT]
    kinds = {"float32": FLOAT, "float16": HALF}
    chosen = dict.fromkeys(floats, io_dtype) if isinstance(io_dtype, str) else dict(io_dtype)
    for name, kind in chosen.items():
        if kind not in kinds or name not in floats:
            raise InputError(
                "io_dtype does not fit the graph",
                received=f"{kind!r} for {name!r}",
                expected=f"'float32' or 'float16', or a mapping to these of the float32 tensors {floats}",
            )
    if isinstance(io_dtype, str):
        return {name: FLOAT if io_dtype == "float32" else HALF if view.raw_path(name) else None for name in floats}
    return {name: kinds[chosen.get(name, "float32")] for name in floats}


def _kept(view: GraphView, keep: Collection[str]) -> set[int]:
    names = {keep} if isinstance(keep, str) else set(keep)
    found = {i for i, n in enumerate(view.nodes) if n.name in names or n.op_type in names}
    unknown = names - {n.name for n in view.nodes} - {n.op_type for n in view.nodes}
    if unknown:
        raise InputError(
            "keep names no node of the graph", received=sorted(unknown), expected="node names or operator types"
        )
    return found


class _Rewrite:
    """The pass over one graph: decides per node, then rewires."""

    def __init__(
        self, onnx: Any, model: Any, view: GraphView, io: dict[str, int | None], keep: set[int], network: set[int]
    ) -> None:
        self.onnx, self.model, self.view, self.io, self.keep, self.network = onnx, model, view, io, keep, network
        self.opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
        self.names = Names(view, model.graph)
        self.now: dict[str, int] = {}  # tensor → its type after the pass, where it was float32
        self.casted: dict[tuple[str, int], str] = {}
        self.halves: dict[str, str] = {}  # initializer → name of its float16 form
        self.out: list[Any] = []
        self.why: dict[str, str] = {}
        self.flushed: dict[str, int] = {}
        self.half_nodes = 0
        self.added = 0

    # -- decisions --

    def run(self) -> None:
        """Walks the nodes in order and writes the new ones to `out`."""
        feeds = {name for i in self.network for name in self.view.inputs[i]}
        for value in self.model.graph.input:
            if value.name in self.io:
                wanted = self.io[value.name] or (HALF if value.name in feeds else FLOAT)
                self.now[value.name] = wanted
                value.type.tensor_type.elem_type = wanted
        for i, node in enumerate(self.view.nodes):
            slots = self._half_slots(i)
            if slots is not None:
                self.half_nodes += 1
            self._rewire(node, slots)

    def _half_slots(self, index: int) -> tuple[set[int], set[int]] | None:
        """Inputs and outputs of a node that become float16, or None where it stays in float32."""
        node = self.view.nodes[index]
        if node.op_type in _QDQ:
            return self._qdq_slots(index)
        layout = node.op_type in LAYOUT and index in self.view.data and self._data_inputs_are_half(index)
        if (index not in self.network and not layout) or index in self.keep or node.op_type in _SUMS:
            return None
        if list(subgraphs(node)) or any(a.name == "dtype" for a in node.attribute):
            return None
        schema = self._schema(node)
        if schema is None:
            return None
        slots = _slots(node, schema)
        if slots is None or not any(self._was_float(n) for n in (*node.input, *node.output)):
            return None
        spoiled = None if node.op_type == "Clip" else self._spoiled(node, slots[0])
        if spoiled:
            self.why[node.name or node.output[0]] = spoiled
            return None
        return slots

    def _qdq_slots(self, index: int) -> tuple[set[int], set[int]] | None:
        """A quantizer reads what there is; a dequantizer (of weights too) gives float16 to what computes in it."""
        node = self.view.nodes[index]
        if self.opsets.get("ai.onnx", 1) < 19 or self._spoiled(node, {1}):
            return None
        if node.op_type == "QuantizeLinear":
            return ({0, 1}, set()) if self.now.get(node.input[0]) == HALF else None
        readers = [i for i, names in enumerate(self.view.inputs) if node.output[0] in names]
        return ({1}, {0}) if any(i in self.network and i not in self.keep for i in readers) else None

    def _data_inputs_are_half(self, index: int) -> bool:
        floats = [n for n in self.view.nodes[index].input if self._was_float(n)]
        return bool(floats) and all(self.now.get(n) == HALF and n not in self.view.initializers for n in floats)

    def _was_float(self, name: str) -> bool:
        return bool(name) and self.view.types.get(name) == FLOAT

    def _schema(self, node: Any) -> Any:
        domain = node.domain or "ai.onnx"
        try:
            return self.onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), node.domain)
        except self.onnx.defs.SchemaError:
            return None

    def _spoiled(self, node: Any, slots: set[int]) -> str | None:
        """Why the constants of a node do not survive float16, if they do not."""
        for k in slots:
            tensor = self.view.initializers.get(node.input[k]) if k < len(node.input) else None
            if tensor is None or tensor.data_type != FLOAT:
                continue
            values = self.onnx.numpy_helper.to_array(tensor).astype(np.float64)
            finite = values[np.isfinite(values)]
            with np.errstate(over="ignore"):
                half = finite.astype(np.float16).astype(np.float64)
            if not np.isfinite(half).all():
                return f"{tensor.name} reaches {np.abs(finite).max():.3g}, beyond the largest float16, 65504"
            error, norm = np.linalg.norm(half - finite), np.linalg.norm(finite)
            if error > MAX_WEIGHT_ERROR * norm:
                return f"{tensor.name} would lose {error / norm:.1%} of itself: its values are too small for float16"
        return None

    # -- rewiring --

    def _rewire(self, node: Any, slots: tuple[set[int], set[int]] | None) -> None:
        made = self.onnx.NodeProto()
        made.CopyFrom(node)
        as_they_are = node.op_type in ("Cast", "Shape", "Size") or (node.domain == DHEAD and self._maps_are_half(node))
        for k, name in enumerate(node.input):
            if not self._was_float(name):
                continue
            if as_they_are and self.now.get(name) == HALF:
                continue
            wanted = HALF if slots is not None and k in slots[0] and node.op_type != "Cast" else FLOAT
            made.input[k] = self._as(name, wanted)
        renamed = {n: self._as(n, FLOAT) for n in captured_names(node) if self._was_float(n)}
        for graph in subgraphs(made):
            _rename_captured(graph, {a: b for a, b in renamed.items() if a != b})
        for k, name in enumerate(node.output):
            if self._was_float(name):
                self.now[name] = HALF if slots is not None and k in slots[1] else FLOAT
        if node.op_type == "Cast" and slots is not None and self._was_float(node.output[0]):
            next(a for a in made.attribute if a.name == "to").i = HALF
        self.out.append(made)

    def _maps_are_half(self, node: Any) -> bool:
        """All raw maps of a dhead node come in float16; `thresholds` comes from outside and is float32 anyway."""
        made = [n for n in node.input if self._was_float(n) and n in self.view.producer]
        return bool(made) and all(self.now.get(n) == HALF for n in made)

    def _as(self, name: str, wanted: int) -> str:
        """The name under which a float tensor can be had in the wanted type."""
        if name in self.view.initializers:
            return name if wanted == FLOAT else self._half_initializer(name)
        if self.now.get(name, FLOAT) == wanted:
            return name
        key = (name, wanted)
        if key not in self.casted:
            self.casted[key] = self.names.unique(f"{name}_{'fp16' if wanted == HALF else 'fp32'}")
            self._cast(name, self.casted[key], wanted)
        return self.casted[key]

    def _half_initializer(self, name: str) -> str:
        if name not in self.halves:
            tensor = self.view.initializers[name]
            values = self.onnx.numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            lost = int(((half == 0) & (values != 0)).sum())
            if lost:
                self.flushed[name] = lost
            self.halves[name] = self.names.unique(f"{name}_fp16")
            self.model.graph.initializer.append(self.onnx.numpy_helper.from_array(half, self.halves[name]))
        return self.halves[name]

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.added += 1
        self.out.append(
            self.onnx.helper.make_node("Cast", [source], [target], name=self.names.unique(f"Cast_{target}"), to=kind)
        )

    # -- the result --

    def finish(self) -> Fp16Conversion:
        """Outputs, unused tensors, shapes, and the check."""
        graph, onnx = self.model.graph, self.onnx
        for value in graph.output:
            if value.name not in self.io:
                continue
            have = self.now.get(value.name, FLOAT)
            wanted = self.io[value.name] or have
            value.type.tensor_type.elem_type = wanted
            if have != wanted:
                inner = self.names.unique(f"{value.name}_{'fp16' if have == HALF else 'fp32'}")
                for node in self.out:
                    _rename(node, {value.name: inner})
                self._cast(inner, value.name, wanted)
        _drop_casts(self.out, self.now, self.view, {o.name for o in graph.output})
        del graph.node[:]
        graph.node.extend(self.out)
        drop_unused(graph)
        _set_metadata(self.model, "dhead_precision", "fp16")
        try:
            model = onnx.shape_inference.infer_shapes(self.model)
            onnx.checker.check_model(model, full_check=True)
        except Exception as e:  # a bug of this pass, or a graph that was not valid before
            raise GraphError(
                "The graph in float16 is not valid ONNX",
                received=_line(e),
                fix="Check the original with onnx.checker; if it is valid, name the node in keep=",
            ) from e
        return Fp16Conversion(
            model, self.half_nodes, len(self.view.nodes) - self.half_nodes, self.added, self.why, self.flushed
        )


def _slots(node: Any, schema: Any) -> tuple[set[int], set[int]] | None:
    """Inputs and outputs that may become float16 together: those of the types that the result has."""
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}

    def formal(k: int, formals: Any) -> str:
        return str(formals[min(k, len(formals) - 1)].type_str)

    inputs = [formal(k, schema.inputs) for k in range(len(node.input))]
    outputs = [formal(k, schema.outputs) for k in range(len(node.output))]
    if any("seq(" in t or "optional(" in t for name in outputs for t in allowed.get(name, {name})):
        return None
    primary = {*outputs, *(inputs if node.op_type in _ALL_ALIKE else inputs[:1])}
    able = {name for name in primary if "tensor(float16)" in allowed.get(name, ())}
    ins, outs = ({k for k, name in enumerate(names) if name in able} for names in (inputs, outputs))
    return (ins, outs) if ins and outs else None


def _drop_casts(nodes: list[Any], now: Mapping[str, int], view: GraphView, outputs: set[str]) -> None:
    """Removes casts that the pass made idle: float16 to float16."""
    alias: dict[str, str] = {}
    kept = []
    for node in nodes:
        _rename(node, alias)
        source = node.input[0] if node.op_type == "Cast" else None
        if source is not None and node.output[0] not in outputs and node.output[0] in view.types:
            have = now.get(source, view.types.get(source))
            if have == next(a.i for a in node.attribute if a.name == "to"):
                alias[node.output[0]] = source
                continue
        kept.append(node)
    nodes[:] = kept


def _rename(node: Any, names: Mapping[str, str]) -> None:
    if names:
        for field_ in (node.input, node.output):
            for k, name in enumerate(field_):
                field_[k] = names.get(name, name)
        for graph in subgraphs(node):
            _rename_captured(graph, names)


def _rename_captured(graph: Any, names: Mapping[str, str]) -> None:
    """Renames what a subgraph takes from outside."""
    inside = {t.name for t in graph.initializer} | {i.name for i in graph.input}
    for node in graph.node:
        outer = {a: b for a, b in names.items() if a not in inside}
        for k, name in enumerate(node.input):
            node.input[k] = outer.get(name, name)
        for inner in subgraphs(node):
            _rename_captured(inner, outer)
        inside.update(node.output)
    for out in graph.output:  # it may hand an outer tensor through
        if out.name not in inside:
            out.name = names.get(out.name, out.name)


def _set_metadata(model: Any, key: str, value: str) -> None:
    entry = next((p for p in model.metadata_props if p.key == key), None) or model.metadata_props.add(key=key)
    entry.value = value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
