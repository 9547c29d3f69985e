"""Where a graph is cut into int8 and back: which tensors get Q/DQ, and which share a scale.

TensorRT gains where a convolution reads int8 and where everything between two convolutions stays int8. So

- the activations that a quantized convolution reads are quantized, once per tensor;
- operators that only move values (Concat, Split, MaxPool, nearest Resize, …) on the way to it are quantized on both
  sides with one scale, so that they run in int8 and the pairs around them cancel;
- a sum reads the operands that are int8 anyway (the shortcut of a residual block); the other operand comes straight
  from the convolution's activation, unrounded, so that engines can fuse convolution, activation, sum and rounding;
- nothing else: Sigmoid and Mul of a SiLU stay in high precision, inside the convolution's epilogue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .layers import Inspection, Layer, data_inputs, passes

__all__ = ["Placement", "place"]

MAX_WIDENING = 2.0  # a scale may grow by this factor (one bit) for the sake of a shared one


@dataclass
class Placement:
    """The plan of a Q/DQ pass.

    Attributes:
        amax: key of a Q/DQ pair → the largest magnitude its scale must hold. Keys are tensor names; a tensor that a
            Concat needs on another scale has a second pair, under "tensor@concat output".
        source: key → tensor that is quantized.
        edges: (index of a node, number of its input) → key of the pair it reads.
        shared: groups of more than one tensor on one scale.
    """

    amax: dict[str, float] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    edges: dict[tuple[int, int], str] = field(default_factory=dict)
    shared: list[tuple[str, ...]] = field(default_factory=list)


def place(
    found: Inspection,
    layers: Collection[Layer],
    amax: Mapping[str, float],
    *,
    chain: bool = True,
    widening: float = MAX_WIDENING,
) -> Placement:
    """Decides on the Q/DQ pairs of a graph.

    Args:
        found: the graph.
        layers: those that shall compute in int8.
        amax: tensor → largest magnitude to represent.
        chain: also quantize what moves values between the layers, and shortcuts; False: the layers' inputs alone.
        widening: how much wider than its own range a tensor's scale may become to be shared.
    """
    work = _Work(found, layers, amax, widening)
    if chain:
        work.spread()
    return work.finish(chain)


class _Work:
    def __init__(
        self, found: Inspection, layers: Collection[Layer], amax: Mapping[str, float], widening: float
    ) -> None:
        self.view, self.amax, self.widening = found.view, amax, widening
        self.names = {layer.output for layer in layers}
        self.read = list(dict.fromkeys(layer.input for layer in layers))  # by the layers themselves
        self.direct = set(self.read)
        self.group: dict[str, str] = {}
        self.wide: dict[str, float] = {}  # root → largest of the group
        self.narrow: dict[str, float] = {}  # root → smallest of those tensors in it that layers read
        self.apart: dict[tuple[str, str], None] = {}  # (input of a Concat, its output) that do not share a scale
        for name in self.read:
            self._add(name)

    def _add(self, name: str) -> None:
        if name not in self.group:
            self.group[name] = name
            self.wide[name] = self.amax[name]
            self.narrow[name] = self.amax[name] if name in self.direct else float("inf")

    def _root(self, name: str) -> str:
        while self.group[name] != name:
            name = self.group[name]
        return name

    def _join(self, a: str, b: str, *, always: bool) -> bool:
        a, b = self._root(a), self._root(b)
        if a == b:
            return True
        wide, narrow = max(self.wide[a], self.wide[b]), min(self.narrow[a], self.narrow[b])
        if not always and wide > self.widening * narrow:
            return False
        self.group[b] = a
        self.wide[a], self.narrow[a] = wide, narrow
        return True

    def spread(self) -> None:
        """From what the layers read back to where those values are made."""
        edges = []
        pending = list(self.read)
        seen = set(pending)
        while pending:
            name = pending.pop(0)
            if name not in self.view.producer:
                continue
            node = self.view.nodes[self.view.producer[name]]
            if not passes(node):
                continue
            for source in data_inputs(self.view, node):
                if source not in self.amax:
                    continue
                self._add(source)
                edges.append((source, name, node.op_type == "Concat"))
                if source not in seen:
                    seen.add(source)
                    pending.append(source)
        for source, name, concat in sorted(edges, key=lambda e: e[2]):  # Concat last: it may decline
            if not self._join(name, source, always=not concat):
                self.apart[(source, name)] = None

    def finish(self, chain: bool) -> Placement:
        """The pairs, and who reads them."""
        plan = Placement()
        for name in self.group:
            plan.amax[name] = self.wide[self._root(name)]
            plan.source[name] = name
        for source, name in self.apart:
            key = f"{source}@{name}"
            plan.amax[key], plan.source[key] = plan.amax[name], source
        for i, node in enumerate(self.view.nodes):
            quantized = node.op_type == "Conv" and node.output[0] in self.names
            moves = chain and passes(node) and any(o in self.group for o in node.output)
            adds = chain and node.op_type == "Add" and node.output[0] in self.group
            for k, name in enumerate(node.input):
                if name not in self.group or not (moves or adds or (quantized and k == 0)):
                    continue
                apart = f"{name}@{node.output[0]}"
                plan.edges[i, k] = apart if moves and apart in plan.amax else name
        read = set(plan.edges.values())
        for key in [k for k in plan.amax if k not in read]:
            del plan.amax[key], plan.source[key]
        groups: dict[str, list[str]] = {}
        for name in self.group:
            groups.setdefault(self._root(name), []).append(name)
        plan.shared = [tuple(g) for g in groups.values() if len(g) > 1]
        return plan
