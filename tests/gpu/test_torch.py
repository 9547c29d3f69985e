"""Torch tensors in place, streams, CUDA graphs, determinism, threads, memory: what only a GPU can show."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dhead_trt
from cases import BY_NAME, CASES, Case
from dhead_trt import InputError, cuda
from threads import in_threads

CASE = BY_NAME["size_640"]


def put(torch: Any, maps: dict[str, np.ndarray]) -> dict[str, Any]:
    return {n: torch.from_numpy(x).cuda() for n, x in maps.items()}


def assert_same(torch: Any, got: Any, want: Any) -> None:
    torch.cuda.synchronize()
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g.cpu().numpy(), w)


def outputs(torch: Any, batch: int, k: int) -> cuda.DeviceDetections:
    """Poisoned."""
    shapes = {"num_dets": (batch, 1), "det_boxes": (batch, k, 4), "det_scores": (batch, k), "det_classes": (batch, k)}
    made = {
        n: torch.full(s, -7, dtype=torch.float32 if n in ("det_boxes", "det_scores") else torch.int32, device="cuda")
        for n, s in shapes.items()
    }
    return cuda.DeviceDetections(**made, dropped=torch.full((batch,), -7, dtype=torch.int32, device="cuda"))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_torch_tensors_in_place(torch: Any, case: Case) -> None:
    maps = case.maps()
    device = put(torch, maps)
    decoded = cuda.decode_cuda(device, case.spec)
    assert all(isinstance(x, torch.Tensor) and x.is_cuda for x in decoded)
    assert_same(torch, decoded, dhead_trt.decode(maps, case.spec))
    result = cuda.detect_cuda(device, case.spec, **case.options)
    assert_same(torch, result, dhead_trt.detect(maps, case.spec, **case.options))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_maps_that_are_not_aligned_to_packs(torch: Any, dtype: str) -> None:
    maps = {n: x.astype(dtype) for n, x in CASE.maps().items()}
    device = {}
    for name, x in maps.items():
        room = torch.empty(x.size + 1, dtype=getattr(torch, dtype), device="cuda")
        device[name] = room[1:].view(x.shape)
        device[name].copy_(torch.from_numpy(x))
    assert_same(torch, cuda.decode_cuda(device, CASE.spec), dhead_trt.decode(maps, CASE.spec))
    assert_same(torch, cuda.detect_cuda(device, CASE.spec), dhead_trt.detect(maps, CASE.spec))


def test_on_the_callers_stream(torch: Any) -> None:
    """The kernels wait for what is before them on the stream, and for nothing else."""
    maps = CASE.maps()
    want = dhead_trt.detect(maps, CASE.spec)
    stream = torch.cuda.Stream()
    device = {n: torch.zeros_like(x) for n, x in put(torch, maps).items()}
    host = {n: torch.from_numpy(x).pin_memory() for n, x in maps.items()}
    with torch.cuda.stream(stream):
        held = [cuda.detect_cuda(device, CASE.spec) for _ in range(3)]  # the allocators have what they will need
    torch.cuda.synchronize()
    del held
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, x in host.items():
            device[name].copy_(x, non_blocking=True)
        inside = cuda.detect_cuda(device, CASE.spec)  # torch's current stream
        given = cuda.detect_cuda(device, CASE.spec, stream=stream)
        assert not stream.query(), "the call waited for the GPU"
    assert_same(torch, inside, want)
    assert_same(torch, given, want)


def test_graph_capture(torch: Any) -> None:
    """Captured once; new maps and thresholds are read at each replay; two launches and no others."""
    maps, spec = CASE.maps(), CASE.spec
    device = put(torch, maps)
    thresholds = torch.tensor([0.25, 0.75], device="cuda")
    size = cuda.workspace_bytes(spec, CASE.shapes, CASE.batch)
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
    out = outputs(torch, CASE.batch, 300)
    boxes = torch.empty(CASE.batch, CASE.num_anchors, 4, device="cuda")
    scores = torch.empty(CASE.batch, CASE.num_anchors, spec.num_classes, device="cuda")

    def run() -> None:
        cuda.detect_cuda(device, spec, thresholds=thresholds, out=out, workspace=workspace)
        cuda.decode_cuda(device, spec, out=(boxes, scores))

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for seed, conf, iou in ((0, 0.25, 0.75), (1, 0.5, 0.5), (2, 0.125, 0.25)):
        maps = CASE.maps(seed)
        for name, x in maps.items():
            device[name].copy_(torch.from_numpy(x))
        thresholds.copy_(torch.tensor([conf, iou]))
        for x in (*out, boxes, scores, workspace):
            x.fill_(101)
        graph.replay()
        assert_same(torch, out, dhead_trt.detect(maps, spec, conf=conf, iou=iou))
        assert_same(torch, (boxes, scores), dhead_trt.decode(maps, spec))


def test_the_same_every_time(torch: Any) -> None:
    case = BY_NAME["crowd_candidates"]
    device = put(torch, case.maps())
    first = cuda.detect_cuda(device, case.spec, **case.options)
    for _ in range(300):
        again = cuda.detect_cuda(device, case.spec, **case.options)
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)


def test_threads(torch: Any) -> None:
    maps = [CASE.maps(seed) for seed in range(4)]
    want = [dhead_trt.detect(m, CASE.spec) for m in maps]

    def work(i: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            device = put(torch, maps[i])
            for _ in range(50):
                result = cuda.detect_cuda(device, CASE.spec)
            stream.synchronize()
            for g, w in zip(result, want[i], strict=True):
                np.testing.assert_array_equal(g.cpu().numpy(), w)

    assert in_threads(work, 4) == []


def test_ten_thousand_calls_leak_nothing(torch: Any) -> None:
    case = BY_NAME["clustered"]
    device = put(torch, case.maps())
    image = torch.zeros(120, 160, 3, dtype=torch.uint8, device="cuda")

    def calls(n: int) -> int:
        for _ in range(n):
            cuda.detect_cuda(device, case.spec)
            cuda.decode_cuda(device, case.spec)
            cuda.letterbox_cuda([image], (160, 160))
        torch.cuda.synchronize()
        return int(torch.cuda.mem_get_info()[0])

    calls(200)
    free = calls(200)
    assert calls(10_000) >= free - (2 << 20)


def test_other_libraries(torch: Any) -> None:
    maps = CASE.maps()
    want = dhead_trt.detect(maps, CASE.spec)
    ran = []
    try:
        import cupy
    except ImportError:
        pass
    else:
        result = cuda.detect_cuda(
            {n: cupy.asarray(x) for n, x in maps.items()}, CASE.spec, stream=cupy.cuda.Stream.null
        )
        for g, w in zip(result, want, strict=True):
            np.testing.assert_array_equal(cupy.asnumpy(g), w)
        ran.append("cupy")
    try:
        import pycuda.autoprimaryctx
        import pycuda.gpuarray
    except ImportError:
        pass
    else:
        device = {n: pycuda.gpuarray.to_gpu(x) for n, x in maps.items()}
        for g, w in zip(cuda.detect_cuda(device, CASE.spec), want, strict=True):
            np.testing.assert_array_equal(g.to_host(), w)
        ran.append("pycuda")

    class Dlpack:  # torch, through DLPack alone
        def __init__(self, x: Any) -> None:
            self.x = x

        def __dlpack__(self, **options: Any) -> Any:
            return self.x.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.x.__dlpack_device__()

    result = cuda.detect_cuda({n: Dlpack(x) for n, x in put(torch, maps).items()}, CASE.spec)
    for g, w in zip(result, want, strict=True):
        np.testing.assert_array_equal(g.to_host(), w)
    print("ran with", ran)


def test_refusals(torch: Any) -> None:
    maps = put(torch, CASE.maps())
    with pytest.raises(InputError, match="C-contiguous"):
        cuda.detect_cuda({**maps, "box_0": maps["box_0"].transpose(2, 3)}, CASE.spec)
    with pytest.raises(InputError, match=r"cannot be read|device"):
        cuda.detect_cuda({**maps, "box_0": maps["box_0"].cpu()}, CASE.spec)
    with pytest.raises(InputError, match=r"cannot be read"):
        cuda.detect_cuda({**maps, "box_0": maps["box_0"].requires_grad_()}, CASE.spec)


def test_letterbox_of_a_mixed_batch(torch: Any) -> None:
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((1080, 1920), (480, 640), (31, 7)) * 15]
    out, _ = cuda.letterbox_cuda([torch.from_numpy(x).cuda() for x in images], (640, 640), dtype="float16")
    from dhead_trt.letterbox import letterbox

    for got, image in zip(out.cpu().numpy(), images, strict=True):
        np.testing.assert_array_equal(got, letterbox(image, (640, 640), dtype="float16")[0])


def test_plugins_on_the_gpu(torch: Any, tmp_path: Path) -> None:
    """enqueue of both plugins over the case table (a C++ program against TensorRT's headers)."""
    program, library = os.environ.get("DHEAD_PLUGIN_CONTRACT"), os.environ.get("DHEAD_PLUGIN_LIBRARY")
    if not program or not library:
        pytest.skip("NOT RUN: DHEAD_PLUGIN_CONTRACT and DHEAD_PLUGIN_LIBRARY are set by scripts/gpu_check.sh")
    from cases import dump

    dump(tmp_path)
    run = subprocess.run([program, library, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "enqueue:" in run.stdout
