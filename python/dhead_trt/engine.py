"""Engine: tensors in, tensors out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact, TensorInfo
from .backends import get_backend
from .errors import InputError
from .spec import HeadSpec

__all__ = ["Engine", "EngineProfile"]

OUTPUTS = ("detections", "decoded", "raw")
Arrays = dict[str, NDArray[Any]]


@dataclass
class EngineProfile:
    """Times of the calls made while a profile was open.

    Attributes:
        calls: one dict per call: stage ("prepare", "engine", "decode") → milliseconds.
        layers: (name, kind, ms) of each layer of the last call; only of engines opened with `layers=True`.
    """

    calls: list[dict[str, float]] = field(default_factory=list)
    layers: list[tuple[str, str, float]] = field(default_factory=list)

    def median(self) -> dict[str, float]:
        """Median milliseconds per stage, and of the whole call under "total"."""
        if not self.calls:
            return {}
        stages = {name: [call[name] for call in self.calls] for name in self.calls[0]}
        stages["total"] = [sum(call.values()) for call in self.calls]
        return {name: float(np.median(values)) for name, values in stages.items()}


class Engine:
    """A built engine, ready to run.

    The plan gives the head's raw maps, and the C++ core decodes them in place; `output` chooses how far. May be used
    from several threads at once, and as a context manager.

    Args:
        path: the plan, its sidecar, or an Artifact.
        device: where to run, in the backend's words; OpenVINO: "CPU" (default) and what else it finds.
        output: "detections": NMS included; "decoded": boxes and scores of every anchor; "raw": what the plan gives.
        threads: CPU threads for the plan and for the decode; default: the backend's choice.
        options: the backend's own options. OpenVINO: `hint="throughput"` for many threads calling at once, `pin=True`
            to tie threads to cores, `layers=True` to time every layer.

    Raises:
        ArtifactError: plan or sidecar is missing, damaged, or not of the other.
        BackendUnavailable: the plan's backend is not installed, or cannot run here.
        InputError: an argument is not known.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Artifact,
        device: str | None = None,
        *,
        output: str = "detections",
        threads: int | None = None,
        **options: Any,
    ) -> None:
        if output not in OUTPUTS:
            raise InputError("The output is not known", received=repr(output), expected=", ".join(map(repr, OUTPUTS)))
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InputError(
                "threads is not a number of threads", received=repr(threads), expected="at least 1, or None"
            )
        if isinstance(path, Artifact):
            self._artifact = path
            path.verify()
        else:
            self._artifact = Artifact.load(path)
        self._output, self._threads = output, threads
        self._route = _route(self._artifact, output)
        if self._route != "copy":
            from . import postprocess  # the compiled core: if it is missing, say so here and not in the first call

            self._postprocess = postprocess
        self._runner = get_backend(self._artifact.backend).load(self._artifact, device, threads=threads, **options)
        self._closed = False
        self._profiles: list[EngineProfile] = []
        self._lock = threading.Lock()

    @property
    def artifact(self) -> Artifact:
        """What the sidecar says."""
        return self._artifact

    @property
    def spec(self) -> HeadSpec:
        """The head.

        Raises:
            InputError: a native plan that carries none.
        """
        if self._artifact.spec is None:
            raise InputError("This native engine carries no HeadSpec", fix="Build it with spec=, or in form 'raw'")
        return self._artifact.spec

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs in order, with dtype, shape and profile."""
        return self._artifact.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What `infer` returns, in order; A is the number of anchors, K is max_det."""
        batch = self._artifact.inputs[0].shape[0]
        if self._route == "copy":
            return self._artifact.outputs
        if self._route == "decode":
            sizes = [t.shape[2:] for t in self._artifact.outputs if t.name.startswith("cls_")]
            known = all(-1 not in s for s in sizes)
            anchors = sum(int(np.prod(s)) for s in sizes) if known else -1
            return (
                TensorInfo("boxes", "float32", (batch, anchors, 4)),
                TensorInfo("scores", "float32", (batch, anchors, self.spec.num_classes)),
            )
        return (
            TensorInfo("num_dets", "int32", (batch, 1)),
            TensorInfo("det_boxes", "float32", (batch, -1, 4)),
            TensorInfo("det_scores", "float32", (batch, -1)),
            TensorInfo("det_classes", "int32", (batch, -1)),
            TensorInfo("dropped", "int32", (batch,)),
        )

    @property
    def device(self) -> str:
        """The device it runs on, in the backend's words."""
        return self._runner.device

    @property
    def precision(self) -> str:
        """What it really computes in, which `notes` explains where it is not the artifact's precision."""
        return self._runner.precision

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how it runs."""
        return self._runner.notes

    def infer(
        self,
        inputs: Any,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        max_candidates: int = 4096,
        classes: Sequence[int] | None = None,
        class_agnostic: bool = False,
        multi_label: bool = False,
        out: Mapping[str, NDArray[Any]] | None = None,
        stream: Any = None,
        check: bool = False,
    ) -> Arrays:
        """Runs the engine once.

        Arrays are numpy, torch (CPU), or anything with DLPack or `__array__`. C-contiguous ones are read in place;
        others are copied first. Values are not looked at: NaN in gives NaN raw maps, and no detection where they are.

        Args:
            inputs: a dict by name, a sequence in order, or the array itself where there is one input.
            conf, iou, max_det, max_candidates, classes, class_agnostic, multi_label: as in `postprocess.detect`; they
                matter for output="detections" only.
            out: arrays to write into, by name, as an earlier call returned them; nothing of their size is allocated.
            stream: for GPU backends only.
            check: refuse inputs that hold NaN or infinity (reads them once more).

        Returns:
            By output: "detections": num_dets [B,1] int32, det_boxes [B,K,4] float32 (xyxy, pixels of the network
            input), det_scores [B,K], det_classes [B,K] int32 (unused rows: 0, 0, -1), dropped [B] int32 (candidates
            beyond max_candidates); "decoded": boxes [B,A,4], scores [B,A,C]; "raw": the plan's outputs.

        Raises:
            InputError: a name, dtype, shape or option does not fit; the engine is closed.
        """
        if self._closed:
            raise InputError("This engine is closed", fix="Open it again with Engine(path)")
        if stream is not None:
            raise InputError(
                f"{self._artifact.backend} runs on {self.device}, which has no streams", received="stream="
            )
        started = time.perf_counter()
        bound = self._bind(inputs)
        if check:
            _refuse_non_finite(bound)
        prepared = time.perf_counter()
        with self._runner.borrow(bound) as raw:
            ran = time.perf_counter()
            if self._route == "copy":
                result = _copy(raw, out)
            elif self._route == "decode":
                pair = cast("tuple[Any, Any] | None", _pick(out, ("boxes", "scores")))
                boxes, scores = self._postprocess.decode(raw, self.spec, out=pair, threads=self._threads)
                result = {"boxes": boxes, "scores": scores}
            else:
                picked = _pick(out, self._postprocess.DetectResult._fields)
                options: dict[str, Any] = {
                    "conf": conf,
                    "iou": iou,
                    "max_candidates": max_candidates,
                    "max_det": max_det,
                    "classes": classes,
                    "class_agnostic": class_agnostic,
                    "multi_label": multi_label,
                    "out": None if picked is None else self._postprocess.DetectResult(*picked),
                    "threads": self._threads,
                }
                if self._route == "detect":
                    found = self._postprocess.detect(raw, self.spec, **options)
                else:
                    found = self._postprocess.nms(raw["boxes"], raw["scores"], **options)
                result = found._asdict()
        if self._profiles:
            self._record(started, prepared, ran, time.perf_counter())
        return result

    __call__ = infer

    @contextmanager
    def profile(self) -> Iterator[EngineProfile]:
        """Collects the times of all calls, of any thread, made inside the `with`."""
        profile = EngineProfile()
        with self._lock:
            self._profiles = [*self._profiles, profile]
        try:
            yield profile
        finally:
            with self._lock:
                self._profiles = [p for p in self._profiles if p is not profile]
            profile.layers = self._runner.layers() if not self._closed else []

    def close(self) -> None:
        """Frees the engine, after calls in flight have ended; it cannot be used any more. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        tensors = ", ".join(f"{t.name} {t.describe()} {t.dtype}" for t in self.inputs)
        where = f"{self._artifact.backend} {self.precision} on {self.device}"
        return f"Engine({self._artifact.plan.name!r}, {where}, {tensors})"

    def _bind(self, inputs: Any) -> Arrays:
        """Inputs by name, checked, C-contiguous."""
        expected = self._artifact.inputs
        named: dict[str, Any]
        if isinstance(inputs, Mapping):
            named = dict(inputs)
        elif isinstance(inputs, (list, tuple)):
            if len(inputs) != len(expected):
                raise InputError("Wrong number of inputs", received=len(inputs), expected=self._signature())
            named = {t.name: a for t, a in zip(expected, inputs, strict=True)}
        elif len(expected) == 1:
            named = {expected[0].name: inputs}
        else:
            raise InputError(
                "One array for an engine of several inputs", received=_what(inputs), expected=self._signature()
            )
        names = {t.name for t in expected}
        if set(named) != names:
            unknown, missing = sorted(map(str, set(named) - names)), sorted(names - set(named))
            raise InputError(
                "The input names do not match",
                received=f"unknown {unknown}, missing {missing}",
                expected=self._signature(),
            )
        bound = {t.name: _array(t, named[t.name]) for t in expected}
        batches = {name: a.shape[0] for name, a in bound.items()}
        if len(set(batches.values())) > 1:
            raise InputError("The inputs differ in batch size", received=batches, expected="the same for all")
        return bound

    def _signature(self) -> str:
        return ", ".join(f"{t.name} {t.describe()} {t.dtype}" for t in self._artifact.inputs)

    def _record(self, started: float, prepared: float, ran: float, ended: float) -> None:
        call = {
            "prepare": (prepared - started) * 1e3,
            "engine": (ran - prepared) * 1e3,
            "decode": (ended - ran) * 1e3,
        }
        with self._lock:
            for profile in self._profiles:
                profile.calls.append(dict(call))


def _route(artifact: Artifact, output: str) -> str:
    """How the plan's outputs become those asked for: "copy", "decode", "detect" or "nms".

    Raises:
        InputError: there is no way.
    """
    form = artifact.form
    if form == "native" and [t.name for t in artifact.outputs] == ["boxes", "scores"] and artifact.spec is not None:
        form = "decoded"  # what the heads of dhead_trt give when they are exported as they are
    routes = {
        "raw": {"raw": "copy", "decoded": "decode", "detections": "detect"},
        "decoded": {"raw": "copy", "decoded": "copy", "detections": "nms"},
        "detections": {"raw": "copy", "detections": "copy"},
        "native": {"raw": "copy"},
    }[form]
    if output not in routes:
        raise InputError(
            f"A plan of form {form!r} cannot give this output",
            received=f"output={output!r}",
            expected=" or ".join(repr(o) for o in routes),
            fix="Build it in form 'raw' to have all outputs",
        )
    return routes[output]


def _array(tensor: TensorInfo, value: Any) -> NDArray[Any]:
    """`value` as a C-contiguous numpy array of exactly the tensor's dtype and an accepted shape."""
    array = value if isinstance(value, np.ndarray) else _to_numpy(tensor, value)
    if array.dtype != np.dtype(tensor.dtype):
        fix: str | None = f"Convert it: x.astype(np.{tensor.dtype})"
        if array.dtype == np.uint8 and tensor.dtype.startswith("float"):
            fix = (
                f"Pixels go in as RGB from 0 to 1: x.astype(np.{tensor.dtype}) / 255, or use Detector, which does that"
            )
        raise InputError(
            f"Input {tensor.name!r} has the wrong dtype", received=array.dtype, expected=tensor.dtype, fix=fix
        )
    if not tensor.accepts(array.shape):
        fix = None
        if array.ndim == len(tensor.shape) - 1 and tensor.accepts((1, *array.shape)):
            fix = "Add the batch axis: x[None]"
        elif array.ndim == 4 and tensor.accepts((array.shape[0], array.shape[3], *array.shape[1:3])):
            fix = "Put the channels first: x.transpose(0, 3, 1, 2)"
        elif array.ndim == 4 and tensor.profile and tensor.accepts((tensor.profile[1][0], *array.shape[1:])):
            fix = f"Build the engine for this batch: batch=(1, …, {array.shape[0]})"
        raise InputError(
            f"Input {tensor.name!r} has the wrong shape",
            received=list(array.shape),
            expected=tensor.describe(),
            fix=fix,
        )
    return np.ascontiguousarray(array)


def _to_numpy(tensor: TensorInfo, value: Any) -> NDArray[Any]:
    device = getattr(value, "device", None)
    if hasattr(value, "__cuda_array_interface__") or getattr(device, "type", "cpu") not in ("cpu", None):
        raise InputError(
            f"Input {tensor.name!r} lies on a GPU, and this engine runs on the CPU",
            received=f"{type(value).__name__} on {device}",
            expected="host memory",
            fix="Copy it: x.cpu(), or cupy.asnumpy(x)",
        )
    if not hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        raise InputError(
            f"Input {tensor.name!r} is not an array", received=_what(value), expected="numpy, torch or DLPack"
        )
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
    except Exception as e:  # each library raises its own: gradients, types numpy lacks, foreign devices
        raise InputError(
            f"Input {tensor.name!r} cannot be read as an array",
            received=f"{_what(value)} ({e})",
            fix="Pass x.detach().numpy()",
        ) from e


def _refuse_non_finite(arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int(array.size - np.isfinite(array).sum())
            raise InputError(f"Input {name!r} holds NaN or infinity", received=f"{count} of {array.size} values")


def _copy(raw: Arrays, out: Mapping[str, NDArray[Any]] | None) -> Arrays:
    """The engine's memory copied to the caller's."""
    if out is None:
        return {name: np.array(value) for name, value in raw.items()}
    picked = dict(zip(raw, _pick(out, tuple(raw)) or (), strict=True))
    for name, value in raw.items():
        if picked[name].shape != value.shape or picked[name].dtype != value.dtype or not picked[name].flags.writeable:
            raise InputError(
                f"out[{name!r}] does not fit",
                received=f"{picked[name].dtype} {list(picked[name].shape)}"
                + ("" if picked[name].flags.writeable else ", read-only"),
                expected=f"{value.dtype} {list(value.shape)}, writeable",
            )
        np.copyto(picked[name], value)
    return picked


def _pick(out: Mapping[str, NDArray[Any]] | None, names: Sequence[str]) -> tuple[NDArray[Any], ...] | None:
    if out is None:
        return None
    if not isinstance(out, Mapping) or set(out) != set(names):
        received = sorted(map(str, out)) if isinstance(out, Mapping) else type(out).__name__
        raise InputError("out does not name the outputs", received=received, expected=list(names))
    for name in names:
        if not isinstance(out[name], np.ndarray):
            raise InputError(f"out[{name!r}] is not a numpy array", received=_what(out[name]))
    return tuple(out[name] for name in names)


def _what(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {list(shape)}" if shape is not None else "")
