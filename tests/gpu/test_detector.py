"""Detector with images on a real GPU: torch tensors of either layout, NV12, lists, other streams, threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhead_trt.backends import get_backend
from dhead_trt.cuda import Nv12
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.errors import InputError

SIZE = (256, 320)
SHAPES = [(200, 333), (64, 96), (480, 270), (256, 320)]


@pytest.fixture(scope="module", params=[("tensorrt", "raw"), ("tensorrt", "detections"), ("tensorrt_rtx", "raw")])
def plan(request: pytest.FixtureRequest, torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend, form = request.param
    found = get_backend(backend).availability()
    if not (found.can_build and found.can_run):
        pytest.skip(f"NOT RUN, {backend}: {found.reason}")
    import small_models
    from dhead_trt.build import build

    model = small_models.onnx_bytes("detector", "raw", True, True)
    output = tmp_path_factory.mktemp(backend) / "e"
    return build(model, backend, output=output, image_size=SIZE, batch=(1, 2, 3), form=form, verify=False).plan


@pytest.fixture
def detector(plan: Path) -> Iterator[Detector]:
    with Detector(plan) as d:
        yield d


def pictures() -> list[np.ndarray]:
    found = []
    for seed, (h, w) in enumerate(SHAPES):
        blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        found.append(np.ascontiguousarray(blocks[np.arange(h) * 5 // h][:, np.arange(w) * 6 // w]))
    return found


def assert_same(found: Detections, want: Detections) -> None:
    """The letterbox and the NMS have the same bits; the engine may choose another kernel for another batch."""
    clear = want.confidence > 0.3
    assert found.image_size == want.image_size
    assert found.class_id[: clear.sum()].tolist() == want.class_id[clear].tolist()
    np.testing.assert_allclose(found.xyxy[: clear.sum()], want.xyxy[clear], atol=0.05)
    np.testing.assert_allclose(found.confidence[: clear.sum()], want.confidence[clear], atol=1e-3)


def test_torch_layouts(detector: Detector, torch: Any) -> None:
    for image in pictures():
        want = detector(image)
        assert len(want) > 0
        there = torch.from_numpy(image).cuda()
        for source in (
            there,
            there.permute(2, 0, 1),
            there.permute(2, 0, 1).contiguous(),
            torch.cat([there, there[:, :, :1]], dim=2),
            there.float() / 255,
        ):
            assert_same(detector(source), want)
        assert_same(detector(there.flip(2), bgr=True), want)
        assert_same(detector.submit(there).result(60), want)
    many = [torch.from_numpy(i).cuda() for i in pictures()]
    for found, image in zip(detector([many[0], pictures()[1], *many[2:]]), pictures(), strict=True):
        assert_same(found, detector(image))


def test_the_current_stream_orders_the_work(detector: Detector, torch: Any) -> None:
    image = torch.from_numpy(pictures()[0]).cuda()
    want = detector(image)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late = image.clone()  # written long after this line has run on the host
        future = detector.submit(late)
        assert_same(detector(late), want)
    assert_same(future.result(60), want)


def test_nv12(detector: Detector, torch: Any) -> None:
    luma = torch.full((120, 160), 120, dtype=torch.uint8, device="cuda")
    luma[30:90, 40:120] = 200
    chroma = torch.full((60, 160), 128, dtype=torch.uint8, device="cuda")
    found = detector(Nv12(luma, chroma))
    assert found.image_size == (120, 160)
    grey = ((luma.float() - 16) * 1.164).clamp(0, 255).round().to(torch.uint8)
    want = detector(grey)
    assert abs(len(found) - len(want)) <= 1
    with pytest.raises(InputError, match="not NV12"):
        detector(Nv12(luma[None], chroma))


def test_cupy(detector: Detector, torch: Any) -> None:
    cupy = pytest.importorskip("cupy", reason="NOT RUN, no CuPy")
    for image in pictures():
        assert_same(detector(cupy.asarray(image)), detector(image))


def test_threads_and_flat_memory(detector: Detector, torch: Any) -> None:
    images = [torch.from_numpy(i).cuda() for i in pictures()]
    want = [detector(i) for i in images]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: detector(images[k % 4]), range(64)))
        torch.cuda.synchronize()
        free = torch.cuda.mem_get_info()[0]
        for found, k in zip(pool.map(lambda k: detector(images[k % 4]), range(400)), range(400), strict=True):
            assert_same(found, want[k % 4])
        torch.cuda.synchronize()
        assert free - torch.cuda.mem_get_info()[0] < 4 << 20
