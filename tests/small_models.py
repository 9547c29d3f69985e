"""Small heads and detectors that engine tests build: random, seeded, with detections on random input."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from dhead_trt.build import build
from dhead_trt.export import export_onnx
from dhead_trt.heads import StablePyramidHead, WholeModel, YOLOv8DecoupledHead

torch.set_num_threads(2)
CHANNELS = (16, 24, 32)
SIZE = (64, 96)
CLASSES = 5


def head() -> YOLOv8DecoupledHead:
    """A decoupled head of 17 bins whose scores are spread over 0 to 1."""
    with seeded(0):
        h = YOLOv8DecoupledHead(num_classes=CLASSES, in_channels=CHANNELS).eval()
        _liven(h)
    return h


def stable_head() -> StablePyramidHead:
    """A head with objectness and without DFL."""
    with seeded(1):
        h = StablePyramidHead(in_channels=CHANNELS, num_classes=CLASSES, num_layers=1).eval()
        _liven(h)
    return h


class Backbone(nn.Module):
    """Images → three feature maps, as plainly as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.SiLU())
        widths = (12, *CHANNELS)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, CHANNELS, strict=False))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x).tanh() * 2
            features.append(x)
        return features


def detector() -> WholeModel:
    """Images in."""
    with seeded(2):
        return WholeModel(Backbone(), head()).eval()


@functools.cache
def onnx_bytes(kind: str, form: str = "raw", dynamic_batch: bool = True, dynamic_size: bool = False) -> bytes:
    """An exported model: kind "head", "stable" or "detector"."""
    import tempfile

    model = {"head": head, "stable": stable_head, "detector": detector}[kind]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        export_onnx(
            model,
            path,
            form=form,
            image_size=SIZE,
            dynamic_batch=dynamic_batch,
            dynamic_size=dynamic_size,
            verify=False,
        )
        return path.read_bytes()


def features(batch: int = 1, seed: int = 0, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Inputs of the heads."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((batch, c, -(-size[0] // s), -(-size[1] // s))).astype(np.float32)
        for c, s in zip(CHANNELS, (8, 16, 32), strict=True)
    ]


def images(batch: int = 1, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Input of the detector: every image differs from the others."""
    return np.random.default_rng(seed).random((batch, 3, *size)).astype(np.float32)


def picture(size: tuple[int, int], seed: int = 0, blocks: tuple[int, int] = (5, 6)) -> Image.Image:
    """Blotches of colour, (height, width): neighbouring pixels are alike as in photographs."""
    small = np.random.default_rng(seed).integers(0, 256, (*blocks, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def openvino_plan(output: Path | str, **options: Any) -> Path:
    """The detector built for OpenVINO, raw maps out, of any batch and size that the options allow."""
    model = onnx_bytes("detector", "raw", True, True)
    return build(model, "openvino", output=output, verify=False, **options).plan


def torch_maps(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    """The raw maps that PyTorch computes."""
    with torch.no_grad():
        x = torch.from_numpy(inputs) if isinstance(inputs, np.ndarray) else [torch.from_numpy(a) for a in inputs]
        return {name: value.numpy() for name, value in model.raw(x).items()}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _liven(module: nn.Module) -> None:
    """Class logits around -2 ± 2 instead of all at the prior, boxes of many sizes."""
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1):
                m.weight.normal_(0, 4 / m.in_channels**0.5)
                if m.bias is not None:
                    m.bias.normal_(0, 0.5)
                    if m.out_channels in (1, CLASSES):
                        m.bias.sub_(1.0)
