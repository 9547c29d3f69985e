"""Engines of TensorRT and of TensorRT for RTX on a real GPU: zero copy, streams, graphs, threads, flat memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhead_trt.backends import get_backend
from dhead_trt.engine import Engine
from dhead_trt.errors import DheadError, InputError
from threads import in_threads

BATCH = 4


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small head's raw plan, dynamic batch; build() compares what it computes with ONNX Runtime."""
    found = get_backend(request.param).availability()
    if not (found.can_build and found.can_run):
        pytest.skip(f"NOT RUN, {request.param}: {found.reason}")
    import small_models as small
    from dhead_trt.build import build

    folder = tmp_path_factory.mktemp(request.param)
    return build(small.onnx_bytes("head"), request.param, output=folder / "e", batch=(1, 2, BATCH), form="raw").plan


def features(batch: int = 1, seed: int = 0) -> list[np.ndarray]:
    import small_models as small

    return small.features(batch, seed)


def same(a: Any, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, atol=2e-3, rtol=2e-3)


def test_against_the_head(plan: Path) -> None:
    import small_models as small

    x = features(2)
    with Engine(plan, output="raw") as engine:
        for name, value in small.torch_maps(small.head(), x).items():
            np.testing.assert_allclose(engine.infer(x)[name], value, atol=0.05, rtol=0.02)  # TF32 is allowed


def test_torch_in_place(plan: Path, torch: Any) -> None:
    with Engine(plan, output="raw") as engine:
        x = features(2)
        expected = engine.infer(x)
        tensors = [torch.from_numpy(a).cuda() for a in x]
        for name, array in engine.infer(tensors).items():
            same(torch.as_tensor(array, device="cuda").cpu().numpy(), expected[name])
            same(torch.from_dlpack(array).cpu().numpy(), expected[name])
        side = torch.cuda.Stream()
        out = {name: torch.empty(v.shape, device="cuda") for name, v in expected.items()}
        with torch.cuda.stream(side):
            late = [t * 1.0 for t in tensors]
            engine.infer(late, out=out, stream=side)
        side.synchronize()
        for name, tensor in out.items():
            same(tensor.cpu().numpy(), expected[name])
        with pytest.raises(InputError, match="wrong dtype"):
            engine.infer([t.half() for t in tensors])
        with pytest.raises(InputError, match="not C-contiguous"):
            engine.infer([t.transpose(2, 3) for t in tensors])


def test_detections_on_the_device(plan: Path, torch: Any) -> None:
    with Engine(plan) as engine:
        x = features(2)
        expected = engine.infer(x)
        found = engine.infer([torch.from_numpy(a).cuda() for a in x])
        for name in ("num_dets", "det_classes"):
            np.testing.assert_array_equal(torch.as_tensor(found[name], device="cuda").cpu().numpy(), expected[name])


def test_cupy_in_place(plan: Path) -> None:
    cupy = pytest.importorskip("cupy", reason="NOT RUN, no CuPy")
    with Engine(plan, output="raw") as engine:
        x = features(1)
        expected, stream = engine.infer(x), cupy.cuda.Stream(non_blocking=True)
        with stream:
            found = engine.infer([cupy.asarray(a) for a in x], stream=stream)
            for name, array in found.items():
                same(cupy.asnumpy(cupy.asarray(array)), expected[name])


def test_pycuda_in_place(plan: Path) -> None:
    pytest.importorskip("pycuda.autoprimaryctx", reason="NOT RUN, no PyCUDA")
    from pycuda import gpuarray

    with Engine(plan, output="raw") as engine:
        x = features(1)
        expected = engine.infer(x)
        for name, array in engine.infer([gpuarray.to_gpu(a) for a in x]).items():
            same(array.numpy(), expected[name])


def test_cuda_graphs(plan: Path, torch: Any) -> None:
    with Engine(plan, output="raw", cuda_graphs=True) as engine:
        tensors = [torch.from_numpy(a).cuda() for a in features(2)]
        out = engine.infer(tensors)
        for seed in range(6):
            fresh = features(2, seed)
            for tensor, array in zip(tensors, fresh, strict=True):
                tensor.copy_(torch.from_numpy(array))
            engine.infer(tensors, out=out)
            for name, value in engine.infer(fresh).items():
                same(out[name].numpy(), value)
        assert engine._runner.stats()["graph_launches"] > 0


def test_cuda_graphs_of_alternating_shapes(plan: Path) -> None:
    expected = {}
    with Engine(plan, output="raw") as engine:
        for batch in (1, 2, 3):
            expected[batch] = engine.infer(features(batch))
    for contexts in (1, 8):
        with Engine(plan, output="raw", cuda_graphs=True, max_contexts=contexts) as engine:
            for i in range(18):
                batch = i % 3 + 1
                for name, value in engine.infer(features(batch)).items():
                    same(value, expected[batch][name])


def test_default_stream(plan: Path, torch: Any) -> None:
    with Engine(plan, output="raw") as engine:
        x = features(2)
        expected = engine.infer(x)
        tensors = [torch.from_numpy(a).cuda() for a in x]
        for _ in range(5):
            late = [t * 1.0 for t in tensors]
            found = engine.infer(late, stream=torch.cuda.default_stream())
            for name, array in found.items():
                same(torch.as_tensor(array, device="cuda").cpu().numpy(), expected[name])
        with pytest.raises(InputError, match="detach"):
            engine.infer([t.clone().requires_grad_() for t in tensors])


def test_captured_by_torch(plan: Path, torch: Any) -> None:
    with Engine(plan, output="raw") as engine:
        tensors = [torch.from_numpy(a).cuda() for a in features(2)]
        expected = engine.infer(features(2))
        out = {name: torch.zeros(v.shape, device="cuda") for name, v in expected.items()}
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        engine.infer(tensors, out=out, stream=stream)
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            engine.infer(tensors, out=out, stream=stream)
        for tensor in out.values():
            tensor.zero_()
        graph.replay()
        torch.cuda.synchronize()
        for name, tensor in out.items():
            same(tensor.cpu().numpy(), expected[name])


def test_eight_threads(plan: Path) -> None:
    with Engine(plan, output="raw") as engine:
        expected = {batch: engine.infer(features(batch)) for batch in range(1, BATCH + 1)}

        def work(seed: int) -> None:
            for i in range(100):
                batch = (seed + i) % BATCH + 1
                for name, value in engine.infer(features(batch)).items():
                    same(value, expected[batch][name])

        assert in_threads(work, 8) == []


def test_ten_thousand_calls_keep_memory_flat(plan: Path, torch: Any) -> None:
    with Engine(plan, output="raw") as engine:
        tensors = [torch.from_numpy(a).cuda() for a in features(2)]
        for _ in range(100):
            engine.infer(tensors)
        before, _ = torch.cuda.mem_get_info()
        for _ in range(10_000):
            engine.infer(tensors)
        after, _ = torch.cuda.mem_get_info()
    assert before - after < 1 << 20


def test_bad_plans(plan: Path, tmp_path: Path) -> None:
    """Truncated and bit-flipped plans past the sidecar's check: TensorRT's own verdict, and no crash."""
    from dhead_trt.backends.trt_library import open_library

    module, library = open_library(rtx="rtx" in plan.parent.name)
    data = plan.read_bytes()
    for bad in (b"", data[:16], data[: len(data) // 2], data[:-1]):
        with pytest.raises(DheadError):
            module.Engine(library, bad)


def test_layer_times(plan: Path) -> None:
    with Engine(plan, output="raw") as engine:
        engine.infer(features(1))
        with engine.profile() as profile:
            engine.infer(features(1))
    assert profile.layers
    assert all(ms >= 0 for _, _, ms in profile.layers)
