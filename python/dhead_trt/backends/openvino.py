"""OpenVINO, for any CPU (and what other devices its plugins serve).

The plan is an OpenVINO IR: `<stem>.xml` with its weights in `<stem>.bin`. Precision is not in the IR but a hint at
load, and OpenVINO may replace a hint without a word (f16 becomes bf16 without AVX512-FP16, nothing becomes bf16 with
AMX), so this module always sets it, from what the device says it can do, and reports every replacement.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import Artifact, TensorInfo
from ..errors import ArtifactError, BackendUnavailable, BuildError, InputError
from ..winograd import use_winograd
from .base import Availability, BuildRequest, BuildResult, Runner, copied

__all__ = ["OpenVINOBackend", "new_core"]

_log = logging.getLogger("dhead_trt")
_INSTALL = 'pip install "dhead-trt[cpu]"'
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}  # int8: see _hint
_NEEDS = {"fp16": ("FP16", "f16 arithmetic (AVX512-FP16)"), "bf16": ("BF16", "bf16 arithmetic (AVX512-BF16 or AMX)")}
_DTYPES = {"f32": "float32", "f16": "float16", "i64": "int64", "i32": "int32", "u8": "uint8"}
_MAX_REQUESTS = 8  # beyond this, threads wait: more requests would only take memory


def _import() -> Any:
    try:
        import openvino
    except ImportError as e:
        raise BackendUnavailable("OpenVINO is not installed", received=str(e), fix=_INSTALL) from e
    return openvino


def new_core(ov: Any) -> Any:
    """A core whose CPU plugin leaves the calling thread's signal stack alone.

    The plugin (2026.4.1) puts an alternate signal stack of its own on the thread that loads it, and unmaps it when the
    core and what it compiled are gone, without taking it off that thread if they go on another thread or not in
    reverse order of loading. The kernel then has nowhere to write the next signal with a Python handler, such as
    Ctrl-C, and ends the process with SIGSEGV. So the thread that loads the plugin is one that ends here.
    """
    core = ov.Core()

    def load() -> None:
        with suppress(RuntimeError):  # raised again, to the caller, where the device is used
            core.get_versions("CPU")

    thread = threading.Thread(target=load, name="dhead-openvino", daemon=True)
    thread.start()
    thread.join()
    return core


class OpenVINOBackend:
    """Builds OpenVINO IR from ONNX and runs it.

    Build options:
        compress_to_fp16 (bool): store the weights as fp16. Default: only with precision="fp16".
        winograd (bool): compute the wide 3×3 convolutions with fewer multiplications (`dhead_trt.winograd`), for
            weights that take 16/9 of the room. Default: only with precision="fp32".

    Load options:
        pin (bool): tie the threads to cores. Faster where nothing else runs on the machine, slower where something
            does. Default False.
        hint ("latency", "throughput"): one request at a time on all threads, or several side by side. Default latency.
        layers (bool): measure every layer (slower). Default False.
        high ("f32", "bf16"): what an int8 plan computes its other layers in. bf16, on CPUs that have it, is up to a
            quarter faster where many layers are kept, and agrees less with the float32 graph than the accuracy gate
            found. Default f32.
    """

    name = "openvino"
    forms = ("raw", "native")
    precisions = ("fp32", "fp16", "bf16", "int8")
    suffixes = (".xml",)

    def availability(self) -> Availability:
        """Builds and runs wherever the package imports and finds a CPU device."""
        try:
            ov = _import()
            core = new_core(ov)
            devices = list(core.available_devices)
            detail = {"devices": ", ".join(devices)}
            if "CPU" in devices:
                detail["cpu"] = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
                detail["cpu computes in"] = ", ".join(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        except BackendUnavailable as e:
            return Availability(False, False, str(e))
        except Exception as e:
            return Availability(False, False, f"OpenVINO is installed but does not start: {_first_line(e)}")
        version = _version()
        if not devices:
            return Availability(True, False, f"OpenVINO {version} finds no device to run on", detail, version)
        return Availability(True, True, f"OpenVINO {version} with {', '.join(devices)}", detail, version)

    def build(self, request: BuildRequest) -> BuildResult:
        """Converts ONNX to IR.

        Raises:
            BackendUnavailable: OpenVINO is not installed.
            BuildError: an option is not known, or OpenVINO refused the graph.
        """
        ov = _import()
        options = dict(request.options)
        compress = bool(options.pop("compress_to_fp16", request.precision == "fp16"))
        winograd = bool(options.pop("winograd", request.precision == "fp32"))
        if options:
            raise BuildError(
                f"OpenVINO has no build option {sorted(options)[0]!r}", expected="compress_to_fp16 or winograd"
            )
        if request.compute_capabilities:
            raise BuildError(
                "Compute capabilities belong to GPU backends",
                received=", ".join(request.compute_capabilities),
                expected="none, for openvino",
            )
        core = new_core(ov)
        request.progress("OpenVINO: converting", 0.0)
        graph, replaced = use_winograd(request.model) if winograd else (request.model, 0)
        if request.precision == "int8":
            from ..precision.unsigned import unsigned_activations

            graph = unsigned_activations(graph)
        try:
            model = core.read_model(graph.SerializeToString())
            model.reshape({t.name: _partial(ov, t) for t in request.inputs})
            _steady_names(model)
            ov.save_model(model, str(request.folder / request.plan_name), compress_to_fp16=compress)
            inputs = tuple(_info(model.input(t.name), t.name, t) for t in request.inputs)
            outputs = tuple(_info(model.output(v.name), v.name) for v in request.model.graph.output)
        except RuntimeError as e:
            raise BuildError("OpenVINO refused the graph", received=_first_line(e)) from e
        request.progress("OpenVINO: converting", 1.0)
        _, _, note = _hint(core, "CPU", request.precision) if "CPU" in core.available_devices else ("", "", None)
        return BuildResult(
            files=(request.plan_name, request.plan_name.removesuffix(".xml") + ".bin"),
            inputs=inputs,
            outputs=outputs,
            version=_version(),
            options={"compress_to_fp16": compress, "winograd": replaced},
            notes=() if note is None else (f"On the machine that built it: {note}",),
        )

    def load(
        self, artifact: Artifact, device: str | None = None, *, threads: int | None = None, **options: Any
    ) -> Runner:
        """Compiles the IR for a device ("CPU" by default; what OpenVINO calls its devices).

        Raises:
            BackendUnavailable: OpenVINO is not installed, or has no such device here.
            ArtifactError: OpenVINO cannot read the plan.
            InputError: an option is not known.
        """
        ov = _import()
        device = (device or "CPU").upper()
        pin, hint, layers = options.pop("pin", False), options.pop("hint", "latency"), options.pop("layers", False)
        high = options.pop("high", "f32")
        if options:
            raise InputError(
                f"OpenVINO has no load option {sorted(options)[0]!r}", expected="pin, hint, layers or high"
            )
        if hint not in ("latency", "throughput"):
            raise InputError(
                "The performance hint is not known", received=repr(hint), expected="'latency' or 'throughput'"
            )
        if high not in ("f32", "bf16"):
            raise InputError("The higher precision is not known", received=repr(high), expected="'f32' or 'bf16'")
        core = new_core(ov)
        try:
            requested, precision, note = _hint(core, device, artifact.precision, high)
        except RuntimeError as e:
            raise BackendUnavailable(
                f"OpenVINO cannot use the device {device!r}",
                received=_first_line(e),
                expected=f"one of {', '.join(core.available_devices)}",
            ) from e
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": requested,
            "PERFORMANCE_HINT": hint.upper(),
            "PERF_COUNT": bool(layers),
        }
        if device == "CPU":
            config["ENABLE_CPU_PINNING"] = bool(pin)
            if threads is not None:
                config["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(artifact.plan))
        except RuntimeError as e:
            raise ArtifactError("OpenVINO cannot read this plan", received=_first_line(e)) from e
        try:
            compiled = core.compile_model(model, device, config)
        except RuntimeError as e:
            raise BackendUnavailable(f"OpenVINO cannot load this plan on {device}", received=_first_line(e)) from e
        if note is not None:
            _log.warning("%s: %s", artifact.plan.name, note)
        return _Runner(ov, compiled, artifact, device, precision, () if note is None else (note,))


class _Runner:
    """A compiled model and its infer requests, each used by one thread at a time."""

    def __init__(
        self, ov: Any, compiled: Any, artifact: Artifact, device: str, precision: str, notes: tuple[str, ...]
    ) -> None:
        self._tensor, self._compiled = ov.Tensor, compiled
        self._device, self._precision, self._notes = device, precision, notes
        self._inputs = [t.name for t in artifact.inputs]
        self._outputs = [t.name for t in artifact.outputs]
        self._free: list[Any] = []
        self._made = 0
        self._last: Any = None
        self._changed = threading.Condition()

    @property
    def precision(self) -> str:
        """What it computes in: "fp32", "fp16", "bf16" or "int8"."""
        return self._precision

    @property
    def notes(self) -> tuple[str, ...]:
        """Fall-backs from the precision asked for."""
        return self._notes

    @property
    def device(self) -> str:
        """OpenVINO's name of the device."""
        return self._device

    @contextmanager
    def borrow(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Runs once, reading `inputs` where they lie (C-contiguous); yields the outputs in OpenVINO's own memory."""
        request = self._take()
        try:
            for name in self._inputs:
                array = inputs[name]
                if not array.flags.writeable:
                    array = _writeable_view(array)
                request.set_tensor(name, self._tensor(array, shared_memory=True))
            try:
                request.start_async()  # infer() would copy every output
                request.wait()
            except RuntimeError as e:
                shapes = ", ".join(f"{name} {list(inputs[name].shape)}" for name in self._inputs)
                raise InputError(
                    "The engine cannot run on inputs of these shapes", received=f"{shapes} ({_first_line(e)})"
                ) from e
            yield {name: request.get_tensor(name).data for name in self._outputs}
        finally:
            self._give(request)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs once; the outputs are copies."""
        with self.borrow(inputs) as outputs:
            return copied(outputs)

    def layers(self) -> list[tuple[str, str, float]]:
        """(name, kind, ms) of the layers that ran, of the request used last."""
        if self._last is None:
            return []
        return [
            (str(p.node_name), str(p.exec_type), p.real_time.total_seconds() * 1e3)
            for p in self._last.profiling_info
            if p.real_time.total_seconds() > 0
        ]

    def close(self) -> None:
        """Frees requests and model; runs in flight finish first."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._free) == self._made)
            self._free.clear()
            self._made, self._last, self._compiled = 0, None, None

    def _take(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._made < _MAX_REQUESTS)
            if self._compiled is None:
                raise InputError("This engine is closed")
            if self._free:
                return self._free.pop()
            request = self._compiled.create_infer_request()
            self._made += 1
            return request

    def _give(self, request: Any) -> None:
        with self._changed:
            self._free.append(request)
            self._last = request
            self._changed.notify_all()


def _hint(core: Any, device: str, precision: str, high: str = "f32") -> tuple[str, str, str | None]:
    """(hint to set, precision that results, a sentence where it is not the one asked for)."""
    abilities = list(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
    if precision == "int8":  # bf16 between its layers took F1 of the document pages from 0.980 to 0.963
        return "bf16" if high == "bf16" and "BF16" in abilities else "f32", "int8", None
    if precision in _NEEDS and _NEEDS[precision][0] not in abilities:
        lacks = _NEEDS[precision][1]
        note = f"{device} has no {lacks}, so this {precision} engine computes in fp32"
        return "f32", "fp32", note
    return _HINTS[precision], precision, None


def _steady_names(model: Any) -> None:
    """Numbers the nodes that OpenVINO numbered over the whole process, so that equal graphs give equal files."""
    for i, op in enumerate(model.get_ordered_ops()):
        if re.fullmatch(re.escape(op.get_type_name()) + r"_\d+", op.get_friendly_name()):
            op.set_friendly_name(f"{op.get_type_name()}_{i}")


def _partial(ov: Any, tensor: TensorInfo) -> Any:
    """OpenVINO's shape of an input: fixed, bounded by its profile, or free."""
    dims = []
    for i, d in enumerate(tensor.shape):
        if d != -1:
            dims.append(ov.Dimension(d))
        elif tensor.profile is None:
            dims.append(ov.Dimension())
        else:
            low, high = tensor.profile[0][i], tensor.profile[2][i]
            dims.append(ov.Dimension(max(low, 1), high) if high != -1 else ov.Dimension(max(low, 1), -1))
    return ov.PartialShape(dims)


def _info(port: Any, name: str, known: TensorInfo | None = None) -> TensorInfo:
    shape = tuple(d.get_length() if d.is_static else -1 for d in port.partial_shape)
    dtype = port.element_type.get_type_name()
    if dtype not in _DTYPES:
        raise BuildError(f"Tensor {name!r} has a type the engine cannot pass", received=dtype, expected=tuple(_DTYPES))
    return TensorInfo(name, _DTYPES[dtype], shape, None if known is None or -1 not in shape else known.profile)


def _writeable_view(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory without its read-only mark, which OpenVINO's tensor refuses; inputs are only read."""
    holder = _ReadOnly(array)
    return np.asarray(holder)


class _ReadOnly:
    """Keeps a read-only array alive and shows its memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        pointer, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (pointer, False)}


def _version() -> str:
    return importlib.metadata.version("openvino")


def _first_line(error: object) -> str:
    """The sentence in OpenVINO's many lines: the last that is not a place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "FrontEnd API failed"))]
    return (telling or lines or [type(error).__name__])[0]
