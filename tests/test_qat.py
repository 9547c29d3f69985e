"""Quantization-aware fine-tuning: what is trained is what is exported, and what engines get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import small_models
import torch_fixtures
from dhead_trt.backends import BuildRequest, get_backend
from dhead_trt.errors import GraphError, InputError
from dhead_trt.export import export_onnx
from dhead_trt.precision.qat import FakeQuant, QatConv2d, export_qat, is_fake_quantized, plain_copy, prepare_qat
from dhead_trt.precision.raw_run import MapRunner
from dhead_trt.shapes import set_shapes
from dhead_trt.surgery import convert
from onnx_tools import run

SIZE = small_models.SIZE

one_thread = torch_fixtures.one_thread


def batches(count: int = 3, seed: int = 0) -> list[list[torch.Tensor]]:
    return [[torch.from_numpy(f) for f in small_models.features(2, seed + i)] for i in range(count)]


def feeds(inputs: list[torch.Tensor]) -> dict[str, np.ndarray]:
    return {f"p{3 + i}": t.numpy() for i, t in enumerate(inputs)}


def fine_tuned(steps: int = 4) -> tuple[Any, nn.Module]:
    """A head, and its fake-quantized copy after a few steps towards maps that are a little smaller."""
    head = small_models.head()
    qat: Any = prepare_qat(head, batches())
    qat.train()
    optimizer = torch.optim.SGD(qat.parameters(), lr=1e-3)
    losses = []
    inputs = batches(1, 10)[0]
    with torch.no_grad():
        want = {name: 0.8 * value for name, value in head.raw(inputs).items()}
    for _ in range(steps):
        loss = sum((qat.raw(inputs)[n] - want[n]).square().mean() for n in want)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return head, qat.eval()


def scales_in(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weight initializer's own name → (scale of the input, scales of the weights) of every int8 convolution."""
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {o: n for n in model.graph.node for o in n.output}
    found = {}
    for node in model.graph.node:
        pairs = [made.get(i) for i in node.input[:2]]
        if node.op_type == "Conv" and all(p is not None and p.op_type == "DequantizeLinear" for p in pairs):
            grid = constants[pairs[1].input[0]]
            assert grid.dtype == np.int8
            assert np.abs(grid.astype(int)).max() <= 127
            assert all((constants[p.input[2]] == 0).all() and constants[p.input[2]].dtype == np.int8 for p in pairs)
            assert made[pairs[0].input[0]].op_type == "QuantizeLinear"
            assert len(node.input) < 3 or node.input[2] in constants  # the bias is no DQ
            name = pairs[1].input[0].removesuffix("_int8")
            found[name] = constants[pairs[0].input[1]], constants[pairs[1].input[1]]
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path, Any]:
    head, qat = fine_tuned()
    path = tmp_path_factory.mktemp("qat") / "head.onnx"
    return head, qat, path, export_qat(qat, path, image_size=SIZE)


def test_trained_scales_are_exported_bit_for_bit(trained: tuple[Any, Any, Path, Any]) -> None:
    head, qat, path, exported = trained
    first: Any = prepare_qat(head, batches())
    found = scales_in(onnx.load(str(path)))
    convs = {n: m for n, m in qat.named_modules() if isinstance(m, QatConv2d)}
    assert len(convs) == len(found) == 12  # two of every branch of three levels; the six last ones are left alone
    for name, conv in convs.items():
        one, many = found[f"model.{name}.weight"]
        assert one.tobytes() == conv.input_quant.scale.detach().numpy().tobytes()
        assert many.tobytes() == conv.weight_quant.scale.detach().numpy().tobytes()
        assert exported.input_scales[name] == float(one.ravel()[0])
        before = first.get_submodule(name)
        assert not torch.equal(before.input_quant.scale, conv.input_quant.scale)  # they were trained
        assert not torch.equal(before.weight_quant.scale, conv.weight_quant.scale)
    assert 0.85 < exported.int8_macs < 1


def test_onnx_computes_what_torch_computes(trained: tuple[Any, Any, Path, Any]) -> None:
    _, qat, path, exported = trained
    inputs = batches(1, 99)[0]
    graph = convert(path, form="raw").model
    got = MapRunner(graph).run(feeds(inputs))
    with torch.no_grad():
        want = {n: t.numpy() for n, t in qat.raw(inputs).items()}
        float_maps: Any = plain_copy(qat)
        plain = {n: t.numpy() for n, t in float_maps.raw(inputs).items()}
    for name, reference in want.items():
        level = name.split("_")[1]
        branch, pred = ("cls_convs", "cls_preds") if name.startswith("cls") else ("reg_convs", "reg_preds")
        conv = qat.get_submodule(f"{branch}.{level}.3")
        step = conv.input_quant.scale.item()  # one more or less of it at one input of the second convolution …
        weight = conv.weight.detach().abs().amax(dim=(2, 3)).amax(dim=1)  # … changes its outputs by this at most …
        change = float((qat.get_submodule(f"{pred}.{level}").weight.detach().abs()[:, :, 0, 0] @ weight).max())
        error = np.abs(got[name] - reference)
        assert error.max() <= 1.1 * step * change  # … and the maps by this (SiLU's slope is at most 1.1)
        assert np.mean(error > 1e-3) < 0.02  # and it is rare
        assert np.abs(plain[name] - reference).max() > 10 * np.median(error)  # rounding is really there
        assert exported.parity[name]["relative"] < 0.01


def test_native_form_equals_the_decoded_maps(trained: tuple[Any, Any, Path, Any]) -> None:
    from dhead_trt.heads import DecodedHead

    _, qat, path, _ = trained
    inputs = batches(1, 7)[0]
    got = run(onnx.load(str(path)), feeds(inputs))
    with torch.no_grad():
        boxes, scores = DecodedHead(qat)(inputs)
    assert np.median(np.abs(got["boxes"] - boxes.numpy())) < 0.05
    assert np.abs(got["scores"] - scores.numpy()).mean() < 1e-3


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("high", ["float32", "float16"])
def test_tensorrt_rtx_builds_it(trained: tuple[Any, Any, Path, Any], tmp_path: Path, high: Any, dynamic: bool) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    _, qat, _, _ = trained
    exported = export_qat(qat, tmp_path / "q.onnx", image_size=SIZE, high=high, dynamic_size=dynamic)
    graph = convert(exported.path, form="raw", verify=high == "float32").model
    size = (SIZE, SIZE, (128, 192)) if dynamic else SIZE
    model, inputs = set_shapes(graph, exported.spec, batch=(1, 2, 4) if dynamic else 1, image_size=size)
    request = BuildRequest(model, inputs, "int8", tmp_path, "q.plan", None, {}, lambda *_: None)
    built = get_backend("tensorrt_rtx").build(request)
    assert (tmp_path / built.files[0]).stat().st_size > 10_000


def test_convolutions_that_read_one_tensor_share_its_scale() -> None:
    qat: Any = prepare_qat(small_models.head(), batches())
    for level in range(3):
        one, two = qat.cls_convs[level], qat.reg_convs[level]
        assert one[0].input_quant is two[0].input_quant
        assert one[3].input_quant is not two[3].input_quant
    assert is_fake_quantized(qat)
    assert not is_fake_quantized(plain_copy(qat))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in qat.modules())


def test_gradients_are_those_of_lsq() -> None:
    quant = FakeQuant()
    with torch.no_grad():
        quant.raw_scale.fill_(0.5)
    x = torch.tensor([0.6, -0.9, 100.0, -100.0], requires_grad=True)
    y = quant(x)
    assert y.tolist() == [0.5, -1.0, 63.5, -64.0]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    want = ((1 - 1.2) + (-2 + 1.8) + 127 - 128) / (4 * 127) ** 0.5
    assert quant.raw_scale.grad.item() == pytest.approx(want, rel=1e-5)


def test_torch_ao_quantizers_are_understood(tmp_path: Path) -> None:
    from torch.ao import quantization as ao

    def make(qscheme: torch.qscheme, observer: Any, **options: Any) -> nn.Module:
        limits = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8, "qscheme": qscheme}
        return ao.FakeQuantize(observer=observer, **limits, **options)

    qat = prepare_qat(
        small_models.head(),
        batches(),
        activation=lambda _: make(torch.per_tensor_symmetric, ao.MovingAverageMinMaxObserver),
        weight=lambda _: make(torch.per_channel_symmetric, ao.PerChannelMinMaxObserver, ch_axis=0),
    )
    qat.apply(ao.disable_observer)
    export_qat(qat, tmp_path / "ao.onnx", image_size=SIZE)
    found = scales_in(onnx.load(str(tmp_path / "ao.onnx")))
    for name, conv in qat.named_modules():
        if isinstance(conv, QatConv2d):
            one, many = found[f"model.{name}.weight"]
            assert one.tobytes() == conv.input_quant.scale.numpy().tobytes()
            assert many.tobytes() == conv.weight_quant.scale.numpy().tobytes()


def test_whole_model_with_a_skipped_layer(tmp_path: Path) -> None:
    model = small_models.detector()
    images = torch.from_numpy(small_models.images(2))
    qat: Any = prepare_qat(model, [images], skip=["backbone.stem.0"])
    assert type(qat.backbone.stem[0]) is nn.Conv2d
    assert isinstance(qat.backbone.stem[2], QatConv2d)
    exported = export_qat(qat, tmp_path / "d.onnx", image_size=SIZE, form="raw")
    found = scales_in(onnx.load(str(exported.path)))
    assert len(found) == 12 + 4
    assert "model.backbone.stem.0.weight" not in found


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    head = small_models.head()
    with pytest.raises(InputError, match="no batches"):
        prepare_qat(head, [])
    with pytest.raises(InputError, match="eval mode"):
        prepare_qat(small_models.head().train(), batches())
    with pytest.raises(InputError, match="skip names no convolution"):
        prepare_qat(head, batches(), skip=["nowhere"])
    with pytest.raises(InputError, match="only zeros"):
        prepare_qat(head, [[torch.zeros_like(t) for t in batches()[0]]])
    with pytest.raises(InputError, match="prepare_qat first"):
        export_qat(head, tmp_path / "no.onnx", image_size=SIZE)
    qat: Any = prepare_qat(head, batches())
    qat.cls_convs[0][0].input_quant = FakeQuant()
    with torch.no_grad():
        qat.cls_convs[0][0].input_quant.raw_scale.fill_(0.5)
    with pytest.raises(GraphError, match="different scales"):
        export_qat(qat, tmp_path / "no.onnx", image_size=SIZE)
    asymmetric = nn.Identity()
    asymmetric.scale, asymmetric.zero_point = torch.ones(1), torch.tensor([3])
    qat.cls_convs[0][0].input_quant = asymmetric
    with pytest.raises(InputError, match="not signed and symmetric"):
        export_qat(qat, tmp_path / "no.onnx", image_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_export_of_a_plain_copy_is_the_float_model(tmp_path: Path, trained: tuple[Any, Any, Path, Any]) -> None:
    _, qat, _, _ = trained
    done = export_onnx(plain_copy(qat), tmp_path / "plain.onnx", image_size=SIZE, form="raw")
    assert not any(n.op_type.endswith("Linear") for n in onnx.load(str(done.path)).graph.node)
