"""Bad input to build and Engine: each is a DheadError that says what to do, and nothing half-written stays."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small_models as small
from dhead_trt import ArtifactError, BackendUnavailable, DheadError, GraphError, InputError
from dhead_trt.artifact import Artifact
from dhead_trt.backends import get_backend
from dhead_trt.build import build
from dhead_trt.engine import Engine

BACKENDS = [
    pytest.param(name, marks=[] if get_backend(name).availability().can_build else pytest.mark.skip(f"no {name} here"))
    for name in ("openvino", "tensorrt_rtx")
]


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["raw", "native"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.99999])
def test_truncated_onnx(tmp_path: Path, backend: str, form: str, share: float) -> None:
    data = small.onnx_bytes("head", "native")
    (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(GraphError):
        build(tmp_path / "m.onnx", backend, output=tmp_path / "out" / "e", form=form)
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello, I am not a model\n" * 40, "text file"),
        (b"\x00" * 4096, ""),
        (bytes(range(256)) * 20, ""),
        (b"PK\x03\x04" + b"\x00" * 100, "zip archive"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, ""),
    ],
)
@pytest.mark.parametrize("form", ["raw", "native"])
def test_not_a_model(tmp_path: Path, content: bytes, words: str, form: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    for model in (tmp_path / "m.onnx", content):
        with pytest.raises(GraphError) as e:
            build(model, "openvino", output=tmp_path / "e", form=form)
        assert words in str(e.value)
    assert os.listdir(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("model", [None, 3, [], "no such file.onnx", "."])
def test_no_model(tmp_path: Path, model: Any) -> None:
    with pytest.raises(DheadError) as e:
        build(model, "openvino", output=tmp_path / "e")
    assert isinstance(e.value, (GraphError, InputError))


def test_a_torch_module_that_is_no_head(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no detection head"):
        build(torch.nn.Linear(2, 2), "openvino", output=tmp_path / "e")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(12))
def test_damaged_onnx(tmp_path: Path, backend: str, seed: int) -> None:
    """Bytes of the graph's structure overwritten: it builds, or it is a DheadError; never anything else."""
    data = bytearray(small.onnx_bytes("head", "native"))
    rng = random.Random(seed)
    for _ in range(rng.choice([1, 3, 10])):
        at = rng.randrange(2000) if rng.random() < 0.7 else len(data) - 1 - rng.randrange(3000)
        data[at] = rng.randrange(256)
    try:
        build(bytes(data), backend, output=tmp_path / "e", form=rng.choice(["raw", "native"]), verify=False)
    except DheadError:
        assert os.listdir(tmp_path) == []
    else:
        Artifact.load(next(p for p in tmp_path.iterdir() if p.suffix == ".json"))


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for kind in ("head", "detector"):
        build(small.onnx_bytes(kind), "openvino", output=folder / kind, batch=(1, 2, 3), verify=False)
    return folder


@pytest.fixture
def plan(plans: Path, tmp_path: Path) -> Path:
    """A good engine to spoil."""
    for suffix in (".xml", ".bin", ".json"):
        shutil.copy(plans / f"head{suffix}", tmp_path / f"head{suffix}")
    return tmp_path / "head.xml"


def _flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p.with_suffix(".json").unlink(), "no sidecar"),
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.with_suffix(".bin").unlink(), "missing"),
        (lambda p: os.truncate(p, 100), "truncated"),
        (lambda p: os.truncate(p, 0), "truncated"),
        (lambda p: os.truncate(p.with_suffix(".bin"), 100), "truncated"),
        (lambda p: _flip(p, 0.5), "damaged"),
        (lambda p: _flip(p.with_suffix(".bin"), 0.0), "damaged"),
        (lambda p: _flip(p.with_suffix(".bin"), 0.999), "damaged"),
        (lambda p: p.write_bytes(p.read_bytes() + b" "), "damaged"),
        (lambda p: p.with_suffix(".json").write_text("{"), "not JSON"),
    ],
)
def test_spoiled_engines(plan: Path, spoil: Any, words: str) -> None:
    Engine(plan, threads=1).close()
    spoil(plan)
    with pytest.raises(ArtifactError, match=words):
        Engine(plan, threads=1)


def test_sidecar_of_another_plan(plans: Path, plan: Path) -> None:
    shutil.copy(plans / "detector.json", plan.with_suffix(".json"))
    with pytest.raises(ArtifactError, match=r"belongs to another plan: received head\.xml, expected detector\.xml"):
        Engine(plan)
    shutil.copy(plans / "detector.xml", plan)
    shutil.copy(plans / "head.json", plan.with_suffix(".json"))
    with pytest.raises(ArtifactError, match=r"head\.xml"):
        Engine(plan)


def test_a_plan_that_only_its_backend_can_judge(plan: Path) -> None:
    """Plan and sidecar agree, but the plan is not what the backend reads."""
    import dataclasses

    from dhead_trt.artifact import FileRecord

    artifact = Artifact.load(plan)
    plan.write_text("<net>not an IR</net>")
    files = (FileRecord.of(plan), *artifact.files[1:])
    dataclasses.replace(artifact, files=files).save()
    with pytest.raises(ArtifactError, match="OpenVINO cannot read this plan"):
        Engine(plan)


def test_a_backend_of_some_other_day(plan: Path) -> None:
    import dataclasses

    dataclasses.replace(Artifact.load(plan), backend="tensorflow").save()
    with pytest.raises(InputError, match="no such backend"):
        Engine(plan)
    dataclasses.replace(Artifact.load(plan), backend="tensorrt").save()
    with pytest.raises((BackendUnavailable, ArtifactError)):
        Engine(plan)


@pytest.mark.parametrize("path", ["nowhere.xml", "."])
def test_no_engine(tmp_path: Path, path: str) -> None:
    with pytest.raises(ArtifactError):
        Engine(tmp_path / path)


# -- tensors ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head(plans: Path) -> Any:
    with Engine(plans / "head.xml", threads=1) as e:
        yield e


@pytest.fixture(scope="module")
def detector(plans: Path) -> Any:
    with Engine(plans / "detector.xml", threads=1) as e:
        yield e


GPU = type("GpuArray", (), {"__cuda_array_interface__": {}, "shape": (1, 3, 64, 96), "device": "cuda:0"})()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (small.images(1)[0], r"received \[3, 64, 96\], expected \[1\.\.3, 3, 64, 96\].*x\[None\]"),
        (small.images(1).transpose(0, 2, 3, 1), "channels first"),
        (small.images(4), r"batch=\(1, …, 4\)"),
        (small.images(0), r"received \[0, 3, 64, 96\], expected \[[^ ]+, 3, 64, 96\]\.$"),
        (small.images(1, size=(64, 64)), r"received \[1, 3, 64, 64\]"),
        (np.zeros((1, 3, 0, 0), np.float32), "wrong shape"),
        (np.float32(1), "wrong shape"),
        (np.zeros((), np.float32), "wrong shape"),
        ((small.images(1) * 255).astype(np.uint8), "received uint8, expected float32.*/ 255"),
        (small.images(1).astype(np.float64), r"received float64, expected float32.*astype\(np\.float32\)"),
        (small.images(1).astype(np.float16), "received float16, expected float32"),
        (small.images(1).astype(">f4"), "received >f4, expected float32"),
        (small.images(1).astype(np.complex64), "complex64"),
        (np.array([["a"]], object), "object"),
        (torch.zeros(1, 3, 64, 96, dtype=torch.bfloat16), "images"),
        (torch.zeros(1, 3, 64, 96, requires_grad=True), "detach"),
        (torch.zeros(1, 3, 64, 96, device="meta"), "images"),
        (GPU, r"GPU.*x\.cpu\(\)"),
        (None, "not an array.*NoneType"),
        ("image.png", "not an array.*str"),
        (5, "not an array"),
        ([], "Wrong number of inputs"),
        ([small.images(1), small.images(1)], "Wrong number of inputs.*images"),
        ([[1.0, 2.0]], "not an array.*list"),
        ({}, r"missing \['images'\]"),
        ({"image": small.images(1)}, r"unknown \['image'\], missing \['images'\]"),
        ({"images": small.images(1), "more": 1}, r"unknown \['more'\]"),
        ({1: small.images(1)}, r"unknown \['1'\]"),
    ],
)
def test_wrong_images(detector: Engine, value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        detector.infer(value)


def test_wrong_features(head: Engine) -> None:
    x = small.features(2)
    for value, words in (
        (x[0], "One array for an engine of several inputs"),
        (x[:2], "Wrong number of inputs: received 2"),
        (x[::-1], r"'p3' has the wrong shape"),
        ([x[0][:1], *x[1:]], r"differ in batch size: received \{'p3': 1, 'p4': 2, 'p5': 2\}"),
        ({"p3": x[0], "p4": x[1]}, r"missing \['p5'\]"),
    ):
        with pytest.raises(InputError, match=words):
            head.infer(value)
    assert head.infer(x)["num_dets"].shape == (2, 1), "a refused call spoils the engine"


@pytest.mark.parametrize(
    "options",
    [
        {"conf": -0.1},
        {"conf": float("nan")},
        {"conf": "high"},
        {"iou": -1},
        {"max_det": 0},
        {"max_candidates": 0},
        {"max_det": 1.5},
        {"classes": [small.CLASSES]},
        {"classes": [-1]},
        {"classes": ["cat"]},
        {"stream": 7},
    ],
)
def test_wrong_options(head: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options)) if "classes" not in options else "class"):
        head.infer(small.features(1), **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(head: Engine, value: float) -> None:
    """Refused; with check=False they spoil what they touch and nothing more, and never come out as a detection."""
    x = small.features(2)
    x[0][1, 3, 2, 2] = value
    with pytest.raises(InputError, match=r"'p3' holds NaN or infinity: received 1 of \d+ values"):
        head.infer(x)
    got, clean = head.infer(x, conf=0.3, check=False), head.infer(small.features(2), conf=0.3)
    for name in ("num_dets", "det_boxes", "det_scores", "det_classes"):
        np.testing.assert_array_equal(got[name][0], clean[name][0], f"the other image's {name}")
    assert np.isfinite(got["det_boxes"]).all()
    assert np.isfinite(got["det_scores"]).all()
    nothing = head.infer([np.full_like(a, np.nan) for a in x], conf=0.3, check=False)
    assert not nothing["num_dets"].any()


def test_sizes_the_model_cannot_take(tmp_path: Path) -> None:
    """A dynamic graph whose own nodes need matching sizes: OpenVINO's complaint becomes an InputError."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("MaxPool", ["images"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["half", "", "scales"], ["back"], mode="nearest"),
        helper.make_node("Add", ["images", "back"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 2.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    artifact = build(model, "openvino", output=tmp_path / "e", form="native", verify=False)
    with Engine(artifact, output="raw", threads=1) as e:
        assert e.infer(small.images(1, size=(8, 6)))["y"].shape == (1, 3, 8, 6)
        with pytest.raises(InputError, match=r"cannot run on inputs of these shapes: received images \[1, 3, 7, 9\]"):
            e.infer(small.images(1, size=(7, 9)))
        assert e.infer(small.images(1, size=(4, 4)))["y"].shape == (1, 3, 4, 4)
