"""A graph's raw maps on the CPU, with int8 exactly as its Q/DQ nodes say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._ort import cpu_session
from ..errors import GraphError, InputError
from ..spec import HeadSpec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Arrays", "MapRunner", "image_count", "input_size", "named_batches", "raw_graph", "spec_of"]

Arrays = dict[str, npt.NDArray[Any]]


class MapRunner:
    """Runs a graph of form `raw` in ONNX Runtime.

    Q/DQ nodes are computed as they are written, in float32: ONNX Runtime's own int8 kernels are left out (they saturate
    16-bit sums on CPUs without VNNI), so that the result is that of the graph on any machine, at the speed of float32.

    Args:
        model: outputs are the raw maps.
        threads: of ONNX Runtime; None: its choice.

    Raises:
        GraphError: ONNX Runtime cannot load the graph.
        BackendUnavailable: it is not installed.
    """

    def __init__(self, model: ModelProto, *, threads: int | None = None) -> None:
        self._session = cpu_session(model, threads=threads, qdq_as_written=True)
        self.inputs = {i.name: str(i.type) for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, batch: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name, float32; the inputs are cast where the graph takes float16.

        Raises:
            InputError: the batch does not fit the graph.
        """
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise InputError("A batch lacks an input", received=sorted(batch), expected=sorted(self.inputs))
        feeds = {n: np.asarray(batch[n], np.float16 if "16" in kind else np.float32) for n, kind in self.inputs.items()}
        try:
            values = self._session.run(None, feeds)
        except Exception as e:
            shapes = {n: list(v.shape) for n, v in feeds.items()}
            raise InputError(
                "A batch does not fit the graph", received=f"{shapes}: {str(e).splitlines()[0][:200]}"
            ) from e
        return {n: np.ascontiguousarray(v, np.float32) for n, v in zip(self.outputs, values, strict=True)}


def spec_of(model: ModelProto, spec: HeadSpec | None) -> HeadSpec:
    """The spec given, or the one that the graph carries.

    Raises:
        GraphError: there is none.
    """
    if spec is not None:
        return spec
    text = {p.key: p.value for p in model.metadata_props}.get("dhead_spec")
    if text is None:
        raise GraphError("The graph does not say what its head is", expected="metadata dhead_spec", fix="Give spec=")
    return HeadSpec.from_json(text)


def raw_graph(model: ModelProto, spec: HeadSpec) -> ModelProto:
    """The graph itself where its outputs are the raw maps, else cut there.

    Raises:
        GraphError: not a supported detector.
    """
    if {o.name for o in model.graph.output} == set(spec.input_names):
        return model
    from ..surgery import convert

    cut: ModelProto = convert(model, form="raw", spec=spec, verify=False).model
    return cut


def named_batches(batches: Iterable[Any], model: ModelProto) -> Iterator[Arrays]:
    """Batches as mappings; a bare array is the only input's.

    Raises:
        InputError: a bare array for a graph of several inputs.
    """
    constants = {t.name for t in model.graph.initializer}
    names = [v.name for v in model.graph.input if v.name not in constants]
    for batch in batches:
        if isinstance(batch, Mapping):
            yield {str(n): np.asarray(v) for n, v in batch.items()}
        elif len(names) == 1:
            yield {names[0]: np.asarray(batch)}
        else:
            raise InputError("A batch is not a mapping", received=type(batch).__name__, expected=f"arrays for {names}")


def image_count(batches: Iterable[Any]) -> int | None:
    """Images in batches without the rows that fill up the last one of a fixed size; None where they do not tell."""
    from ..calibration import CalibrationBatches

    return batches.count if isinstance(batches, CalibrationBatches) else None


def input_size(
    batch: Mapping[str, npt.NDArray[Any]], maps: Mapping[str, npt.NDArray[Any]], spec: HeadSpec
) -> tuple[int, int]:
    """(height, width) of the network input: the images', or what the maps stand for."""
    first = next(iter(batch.values()))
    if len(batch) == 1 and first.ndim == 4 and first.shape[1] in (1, 3, 4):
        return int(first.shape[2]), int(first.shape[3])
    height, width = maps["box_0"].shape[2:]
    return int(height * spec.strides[0]), int(width * spec.strides[0])
