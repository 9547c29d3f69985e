"""ONNX → ONNX: find the decode tail of a detector by its edges, cut it, and put our own nodes in its place."""

from __future__ import annotations

from .describe import describe, describe_text
from .forms import Conversion, convert
from .load import load_model
from .metadata import FORM_KEY, SPEC_KEY, read_metadata, write_metadata
from .run import DOMAIN
from .tail import Form, Tail, find_tail
from .verify import verify_cut

__all__ = [
    "DOMAIN",
    "FORM_KEY",
    "SPEC_KEY",
    "Conversion",
    "Form",
    "Tail",
    "convert",
    "describe",
    "describe_text",
    "find_tail",
    "load_model",
    "read_metadata",
    "verify_cut",
    "write_metadata",
]
