"""Surgery on real Ultralytics exports: every version, opset, simplified or not, static or dynamic; and the refusals."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from dhead_trt import reference
from dhead_trt.errors import GraphError
from dhead_trt.spec import HeadSpec
from dhead_trt.surgery import convert
from onnx_tools import dims, metadata, run, xyxy
from ultralytics_models import JOBS, detect_names, refused_names, ultralytics_model

REFUSALS = {  # by the metadata; and by the graph alone
    "refuse-26": (r"no DFL.*YOLO26", r"no DFL.*YOLO26"),
    "refuse-26-end2end": (r"end-to-end.*TopK|selection", r"end-to-end.*TopK|selection"),
    "refuse-v10-end2end": (r"end-to-end.*TopK|selection", r"end-to-end.*TopK|selection"),
    "refuse-obb": (r"oriented boxes.*'obb'", r"oriented-box.*(Cos|Sin)"),
    "refuse-11-obb": (r"oriented boxes.*'obb'", r"oriented-box.*(Cos|Sin)"),
    "refuse-pose": (r"pose model.*'pose'", r"further branch means pose"),
    "refuse-seg": (r"segmentation model.*'segment'", r"prototype output.*segmentation"),
    "refuse-cls": (r"classification model.*'classify'", r"looks like a classifier"),
}


@pytest.mark.parametrize("name", detect_names())
def test_the_model_is_what_its_name_says(name: str) -> None:
    model, args = onnx.load(str(ultralytics_model(name)), load_external_data=False), JOBS[name]["args"]
    assert {o.version for o in model.opset_import if not o.domain} == {args["opset"]}
    (image,) = model.graph.input
    symbols = [isinstance(d, str) for d in dims(image)]
    free = bool(args.get("dynamic"))
    assert symbols == [free, False, *[free and not JOBS[name].get("only_batch")] * 2]
    assert metadata(model)["version"] == JOBS[name]["version"]
    ops = [n.op_type for n in model.graph.node]
    assert (TensorProto.FLOAT16 in {t.data_type for t in model.graph.initializer}) == bool(args.get("half"))
    if not args["simplify"]:
        assert "Constant" in ops
    elif not args.get("dynamic"):
        assert not {"Constant", "Shape", "Identity"} & set(ops)


@pytest.mark.parametrize("name", detect_names())
def test_raw_cut(name: str) -> None:
    path, job = ultralytics_model(name), JOBS[name]
    original = onnx.load(str(path))
    result = convert(path, "raw")

    spec, classes = result.spec, job.get("nc", 80)
    strides = {"v8-p2": (4, 8, 16, 32), "v8-p6": (8, 16, 32, 64)}.get(name.removesuffix("-dynamic"), (8, 16, 32))
    assert (spec.num_classes, spec.strides, spec.bins) == (classes, strides, job.get("reg_max", 16))
    assert (spec.distance_unit, spec.objectness) == ("stride", False)
    assert spec.names == tuple(str(i) for i in range(classes)) or len(set(spec.names)) == classes
    free = bool(job["args"].get("dynamic")) and not job.get("only_batch")
    size = tuple(job["imgsz"]) if isinstance(job["imgsz"], list) else (job["imgsz"],) * 2
    assert spec.image_size == (None if free else size)
    assert tuple(o.name for o in result.model.graph.output) == spec.input_names
    assert result.source_form == "native"
    half = bool(job["args"].get("half"))
    assert result.report["max_box_error_px"] < (2.0 if half else 5e-3)
    assert result.report["max_score_error"] < (5e-3 if half else 5e-6)
    assert result.report["box_format"] == "xywh"
    _assert_metadata_survive(original, result.model)
    _assert_same_function(original, result.model, spec, job, free, half)


def _assert_metadata_survive(original: onnx.ModelProto, cut: onnx.ModelProto) -> None:
    before, after = metadata(original), metadata(cut)
    assert {k: after[k] for k in before} == before
    assert set(after) - set(before) == {"dhead_spec", "dhead_form"}
    assert {(o.domain, o.version) for o in cut.opset_import} == {(o.domain, o.version) for o in original.opset_import}
    assert (cut.ir_version, cut.producer_name) == (original.ir_version, original.producer_name)
    weights = {t.name: t.SerializeToString() for t in original.graph.initializer}
    assert cut.graph.initializer
    for tensor in cut.graph.initializer:
        assert tensor.SerializeToString() == weights[tensor.name]
    onnx.checker.check_model(cut)


def _assert_same_function(original: onnx.ModelProto, cut: onnx.ModelProto, spec, job, free: bool, half: bool) -> None:
    """Not by the verification of the package: another input, another size and batch, its own conversion of boxes."""
    size = tuple(job["imgsz"]) if isinstance(job["imgsz"], list) else (job["imgsz"],) * 2
    batch = 3 if job["args"].get("dynamic") else job["args"].get("batch", 1)
    height, width = (192, 128) if free else size
    image = np.random.default_rng(11).random((batch, 3, height, width))
    (declared,) = (i.type.tensor_type.elem_type for i in original.graph.input)
    feeds = {"images": image.astype(np.float16 if declared == onnx.TensorProto.FLOAT16 else np.float32)}
    rows, maps = run(original, feeds)["output0"], run(cut, feeds)
    shapes = spec.level_shapes((height, width))
    for i, shape in enumerate(shapes):
        assert maps[f"box_{i}"].shape == (batch, 4 * spec.bins, *shape)
        assert maps[f"cls_{i}"].shape == (batch, spec.num_classes, *shape)
    for value in cut.graph.output:
        fixed = [d for d in dims(value) if isinstance(d, int)]
        assert len(fixed) == (1 if free else 3 if job["args"].get("dynamic") else 4), (value.name, dims(value))
    boxes, scores = reference.decode(maps, spec)
    error = np.abs(boxes - xyxy(rows)).max(), np.abs(scores - rows[:, 4:].transpose(0, 2, 1)).max()
    assert error[0] < (2.0 if half else 0.05)
    assert error[1] < (5e-3 if half else 1e-4)
    assert np.ptp(rows[:, 4:]) > 0.5, "the test model's scores are too flat to prove anything"
    assert np.ptp(boxes[..., 2] - boxes[..., 0]) > 4 * spec.strides[0]


@pytest.mark.parametrize("name", refused_names())
@pytest.mark.parametrize("stripped", [False, True], ids=["with metadata", "without"])
def test_refusal(name: str, stripped: bool) -> None:
    model = onnx.load(str(ultralytics_model(name)))
    if stripped:
        del model.metadata_props[:]
    with pytest.raises(GraphError) as caught:
        convert(model)
    text = str(caught.value)
    assert re.search(REFUSALS[name][stripped], text), text
    assert "xport" in text  # says what to export instead
    assert caught.value.received is not None


def test_reg_max_1_with_a_spec() -> None:
    """YOLO26's raw export is refused without, and converted with, the word of the caller that it has no DFL."""
    result = convert(ultralytics_model("refuse-26"), spec=HeadSpec(80, (8, 16, 32), 1))
    assert (result.spec.bins, result.spec.image_size, len(result.spec.names)) == (1, (64, 64), 80)
    assert result.report["max_box_error_px"] < 5e-3


@pytest.mark.parametrize("name", ["v8-p6-dynamic", "v8-dynamic-op17"])
def test_dynamic_without_metadata(name: str) -> None:
    """No stride tells at which size a dynamic graph runs."""
    model = onnx.load(str(ultralytics_model(name)))
    expected = convert(model).spec
    del model.metadata_props[:]
    assert convert(model).spec == expected.replace(names=())


def test_every_refusal_is_listed() -> None:
    assert sorted(REFUSALS) == sorted(refused_names())


@pytest.mark.parametrize("name", ["v8-dynamic-op17", "v11-half-dynamic", "v8-8.3.0-op12"])
def test_forms(name: str) -> None:
    original = onnx.load(str(ultralytics_model(name)))
    for form, op in (("decoded", "DHeadDecode"), ("detections", "DHeadDetect")):
        result = convert(original, form, conf=0.1, iou=0.5, max_det=50, max_candidates=777)
        (node,) = [n for n in result.model.graph.node if n.domain == "dhead"]
        assert node.op_type == op
        assert list(node.input) == list(result.spec.input_names)
        assert result.report["max_box_error_px"] is not None
        back = convert(result.model, "raw")
        assert back.source_form == form
        assert back.spec == result.spec
        assert all(n.domain != "dhead" for n in back.model.graph.node)
