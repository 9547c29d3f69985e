"""Signed Q/DQ pairs on activations as unsigned ones: the same values, for OpenVINO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .layers import import_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["unsigned_activations"]


def unsigned_activations(model: ModelProto) -> ModelProto:
    """The graph with int8 activations of zero point 0 as uint8 of zero point 128, which round to the same values.

    OpenVINO (2026.4) gives wrong results for signed activations behind a Concat: up to 60 % off in each convolution
    that reads one. Unsigned ones it computes right. TensorRT, on the other hand, takes signed ones only. Weights stay
    int8.

    Args:
        model: any graph; one without signed Q/DQ pairs comes back as a copy.

    Raises:
        BackendUnavailable: the onnx package is not installed.
    """
    onnx = import_onnx()
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    constants = {t.name: t for t in graph.initializer}
    quantized = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    zeros: dict[str, str] = {}
    for node in graph.node:
        pair = node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in quantized)
        if not pair or len(node.input) < 3 or node.input[2] not in constants:
            continue
        zero = constants[node.input[2]]
        if zero.data_type != onnx.TensorProto.INT8:
            continue
        if zero.name not in zeros:
            values = onnx.numpy_helper.to_array(zero).astype(np.int64) + 128
            zeros[zero.name] = f"{zero.name}_unsigned"
            graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.uint8), zeros[zero.name]))
        node.input[2] = zeros[zero.name]
    types = {
        n.output[0]
        for n in graph.node
        if n.op_type == "QuantizeLinear" and n.input[2:3] and n.input[2] in zeros.values()
    }
    for value in graph.value_info:
        if value.name in types:
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [t for t in graph.initializer if t.name in used or t.name not in zeros]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return made
