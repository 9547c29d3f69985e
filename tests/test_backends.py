"""The backends themselves: what they say of this machine, and what TensorRT for RTX builds on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import small_models as small
from dhead_trt import BackendUnavailable, BuildError, InputError
from dhead_trt import backends as registry
from dhead_trt.artifact import Artifact
from dhead_trt.backends import BACKENDS, Availability, available_backends, choose_backend, get_backend
from dhead_trt.backends.base import Backend
from dhead_trt.backends.cuda_driver import devices
from dhead_trt.backends.openvino import new_core
from dhead_trt.backends.tensorrt_rtx import CAPABILITIES, DEFAULT_CAPABILITIES, parse_capability
from dhead_trt.build import build
from dhead_trt.engine import Engine

rtx = pytest.mark.skipif(
    not get_backend("tensorrt_rtx").availability().can_build, reason="TensorRT for RTX is not installed"
)
no_gpu = pytest.mark.skipif(bool(devices()), reason="there is a GPU here")


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_keeps_the_protocol(name: str) -> None:
    backend = get_backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    available = backend.availability()
    assert available.reason
    assert "\n" not in available.reason
    assert available_backends()[name] == available
    assert not available.can_build or available.version
    assert set(backend.forms) <= {"native", "raw", "decoded", "detections"}
    assert all(s.startswith(".") for s in backend.suffixes)


def test_unknown_backend() -> None:
    with pytest.raises(InputError, match=r"received 'onnx', expected tensorrt, tensorrt_rtx, openvino, auto"):
        get_backend("onnx")


def test_importing_them_imports_no_library() -> None:
    code = (
        "import sys; import dhead_trt.backends as b; [b.get_backend(n) for n in b.BACKENDS];"
        "print(sorted({'openvino', 'tensorrt_rtx', 'tensorrt', 'onnx', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("found", "chosen", "words"),
    [
        ({"openvino": "br", "tensorrt_rtx": "b", "tensorrt": ""}, "openvino", "tensorrt_rtx does not run (said so)"),
        ({"openvino": "br", "tensorrt_rtx": "br", "tensorrt": ""}, "tensorrt_rtx", "tensorrt does not run (said so)"),
        ({"openvino": "br", "tensorrt_rtx": "br", "tensorrt": "br"}, "tensorrt", "tensorrt builds and runs here."),
        ({"openvino": "", "tensorrt_rtx": "b", "tensorrt": ""}, "tensorrt_rtx", "nothing here can run it"),
        ({"openvino": "", "tensorrt_rtx": "", "tensorrt": ""}, None, "openvino: said so"),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, found: dict[str, str], chosen: str | None, words: str) -> None:
    states = {n: Availability("b" in found[n], "r" in found[n], "said so") for n in BACKENDS}
    monkeypatch.setattr(registry, "available_backends", lambda: states)
    if chosen is None:
        with pytest.raises(BackendUnavailable, match=words):
            choose_backend()
    else:
        backend, why = choose_backend()
        assert backend.name == chosen
        assert words in why


def test_tensorrt_says_why_not(tmp_path: Path) -> None:
    backend = get_backend("tensorrt")
    available = backend.availability()
    if available.can_build:
        pytest.skip("TensorRT is here")
    assert "libnvinfer" in available.reason or "library" in available.reason
    with pytest.raises(BackendUnavailable, match="tensorrt cannot build here"):
        build(small.onnx_bytes("head"), "tensorrt", output=tmp_path / "e")


# -- OpenVINO ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openvino_plan(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("openvino")
    return build(small.onnx_bytes("head"), "openvino", output=folder / "e", verify=False)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "TPU"}, BackendUnavailable, "cannot use the device 'TPU'.*CPU"),
        ({"speed": 1}, InputError, "no load option 'speed'"),
        ({"hint": "fast"}, InputError, "hint"),
        ({"high": "f16"}, InputError, "higher precision is not known: received 'f16', expected 'f32' or 'bf16'"),
        ({"threads": 0}, InputError, "threads"),
        ({"threads": 1.5}, InputError, "threads"),
        ({"output": "boxes"}, InputError, "output"),
    ],
)
def test_openvino_load_options(openvino_plan: Artifact, options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        Engine(openvino_plan, **options)


def test_openvino_computes_in_the_precision_it_says(tmp_path: Path) -> None:
    """fp32 is asked for by name: left alone, OpenVINO takes bf16 on machines with AMX."""
    for precision in ("fp32", "bf16"):
        artifact = build(small.onnx_bytes("head"), "openvino", output=tmp_path / precision, precision=precision)
        with Engine(artifact, threads=1) as e:
            compiled = e._runner._compiled  # type: ignore[attr-defined]
            effective = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            assert effective == {"fp32": "f32", "bf16": "bf16"}[e.precision]


def test_openvino_int8_keeps_the_rest_in_float32(tmp_path: Path) -> None:
    """The accuracy gate measures that graph; bf16 between the int8 layers is a choice."""
    path = small.onnx_bytes("head")
    artifact = build(path, "openvino", output=tmp_path / "e", precision="int8", calibration="random", verify=False)
    abilities = new_core(pytest.importorskip("openvino")).get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for options, wanted in (({}, "f32"), ({"high": "f32"}, "f32"), ({"high": "bf16"}, "bf16")):
        with Engine(artifact, threads=1, **options) as e:
            compiled = e._runner._compiled  # type: ignore[attr-defined]
            effective = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            assert effective == (wanted if "BF16" in abilities else "f32")
            assert e.precision == "int8"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_openvino_says_what_the_cpu_lacks(
    openvino_plan: Artifact, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    from dhead_trt.backends.openvino import _hint

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    requested, computed, note = _hint(Core(), "CPU", precision)
    assert (requested, computed) == ("f32", "fp32")
    assert note is not None
    assert f"{precision} engine computes in fp32" in note


# -- TensorRT for RTX -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "capability"),
    [
        ("8.6", "8.6"),
        ("86", "8.6"),
        ("sm_86", "8.6"),
        ("SM86", "8.6"),
        ("compute_89", "8.9"),
        ("ada", "8.9"),
        ("Turing", "7.5"),
        ("ampere", "8.6"),
        ("blackwell", "12.0"),
        ("sm_120", "12.0"),
        ("12.1", "12.1"),
        ("8.0", "8.0"),
    ],
)
def test_capability_names(text: str, capability: str) -> None:
    assert parse_capability(text) == capability


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sm_87", "Jetson Orin.*tensorrt"),
        ("8.7", "Jetson Orin"),
        ("9.0", "Hopper"),
        ("sm_100", "Blackwell"),
        ("5.0", "received 5.0"),
        ("hopper", "received hopper"),
        ("", "compute capability"),
        ("8.6.1", "compute capability"),
    ],
)
def test_capabilities_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        parse_capability(text)


@rtx
@pytest.mark.parametrize("kind", ["head", "detector", "stable"])
@pytest.mark.parametrize("batch", [1, (1, 2, 4)])
def test_rtx_builds(tmp_path: Path, kind: str, batch: Any) -> None:
    artifact = build(small.onnx_bytes(kind), "tensorrt_rtx", output=tmp_path / "e", batch=batch)
    assert artifact.plan.name == "e.plan"
    assert artifact.plan.stat().st_size > 10_000
    assert artifact.compute_capabilities == DEFAULT_CAPABILITIES
    assert "7.5" not in DEFAULT_CAPABILITIES
    assert any("Turing (7.5) is left out" in n for n in artifact.notes)
    assert artifact.gpu is None
    assert artifact.report["verification"]["skipped"]
    assert artifact.outputs[0].shape[0] == (1 if batch == 1 else -1)
    assert Artifact.load(artifact.plan) == artifact
    import tensorrt_rtx as trt

    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)  # the one verdict that needs no GPU
    assert int(runtime.get_engine_validity(artifact.plan.read_bytes())[1]) & malformed == 0
    assert int(runtime.get_engine_validity(b"garbage" * 1000)[1]) & malformed


@rtx
def test_rtx_takes_the_capabilities_asked_for(tmp_path: Path) -> None:
    one = build(small.onnx_bytes("head"), "tensorrt_rtx", output=tmp_path / "a", compute_capabilities="ada")
    assert one.compute_capabilities == ("8.9",)
    assert not any("Turing" in n for n in one.notes)
    every = build(
        small.onnx_bytes("head"), "tensorrt_rtx", output=tmp_path / "b", compute_capabilities=[*CAPABILITIES, "sm_86"]
    )
    assert every.compute_capabilities == CAPABILITIES
    assert every.files[0].size > one.files[0].size
    with pytest.raises(BuildError, match="Jetson Orin"):
        build(small.onnx_bytes("head"), "tensorrt_rtx", output=tmp_path / "c", compute_capabilities=["8.6", "8.7"])
    assert not (tmp_path / "c.plan").exists()


@rtx
@pytest.mark.parametrize("io_dtype", ["float32", "float16"])
def test_rtx_fp16(tmp_path: Path, io_dtype: str) -> None:
    artifact = build(
        small.onnx_bytes("head"),
        "tensorrt_rtx",
        output=tmp_path / "e",
        precision="fp16",
        io_dtype=io_dtype,
        batch=(1, 2, 4),
    )
    assert artifact.precision == "fp16"
    assert {t.dtype for t in (*artifact.inputs, *artifact.outputs)} == {io_dtype}


@rtx
def test_rtx_needs_bounds(tmp_path: Path) -> None:
    data = small.onnx_bytes("detector", "raw", True, True)
    with pytest.raises(BuildError, match=r"images.*without bounds.*image_size"):
        build(data, "tensorrt_rtx", output=tmp_path / "e")
    sizes = ((64, 64), (64, 96), (128, 128))
    artifact = build(data, "tensorrt_rtx", output=tmp_path / "e", image_size=sizes, batch=(1, 1, 2))
    assert artifact.inputs[0].profile == ((1, 3, 64, 64), (1, 3, 64, 96), (2, 3, 128, 128))


@rtx
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workspace_mib": 64, "optimization_level": 1}, None),
        ({"workspace_mib": 0}, "workspace_mib"),
        ({"optimization_level": 6}, "optimization_level"),
        ({"refit": True}, "no build option 'refit'"),
    ],
)
def test_rtx_options(tmp_path: Path, options: dict[str, Any], words: str | None) -> None:
    if words is None:
        artifact = build(small.onnx_bytes("head"), "tensorrt_rtx", output=tmp_path / "e", options=options)
        assert artifact.options["workspace_mib"] == 64
    else:
        with pytest.raises((BuildError, InputError), match=words):
            build(small.onnx_bytes("head"), "tensorrt_rtx", output=tmp_path / "e", options=options)


@rtx
def test_rtx_names_the_node_it_cannot_parse(tmp_path: Path) -> None:
    """An operator it does not have, in an otherwise good graph."""
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], name="first"),
        helper.make_node("Frobnicate", ["c"], ["y"], name="odd one", domain="custom.ops"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 1, 1], [1.0] * 12)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("custom.ops", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(BuildError, match=r"'odd one' \(Frobnicate\)"):
        build(model, "tensorrt_rtx", output=tmp_path / "e", form="native")
    assert list(tmp_path.iterdir()) == []


@rtx
@no_gpu
def test_rtx_plan_without_a_gpu(tmp_path: Path) -> None:
    artifact = build(small.onnx_bytes("head"), "tensorrt_rtx", output=tmp_path / "e", compute_capabilities="8.6")
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver.*8\.6.*--backend openvino"):
        Engine(artifact.plan)


@rtx
def test_rtx_with_a_graph_that_is_no_onnx(tmp_path: Path) -> None:
    """Below build's own checks: the backend itself survives what its parser cannot read."""
    from dhead_trt.backends.base import BuildRequest, silent

    model = onnx.ModelProto()
    request = BuildRequest(model, (), "fp32", tmp_path, "e.plan", None, {}, silent)
    with pytest.raises(BuildError):
        get_backend("tensorrt_rtx").build(request)
