"""The exported graph: traced, tidied, described, checked."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import GraphError
from ..spec import HeadSpec
from .inputs import Inputs

if TYPE_CHECKING:
    import torch

__all__ = ["check", "describe_outputs", "dynamic_axes", "tidy", "trace", "wrapper_of", "write_metadata"]


def wrapper_of(torch: Any, model: Any, spec: HeadSpec, inputs: Inputs, form: str, shapes: Any) -> Any:
    """The module that is traced: tensors in, tensors out."""
    from ..heads.decoded import LevelGrid, decode_maps

    device = inputs.example[0].device
    grids = None
    if shapes is not None:
        grids = [LevelGrid.of(h, w, s, device) for (h, w), s in zip(shapes, spec.strides, strict=True)]

    class Graph(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.spec = model, spec

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            maps = self.model.raw(inputs.wrap(tensors))
            if form == "raw":
                return tuple(maps[name] for name in spec.input_names)
            return decode_maps(maps, spec, grids if torch.jit.is_tracing() else None)

    return Graph().eval()


def dynamic_axes(
    spec: HeadSpec, inputs: Sequence[str], outputs: Sequence[str], form: str, batch: bool, size: bool
) -> dict[str, dict[int, str]]:
    axes: dict[str, dict[int, str]] = {name: {} for name in (*inputs, *outputs)}
    for name, dims in axes.items():
        if batch:
            dims[0] = "batch"
        if size and name in inputs:
            suffix = "" if name == "images" else f"_{inputs.index(name)}"
            dims |= {2: f"height{suffix}", 3: f"width{suffix}"}
        elif size and form == "native":
            dims[1] = "anchors"
        elif size:
            prefix = "map_" if "images" in inputs else ""
            dims |= {2: f"{prefix}height_{name[4:]}", 3: f"{prefix}width_{name[4:]}"}
    return {name: dims for name, dims in axes.items() if dims}


def trace(torch: Any, onnx: Any, wrapper: Any, inputs: Inputs, outputs: Sequence[str], axes: Any, opset: int) -> Any:
    """Runs the TorchScript exporter: it writes compact graphs, and needs no further package from torch 2.4 to 2.13."""
    options: dict[str, Any] = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing and deprecation: the graph is verified, not trusted
            torch.onnx.export(
                wrapper,
                inputs.example,
                buffer,
                input_names=list(inputs.names),
                output_names=list(outputs),
                dynamic_axes=axes,
                opset_version=opset,
                do_constant_folding=True,
                **options,
            )
    except Exception as e:  # torch raises a dozen kinds, and the model's own
        raise GraphError(
            "torch cannot export the model",
            received=f"{type(e).__name__}: {' '.join(str(e).split())[:300]}",
            expected="operators that ONNX has",
            fix="Replace the operator that is named, or export with another opset",
        ) from e
    return onnx.load_model_from_string(buffer.getvalue())


def tidy(onnx: Any, proto: Any) -> None:
    """Constants become initializers; Identity nodes, casts to the same type, and what nothing uses go away."""
    graph = proto.graph
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in graph.input}
    alias: dict[str, str] = {}
    outputs = {o.name for o in graph.output}
    kept = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = alias.get(name, name)
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        elif _does_nothing(node, types) and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    live, used = [], set(outputs)
    for node in reversed(kept):
        if used.intersection(node.output):
            live.append(node)
            used.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(live))
    initializers = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    del graph.value_info[:]


def _does_nothing(node: Any, types: Mapping[str, int]) -> bool:
    if node.op_type != "Cast":
        return bool(node.op_type == "Identity")
    return bool(types.get(node.input[0]) == next(a.i for a in node.attribute if a.name == "to"))


def describe_outputs(proto: Any, spec: HeadSpec, form: str, shapes: Any, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Writes the shapes of the outputs, which the exporter cannot tell."""
    anchors = sum(h * w for h, w in shapes) if shapes else 0
    for out in proto.graph.output:
        dims = out.type.tensor_type.shape.dim
        if form == "native":
            wanted = [None, anchors, 4 if out.name == "boxes" else spec.num_classes]
        else:
            wanted = [None, spec.channels(out.name), *(shapes[int(out.name[4:])] if shapes else (0, 0))]
        for axis, (dim, value) in enumerate(zip(dims, wanted, strict=True)):
            label = axes.get(out.name, {}).get(axis)
            if label is not None:
                dim.dim_param = label
            elif value is not None:
                dim.dim_value = value


def write_metadata(proto: Any, spec: HeadSpec) -> None:
    entries = {"dhead_spec": spec.to_json(), "task": "detect", "stride": str(max(spec.strides))}
    if spec.names:
        entries["names"] = repr(dict(enumerate(spec.names)))
    if spec.image_size:
        entries["imgsz"] = str(list(spec.image_size))
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)


def check(onnx: Any, proto: Any) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as e:  # onnx.checker.ValidationError and the shape inference's own
        raise GraphError(
            "The exported graph is not valid", received=" ".join(str(e).split())[:300], expected="valid ONNX"
        ) from e
