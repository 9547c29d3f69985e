"""`dhead-trt export --int8`: the graph that build --int8 makes, as a file; its gate, its options, its errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import small_models as small
from dhead_trt.artifact import TensorInfo
from dhead_trt.backends import BuildRequest, get_backend
from dhead_trt.build import build
from dhead_trt.cli import main
from dhead_trt.heads.decoupled import CHANNELS
from dhead_trt.precision.gate import Gate
from dhead_trt.shapes import run_reference


@pytest.fixture(scope="module")
def calib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calib")
    for seed in range(8):
        pixels = np.rint(small.images(1, seed=seed)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(small.onnx_bytes("detector"))
    return path


def export(model: Path | str, output: Path, *more: str) -> int:
    return main(["export", str(model), "-o", str(output), "--quiet", "--int8", "--min-agreement", "0.1", *more])


def pairs(model: onnx.ModelProto) -> int:
    return sum(n.op_type == "QuantizeLinear" for n in model.graph.node)


@pytest.mark.parametrize("form", ["raw", "native", "detections"])
def test_forms(model: Path, calib: Path, tmp_path: Path, form: str) -> None:
    """Every form has the same pairs, and runs (but for our own nodes, which only TensorRT knows)."""
    if form == "native":
        model.write_bytes(small.onnx_bytes("detector", "native"))
    out = tmp_path / "out" / "q.onnx"
    assert export(model, out, "--calib", str(calib), "--form", form, "--json", str(tmp_path / "r.json")) == 0
    made = onnx.load(out)
    assert {p.key: p.value for p in made.metadata_props}["dhead_precision"] == "int8"
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["int8_report"]["images"] == 6
    assert record["int8_report"]["gate"]["agreement"] >= 0.1
    assert any("Against float32 on 2 held-out images" in note for note in record["int8"])
    assert pairs(made) > 5
    if form != "detections":
        got = run_reference(made, {"images": small.images(2)})
        assert all(np.isfinite(v).all() for v in got.values())
    assert [p.name for p in out.parent.iterdir()] == ["q.onnx"]


def test_same_as_build(model: Path, calib: Path, tmp_path: Path) -> None:
    """Same figures and same kept layers as the engine's sidecar, so the same graph."""
    out = tmp_path / "q.onnx"
    assert export(model, out, "--calib", str(calib), "--json", str(tmp_path / "r.json")) == 0
    built = build(
        model, "openvino", output=tmp_path / "e", precision="int8", calibration=calib, min_agreement=0.1, verify=False
    )
    mine, theirs = json.loads((tmp_path / "r.json").read_text())["int8_report"], built.report["int8"]
    for key in ("data_sha256", "model_sha256", "kept", "quantized", "int8_macs"):
        assert mine[key] == theirs[key]
    assert mine["gate"]["f1_50"] == pytest.approx(theirs["gate"]["f1_50"], abs=1e-9)


def test_half_precision_beside_it(model: Path, calib: Path, tmp_path: Path) -> None:
    """--int8 --fp16 computes the rest in float16; both agree about as well as the gate said of the first."""
    plain, half, io = tmp_path / "q.onnx", tmp_path / "h.onnx", tmp_path / "i.onnx"
    assert export(model, plain, "--calib", str(calib)) == 0
    assert export(model, half, "--calib", str(calib), "--fp16") == 0
    assert export(model, io, "--calib", str(calib), "--fp16", "--io-fp16") == 0
    kinds = [{i.data_type for i in onnx.load(p).graph.initializer} for p in (plain, half)]
    assert onnx.TensorProto.FLOAT16 not in kinds[0]
    assert onnx.TensorProto.FLOAT16 in kinds[1]
    types = [onnx.load(p).graph.input[0].type.tensor_type.elem_type for p in (half, io)]
    assert types == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16]
    gate = Gate(onnx.load(model), [{"images": small.images(4, seed=3)}])
    assert abs(gate.measure(onnx.load(plain)).f1_50 - gate.measure(onnx.load(half)).f1_50) < 0.1


@pytest.mark.parametrize("more", [[], ["--fp16"]])
def test_tensorrt_for_rtx_takes_it(model: Path, calib: Path, tmp_path: Path, more: list[str]) -> None:
    """As it is, strongly typed, with a range of batches: what `trtexec` would do with the file."""
    backend = get_backend("tensorrt_rtx")
    if not backend.availability().can_build:
        pytest.skip(f"TensorRT for RTX cannot build here: {backend.availability().reason}")
    assert export(model, tmp_path / "q.onnx", "--calib", str(calib), *more) == 0
    shapes = tuple((n, 3, *small.SIZE) for n in (1, 2, 4))
    request = BuildRequest(
        model=onnx.load(tmp_path / "q.onnx"),
        inputs=(TensorInfo("images", "float32", (-1, 3, *small.SIZE), shapes),),
        precision="int8",
        folder=tmp_path,
        plan_name="p.plan",
        compute_capabilities=("8.9",),
        options={},
        progress=lambda phase, done=None: None,
    )
    assert backend.build(request).files == ("p.plan",)
    assert (tmp_path / "p.plan").stat().st_size > 10_000


def test_a_head_with_features(tmp_path: Path) -> None:
    """A torch head: exported, then quantized; npz rows are split as images are."""
    (tmp_path / "c").mkdir()
    shapes = {n: (c, side, side) for n, c, side in zip(("p3", "p4", "p5"), CHANNELS["n"], (8, 4, 2), strict=True)}
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "c" / "a.npz", **{n: rng.standard_normal((5, *s)).astype(np.float32) for n, s in shapes.items()}
    )
    out, record = tmp_path / "q.onnx", tmp_path / "r.json"
    command = ["export", "decoupled", "--size", "n", "--num-classes", "3", "--image-size", "64", "--no-verify"]
    command += ["--form", "raw", "-o", str(out), "--quiet", "--int8", "--calib", str(tmp_path / "c")]
    assert main([*command, "--min-agreement", "none", "--json", str(record)]) == 0
    assert pairs(onnx.load(out)) > 5
    assert json.loads(record.read_text())["int8_report"]["images"] == 5


def test_open_image_size(calib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images need a size to be letterboxed to."""
    model = tmp_path / "m.onnx"
    model.write_bytes(small.onnx_bytes("detector", dynamic_size=True))
    assert export(model, tmp_path / "q.onnx", "--calib", str(calib)) == 2
    assert "--image-size" in capsys.readouterr().err
    assert export(model, tmp_path / "q.onnx", "--calib", str(calib), "--image-size", "64x96") == 0
    shape = onnx.load(tmp_path / "q.onnx").graph.input[0].type.tensor_type.shape.dim
    assert not shape[2].HasField("dim_value")


def test_errors_leave_nothing(model: Path, calib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "q.onnx"
    for more, message in (
        ([], "needs data to calibrate with"),
        (["--calib", str(tmp_path / "none")], "not there"),
        (["--calib", str(calib), "--percentile", "50", "--min-agreement", "1"], "does not agree with float32"),
        (["--calib", str(calib), "--image-size", "64x96"], "image size is fixed"),
        (["--calib", str(calib), "--io-fp16"], "--io-fp16 goes with --fp16"),
    ):
        assert export(model, out, *more) == 2, more
        assert message in capsys.readouterr().err
    assert main(["export", str(model), "-o", str(out), "--calib", str(calib)]) == 2
    assert "--calib belongs to --int8" in capsys.readouterr().err
    assert not out.parent.exists() or not list(out.parent.iterdir())
