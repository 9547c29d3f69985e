"""The torch heads: structure, initialisation, decode against the oracle, fusion, fp16."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cases import CASES, Case, assert_same_decode, cases
from dhead_trt import HeadSpec, InputError, reference
from dhead_trt.heads import (
    CoupledHead,
    DecodedHead,
    Head,
    RawModel,
    StableDecoupledHead,
    StablePyramidHead,
    WholeModel,
    YOLOv8DecoupledHead,
    create_yolov8_decoupled,
    fuse_conv_bn,
)
from dhead_trt.heads.decoded import decode_maps


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    with torch.no_grad():
        yield


def features(head: Head, size: int = 64, batch: int = 2) -> list[torch.Tensor]:
    shapes = head.spec.level_shapes((size, size + 32))
    return [torch.randn(batch, c, h, w) for c, (h, w) in zip(head.in_channels, shapes, strict=True)]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def trained_norms(module: nn.Module) -> nn.Module:
    """Gives every norm statistics and weights of its own, as training would, and switches to eval."""
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(m.running_mean, std=0.5)
            nn.init.uniform_(m.running_var, 0.3, 3.0)
            if m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, std=0.3)
    return module.eval()


HEADS = {
    "decoupled": lambda: YOLOv8DecoupledHead(5, (8, 16, 24)),
    "decoupled_pixel": lambda: YOLOv8DecoupledHead(5, (8, 16), (8, 16), 15, distance_unit="pixel"),
    "stable": lambda: StableDecoupledHead(32, 5, stride=16),
    "stable_gn": lambda: StableDecoupledHead(64, 5, 2, True, 0.3),
    "stable_pyramid": lambda: StablePyramidHead((32, 64), 3, (8, 32), use_gn=True),
    "coupled": lambda: CoupledHead(5, (8, 16, 24)),
    "coupled_dfl": lambda: CoupledHead(5, (8, 16, 24), bins=17),
}


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest) -> Head:
    made: Head = HEADS[request.param]()
    return trained_norms(made)  # type: ignore[return-value]


# -- what they are ----------------------------------------------------------------------------------------------------


def test_default_decoupled_head_is_the_reference() -> None:
    with torch.device("meta"):
        head = YOLOv8DecoupledHead()
    assert head.spec == HeadSpec(80, (8, 16, 32), 17)
    assert parameters(head) == 49_832_380
    branch = [type(m) for m in head.cls_convs[0]]
    assert branch == [nn.Conv2d, nn.BatchNorm2d, nn.SiLU] * 2
    assert branch == [type(m) for m in head.reg_convs[2]]
    first = head.cls_convs[2][0]
    assert (first.in_channels, first.out_channels, first.kernel_size, first.padding) == (1024, 1024, (3, 3), (1, 1))
    assert first.bias is not None
    assert [c.out_channels for c in head.reg_preds] == [68, 68, 68]
    assert [c.out_channels for c in head.cls_preds] == [80, 80, 80]
    assert head.project.shape == (17,)


def test_project_is_the_value_of_each_bin() -> None:
    head = YOLOv8DecoupledHead(2, (8,), (8,), 16)
    assert head.project.tolist() == list(range(17))
    assert "project" in head.state_dict()


@pytest.mark.parametrize(
    ("size", "channels"),
    [
        ("n", (256, 512, 512)),
        ("s", (256, 512, 512)),
        ("m", (384, 768, 768)),
        ("l", (512, 1024, 1024)),
        ("x", (512, 1024, 1024)),
    ],
)
def test_model_sizes(size: str, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        head = create_yolov8_decoupled(size, 7)
    assert head.in_channels == channels
    assert head.spec.num_classes == 7
    assert parameters(head) == sum(4 * (9 * c * c + 3 * c) + (c + 1) * (7 + 68) for c in channels)


def test_initialisation_of_the_decoupled_head() -> None:
    head = YOLOv8DecoupledHead(5, (64, 128), (8, 16))
    prior = -math.log(0.99 / 0.01)
    for m in head.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all()
            assert (m.bias == 0).all()
        if isinstance(m, nn.Conv2d):
            fan_out = m.out_channels * m.kernel_size[0] ** 2
            assert m.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)
            wanted = prior if any(m is c for c in head.cls_preds) else 0.0
            np.testing.assert_allclose(m.bias.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StableDecoupledHead(128, 40),
        lambda: StablePyramidHead((128, 256), 40, (8, 16)),
        lambda: CoupledHead(40, (128, 256), (8, 16)),
    ],
)
def test_initialisation_of_heads_with_objectness(make: Any) -> None:
    head = make()
    stds = {"cls_pred": 0.01, "obj_pred": 0.01, "reg_pred": 0.001}
    seen = 0
    for name, m in head.named_modules():
        kind = next((k for k in stds if k in name and isinstance(m, nn.Conv2d)), None)
        if kind:
            seen += 1
            assert m.weight.std().item() == pytest.approx(stds[kind], rel=0.25)
            np.testing.assert_allclose(m.bias.numpy(), -math.log(99) if kind == "cls_pred" else 0, rtol=1e-6)
    assert seen == 3 * head.spec.num_levels


def test_stable_head_structure() -> None:
    head = StableDecoupledHead()
    assert head.spec == HeadSpec(80, (8,), 1, objectness=True)
    block = [nn.Conv2d, nn.BatchNorm2d, nn.SiLU]
    assert [type(m) for m in head.cls_convs] == [*block, nn.Dropout2d, *block, nn.Dropout2d, *block]
    assert {m.p for m in head.modules() if isinstance(m, nn.Dropout2d)} == {0.1}
    grouped = StableDecoupledHead(64, 5, 2, use_gn=True)
    norms = [m for m in grouped.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 4
    assert {(m.num_groups, m.num_channels) for m in norms} == {(32, 64)}
    cls, reg, obj = head(torch.randn(2, 256, 3, 4))
    assert (cls.shape, reg.shape, obj.shape) == ((2, 80, 3, 4), (2, 4, 3, 4), (2, 1, 3, 4))


def test_objectness_and_box_share_the_regression_branch() -> None:
    head = trained_norms(StableDecoupledHead(32, 5))
    x = torch.randn(1, 32, 4, 4)
    before = head(x)
    nn.init.normal_(head.reg_convs[0].weight)
    cls, reg, obj = (not torch.equal(a, b) for a, b in zip(before, head(x), strict=True))
    assert (cls, reg, obj) == (False, True, True)


def test_coupled_head_shares_one_stem() -> None:
    head = trained_norms(CoupledHead(5, (8, 16), (8, 16)))
    x = features(head)
    before = head(x)
    nn.init.normal_(head.stems[0][0].weight)
    changed = [
        [not torch.equal(a, b) for a, b in zip(*kinds, strict=True)] for kinds in zip(before, head(x), strict=True)
    ]
    assert changed == [[True, False]] * 3
    assert parameters(head) < parameters(YOLOv8DecoupledHead(5, (8, 16), (8, 16), 0))


def test_raw_maps_follow_the_spec(head: Head) -> None:
    x = features(head)
    maps = head.raw(x)
    assert isinstance(head, RawModel)
    assert sorted(maps) == sorted(head.spec.input_names)
    shapes = head.spec.level_shapes((64, 96))
    for name, m in maps.items():
        assert m.shape == (2, head.spec.channels(name), *shapes[int(name[-1])])


def test_class_scores_start_at_the_prior() -> None:
    head = StableDecoupledHead(64, 10).eval()
    score = head.raw(torch.randn(1, 64, 16, 16))["cls_0"].sigmoid()
    assert score.mean().item() == pytest.approx(0.01, rel=0.1)


# -- decode -----------------------------------------------------------------------------------------------------------


def test_forward_returns_expected_distances() -> None:
    head = trained_norms(YOLOv8DecoupledHead(3, (8, 16), (8, 16)))
    x = features(head)
    cls, distances = head(x)
    maps = head.raw(x)
    for i in range(2):
        assert torch.equal(cls[i], maps[f"cls_{i}"])
        b, _, h, w = maps[f"box_{i}"].shape
        z = maps[f"box_{i}"].double().numpy().reshape(b, 4, 17, h, w)
        p = np.exp(z - z.max(2, keepdims=True))
        want = np.einsum("bkjhw,j->bkhw", p / p.sum(2, keepdims=True), np.arange(17.0))
        np.testing.assert_allclose(distances[i].numpy(), want, atol=2e-5)


@pytest.mark.parametrize("unit", [None, "stride", "pixel"])
def test_decode_outputs(unit: Any) -> None:
    head = trained_norms(YOLOv8DecoupledHead(3, (8, 16), (8, 16)))
    x = features(head)
    boxes, scores = head.decode_outputs(*head(x), distance_unit=unit)
    assert [b.shape for b in boxes] == [(2, 96, 4), (2, 24, 4)]
    maps = {n: m.numpy() for n, m in head.raw(x).items()}
    want = reference.decode(maps, head.spec.replace(distance_unit=unit or "stride"))
    assert_same_decode((torch.cat(boxes, 1).numpy(), torch.cat(scores, 1).numpy()), want)
    with pytest.raises(InputError, match="distance_unit"):
        head.decode_outputs(*head(x), distance_unit="cells")  # type: ignore[arg-type]


def test_decoded_head_agrees_with_the_oracle(head: Head) -> None:
    for size in (64, 96):
        x = features(head, size, batch=3)
        boxes, scores = DecodedHead(head)(x)
        maps = {n: m.numpy() for n, m in head.raw(x).items()}
        assert_same_decode((boxes.numpy(), scores.numpy()), reference.decode(maps, head.spec))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_torch_decode_on_the_table(case: Case) -> None:
    maps = case.maps()
    boxes, scores = decode_maps({n: torch.from_numpy(m) for n, m in maps.items()}, case.spec)
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)
    assert_same_decode((boxes.numpy(), scores.numpy()), reference.decode(maps, case.spec))


@given(case=cases(max_classes=20, max_levels=3), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_torch_decode_on_any_case(case: Case, seed: int) -> None:
    maps = case.maps(seed)
    boxes, scores = decode_maps({n: torch.from_numpy(m) for n, m in maps.items()}, case.spec)
    assert_same_decode((boxes.numpy(), scores.numpy()), reference.decode(maps, case.spec))


def test_gradients_flow_through_the_decode() -> None:
    head = YOLOv8DecoupledHead(3, (8,), (8,))
    with torch.enable_grad():
        boxes, scores = DecodedHead(head)([torch.randn(2, 8, 4, 4)])
        (boxes.sum() + scores.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 16, 2, 2)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        p3 = self.down[0](x)
        return [p3, self.down[1](p3)]


def test_whole_model() -> None:
    model = trained_norms(WholeModel(Backbone(), YOLOv8DecoupledHead(3, (8, 16), (8, 16))))
    images = torch.rand(2, 3, 64, 32)
    assert isinstance(model, RawModel)
    assert list(model(images)) == list(model.spec.input_names)
    boxes, _ = DecodedHead(model)(images)
    assert boxes.shape == (2, 8 * 4 + 4 * 2, 4)


# -- fp16 -------------------------------------------------------------------------------------------------------------


def test_half_precision(head: Head) -> None:
    x = features(head)
    want_boxes, want_scores = DecodedHead(head)(x)
    half = copy.deepcopy(head).half()
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    maps = half.raw([f.half() for f in x])
    assert {m.dtype for m in maps.values()} == {torch.float16}
    boxes, scores = DecodedHead(half)([f.half() for f in x])
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)  # the decode stays in float32
    assert (scores - want_scores).abs().max() < 0.01
    assert (boxes - want_boxes).abs().max() < 0.5


def test_half_forward_keeps_distances_in_float32() -> None:
    head = trained_norms(YOLOv8DecoupledHead(3, (8,), (8,))).half()
    _, distances = head([torch.randn(1, 8, 4, 4).half()])
    assert distances[0].dtype == torch.float32
    assert head.project.dtype == torch.float16
    assert head.project.tolist() == list(range(17))


# -- fusion -----------------------------------------------------------------------------------------------------------


def norms_in(module: nn.Module) -> int:
    return sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) for m in module.modules())


def test_fusion_of_every_head(head: Head) -> None:
    x = features(head)
    state = {k: v.clone() for k, v in head.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = fuse_conv_bn(head)
    assert norms_in(fused) == 0
    removed = sum(2 * m.num_features for m in head.modules() if isinstance(m, nn.BatchNorm2d))
    assert parameters(fused) == parameters(head) - removed
    for name, want in head.raw(x).items():
        scale = max(1.0, want.abs().max().item())
        assert (fused.raw(x)[name] - want).abs().max() <= 1e-5 * scale, name
    assert head.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in head.state_dict().items())
    again = fuse_conv_bn(fused)
    assert parameters(again) == parameters(fused)


class Residual(nn.Module):
    """Conv–norm pairs in the order of use, not of definition, and one whose convolution is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_b, self.norm_a, self.norm_c, self.norm_d = (nn.BatchNorm2d(4) for _ in range(4))
        self.conv_d, self.conv_c, self.conv_a, self.conv_b = (
            nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(4)
        )
        self.inner = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.BatchNorm2d(8, affine=False), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm_a(self.conv_a(x)).relu()
        y = self.norm_b(self.conv_b(y)) + x
        c = self.conv_c(y)
        y = self.norm_c(c) + c  # the convolution's own output is used too: must not be folded
        y = self.conv_d(self.norm_d(y))  # norm first: nothing to fold
        return self.inner(y)


def test_fusion_follows_the_data_not_the_order() -> None:
    block = trained_norms(nn.Sequential(nn.Conv2d(3, 4, 3), Residual(), nn.ModuleDict({"n": nn.Identity()})["n"]))
    x = torch.randn(2, 3, 9, 9)
    fused = fuse_conv_bn(block)
    assert (fused(x) - block(x)).abs().max() < 1e-5
    names = [n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert names == ["1.norm_c", "1.norm_d"]


def test_fusion_leaves_what_it_must() -> None:
    shared = nn.Conv2d(4, 4, 1)
    keep = nn.Sequential(
        nn.Sequential(shared, nn.BatchNorm2d(4)),
        nn.Sequential(shared, nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 32, 1), nn.GroupNorm(32, 32)),
        nn.Sequential(nn.ConvTranspose2d(32, 4, 2), nn.BatchNorm2d(4)),
    )
    for m in keep.modules():
        if isinstance(m, nn.BatchNorm2d) and m.track_running_stats:
            nn.init.uniform_(m.running_var, 0.5, 2)
    keep.eval()
    fused = fuse_conv_bn(keep)
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(fused(x), keep(x))
    assert norms_in(fused) == norms_in(keep) == 5


def test_fusion_of_other_dimensions_and_bias_free_convolutions() -> None:
    for conv, norm, shape in ((nn.Conv1d, nn.BatchNorm1d, (2, 3, 8)), (nn.Conv3d, nn.BatchNorm3d, (2, 3, 5, 5, 5))):
        net = trained_norms(nn.Sequential(conv(3, 6, 3, bias=False), norm(6))).double()
        fused = fuse_conv_bn(net)
        x = torch.randn(*shape, dtype=torch.float64)
        assert (fused(x) - net(x)).abs().max() < 1e-12
        assert fused[0].bias is not None
        assert isinstance(fused[1], nn.Identity)


def test_fusion_names_what_it_cannot_trace() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    net = nn.Sequential(Branching(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    with pytest.warns(UserWarning, match=r"norms of 0 \(Branching\) are left in place"):
        fused = fuse_conv_bn(net)
    assert norms_in(fused) == 1


def test_fusion_refuses_training_mode() -> None:
    with pytest.raises(InputError, match="eval mode"):
        fuse_conv_bn(CoupledHead(2, (8,), (8,)))
    partly = CoupledHead(2, (8,), (8,)).eval()
    partly.stems[0][1].train()
    with pytest.raises(InputError, match=r"stems\.0\.1 in training mode"):
        fuse_conv_bn(partly)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: YOLOv8DecoupledHead(0), "num_classes"),
        (lambda: YOLOv8DecoupledHead(3, (8, 16), (8,)), "in_channels does not fit"),
        (lambda: YOLOv8DecoupledHead(3, (8, 0), (8, 16)), "in_channels does not fit"),
        (lambda: YOLOv8DecoupledHead(3, (8,), (8,), -1), "bins"),
        (lambda: YOLOv8DecoupledHead(3, (8,), (8,), 64), "bins"),
        (lambda: YOLOv8DecoupledHead(3, (8,), (8,), names=("a",)), "names"),
        (lambda: create_yolov8_decoupled("q"), "model size"),
        (lambda: StableDecoupledHead(100, use_gn=True), "multiple of 32"),
        (lambda: StableDecoupledHead(32, num_layers=0), "num_layers"),
        (lambda: StableDecoupledHead(32, dropout_rate=1.0), "dropout_rate"),
        (lambda: StablePyramidHead((32,), 3, (8, 16)), "in_channels does not fit"),
        (lambda: CoupledHead(3, (8,), (8,), num_layers=0), "num_layers"),
        (lambda: DecodedHead(nn.Conv2d(3, 3, 1)), "no detection head"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_bad_features(head: Head) -> None:
    x = features(head)
    for wrong in (x[:-1], [*x, x[0]], [x[0][:, 1:], *x[1:]], [x[0][0], *x[1:]]):
        with pytest.raises(InputError, match="features do not fit"):
            head.raw(wrong)


def test_missing_torch_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from dhead_trt import BackendUnavailable\n"
        "try: import dhead_trt.heads\n"
        "except BackendUnavailable as e: assert 'dhead-trt[export]' in str(e); print('named')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "named\n", run.stderr
