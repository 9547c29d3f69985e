"""Whether a plan computes what its graph does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact
from .backends import Backend
from .errors import BackendUnavailable, BuildError
from .shapes import random_inputs, run_reference
from .spec import HeadSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["check_plan"]

# ‖plan − graph‖ / ‖graph‖ of each output. In a deep int8 graph one rounding makes another: it answers the last bit of a
# sum with 2 to 14 %, and bfloat16 between its layers with up to 34 %, in box maps where the network sees nothing. So
# int8 is judged where it sees objects, and the whole output says only whether the plan is of another function.
_LIMITS = {"fp32": 2e-3, "fp16": 3e-2, "bf16": 2e-1, "int8": 5e-1}
_BEST_LIMIT = 1e-1  # at the best anchors, for int8: up to 0.03 measured, and 0.21 and more where a runtime was wrong
_BEST = 200  # anchors of each image, by the graph's own scores


def check_plan(
    artifact: Artifact,
    backend: Backend,
    graph: onnx.ModelProto,
    can_run: bool,
    sample: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs the plan and the graph on the same input; figures for the sidecar.

    Args:
        artifact: of the plan, where it lies.
        backend: that runs it.
        graph: what it must compute.
        can_run: whether the backend runs here; else nothing is checked.
        sample: inputs by name, [B, …]; None, or of other shapes: seeded random numbers.

    Returns:
        "against", "computed_in", "outputs" (of each the largest error, "max", and the relative one), and for int8 with
        raw maps "best_anchors": relative errors of the maps of each kind at the 200 best anchors of each image. Or
        "skipped" and why.

    Raises:
        BuildError: an output has another shape, or is further off than the precision explains.
    """
    if not can_run:
        return {"skipped": f"{backend.name} cannot run here"}
    runner = backend.load(artifact)
    try:
        high = artifact.inputs[0].profile[2][0] if artifact.inputs[0].profile else artifact.inputs[0].shape[0]
        inputs = random_inputs(artifact.inputs, batch=min(high, 2), spec=artifact.spec)
        if sample is not None and all(
            n in sample and len(sample[n]) >= len(x) and sample[n].shape[1:] == x.shape[1:] for n, x in inputs.items()
        ):
            inputs = {n: np.ascontiguousarray(sample[n][: len(x)], dtype=x.dtype) for n, x in inputs.items()}
        got = runner.run(inputs)
        computed = runner.precision
    finally:
        runner.close()
    try:
        want = run_reference(graph, inputs)
    except BackendUnavailable as e:
        return {"skipped": str(e)}
    precision = artifact.precision
    name = "int8" if precision == "int8" else "fp32"
    figures: dict[str, Any] = {"against": f"ONNX Runtime on the {name} graph", "computed_in": computed, "outputs": {}}
    for name, reference in want.items():
        if got[name].shape != reference.shape:
            raise BuildError(
                f"Output {name!r} of the plan has another shape", received=got[name].shape, expected=reference.shape
            )
        relative = _relative(got[name], reference)
        error = np.abs(got[name].astype(np.float64) - reference)
        figures["outputs"][name] = {"max": float(error.max(initial=0.0)), "relative": relative}
        _require(relative, _LIMITS[precision], f"output {name!r}", precision)
    spec = artifact.spec
    if precision == "int8" and spec is not None and set(spec.input_names) <= set(want):
        figures["best_anchors"] = best = _at_best_anchors(got, want, spec)
        for kind, relative in best.items():
            _require(relative, _BEST_LIMIT, f"the {kind} maps' best anchors", precision)
    return figures


def _require(relative: float, limit: float, where: str, precision: str) -> None:
    if not relative <= limit:
        raise BuildError(
            f"The plan does not compute what the graph does at {where}",
            received=f"relative error {relative:.2g}",
            expected=f"at most {limit:g} for {precision}",
            fix="Build with precision='fp32', and report this with the model if it stays",
        )


def _relative(got: NDArray[Any], want: NDArray[Any]) -> float:
    want = want.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - want) / max(float(np.linalg.norm(want)), 1e-12))


def _at_best_anchors(
    got: Mapping[str, NDArray[Any]], want: Mapping[str, NDArray[Any]], spec: HeadSpec
) -> dict[str, float]:
    """Relative errors at the anchors of best score, of the maps of each kind (box, cls, obj)."""
    kinds = ("box", "cls", *(("obj",) if spec.objectness else ()))
    scores = _sigmoid(_anchors(want, "cls", spec).max(axis=2))
    if spec.objectness:
        scores = scores * _sigmoid(_anchors(want, "obj", spec)[..., 0])
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :_BEST, None]
    return {
        kind: _relative(*(np.take_along_axis(_anchors(maps, kind, spec), rows, axis=1) for maps in (got, want)))
        for kind in kinds
    }


def _anchors(maps: Mapping[str, NDArray[Any]], kind: str, spec: HeadSpec) -> NDArray[Any]:
    """The maps of one kind as [B, anchors of all levels, channels], float64."""
    each = [maps[f"{kind}_{level}"].astype(np.float64) for level in range(spec.num_levels)]
    return np.concatenate([m.reshape(*m.shape[:2], -1).transpose(0, 2, 1) for m in each], axis=1)


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 0.5 * (1 + np.tanh(0.5 * x))
