"""A graph run one learned layer after the other over many images at once, so that a layer can be changed in between."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._ort import cpu_session
from ..errors import GraphError, InputError
from .analysis import reads
from .layers import FLOAT, import_onnx
from .raw_run import Arrays

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Lockstep"]


class Lockstep:
    """Cuts a graph in front of given nodes, and runs the pieces in ONNX Runtime, each over all images.

    Only the tensors that later pieces read are kept, so memory is that of the widest place of the graph, times images.

    Args:
        model: nodes in topological order; types of its tensors inferred.
        stops: outputs of the nodes to stop in front of.
        feeds: inputs, one mapping for each image (batch).
        threads: of ONNX Runtime.

    Attributes:
        live: for each image, the tensors that are still needed.
    """

    def __init__(
        self,
        model: ModelProto,
        stops: Collection[str],
        feeds: Sequence[Mapping[str, npt.NDArray[Any]]],
        *,
        threads: int | None = None,
    ) -> None:
        self._onnx = import_onnx()
        self._model, self._threads = model, threads
        self._constants = {t.name: t for t in model.graph.initializer}
        values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self._types = {v.name: v.type.tensor_type.elem_type or FLOAT for v in values}
        names = [i.name for i in model.graph.input if i.name not in self._constants]
        self.live: list[Arrays] = [{n: np.asarray(feed[n]) for n in names} for feed in feeds]
        self._pieces = self._cut(set(stops))
        self._last: dict[str, int] = {}  # tensor → number of the last piece that reads it
        for i, (_, nodes) in enumerate(self._pieces):
            self._last.update({name: i for node in nodes for name in reads(node)})

    def _cut(self, stops: set[str]) -> list[tuple[str, list[Any]]]:
        """(the stop in front of which it begins, nodes); the first begins nowhere. Dead nodes are left out."""
        wanted = {o.name for o in self._model.graph.output}
        alive = []
        for node in reversed(self._model.graph.node):
            if wanted.intersection(node.output):
                alive.append(node)
                wanted.update(reads(node))
        pieces: list[tuple[str, list[Any]]] = [("", [])]
        for node in reversed(alive):
            if node.output[0] in stops:
                pieces.append((node.output[0], []))
            pieces[-1][1].append(node)
        return pieces

    def __iter__(self) -> Iterator[str]:
        """Runs up to each stop in turn and yields it; then its inputs are in `live`, and its constants may be `set`.

        It goes through once: what is behind is forgotten.

        Raises:
            InputError: an image does not fit the graph.
            GraphError: ONNX Runtime cannot load a piece, or the graph is not in topological order.
        """
        for i, (stop, _) in enumerate(self._pieces):
            if i:
                yield stop
            self._run(i)

    def set(self, name: str, value: npt.NDArray[Any]) -> None:
        """Replaces a constant for the pieces that have not run."""
        self._constants[name] = self._onnx.numpy_helper.from_array(value, name)

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Value of a constant."""
        found: npt.NDArray[Any] = self._onnx.numpy_helper.to_array(self._constants[name])
        return found

    def peek(self, stop: str) -> list[npt.NDArray[Any]]:
        """What the node at a stop makes of the live tensors, for each image; nothing moves on."""
        node = next(nodes[0] for s, nodes in self._pieces if s == stop)
        session = self._session([node], [stop])
        return [self._outputs(session, [stop], tensors)[stop] for tensors in self.live]

    def _run(self, number: int) -> None:
        nodes = self._pieces[number][1]
        made = {name for node in nodes for name in node.output if name}
        outputs = [n for n in made if self._last.get(n, -1) > number]
        session = self._session(nodes, outputs) if outputs else None
        for tensors in self.live:
            if session is not None:
                tensors.update(self._outputs(session, outputs, tensors))
            for name in [n for n in tensors if self._last.get(n, -1) <= number]:
                del tensors[name]

    def _outputs(self, session: Any, names: list[str], tensors: Arrays) -> Arrays:
        feeds = {i.name: tensors[i.name] for i in session.get_inputs()}
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as e:  # ONNX Runtime's errors share no base class
            raise InputError("An image does not fit the graph", received=str(e).splitlines()[0][:200]) from e

    def _session(self, nodes: Sequence[Any], outputs: Sequence[str]) -> Any:
        helper = self._onnx.helper
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in reads(node))
        inputs = [n for n in read if n not in made and n not in self._constants]
        missing = [n for n in inputs if n not in self.live[0]]
        if missing:
            raise GraphError("The graph is not in topological order", received=missing[0])
        graph = helper.make_graph(
            nodes,
            "piece",
            [helper.make_tensor_value_info(n, self._types.get(n, FLOAT), None) for n in inputs],
            [helper.make_tensor_value_info(n, self._types.get(n, FLOAT), None) for n in outputs],
            [self._constants[n] for n in read if n in self._constants],
        )
        piece = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        return cpu_session(piece, threads=self._threads, qdq_as_written=True)
