"""build: every way in, every shape wanted, both backends, and nothing left behind when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import small_models as small
from dhead_trt import BackendUnavailable, BuildError, DheadError, HeadSpec, InputError
from dhead_trt.artifact import Artifact
from dhead_trt.backends import get_backend
from dhead_trt.backends.openvino import OpenVINOBackend
from dhead_trt.build import build
from dhead_trt.engine import Engine
from dhead_trt.shapes import random_inputs, run_reference, tensor_infos
from threads import in_threads

RAW_NAMES = ("box_0", "cls_0", "box_1", "cls_1", "box_2", "cls_2")


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


# -- what comes in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["path", "bytes", "proto", "torch"])
@pytest.mark.parametrize("form", ["raw", "native"])
def test_every_way_in_gives_the_same_engine(tmp_path: Path, way: str, form: str) -> None:
    data = small.onnx_bytes("head", "native")
    (tmp_path / "m.onnx").write_bytes(data)
    model: Any = {
        "path": tmp_path / "m.onnx",
        "bytes": data,
        "proto": onnx.load_from_string(data),
        "torch": small.head(),
    }[way]
    size = small.SIZE if way == "torch" else None
    artifact = build(model, "openvino", output=tmp_path / "out" / "e.xml", form=form, batch=(1, 2, 3), image_size=size)
    assert artifact == Artifact.load(tmp_path / "out" / "e.xml")
    assert listing(tmp_path / "out") == ["e.bin", "e.json", "e.xml"]
    assert artifact.form == form
    assert artifact.spec == small.head().spec.replace(image_size=small.SIZE)
    assert tuple(t.name for t in artifact.outputs) == (RAW_NAMES if form == "raw" else ("boxes", "scores"))
    if way in ("path", "bytes"):
        assert artifact.source_sha256 == hashlib.sha256(data).hexdigest()
    x = small.features(3)
    want = small.torch_maps(small.head(), x)
    with Engine(artifact.plan, output="raw", threads=2) as engine:
        got = engine.infer(x)
    if form == "raw":
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-4 * max(1.0, np.abs(value).max()))
    else:
        from dhead_trt import reference

        boxes, scores = reference.decode(want, small.head().spec)
        np.testing.assert_allclose(got["boxes"], boxes, rtol=0, atol=5e-3)
        np.testing.assert_allclose(got["scores"], scores, rtol=0, atol=1e-5)


def test_the_sidecar_tells_what_was_built(tmp_path: Path) -> None:
    artifact = build(small.onnx_bytes("detector", "native"), "openvino", output=tmp_path / "e", batch=(1, 2, 4))
    data = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert artifact.plan == tmp_path / "e.xml"
    assert data["backend"] == "openvino"
    assert data["backend_version"]
    assert data["dhead_trt"]
    assert data["precision"] == "fp32"
    assert data["spec"]["image_size"] == list(small.SIZE)
    assert data["inputs"] == [
        {
            "name": "images",
            "dtype": "float32",
            "shape": [-1, 3, *small.SIZE],
            "profile": [[n, 3, *small.SIZE] for n in (1, 2, 4)],
        }
    ]
    assert [f["name"] for f in data["files"]] == ["e.xml", "e.bin"]
    for f in data["files"]:
        content = (tmp_path / f["name"]).read_bytes()
        assert (f["size"], f["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert data["report"]["surgery"]["max_box_error_px"] < 0.05
    verified = data["report"]["verification"]["outputs"]
    assert set(verified) == set(RAW_NAMES)
    assert all(0 < v["relative"] < 1e-5 for v in verified.values())


def test_the_same_input_gives_the_same_plan(tmp_path: Path) -> None:
    one, two = (
        build(small.onnx_bytes("head", "native"), "openvino", output=tmp_path / d / "e.xml", batch=2) for d in "ab"
    )
    assert one.files == two.files
    assert one.report["verification"] == two.report["verification"]


def test_it_replaces_an_engine_of_the_same_name(tmp_path: Path) -> None:
    first = build(small.onnx_bytes("head"), "openvino", output=tmp_path / "e.xml")
    second = build(small.onnx_bytes("detector"), "openvino", output=tmp_path / "e.xml")
    assert first.files != second.files
    assert Artifact.load(tmp_path / "e.xml") == second
    assert listing(tmp_path) == ["e.bin", "e.json", "e.xml"]


# -- precision, forms, arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_reduced_precision_on_openvino(tmp_path: Path, precision: str) -> None:
    """What the CPU lacks is said, in the artifact and by the engine; the result stays near fp32 either way."""
    artifact = build(small.onnx_bytes("head"), "openvino", output=tmp_path / "e", precision=precision, batch=2)
    assert artifact.precision == precision
    assert artifact.options["compress_to_fp16"] == (precision == "fp16")
    abilities = str(get_backend("openvino").availability().detail["cpu computes in"]).split(", ")
    native = {"fp16": "FP16", "bf16": "BF16"}[precision] in abilities
    x = small.features(2)
    want = small.torch_maps(small.head(), x)
    with Engine(artifact.plan, output="raw", threads=2) as engine:
        assert engine.precision == (precision if native else "fp32")
        assert bool(engine.notes) == bool(artifact.notes) == (not native)
        if not native:
            assert f"this {precision} engine computes in fp32" in engine.notes[0]
        got = engine.infer(x)
    errors = [np.linalg.norm(got[n] - want[n]) / np.linalg.norm(want[n]) for n in want]
    assert 1e-6 < max(errors) < (0.01 if precision == "fp16" else 0.05) or (not native and precision == "bf16")


@pytest.mark.parametrize("io_dtype", ["float32", "float16"])
def test_an_fp16_graph_on_openvino(tmp_path: Path, io_dtype: str) -> None:
    """A graph that is fp16 already: its inputs and raw maps keep their type, and the decode reads them."""
    from dhead_trt.precision import to_fp16

    half = to_fp16(onnx.load_from_string(small.onnx_bytes("head")), io_dtype=io_dtype)
    artifact = build(half, "openvino", output=tmp_path / "e", batch=(1, 2, 2))
    assert {t.dtype for t in (*artifact.inputs, *artifact.outputs)} == {io_dtype}
    x = [a.astype(io_dtype) for a in small.features(2)]
    want = small.torch_maps(small.head(), small.features(2))
    with Engine(artifact, output="raw", threads=2) as engine:
        for name, value in engine.infer(x).items():
            assert value.dtype == io_dtype
            assert np.linalg.norm(value - want[name]) < 0.01 * np.linalg.norm(want[name])
    with Engine(artifact, threads=2) as engine:
        assert engine.infer(x, conf=0.3)["num_dets"].min() > 3


def test_an_engine_with_a_broken_sidecar_can_be_built_again(tmp_path: Path) -> None:
    artifact = build(small.onnx_bytes("head"), "openvino", output=tmp_path / "e", verify=False)
    artifact.sidecar.write_text("{")
    again = build(small.onnx_bytes("head"), "openvino", output=tmp_path / "e", verify=False)
    assert Artifact.load(again.plan).files == artifact.files


def test_fp16_halves_the_weights(tmp_path: Path) -> None:
    sizes = {
        p: build(small.onnx_bytes("head"), "openvino", output=tmp_path / p, precision=p).files[1].size
        for p in ("fp32", "fp16")
    }
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"backend": "tensorflow"}, InputError, "no such backend"),
        ({"precision": "int4"}, BuildError, "openvino does not build this precision.*'int4'.*fp32, fp16, bf16, int8"),
        ({"form": "detections"}, BuildError, "no custom operators.*'raw'"),
        ({"io_dtype": "float16"}, InputError, "needs precision='fp16' or 'int8' on TensorRT"),
        ({"io_dtype": "int8"}, InputError, "io_dtype"),
        ({"options": {"speed": 9}}, BuildError, "no build option 'speed'"),
        ({"compute_capabilities": "8.6"}, BuildError, "belong to GPU backends"),
        ({"batch": 0}, InputError, "batch"),
        ({"image_size": (1,)}, InputError, "image size"),
        ({"spec": HeadSpec(9, (8, 16, 32), 17)}, DheadError, "9"),
        ({"backend": "tensorrt"}, BackendUnavailable, "tensorrt cannot build here"),
    ],
)
def test_refused_arguments(tmp_path: Path, arguments: dict[str, Any], error: type[DheadError], words: str) -> None:
    with pytest.raises(error, match=words):
        build(small.onnx_bytes("head", "native"), **{"backend": "openvino", "output": tmp_path / "e"} | arguments)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("output", "plan"),
    [("a", "a.xml"), ("a.xml", "a.xml"), ("a.plan", "a.xml"), ("v1.2", "v1.2.xml"), ("a.engine", "a.xml")],
)
def test_the_suffix_is_the_backends(tmp_path: Path, output: str, plan: str) -> None:
    artifact = build(small.onnx_bytes("head"), "openvino", output=tmp_path / output, verify=False)
    assert artifact.plan == tmp_path / plan
    assert "verification" not in artifact.report


@pytest.mark.parametrize("output", ["", ".", "sub/", "e.json", "e.onnx", "e.bin"])
def test_outputs_that_cannot_be(tmp_path: Path, output: str) -> None:
    with pytest.raises(InputError):
        build(small.onnx_bytes("head"), "openvino", output=f"{tmp_path}/{output}")
    assert listing(tmp_path) == []


def test_a_sidecar_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match=r"e\.json is there already"):
        build(small.onnx_bytes("head"), "openvino", output=tmp_path / "e.xml")
    assert (tmp_path / "e.json").read_text() == '{"mine": 1}'
    build(small.onnx_bytes("head"), "tensorrt_rtx", output=tmp_path / "f.plan", compute_capabilities=["8.9"])
    with pytest.raises(InputError, match=r"belongs to f\.plan"):
        build(small.onnx_bytes("head"), "openvino", output=tmp_path / "f.xml")


# -- nothing half-written ---------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Stands for KeyboardInterrupt and the like."""


def _fail_in(step: str, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes one step of the build raise, after whatever it writes."""
    module = sys.modules["dhead_trt.build"]

    def after(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            real(*args, **kwargs)
            raise error

        return wrapped

    target, name = {
        "shapes": (module, "set_shapes"),
        "backend": (OpenVINOBackend, "build"),
        "load": (OpenVINOBackend, "load"),
        "verify": (module, "check_plan"),
        "sidecar": (Artifact, "save"),
        "rename": (os, "replace"),
    }[step]
    monkeypatch.setattr(target, name, after(getattr(target, name)))


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (step, error)
        for step in ("shapes", "backend", "load", "verify", "sidecar", "rename")
        for error in (Stop(), OSError(28, "No space left on device"), RuntimeError("broken"))
        if step != "shapes" or not isinstance(error, OSError)  # no file is written there
    ],
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException, existing: bool
) -> None:
    out = tmp_path / "out"
    if existing:
        before = build(small.onnx_bytes("detector"), "openvino", output=out / "e.xml", verify=False)
    with monkeypatch.context() as m:
        _fail_in(step, m, error)
        with pytest.raises((Stop, BuildError, InputError, RuntimeError)) as caught:
            build(small.onnx_bytes("head"), "openvino", output=out / "e.xml")
    if isinstance(error, OSError):
        assert isinstance(caught.value, DheadError)
        assert "No space left on device" in str(caught.value)
    if existing:
        assert Artifact.load(out / "e.xml") == before
        assert listing(out) == ["e.bin", "e.json", "e.xml"]
    else:
        assert listing(tmp_path) == []


def test_a_failing_progress_callback_ends_the_build(tmp_path: Path) -> None:
    def cancel(phase: str, fraction: float | None) -> None:
        if "convert" in phase or "building" in phase:
            raise Stop

    for backend in ("openvino", "tensorrt_rtx"):
        with pytest.raises(Stop):
            build(small.onnx_bytes("head"), backend, output=tmp_path / "e", progress=cancel)
        assert listing(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("backend", ["openvino", "tensorrt_rtx"])
def test_ctrl_c(tmp_path: Path, backend: str) -> None:
    """A real SIGINT in the middle of a build: KeyboardInterrupt, and no file."""
    (tmp_path / "m.onnx").write_bytes(small.onnx_bytes("head"))
    code = """
import os, signal, sys
from dhead_trt.build import build
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the parent ignores it
sent = []
def progress(phase, fraction):
    if not sent and ("converting" in phase or "building" in phase):
        sent.append(1)
        os.kill(os.getpid(), signal.SIGINT)
try:
    build(sys.argv[1], sys.argv[2], output=sys.argv[3], progress=progress)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx"), backend, str(tmp_path / "out" / "e")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.stdout.strip() == "interrupted", done.stderr
    assert listing(tmp_path) == ["m.onnx"]


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    build(small.onnx_bytes("head", "native"), "tensorrt_rtx", output=tmp_path / "e", progress=lambda *a: told.append(a))
    fractions = [f for phase, f in told if phase == "TensorRT for RTX: building" and f is not None]
    assert len(fractions) > 10
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert 0.5 < fractions[-1] <= 1
    phases = list(dict.fromkeys(phase for phase, _ in told))
    assert phases[:2] == ["reading the model", "surgery to form raw"]


def test_auto_says_why(tmp_path: Path) -> None:
    artifact = build(small.onnx_bytes("head"), output=tmp_path / "e")
    assert f"{artifact.backend} builds and runs here" in artifact.notes[0]
    if artifact.backend == "openvino":
        assert "tensorrt does not run" in artifact.notes[0]
        assert "tensorrt_rtx does not run" in artifact.notes[0]


def test_builds_side_by_side(tmp_path: Path) -> None:
    """Two threads build to the same name: one whole engine remains."""
    models = [small.onnx_bytes(kind) for kind in ("head", "detector")]
    errors = in_threads(lambda i: build(models[i], "openvino", output=tmp_path / "e.xml", verify=False), 2)
    assert all(isinstance(e, DheadError) for e in errors)
    assert not [n for n in listing(tmp_path) if n.startswith(".")]


# -- verification -----------------------------------------------------------------------------------------------------


def test_a_plan_that_computes_something_else_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["dhead_trt.plan_check"]
    real = module.run_reference
    monkeypatch.setattr(
        module, "run_reference", lambda *a: {k: v + 0.01 * np.abs(v).max() for k, v in real(*a).items()}
    )
    with pytest.raises(BuildError, match="does not compute what the graph does at output 'box_0'"):
        build(small.onnx_bytes("head"), "openvino", output=tmp_path / "e")
    assert listing(tmp_path) == []


# -- the real model ---------------------------------------------------------------------------------------------------


def test_doclaynet(tmp_path: Path, doclaynet: Path) -> None:
    """The trained model, exported with a fixed batch of 1, as an engine for 1 to 2 pages."""
    started = time.perf_counter()
    artifact = build(doclaynet, "openvino", output=tmp_path / "e", batch=(1, 1, 2))
    assert artifact.spec is not None
    assert (artifact.spec.num_classes, artifact.spec.bins, artifact.spec.strides) == (11, 16, (8, 16, 32))
    assert artifact.spec.names[:2] == ("Caption", "Footnote")
    assert max(v["relative"] for v in artifact.report["verification"]["outputs"].values()) < 1e-4
    x = random_inputs(artifact.inputs, batch=2)["images"]
    original = onnx.load(doclaynet)
    want = [run_reference(original, {tensor_infos(original)[0].name: x[i : i + 1]})["output0"][0] for i in range(2)]
    with Engine(artifact.plan, output="decoded", threads=2) as engine:
        got = engine.infer(x)
    for i in range(2):
        xywh, scores = want[i][:4].T, want[i][4:].T
        xyxy = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], axis=1)
        np.testing.assert_allclose(got["boxes"][i], xyxy, rtol=0, atol=0.05)
        np.testing.assert_allclose(got["scores"][i], scores, rtol=0, atol=1e-4)
    assert time.perf_counter() - started < 300


def test_signals_are_left_alone_in_threads(tmp_path: Path) -> None:
    """Building in a thread must not touch signal handlers, which only the main thread may."""
    before = signal.getsignal(signal.SIGINT)
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(build(small.onnx_bytes("head"), "tensorrt_rtx", output=tmp_path / "e"))
        except BaseException as e:
            results.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert isinstance(results[0], Artifact), results
    assert signal.getsignal(signal.SIGINT) is before
