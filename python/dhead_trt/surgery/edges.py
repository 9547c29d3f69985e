"""GraphSurgeon in and out, without losing what GraphSurgeon drops."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .load import require

__all__ = ["constant", "export_graph", "import_graph", "producer"]

_TRANSPARENT = ("Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose")


def import_graph(model: Any) -> Any:
    """onnx.ModelProto → onnx_graphsurgeon.Graph; the model is not changed by edits of the graph."""
    gs = require("onnx_graphsurgeon")
    with _quiet():
        return gs.import_onnx(model)


def export_graph(graph: Any, original: Any) -> Any:
    """onnx_graphsurgeon.Graph → onnx.ModelProto, pruned (of unused inputs too) and sorted.

    What GraphSurgeon leaves out is copied back from `original`: metadata, document strings, IR version, producer,
    quantization annotations, node metadata.
    """
    gs = require("onnx_graphsurgeon")
    with _quiet():
        graph.cleanup(remove_unused_graph_inputs=True).toposort()
        model = gs.export_onnx(graph)
    model.ir_version = original.ir_version
    if model.ir_version < 4:  # initializers were inputs too
        have = {value.name for value in model.graph.input}
        model.graph.input.extend(v for v in original.graph.input if v.name in _weights(model) and v.name not in have)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(model, field, getattr(original, field))
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    model.graph.doc_string = original.graph.doc_string
    kept = {name for node in model.graph.node for name in node.output} | _weights(model)
    del model.graph.quantization_annotation[:]
    model.graph.quantization_annotation.extend(
        q for q in original.graph.quantization_annotation if q.tensor_name in kept
    )
    before = {node.output[0]: node for node in original.graph.node if node.output}
    for node in model.graph.node:
        source = before.get(node.output[0]) if node.output else None
        if source is not None and source.op_type == node.op_type:
            node.doc_string = source.doc_string
            if hasattr(source, "metadata_props"):
                node.metadata_props.extend(source.metadata_props)
    used = {node.domain for node in _nodes(model.graph)} | {"", "ai.onnx"}
    opsets = [o for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


def _quiet() -> Any:
    """GraphSurgeon writes its warnings to stdout, where the command line writes JSON."""
    logger = require("onnx_graphsurgeon.logger").G_LOGGER
    return logger.suppress(severity=logger.ERROR)


def _weights(model: Any) -> set[str]:
    return {t.name for t in model.graph.initializer}


def _nodes(graph: Any) -> list[Any]:
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            found += _nodes(attribute.g) if attribute.HasField("g") else []
    return found


def producer(tensor: Any) -> Any:
    """The node that makes this tensor, or None for constants and graph inputs."""
    return tensor.inputs[0] if tensor.inputs else None


def constant(tensor: Any) -> npt.NDArray[Any] | None:
    """Value of a tensor that is constant in the graph (directly, by a Constant node, or cast and reshaped), else None.

    The elements are right; after a reshape in between, their shape may not be.
    """
    gs = require("onnx_graphsurgeon")
    for _ in range(16):
        if isinstance(tensor, gs.Constant):
            return np.asarray(tensor.values)
        node = producer(tensor)
        if node is None:
            return None
        if node.op == "Constant":
            value = next(iter(node.attrs.values()), None)
            return np.asarray(value.values if isinstance(value, gs.Constant) else value)
        if node.op not in _TRANSPARENT:
            return None
        tensor = node.inputs[0]
    return None
