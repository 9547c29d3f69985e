"""Newer operator sets for older graphs: what Q/DQ needs (13: per-channel scales; 19: scales in float16)."""

from __future__ import annotations

from typing import Any

from ..errors import GraphError
from .layers import import_onnx

__all__ = ["opset_of", "upgrade"]


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators that a graph uses."""
    return max((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def upgrade(model: Any, least: int) -> Any:
    """The graph at opset `least` or later; the same graph where it is there already.

    Operators whose definition did not change in between are left as they are; for others ONNX's own converter is used.
    Node names, metadata and custom domains are kept.

    Raises:
        GraphError: an operator cannot be converted.
    """
    have = opset_of(model)
    if have >= least:
        return model
    onnx = import_onnx()
    others = [o for o in model.opset_import if o.domain not in ("", "ai.onnx")]
    try:
        made = onnx.version_converter.convert_version(model, least)
    except Exception as e:  # the converter's errors share no base class
        raise GraphError(
            f"The graph cannot be brought from opset {have} to {least}, which int8 needs",
            received=" ".join(str(e).split())[:300],
            fix=f"Export it again with opset={least} or later",
        ) from e
    for o in others:
        if not any(m.domain == o.domain for m in made.opset_import):
            made.opset_import.append(o)
    del made.metadata_props[:]
    made.metadata_props.extend(model.metadata_props)
    return made
