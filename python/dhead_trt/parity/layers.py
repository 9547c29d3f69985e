"""Where does an engine depart? Every inner tensor of the graph, of the engine and of ONNX Runtime, compared in order.

The tensors are made outputs of the graph and the engine is built from that, as many at a time as a budget holds.
A tensor that is an output cannot be fused away, so such an engine may round otherwise than the one that is deployed;
it finds the layer, the ladder (`run_ladder`) proves the engine.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact
from ..backends.base import silent
from ..errors import InputError
from ..progress import ProgressCallback
from ..spec import HeadSpec
from ..tables import table
from .ladder import _facts, _Origin

__all__ = ["LAYER_TOLERANCES", "LayerError", "LayerReport", "compare_layers"]

Arrays = dict[str, NDArray[Any]]

# ‖engine − reference‖ / ‖reference‖ of a tensor, by precision: what roundings add up to over a network's depth.
LAYER_TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 5e-1}
_FLOATS = (1, 10)  # onnx.TensorProto.FLOAT, FLOAT16


@dataclass(frozen=True)
class LayerError:
    """A tensor of the graph, in the engine and in the reference.

    Attributes:
        tensor: its name; op, node: what makes it.
        shape: of this run.
        relative: ‖engine − reference‖ / ‖reference‖; inf where one is finite and the other is not.
        largest: largest absolute difference; scale: largest absolute value of the reference.
        growth: `relative` over the largest of the node's inputs; None where none of them was compared or is off.
    """

    tensor: str
    op: str
    node: str
    shape: tuple[int, ...]
    relative: float
    largest: float
    scale: float
    growth: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; inf as the text "inf"."""
        return {
            k: "inf" if isinstance(v, float) and not math.isfinite(v) else list(v) if isinstance(v, tuple) else v
            for k, v in vars(self).items()
        }


@dataclass(frozen=True)
class LayerReport:
    """The tensors in the order of the graph, outputs included.

    Attributes:
        model: what was examined; backend, precision: what was compared with ONNX Runtime in fp32.
        computed_in: the precision that the backend really computed in.
        tolerance: largest `relative` that passes.
        layers: the tensors.
        builds: engines that were built, one for each group of tensors.
        notes: of the engine. facts: machine and versions.
    """

    model: str
    backend: str
    precision: str
    computed_in: str
    tolerance: float
    layers: tuple[LayerError, ...]
    builds: int
    inputs: str
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> LayerError | None:
        """The first tensor beyond the tolerance."""
        return next((x for x in self.layers if not x.relative <= self.tolerance), None)

    @property
    def passed(self) -> bool:
        """Some tensor was compared, and none is beyond the tolerance."""
        return bool(self.layers) and self.first is None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        names = ("model", "backend", "precision", "computed_in", "tolerance", "passed", "builds", "inputs")
        return {name: getattr(self, name) for name in names} | {
            "first": None if self.first is None else self.first.tensor,
            "layers": [x.to_dict() for x in self.layers],
            "notes": list(self.notes),
            "facts": dict(self.facts),
        }

    def render(self) -> str:
        """One line for each tensor, and the verdict."""
        rows = []
        for i, x in enumerate(self.layers):
            growth = "" if x.growth is None else f"{x.growth:.1f}"
            verdict = "" if x.relative <= self.tolerance else "beyond"
            shape = "x".join(map(str, x.shape))
            rows.append(
                (i, x.tensor, x.op, shape, f"{x.scale:.3g}", f"{x.largest:.2e}", f"{x.relative:.2e}", growth, verdict)
            )
        heads = ("", "tensor", "operator", "shape", "scale", "largest", "relative", "growth", "")
        first = self.first
        beyond = sum(not x.relative <= self.tolerance for x in self.layers)
        last = f"All {len(rows)} tensors are within {self.tolerance:g}"
        if first is not None:
            last = (
                f"{beyond} of {len(rows)} tensors are beyond {self.tolerance:g}; the first: {first.tensor!r}, made by "
                f"{first.op} {first.node!r}, relative error {first.relative:.2e}"
            )
        return "\n".join([
            f"Input: {self.inputs}",
            f"{self.backend} {self.precision}, computed in {self.computed_in}, against ONNX Runtime fp32; "
            f"engines built: {self.builds}",
            *(f"Note: {n}" for n in self.notes), "",
            table(heads, rows, right=(0, 4, 5, 6, 7)), "", last,
        ])  # fmt: skip


def compare_layers(
    model: Any,
    *,
    engine: str | os.PathLike[str] | None = None,
    backend: str = "openvino",
    precision: str = "fp32",
    inputs: Mapping[str, NDArray[Any]] | None = None,
    inputs_from: str = "",
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    budget: int = 256 << 20,
    options: Mapping[str, Any] | None = None,
    spec: HeadSpec | None = None,
    name: str | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> LayerReport:
    """Compares every floating-point tensor up to the raw maps with ONNX Runtime's in fp32, on the same input.

    Args:
        model: a torch module with `.spec` and `.raw`, or an ONNX model (path, bytes or ModelProto) of any form.
        engine: an engine built from it, which says backend and precision; it is built again with more outputs.
        backend, precision: what to build, where there is no engine.
        inputs, inputs_from, batch, image_size, seed: as in `run_ladder`.
        tolerance: largest relative error of a tensor; None: LAYER_TOLERANCES of the precision.
        budget: bytes of tensors that are compared at a time; at least one tensor always is.
        options: the backend's build options.
        spec: the head, where the graph does not say. name: of the model, for the report.
        threads: of the engine. progress: called with (phase, fraction).

    Raises:
        InputError: the inputs do not fit the model, or the tolerance or budget is not positive.
        GraphError: the graph is not a supported detector.
        ArtifactError: the engine is missing or damaged.
        BackendUnavailable: the backend cannot build and run here.
        BuildError: the backend refused the graph.
    """
    for what, value in (("tolerance", tolerance), ("budget", budget)):
        if value is not None and not value > 0:
            raise InputError(f"The {what} is out of range", received=value, expected="more than 0")
    tell = progress or silent
    artifacts = [] if engine is None else [Artifact.load(engine)]
    if artifacts:
        backend, precision = artifacts[0].backend, artifacts[0].precision
        options = _options(artifacts[0]) if options is None else options
    with tempfile.TemporaryDirectory(prefix="dhead-layers-") as folder:
        tell("the original", None)
        origin = _Origin.read(model, spec, Path(folder))
        feeds = (
            origin.random(artifacts, batch, image_size, seed) if inputs is None else origin.checked(artifacts, inputs)
        )
        graph = _fixed(origin.sized(feeds), feeds)
        groups = list(_groups(graph, budget))
        found: list[LayerError] = []
        notes, computed = tuple[str, ...](), precision
        for i, group in enumerate(groups):
            tell(f"{backend} {precision}: comparing", i / len(groups))
            got, want, notes, computed = _run(
                _with_outputs(graph, group), feeds, backend, precision, Path(folder), options or {}, threads
            )
            found += [_compare(t, got[t.name], want[t.name]) for t in group]
        tell(f"{backend} {precision}: comparing", 1.0)
    layers = _with_growth(graph, found)
    sizes = ", ".join(f"{k} {'x'.join(map(str, v.shape))}" for k, v in feeds.items())
    source = inputs_from or ("given" if inputs is not None else f"random, seed {seed}")
    return LayerReport(
        model=name or "the model",
        backend=backend,
        precision=precision,
        computed_in=computed,
        tolerance=LAYER_TOLERANCES[precision] if tolerance is None else tolerance,
        layers=layers,
        builds=len(groups),
        inputs=f"{source}: {sizes}",
        notes=notes,
        facts=_facts(),
    )


def _options(artifact: Artifact) -> dict[str, Any]:
    """The options that built an engine, but for those of its shapes and outputs."""
    if artifact.backend == "openvino":
        return {
            name: bool(artifact.options[name]) for name in ("compress_to_fp16", "winograd") if name in artifact.options
        }
    dropped = ("io_dtype", "profiles", "mark_outputs", "mark_all_outputs")
    return {k: v for k, v in artifact.options.items() if k not in dropped} if artifact.backend == "tensorrt" else {}


@dataclass(frozen=True)
class _Tensor:
    name: str
    op: str
    node: str


def _fixed(model: Any, feeds: Arrays) -> Any:
    """The graph at the shapes of `feeds`, with the shape of every tensor that can be inferred."""
    import onnx

    result = copy.deepcopy(model)
    for value in result.graph.input:
        for dim, d in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True):
            dim.Clear()
            dim.dim_value = d
    del result.graph.value_info[:]
    for value in result.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(result, data_prop=True)


def _groups(model: Any, budget: int) -> Iterator[list[_Tensor]]:
    """The floating-point tensors that depend on the inputs' values, in the graph's order, by memory."""
    known = {v.name: v.type.tensor_type for v in (*model.graph.value_info, *model.graph.output)}
    live = {v.name for v in model.graph.input} - {t.name for t in model.graph.initializer}
    group: list[_Tensor] = []
    held = 0
    for node in model.graph.node:
        if not live.intersection(node.input) or node.op_type in ("Shape", "Size"):
            continue
        live.update(node.output)
        for name in filter(None, node.output):
            if name not in known or known[name].elem_type not in _FLOATS:
                continue
            dims = [d.dim_value or 1 for d in known[name].shape.dim]
            size = 4 * math.prod(dims)
            if group and held + size > budget:
                yield group
                group, held = [], 0
            group.append(_Tensor(name, node.op_type, node.name))
            held += size
    if group:
        yield group


def _with_outputs(model: Any, group: Sequence[_Tensor]) -> Any:
    """The graph with these tensors as outputs, after its own."""
    result = copy.deepcopy(model)
    own = {v.name for v in model.graph.output}
    inferred = {v.name: v for v in model.graph.value_info}
    result.graph.output.extend(inferred[t.name] for t in group if t.name not in own)
    return result


def _run(
    graph: Any, feeds: Arrays, backend: str, precision: str, folder: Path, options: Mapping[str, Any],
    threads: int | None,
) -> tuple[Arrays, Arrays, tuple[str, ...], str]:  # fmt: skip
    """(the engine's outputs, ONNX Runtime's, the engine's notes, the precision it computed in)."""
    from ..backends import get_backend
    from ..build import build
    from ..shapes import run_reference

    batch = next(iter(feeds.values())).shape[0]
    artifact = build(
        graph, backend, output=folder / "layers", precision=precision, batch=batch, form="native", options=options,
        verify=False,
    )  # fmt: skip
    runner = get_backend(backend).load(artifact, threads=threads)
    try:
        got = runner.run({t.name: np.ascontiguousarray(feeds[t.name], dtype=t.dtype) for t in artifact.inputs})
        notes, computed = runner.notes, runner.precision
    finally:
        runner.close()
    return got, run_reference(graph, feeds), notes, computed


def _compare(tensor: _Tensor, got: NDArray[Any], want: NDArray[Any]) -> LayerError:
    have, reference = got.astype(np.float64), want.astype(np.float64)
    if have.shape != reference.shape:
        raise InputError(
            f"Tensor {tensor.name!r} of the engine has another shape", received=have.shape, expected=reference.shape
        )
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(have - reference)
        error[(have == reference) | (np.isnan(have) & np.isnan(reference))] = 0
        error[np.isnan(error)] = np.inf
        finite = np.where(np.isfinite(reference), reference, 0)
        norm, off = float(np.linalg.norm(finite)), float(np.linalg.norm(error))
    relative = 0.0 if off == 0 else off / norm if norm > 0 else math.inf
    return LayerError(
        tensor.name, tensor.op, tensor.node, tuple(want.shape), relative, float(error.max(initial=0)),
        float(np.abs(finite).max(initial=0)), None,
    )  # fmt: skip


def _with_growth(model: Any, found: Sequence[LayerError]) -> tuple[LayerError, ...]:
    by_name = {x.tensor: x.relative for x in found}
    inputs = {name: list(node.input) for node in model.graph.node for name in node.output}
    result = []
    for x in found:
        before = max((by_name.get(name, 0.0) for name in inputs[x.tensor]), default=0.0)
        growth = x.relative / before if 0 < before < math.inf and math.isfinite(x.relative) else None
        result.append(replace(x, growth=growth))
    return tuple(result)
