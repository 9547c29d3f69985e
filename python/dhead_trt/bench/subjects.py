"""What is measured: an engine of ours, or an ONNX graph in ONNX Runtime with the same steps around it.

Both are called in two ways: with tensors (network input to detections of that input) and with images (letterbox, the
same, boxes back to the image). Each call tells its milliseconds by stage.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..artifact import Artifact, TensorInfo
from ..engine import Engine
from ..errors import BackendUnavailable, InputError
from ..letterbox import letterbox
from ..shapes import random_inputs, tensor_infos
from ..spec import HeadSpec

__all__ = ["EngineSubject", "Model", "Options", "RuntimeSubject", "Subject", "prepare", "sample_images", "tensors"]

Arrays = dict[str, npt.NDArray[Any]]
Image = npt.NDArray[np.uint8]
Stages = dict[str, float]


@dataclass(frozen=True)
class Options:
    """How detections are made, alike for all.

    Attributes:
        device: of the engines, in the backend's words.
        image_size: (height, width) of the network input where the model leaves it open.
        conf, iou, max_det: as in `Engine.infer`.
        engine: more options for `Engine`.
    """

    device: str | None = None
    image_size: tuple[int, int] | None = None
    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    engine: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Model:
    """A model that has been looked at and can be opened.

    Attributes:
        name: how the report calls it; no other has it.
        path: an engine's plan; of an ONNX graph the graph to run, which ends at the raw maps.
        backend: of the engine, or "onnxruntime".
        precision: as its file says.
        form: "raw", "detections", …
        spec: of the head.
    """

    name: str
    path: Path
    backend: str
    precision: str
    form: str
    spec: HeadSpec | None

    def open(self, threads: int | None, options: Options) -> Subject:
        """Loads it."""
        kind = RuntimeSubject if self.backend == "onnxruntime" else EngineSubject
        return kind(self, threads, options)


class Subject(Protocol):
    """A loaded model."""

    notes: list[str]
    precision: str
    device: str

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The network's."""
        ...

    @property
    def takes_images(self) -> bool:
        """False for a head alone, which takes features."""
        ...

    def canvas(self) -> tuple[int, int]:
        """(height, width) of the network input."""
        ...

    def on_tensors(self, arrays: Arrays) -> tuple[Stages, int]:
        """One call on the network's input: milliseconds of "prepare", "engine" and "decode", and what was found."""
        ...

    def on_images(self, images: Sequence[Image]) -> tuple[Stages, int]:
        """One call on images: also "letterbox", which has everything else of the call."""
        ...

    def layers(self, arrays: Arrays, calls: int) -> list[tuple[str, str, float]]:
        """(name, kind, mean milliseconds) of each layer; empty where it cannot tell."""
        ...

    def close(self) -> None:
        """Frees it."""
        ...


class EngineSubject:
    """An engine and a Detector around it."""

    def __init__(self, model: Model, threads: int | None, options: Options) -> None:
        self._model, self._threads, self._options = model, threads, options
        self.notes: list[str] = []
        self._engine = self._open()
        self._detector: Any = None
        try:
            self.precision, self.device = self._engine.precision, self._engine.device
            self.notes += self._engine.notes
            self.takes_images = _is_image(self._engine.inputs) and self._finds
            if self.takes_images:
                from ..detector import Detector

                self._detector = Detector(
                    self._engine,
                    conf=options.conf,
                    iou=options.iou,
                    max_det=options.max_det,
                    threads=threads,
                    image_size=None if -1 not in self._engine.inputs[0].shape[2:] else options.image_size,
                )
            self._profile = self._engine.profile()
            self._calls = self._profile.__enter__().calls
        except BaseException:
            self._engine.close()
            raise

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The engine's."""
        return self._engine.inputs

    def canvas(self) -> tuple[int, int]:
        """The Detector's."""
        size: tuple[int, int] = self._detector.image_size
        return size

    def on_tensors(self, arrays: Arrays) -> tuple[Stages, int]:
        """`Engine.infer`."""
        o = self._options
        out = self._engine.infer(arrays, conf=o.conf, iou=o.iou, max_det=o.max_det, check=False)
        return self._stages(), int(out["num_dets"].sum()) if "num_dets" in out else 0

    def on_images(self, images: Sequence[Image]) -> tuple[Stages, int]:
        """The Detector."""
        start = time.perf_counter()
        found = self._detector(images)
        total = (time.perf_counter() - start) * 1e3
        stages = self._stages()
        return {"letterbox": total - sum(stages.values()), **stages}, sum(map(len, found))

    def layers(self, arrays: Arrays, calls: int) -> list[tuple[str, str, float]]:
        """Of a second engine that is opened for it, since OpenVINO's is slower when it counts."""
        more = {"layers": True} if self._model.backend == "openvino" else {}
        sums: dict[tuple[str, str], float] = {}
        with self._open(**more) as engine:
            engine.infer(arrays, check=False)
            for _ in range(calls):
                with engine.profile() as profile:
                    engine.infer(arrays, check=False)
                for name, kind, ms in profile.layers:
                    sums[name, kind] = sums.get((name, kind), 0.0) + ms / calls
        return [(name, kind, ms) for (name, kind), ms in sums.items()]

    def close(self) -> None:
        """Closes the engine."""
        self._engine.close()
        self._profile.__exit__(None, None, None)

    def _open(self, **more: Any) -> Engine:
        options = {**(self._options.engine or {}), **more}
        self._finds = self._model.form != "native" or self._model.spec is not None
        try:
            return Engine(self._model.path, self._options.device, threads=self._threads, **options)
        except InputError:
            if self._finds and self._model.form != "native":
                raise
        self._finds = False
        self.notes.append("a native engine whose outputs dhead_trt does not decode: the network alone was timed")
        return Engine(self._model.path, self._options.device, output="raw", threads=self._threads, **options)

    def _stages(self) -> Stages:
        """Of the engine's calls since the last time (the Detector may make several)."""
        calls, self._calls[:] = list(self._calls), []
        return {stage: sum(call[stage] for call in calls) for stage in calls[0]}


class RuntimeSubject:
    """A graph of form raw in ONNX Runtime; letterbox, decode, NMS and scaling are ours, as for an engine."""

    def __init__(self, model: Model, threads: int | None, options: Options) -> None:
        ort = _onnxruntime()
        from ..postprocess import detect

        assert model.spec is not None
        self._spec, self._options, self._threads, self._detect = model.spec, options, threads, detect
        self.notes: list[str] = []
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        if threads is not None:
            settings.intra_op_num_threads = threads
        self._session = ort.InferenceSession(str(model.path), settings, providers=["CPUExecutionProvider"])
        import onnx

        self._inputs = tensor_infos(onnx.load(model.path))
        self._names = list(model.spec.input_names)
        self.precision, self.device = model.precision, "CPU"
        self.takes_images = _is_image(self._inputs)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The graph's."""
        return self._inputs

    def canvas(self) -> tuple[int, int]:
        """The graph's, or the one asked for."""
        fixed = self._inputs[0].shape[2:]
        size = (fixed[0], fixed[1]) if -1 not in fixed else self._options.image_size or self._spec.image_size
        if size is None:
            raise InputError("The model's input size is open", received=str(list(fixed)), fix="Give an image size")
        return size

    def on_tensors(self, arrays: Arrays) -> tuple[Stages, int]:
        """`InferenceSession.run`, then `dhead_trt.detect`."""
        stages, found = self._run(arrays)
        return stages, int(found.num_dets.sum())

    def on_images(self, images: Sequence[Image]) -> tuple[Stages, int]:
        """What a Detector does, around ONNX Runtime."""
        from ..detections import Detections

        start = time.perf_counter()
        size, tensor = self.canvas(), self._inputs[0]
        batch = np.empty((len(images), 3, *size), tensor.dtype)
        boxes = [
            letterbox(im, size, dtype=tensor.dtype, out=batch[i], threads=self._threads)[1]
            for i, im in enumerate(images)
        ]
        stages, out = self._run({tensor.name: batch})
        found = 0
        for i, box in enumerate(boxes):
            n = int(out.num_dets[i, 0])
            xyxy = box.to_image(out.det_boxes[i, :n]).astype(np.float32)
            classes = out.det_classes[i, :n].astype(np.int64)
            found += len(Detections(xyxy, out.det_scores[i, :n], classes, self._spec.names, images[i].shape[:2]))
        total = (time.perf_counter() - start) * 1e3
        return {"letterbox": total - sum(stages.values()), **stages}, found

    def layers(self, arrays: Arrays, calls: int) -> list[tuple[str, str, float]]:
        """Not measured."""
        return []

    def close(self) -> None:
        """Frees the session."""
        self._session = None

    def _run(self, arrays: Arrays) -> tuple[Stages, Any]:
        o = self._options
        start = time.perf_counter()
        maps = self._session.run(self._names, arrays)
        ran = time.perf_counter()
        found = self._detect(
            dict(zip(self._names, maps, strict=True)), self._spec, conf=o.conf, iou=o.iou, max_det=o.max_det,
            threads=self._threads,
        )  # fmt: skip
        end = time.perf_counter()
        return {"prepare": 0.0, "engine": (ran - start) * 1e3, "decode": (end - ran) * 1e3}, found


def prepare(paths: Sequence[str | os.PathLike[str]], folder: Path) -> list[Model]:
    """Looks at each model; ONNX graphs are cut at their raw maps, into `folder`.

    Raises:
        InputError: there is no model, or no such file.
        ArtifactError, GraphError, BackendUnavailable: it cannot be used.
    """
    if not paths:
        raise InputError("There is nothing to measure", received="no model")
    models: list[Model] = []
    names: set[str] = set()
    for number, given in enumerate(paths):
        path = Path(given)
        name, count = path.name, 1
        while name in names:
            count += 1
            name = f"{path.name} #{count}"
        names.add(name)
        if not path.is_file():
            raise InputError("There is no such model", received=repr(str(path)), expected="an engine or an ONNX file")
        if path.suffix.lower() != ".onnx":
            artifact = Artifact.load(path)
            models.append(
                Model(name, artifact.plan, artifact.backend, artifact.precision, artifact.form, artifact.spec)
            )
            continue
        _onnxruntime()
        import onnx

        from ..surgery import convert

        graph = convert(path, form="raw", verify=False)
        target = folder / f"{number}.onnx"
        onnx.save(graph.model, target)
        kept = next((p.value for p in graph.model.metadata_props if p.key == "dhead_precision"), "fp32")
        models.append(Model(name, target, "onnxruntime", kept, "raw", graph.spec))
    return models


def sample_images(count: int = 4, size: tuple[int, int] = (720, 1280)) -> list[Image]:
    """Seeded pictures, uint8 [height, width, 3]: shaded ground with bright boxes, for runs without given images."""
    rng = np.random.default_rng(0)
    height, width = size
    images = []
    for _ in range(count):
        ground = np.linspace(60, 160, height)[:, None, None] + rng.normal(0, 8, (height, width, 3))
        for _ in range(24):
            y, x = int(rng.integers(0, height - 40)), int(rng.integers(0, width - 40))
            h, w = rng.integers(20, height // 3, 2)
            ground[y : y + h, x : x + w] = rng.integers(0, 256, 3)
        images.append(ground.clip(0, 255).astype(np.uint8))
    return images


def tensors(subject: Subject, spec: HeadSpec | None, images: Sequence[Image], batch: int, options: Options) -> Arrays:
    """The network's input: the images on its canvas, or random features.

    Raises:
        InputError: the model does not take this batch.
    """
    infos = subject.inputs
    if subject.takes_images:
        tensor, size = infos[0], subject.canvas()
        array = np.empty((batch, 3, *size), tensor.dtype)
        for i in range(batch):
            letterbox(images[i % len(images)], size, dtype=tensor.dtype, out=array[i])
        arrays: Arrays = {tensor.name: array}
    else:
        arrays = random_inputs(infos, batch=batch, size=options.image_size, spec=spec)
    for t in infos:
        if not t.accepts(arrays[t.name].shape) or arrays[t.name].shape[0] != batch:
            raise InputError(
                f"The model does not take batches of {batch}", received=f"input {t.name}", expected=t.describe()
            )
    return arrays


def _is_image(inputs: Sequence[TensorInfo]) -> bool:
    first = inputs[0]
    return len(inputs) == 1 and len(first.shape) == 4 and first.shape[1] == 3 and first.dtype.startswith("float")


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise BackendUnavailable("ONNX Runtime is not installed", fix='pip install "dhead-trt[onnx]"') from e
    return onnxruntime
