"""Running (parts of) a graph in ONNX Runtime: shapes, probes and checks."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import GraphError
from .edges import export_graph, import_graph
from .load import require

__all__ = ["DOMAIN", "Arrays", "InputInfo", "Session", "graph_inputs", "random_inputs", "tail_session", "with_outputs"]

Arrays = dict[str, npt.NDArray[Any]]
DOMAIN = "dhead"
_LARGE = 1 << 30
_DTYPES = {1: "float32", 10: "float16", 11: "float64", 2: "uint8", 6: "int32", 7: "int64", 16: "bfloat16", 9: "bool"}


class InputInfo:
    """A graph input: name, numpy dtype name ("other" where unknown), dims (int, or None where dynamic)."""

    def __init__(self, value: Any) -> None:
        tensor = value.type.tensor_type
        self.name: str = value.name
        self.dtype: str = _DTYPES.get(tensor.elem_type, "other")
        self.dims: tuple[int | None, ...] = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim
        )
        self.symbols: tuple[str, ...] = tuple(d.dim_param for d in tensor.shape.dim)

    @property
    def dynamic_batch(self) -> bool:
        """True where dimension 0 is not fixed."""
        return bool(self.dims) and self.dims[0] is None

    @property
    def dynamic_size(self) -> bool:
        """True where the height or the width of [B, C, H, W] is not fixed."""
        return len(self.dims) == 4 and None in self.dims[2:]


def graph_inputs(model: Any) -> list[InputInfo]:
    """The inputs of a graph that are not initializers, nor thresholds of a dhead node."""
    constants = {t.name for t in model.graph.initializer}
    ours = {name for node in model.graph.node if node.domain == DOMAIN for name in node.input}
    values = [InputInfo(v) for v in model.graph.input if v.name not in constants]
    return [i for i in values if not (i.name in ours and i.dims == (2,))]


def random_inputs(inputs: Sequence[InputInfo], batch: int, sizes: Mapping[str, tuple[int, int]], seed: int) -> Arrays:
    """Random arrays for a graph's inputs: uniform 0..1 for images (up to 4 channels), normal for features."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for info in inputs:
        if len(info.dims) != 4 or info.dims[1] is None or info.dtype not in ("float32", "float16", "uint8"):
            raise GraphError(
                f"The graph input {info.name!r} is neither an image nor a feature map",
                received=f"{info.dtype} {list(info.dims)}",
                expected="float32, float16 or uint8 [B, channels, H, W] with a fixed number of channels",
            )
        shape = (
            info.dims[0] or batch,
            info.dims[1],
            *(d or s for d, s in zip(info.dims[2:], sizes[info.name], strict=True)),
        )
        if info.dtype == "uint8":
            arrays[info.name] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            values = rng.random(shape) if info.dims[1] <= 4 else rng.standard_normal(shape)
            arrays[info.name] = values.astype(info.dtype)
    return arrays


class Session:
    """An ONNX Runtime session on the CPU whose failures are GraphErrors."""

    def __init__(self, model: Any) -> None:
        ort = require("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            with _as_ort_source(model) as source:
                self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except GraphError:
            raise
        except Exception as e:  # onnxruntime raises a family of pybind exceptions without a common public base
            raise GraphError(
                "ONNX Runtime, which checks every cut, cannot load this graph",
                received=_first_line(e),
                expected="operators that ONNX Runtime has on the CPU",
                fix="Export without custom operators and in float32 or float16",
            ) from e
        self.inputs = [i.name for i in self._session.get_inputs()]
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name; arrays for inputs that the graph does not have are left out."""
        feeds = {name: arrays[name] for name in self.inputs}
        try:
            values = self._session.run(None, feeds)
        except Exception as e:
            raise GraphError(
                "ONNX Runtime cannot run this graph",
                received=f"{_first_line(e)} with inputs { {k: list(v.shape) for k, v in feeds.items()} }",
                expected="a graph that runs at the shapes it declares",
                fix="Export it again; a dynamic graph may need fixed sizes (dynamic=False)",
            ) from e
        return dict(zip(self.outputs, values, strict=True))


@contextlib.contextmanager
def _as_ort_source(model: Any) -> Iterator[bytes | str]:
    if sum(len(t.raw_data) for t in model.graph.initializer) < _LARGE:
        yield model.SerializeToString()
        return
    onnx = require("onnx")
    with tempfile.TemporaryDirectory() as folder:  # beyond protobuf's 2 GiB
        path = Path(folder) / "model.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, str(path), save_as_external_data=True, location="weights.bin")
        yield str(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:300]


def with_outputs(model: Any, names: Sequence[str]) -> Any:
    """The model with other outputs: the tensors `names`, in that order."""
    graph = import_graph(model)
    tensors = graph.tensors()
    graph.outputs = [tensors[name] for name in names]
    for tensor in graph.outputs:
        tensor.dtype = tensor.dtype if tensor.dtype is not None else np.float32
    cut = export_graph(graph, model)
    for value in cut.graph.output:  # let ONNX Runtime infer what the exporter may not have written
        if value.name not in {o.name for o in model.graph.output}:
            value.ClearField("type")
    return cut


def tail_session(model: Any, maps: Mapping[str, str]) -> Session:
    """The tail alone: a session with the tensors `maps` (name → dtype) as inputs, beside any it reads the shape of."""
    graph = import_graph(model)
    tensors = graph.tensors()
    for name, dtype in maps.items():
        tensor = tensors[name]
        tensor.inputs.clear()
        tensor.dtype, tensor.shape = np.dtype(dtype), None
        graph.inputs.append(tensor)
    return Session(export_graph(graph, model))
