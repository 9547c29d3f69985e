"""The trainable detectors: every head with our backbone exports, builds and matches; what the new heads are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dhead_trt import reference
from dhead_trt.build import build
from dhead_trt.cli import main
from dhead_trt.engine import Engine
from dhead_trt.errors import InputError
from dhead_trt.export import export_onnx
from dhead_trt.heads import (
    Backbone,
    BackboneSize,
    DynamicDecoupledHead,
    Head,
    LightDecoupledHead,
    YOLOv8DecoupledHead,
    fuse_conv_bn,
)
from dhead_trt.training import build_detector, save_weights
from dhead_trt.training.model import HEAD_KINDS

TINY = BackboneSize((4, 8, 8, 8, 8), (8, 8, 8), (1, 1, 1, 1))
WIDTHS = (16, 24, 32)


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With norms that are no identity."""
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            m.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return model.eval()


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("finest", [4, 8])
def test_detector_exports_with_its_spec(kind: str, finest: int, tmp_path: Path) -> None:
    size = BackboneSize(TINY.channels, TINY.neck, TINY.depth, finest=finest)
    model = randomized(build_detector(size, kind, 3, names=("a", "b", "c"), image_size=(64, 96)))
    result = export_onnx(model, tmp_path / "m.onnx")  # compares with ONNX Runtime
    assert result.spec.strides == (finest, 2 * finest, 4 * finest)
    assert result.spec.image_size == (64, 96)
    assert result.spec.names == ("a", "b", "c")
    assert result.spec.objectness == (kind in ("coupled", "stable"))
    assert result.spec.bins == (1 if kind in ("coupled", "stable") else 17)


def test_engine_from_a_file_of_weights_detects_what_torch_detects(tmp_path: Path) -> None:
    model: Any = randomized(build_detector(TINY, "decoupled", 3, image_size=(64, 64)))
    path = save_weights(model, tmp_path / "w.safetensors", half=False)
    assert main(["build", str(path), "--backend", "openvino", "-o", str(tmp_path / "w.xml"), "-q"]) == 0
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = {name: value.numpy() for name, value in model.raw(images).items()}
    wanted = reference.detect(maps, model.spec, conf=0.001)
    with Engine(tmp_path / "w.xml") as engine:
        found = engine.infer({"images": images.numpy()}, conf=0.001)
    count = int(wanted.num_dets[0, 0])
    assert count > 0
    assert int(found["num_dets"][0, 0]) == count
    np.testing.assert_allclose(found["det_boxes"][0, :count], wanted.boxes[0, :count], atol=0.05)


@pytest.mark.parametrize("head", [LightDecoupledHead, DynamicDecoupledHead])
@pytest.mark.parametrize("unit", ["stride", "pixel"])
def test_new_heads_as_heads(head: Any, unit: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made: Head = randomized(head(5, WIDTHS, reg_max=15, distance_unit=unit, names=tuple("abcde")))  # type: ignore[assignment]
    assert made.spec.bins == 16
    assert made.spec.distance_unit == unit
    features = [torch.randn(2, c, 32 // s, 48 // s) for c, s in zip(WIDTHS, (2, 4, 8), strict=True)]
    maps = made.raw(features)
    assert tuple(maps) == made.spec.input_names
    assert [tuple(maps[f"box_{i}"].shape) for i in range(3)] == [(2, 64, 16, 24), (2, 64, 8, 12), (2, 64, 4, 6)]
    assert [tuple(maps[f"cls_{i}"].shape)[1] for i in range(3)] == [5, 5, 5]
    assert all(torch.equal(made(features)[name], value) for name, value in maps.items())
    with torch.no_grad():
        for name, value in fuse_conv_bn(made).raw(features).items():  # type: ignore[operator] # a head's copy
            torch.testing.assert_close(value, maps[name], atol=1e-4, rtol=1e-4)
    prior = made.spec
    for i in range(prior.num_levels):
        bias = made.cls_preds[i].bias  # type: ignore[index,union-attr]
        torch.testing.assert_close(bias.sigmoid(), torch.full((5,), 0.01))  # type: ignore[union-attr,operator]
    export_onnx(made, tmp_path / "head.onnx", image_size=(128, 128))
    with pytest.raises(InputError, match="do not fit"):
        made.raw(features[:2])


def test_light_head_is_light_and_builds_in_int8_form(tmp_path: Path) -> None:
    light, full = LightDecoupledHead(8, (64, 64, 64)), YOLOv8DecoupledHead(8, (64, 64, 64))

    def branches(head: torch.nn.Module) -> int:
        return sum(p.numel() for n, p in head.named_parameters() if "_convs" in n and p.dim() == 4)

    assert branches(full) == 3 * 2 * 2 * 9 * 64 * 64
    assert branches(light) == 3 * 2 * 2 * (9 * 64 + 64 * 64)
    artifact = build(light.eval(), "openvino", output=tmp_path / "light.xml", image_size=64, precision="fp16")
    assert artifact.precision == "fp16"


def test_dynamic_head_weighs_by_the_image() -> None:
    torch.manual_seed(0)
    head = randomized(DynamicDecoupledHead(2, (8,), (8,)))
    a, b = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)
    weights = [head.cls_mix[0].attention(torch.cat((x, x), 1)).sigmoid() for x in (a, b)]  # type: ignore[index,union-attr,operator]
    assert not torch.allclose(weights[0], weights[1])
    both = head.raw([torch.cat((a, b))])  # type: ignore[operator]
    torch.testing.assert_close(both["cls_0"][1:], head.raw([b])["cls_0"])  # type: ignore[operator] # each image by itself


def test_backbone_refuses_what_it_cannot_take() -> None:
    with pytest.raises(InputError, match="finest"):
        Backbone(BackboneSize(TINY.channels, TINY.neck, finest=2))
    for shape in ((1, 3, 64, 100), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(InputError, match="do not fit the backbone"):
            Backbone(TINY)(torch.zeros(shape))
