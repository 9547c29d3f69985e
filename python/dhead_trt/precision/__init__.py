"""ONNX → ONNX passes that write the precision into the graph. Engines are then built strongly typed."""

from __future__ import annotations

from .fp16 import Fp16Conversion, convert_fp16, to_fp16

__all__ = ["Fp16Conversion", "convert_fp16", "to_fp16"]
