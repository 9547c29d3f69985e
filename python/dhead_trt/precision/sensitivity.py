"""Which layers int8 hurts: every layer alone in int8, and what that does to the detections."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import GraphError, InputError
from ..files import atomic_path
from ..postprocess import decode
from ..progress import ProgressCallback
from ..spec import HeadSpec
from ..tables import table
from .layers import import_onnx, node_name, passes, quantizable
from .raw_run import Arrays, MapRunner, named_batches, raw_graph, spec_of

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["LayerError", "Sensitivity", "rank_layers"]

IMAGES = 4
_TOP = 200  # anchors of an image that count: those with the best scores in float32
_SCHEMA = 1


class LayerError(NamedTuple):
    """One layer alone in int8, all others in float32.

    Attributes:
        name: of its node.
        op: its operator.
        macs: multiply-accumulates for one image; 0 where they are not known.
        error: how far the best anchors' detections move: the mean of (1 - IoU) + |score difference|, weighted by the
            float32 score. 0: not at all; 2: nothing is left.
    """

    name: str
    op: str
    macs: int
    error: float


@dataclass(frozen=True)
class Sensitivity:
    """The layers of an int8 graph, the most sensitive first.

    Attributes:
        layers: one entry each.
        total: the same error of the graph with all of them in int8.
        images: how many were looked at.
        key: hash of the two graphs, the data and this measure.
    """

    layers: tuple[LayerError, ...]
    total: float
    images: int
    key: str

    def error_of(self, name: str) -> float:
        """The error of a layer; 0 of one that is not in int8."""
        return next((s.error for s in self.layers if s.name == name), 0.0)

    def render(self, number: int | None = 20) -> str:
        """As a table; the first `number` layers, or all."""
        work = sum(s.macs for s in self.layers) or 1
        rows = [
            [i, s.name, s.op, f"{s.macs / 1e6:.1f}", f"{s.macs / work:.2%}", f"{s.error:.5f}"]
            for i, s in enumerate(self.layers[:number], 1)
        ]
        text = table(["", "layer", "op", "MMAC", "of all", "error alone"], rows, right=[0, 3, 4, 5])
        left = len(self.layers) - len(rows)
        more = f" The other {left} layers: at most {self.layers[len(rows)].error:.5f} each." if left else ""
        return f"{text}\n\nAll {len(self.layers)} layers together: {self.total:.5f}, {self.images} images.{more}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": _SCHEMA,
            "key": self.key,
            "total": self.total,
            "images": self.images,
            "layers": [s._asdict() for s in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: it is not that.
        """
        try:
            if data["schema"] != _SCHEMA:
                raise ValueError(f"schema {data['schema']}")
            layers = tuple(
                LayerError(str(s["name"]), str(s["op"]), int(s["macs"]), float(s["error"])) for s in data["layers"]
            )
            return cls(layers, float(data["total"]), int(data["images"]), str(data["key"]))
        except (KeyError, TypeError, ValueError) as e:
            raise InputError("This is no sensitivity report", received=repr(e), expected="what to_dict wrote") from e


def rank_layers(
    reference: ModelProto,
    quantized: ModelProto,
    batches: Iterable[Any],
    spec: HeadSpec | None = None,
    *,
    images: int = IMAGES,
    threads: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> Sensitivity:
    """Ranks the layers of an int8 graph by what each alone does to the detections.

    One graph for each layer: the float32 graph, with the layer's weights and inputs rounded as in the int8 graph. It
    works on any Q/DQ graph whose nodes have the names of the float32 graph's, whoever made it.

    Args:
        reference, quantized: graphs of any form.
        batches: inputs, as for `gate.Gate`; the first `images` images are used.
        spec: the head; None: what the graph's metadata say.
        images: how many to look at.
        threads: of ONNX Runtime.
        cache: folder of earlier results, which are found by the hash of graphs and data.
        progress: called with ("layer by layer", part done).

    Raises:
        GraphError: the graphs have no layer in common that is in int8, or one does not load.
        InputError: there are no images, or they do not fit.
        BackendUnavailable: onnx or onnxruntime is not installed.
    """
    spec = spec_of(reference, spec)
    reference, quantized = raw_graph(reference, spec), raw_graph(quantized, spec)
    data = list(_first(named_batches(batches, reference), images))
    count = sum(len(next(iter(b.values()))) for b in data)
    if not count:
        raise InputError("There are no images to rank the layers on")
    key = _key(reference, quantized, data)
    kept = None if cache is None else Path(cache) / f"sensitivity-{key[:24]}.json"
    if kept is not None and kept.is_file():
        return _load(kept, key)
    sites = _sites(reference, quantized)
    if not sites:
        raise GraphError(
            "No layer of the float32 graph is in int8 in the other",
            expected="Q/DQ pairs before nodes of the same names",
            fix="Give the graph that was quantized, and what came out",
        )
    macs = {layer.name: layer.macs for layer in quantizable(reference)}
    distortion = _Distortion(reference, data, spec, threads)
    found = []
    for number, (name, site) in enumerate(sites.items()):
        error = distortion.of(_alone(reference, site))
        found.append(LayerError(name, site.op, macs.get(name, 0), error))
        if progress is not None:
            progress("layer by layer", (number + 1) / len(sites))
    found.sort(key=lambda s: -s.error)
    result = Sensitivity(tuple(found), distortion.of(quantized), count, key)
    if kept is not None:
        with atomic_path(kept) as temporary:
            temporary.write_text(json.dumps(result.to_dict(), indent=1) + "\n", "utf-8")
    return result


class _Site(NamedTuple):
    """What int8 does to a node: its place in the float32 graph, and what its inputs become."""

    op: str
    place: int
    scales: dict[int, npt.NDArray[np.float32]]  # number of an input → scale of its Q/DQ pair
    zeros: dict[int, npt.NDArray[np.int64]]
    weights: dict[int, npt.NDArray[np.float32]]  # number of an input → values it is rounded to


def _sites(reference: ModelProto, quantized: ModelProto) -> dict[str, _Site]:
    onnx = import_onnx()
    constants = {t.name: t for t in quantized.graph.initializer}
    made = {name: node for node in quantized.graph.node for name in node.output}
    index = {node_name(n): i for i, n in enumerate(reference.graph.node)}

    def value(name: str) -> npt.NDArray[Any] | None:
        return onnx.numpy_helper.to_array(constants[name]) if name in constants else None

    found = {}
    for node in quantized.graph.node:
        name = node_name(node)
        if name not in index or reference.graph.node[index[name]].op_type != node.op_type or passes(node):
            continue
        site = _Site(node.op_type, index[name], {}, {}, {})
        for k, source in enumerate(node.input):
            pair = made.get(source)
            pair = made.get(pair.input[0]) if pair is not None and pair.op_type == "Cast" else pair
            if pair is None or pair.op_type != "DequantizeLinear":
                continue
            scale = value(pair.input[1])
            zero = value(pair.input[2]) if len(pair.input) > 2 else None
            if scale is None:
                continue
            scale, zero = (
                scale.astype(np.float32),
                np.zeros_like(scale, np.int64) if zero is None else zero.astype(np.int64),
            )
            grid = value(pair.input[0])
            if grid is None:
                site.scales[k], site.zeros[k] = scale, zero
            else:
                axis = next((a.i for a in pair.attribute if a.name == "axis"), 1)
                shape = [-1 if i == axis % grid.ndim else 1 for i in range(grid.ndim)] if scale.size > 1 else []
                site.weights[k] = (grid.astype(np.int64) - zero.reshape(shape)).astype(np.float32) * scale.reshape(
                    shape
                )
        if site.scales or site.weights:
            found[name] = site
    return found


def _alone(reference: ModelProto, site: _Site) -> ModelProto:
    """The float32 graph with one node's inputs rounded."""
    onnx = import_onnx()
    model = onnx.ModelProto()
    model.CopyFrom(reference)
    del model.graph.value_info[:]
    node = model.graph.node[site.place]
    new = []
    for k, values in site.weights.items():
        node.input[k] = f"{node.input[k]}__alone{k}"
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, node.input[k]))
    for k, scale in site.scales.items():
        source, stem = node.input[k], f"{node.input[k]}__alone{k}"
        unsigned = site.zeros[k].max() > 127
        zero = site.zeros[k].astype(np.uint8 if unsigned else np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{stem}_scale"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(zero, f"{stem}_zero"))
        for op, a, b in (("QuantizeLinear", source, f"{stem}_int8"), ("DequantizeLinear", f"{stem}_int8", stem)):
            new.append(onnx.helper.make_node(op, [a, f"{stem}_scale", f"{stem}_zero"], [b], name=f"{stem}_{op}"))
        node.input[k] = stem
    nodes = list(model.graph.node)
    nodes[site.place : site.place] = new
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


class _Distortion:
    """How far a graph's best detections are from the float32 graph's."""

    def __init__(self, reference: ModelProto, data: list[Arrays], spec: HeadSpec, threads: int | None) -> None:
        self.spec, self.threads, self.data = spec, threads, data
        runner = MapRunner(reference, threads=threads)
        self.truth = []
        for batch in data:
            boxes, scores = decode(runner.run(batch), spec, threads=threads)
            best = scores.max(axis=2)
            rows = np.argsort(-best, axis=1, kind="stable")[:, :_TOP]
            classes = np.take_along_axis(scores.argmax(axis=2), rows, 1)
            self.truth.append(
                (rows, classes, np.take_along_axis(boxes, rows[..., None], 1), np.take_along_axis(best, rows, 1))
            )

    def of(self, model: ModelProto) -> float:
        runner = MapRunner(model, threads=self.threads)
        sums, weights = 0.0, 0.0
        for batch, (rows, classes, want_boxes, want_scores) in zip(self.data, self.truth, strict=True):
            boxes, scores = decode(runner.run(batch), self.spec, threads=self.threads)
            images = np.arange(len(rows))[:, None]
            moved = 1 - _iou(boxes[images, rows], want_boxes)
            faded = np.abs(scores[images, rows, classes].astype(np.float64) - want_scores)
            error = np.nan_to_num(moved, nan=1.0) + np.nan_to_num(faded, nan=1.0)
            sums += float((want_scores * error).sum())
            weights += float(want_scores.sum())
        return sums / weights if weights > 0 else 0.0


def _iou(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """IoU of boxes [..., 4] with those in the same place; 0 where both are empty."""
    p, q = a.astype(np.float64), b.astype(np.float64)
    sides = np.maximum(0, np.minimum(p[..., 2:], q[..., 2:]) - np.maximum(p[..., :2], q[..., :2]))
    areas = [np.maximum(0, x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (p, q)]
    inter = sides.prod(axis=-1)
    union = areas[0] + areas[1] - inter
    out: npt.NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return out


def _first(batches: Iterator[Arrays], images: int) -> Iterator[Arrays]:
    for batch in batches:
        if images <= 0:
            return
        yield batch
        images -= len(next(iter(batch.values())))


def _key(reference: ModelProto, quantized: ModelProto, data: list[Arrays]) -> str:
    digest = hashlib.sha256(f"sensitivity {_SCHEMA} {_TOP}".encode())
    for model in (reference, quantized):
        digest.update(model.SerializeToString(deterministic=True))
    for batch in data:
        for name, values in sorted(batch.items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _load(path: Path, key: str) -> Sensitivity:
    try:
        found = Sensitivity.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as e:
        raise InputError("A cached sensitivity report cannot be read", received=f"{path}: {e}", fix="Delete it") from e
    if found.key != key:
        raise InputError("A cached sensitivity report is of other graphs or data", received=path, fix="Delete it")
    return found
