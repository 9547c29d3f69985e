"""Triton model repositories from built engines."""

from __future__ import annotations

import math
import os
import re
import shutil
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..artifact import Artifact, TensorInfo
from ..errors import InputError
from ..spec import HeadSpec
from .config import Batching, Instances, ModelConfig, Step, Tensor, WarmUp
from .readme import readme

__all__ = ["Repository", "write_repository"]

Layout = Literal["pipeline", "ensemble"]
ImageKind = Literal["encoded", "pixels"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FREE_BATCH = 8  # where the plan sets no bound


@dataclass(frozen=True)
class Repository:
    """What was written.

    Attributes:
        path: the repository: `tritonserver --model-repository=…`.
        name: the model that clients call.
        models: all models written, `name` first.
        notes: sentences a person should read.
    """

    path: Path
    name: str
    models: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """What is asked for, checked."""

    artifact: Artifact
    spec: HeadSpec
    name: str
    image: ImageKind
    tensor: TensorInfo
    size: tuple[int, int]
    max_batch: int
    cpu: Instances
    engine: Instances
    batching: Batching
    threads: int
    conf: float
    iou: float
    max_det: int

    @property
    def fixed(self) -> dict[str, str]:
        """Parameters that several models share."""
        return {
            "conf": repr(self.conf),
            "iou": repr(self.iou),
            "max_det": str(self.max_det),
            "threads": str(self.threads),
        }

    @property
    def input(self) -> Tensor:
        """What clients send."""
        if self.image == "encoded":
            return Tensor("image", "bytes", (1,))
        return Tensor("image", "uint8", (-1, -1, 3))

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What they get."""
        return (
            Tensor("num_dets", "int32", (1,)),
            Tensor("det_boxes", "float32", (self.max_det, 4)),
            Tensor("det_scores", "float32", (self.max_det,)),
            Tensor("det_classes", "int32", (self.max_det,), "labels.txt" if self.spec.names else None),
        )

    @property
    def warm_up(self) -> WarmUp:
        """One image of the canvas's size."""
        if self.image == "encoded":
            return WarmUp({"image": ("bytes", (1,), "image")})
        return WarmUp({"image": ("uint8", (*self.size, 3), None)})


def write_repository(
    model: str | os.PathLike[str] | Artifact,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    layout: Layout | None = None,
    image: ImageKind = "encoded",
    max_batch: int | None = None,
    instances: int = 2,
    gpus: tuple[int, ...] = (),
    threads: int | None = None,
    delay_us: int = 2000,
    max_queue: int | None = None,
    timeout_us: int = 0,
    conf: float = 0.25,
    iou: float = 0.7,
    max_det: int = 300,
) -> Repository:
    """Writes a model repository for Triton Inference Server, whole or not at all.

    Clients send `image` and get num_dets [1], det_boxes [max_det, 4] (xyxy, pixels of their image), det_scores
    [max_det], det_classes [max_det] (unused rows 0, 0, -1). `conf` and `iou` may be given with each request, as request
    parameters.

    Args:
        model: the engine (plan, sidecar or Artifact).
        folder: the repository; may hold other models.
        name: of the model that clients call; None: the plan's stem.
        layout: "pipeline": one Python model that holds a Detector. "ensemble": letterbox, network and post-processing
            as models of their own, batched each; the network is Triton's own TensorRT backend for TensorRT plans. None:
            ensemble for TensorRT, else pipeline.
        image: "encoded": the bytes of an image file (BYTES [1]). "pixels": uint8 [height, width, 3] RGB.
        max_batch: most images of one batch; None: what the plan takes.
        instances: copies of the model (each of an ensemble's) that run at a time. Two or more, where the queue has a
            bound: with one, Triton's batcher (seen in 2.51) lets requests wait half a second now and then.
        gpus: GPUs of the network; none: all.
        threads: CPU threads of each instance; None: the processors are left to it.
        delay_us: microseconds that a request may wait for others to share its batch.
        max_queue: requests that may wait; further ones are refused at once. 0: no bound. None: 64, or no bound where
            there is one instance.
        timeout_us: a request that has waited so long is refused; 0: never.
        conf, iou, max_det: the defaults of requests, and the number of rows; an ensemble around a plan of form
            "detections" has the plan's own.

    Raises:
        InputError: an engine that does not take images, or that Triton cannot run; a name that is taken; an option out
            of range.
        ArtifactError: the plan is missing or damaged.
    """
    artifact = model if isinstance(model, Artifact) else Artifact.load(model)
    if isinstance(model, Artifact):
        artifact.verify()
    if artifact.backend == "tensorrt_rtx":
        raise InputError(
            "Triton has no backend for TensorRT for RTX", received=artifact.plan.name, expected="tensorrt or openvino"
        )
    layout = layout or ("ensemble" if artifact.backend == "tensorrt" else "pipeline")
    if layout not in ("pipeline", "ensemble") or image not in ("encoded", "pixels"):
        raise InputError("There is no such layout or kind of image", received=f"{layout!r}, {image!r}")
    tensor, spec, size = _image_input(artifact)
    low, high = _batches(tensor)
    for option, value, least in (
        ("max_batch", max_batch or 1, 1),
        ("instances", instances, 1),
        ("threads", threads or 1, 1),
        ("delay_us", delay_us, 0),
        ("max_queue", max_queue or 0, 0),
        ("timeout_us", timeout_us, 0),
        ("max_det", max_det, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{option} is out of range", received=value, expected=f"{least} or more")
    for option, share in (("conf", conf), ("iou", iou)):
        if not 0 <= share <= 1 or math.isnan(share):
            raise InputError(f"{option} is out of range", received=share, expected="0 to 1")
    most = max_batch or high
    if layout == "ensemble" and artifact.backend == "tensorrt" and (low > 1 or most > high):
        raise InputError(
            "Triton's batches do not fit this plan",
            received=f"a plan of {tensor.describe()}, max_batch {most}",
            expected="a plan from batch 1, and max_batch within it",
            fix="Build with --batch 1,4,8",
        )
    name = name or artifact.plan.stem
    if not _NAME.fullmatch(name):
        raise InputError("The name does not do for a model", received=repr(name), expected="letters, digits, _ . -")
    if layout == "ensemble" and artifact.form == "detections":
        max_det = next((t.shape[1] for t in artifact.outputs if t.name == "det_boxes" and t.shape[1] > 0), max_det)
    gpu = artifact.backend == "tensorrt"
    job = _Job(
        artifact, spec, name, image, tensor, size, most,
        cpu=Instances(instances),
        engine=Instances(instances, "KIND_GPU" if gpu else "KIND_CPU", gpus if gpu else ()),
        batching=Batching(delay_us, (64 if instances > 1 else 0) if max_queue is None else max_queue, timeout_us),
        threads=threads or 0, conf=float(conf), iou=float(iou), max_det=max_det,
    )  # fmt: skip
    models = _pipeline(job) if layout == "pipeline" else _ensemble(job)
    notes = _notes(job, layout)
    _write(Path(folder), job, models, layout, notes)
    return Repository(Path(folder), name, tuple(m.config.name for m in models), notes)


@dataclass(frozen=True)
class _Model:
    """A model's folder: its configuration, and what lies beside it."""

    config: ModelConfig
    python: str | None = None  # class of triton_models
    plan: bool = False
    spec: bool = False
    labels: bool = False


def _pipeline(job: _Job) -> list[_Model]:
    config = ModelConfig(
        job.name,
        [job.input],
        job.outputs,
        job.max_batch,
        backend="python",
        instances=job.engine if job.artifact.backend == "tensorrt" else job.cpu,
        batching=job.batching,
        parameters={"plan": job.artifact.plan.name, **job.fixed},
        warm_up=job.warm_up,
    )
    return [_Model(config, "DetectorModel", plan=True, labels=True)]


def _ensemble(job: _Job) -> list[_Model]:
    canvas = Tensor(job.tensor.name, job.tensor.dtype, (3, *job.size))
    sizes = Tensor("source_size", "int32", (2,))
    maps = [Tensor(t.name, t.dtype, _without_batch(t, job)) for t in job.artifact.outputs]
    image_size = f"{job.size[0]}x{job.size[1]}"
    names = {step: f"{job.name}_{step}" for step in ("letterbox", "network", "detect")}
    shared: dict[str, Any] = {"batching": job.batching, "max_batch": job.max_batch}
    before = ModelConfig(
        names["letterbox"], [job.input], [canvas, sizes], backend="python", instances=job.cpu, warm_up=job.warm_up,
        parameters={"image_size": image_size, "dtype": job.tensor.dtype, "threads": str(job.threads)}, **shared,
    )  # fmt: skip
    trt = job.artifact.backend == "tensorrt"
    network = ModelConfig(
        names["network"], [canvas], maps, instances=job.engine,
        backend=None if trt else "python",
        platform="tensorrt_plan" if trt else None,
        plan=job.artifact.plan.name if trt else None,
        parameters={} if trt else {
            "plan": job.artifact.plan.name, "threads": str(job.threads), "max_batch": str(_batches(job.tensor)[1]),
        },
        warm_up=WarmUp({canvas.name: (canvas.dtype, canvas.dims, None)}), **shared,
    )  # fmt: skip
    after = ModelConfig(
        names["detect"], [*maps, sizes], job.outputs, backend="python", instances=job.cpu,
        parameters={"image_size": image_size, "form": job.artifact.form, **job.fixed}, **shared,
    )  # fmt: skip
    own = {t.name: t.name for t in (*maps, sizes)}
    outputs = {t.name: t.name for t in job.outputs}
    steps = [
        Step(names["letterbox"], {"image": "image"}, {canvas.name: canvas.name, "source_size": "source_size"}),
        Step(names["network"], {canvas.name: canvas.name}, {m.name: f"map_{m.name}" for m in maps}),
        Step(names["detect"], {n: n if n == "source_size" else f"map_{n}" for n in own}, outputs),
    ]
    whole = ModelConfig(job.name, [job.input], job.outputs, job.max_batch, platform="ensemble", steps=steps)
    return [
        _Model(whole, labels=True),
        _Model(before, "LetterboxModel"),
        _Model(network, None if trt else "EngineModel", plan=True),
        _Model(after, "DetectModel", spec=True, labels=True),
    ]


def _image_input(artifact: Artifact) -> tuple[TensorInfo, HeadSpec, tuple[int, int]]:
    tensor = artifact.inputs[0]
    fits = len(artifact.inputs) == 1 and len(tensor.shape) == 4 and tensor.shape[1] == 3
    if not fits or not tensor.dtype.startswith("float") or artifact.spec is None or artifact.form == "native":
        raise InputError(
            "The engine does not take images to detections",
            received=f"{tensor.name} {tensor.describe()}, form {artifact.form}",
            expected="one float input [batch, 3, height, width], form raw, decoded or detections",
        )
    size: tuple[int, ...] = tensor.shape[2:]
    if -1 in size:
        size = artifact.spec.image_size or (() if tensor.profile is None else tensor.profile[1][2:])
    if len(size) != 2 or min(size) < 1:
        raise InputError("The engine's input size is not fixed", received=tensor.describe(), expected="a known size")
    return tensor, artifact.spec, (size[0], size[1])


def _batches(tensor: TensorInfo) -> tuple[int, int]:
    """(fewest, most) images per call of the engine."""
    if tensor.shape[0] != -1:
        return tensor.shape[0], tensor.shape[0]
    if tensor.profile is None:
        return 1, _FREE_BATCH
    high = tensor.profile[2][0]
    return max(tensor.profile[0][0], 1), high if high != -1 else _FREE_BATCH


def _without_batch(tensor: TensorInfo, job: _Job) -> tuple[int, ...]:
    """Dims of an output; those of maps that vary with the image size are known, since the canvas is."""
    level = tensor.name.rpartition("_")[2]
    if -1 in tensor.shape[1:] and level.isdecimal() and len(tensor.shape) == 4:
        stride = job.spec.strides[int(level)]
        return (tensor.shape[1], *(-(-side // stride) for side in job.size))
    return tensor.shape[1:]


def _notes(job: _Job, layout: str) -> tuple[str, ...]:
    notes = []
    if job.artifact.backend == "tensorrt" and layout == "ensemble" and job.artifact.form in ("decoded", "detections"):
        notes.append(
            "The plan holds dhead_trt's plugin: start Triton with LD_PRELOAD=…/libdhead_trt_plugins.so, or "
            "--backend-config=tensorrt,plugins=…/libdhead_trt_plugins.so"
        )
    if layout == "ensemble" and job.artifact.form == "detections":
        notes.append(
            f"The plan holds conf, iou and its {job.max_det} rows: requests that give conf or iou are refused; a plan "
            "of form raw takes them"
        )
    if job.cpu.count == 1 and (job.batching.max_queue or job.batching.timeout_us):
        notes.append("With one instance and a bound on its queue, Triton lets requests wait half a second at times")
    if job.max_batch == 1:
        notes.append("The plan takes one image at a time: build with --batch 1,4,8 to let Triton make batches")
    notes.append('The server\'s Python needs dhead_trt: pip install "dhead-trt[cpu,image]" there')
    return tuple(notes)


def _write(folder: Path, job: _Job, models: list[_Model], layout: str, notes: tuple[str, ...]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError("The repository is a file", received=folder, expected="a folder")
    taken = [m.config.name for m in models if (folder / m.config.name).exists()]
    if taken:
        raise InputError(
            "The repository has models of these names", received=", ".join(taken), fix="Choose another --name or folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".dhead-", dir=folder) as staging:
            for model in models:
                _fill(Path(staging) / model.config.name, model, job)
            (Path(staging) / job.name / "README.md").write_text(
                readme(job.artifact, job.name, [m.config for m in models], layout, job.image, notes), encoding="utf-8"
            )
            for model in reversed(models):  # the one that clients call comes last
                os.replace(Path(staging) / model.config.name, folder / model.config.name)
    except OSError as e:
        raise InputError(
            "Cannot write the repository", received=f"{folder}: {e.strerror or e}", expected="a folder to write to"
        ) from e


def _fill(folder: Path, model: _Model, job: _Job) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(model.config.render(), encoding="utf-8")
    if model.plan:
        names = [f.name for f in job.artifact.files]
        for name in names:
            shutil.copyfile(job.artifact.plan.parent / name, version / name)
        job.artifact.save(version / job.artifact.sidecar.name)
    if model.python is not None:
        text = f"from dhead_trt.serving.triton_models import {model.python} as TritonPythonModel  # noqa: F401\n"
        (version / "model.py").write_text(text, encoding="utf-8")
    if model.spec:
        (version / "spec.json").write_text(job.spec.to_json() + "\n", encoding="utf-8")
    if model.labels and job.spec.names:
        (folder / "labels.txt").write_text("".join(f"{n}\n" for n in job.spec.names), encoding="utf-8")
    warm_up = model.config.warm_up
    if warm_up is not None and any(file for _, _, file in warm_up.tensors.values()):
        (folder / "warmup").mkdir()
        data = _grey_png(*job.size)
        (folder / "warmup" / "image").write_bytes(struct.pack("<I", len(data)) + data)  # Triton's form of BYTES


def _grey_png(height: int, width: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress((b"\0" + b"\x72" * width) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
