"""Names for what a pass adds to a graph."""

from __future__ import annotations

from typing import Any

from .analysis import GraphView

__all__ = ["Names"]


class Names:
    """The names that a graph has, of tensors and of nodes, and those given out since."""

    def __init__(self, view: GraphView, graph: Any) -> None:
        self._taken = {n for node in view.nodes for n in (*node.input, *node.output, node.name)}
        self._taken.update(view.types, view.initializers, (v.name for v in (*graph.input, *graph.output)))

    def unique(self, name: str) -> str:
        """The name, or one like it that is not taken yet."""
        made, n = name, 1
        while made in self._taken:
            n += 1
            made = f"{name}_{n}"
        self._taken.add(made)
        return made
