"""ONNX → ONNX passes that write the precision into the graph. Engines are then built strongly typed."""

from __future__ import annotations

from .fp16 import Fp16Conversion, convert_fp16, to_fp16
from .int8 import Int8Conversion, to_int8
from .layers import Layer, activation_tensors, quantizable

__all__ = [
    "Fp16Conversion",
    "Int8Conversion",
    "Layer",
    "activation_tensors",
    "convert_fp16",
    "quantizable",
    "to_fp16",
    "to_int8",
]
