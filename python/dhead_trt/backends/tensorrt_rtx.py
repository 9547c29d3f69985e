"""TensorRT for RTX: engines built ahead of time, on any machine, for the RTX GPUs of others.

The network is strongly typed, so the precision is the graph's; there are no custom plugins, so the plan ends at the raw
maps. Building needs no GPU. Running needs one, and dhead_trt compiled with TensorRT 11's headers (module `_trt11`).
"""

from __future__ import annotations

import logging
import math
import re
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..artifact import Artifact
from ..errors import BackendUnavailable, BuildError, InputError
from . import cuda_driver
from .base import Availability, BuildRequest, BuildResult, ProgressCallback, Runner
from .trt_library import open_library
from .trt_runner import load_runner

__all__ = ["CAPABILITIES", "DEFAULT_CAPABILITIES", "TensorRTRTXBackend", "parse_capability"]

_log = logging.getLogger("dhead_trt")
_INSTALL = 'pip install "dhead-trt[rtx]"'
_CPU = "To run on this CPU, build with --backend openvino"

NO_INT8 = ("7.5",)  # seen in its plans: the convolutions' weights are stored wide there, and as int8 on all others
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")  # the library's own default: Turing must be asked for
_NAMES = {"turing": "7.5", "ampere": "8.6", "ada": "8.9", "blackwell": "12.0"}
_OTHER = {
    "7.0": "Volta",
    "7.2": "Jetson Xavier",
    "8.7": "Jetson Orin",
    "9.0": "Hopper (H100, H200)",
    "10.0": "data-centre Blackwell (B200)",
    "10.3": "data-centre Blackwell (B300)",
    "11.0": "Jetson Thor",
}


def parse_capability(text: str) -> str:
    """A compute capability as "8.6", from "8.6", "86", "sm_86", "SM86" or a family's name ("ada").

    Raises:
        BuildError: not a capability, or one TensorRT for RTX does not build for.
    """
    word = str(text).strip().lower()
    capability = _NAMES.get(word)
    if capability is None and (m := re.fullmatch(r"(?:sm_?|compute_?)?(\d{1,2})\.?(\d)", word)):
        capability = f"{m[1]}.{m[2]}"
    if capability in CAPABILITIES:
        return str(capability)
    expected = f"one of {', '.join(CAPABILITIES)}, or {', '.join(_NAMES)}"
    if capability in _OTHER:
        raise BuildError(
            f"TensorRT for RTX does not build for {_OTHER[capability]}",
            received=text,
            expected=expected,
            fix="Use --backend tensorrt for that GPU",
        )
    raise BuildError("This is not a compute capability TensorRT for RTX builds for", received=text, expected=expected)


class TensorRTRTXBackend:
    """Builds TensorRT for RTX plans.

    Build options:
        workspace_mib (int): limit of the workspace memory pool. Default: the library's.
        optimization_level (int): 0 to 5. Default: the library's (3).
    """

    name = "tensorrt_rtx"
    forms = ("raw", "native")
    precisions = ("fp32", "fp16", "int8")
    suffixes = (".plan", ".engine", ".trt")

    def availability(self) -> Availability:
        """Builds wherever the package imports; runs where there is a GPU too, and the module `_trt11`."""
        try:
            trt = _import()
        except BackendUnavailable as e:
            return Availability(False, False, str(e))
        version = str(trt.__version__)
        gpus = cuda_driver.devices()
        detail = {"GPUs": ", ".join(f"{g.name} ({g.capability})" for g in gpus) or "none"}
        why_not = _cannot_run(gpus)
        reason = f"TensorRT for RTX {version} builds " + (f"here; {why_not}" if why_not else "and runs here")
        return Availability(True, not why_not, reason, detail, version)

    def build(self, request: BuildRequest) -> BuildResult:
        """Builds a plan for the chosen compute capabilities. Ctrl-C stops it and leaves nothing behind.

        Raises:
            BackendUnavailable: the package is not installed.
            BuildError: the graph, an option or a compute capability was refused.
        """
        trt = _import()
        options = dict(request.options)
        workspace, level = options.pop("workspace_mib", None), options.pop("optimization_level", None)
        if options:
            raise BuildError(
                f"TensorRT for RTX has no build option {sorted(options)[0]!r}",
                expected="workspace_mib, optimization_level",
            )
        wanted, notes = _capabilities(request.compute_capabilities)
        wide = [c for c in wanted if c in NO_INT8]
        if request.precision == "int8" and wide:
            notes += (
                f"int8 convolutions are not native on {', '.join(wide)} (Turing): TensorRT for RTX stores their "
                "weights wide there, so that int8 is no smaller than fp16, and should not be expected to be faster.",
            )
        unbounded = [t for t in request.inputs if t.profile is not None and any(-1 in s for s in t.profile)]
        if unbounded:
            raise BuildError(
                f"Input {unbounded[0].name!r} has dimensions without bounds, and TensorRT needs a profile",
                received=unbounded[0].describe(),
                fix="Give image_size=(height, width), or (min, opt, max) sizes",
            )
        logger = _logger(trt)
        try:
            builder = trt.Builder(logger)
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            parser = trt.OnnxParser(network, logger)
            request.progress("TensorRT for RTX: parsing", None)
            if not parser.parse(request.model.SerializeToString()) or parser.num_errors:
                raise _parser_error(parser)
            config = builder.create_builder_config()
            _configure(trt, config, wanted, workspace, level)
            _add_profile(builder, config, request)
            outputs = tuple(v.name for v in request.model.graph.output)
        except BuildError:
            raise
        except (RuntimeError, TypeError, ValueError) as e:
            raise BuildError("TensorRT for RTX refused the build", received=logger.last or str(e)) from e
        plan = _serialize(trt, builder, network, config, request.progress, logger)
        (request.folder / request.plan_name).write_bytes(memoryview(plan))
        from ..shapes import tensor_infos

        infos = {t.name: t for t in tensor_infos(request.model, outputs=True)}
        return BuildResult(
            files=(request.plan_name,),
            inputs=request.inputs,
            outputs=tuple(infos[name] for name in outputs),
            version=str(trt.__version__),
            compute_capabilities=wanted,
            options={"workspace_mib": workspace, "optimization_level": level},
            notes=notes,
        )

    def load(
        self, artifact: Artifact, device: str | None = None, *, threads: int | None = None, **options: Any
    ) -> Runner:
        """Loads a plan.

        Raises:
            ArtifactError: it was built for another GPU, or is damaged.
            BackendUnavailable: no GPU, driver or library, or dhead_trt was built without its engine; says what is
                missing, and how to build for the CPU.
            InputError: an option is not known.
        """
        built_for = ", ".join(artifact.compute_capabilities) or "it was built for"
        reason = _cannot_run(cuda_driver.devices())
        if not reason:
            return load_runner(artifact, device, options, rtx=True)
        raise BackendUnavailable(
            f"The engine {artifact.plan.name} cannot run here",
            received=reason,
            expected=f"an RTX GPU of compute capability {built_for}",
            fix=_CPU,
        )


def _import() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as e:
        raise BackendUnavailable("TensorRT for RTX is not installed", received=str(e), fix=_INSTALL) from e
    except Exception as e:  # its wrapper raises other errors where its library does not load
        raise BackendUnavailable("TensorRT for RTX is installed but does not load", received=str(e)) from e
    return tensorrt_rtx


def _cannot_run(gpus: Sequence[cuda_driver.Device]) -> str:
    """Why plans do not run here, or nothing."""
    if not gpus:
        return f"running needs an NVIDIA RTX GPU, and {cuda_driver.why_none()}"
    if not any(g.capability in CAPABILITIES for g in gpus):
        return f"it does not run on {gpus[0].name} ({gpus[0].capability})"
    try:
        open_library(rtx=True)
    except BackendUnavailable as e:
        return str(e).rstrip(".")
    return ""


def _capabilities(asked: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(capabilities in order, what to note)."""
    if asked:
        return tuple(sorted({parse_capability(c) for c in asked}, key=CAPABILITIES.index)), ()
    note = (
        f"Built for compute capabilities {', '.join(DEFAULT_CAPABILITIES)} (the default); Turing (7.5) is left out "
        "unless it is asked for."
    )
    return DEFAULT_CAPABILITIES, (note,)


def _configure(trt: Any, config: Any, wanted: Sequence[str], workspace: Any, level: Any) -> None:
    config.num_compute_capabilities = len(wanted)
    for i, capability in enumerate(wanted):
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if member is None or not config.set_compute_capability(member, i):
            raise BuildError(f"TensorRT for RTX {trt.__version__} does not build for {capability}")
    if workspace is not None:
        if isinstance(workspace, bool) or not isinstance(workspace, int) or workspace < 1:
            raise InputError("workspace_mib is not a size", received=repr(workspace), expected="MiB, at least 1")
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    if level is not None:
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= 5:
            raise InputError("optimization_level is out of range", received=repr(level), expected="0 to 5")
        config.builder_optimization_level = level


def _add_profile(builder: Any, config: Any, request: BuildRequest) -> None:
    if all(t.profile is None for t in request.inputs):
        return
    profile = builder.create_optimization_profile()
    for t in request.inputs:
        profile.set_shape(t.name, *(t.profile or (t.shape, t.shape, t.shape)))
    if config.add_optimization_profile(profile) < 0:
        shapes = {t.name: t.describe() for t in request.inputs}
        raise BuildError("TensorRT for RTX refused the optimisation profile", received=shapes)


def _parser_error(parser: Any) -> BuildError:
    """The first error of the ONNX parser, with the node it is about."""
    if not parser.num_errors:
        return BuildError("TensorRT for RTX cannot parse the graph", received="no error given")
    error = parser.get_error(0)
    node, operator = error.node_name(), error.node_operator()
    where = f" at node {node!r} ({operator})" if node or operator else ""
    return BuildError(
        f"TensorRT for RTX cannot parse the graph{where}",
        received=error.desc().strip(),
        expected="operators it supports" if operator else None,
    )


def _serialize(trt: Any, builder: Any, network: Any, config: Any, tell: ProgressCallback, logger: Any) -> Any:
    """Builds; on the main thread Ctrl-C ends it at the builder's next step, and is then raised."""
    interrupted = threading.Event()
    monitor = _monitor(trt, tell, interrupted)
    config.progress_monitor = monitor
    on_main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if on_main else None
    take_over = on_main and previous not in (signal.SIG_IGN, None)  # None: not of Python, and could not be put back
    if take_over:  # an exception must not be raised inside the library's callback
        signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        plan = builder.build_serialized_network(network, config)
    except RuntimeError as e:
        raise BuildError("TensorRT for RTX could not build the engine", received=logger.last or str(e)) from e
    finally:
        if take_over:
            signal.signal(signal.SIGINT, previous)
    if interrupted.is_set():
        if callable(previous):
            previous(signal.SIGINT, None)  # the usual handler raises KeyboardInterrupt
        raise KeyboardInterrupt
    if monitor.error is not None:
        raise monitor.error
    if plan is None:
        raise BuildError("TensorRT for RTX could not build the engine", received=logger.last or "no reason given")
    return plan


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Passes messages to logging, and keeps the last error for ours."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.last = self.last or message.strip()
            _log.debug("TensorRT for RTX: %s", message)

    return Logger()


def _monitor(trt: Any, tell: ProgressCallback, interrupted: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Turns the builder's nested phases into one fraction that only grows."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._phases: dict[str, list[Any]] = {}  # name → [parent, steps, steps done]
            self._shown = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases[phase_name] = [parent_phase, max(num_steps, 1), 0]

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                self._phases[phase_name][2] = step + 1
            self._guard(lambda: tell("TensorRT for RTX: building", self._fraction(phase_name)))
            return self.error is None and not interrupted.is_set()

        def _fraction(self, phase: str | None) -> float:
            share = 0.0
            while phase in self._phases:
                parent, steps, done = self._phases[phase]
                share = min((done + min(share, 1.0 - 1e-9)) / steps, 1.0)
                phase = parent
            self._shown = max(self._shown, math.floor(share * 1000) / 1000)
            return self._shown

        def _guard(self, action: Callable[[], None]) -> None:
            try:
                action()
            except BaseException as e:  # carried across the library, which must not see it
                self.error = self.error or e

    return Monitor()
