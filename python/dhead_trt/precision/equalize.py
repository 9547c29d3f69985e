"""Channels brought to one range before they share an int8 scale: the same function, which int8 rounds better.

TensorRT allows one scale for a whole activation tensor, so a channel whose values are small gets few of its 255 levels.
Here each activation is multiplied by a factor per channel, and the weights that read it are divided by that
(SmoothQuant's idea, for convolutions). SiLU is not homogeneous, so the factor is a Mul of its own behind it (OpenVINO
was seen to fuse it into the convolution's epilogue); behind a convolution without activation it goes into its weights.

Factors pass through what only moves values: a channel of a Concat, Split, MaxPool or nearest Resize keeps its factor. A
sum needs equal factors for both operands, so these channels get one together. Channels that anything else reads (the
decode, attention, a network output) keep the factor 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._ort import cpu_session
from ..errors import GraphError, InputError
from ..progress import ProgressCallback
from .analysis import captured_names, drop_unused
from .layers import FLOAT, Inspection, data_inputs, import_onnx, inspect, passes
from .names import Names

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Equalization", "channel_ranges", "equalize"]

ALPHA = 0.5
MAX_FACTOR = 32.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Equalization:
    """What `equalize` made.

    Attributes:
        model: the float32 graph with the factors in it; same inputs, outputs, names of nodes, and results.
        tensors: activations that carry factors.
        factors: the largest one used.
        added: how many nodes (Mul) were added; the other factors went into weights.
    """

    model: ModelProto
    tensors: int
    factors: float
    added: int


class _Channels:
    """Which channels of which tensors must have one factor (union–find), and which must have none."""

    def __init__(self, found: Inspection) -> None:
        self.found, self.view = found, found.view
        self.parent: list[int] = []
        self.pinned: set[int] = set()
        self.ids: dict[str, npt.NDArray[np.int64]] = {}
        self.sources: list[str] = []  # tensors that get factors where they are made
        self.sums: list[str] = []
        self.layers = {layer.output: layer for layer in found.layers}
        self.width = _widths(found.model)
        self.links: list[tuple[str, str]] = []  # tensors that hold the same channels
        for i in range(len(self.view.nodes)):
            self._node(i)
        for output in found.model.graph.output:
            self._pin(output.name)
        for name in {n for node in self.view.nodes for n in captured_names(node)}:
            self._pin(name)

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def roots(self, name: str) -> npt.NDArray[np.int64]:
        return np.array([self.root(int(i)) for i in self.ids[name]], np.int64)

    def _join(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> None:
        for i, j in zip(a, b, strict=True):
            self.parent[self.root(int(i))] = self.root(int(j))

    def _pin(self, name: str) -> None:
        self.pinned.update(map(int, self.ids.get(name, ())))

    def _fresh(self, name: str) -> None:
        width = self.width.get(name)
        if width is None or self.view.types.get(name) != FLOAT:
            return
        start = len(self.parent)
        self.parent += range(start, start + width)
        self.ids[name] = np.arange(start, start + width)
        self.sources.append(name)

    def _node(self, index: int) -> None:
        node = self.view.nodes[index]
        if index not in self.view.network:
            for name in node.input:
                self._pin(name)
            return
        layer = self.layers.get(node.output[0]) if node.op_type == "Conv" else None
        if layer is not None:
            for name in node.input[1:]:
                self._pin(name)
            self._fresh(node.output[0])
            return
        made = self._moved(node)
        if made is None:
            for name in node.input:
                self._pin(name)
            for name in node.output:
                self._fresh(name)
            return
        for name, ids in zip(node.output, made, strict=True):
            self.ids[name] = ids
            self.links += [(source, name) for source in data_inputs(self.view, node)]

    def _moved(self, node: Any) -> list[npt.NDArray[np.int64]] | None:
        """Channels of the outputs of a node that factors pass through; None: they do not."""
        data = data_inputs(self.view, node)
        if not data or any(n not in self.ids for n in data):
            return None
        if node.op_type == "Add":
            if len(data) != 2 or len(self.ids[data[0]]) != len(self.ids[data[1]]):
                return None
            self._join(self.ids[data[0]], self.ids[data[1]])
            self.sums.append(node.output[0])
            return [self.ids[data[0]]]
        if not passes(node):
            return None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if node.op_type in ("Identity", "MaxPool", "Resize"):
            return [self.ids[data[0]]] if len(node.output) == 1 else None
        if node.op_type == "Concat":
            return [np.concatenate([self.ids[n] for n in data])] if axis == 1 and len(data) == len(node.input) else None
        if node.op_type == "Split" and axis == 1:
            widths = [self.width.get(n) for n in node.output]
            ids = self.ids[data[0]]
            if any(w is None for w in widths) or sum(w or 0 for w in widths) != len(ids):
                return None
            return np.split(ids, np.cumsum([w or 0 for w in widths])[:-1])
        return None

    def tensors(self) -> list[str]:
        """Activations whose ranges count: sources and sums with a channel that may have a factor."""
        pinned = {self.root(i) for i in self.pinned}
        free = [n for n in (*self.sources, *self.sums) if not pinned.issuperset(map(int, self.roots(n)))]
        return list(dict.fromkeys(free))

    def components(self) -> dict[str, str]:
        """Tensor → representative of all that share channels with it, which may share a scale too."""
        parent = {n: n for n in self.ids}

        def root(n: str) -> str:
            while parent[n] != n:
                n = parent[n]
            return n

        for a, b in self.links:
            if a in parent and b in parent:
                parent[root(a)] = root(b)
        return {n: root(n) for n in parent}


def channel_ranges(
    model: ModelProto,
    batches: Iterable[Mapping[str, npt.NDArray[Any]]],
    *,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, Floats]:
    """The lowest and highest value of each channel of the activations that `equalize` may scale.

    Args:
        model: float32 graph of any form.
        batches: calibration inputs.
        threads: of ONNX Runtime.
        progress: called with ("channel ranges", None).

    Returns:
        Tensor → float64 [2, channels]: lowest and highest value seen, 0 at most and at least.

    Raises:
        InputError: there is no data, or it does not fit.
        GraphError: ONNX Runtime cannot run the graph.
        BackendUnavailable: onnx or onnxruntime is not installed.
    """
    onnx = import_onnx()
    found = inspect(model)
    names = _Channels(found).tensors()
    if not names:
        return {}
    view, probe = found.view, found.model
    needed = [node for i, node in enumerate(view.nodes) if i in view.network or i not in view.data]
    del probe.graph.node[:], probe.graph.output[:], probe.graph.value_info[:]
    probe.graph.node.extend(needed)
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, FLOAT, None) for n in names)
    session = cpu_session(probe, threads=threads)
    found_ranges: dict[str, Floats] = {}
    count = 0
    for batch in batches:
        if progress is not None:
            progress("channel ranges", None)
        try:
            values = session.run(names, dict(batch))
        except Exception as e:
            shapes = {k: list(np.shape(v)) for k, v in batch.items()}
            raise InputError(
                "A batch does not fit the graph", received=f"{shapes}: {str(e).splitlines()[0][:200]}"
            ) from e
        count += 1
        for name, value in zip(names, values, strict=True):
            pair = np.stack([value.min(axis=(0, 2, 3)), value.max(axis=(0, 2, 3))]).astype(np.float64)
            if not np.isfinite(pair).all():
                raise GraphError("The network does not give numbers", received=f"NaN or infinity in {name!r}")
            known = found_ranges.setdefault(name, np.zeros_like(pair))
            known[0], known[1] = np.minimum(known[0], pair[0]), np.maximum(known[1], pair[1])
    if not count:
        raise InputError("There is no calibration data", expected="at least one image")
    return found_ranges


def equalize(
    model: ModelProto,
    ranges: Mapping[str, npt.ArrayLike],
    *,
    alpha: float = ALPHA,
    max_factor: float = MAX_FACTOR,
) -> Equalization:
    """A float32 graph whose activations' channels have like ranges; what it computes does not change.

    Calibrate the result, not the original, for `to_int8`.

    Args:
        model: float32 graph of any form; it is not changed.
        ranges: of its channels, from `channel_ranges`.
        alpha: 1: the channels' ranges become equal; 0: nothing changes. Between: the weights, which take the inverse
            factors, stay more even.
        max_factor: the most a channel is multiplied by.

    Raises:
        InputError: alpha or max_factor is out of range.
        GraphError: the graph is not valid.
        BackendUnavailable: the onnx package is not installed.
    """
    if not 0 <= alpha <= 1:
        raise InputError("alpha is out of range", received=alpha, expected="0 to 1")
    if not max_factor >= 1:
        raise InputError("max_factor is out of range", received=max_factor, expected="at least 1")
    onnx = import_onnx()
    found = inspect(model)
    channels = _Channels(found)
    factors = _factors(channels, {n: np.asarray(r, np.float64) for n, r in ranges.items()}, alpha, max_factor)
    work = _Rewrite(onnx, found, channels, factors)
    work.run()
    used = [float(work.of(n).max()) for n in work.scaled]
    return Equalization(found.model, len(work.scaled), max(used, default=1.0), work.added)


def _factors(channels: _Channels, ranges: Mapping[str, Floats], alpha: float, limit: float) -> Floats:
    """Factor of each channel number."""
    total = len(channels.parent)
    roots = np.array([channels.root(i) for i in range(total)], np.int64)
    reach = np.zeros(total)
    known = [n for n in channels.tensors() if n in ranges]
    for name in known:
        if ranges[name].shape != (2, len(channels.ids[name])):
            raise InputError("The channel ranges are of another graph", received=name)
        ids = roots[channels.ids[name]]
        np.maximum.at(reach, ids, np.abs(ranges[name]).max(axis=0))
    fixed = np.zeros(total, bool)
    fixed[[channels.root(i) for i in channels.pinned]] = True
    component = channels.components()
    tops: dict[str, float] = {}
    for name in known:
        top = float(reach[roots[channels.ids[name]]].max())
        tops[component[name]] = max(tops.get(component[name], 0.0), top)
    factors = np.ones(total)
    for name in known:
        ids, top = roots[channels.ids[name]], tops[component[name]]
        if top > 0:
            factors[ids] = np.clip(top / np.maximum(reach[ids], top / limit), 1.0, limit) ** alpha
    factors[fixed] = 1.0
    return factors[roots]


class _Rewrite:
    """Puts factors into a graph."""

    def __init__(self, onnx: Any, found: Inspection, channels: _Channels, factors: Floats) -> None:
        self.onnx, self.view, self.graph = onnx, found.view, found.model.graph
        self.channels, self.factors = channels, factors
        self.added = 0
        self.scaled = [n for n in channels.sources if (self.of(n) != 1).any()]
        self.names = Names(self.view, self.graph)

    def of(self, name: str) -> Floats:
        """Factors of a tensor's channels; of length 1 where it has none."""
        ids = self.channels.ids.get(name)
        return np.ones(1) if ids is None else self.factors[ids]

    def run(self) -> None:
        nodes = []
        scaled = set(self.scaled)
        for node in self.view.nodes:
            made = self.onnx.NodeProto()
            made.CopyFrom(node)
            nodes.append(made)
            layer = self.channels.layers.get(node.output[0]) if node.op_type == "Conv" else None
            if layer is not None:
                self._fold(made, layer.input, node.output[0] if node.output[0] in scaled else "", layer.group)
                continue
            for k, name in enumerate(node.output):
                if name in scaled:
                    made.output[k] = self.names.unique(f"{name}_plain")
                    nodes.append(self._scaled(made.output[k], name))
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        drop_unused(self.graph)

    def _scaled(self, plain: str, name: str) -> Any:
        """The Mul between a tensor and its new self."""
        self.added += 1
        factor = self._constant(f"{name}_factor", self.of(name).reshape(1, -1, 1, 1))
        return self.onnx.helper.make_node("Mul", [plain, factor], [name], name=self.names.unique(f"{name}_equalize"))

    def _fold(self, node: Any, source: str, output: str, group: int) -> None:
        """What a convolution reads is undone, and what it writes is done, in its weights and bias."""
        factors = self.of(source)
        if (factors == 1).all() and not output:
            return
        array = self.onnx.numpy_helper.to_array
        weight = array(self.view.initializers[node.input[1]]).astype(np.float64)
        bias = np.zeros(len(weight))
        has_bias = len(node.input) > 2 and bool(node.input[2])
        if has_bias:
            bias += array(self.view.initializers[node.input[2]]).astype(np.float64)
        if factors.size > 1:
            read = np.repeat(factors.reshape(group, -1), len(weight) // group, axis=0)
            weight /= read[:, :, None, None]
        if output:
            factors = self.of(output)
            weight *= factors[:, None, None, None]
            bias *= factors
        if bias.any() or has_bias:
            name = node.input[2] if has_bias else f"{node.input[1]}_bias"
            del node.input[2:]
            node.input.append(self._constant(f"{name}_equalized", bias))
        node.input[1] = self._constant(f"{node.input[1]}_equalized", weight)

    def _constant(self, name: str, value: Floats) -> str:
        name = self.names.unique(name)
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name


def _widths(model: Any) -> dict[str, int]:
    """Channels of the 4-D tensors, where known."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    dims = {v.name: v.type.tensor_type.shape.dim for v in values if v.type.tensor_type.HasField("shape")}
    return {n: int(d[1].dim_value) for n, d in dims.items() if len(d) == 4 and d[1].dim_value > 0}
