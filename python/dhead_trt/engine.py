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
from .baked import THRESHOLDS, Baked, Wanted, keep_wanted, refuse_unlike, thresholds_for
from .device_infer import infer_on_device, on_device
from .errors import InputError
from .spec import HeadSpec
from .tensors import Arrays, bind, by_name, copy_out, pick_out, refuse_non_finite

__all__ = ["Engine", "EngineProfile"]

OUTPUTS = ("detections", "decoded", "raw")


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
            to tie threads to cores, `layers=True` to time every layer, `high="bf16"` to trade agreement for speed in
            what int8 leaves out.

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
        self._baked: Baked | None = None
        self._inputs = self._artifact.inputs
        if self._artifact.form == "detections":
            self._baked = self._artifact.detection or Baked()
            self._inputs = tuple(t for t in self._inputs if t.name != THRESHOLDS)
        if self._route != "copy":
            from . import postprocess  # the compiled core: if it is missing, say so here and not in the first call

            self._postprocess = postprocess
        self._runner = get_backend(self._artifact.backend).load(self._artifact, device, threads=threads, **options)
        self._closed = False
        self._process = os.getpid()
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
        """The inputs in order, with dtype, shape and profile; without `thresholds`, which `infer` fills in."""
        return self._inputs

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
    def detection(self) -> Baked | None:
        """The options of detection that are part of the plan (form "detections"); None: every call chooses."""
        return self._baked

    @property
    def takes_device_arrays(self) -> bool:
        """Whether `infer` takes arrays in a GPU's memory, and gives its results there."""
        return hasattr(self._runner, "infer_device") and self._route != "nms"

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
        conf: float | None = None,
        iou: float | None = None,
        max_det: int | None = None,
        max_candidates: int | None = None,
        classes: Sequence[int] | None = None,
        class_agnostic: bool | None = None,
        multi_label: bool | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
        stream: Any = None,
        check: bool = True,
    ) -> Arrays:
        """Runs the engine once.

        Arrays are numpy, torch (CPU), or anything with DLPack or `__array__`. C-contiguous ones are read in place;
        others are copied first. GPU backends also take device arrays (torch, CuPy, PyCUDA), in place; results then are
        device arrays, whose values are not looked at.

        Args:
            inputs: a dict by name, a sequence in order, or the array itself where there is one input.
            conf, iou, max_det, max_candidates, classes, class_agnostic, multi_label: as in `postprocess.detect`, whose
                defaults None stands for; they matter for output="detections" only. A plan that holds them itself
                (`detection`) can be asked for less of what it gives: a higher conf, a lower max_det, some classes;
                and for any conf and iou where it has the input `thresholds`.
            out: arrays to write into, by name, as an earlier call returned them; nothing of their size is allocated.
            stream: for GPU backends: the caller's CUDA stream (an integer, or of torch, CuPy or PyCUDA); the call is
                queued on it and not waited for.
            check: refuse inputs that hold NaN or infinity (reads them once more). Without it NaN gives NaN raw maps,
                and no detection where they are.

        Returns:
            By output: "detections": num_dets [B,1] int32, det_boxes [B,K,4] float32 (xyxy, pixels of the network
            input), det_scores [B,K], det_classes [B,K] int32 (unused rows: 0, 0, -1), dropped [B] int32 (candidates
            beyond max_candidates); "decoded": boxes [B,A,4], scores [B,A,C]; "raw": the plan's outputs.

        Raises:
            InputError: a name, dtype, shape or option does not fit; an input holds NaN or infinity; the engine is
                closed, or was opened by the process that this was forked from.
        """
        if self._closed:
            raise InputError("This engine is closed", fix="Open it again with Engine(path)")
        if os.getpid() != self._process:  # it would wait for threads, or use a GPU's context, that a fork has not
            raise InputError(
                "This engine was opened in another process",
                received="a fork of it",
                fix="Open one in each process, or start processes with multiprocessing's 'spawn'",
            )
        wanted = Wanted(conf, iou, max_det, max_candidates, classes, class_agnostic, multi_label)
        if hasattr(self._runner, "infer_device") and (stream is not None or on_device(inputs)):
            return self._infer_on_device(inputs, wanted, out, stream)
        if stream is not None:
            raise InputError(
                f"{self._artifact.backend} runs on {self.device}, which has no streams", received="stream="
            )
        started = time.perf_counter()
        thresholds = self._thresholds(inputs, wanted)
        bound = bind(self._inputs, inputs if thresholds is None else _without_thresholds(inputs))
        if check:
            refuse_non_finite(bound)
        if thresholds is not None:
            bound[THRESHOLDS] = thresholds
        prepared = time.perf_counter()
        with self._runner.borrow(bound) as raw:
            ran = time.perf_counter()
            if self._route == "copy":
                chosen = wanted != Wanted() and self._output == "detections"
                result = copy_out(keep_wanted(raw, wanted) if chosen else raw, out)
            elif self._route == "decode":
                pair = cast("tuple[Any, Any] | None", pick_out(out, ("boxes", "scores")))
                boxes, scores = self._postprocess.decode(raw, self.spec, out=pair, threads=self._threads)
                result = {"boxes": boxes, "scores": scores}
            else:
                picked = pick_out(out, self._postprocess.DetectResult._fields)
                options: dict[str, Any] = {
                    **_chosen(wanted),
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
        if os.getpid() == self._process:
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
        baked = "" if self._baked is None else f", {self._baked.describe()}"
        return f"Engine({self._artifact.plan.name!r}, {where}, {tensors}{baked})"

    def _thresholds(self, inputs: Any, wanted: Wanted) -> NDArray[np.float32] | None:
        """What the input `thresholds` gets, None where there is none; after a look at what is asked of the plan.

        Raises:
            InputError: the plan cannot give it.
        """
        if self._baked is None:
            return None
        if self._output == "detections":
            refuse_unlike(self._baked, wanted)
        if not self._baked.dynamic_thresholds:
            return None
        if isinstance(inputs, Mapping) and THRESHOLDS in inputs:
            tensor = next(t for t in self._artifact.inputs if t.name == THRESHOLDS)
            return bind((tensor,), {THRESHOLDS: inputs[THRESHOLDS]})[THRESHOLDS]
        return thresholds_for(self._baked, wanted)

    def _infer_on_device(self, inputs: Any, wanted: Wanted, out: Any, stream: Any) -> Arrays:
        baked = self._baked
        if baked is not None and self._output == "detections":
            refuse_unlike(baked, wanted, filtered=False)
        given = isinstance(inputs, Mapping) and THRESHOLDS in inputs
        named = by_name(self._artifact.inputs if given else self._inputs, inputs)
        if baked is not None and baked.dynamic_thresholds and not given:
            named[THRESHOLDS] = thresholds_for(baked, wanted)
        return infer_on_device(
            self._runner, named, self._route, self._artifact.spec, out=out, stream=stream, options=_chosen(wanted)
        )

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


def _chosen(wanted: Wanted) -> dict[str, Any]:
    """The options that are asked for; those left out have the defaults of `postprocess.detect`."""
    return {name: value for name, value in vars(wanted).items() if value is not None}


def _without_thresholds(inputs: Any) -> Any:
    return {n: a for n, a in inputs.items() if n != THRESHOLDS} if isinstance(inputs, Mapping) else inputs
