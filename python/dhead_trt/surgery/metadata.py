"""ONNX metadata: what exporters write about a detector, and what dhead_trt adds."""

from __future__ import annotations

import ast
from typing import Any

from ..errors import GraphError, InputError
from ..spec import HeadSpec

__all__ = ["FORM_KEY", "SPEC_KEY", "Facts", "read_facts", "read_metadata", "write_metadata"]

SPEC_KEY = "dhead_spec"
FORM_KEY = "dhead_form"


class Facts:
    """What the metadata of a graph claim; None where they say nothing.

    Attributes:
        spec: the HeadSpec that dhead_trt wrote.
        names: class names in class order.
        stride: the largest stride (Ultralytics).
        image_size: (height, width) the graph was exported at.
        task: "detect", "segment", …
        end2end: True where the exporter says that NMS-free detections come out.
    """

    def __init__(self) -> None:
        self.spec: HeadSpec | None = None
        self.names: tuple[str, ...] | None = None
        self.stride: int | None = None
        self.image_size: tuple[int, int] | None = None
        self.task: str | None = None
        self.end2end: bool | None = None


def read_metadata(model: Any) -> dict[str, str]:
    """Metadata of an onnx.ModelProto as a dict."""
    return {p.key: p.value for p in model.metadata_props}


def write_metadata(model: Any, **values: str) -> None:
    """Sets metadata of an onnx.ModelProto, leaving the others as they are."""
    kept = [(p.key, p.value) for p in model.metadata_props if p.key not in values]
    del model.metadata_props[:]
    for key, value in [*kept, *values.items()]:
        model.metadata_props.add(key=key, value=value)


def read_facts(model: Any) -> Facts:
    """Reads Ultralytics' and our own metadata.

    Raises:
        GraphError: an entry is there but cannot be what it should be.
    """
    entries, facts = read_metadata(model), Facts()
    if SPEC_KEY in entries:
        try:
            facts.spec = HeadSpec.from_json(entries[SPEC_KEY])
        except InputError as e:
            raise GraphError(f"The metadata entry {SPEC_KEY} is damaged: {e}", fix="Export the model again") from e
    if "names" in entries:
        facts.names = _names(entries["names"])
    if "stride" in entries:
        facts.stride = _stride(entries["stride"])
    if "imgsz" in entries:
        facts.image_size = _image_size(entries["imgsz"])
    facts.task = entries.get("task")
    facts.end2end = {"True": True, "False": False}.get(entries.get("end2end", ""))
    return facts


def _literal(key: str, text: str, expected: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as e:
        raise _bad(key, text, expected) from e


def _bad(key: str, text: str, expected: str) -> GraphError:
    return GraphError(
        f"The metadata entry {key} cannot be read",
        received=repr(text[:80]),
        expected=expected,
        fix="Export the model again, or remove or repair the entry",
    )


def _names(text: str) -> tuple[str, ...]:
    expected = "a dict of class number → name, numbered 0..n-1, or a list of names"
    value = _literal("names", text, expected)
    if isinstance(value, (list, tuple)):
        return tuple(str(v) for v in value)
    if not isinstance(value, dict):
        raise _bad("names", text, expected)
    try:
        numbered = {int(k): str(v) for k, v in value.items()}  # keys may be text, and in text order: 0, 1, 10, 2
    except (ValueError, TypeError) as e:
        raise _bad("names", text, expected) from e
    if len(numbered) != len(value) or sorted(numbered) != list(range(len(numbered))):
        raise _bad("names", text, expected)
    return tuple(numbered[i] for i in range(len(numbered)))


def _stride(text: str) -> int:
    expected = "a whole number, or a list of them"
    value = _literal("stride", text, expected)
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(isinstance(v, (int, float)) and v == int(v) and v > 0 for v in values):
        raise _bad("stride", text, expected)
    return int(max(values))


def _image_size(text: str) -> tuple[int, int]:
    expected = "[height, width], or one number"
    value = _literal("imgsz", text, expected)
    values = list(value) if isinstance(value, (list, tuple)) else [value, value]
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise _bad("imgsz", text, expected)
    return values[0], values[1]
