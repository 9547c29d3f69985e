"""Climbs the ladder: runs a model in every way this machine can, and measures each against the float64 oracle."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__, reference
from ..artifact import Artifact, TensorInfo
from ..backends.base import silent
from ..errors import InputError
from ..progress import ProgressCallback
from ..spec import HeadSpec
from ..tensors import refuse_non_finite
from .climb import Climb, Work
from .measure import TOLERANCES, ParityReport

__all__ = ["run_ladder"]

Arrays = dict[str, NDArray[Any]]


def run_ladder(
    model: Any,
    *,
    engines: Sequence[str | os.PathLike[str]] = (),
    precisions: Sequence[str] = ("fp32",),
    inputs: Mapping[str, NDArray[Any]] | None = None,
    inputs_from: str = "",
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    conf: float = 0.25,
    iou: float = 0.7,
    spec: HeadSpec | None = None,
    name: str | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> ParityReport:
    """Runs every rung that this machine can, on the same input, against one reference.

    The reference is the float64 oracle's decode of the raw maps that the original computes: PyTorch where the model is
    a torch head, else ONNX Runtime on the graph cut at its raw maps. Then follow the original's own decode, the graph
    in reduced precision, our C++ decode and detect at each SIMD level, and engines.

    Args:
        model: a torch module with `.spec` and `.raw`, or an ONNX model (path, bytes or ModelProto) of any form.
        engines: engines built from this model, to be measured too.
        precisions: of the graph, and of the OpenVINO engines that are built for the occasion where `engines` is empty.
        inputs: arrays by input name; None: random ones.
        inputs_from: where `inputs` come from, for the report.
        batch, image_size, seed: of random inputs, where neither the model nor the first engine fixes them.
        conf, iou: for comparing detections. Where nothing passes `conf` (random weights), a lower threshold is used.
        spec: the head, where the graph does not say.
        name: of the model, for the report.
        threads: of the C++ core and the engines; None: their default.
        progress: called with (phase, None).

    Raises:
        InputError: the inputs do not fit the model.
        GraphError: the graph is not a supported detector.
        ArtifactError: an engine is missing or damaged.
        BackendUnavailable: a package that the reference needs is missing.
    """
    tell = progress or silent
    artifacts = [Artifact.load(path) for path in engines]
    with tempfile.TemporaryDirectory(prefix="dhead-parity-") as folder:
        tell("the original", None)
        origin = _Origin.read(model, spec, Path(folder))
        feeds = (
            origin.random(artifacts, batch, image_size, seed) if inputs is None else origin.checked(artifacts, inputs)
        )
        maps, maps_from, others = origin.run(feeds)
        climb = Climb(origin.spec, feeds, maps, conf=conf, iou=iou, threads=threads, tell=tell)
        climb.reference(f"decodes the raw maps of {maps_from}")
        for rung, tolerance, work in others:
            climb.dense(rung, TOLERANCES[tolerance, "fp32"], work)
        if "fp16" in precisions:
            climb.dense("onnxruntime fp16", TOLERANCES["network", "fp16"], origin.half(feeds))
        climb.core()
        climb.cuda()
        for artifact in artifacts:
            climb.engine(artifact)
        if not artifacts:
            for precision in precisions:
                climb.openvino(origin.sized(feeds), precision, Path(folder))
        climb.other_backends({"openvino", *(a.backend for a in artifacts)})
        source = inputs_from or ("given" if inputs is not None else f"random, seed {seed}")
        sizes = ", ".join(f"{k} {'x'.join(map(str, v.shape))}" for k, v in feeds.items())
        lowered = f"; nothing scores above {conf:g}, so detections are compared above {climb.conf:.3g}"
        return ParityReport(
            model=name or _name(model),
            spec=origin.spec,
            inputs=f"{source}: {sizes}{lowered if climb.conf != conf else ''}",
            rungs=tuple(climb.rungs),
            facts=_facts(),
        )


@dataclass(frozen=True)
class _Origin:
    """The original model: as it is, and cut at its raw maps."""

    model: Any  # the torch module, or None
    native: Any  # ModelProto
    raw: Any  # ModelProto, form raw
    tail: Any  # surgery.Tail of `native`
    spec: HeadSpec

    @classmethod
    def read(cls, model: Any, spec: HeadSpec | None, folder: Path) -> _Origin:
        """Reads or exports the model and finds its head."""
        from ..surgery import convert, find_tail, load_model

        torch_model = None
        if hasattr(model, "state_dict") and hasattr(model, "raw"):
            from ..export import export_onnx

            torch_model = model.eval()
            size = model.spec.image_size
            model = export_onnx(model, folder / "native.onnx", image_size=size, dynamic_size=True, verify=False).path
        native = load_model(model)
        tail = find_tail(native, spec=spec)
        cut = convert(native, "raw", spec=spec, verify=tail.kind != "native")  # a native graph has its own rung
        return cls(torch_model, native, cut.model, tail, cut.spec)

    def random(
        self, artifacts: Sequence[Artifact], batch: int | None, size: tuple[int, int] | None, seed: int
    ) -> Arrays:
        """Random inputs of shapes that the graph and the first engine accept."""
        from ..shapes import random_inputs, tensor_infos

        own = tensor_infos(self.raw)
        for artifact in artifacts:
            _same_inputs(own, artifact)
        infos = artifacts[0].inputs if artifacts else own
        if batch is not None:
            if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
                raise InputError("The batch is out of range", received=repr(batch), expected="at least 1")
            infos = tuple(replace(t, shape=(-1, *t.shape[1:])) for t in infos)
        if not artifacts:  # an engine's profile says what it takes
            size = size or self.spec.image_size or (640, 640)
        made = random_inputs(infos, batch=batch, size=size, spec=self.spec, seed=seed)
        return {t.name: a.astype(np.float32) for t, a in zip(own, made.values(), strict=True)}

    def checked(self, artifacts: Sequence[Artifact], inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """The arrays that were given, in the order and with the types of the graph's inputs."""
        from ..shapes import tensor_infos

        infos = tensor_infos(self.raw)
        for artifact in artifacts:
            _same_inputs(infos, artifact)
        wanted = ", ".join(f"{t.name} {t.describe()} {t.dtype}" for t in infos)
        if {t.name for t in infos} != set(inputs):
            raise InputError("The inputs have other names than the model's", received=sorted(inputs), expected=wanted)
        feeds = {t.name: np.ascontiguousarray(inputs[t.name]) for t in infos}
        for t in infos:
            x = feeds[t.name]
            shape = (abs(t.shape[0]), *x.shape[1:])  # the batch can be changed, so any will do
            if x.ndim != len(t.shape) or not t.accepts(shape) or x.dtype.kind not in "fu":
                raise InputError(f"Input {t.name!r} does not fit", received=f"{x.dtype} {x.shape}", expected=wanted)
            feeds[t.name] = x.astype(t.dtype, copy=False)
        refuse_non_finite(feeds)
        return feeds

    def sized(self, feeds: Arrays) -> Any:
        """The raw graph at the batch of `feeds`."""
        return _at_batch(self.raw, self.spec, feeds)

    def run(self, feeds: Arrays) -> tuple[Arrays, str, list[tuple[str, str, Work]]]:
        """The raw maps that count, where they are from, and the other ways to run the original (name, kind, work)."""
        from ..shapes import run_reference

        others: list[tuple[str, str, Work]] = []
        if self.model is not None:
            maps = _torch_maps(self.model, feeds)
            maps_from = "PyTorch"
            others.append(("torch decode", "torch", lambda: _torch_decode(self.model, maps)))
            cut = self.sized(feeds)
            others.append(
                ("onnxruntime raw", "network", lambda: reference.decode(run_reference(cut, feeds), self.spec))
            )
        else:
            maps = run_reference(self.sized(feeds), feeds)
            maps_from = "ONNX Runtime on the graph cut there"
        if self.tail.kind == "native":
            others.append(("onnxruntime native", "network", lambda: self._native(feeds)))
        return maps, maps_from, others

    def half(self, feeds: Arrays) -> Work:
        """The graph in half precision, in ONNX Runtime."""
        from ..precision import to_fp16
        from ..shapes import run_reference

        return lambda: reference.decode(run_reference(to_fp16(self.sized(feeds)), feeds), self.spec)

    def _native(self, feeds: Arrays) -> tuple[Any, Any]:
        """The graph's own outputs, as boxes xyxy and scores."""
        from ..shapes import run_reference
        from ..surgery.probe import joined

        found = run_reference(_at_batch(self.native, self.spec, feeds), feeds)
        rows = joined(found, self.tail.outputs, None).transpose(0, 2, 1)
        boxes, scores = rows[..., :4], rows[..., 4:]
        if self.tail.box_format == "xywh":
            half = boxes[..., 2:] / 2
            boxes = np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
        return boxes, scores


def _same_inputs(own: Sequence[TensorInfo], artifact: Artifact) -> None:
    """Refuses an engine that does not take what the model takes."""
    channels = [t.shape[1:2] for t in own]
    if [t.shape[1:2] for t in artifact.inputs] != channels:
        raise InputError(
            f"{artifact.plan.name} is the engine of another model: its inputs are not the model's",
            received=", ".join(f"{t.name} {t.describe()}" for t in artifact.inputs),
            expected=", ".join(f"{t.name} {t.describe()}" for t in own),
        )


def _at_batch(model: Any, spec: HeadSpec, feeds: Arrays) -> Any:
    from ..shapes import set_shapes, tensor_infos

    batch = next(iter(feeds.values())).shape[0]
    if all(t.shape[0] in (-1, batch) for t in tensor_infos(model)):
        return model
    return set_shapes(model, spec, batch=batch)[0]


def _torch_maps(model: Any, feeds: Arrays) -> Arrays:
    import torch

    tensors = [torch.from_numpy(x) for x in feeds.values()]
    images = len(tensors) == 1 and not hasattr(model, "in_channels")
    with torch.inference_mode():
        maps = model.raw(tensors[0] if images else tensors)
    return {name: maps[name].float().numpy() for name in model.spec.input_names}


def _torch_decode(model: Any, maps: Arrays) -> tuple[Any, Any]:
    import torch

    from ..heads.decoded import decode_maps

    with torch.inference_mode():
        boxes, scores = decode_maps({k: torch.from_numpy(v) for k, v in maps.items()}, model.spec)
    return boxes.numpy(), scores.numpy()


def _name(model: Any) -> str:
    if isinstance(model, (str, os.PathLike)):
        return Path(model).name
    return "an ONNX model" if isinstance(model, (bytes, bytearray)) else type(model).__name__


def _facts() -> dict[str, Any]:
    """What a reader needs to place the figures: versions and the machine."""
    from ..doctor import cpu_name, package_version

    packages = ("numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorrt-rtx-cu13", "tensorrt")
    found = {p: v for p in packages if (v := package_version(p)) is not None}
    versions = {"dhead_trt": __version__, "python": platform.python_version(), **found}
    return {"machine": platform.machine(), "cpu": cpu_name(), "versions": versions}
