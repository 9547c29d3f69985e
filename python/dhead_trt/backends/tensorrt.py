"""TensorRT, for Jetson and data-centre GPUs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from ..artifact import Artifact
from ..errors import BackendUnavailable, BuildError
from .base import Availability, BuildRequest, BuildResult, ProgressCallback, Runner
from .trt_library import open_library, plugin_library
from .trt_runner import device_index, load_runner

__all__ = ["TensorRTBackend"]

_log = logging.getLogger("dhead_trt")
_FIX = (
    'Use --backend openvino to run on this CPU (pip install "dhead-trt[cpu]"), '
    'or --backend tensorrt_rtx to build for RTX GPUs (pip install "dhead-trt[rtx]")'
)
_POOLS = ("workspace", "tactic_dram", "tactic_shared_memory", "dla_sram", "dla_local_dram", "dla_global_dram")
_PLAIN = (
    "timing_cache", "optimization_level", "avg_timing_iterations", "max_aux_streams", "hardware", "version_compatible",
    "exclude_lean_runtime", "sparse_weights", "tf32", "verbosity", "dla_core", "gpu_fallback", "mark_outputs",
    "mark_all_outputs",
)  # fmt: skip
_OWN = ("device", "library", "plugins", "profiles")


class TensorRTBackend:
    """Builds and runs TensorRT engines through the compiled modules `_trt10` and `_trt11`.

    Build options:
        workspace_mib, tactic_dram_mib, tactic_shared_memory_mib, dla_sram_mib, dla_local_dram_mib, dla_global_dram_mib
            (int): limits of the memory pools.
        timing_cache (str): file kept between builds, safe to share.
        optimization_level (int): 0 to 5.
        hardware (str): "none", "ampere_plus" or "same_compute_capability".
        version_compatible (bool): the plan also runs on later minor versions; exclude_lean_runtime (bool).
        dla_core (int), gpu_fallback (bool): for Jetson's DLA.
        verbosity (str): "layer_names", "none" or "detailed".
        mark_outputs (list of str), mark_all_outputs (bool): inner tensors to compare layer by layer.
        profiles: more optimisation profiles: a list of dicts, input name → (min, opt, max) shapes.
        plugins (list of str): plugin libraries. device (int): which GPU. library (str): folder of libnvinfer.
        avg_timing_iterations, max_aux_streams (int), sparse_weights, tf32 (bool).

    Load options: max_contexts (int, 8): calls at the same time. cuda_graphs (bool): replay calls of the same shapes and
        addresses. plugins, library: as above.
    """

    name = "tensorrt"
    precisions = ("fp32", "fp16", "int8")
    suffixes = (".plan", ".engine", ".trt")

    @property
    def forms(self) -> tuple[str, ...]:
        """With the plugin library "detections" first; without it the plan ends at the raw maps."""
        try:
            _, library = open_library()
        except BackendUnavailable:
            return ("detections", "decoded", "raw", "native")
        if plugin_library(int(library.version.split(".")[0])):
            return ("detections", "decoded", "raw", "native")
        return ("raw", "native")

    def availability(self) -> Availability:
        """Builds and runs where the library, a driver and a GPU are."""
        try:
            module, library = open_library()
        except BackendUnavailable as e:
            return Availability(False, False, str(e))
        detail = {"libnvinfer": library.path, "headers": module.HEADER_VERSION}
        plugins = plugin_library(int(library.version.split(".")[0]))
        detail["plugins"] = plugins or "not built: plans end at the raw maps"
        try:
            devices = library.devices()
        except BackendUnavailable as e:
            return Availability(False, False, str(e), detail, library.version)
        detail["GPUs"] = ", ".join(f"{name} ({major}.{minor})" for name, (major, minor) in devices)
        return Availability(True, True, f"TensorRT {library.version} builds and runs here", detail, library.version)

    def build(self, request: BuildRequest) -> BuildResult:
        """Builds a plan for this machine's GPU. Ctrl-C stops it and leaves nothing behind.

        Raises:
            BackendUnavailable: no library, driver or GPU.
            BuildError: the graph or an option was refused, or the build failed.
            InputError: an option is out of range.
        """
        options = dict(request.options)
        own = {name: options.pop(name) for name in _OWN if name in options}
        arguments = _arguments(options)
        try:
            module, library = open_library(path=str(own.get("library", "")))
            index = device_index(own.get("device"))
            name, capability = library.devices()[index]
        except BackendUnavailable as e:
            raise BackendUnavailable("TensorRT cannot build here", received=str(e), fix=_FIX) from e
        except IndexError as e:
            raise BuildError("There is no such GPU", received=own.get("device")) from e
        here = f"{capability[0]}.{capability[1]}"
        if request.compute_capabilities and any(c.lower().removeprefix("sm_") not in (here, here.replace(".", ""))
                                                for c in request.compute_capabilities):  # fmt: skip
            raise BuildError(
                "TensorRT builds for the GPU it runs on",
                received=f"compute_capabilities {', '.join(request.compute_capabilities)}",
                expected=f"{here} ({name})",
                fix='Build on that GPU, or pass options={"hardware": "ampere_plus"}',
            )
        plugins = [str(p) for p in own.get("plugins", ())]
        if any(n.domain == "dhead" for n in request.model.graph.node) and not plugins:
            ours = plugin_library(int(library.version.split(".")[0]))
            if ours is None:
                raise BuildError(
                    "This graph needs dhead_trt's plugin library, which was not built",
                    fix="Install dhead_trt with nvcc on PATH, or build form 'raw'",
                )
            plugins = [ours]
        request.progress("TensorRT: parsing", None)
        result = module.build(
            library,
            request.model.SerializeToString(),
            profiles=_profiles(request, own.get("profiles")),
            plugins=plugins,
            device=index,
            output=str(request.folder / request.plan_name),
            progress=_Fraction(request.progress),
            log=_log_line,
            **arguments,
        )
        from ..shapes import tensor_infos

        compute = {"ampere_plus": "8.0+"}.get(str(arguments.get("hardware")), here)
        return BuildResult(
            files=(request.plan_name,),
            inputs=request.inputs,
            outputs=_outputs(result, {t.name: t for t in tensor_infos(request.model, outputs=True)}),
            version=str(result["version"]),
            compute_capabilities=(compute,),
            gpu=str(name),
            options={k: v for k, v in request.options.items() if k not in ("library", "plugins", "timing_cache")},
            notes=tuple(f"TensorRT: {w}" for w in result["warnings"]),
        )

    def load(
        self, artifact: Artifact, device: str | None = None, *, threads: int | None = None, **options: Any
    ) -> Runner:
        """Loads a plan.

        Raises:
            ArtifactError: it was built by another version, for another GPU, or is damaged.
            BackendUnavailable: no library, driver or GPU.
            InputError: an option is not known.
        """
        try:
            return load_runner(artifact, device, options, rtx=False)
        except BackendUnavailable as e:
            raise BackendUnavailable(
                f"The engine {artifact.plan.name} cannot run here", received=str(e), fix=_FIX
            ) from e


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The compiled builder's arguments; sizes from MiB."""
    arguments = {}
    for name, value in options.items():
        pool = name.removesuffix("_mib")
        if name.endswith("_mib") and pool in _POOLS:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BuildError(f"{name} is not a size", received=repr(value), expected="MiB, at least 1")
            arguments[pool] = value << 20
        elif name in _PLAIN:
            arguments[name] = value
        else:
            known = (*(p + "_mib" for p in _POOLS), *_PLAIN, *_OWN)
            raise BuildError(f"TensorRT has no build option {name!r}", expected=", ".join(known))
    return arguments


def _profiles(request: BuildRequest, given: Any) -> list[dict[str, Any]]:
    """The request's profile, unless the model is static or others are given."""
    if given:
        return [{name: tuple(map(tuple, shapes)) for name, shapes in p.items()} for p in given]
    if all(t.profile is None for t in request.inputs):
        return []
    unbounded = [t for t in request.inputs if t.profile is not None and any(-1 in s for s in t.profile)]
    if unbounded:
        raise BuildError(
            f"Input {unbounded[0].name!r} has dimensions without bounds, and TensorRT needs a profile",
            received=unbounded[0].describe(),
            fix="Give image_size=(height, width), or (min, opt, max) sizes",
        )
    return [{t.name: t.profile or (t.shape, t.shape, t.shape) for t in request.inputs}]


def _outputs(result: Mapping[str, Any], infos: Mapping[str, Any]) -> tuple[Any, ...]:
    """The plan's outputs: the graph's, then those that were marked."""
    from ..artifact import TensorInfo

    return tuple(
        infos.get(t["name"]) or TensorInfo(t["name"], t["dtype"], tuple(t["shape"])) for t in result["outputs"]
    )


def _log_line(level: int, text: str) -> None:
    _log.log(logging.ERROR if level < 2 else logging.DEBUG, "TensorRT: %s", text)


class _Fraction:
    """Turns the builder's nested phases into one fraction that only grows."""

    def __init__(self, tell: ProgressCallback) -> None:
        self._tell, self._shown = tell, 0.0
        self._phases: dict[str, tuple[str, int, int]] = {}

    def __call__(self, phase: str, parent: str, step: int, steps: int) -> None:
        self._phases[phase] = (parent, step, max(steps, 1))
        share, at = 0.0, phase
        for _ in range(16):
            if at not in self._phases:
                break
            above, done, total = self._phases[at]
            share, at = min((done + min(share, 1 - 1e-9)) / total, 1.0), above
        if step >= steps:
            self._phases.pop(phase, None)
        self._shown = max(self._shown, math.floor(share * 1000) / 1000)
        self._tell("TensorRT: building", self._shown)
