"""Our own heads: random specs through torch → export → surgery → oracle; fp16 graphs; whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from dhead_trt import reference
from dhead_trt.errors import GraphError
from dhead_trt.surgery import convert, find_tail, write_metadata
from onnx_tools import dims, run

torch = pytest.importorskip("torch", reason="the heads need torch")

from dhead_trt.export import export_onnx  # noqa: E402
from dhead_trt.heads import CoupledHead, StableDecoupledHead, YOLOv8DecoupledHead  # noqa: E402


def lively(head: Any, seed: int) -> Any:
    """Random weights of the last layers, so that the outputs are not flat."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        if parameter.ndim == 4 and parameter.shape[-1] == 1:
            parameter.data.normal_(0, 0.3, generator=generator)
    return head


@st.composite
def heads(draw: st.DrawFn) -> Any:
    classes = draw(st.integers(1, 20))
    strides = tuple(sorted(draw(st.sets(st.sampled_from([4, 8, 16, 32]), min_size=1, max_size=3))))
    channels = [32] * len(strides)
    kind = draw(st.sampled_from(["decoupled", "stable", "coupled"]))
    names = [f"n{i}" for i in range(classes)] if draw(st.booleans()) else []
    if kind == "stable":
        head = StableDecoupledHead(
            32, classes, num_layers=1, use_gn=draw(st.booleans()), stride=strides[0], names=names
        )
    elif kind == "coupled":
        head = CoupledHead(classes, channels, strides, bins=draw(st.sampled_from([1, 2, 8])), num_layers=1, names=names)
    else:
        unit = draw(st.sampled_from(["stride", "pixel"]))
        reg_max = draw(st.sampled_from([1, 2, 7, 15, 16, 31]))
        head = YOLOv8DecoupledHead(classes, channels, strides, reg_max, distance_unit=unit, names=names)
    return lively(head, draw(st.integers(0, 1000)))


def check(path: Path, head: Any, *, height: int, width: int, batch: int) -> None:
    """The raw cut of `path`, decoded by the oracle, equals the native graph and the torch head."""
    result = convert(path, "raw")
    assert result.spec.replace(image_size=None) == head.spec.replace(image_size=None)
    assert result.report["max_box_error_px"] < 5e-3
    features = {
        f"p{3 + i}": np.random.default_rng(i).standard_normal((batch, c, height // s, width // s)).astype(np.float32)
        for i, (c, s) in enumerate(zip(head.in_channels, head.spec.strides, strict=True))
    }
    native, maps = run(onnx.load(str(path)), features), run(result.model, features)
    boxes, scores = reference.decode(maps, result.spec)
    assert np.abs(boxes - native["boxes"]).max() < 0.01
    assert np.abs(scores - native["scores"]).max() < 1e-5
    with torch.no_grad():
        expected = head.eval().raw([torch.from_numpy(f) for f in features.values()])
    for name in result.spec.input_names:
        assert np.abs(maps[name] - expected[name].numpy()).max() < 2e-3


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(head=heads(), dynamic_batch=st.booleans(), dynamic_size=st.booleans(), opset=st.sampled_from([17, 20]))
def test_random_heads(
    tmp_path_factory: pytest.TempPathFactory, head: Any, dynamic_batch: bool, dynamic_size: bool, opset: int
) -> None:
    path = tmp_path_factory.mktemp("own") / "head.onnx"
    options = {"dynamic_batch": dynamic_batch, "dynamic_size": dynamic_size, "opset": opset, "verify": False}
    export_onnx(head, path, image_size=(64, 96), **options)
    size = {"height": 128, "width": 32} if dynamic_size else {"height": 64, "width": 96}
    check(path, head, **size, batch=2 if dynamic_batch else 1)


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head with one bin and objectness."""
    path = tmp_path_factory.mktemp("stable") / "head.onnx"
    export_onnx(lively(StableDecoupledHead(32, 3, num_layers=1), 0), path, image_size=64, verify=False)
    return path


def test_one_bin_needs_the_spec(stable: Path) -> None:
    model = onnx.load(str(stable))
    tail = find_tail(model)
    assert (tail.spec.bins, tail.spec.objectness) == (1, True)
    assert list(tail.maps) == ["box_0", "cls_0", "obj_0"]
    del model.metadata_props[:]
    with pytest.raises(GraphError, match="no DFL"):
        find_tail(model)
    assert find_tail(model, spec=tail.spec).maps == tail.maps
    with pytest.raises(GraphError, match="contradict each other about strides"):
        find_tail(model, spec=tail.spec.replace(strides=(16,)))


def test_image_size_against_feature_maps(stable: Path) -> None:
    model = onnx.load(str(stable))
    spec = find_tail(model).spec
    assert spec.image_size == (64, 64)
    write_metadata(model, dhead_spec=spec.replace(image_size=(128, 64)).to_json(), imgsz="[128, 64]")
    with pytest.raises(GraphError, match=r"map sizes.*\(8, 8\).*\(16, 8\)"):
        find_tail(model)


def test_altered_projection(tmp_path: Path) -> None:
    """The DFL of our own heads is a product and a sum."""
    export_onnx(lively(YOLOv8DecoupledHead(4, (16, 16, 16)), 1), tmp_path / "h.onnx", image_size=64, verify=False)
    model = onnx.load(str(tmp_path / "h.onnx"))
    changed = 0
    for tensor in [
        *model.graph.initializer,
        *(a.t for n in model.graph.node for a in n.attribute if n.op_type == "Constant"),
    ]:
        values = numpy_helper.to_array(tensor)
        if values.size == 17 and np.array_equal(values.reshape(-1), np.arange(17)):
            tensor.CopyFrom(numpy_helper.from_array(values * 1.5, tensor.name))
            changed += 1
    assert changed
    with pytest.raises(GraphError, match="not the DFL projection"):
        find_tail(model)


def test_objectness_in_the_node(stable: Path) -> None:
    model = convert(stable, "detections", dynamic_thresholds=True).model
    (node,) = [n for n in model.graph.node if n.domain == "dhead"]
    assert list(node.input) == ["box_0", "cls_0", "obj_0", "thresholds"]
    assert {a.name: a.i for a in node.attribute if a.name in ("objectness", "bins")} == {"objectness": 1, "bins": 1}
    assert [dims(o) for o in model.graph.output] == [["batch", 1], ["batch", 300, 4], ["batch", 300], ["batch", 300]]


def test_raw_exports_are_raw(tmp_path: Path) -> None:
    head = lively(YOLOv8DecoupledHead(4, (16, 16, 16)), 1)
    export_onnx(head, tmp_path / "raw.onnx", image_size=64, form="raw", verify=False)
    tail = find_tail(tmp_path / "raw.onnx")
    assert tail.kind == "raw"
    assert tail.spec == head.spec.replace(image_size=(64, 64))
    decoded = convert(tmp_path / "raw.onnx", "decoded")
    assert [dims(o) for o in decoded.model.graph.output] == [["batch", 84, 4], ["batch", 84, 4]]


@pytest.mark.parametrize("io_dtype", ["float32", "float16"])
def test_half_precision_graphs(tmp_path: Path, io_dtype: str) -> None:
    precision = pytest.importorskip("dhead_trt.precision", reason="the fp16 pass is not there yet")
    head = lively(YOLOv8DecoupledHead(4, (16, 16, 16)), 2)
    export_onnx(head, tmp_path / "native.onnx", image_size=64, verify=False)
    half = precision.to_fp16(onnx.load(str(tmp_path / "native.onnx")), io_dtype=io_dtype)
    result = convert(half, "raw")
    assert result.spec == head.spec.replace(image_size=(64, 64))
    assert {o.type.tensor_type.elem_type for o in result.model.graph.output} <= {1, 10}
    assert result.report["max_box_error_px"] < 1.0
