"""convert: the four forms of a graph.

`raw` ends at the raw maps. `decoded` and `detections` end in one node of ONNX domain "dhead" (version 1), which
TensorRT resolves to a plugin of the same name, version "1", empty namespace. Its inputs are the raw maps in the order
of `HeadSpec.input_names` (box_0, cls_0, box_1, cls_1, …, then obj_0, …), all float32 or all float16.

DHeadDecode → boxes [B, A, 4] float32 xyxy, scores [B, A, C] float32
DHeadDetect → num_dets [B, 1] int32, det_boxes [B, max_det, 4] float32, det_scores [B, max_det] float32,
              det_classes [B, max_det] int32; an optional last input `thresholds` [2] float32 = (conf, iou)

Attributes (both nodes):
    num_classes     int     C
    bins            int     1 = distances without DFL
    strides         ints    one per level
    pixel_distance  int     0: distances are in strides, 1: in pixels
    objectness      int     0 or 1
    plugin_version  string  "1"
    plugin_namespace string ""
DHeadDetect only:
    conf            float   keep where score > conf (read from `thresholds` where that input is present)
    iou             float   suppress where IoU > iou (the same)
    max_candidates  int     best candidates that enter NMS, per image
    max_det         int     K
    class_agnostic  int     0 or 1
    multi_label     int     0 or 1
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import numpy as np

from ..errors import GraphError, InputError
from ..spec import HeadSpec
from .edges import export_graph, import_graph
from .load import load_model, require
from .metadata import FORM_KEY, SPEC_KEY, write_metadata
from .run import DOMAIN, graph_inputs
from .tail import Form, Tail, find_tail
from .verify import verify_cut, verify_same

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True)
class Conversion:
    """What `convert` made.

    Attributes:
        model: onnx.ModelProto of the form asked for.
        spec: the head's HeadSpec, also in the metadata of `model`.
        form: the form of `model`.
        source_form: the form of the graph given.
        report: {"verified", "checks", "max_box_error_px", "max_score_error", "sources", …}, plain JSON types.
    """

    model: Any
    spec: HeadSpec
    form: Form
    source_form: Form
    report: Mapping[str, Any] = field(default_factory=dict)


def convert(
    model: str | os.PathLike[str] | bytes | Any,
    form: Form = "raw",
    *,
    spec: HeadSpec | None = None,
    verify: bool = True,
    conf: float = 0.25,
    iou: float = 0.7,
    max_det: int = 300,
    max_candidates: int = 4096,
    class_agnostic: bool = False,
    multi_label: bool = False,
    dynamic_thresholds: bool = False,
) -> Conversion:
    """Converts a detector's graph into another form; the model given is not changed.

    Args:
        model: path, bytes or onnx.ModelProto, of any form.
        form: "native" (only checked, and given the metadata), "raw", "decoded" or "detections".
        spec: what the caller knows about the head; must agree with the graph.
        verify: compare the cut with the original in ONNX Runtime. Leave it on.
        conf, iou, max_det, max_candidates, class_agnostic, multi_label: attributes of DHeadDetect.
        dynamic_thresholds: give DHeadDetect the graph input `thresholds` [2] float32 (conf, iou).

    Raises:
        GraphError: not a supported detector, contradictory, or the cut does not verify.
        InputError: an option is out of range.
        BackendUnavailable: onnx, onnx-graphsurgeon or onnxruntime is missing.
    """
    options = _options(form, conf, iou, max_det, max_candidates, class_agnostic, multi_label, dynamic_thresholds)
    source = load_model(model)
    tail = find_tail(source, spec=spec)
    if form == "native" and tail.kind != "native":
        raise GraphError(
            "The native form cannot be made again from a cut graph",
            received=f"a graph of form {tail.kind}",
            fix="Convert from the original export",
        )
    raw = _cut(source, tail)
    checks = _verified(source, raw, tail) if verify else []
    if form == "native":
        result = type(source)()
        result.CopyFrom(source)
    elif form == "raw":
        result = raw
    else:
        result = _with_node(raw, tail, form, options)
    write_metadata(result, **{SPEC_KEY: tail.spec.to_json(), FORM_KEY: form})
    return Conversion(result, tail.spec, form, tail.kind, _report(tail, checks, verify))


def _options(
    form: str, conf: float, iou: float, max_det: int, max_candidates: int, agnostic: bool, multi: bool, dynamic: bool
) -> dict[str, Any]:
    if form not in get_args(Form):
        raise InputError("The form is not known", received=repr(form), expected=" or ".join(map(repr, get_args(Form))))
    for name, value in (("conf", conf), ("iou", iou)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise InputError(f"{name} is out of range", received=repr(value), expected="a number from 0 to 1")
    for name, count in (("max_det", max_det), ("max_candidates", max_candidates)):
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1 << 20:
            raise InputError(
                f"{name} is out of range", received=repr(count), expected=f"an integer from 1 to {1 << 20}"
            )
    if dynamic and form != "detections":
        raise InputError("dynamic_thresholds needs form 'detections'", received=repr(form))
    return {
        "conf": float(conf), "iou": float(iou), "max_candidates": max_candidates, "max_det": max_det,
        "class_agnostic": int(agnostic), "multi_label": int(multi), "dynamic_thresholds": dynamic,
    }  # fmt: skip


def _verified(source: Any, raw: Any, tail: Tail) -> list[dict[str, Any]]:
    if tail.kind == "native":
        return verify_cut(source, raw, tail)
    return verify_same(source, raw, tail, {tensor: name for name, tensor in tail.maps.items()})


def _cut(source: Any, tail: Tail) -> Any:
    """The graph up to the raw maps, which become its outputs under their contract names."""
    graph = import_graph(source)
    tensors = graph.tensors()
    maps = {name: tensors[tensor] for name, tensor in tail.maps.items()}
    taken = set(tensors)
    for name in maps:
        other = tensors.get(name)
        if other is not None and other is not maps[name]:
            if other in graph.inputs:
                raise GraphError("A graph input has the name of a raw map", received=name, fix="Rename the input")
            fresh = next(n for i in range(len(taken) + 1) if (n := f"{name}_inner{i}") not in taken)
            taken.add(fresh)
            other.name = fresh
    shapes = _map_shapes(source, tail)
    for name, tensor in maps.items():
        tensor.name = name
        tensor.dtype, tensor.shape = shapes[name]
    graph.outputs = [maps[name] for name in tail.spec.input_names]
    raw = export_graph(graph, source)
    write_metadata(raw, **{SPEC_KEY: tail.spec.to_json(), FORM_KEY: "raw"})
    return raw


def _map_shapes(source: Any, tail: Tail) -> dict[str, tuple[Any, list[int | str]]]:
    """dtype and shape of each raw map: numbers where the input fixes them, else symbols."""
    inputs = graph_inputs(source)
    batch: int | str = next((i.symbols[0] or "batch" for i in inputs if i.dynamic_batch), 0)
    free = any(i.dynamic_size for i in inputs)
    shapes: dict[str, tuple[Any, list[int | str]]] = {}
    for name, shape in tail.map_shapes.items():
        level = name.split("_")[1]
        size: list[int | str] = [f"height_{level}", f"width_{level}"] if free else list(shape[2:])
        shapes[name] = (np.dtype(tail.map_dtypes[name]).type, [batch or shape[0], shape[1], *size])
    return shapes


def _with_node(raw: Any, tail: Tail, form: Form, options: dict[str, Any]) -> Any:
    gs = require("onnx_graphsurgeon")
    spec = tail.spec
    graph = import_graph(raw)
    maps = list(graph.outputs)
    batch = maps[0].shape[0]
    cells = [t.shape[2:] for t in maps[: 2 * spec.num_levels : 2]]
    fixed = all(isinstance(v, int) for size in cells for v in size)
    anchors: int | str = sum(math.prod(cast("list[int]", size)) for size in cells) if fixed else "anchors"
    attrs: dict[str, Any] = {
        "num_classes": spec.num_classes, "bins": spec.bins, "strides": list(spec.strides),
        "pixel_distance": int(spec.distance_unit == "pixel"), "objectness": int(spec.objectness),
        "plugin_version": "1", "plugin_namespace": "",
    }  # fmt: skip
    if form == "decoded":
        op, shapes = "DHeadDecode", {"boxes": [batch, anchors, 4], "scores": [batch, anchors, spec.num_classes]}
    else:
        keep = options["max_det"]
        op, shapes = "DHeadDetect", {
            "num_dets": [batch, 1], "det_boxes": [batch, keep, 4],
            "det_scores": [batch, keep], "det_classes": [batch, keep],
        }  # fmt: skip
        attrs |= {k: v for k, v in options.items() if k != "dynamic_thresholds"}
        if options["dynamic_thresholds"]:
            thresholds = gs.Variable("thresholds", dtype=np.float32, shape=[2])
            graph.inputs.append(thresholds)
            maps.append(thresholds)
    taken = set(graph.tensors())
    clash = sorted(
        taken & (set(shapes) | ({"thresholds"} if len(maps) > len(spec.input_names) else set())) - {"thresholds"}
    )
    if clash:
        _rename(graph, clash, taken)
    outputs = [
        gs.Variable(name, dtype=np.int32 if name in ("num_dets", "det_classes") else np.float32, shape=shape)
        for name, shape in shapes.items()
    ]
    graph.nodes.append(gs.Node(op, name=op, attrs=attrs, inputs=maps, outputs=outputs, domain=DOMAIN))
    graph.outputs = outputs
    return export_graph(graph, raw)


def _rename(graph: Any, names: list[str], taken: set[str]) -> None:
    tensors = graph.tensors()
    for name in names:
        fresh = next(n for i in range(len(taken) + 1) if (n := f"{name}_inner{i}") not in taken)
        taken.add(fresh)
        tensors[name].name = fresh


def _report(tail: Tail, checks: list[dict[str, Any]], verify: bool) -> dict[str, Any]:
    return {
        "verified": verify,
        "checks": checks,
        "max_box_error_px": max((c["max_box_error_px"] for c in checks if "max_box_error_px" in c), default=None),
        "max_score_error": max((c["max_score_error"] for c in checks if "max_score_error" in c), default=None),
        "sources": dict(tail.sources),
        "box_format": tail.box_format,
        "map_dtype": tail.map_dtypes["box_0"],
        "maps": dict(tail.maps),
    }
