"""torch → ONNX: names, shapes, metadata, parity, and what happens when something is wrong."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from cases import assert_same_decode
from dhead_trt import GraphError, HeadSpec, InputError, reference
from dhead_trt.export import TOLERANCES, export_onnx
from dhead_trt.heads import (
    CoupledHead,
    DecodedHead,
    Head,
    StableDecoupledHead,
    StablePyramidHead,
    WholeModel,
    YOLOv8DecoupledHead,
    fuse_conv_bn,
)
from test_heads import Backbone, trained_norms

HEADS = {
    "decoupled": lambda: YOLOv8DecoupledHead(5, (8, 16, 24)),
    "pixel": lambda: YOLOv8DecoupledHead(3, (8, 16), (8, 16), 15, distance_unit="pixel", names=("a", "b", "c")),
    "stable": lambda: StableDecoupledHead(32, 5, stride=16),
    "stable_pyramid": lambda: StablePyramidHead((32, 64), 3, (8, 32), use_gn=True),
    "coupled": lambda: CoupledHead(5, (8, 16, 24)),
    "whole": lambda: WholeModel(Backbone(), YOLOv8DecoupledHead(3, (8, 16), (8, 16))),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)


@pytest.fixture(params=HEADS)
def model(request: pytest.FixtureRequest) -> Any:
    return trained_norms(HEADS[request.param]())


def run(path: Path, feeds: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    inputs = [i.name for i in session.get_inputs()]
    return dict(zip(names, session.run(names, {n: t.numpy() for n, t in zip(inputs, feeds, strict=True)}), strict=True))


def dims(value: onnx.ValueInfoProto) -> list[Any]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def feeds_for(model: Any, batch: int, size: tuple[int, int]) -> list[torch.Tensor]:
    if isinstance(model, WholeModel):
        return [torch.rand(batch, 3, *size)]
    return [torch.randn(batch, c, *hw) for c, hw in zip(model.in_channels, model.spec.level_shapes(size), strict=True)]


@pytest.mark.parametrize("form", ["native", "raw"])
@pytest.mark.parametrize("dynamic", ["batch", "size", "nothing"])
def test_every_head_exports_and_computes_the_same(model: Any, form: str, dynamic: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = export_onnx(
            model,
            tmp_path / "model.onnx",
            image_size=(64, 96),
            form=form,
            dynamic_batch=dynamic != "nothing",
            dynamic_size=dynamic == "size",
        )
    proto = onnx.load(result.path)
    onnx.checker.check_model(proto, full_check=True)
    whole, spec = isinstance(model, WholeModel), model.spec
    names = ["images"] if whole else [f"p{3 + i}" for i in range(spec.num_levels)]
    assert [i.name for i in proto.graph.input] == names
    outputs = ["boxes", "scores"] if form == "native" else list(spec.input_names)
    assert [o.name for o in proto.graph.output] == outputs == list(result.parity)
    assert {n.op_type for n in proto.graph.node}.isdisjoint({"Identity", "Constant", "BatchNormalization"})
    if dynamic != "size":
        computed = {"Range", "Gather", "Slice"} if form == "raw" else {"Range", "Gather"}
        if not any(isinstance(m, nn.GroupNorm) for m in model.modules()):  # its ONNX form asks for the shape
            computed.add("Shape")
        assert {n.op_type for n in proto.graph.node}.isdisjoint(computed), "folds when fixed"

    fixed = None if dynamic == "size" else (64, 96)
    assert result.spec == spec.replace(image_size=fixed)
    metadata = {p.key: p.value for p in proto.metadata_props}
    assert HeadSpec.from_json(metadata["dhead_spec"]) == result.spec
    assert metadata["stride"] == str(max(spec.strides))
    assert metadata.get("imgsz") == (None if fixed is None else "[64, 96]")
    assert metadata.get("names") == (repr(dict(enumerate(spec.names))) if spec.names else None)

    shapes = {o.name: dims(o) for o in proto.graph.output}
    batch: Any = 1 if dynamic == "nothing" else "batch"
    if form == "native":
        anchors: Any = "anchors" if dynamic == "size" else spec.num_anchors((64, 96))
        assert shapes == {"boxes": [batch, anchors, 4], "scores": [batch, anchors, spec.num_classes]}
    elif dynamic != "size":
        for name, shape in shapes.items():
            assert shape == [batch, spec.channels(name), *spec.level_shapes((64, 96))[int(name[-1])]]
    assert dims(proto.graph.input[0])[0] == batch

    sizes = [(64, 96), (32, 160)] if dynamic == "size" else [(64, 96)]
    for size in sizes:
        for b in (1,) if dynamic == "nothing" else (1, 2, 5):
            feeds = feeds_for(model, b, size)
            got = run(result.path, feeds)
            maps = {n: m.detach().numpy() for n, m in model.raw(feeds[0] if whole else feeds).items()}
            if form == "raw":
                for name, want in maps.items():
                    np.testing.assert_allclose(got[name], want, atol=1e-4 * max(1, np.abs(want).max()))
            else:
                want_boxes, want_scores = reference.decode(maps, spec)
                assert_same_decode(
                    (got["boxes"], got["scores"]), (want_boxes, want_scores), box_tol=0.02, score_tol=2e-5
                )


def test_parity_is_measured(tmp_path: Path) -> None:
    head = trained_norms(YOLOv8DecoupledHead(5, (8, 16, 24)))
    result = export_onnx(head, tmp_path / "a.onnx", image_size=64, dynamic_size=True)
    assert len({tuple(r.items()) for r in result.runs}) == len(result.runs) == 4
    assert len({r["p3"][0] for r in result.runs}) >= 3
    for name, errors in result.parity.items():
        assert 0 < errors["max"] < TOLERANCES[name]
        assert 0 < errors["mean"] < errors["max"]
    assert export_onnx(head, tmp_path / "b.onnx", image_size=64, verify=False).parity == {}


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    class ByCalls(Head):
        """Computes something else on every call."""

        def __init__(self) -> None:
            super().__init__(HeadSpec(2, (8,), 1), (4,))
            self.box, self.cls, self.calls = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1), 0

        def raw(self, inputs: Any) -> dict[str, torch.Tensor]:
            x = self._levels(inputs)[0]
            self.calls += 1
            return {"box_0": self.box(x) + self.calls, "cls_0": self.cls(x)}

    with pytest.raises(GraphError, match=r"does not compute what the model computes.*boxes.*off by"):
        export_onnx(ByCalls(), tmp_path / "a.onnx", image_size=64)
    assert list(tmp_path.iterdir()) == []


def test_a_branch_frozen_by_the_trace_is_refused(tmp_path: Path) -> None:
    class Branching(Head):
        def __init__(self) -> None:
            super().__init__(HeadSpec(2, (8,), 1), (4,))
            self.box, self.cls = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def raw(self, inputs: Any) -> dict[str, torch.Tensor]:
            x = self._levels(inputs)[0]
            scale = 1.0 if bool((x == 0).all()) else 2.0
            return {"box_0": self.box(x), "cls_0": self.cls(x * scale)}

    with pytest.raises(GraphError, match=r"scores.*off by"):
        export_onnx(Branching(), tmp_path / "a.onnx", image_size=64)


def test_an_operator_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    class Strange(Head):
        def __init__(self) -> None:
            super().__init__(HeadSpec(2, (8,), 1), (4,))
            self.box, self.cls = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def raw(self, inputs: Any) -> dict[str, torch.Tensor]:
            x = self._levels(inputs)[0]
            return {"box_0": torch.special.bessel_j0(self.box(x)), "cls_0": self.cls(x)}

    with pytest.raises(GraphError, match="bessel_j0"):
        export_onnx(Strange(), tmp_path / "a.onnx", image_size=64)
    assert list(tmp_path.iterdir()) == []


def test_training_mode_is_restored_and_eval_is_exported(tmp_path: Path) -> None:
    head = trained_norms(StableDecoupledHead(32, 5, dropout_rate=0.5))
    want = head.raw([torch.ones(1, 32, 4, 4)])["cls_0"].detach().numpy()
    head.train()
    head.cls_pred.eval()
    result = export_onnx(head, tmp_path / "a.onnx", image_size=32, form="raw")
    assert head.training
    assert head.cls_convs[0].training
    assert not head.cls_pred.training
    np.testing.assert_allclose(run(result.path, [torch.ones(1, 32, 4, 4)])["cls_0"], want, atol=1e-4)


def test_example_decides_the_size(tmp_path: Path) -> None:
    head = trained_norms(YOLOv8DecoupledHead(3, (8, 16), (8, 16)))
    example = [torch.randn(2, 8, 6, 10), torch.randn(2, 16, 3, 5)]
    result = export_onnx(head, tmp_path / "a.onnx", example=example, dynamic_batch=False)
    assert result.spec.image_size == (48, 80)
    assert dims(onnx.load(result.path).graph.input[0]) == [2, 8, 6, 10]
    odd = [torch.randn(1, 8, 7, 10), torch.randn(1, 16, 4, 5)]
    assert export_onnx(head, tmp_path / "b.onnx", example=odd).spec.image_size == (56, 80)
    assert export_onnx(head, tmp_path / "b.onnx", example=odd, image_size=(50, 77)).spec.image_size == (50, 77)
    single = export_onnx(StableDecoupledHead(32, 5), tmp_path / "c.onnx", example=torch.randn(1, 32, 4, 4))
    assert single.spec.image_size == (32, 32)
    assert list(single.runs[0]) == ["p3"]
    whole = HEADS["whole"]()
    assert export_onnx(whole, tmp_path / "d.onnx", example=torch.rand(1, 3, 64, 32)).spec.image_size == (64, 32)


def test_decoded_head_exports_as_its_head(tmp_path: Path) -> None:
    head = trained_norms(YOLOv8DecoupledHead(3, (8, 16), (8, 16)))
    a = export_onnx(head, tmp_path / "a.onnx", image_size=64).path.read_bytes()
    b = export_onnx(DecodedHead(head), tmp_path / "b.onnx", image_size=64).path.read_bytes()
    assert a == b


@pytest.mark.parametrize("opset", [17, 18, 19, 20])
def test_opsets(opset: int, tmp_path: Path) -> None:
    head = trained_norms(YOLOv8DecoupledHead(3, (8, 16), (8, 16)))
    for dynamic in (False, True):
        result = export_onnx(head, tmp_path / "a.onnx", image_size=64, opset=opset, dynamic_size=dynamic)
        assert [o.version for o in onnx.load(result.path).opset_import if not o.domain] == [opset]


class Oversized(Head):
    def __init__(self) -> None:
        super().__init__(HeadSpec(2, (8,), 1), (4,))
        self.weight = nn.Parameter(torch.zeros(1).expand(600_000_000), requires_grad=False)  # 4 bytes of memory


class WrongMaps(Head):
    def __init__(self) -> None:
        super().__init__(HeadSpec(2, (8,), 1), (4,))
        self.conv = nn.Conv2d(4, 4, 1)

    def raw(self, inputs: Any) -> dict[str, torch.Tensor]:
        return {"box_0": self.conv(inputs[0]), "cls_0": self.conv(inputs[0])}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (HEADS["decoupled"], {"form": "detections"}, "form is not known"),
        (HEADS["decoupled"], {"opset": 12}, "opset is not supported: received 12, expected 17 to 20"),
        (HEADS["decoupled"], {"image_size": (640,)}, "image_size is not a size"),
        (HEADS["decoupled"], {"image_size": 0}, "image_size is not a size"),
        (HEADS["decoupled"], {"example": "image.png"}, "example is not an input"),
        (HEADS["decoupled"], {"example": []}, "example is not an input"),
        (HEADS["decoupled"], {"example": [torch.zeros(1, 8, 4, 4)]}, "features do not fit"),
        (HEADS["stable"], {"example": torch.zeros(1, 32, 4, 4), "image_size": 640}, "does not have the image size"),
        (lambda: nn.Conv2d(3, 3, 1), {}, "no detection head"),
        (lambda: "model.pt", {}, "no detection head"),
        (lambda: HEADS["decoupled"]().half(), {}, "not in float32"),
        (Oversized, {}, "too large for one ONNX file: received 2.24 GiB"),
        (WrongMaps, {"image_size": 64}, r"do not fit its spec: cls_0: received shape \(1, 4, 8, 8\), expected \[B, 2"),
    ],
)
def test_bad_arguments(make: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(make(), tmp_path / "a.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_fused_head_exports_to_the_same_graph(tmp_path: Path) -> None:
    head = trained_norms(YOLOv8DecoupledHead(3, (8, 16), (8, 16)))
    plain, fused = (
        export_onnx(m, tmp_path / f"{i}.onnx", image_size=64) for i, m in enumerate((head, fuse_conv_bn(head)))
    )
    ops = [[n.op_type for n in onnx.load(r.path).graph.node] for r in (plain, fused)]
    assert ops[0] == ops[1]
    feeds = feeds_for(head, 2, (64, 64))
    a, b = (run(r.path, feeds) for r in (plain, fused))
    assert np.abs(a["boxes"] - b["boxes"]).max() < 1e-2
    assert np.abs(a["scores"] - b["scores"]).max() < 1e-5


@pytest.mark.parametrize(("package", "extra"), [("torch", "export"), ("onnx", "onnx"), ("onnxruntime", "onnx")])
def test_a_missing_package_names_its_extra(package: str, extra: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from dhead_trt.export import export_onnx\n"
        "from dhead_trt import BackendUnavailable\n"
        "model = None\n"
        f"if {package!r} != 'torch':\n"
        "    from dhead_trt.heads import CoupledHead\n"
        "    model = CoupledHead(2, (8,), (8,))\n"
        f"sys.modules[{package!r}] = None\n"
        "try: export_onnx(model, sys.argv[1], image_size=32)\n"
        f"except BackendUnavailable as e: print('dhead-trt[{extra}]' in str(e) and {package!r} in str(e))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.onnx")], capture_output=True, text=True, check=False
    )
    assert result.stdout == "True\n", result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    with pytest.raises(InputError):
        export_onnx(WrongMaps(), path, image_size=64)
    assert path.read_bytes() == b"old"
