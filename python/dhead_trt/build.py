"""ONNX or PyTorch → an engine on disk."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from . import __version__
from .artifact import Artifact, FileRecord, TensorInfo
from .backends import Backend, BuildRequest, choose_backend, get_backend
from .backends.base import silent
from .baked import Baked, baked_options
from .errors import ArtifactError, BackendUnavailable, BuildError, InputError
from .files import atomic_files
from .plan_check import check_plan
from .progress import ProgressCallback
from .quantize import Int8Options, Int8Result, check_options, quantize, write_mixed
from .shapes import set_shapes, size_range, takes_features
from .spec import HeadSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["build"]

_PLAN_SUFFIXES = (".xml", ".plan", ".engine", ".trt")


def build(
    model: Any,
    backend: str = "auto",
    *,
    output: str | os.PathLike[str],
    precision: str = "fp32",
    batch: int | Sequence[int] = (1, 1, 1),
    image_size: Any = None,
    form: str | None = None,
    compute_capabilities: Sequence[str] | str | None = None,
    spec: HeadSpec | None = None,
    io_dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
    detection: Mapping[str, Any] | None = None,
    example: Any = None,
    calibration: Any = None,
    calib_method: str | None = None,
    calib_percentile: float | None = None,
    calib_cache: str | os.PathLike[str] | None = None,
    calib_images: int | None = None,
    held_out: Any = None,
    min_agreement: float | None = 0.95,
    auto_mixed: bool | str | os.PathLike[str] = False,
    keep: Sequence[str] = (),
    refine: bool = False,
    progress: ProgressCallback | None = None,
    verify: bool = True,
) -> Artifact:
    """Builds an engine, and writes plan and sidecar: both or neither.

    Args:
        model: an ONNX model of any form (path, bytes or ModelProto), or a torch head or detector, which is exported
            first.
        backend: "openvino", "tensorrt_rtx", "tensorrt", or "auto": what this machine can run, else what it can build;
            the choice and its reason are the first of the artifact's notes.
        output: path of the plan. Its suffix becomes the backend's (.xml for OpenVINO; .plan, .engine or .trt). Existing
            engines of that name are replaced.
        precision: "fp32", "fp16", "bf16" or "int8". For TensorRT it is put into the graph; for OpenVINO fp16 and bf16
            are the precision to compute in, where the CPU can (a fall-back is noted, and logged at load); fp16 also
            halves the IR's weights. int8 is put into the graph for all, and needs `calibration`; what it leaves out
            computes in fp16 on GPUs and fp32 on CPUs.
        batch: batch size, or (min, opt, max).
        image_size: network input in pixels: n, (height, width), or (min, opt, max) of these; None: the graph's own.
        form: what the plan's outputs are; default: the best the backend offers ("raw" for OpenVINO and TensorRT for
            RTX).
        compute_capabilities: GPUs to build for ("8.6", "sm_89", "ada"); GPU backends only.
        spec: the head, where the graph does not say.
        io_dtype: "float32" or "float16": type of the engine's inputs and outputs, with precision="fp16" on TensorRT.
        options: the backend's own build options by name.
        detection: what a plan of form "detections" shall hold: conf, iou, max_det, max_candidates, class_agnostic,
            multi_label. What is left out is as the graph has it, if it is of that form (of an input `thresholds` the
            values become fixed), else the default of `dhead_trt.detect`. Plans of other forms take them per call.
        example: example input of a torch model that is neither one of our heads nor takes an image.
        calibration: data for int8: a folder, glob or list of images, .npz files of inputs, an iterable of batches, the
            Ranges of an earlier calibration or their file, or "random" for a trial with a bare head.
        calib_method: "percentile" (default), "minmax", "entropy" or "mse"; see `dhead_trt.calibration.calibrate`.
        calib_percentile: for that method.
        calib_cache: file for the ranges; one of another model, other data or another method is refused.
        calib_images: calibrate on so many images at most.
        held_out: images that the int8 graph is compared with float32 on; None: every fourth of the calibration images
            (64 at most), which then do not calibrate.
        min_agreement: the least agreement there (the lower of AP50-95, with the float32 detections as truth, and F1 at
            IoU 0.5); below it nothing is built. None: not measured.
        auto_mixed: leave the fewest layers in high precision that reach it; a path replays an earlier choice
            (`<stem>-mixed.json`, which is written beside the plan).
        keep: names of layers to leave in high precision.
        refine: before int8, even out the channels of the activations and fit the weights to what rounded activations
            make of them (least squares and GPTQ, on the calibration images): minutes more, and detections closer to
            float32's.
        progress: called with (phase, fraction done or None).
        verify: check every step: surgery against the original graph, and the plan, where it runs here, against ONNX
            Runtime.

    Returns:
        The artifact, as `Artifact.load` would read it.

    Raises:
        InputError: an argument is malformed, or `output` cannot be written.
        GraphError: the model cannot be read, or is not a supported detector.
        BackendUnavailable: the backend or a package it needs is missing.
        BuildError: the backend refused, the int8 graph does not agree with float32, or the plan does not compute what
            the graph does.
    """
    tell = progress or silent
    chosen, why = choose_backend() if backend == "auto" else (get_backend(backend), None)
    form = form or chosen.forms[0]
    if form not in chosen.forms:
        raise BuildError(
            f"{chosen.name} cannot build a graph of form {form!r}: it has no custom operators",
            expected=" or ".join(repr(f) for f in chosen.forms),
        )
    if precision not in chosen.precisions:
        raise BuildError(
            f"{chosen.name} does not build this precision",
            received=repr(precision),
            expected=", ".join(chosen.precisions),
        )
    if io_dtype not in ("float32", "float16"):
        raise InputError("io_dtype is not known", received=repr(io_dtype), expected="'float32' or 'float16'")
    in_graph = chosen.name.startswith("tensorrt") and precision in ("fp16", "int8")
    int8 = None
    if precision == "int8":
        int8 = Int8Options(
            calibration, calib_method, calib_percentile, calib_cache, calib_images, held_out, min_agreement, auto_mixed,
            (keep,) if isinstance(keep, str) else tuple(keep), refine,
        )  # fmt: skip
        check_options(int8)
    elif (
        auto_mixed
        or keep
        or refine
        or any(
            v is not None for v in (calibration, calib_method, calib_percentile, calib_cache, calib_images, held_out)
        )
    ):
        raise InputError(
            "Calibration, held_out, auto_mixed, keep and refine belong to precision='int8'", received=precision
        )
    if io_dtype == "float16" and not in_graph:
        raise InputError(
            "io_dtype='float16' needs precision='fp16' or 'int8' on TensorRT", received=f"{precision} on {chosen.name}"
        )
    target = _target(output, chosen)
    available = chosen.availability()
    if not available.can_build:
        raise BackendUnavailable(f"{chosen.name} cannot build here", received=available.reason)
    if why is not None:
        tell(f"choosing the backend: {chosen.name}", 1.0)

    source = _source(model, spec, image_size, example, verify, tell)
    graph, head, report = source.model, source.spec, dict(source.report)
    held = _held(graph, form, detection or {})
    if form != "native":
        from .surgery import Form, convert

        tell(f"surgery to form {form}", None)
        conversion = convert(graph, cast("Form", form), spec=head, verify=verify, **held)
        graph, head = conversion.model, conversion.spec
        report["surgery"] = {"source_form": conversion.source_form, **_as_dict(conversion.report)}
    graph, inputs = set_shapes(graph, head, batch=batch, image_size=image_size)
    plain = graph  # what the plan must compute
    quantized: Int8Result | None = None
    if int8 is not None:
        high: Literal["float32", "float16"] = "float16" if in_graph else "float32"
        quantized = quantize(graph, inputs, head, int8, high=high, io_dtype=io_dtype, progress=tell)
        plain = graph = quantized.model
        report["int8"] = quantized.report
    elif in_graph:
        from .precision import to_fp16

        tell("precision to fp16", None)
        graph = to_fp16(graph, io_dtype=io_dtype)
    if in_graph:
        inputs = tuple(TensorInfo(t.name, io_dtype, t.shape, t.profile) for t in inputs)
    head = _with_size(head, inputs)
    capabilities = (compute_capabilities,) if isinstance(compute_capabilities, str) else compute_capabilities
    sidecar = target.with_suffix(".json").name
    names: list[str] = []
    with _writing(target), atomic_files(target.parent, names) as staging:
        request = BuildRequest(
            model=graph,
            inputs=inputs,
            precision=precision,
            folder=staging,
            plan_name=target.name,
            compute_capabilities=None if capabilities is None else tuple(capabilities),
            options=dict(options or {}),
            progress=tell,
        )
        started = time.perf_counter()
        built = chosen.build(request)
        report["build"] = {"seconds": round(time.perf_counter() - started, 3)}
        names[:] = [*built.files[1:], built.files[0], sidecar]
        artifact = Artifact(
            plan=staging / target.name,
            backend=chosen.name,
            backend_version=built.version,
            form=form,
            precision=precision,
            spec=head,
            inputs=built.inputs,
            outputs=built.outputs,
            files=tuple(FileRecord.of(staging / name) for name in built.files),
            gpu=built.gpu,
            compute_capabilities=built.compute_capabilities,
            source_sha256=source.sha256,
            dhead_trt=__version__,
            options={**built.options, "io_dtype": io_dtype},
            report=report,
            notes=(() if why is None else (why,)) + (() if quantized is None else quantized.notes) + built.notes,
            detection=baked_options(graph),
        )
        if verify:
            tell("verifying the plan", None)
            report["verification"] = check_plan(
                artifact, chosen, plain, available.can_run, None if quantized is None else quantized.sample
            )
        artifact.save()
        if quantized is not None and quantized.mixed is not None:
            names[1:1] = write_mixed(quantized.mixed, staging, target.stem)
    tell("verifying the plan" if verify else "writing", 1.0)
    return Artifact.load(target, verify=False)


@dataclass(frozen=True)
class _Source:
    model: onnx.ModelProto
    spec: HeadSpec | None
    sha256: str
    report: Mapping[str, Any]


def _source(
    model: Any, spec: HeadSpec | None, image_size: Any, example: Any, verify: bool, tell: ProgressCallback
) -> _Source:
    """Reads or exports the model."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from .export import export_onnx

        tell("export to ONNX", None)
        with tempfile.TemporaryDirectory(prefix="dhead-") as folder:
            path = Path(folder) / "model.onnx"
            sizes = size_range(image_size)
            exported = export_onnx(
                model,
                path,
                example=example,
                image_size=None if sizes is None else sizes[1],
                dynamic_size=sizes is not None and sizes[0] != sizes[2],
                verify=verify,
            )
            return _read(path, spec or exported.spec, {"export": _as_dict(exported.parity)})
    tell("reading the model", None)
    return _read(model, spec, {})


def _read(model: Any, spec: HeadSpec | None, report: Mapping[str, Any]) -> _Source:
    from .surgery import load_model

    graph = load_model(model)
    if isinstance(model, (bytes, bytearray, memoryview)):
        digest = hashlib.sha256(model).hexdigest()
    elif isinstance(model, (str, os.PathLike)):
        from .files import sha256_of

        digest = sha256_of(model)
    else:
        digest = hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()
    if spec is None:
        text = {p.key: p.value for p in graph.metadata_props}.get("dhead_spec")
        spec = None if text is None else HeadSpec.from_json(text)
    return _Source(graph, spec, digest, report)


def _held(graph: onnx.ModelProto, form: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options that surgery shall put into the plan.

    Raises:
        InputError: the form holds none, or one is not known.
    """
    if form != "detections":
        if asked:
            raise InputError(
                "Only plans of form 'detections' hold options of detection",
                received=f"detection={dict(asked)!r} for form {form!r}",
                fix="Leave it out, and give the options to each call",
            )
        return {}
    known = [f.name for f in fields(Baked) if f.name != "dynamic_thresholds"]
    if unknown := sorted(set(asked) - set(known)):
        raise InputError("There is no such option", received=", ".join(unknown), expected=", ".join(known))
    own = baked_options(graph)
    return {**({name: getattr(own, name) for name in known} if own else {}), **asked}


def _target(output: str | os.PathLike[str], backend: Backend) -> Path:
    """The plan's path with a suffix of the backend's, after a look at what would be overwritten."""
    path = Path(output)
    if path.is_dir() or not path.name or str(output).endswith(("/", os.sep)):
        raise InputError(
            "The output is a folder", received=output, expected=f"a file, such as engine{backend.suffixes[0]}"
        )
    if path.suffix in (".json", ".onnx", ".bin"):
        raise InputError(
            f"A plan cannot be called *{path.suffix}", received=path.name, expected=f"{path.stem}{backend.suffixes[0]}"
        )
    if path.suffix not in backend.suffixes:
        path = (
            path.with_suffix(backend.suffixes[0])
            if path.suffix in _PLAN_SUFFIXES
            else Path(f"{path}{backend.suffixes[0]}")
        )
    sidecar = path.with_suffix(".json")
    if sidecar.exists():
        owner: str | None
        try:
            owner = Artifact.load(sidecar, verify=False).plan.name
        except ArtifactError:
            owner = path.name if path.exists() else None
        if owner != path.name:
            raise InputError(
                f"{sidecar.name} is there already and belongs to {owner or 'something else'}",
                received=path.name,
                fix="Give the plan another name: its sidecar would overwrite that file",
            )
    weights = path.with_suffix(".bin")
    if path.suffix == ".xml" and weights.exists() and not path.exists():
        raise InputError(
            f"{weights.name} is there already and belongs to something else",
            received=path.name,
            fix="Give the plan another name: its weights would overwrite that file",
        )
    return path


def _with_size(head: HeadSpec | None, inputs: tuple[TensorInfo, ...]) -> HeadSpec | None:
    """The spec with the image size the engine is fixed to, if images go in."""
    if head is None or len(inputs) != 1 or takes_features(inputs, head):
        return head
    height, width = inputs[0].shape[2:]
    return head.replace(image_size=(height, width)) if -1 not in (height, width) else head


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turns what the disk says into a BuildError, and lets everything else pass."""
    try:
        yield
    except OSError as e:
        raise BuildError("The engine could not be written", received=f"{target}: {e}") from e


def _as_dict(report: Any) -> dict[str, Any]:
    if isinstance(report, Mapping):
        return dict(report)
    return {"value": report} if not hasattr(report, "to_dict") else dict(report.to_dict())
