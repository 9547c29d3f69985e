"""Detector with images on a GPU, without one: real kernels and bindings on the host (cuda_stand_in), and an engine that
takes device arrays and computes with OpenVINO what is in them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import cuda_stand_in
import small_models
from dhead_trt import _batches, _device, _device_images
from dhead_trt import cuda as cuda_front
from dhead_trt.artifact import Artifact
from dhead_trt.baked import Baked
from dhead_trt.cuda import Nv12
from dhead_trt.detector import Detector
from dhead_trt.engine import Engine
from dhead_trt.errors import InputError

pytest.importorskip("openvino", reason="OpenVINO is not installed")
torch = pytest.importorskip("torch")

SIZE = (96, 128)
SHAPES = [(50, 41), (64, 96), (200, 333), (33, 90)]


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return cuda_stand_in.build(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture(autouse=True)
def here(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU: the stand-in."""
    for module in (_device, _batches, _device_images, cuda_front):
        if hasattr(module, "cuda_module"):
            monkeypatch.setattr(module, "cuda_module", lambda: gpu)
        if hasattr(module, "availability"):
            monkeypatch.setattr(module, "availability", lambda: (True, ""))


class OnDevice:
    """A runner that computes on the host what it finds in device memory, and leaves its results there."""

    def __init__(self, runner: Any, gpu: ModuleType) -> None:
        self._runner, self._gpu = runner, gpu
        self.calls: list[tuple[int, Any]] = []  # batch, stream
        self.infer_device = self._infer_device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def _infer_device(self, inputs: Mapping[str, Any], *, out: Any = None, stream: Any = None) -> dict[str, Any]:
        host = {name: read(self._gpu, array) for name, array in inputs.items()}
        self.calls.append((len(next(iter(host.values()))), stream))
        found = self._runner.run(host)
        result = {}
        for name, value in found.items():
            result[name] = put(self._gpu, value) if out is None else out[name]
            result[name].copy_from_host(value)
        return result


def read(gpu: ModuleType, array: Any) -> np.ndarray:
    if isinstance(array, np.ndarray):  # such as thresholds, which TensorRT's runner copies
        return array
    v = _device.view(array, "input", gpu)
    assert v.contiguous
    size = int(np.prod(v.shape)) * int(v.typestr[2:])
    return np.frombuffer(ctypes.string_at(v.address, size), v.typestr).reshape(v.shape)


def put(gpu: ModuleType, array: np.ndarray) -> Any:
    array = np.ascontiguousarray(array)
    there = gpu.DeviceArray(list(array.shape), array.dtype.str)
    there.copy_from_host(array)
    return there


def picture(shape: tuple[int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    rows, columns = (np.arange(n) * k // n for n, k in zip(shape, (5, 6), strict=True))
    return np.ascontiguousarray(blocks[rows][:, columns])


def pictures() -> list[np.ndarray]:
    return [picture(shape, seed) for seed, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("engines"), small_models.openvino_plan
    return {
        "three": made(folder / "three", image_size=SIZE, batch=(1, 2, 3)),
        "full": made(folder / "full", image_size=SIZE, batch=4),
        "sizes": made(folder / "sizes", image_size=((64, 64), SIZE, SIZE), batch=(1, 1, 3)),
    }


@pytest.fixture
def lent(plans: dict[str, Path], gpu: ModuleType) -> Iterator[Any]:
    """Opens an engine by its plan's name, and puts it on the GPU."""
    engines = []

    def open_(name: str = "three", **options: Any) -> Engine:
        engine = Engine(plans[name], threads=1, **options)
        engine._runner = OnDevice(engine._runner, gpu)
        engines.append(engine)
        return engine

    yield open_
    for engine in engines:
        engine.close()


def test_the_same_as_on_the_cpu(lent: Any, gpu: ModuleType, plans: dict[str, Path]) -> None:
    images = pictures()
    with Detector(plans["three"], threads=1) as cpu:
        want = [cpu(image, conf=0.5) for image in images]
    assert sum(map(len, want)) > 20
    engine = lent()
    detector = Detector(engine)
    for image, found in zip(images, want, strict=True):
        assert detector(put(gpu, image), conf=0.5) == found
        assert detector(put(gpu, image[:, :, ::-1]), conf=0.5, bgr=True) == found
    assert [batch for batch, _ in engine._runner.calls] == [1] * 8
    # Lists: three at most to a batch, CPU images and GPU images each in theirs, results in their places.
    engine._runner.calls.clear()
    assert detector([put(gpu, image) for image in images], conf=0.5) == want
    assert [batch for batch, _ in engine._runner.calls] == [3, 1]
    mixed = [put(gpu, images[0]), images[1], put(gpu, images[2]), images[3]]
    assert detector(mixed, conf=0.5) == want
    for change in ({"max_det": 2}, {"classes": [1, 3]}, {"agnostic": True, "iou": 0.2}, {"multi_label": True}):
        assert detector(put(gpu, images[2]), **change) == detector(images[2], **change)


def test_layouts(lent: Any, gpu: ModuleType) -> None:
    detector = Detector(lent())
    image = picture((70, 90), 3)
    grey = np.ascontiguousarray(image[:, :, 0])
    for there, here_ in (
        (put(gpu, np.dstack([image, image[:, :, :1]])), image),
        (put(gpu, grey), grey),
        (put(gpu, grey[:, :, None]), grey),
    ):
        want = detector(here_)
        assert len(want) > 0
        assert detector(there) == want

    class Planar:
        """torch's strides of a permuted tensor: [H, W, 3] that lies channel by channel."""

        def __init__(self) -> None:
            self._memory = put(gpu, image.transpose(2, 0, 1))
            data = self._memory.__cuda_array_interface__["data"]
            self.__cuda_array_interface__ = {
                "shape": image.shape, "typestr": "|u1", "data": data, "strides": (90, 1, 70 * 90), "version": 3,
            }  # fmt: skip

    assert detector(Planar()) == detector(image)


def nv12(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BT.601 limited range, chroma of every second pixel."""
    r, g, b = (image[:, :, i].astype(float) for i in range(3))
    y = 16 + (65.738 * r + 129.057 * g + 25.064 * b) / 256
    u = 128 + (-37.945 * r - 74.494 * g + 112.439 * b) / 256
    v = 128 + (112.439 * r - 94.154 * g - 18.285 * b) / 256
    pair = np.stack([u[::2, ::2], v[::2, ::2]], axis=2).round().astype(np.uint8)
    return y.round().astype(np.uint8), pair.reshape(pair.shape[0], -1)


def test_nv12(lent: Any, gpu: ModuleType, plans: dict[str, Path]) -> None:
    """The kernel's colours are tested in test_cuda_kernels.py; here the frame's way through the Detector."""
    detector = Detector(lent())
    luma, chroma = nv12(picture((80, 120), 5))
    found = detector(Nv12(put(gpu, luma), put(gpu, chroma)), conf=0.3)
    assert found.image_size == (80, 120)
    canvas, boxes = cuda_front.letterbox_cuda([Nv12(put(gpu, luma), put(gpu, chroma))], SIZE)
    raw = detector.engine.infer(canvas.to_host(), conf=0.3)
    assert len(found) == int(raw["num_dets"][0, 0]) > 0
    np.testing.assert_array_equal(found.xyxy, boxes[0].to_image(raw["det_boxes"][0, : len(found)]).astype(np.float32))
    again = detector([Nv12(put(gpu, luma), put(gpu, chroma)), picture((64, 64), 1)], conf=0.3)
    assert again[0] == found
    with pytest.raises(InputError, match="not NV12"):
        detector(Nv12(put(gpu, luma[None]), put(gpu, chroma)))
    with pytest.raises(InputError, match="not NV12"):
        detector(Nv12(put(gpu, luma), put(gpu, chroma[:-3])))
    with Detector(plans["three"]) as cpu, pytest.raises(InputError, match="NV12 frames need an engine on a GPU"):
        cpu(Nv12(put(gpu, luma), put(gpu, chroma)))


def test_fixed_batches_and_rect(lent: Any, gpu: ModuleType) -> None:
    images = pictures()
    engine = lent("full")
    detector = Detector(engine)
    want = detector(images, conf=0.5)
    assert detector([put(gpu, i) for i in images[:3]], conf=0.5) == want[:3]
    assert engine._runner.calls[-1][0] == 4
    rect = Detector(lent("sizes"), rect=True)
    want = rect(images, conf=0.5)
    assert {d.image_size for d in want} == set(SHAPES)
    assert rect([put(gpu, i) for i in images], conf=0.5) == want


def test_errors_stand_in_their_place(lent: Any, gpu: ModuleType) -> None:
    detector = Detector(lent())
    image = picture((64, 64), 0)
    bad = [
        (put(gpu, image.astype(np.float32)), "not an image"),
        (put(gpu, image.transpose(2, 0, 1)), r"array\.transpose\(1, 2, 0\)"),
        (put(gpu, image[None]), "batch of images"),
        (put(gpu, image[:0]), "no pixels"),
        (put(gpu, image[0, 0]), "not an image"),
    ]
    for source, says in bad:
        with pytest.raises(InputError, match=says):
            detector(source)
        with pytest.raises(InputError, match=says):
            detector.submit(source).result(60)
    found = detector([put(gpu, image), bad[0][0], put(gpu, image)], on_error="return")
    assert found[0] == found[2] == detector(image)
    assert "Image 1: " in str(found[1])


def test_submit_and_threads(lent: Any, gpu: ModuleType) -> None:
    with Detector(lent(), queue=4) as detector:
        images = pictures()
        want = [detector(i, conf=0.5) for i in images]
        there = [put(gpu, i) for i in images]
        futures = [detector.submit(there[k % 4], conf=0.5) for k in range(24)]
        assert [f.result(60) for f in futures] == [want[k % 4] for k in range(24)]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda k: detector(there[k % 4], conf=0.5), range(64))) == want * 16


def test_memory_is_used_again(lent: Any, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(lent())
    image = put(gpu, picture((64, 64), 0))
    first = detector(image)
    made = []
    monkeypatch.setattr(cuda_front, "empty", lambda *a: made.append(a))
    assert detector(image) == first
    assert made == []


def test_without_the_kernels_images_are_copied(
    lent: Any, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, plans: dict[str, Path]
) -> None:
    image = picture((64, 64), 0)
    monkeypatch.setattr(_batches, "availability", lambda: (False, "built without"))
    detector = Detector(lent())
    assert detector(put(gpu, image)) == detector(image)
    assert detector.engine._runner.calls == []  # type: ignore[attr-defined]
    with Detector(plans["three"]) as cpu:  # an engine on the CPU
        assert cpu(put(gpu, image)) == cpu(image)

    class Mute:
        def __init__(self) -> None:
            self.__cuda_array_interface__ = put(gpu, image).__cuda_array_interface__

    with pytest.raises(InputError, match="how to copy it is not known"):
        detector(Mute())


class Detecting:
    """What a plugin engine is to its caller: the runner of a plan whose outputs are detections."""

    def __init__(self, runner: Any, spec: Any) -> None:
        self._runner, self._spec, self.thresholds = runner, spec, (0.3, 0.6)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        import dhead_trt

        given = dict(inputs)
        conf, iou = given.pop("thresholds", self.thresholds)
        found = dhead_trt.detect(self._runner.run(given), self._spec, conf=float(conf), iou=float(iou), max_det=20)
        return {n: a for n, a in found._asdict().items() if n != "dropped"}

    def borrow(self, inputs: Mapping[str, Any]) -> Any:
        import contextlib

        return contextlib.nullcontext(self.run(inputs))


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_plans_that_hold_the_options(plans: dict[str, Path], gpu: ModuleType, on_gpu: bool, dynamic: bool) -> None:
    from dataclasses import replace

    from dhead_trt.artifact import TensorInfo

    raw = Engine(plans["three"], threads=1)
    artifact: Artifact = replace(
        raw.artifact,
        form="detections",
        detection=Baked(conf=0.3, iou=0.6, max_det=20, dynamic_thresholds=dynamic),
        outputs=(
            TensorInfo("num_dets", "int32", (-1, 1)), TensorInfo("det_boxes", "float32", (-1, 20, 4)),
            TensorInfo("det_scores", "float32", (-1, 20)), TensorInfo("det_classes", "int32", (-1, 20)),
        ),
        inputs=(*raw.artifact.inputs, *((TensorInfo("thresholds", "float32", (2,)),) if dynamic else ())),
    )  # fmt: skip
    engine = Engine(artifact, threads=1)
    runner: Any = Detecting(raw._runner, engine.spec)
    engine._runner = OnDevice(runner, gpu) if on_gpu else runner
    image = picture((64, 96), 7)
    there = put(gpu, image) if on_gpu else image
    with Detector(engine) as detector, Detector(raw) as free:
        held = {"conf": 0.3, "iou": 0.6, "max_det": 20}
        assert detector(there) == free(image, **held)
        assert len(detector(there)) > 5
        for change in ({"conf": 0.5}, {"max_det": 3}, {"classes": [2]}, {"conf": 0.4, "classes": [0, 1], "max_det": 1}):
            assert detector(there, **change) == free(image, **{**held, **change})
        change = {"conf": 0.1, "iou": 0.2}
        if dynamic:
            assert detector(there, **change) == free(image, **{**held, **change})
        else:
            with pytest.raises(InputError, match=r"plan's conf was fixed.*received conf=0\.1, expected 0\.3 or more"):
                detector(there, **change)
            with pytest.raises(InputError, match="fixed when it was built"):
                Detector(engine, iou=0.5)
        with pytest.raises(InputError, match="multi_label"):
            detector(there, multi_label=True)
        assert "conf 0.3, iou 0.6, max_det 20" in repr(detector)
        assert [t.name for t in engine.inputs] == [raw.inputs[0].name]
    engine.close()
    raw.close()


def test_torch_is_not_needed(lent: Any, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture((64, 64), 0)
    detector = Detector(lent())
    want = detector(put(gpu, image))
    monkeypatch.delitem(sys.modules, "torch")
    assert detector(put(gpu, image)) == want
