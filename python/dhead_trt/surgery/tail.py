"""find_tail: where the raw maps of a detector's graph are, and the HeadSpec they decode by."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import GraphError
from ..spec import DistanceUnit, HeadSpec
from .edges import import_graph
from .load import load_model
from .metadata import Facts, read_facts
from .probe import BoxFormat, Measured, TailFunction, joined, measure
from .run import DOMAIN, Arrays, InputInfo, Session, graph_inputs, random_inputs, tail_session, with_outputs
from .walk import RAW_EXPORT, Walk, walk_back

__all__ = ["DOMAIN", "Form", "Tail", "find_tail", "input_sizes"]

Form = Literal["native", "raw", "decoded", "detections"]
_TASKS = {"segment": "segmentation", "pose": "pose", "obb": "oriented boxes (OBB)", "classify": "classification"}
_DEFAULT_CELLS = (3, 4)  # of the coarsest level, where the size is dynamic: not square, and quick


@dataclass(frozen=True)
class Tail:
    """The head of a graph.

    Attributes:
        spec: what the raw maps are.
        kind: the form the graph has: "native", "raw", "decoded" or "detections".
        maps: raw map name (`spec.input_names`) → tensor name in the graph.
        outputs: names of the graph's outputs.
        box_format: of a native output.
        map_dtypes: raw map name → "float32" or "float16".
        map_shapes: raw map name → shape, with an example's sizes where the graph is dynamic.
        ops: operators of a native tail, counted.
        sources: fact → where it came from, and what it was checked against.
        function: the tail as a function of its maps (native graphs).
    """

    spec: HeadSpec
    kind: Form
    maps: Mapping[str, str]
    outputs: tuple[str, ...]
    box_format: BoxFormat = "xyxy"
    map_dtypes: Mapping[str, str] = field(default_factory=dict)
    map_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ops: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    function: TailFunction | None = field(default=None, repr=False, compare=False)


def find_tail(model: str | os.PathLike[str] | bytes | Any, *, spec: HeadSpec | None = None) -> Tail:
    """Finds the raw maps of a detector and its HeadSpec, by the graph's edges and by what its tail computes.

    Bins, classes, strides, distance unit and level order are measured on the tail in ONNX Runtime and then compared
    with the DFL weight, the map sizes, the metadata and `spec`.

    Args:
        model: path, bytes or onnx.ModelProto.
        spec: what the caller knows; needed for a head without DFL that carries no "dhead_spec" metadata.

    Raises:
        GraphError: not a supported detector, or two sources contradict each other.
    """
    model = load_model(model)
    facts = read_facts(model)
    claim = _agree(spec, facts.spec) if spec and facts.spec else spec or facts.spec
    node = next(
        (n for n in model.graph.node if n.domain == DOMAIN or n.op_type in ("DHeadDecode", "DHeadDetect")), None
    )
    outputs = tuple(o.name for o in model.graph.output)
    if node is not None or (claim is not None and outputs == claim.input_names):
        return _ours(model, claim, node, outputs)
    return _native(model, claim, facts, outputs)


def _agree(given: HeadSpec, written: HeadSpec) -> HeadSpec:
    for key in ("num_classes", "strides", "bins", "distance_unit", "objectness"):
        _same(key, getattr(given, key), "the given spec", getattr(written, key), "the metadata dhead_spec")
    return given.replace(names=given.names or written.names, image_size=given.image_size or written.image_size)


def _same(fact: str, first: object, where: str, second: object, where2: str) -> None:
    if first != second:
        raise GraphError(
            f"Two sources contradict each other about {fact}",
            received=f"{first} from {where}, {second} from {where2}",
            expected="the same from both",
            fix="Find out which is right, then correct or remove the other; a graph and its metadata belong together",
        )


def _ours(model: Any, claim: HeadSpec | None, node: Any, outputs: tuple[str, ...]) -> Tail:
    if claim is None:
        raise GraphError(
            "The graph has a dhead node but not the metadata dhead_spec",
            received=f"{node.op_type} with metadata {[p.key for p in model.metadata_props]}",
            fix="Convert the original model again with dhead_trt.surgery.convert, or give spec=",
        )
    if node is None:
        maps: dict[str, str] = dict(zip(outputs, outputs, strict=True))
        kind: Form = "raw"
    else:
        kind = "decoded" if node.op_type == "DHeadDecode" else "detections"
        extra = len(node.input) - len(claim.input_names)
        if node.op_type not in ("DHeadDecode", "DHeadDetect") or extra not in (0, 1) or (extra and kind == "decoded"):
            raise GraphError(
                "The dhead node is not one that dhead_trt writes",
                received=f"{node.op_type} with {len(node.input)} inputs",
                expected=f"DHeadDecode or DHeadDetect with the inputs {', '.join(claim.input_names)}",
                fix="Convert the original model again",
            )
        maps = dict(zip(claim.input_names, node.input, strict=False))
    raw = with_outputs(model, list(maps.values())) if node is not None else model
    inputs = graph_inputs(raw)
    arrays = Session(raw).run(random_inputs(inputs, 1, input_sizes(inputs, claim, None), seed=0))
    sizes: dict[str, tuple[int, ...]] = {}
    for name, tensor in maps.items():
        shape = arrays[tensor].shape
        _same(f"the channels of {name}", shape[1:2], "the graph", (claim.channels(name),), "the metadata dhead_spec")
        _same(f"the size of level {name[4:]}", sizes.setdefault(name[4:], shape[2:]), "another map", shape[2:], name)
    return Tail(
        claim,
        kind,
        maps,
        outputs,
        map_dtypes={name: str(arrays[t].dtype) for name, t in maps.items()},
        map_shapes={name: arrays[t].shape for name, t in maps.items()},
        sources={"spec": "metadata dhead_spec"},
    )


def _native(model: Any, claim: HeadSpec | None, facts: Facts, outputs: tuple[str, ...]) -> Tail:
    _refuse_task(model, facts)
    walk = walk_back(import_graph(model))
    _refuse_outputs(model, walk)
    bins1 = claim is not None and claim.bins == 1
    if "Softmax" not in walk.ops() and not bins1:
        raise GraphError(
            "The tail has no DFL (no softmax over bins): a head with reg_max 1, as YOLO26, or not a detect head at all",
            received=f"a tail of {_ops_text(walk)} on {len(walk.frontier)} convolutions",
            expected="Softmax and a 0..bins-1 projection per box side",
            fix="A head without DFL is supported where its metadata dhead_spec (or spec=) says bins=1. " + RAW_EXPORT,
        )
    names = [t.name for t in walk.frontier]
    inputs = graph_inputs(model)
    feeds, arrays = _run_somewhere(Session(with_outputs(model, [*names, *outputs])), inputs, claim, facts)
    anchors = joined(arrays, outputs, None).shape[2]
    arrays = {name: arrays[name] for name in names}
    _refuse_shapes(arrays, anchors)
    function = tail_function(model, arrays, feeds, outputs)
    seen = measure(function)
    maps: dict[str, str] = {}
    for i, level in enumerate(seen.levels):
        maps |= {f"box_{i}": level.box, f"cls_{i}": level.cls} | ({f"obj_{i}": level.obj} if level.obj else {})
    spec, sources = _reconcile(seen, walk, claim, facts, inputs, feeds)
    maps = {name: maps[name] for name in spec.input_names}
    dtypes = {name: str(arrays[t].dtype) for name, t in maps.items()}
    if set(dtypes.values()) not in ({"float32"}, {"float16"}):
        raise GraphError("The raw maps are of other or mixed types", received=dtypes, expected="float32, or float16")
    shapes = {name: arrays[t].shape for name, t in maps.items()}
    return Tail(spec, "native", maps, outputs, seen.box_format, dtypes, shapes, walk.ops(), sources, function)


def _run_somewhere(
    session: Session, inputs: list[InputInfo], claim: HeadSpec | None, facts: Facts
) -> tuple[Arrays, Arrays]:
    """Runs the graph at a size it takes: where nothing tells the largest stride of a dynamic graph, some are tried."""
    known = claim is not None or facts.stride is not None or not any(i.dynamic_size for i in inputs)
    for stride in (64, 128, None):
        feeds = random_inputs(inputs, 1, input_sizes(inputs, claim, facts, stride=None if known else stride), seed=0)
        try:
            return feeds, session.run(feeds)
        except GraphError:
            if known or stride is None:
                raise
    raise AssertionError("unreachable")


def tail_function(model: Any, arrays: Arrays, feeds: Arrays, outputs: tuple[str, ...]) -> TailFunction:
    """The tail above the tensors in `arrays` (name → a value of the right shape and dtype) as a function."""
    dtypes = {name: str(a.dtype) for name, a in arrays.items()}
    shapes = {name: tuple(a.shape) for name, a in arrays.items()}
    return TailFunction(tail_session(model, dtypes), feeds, shapes, dtypes, outputs)


def input_sizes(
    inputs: list[InputInfo], claim: HeadSpec | None, facts: Facts | None, grow: int = 0, stride: int | None = None
) -> dict[str, tuple[int, int]]:
    """A (height, width) for the dynamic sides of every input; `grow` > 0 gives another, wider one."""
    stride = stride or (max(claim.strides) if claim else (facts.stride if facts and facts.stride else 32))
    cells = (_DEFAULT_CELLS[0] + grow, _DEFAULT_CELLS[1] + 2 * grow)
    features = (
        claim is not None
        and len(inputs) == claim.num_levels
        and (len(inputs) > 1 or (inputs[0].dims[1:2] or (0,))[0] not in (1, 3, 4))
    )
    sizes = {}
    for i, info in enumerate(inputs):
        cell = stride // claim.strides[i] if features and claim else stride
        sizes[info.name] = (cells[0] * cell, cells[1] * cell)
    return sizes


def _refuse_task(model: Any, facts: Facts) -> None:
    if facts.task in _TASKS:
        raise GraphError(
            f"This is a {_TASKS[facts.task]} model, by its metadata",
            received=f"task {facts.task!r} with outputs {[o.name for o in model.graph.output]}",
            expected="task 'detect'",
            fix=RAW_EXPORT,
        )


def _refuse_outputs(model: Any, walk: Walk) -> None:
    shapes = {
        o.name: [d.dim_value or d.dim_param or "?" for d in o.type.tensor_type.shape.dim] for o in model.graph.output
    }
    ranks = [len(s) for s in shapes.values()]
    if len(ranks) > 2 or 4 in ranks or (len(ranks) == 2 and ranks != [3, 3]):
        mask = "a prototype output beside the boxes: a segmentation head" if 4 in ranks and len(ranks) == 2 else ""
        raise GraphError(
            "The graph has other outputs than a detect head" + (f": {mask}" if mask else ""),
            received=", ".join(f"{k} {v}" for k, v in shapes.items()),
            expected="one output [B, 4+classes, anchors], or boxes [B, anchors, 4] and scores [B, anchors, classes]",
            fix=RAW_EXPORT,
        )
    if not walk.frontier:
        raise GraphError(
            "No convolution stands before the outputs: this is no detector",
            received=f"{_ops_text(walk)} before {shapes}",
            fix=RAW_EXPORT,
        )


def _refuse_shapes(arrays: Arrays, anchors: int) -> None:
    shapes = {name: list(a.shape) for name, a in arrays.items()}
    branches = sum(s[2] * s[3] for s in shapes.values() if len(s) == 4) / anchors
    flat = [s for s in shapes.values() if len(s) != 4]
    if flat or branches not in (2.0, 3.0):
        raise GraphError(
            "The convolutions before the output do not give one box and one class map per level",
            received=f"maps {shapes} for {anchors} anchors",
            expected="box_i [B, 4·bins, Hi, Wi] and cls_i [B, classes, Hi, Wi] with ΣHi·Wi anchors",
            fix="A third branch means pose, segmentation or oriented boxes, which are not supported. " + RAW_EXPORT,
        )


def _ops_text(walk: Walk) -> str:
    return ", ".join(f"{k}×{v}" for k, v in walk.ops().items()) or "no operators"


def _reconcile(
    seen: Measured, walk: Walk, claim: HeadSpec | None, facts: Facts, inputs: list[InputInfo], feeds: Arrays
) -> tuple[HeadSpec, dict[str, str]]:
    """Builds the spec from what was measured, and compares it with every other source."""
    measured = "the tail, measured"
    sources = {
        "num_classes": "channels of the class maps = score rows of the output",
        "bins": "channels of the box maps / 4",
        "strides": "anchor centres of the tail, measured",
        "distance_unit": "box sizes of the tail, measured",
        "objectness": "third branch of the tail, measured" if seen.levels[0].obj else "no third branch",
        "level order": "anchor order of the output, measured",
    }
    units: dict[DistanceUnit, tuple[float, ...]] = {
        "stride": tuple(map(float, seen.strides)),
        "pixel": (1.0,) * len(seen.units),
    }
    fits = [
        u
        for u, scale in units.items()
        if all(math.isclose(a, b, rel_tol=1e-2) for a, b in zip(seen.units, scale, strict=True))
    ]
    if not fits:
        raise GraphError(
            "The distance unit of the tail is neither the stride nor the pixel",
            received=f"{[round(u, 4) for u in seen.units]} pixels per bin at strides {list(seen.strides)}",
            expected="the stride of each level, or 1",
            fix="The box arithmetic of this export is another one, or its stride constants were altered. " + RAW_EXPORT,
        )
    unit = claim.distance_unit if claim and claim.distance_unit in fits else fits[0]  # both fit a stride of 1
    if list(seen.strides) != sorted(seen.strides):
        raise GraphError("The levels are not in ascending order of stride", received=seen.strides, expected="ascending")
    for name, length in walk.dfl.items():
        _same("bins", seen.bins, "the channels of the box maps", length, f"the length of the DFL weight ({name})")
    if walk.dfl:
        sources["bins"] += f"; DFL weight 0..{seen.bins - 1}"
    if seen.bins == 1 and walk.ops().get("Softmax"):
        raise GraphError("The tail has a softmax but its box maps have 4 channels", received="bins 1", fix=RAW_EXPORT)
    if facts.stride is not None:
        _same("the largest stride", max(seen.strides), measured, facts.stride, "the metadata stride")
        sources["strides"] += "; metadata stride"
    names = facts.names or ()
    if facts.names is not None:
        _same("the number of classes", seen.num_classes, "the class maps", len(names), "the metadata names")
        sources["names"] = "metadata names"
        sources["num_classes"] += "; metadata names"
    image_size = _image_size(seen, facts, inputs, feeds, sources)
    if claim is not None:
        for key, value in (
            ("num_classes", seen.num_classes), ("strides", seen.strides), ("bins", seen.bins),
            ("distance_unit", unit), ("objectness", seen.levels[0].obj is not None),
        ):  # fmt: skip
            _same(key, value, measured, getattr(claim, key), "dhead_spec")
            sources[key] += "; dhead_spec"
        if claim.image_size is not None and image_size is not None:
            _same("the image size", image_size, "the graph's input", claim.image_size, "dhead_spec")
        if claim.names and names:
            _same("the class names", claim.names, "dhead_spec", names, "the metadata names")
        if claim.image_size is not None and image_size is None and not any(i.dynamic_size for i in inputs):
            sizes = tuple(level.size for level in seen.levels)
            _same("the map sizes", sizes, "the graph", claim.level_shapes(), "the image size in dhead_spec")
        names, image_size = claim.names or names, image_size or claim.image_size
    spec = HeadSpec(seen.num_classes, seen.strides, seen.bins, unit, seen.levels[0].obj is not None, names, image_size)
    return spec, sources


def _image_size(
    seen: Measured, facts: Facts, inputs: list[InputInfo], feeds: Arrays, sources: dict[str, str]
) -> tuple[int, int] | None:
    """Compares the input's size with the map sizes; returns it where it is fixed and the input is an image."""
    sizes = {info.name: feeds[info.name].shape[2:] for info in inputs}
    maps = [level.size for level in seen.levels]
    if len(inputs) == len(maps) and [*sizes.values()] == maps:
        sources["strides"] += "; the inputs are feature maps"
        return None
    if len(inputs) != 1:
        raise GraphError(
            "The inputs are neither one image nor the feature maps of the levels",
            received=f"inputs {sizes} for levels {maps}",
            expected="one image, or one feature map per level of the size of its maps",
        )
    height, width = next(iter(sizes.values()))
    for size, stride in zip(maps, seen.strides, strict=True):
        expected = (math.ceil(height / stride), math.ceil(width / stride))
        _same(f"stride {stride}", size, f"the map of an input of {height}×{width}", expected, "the stride")
    sources["strides"] += "; input size / map size"
    fixed = None not in inputs[0].dims[2:]
    if fixed and facts.image_size is not None:
        _same("the image size", (height, width), "the graph's input", facts.image_size, "the metadata imgsz")
    if fixed:
        sources["image_size"] = "shape of the input" + ("; metadata imgsz" if facts.image_size else "")
    return (height, width) if fixed else None
