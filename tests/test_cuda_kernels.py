"""The CUDA kernels and their Python interface, on the host stand-in for a GPU (cuda_stand_in.py).

Real: the source of the kernels, launchers, binding and `dhead_trt.cuda`. Not real: the GPU. That the source also
compiles for every GPU is in test_cuda_build.py; what only a GPU can show is in tests/gpu.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cuda_stand_in
import dhead_trt
from cases import BY_NAME, CASES, Case, assert_same_decode, assert_same_detections
from cases import cases as random_cases
from dhead_trt import HeadSpec, InputError, cuda, reference
from dhead_trt.letterbox import letterbox


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    module = cuda_stand_in.build(tmp_path_factory.mktemp("cuda"))
    before = sys.modules.get("dhead_trt._cuda")
    sys.modules["dhead_trt._cuda"] = module
    cuda._class_mask.cache_clear()
    yield module
    cuda._class_mask.cache_clear()
    del sys.modules["dhead_trt._cuda"]
    if before is not None:
        sys.modules["dhead_trt._cuda"] = before


def put(gpu: Any, array: np.ndarray) -> Any:
    array = np.ascontiguousarray(array)
    device = gpu.DeviceArray(list(array.shape), array.dtype.str, 0)
    device.copy_from_host(array)
    return device


def put_all(gpu: Any, maps: dict[str, np.ndarray]) -> dict[str, Any]:
    return {n: put(gpu, x) for n, x in maps.items()}


def fetch(result: Any) -> dhead_trt.DetectResult:
    return dhead_trt.DetectResult(*(x.to_host() for x in result))


def assert_same_bits(got: Any, want: Any) -> None:
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)  # NaN equals NaN


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_cases(gpu: Any, case: Case) -> None:
    maps = case.maps()
    device = put_all(gpu, maps)
    decoded = tuple(x.to_host() for x in cuda.decode_cuda(device, case.spec))
    assert_same_decode(decoded, reference.decode(maps, case.spec))
    assert_same_bits(decoded, dhead_trt.decode(maps, case.spec))

    found = fetch(cuda.detect_cuda(device, case.spec, **case.options))
    want = reference.detect(maps, case.spec, **case.options)
    assert_same_detections(found, want, maps=maps, spec=case.spec, **case.options)
    assert_same_bits(found, dhead_trt.detect(maps, case.spec, **case.options))
    if case.survivors is not None:
        assert (found.num_dets > 0).any() == case.survivors


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=random_cases(max_classes=90), seed=st.integers(0, 2**31))
def test_random_cases_have_the_bits_of_the_cpu_code(gpu: Any, case: Case, seed: int) -> None:
    maps = case.maps(seed)
    device = put_all(gpu, maps)
    assert_same_bits([x.to_host() for x in cuda.decode_cuda(device, case.spec)], dhead_trt.decode(maps, case.spec))
    found = fetch(cuda.detect_cuda(device, case.spec, **case.options))
    assert_same_bits(found, dhead_trt.detect(maps, case.spec, **case.options))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("max_candidates", [1, 255, 257, 4095, 4096, 4097, 5000, 8191, 100_000])
def test_any_number_of_candidates(gpu: Any, max_candidates: int, multi_label: bool) -> None:
    """Below and beyond what is sorted in shared memory; selected or all; the workspace's own sort."""
    spec = HeadSpec(num_classes=3, strides=(8,), bins=2)
    case = Case("many", spec, ((80, 80),), kind="crowd", batch=2)
    maps = case.maps()
    maps["cls_0"][1] -= 3  # another number of survivors in the second image
    options: dict[str, Any] = {"max_candidates": max_candidates, "multi_label": multi_label, "max_det": 1000}
    found = fetch(cuda.detect_cuda(put_all(gpu, maps), spec, **options))
    want = dhead_trt.detect(maps, spec, **options)
    assert_same_bits(found, want)
    assert want.dropped[0] == 0 or max_candidates < 20_000
    assert want.num_dets[0] > min(max_candidates, 500) / 2


def test_more_detections_than_shared_memory_keeps(gpu: Any) -> None:
    spec = HeadSpec(num_classes=2, strides=(8,), bins=1)
    rng = np.random.default_rng(0)
    maps = {
        "box_0": np.full((1, 4, 50, 50), 0.4, np.float32),  # boxes of neighbours do not touch
        "cls_0": rng.normal(3, 1, (1, 2, 50, 50)).astype(np.float32),
    }
    found = fetch(cuda.detect_cuda(put_all(gpu, maps), spec, max_det=3000))
    assert_same_bits(found, dhead_trt.detect(maps, spec, max_det=3000))
    assert found.num_dets[0, 0] > 2000


def test_equal_everything(gpu: Any) -> None:
    """All keys differ in the anchor alone, so that radix selection goes through every digit."""
    spec = HeadSpec(num_classes=1, strides=(8,), bins=1)
    maps = {"box_0": np.full((1, 4, 70, 70), 0.3, np.float32), "cls_0": np.ones((1, 1, 70, 70), np.float32)}
    for max_candidates in (1, 77, 4096, 4899):
        options = {"max_candidates": max_candidates, "max_det": 5000}
        found = fetch(cuda.detect_cuda(put_all(gpu, maps), spec, **options))
        assert_same_bits(found, dhead_trt.detect(maps, spec, **options))
        assert found.num_dets[0, 0] == max_candidates
        assert found.dropped[0] == 4900 - max_candidates


def test_thresholds_and_outputs_given(gpu: Any) -> None:
    case = next(c for c in CASES if c.name == "float16")
    maps, k = case.maps(), 40
    device = put_all(gpu, maps)
    size = cuda.workspace_bytes(case.spec, case.shapes, case.batch)
    workspace = gpu.DeviceArray([size], "|u1", 0)
    b = case.batch
    out = cuda.DeviceDetections(
        gpu.DeviceArray([b, 1], "<i4", 0), gpu.DeviceArray([b, k, 4], "<f4", 0), gpu.DeviceArray([b, k], "<f4", 0),
        gpu.DeviceArray([b, k], "<i4", 0), gpu.DeviceArray([b], "<i4", 0),
    )  # fmt: skip
    for conf, iou in ((0.5, 0.25), (0.125, 0.75), (0.0, 0.5), (1.0, 0.5)):
        thresholds = put(gpu, np.array([conf, iou], np.float32))
        result = cuda.detect_cuda(
            device, case.spec, thresholds=thresholds, conf=0.9, max_det=k, out=out, workspace=workspace, stream=0
        )
        assert result.det_boxes is out.det_boxes
        assert_same_bits(fetch(result), dhead_trt.detect(maps, case.spec, conf=conf, iou=iou, max_det=k))
    boxes, scores = gpu.DeviceArray([b, 525, 4], "<f4", 0), gpu.DeviceArray([b, 525, 80], "<f4", 0)
    assert cuda.decode_cuda(device, case.spec, out=(boxes, scores))[0] is boxes
    assert_same_bits([boxes.to_host(), scores.to_host()], dhead_trt.decode(maps, case.spec))


def test_decode_and_detect_take_device_arrays(gpu: Any) -> None:
    """The functions for numpy arrays send these here: results of the same fields, on the GPU, in `out` where given."""
    for name in ("crowd_objectness", "some_classes_multi_label", "class_agnostic", "ties_float16"):
        case = BY_NAME[name]
        maps = case.maps()
        device = put_all(gpu, maps)
        for stream in (None, 0):
            decoded = dhead_trt.decode(device, case.spec, stream=stream)
            assert_same_bits([x.to_host() for x in decoded], dhead_trt.decode(maps, case.spec))
            options = {**case.options, "conf": 0.3, "iou": 0.5, "max_det": 9}
            found = dhead_trt.detect(device, case.spec, stream=stream, **options)
            assert type(found) is dhead_trt.DetectResult
            assert_same_bits(fetch(found), dhead_trt.detect(maps, case.spec, **options))
    again = dhead_trt.detect(device, case.spec, out=found, **options)
    assert all(a is b for a, b in zip(again, found, strict=True))
    assert dhead_trt.decode(device, case.spec, out=decoded)[0] is decoded[0]
    for options, message in (
        ({"classes": [99]}, "class is out of range"),
        ({"max_det": 0}, "max_det"),
        ({"out": []}, "wrong number"),
    ):
        with pytest.raises(InputError, match=message):
            dhead_trt.detect(device, case.spec, **options)
    wanted = dhead_trt.detect(device, case.spec, classes=iter([0, 2]))  # read once
    assert_same_bits(fetch(wanted), dhead_trt.detect(maps, case.spec, classes=[0, 2]))


def test_parity_climbs_the_cuda_rungs(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ladder's rungs pass, and fail where the kernels give something else or raise."""
    from dhead_trt.parity.climb import Climb

    case = BY_NAME["odd_sizes"]

    def climbed() -> list[tuple[str, str, str]]:
        climb = Climb(case.spec, {}, case.maps(), conf=0.25, iou=0.7, threads=1, tell=lambda phase, done=None: None)
        climb.cuda()
        return [(r.name, r.status, r.reason) for r in climb.rungs]

    rungs = climbed()
    names = ["CUDA decode", "CUDA detect", "CUDA decode, fp16 maps", "TensorRT plugin"]
    assert [r[0] for r in rungs] == names
    assert [r[1] for r in rungs] == ["passed"] * 3 + ["skipped"]
    other = case.maps(1)

    def elsewhere(call: Any) -> Any:
        return lambda maps, spec, **options: call(
            put_all(gpu, {n: x.astype(maps["box_0"].__cuda_array_interface__["typestr"]) for n, x in other.items()}),
            spec, **options,
        )  # fmt: skip

    monkeypatch.setattr(cuda, "decode_cuda", elsewhere(cuda.decode_cuda))
    monkeypatch.setattr("dhead_trt.parity.gpu._library", lambda: ("x", lambda x: put(gpu, x), lambda x: x.to_host()))

    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(cuda, "detect_cuda", broken)
    rungs = climbed()
    assert [r[1] for r in rungs] == ["failed"] * 3 + ["skipped"]
    assert rungs[1][2] == "RuntimeError: an illegal memory access"


class _Dlpack:
    """A numpy array in the clothes of a GPU's."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = -1) -> Any:
        assert stream == 1, "the producer was not asked to order its work"
        return self.array.__dlpack__()


def test_dlpack(gpu: Any) -> None:
    case = next(c for c in CASES if c.name == "odd_sizes")
    maps = case.maps()
    for dtype in (np.float32, np.float16):
        typed = {n: x.astype(dtype) for n, x in maps.items()}
        found = fetch(cuda.detect_cuda({n: _Dlpack(x) for n, x in typed.items()}, case.spec))
        assert_same_bits(found, dhead_trt.detect(typed, case.spec))
    with pytest.raises(InputError, match="C-contiguous"):
        cuda.detect_cuda({n: _Dlpack(x[..., ::-1].copy()[..., ::-1]) for n, x in maps.items()}, case.spec)


def test_workspace_from_the_cache_of_the_maps_library(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's part is played by a class that hands out the module's arrays and takes note of it."""
    made: list[tuple[Any, Any]] = []

    class Array:
        def __init__(self, device: Any) -> None:
            self.device, self.to_host = device, device.to_host
            self.__cuda_array_interface__ = device.__cuda_array_interface__

    def empty(shape: Any, dtype: str) -> Array:
        made.append((shape, dtype))
        return Array(gpu.DeviceArray(list(shape), dtype, 0))

    context = SimpleNamespace(Device=lambda *_: nullcontext(), ExternalStream=lambda *_: nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=Array, empty=empty, cuda=context))
    case = next(c for c in CASES if c.name == "odd_sizes")
    maps = case.maps()
    found = fetch(cuda.detect_cuda({n: Array(put(gpu, x)) for n, x in maps.items()}, case.spec, **case.options))
    assert_same_bits(found, dhead_trt.detect(maps, case.spec, **case.options))
    need = cuda.workspace_bytes(case.spec, case.shapes, case.batch)
    assert made[5:] == [((need,), "|u1")]  # after the five outputs


def test_bad_arguments(gpu: Any) -> None:
    spec = HeadSpec(num_classes=2, strides=(8, 16), bins=4)
    case = Case("bad", spec, ((4, 4), (2, 2)))
    maps = case.maps()
    good = put_all(gpu, maps)

    def expect(message: str, **change: Any) -> None:
        options = {k: change.pop(k) for k in list(change) if k not in good}
        with pytest.raises(InputError, match=message):
            cuda.detect_cuda({**good, **change}, spec, **options)

    expect("not a device array", box_0=maps["box_0"].tolist())
    expect("not in device memory|not a device array", box_0=maps["box_0"])
    expect("wrong shape", cls_1=put(gpu, np.zeros((1, 3, 2, 2), np.float32)))
    expect("wrong shape", cls_1=put(gpu, np.zeros((1, 2, 3, 2), np.float32)))
    expect("wrong shape", cls_1=put(gpu, np.zeros((2, 2, 2, 2), np.float32)))
    expect("another type", cls_0=put(gpu, maps["cls_0"].astype(np.float16)))
    expect("wrong type", box_0=put(gpu, maps["box_0"].astype(np.float64)))
    expect("conf is out of range", conf=-1)
    expect("max_det is out of range", max_det=0)
    expect("max_candidates is out of range", max_candidates=True)
    expect("class is out of range", classes=[2])
    expect("stream is not of a known kind", stream="mine")
    expect("thresholds is not", thresholds=put(gpu, np.zeros(3, np.float32)))
    expect("workspace is too small", workspace=put(gpu, np.zeros(16, np.uint8)))
    expect("wrong number of arrays", out=[])
    with pytest.raises(InputError, match="map obj_0 is missing"):
        cuda.detect_cuda(good, spec.replace(objectness=True))
    with pytest.raises(InputError, match="wrong shape or type"):
        cuda.decode_cuda(good, spec, out=(put(gpu, np.zeros((1, 20, 4), np.float32)), good["box_0"]))


def test_streams_of_other_libraries() -> None:
    from dhead_trt._device import stream_handle

    assert stream_handle(None) == 0
    assert stream_handle(7) == 7
    assert stream_handle(SimpleNamespace(cuda_stream=8)) == 8
    assert stream_handle(SimpleNamespace(ptr=9)) == 9
    assert stream_handle(SimpleNamespace(handle=10)) == 10
    assert stream_handle(SimpleNamespace(__cuda_stream__=lambda: (0, 11))) == 11
    with pytest.raises(InputError):
        stream_handle(True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_letterbox(gpu: Any, dtype: str) -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((37, 53), (64, 64), (1, 9), (300, 20))]
    out, where = cuda.letterbox_cuda([put(gpu, x) for x in images], (64, 96), dtype=dtype)
    got = out.to_host()
    assert got.shape == (4, 3, 64, 96)
    for image, chw, box in zip(images, got, where, strict=True):
        want, plan = letterbox(image, (64, 96), dtype=dtype)
        assert plan == box
        np.testing.assert_array_equal(chw, want)
    bgr, _ = cuda.letterbox_cuda([put(gpu, images[0][..., ::-1])], (64, 96), dtype=dtype, bgr=True)
    np.testing.assert_array_equal(bgr.to_host()[0], got[0])


def test_letterbox_nv12(gpu: Any) -> None:
    """Grey is grey, and the primaries come out within a rounding of BT.601."""
    cases = [
        ((126, 128, 128), (128, 128, 128)),
        ((81, 90, 240), (255, 0, 0)),
        ((145, 54, 34), (0, 255, 0)),
        ((41, 240, 110), (0, 0, 255)),
        ((235, 128, 128), (255, 255, 255)),
        ((16, 128, 128), (0, 0, 0)),
    ]
    for (y, u, v), rgb in cases:
        luma = put(gpu, np.full((8, 6), y, np.uint8))
        chroma = put(gpu, np.tile(np.array([u, v], np.uint8), (4, 3)))
        out, _ = cuda.letterbox_cuda([cuda.Nv12(luma, chroma)], (8, 6))
        assert np.abs(out.to_host()[0] * 255 - np.array(rgb)[:, None, None]).max() <= 2.01
    with pytest.raises(InputError, match="not NV12"):
        cuda.letterbox_cuda([cuda.Nv12(luma, put(gpu, np.zeros((3, 6), np.uint8)))], (8, 6))
    with pytest.raises(InputError, match="not an image"):
        cuda.letterbox_cuda([luma], (8, 6))
