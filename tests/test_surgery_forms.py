"""The four forms of a graph, their dhead nodes, and that nothing of the original is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dhead_trt import reference
from dhead_trt.errors import GraphError, InputError
from dhead_trt.spec import HeadSpec
from dhead_trt.surgery import convert, describe, describe_text, find_tail, write_metadata
from onnx_tools import dims, metadata, run, small_detector, xyxy

HEAD_ATTRIBUTES = {
    "num_classes": 64, "bins": 16, "strides": [8, 16], "pixel_distance": 0, "objectness": 0,
    "plugin_version": b"1", "plugin_namespace": b"",
}  # fmt: skip


def node_of(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = [n for n in model.graph.node if n.domain == "dhead"]
    return node


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def test_doclaynet(doclaynet: Path) -> None:
    original = onnx.load(str(doclaynet))
    result = convert(doclaynet, "raw")
    assert result.spec == HeadSpec(
        11,
        (8, 16, 32),
        16,
        names=("Caption", "Footnote", "Formula", "List-item", "Page-footer", "Page-header", "Picture",
               "Section-header", "Table", "Text", "Title"),
        image_size=(1024, 1024),
    )  # fmt: skip
    assert [dims(o) for o in result.model.graph.output][:2] == [[1, 64, 128, 128], [1, 11, 128, 128]]
    assert len(result.model.graph.node) == len(original.graph.node) - 25
    assert result.report["max_box_error_px"] < 5e-3
    assert result.report["max_score_error"] < 5e-6
    image = np.random.default_rng(5).random((1, 3, 1024, 1024)).astype(np.float32)
    rows = run(original, {"images": image})["output0"]
    boxes, scores = reference.decode(run(result.model, {"images": image}), result.spec)
    assert np.abs(boxes - xyxy(rows)).max() < 0.05
    assert np.abs(scores - rows[:, 4:].transpose(0, 2, 1)).max() < 1e-4


def test_native_only_gains_metadata() -> None:
    model = small_detector()
    before = model.SerializeToString()
    result = convert(model, "native")
    assert model.SerializeToString() == before
    assert set(metadata(result.model)) - set(metadata(model)) == {"dhead_spec", "dhead_form"}
    assert metadata(result.model)["dhead_form"] == "native"
    assert HeadSpec.from_json(metadata(result.model)["dhead_spec"]) == result.spec
    assert result.model.graph == model.graph
    assert convert(result.model, "raw").spec == result.spec


@pytest.mark.parametrize("form", ["raw", "decoded", "detections"])
def test_the_given_model_is_not_changed(form: str) -> None:
    model = small_detector()
    before = model.SerializeToString()
    convert(model, form)
    assert model.SerializeToString() == before


def test_decoded_node() -> None:
    result = convert(small_detector(), "decoded")
    node = node_of(result.model)
    assert (node.op_type, list(node.input)) == ("DHeadDecode", ["box_0", "cls_0", "box_1", "cls_1"])
    assert attributes(node) == HEAD_ATTRIBUTES
    assert {o.name: (o.type.tensor_type.elem_type, dims(o)) for o in result.model.graph.output} == {
        "boxes": (TensorProto.FLOAT, [1, 120, 4]),
        "scores": (TensorProto.FLOAT, [1, 120, 64]),
    }
    assert ("dhead", 1) in {(o.domain, o.version) for o in result.model.opset_import}
    onnx.checker.check_model(result.model)


def test_detections_node() -> None:
    options = {"conf": 0.125, "iou": 0.5, "max_det": 10, "max_candidates": 99}
    result = convert(small_detector(), "detections", **options, class_agnostic=True, multi_label=True)
    node = node_of(result.model)
    assert (node.op_type, list(node.input)) == ("DHeadDetect", ["box_0", "cls_0", "box_1", "cls_1"])
    assert attributes(node) == HEAD_ATTRIBUTES | options | {"class_agnostic": 1, "multi_label": 1}
    assert {o.name: (o.type.tensor_type.elem_type, dims(o)) for o in result.model.graph.output} == {
        "num_dets": (TensorProto.INT32, [1, 1]),
        "det_boxes": (TensorProto.FLOAT, [1, 10, 4]),
        "det_scores": (TensorProto.FLOAT, [1, 10]),
        "det_classes": (TensorProto.INT32, [1, 10]),
    }
    assert [i.name for i in result.model.graph.input] == ["images"]


def test_dynamic_thresholds() -> None:
    result = convert(small_detector(), "detections", dynamic_thresholds=True)
    node = node_of(result.model)
    assert list(node.input) == ["box_0", "cls_0", "box_1", "cls_1", "thresholds"]
    (thresholds,) = [i for i in result.model.graph.input if i.name == "thresholds"]
    assert (thresholds.type.tensor_type.elem_type, dims(thresholds)) == (TensorProto.FLOAT, [2])
    assert attributes(node)["conf"] == 0.25
    back = convert(result.model, "raw")
    assert [i.name for i in back.model.graph.input] == ["images"]


def test_every_form_from_every_form() -> None:
    """Except back to native; the raw graphs all compute the same, bit for bit."""
    original = small_detector()
    image = {"images": np.random.default_rng(1).random((1, 3, 64, 96)).astype(np.float32)}
    expected = run(convert(original, "raw").model, image)
    for source in ("raw", "decoded", "detections"):
        made = convert(original, source).model
        for form in ("raw", "decoded", "detections"):
            result = convert(made, form)
            assert (result.source_form, result.form) == (source, form)
            assert metadata(result.model)["dhead_form"] == form
            assert metadata(result.model)["names"] == metadata(original)["names"]
            raw = run(convert(result.model, "raw").model, image)
            assert raw.keys() == expected.keys()
            assert all(np.array_equal(raw[k], expected[k]) for k in expected)
        with pytest.raises(GraphError, match="native form cannot be made again.*form " + source):
            convert(made, "native")


def test_nothing_is_lost() -> None:
    model = small_detector()
    model.doc_string, model.graph.doc_string = "about the model", "about the graph"
    model.producer_version, model.domain, model.model_version = "7", "org.example", 9
    model.graph.node[0].doc_string = "about a node"
    model.graph.node[0].metadata_props.add(key="origin", value="line 3")
    note = model.graph.quantization_annotation.add(tensor_name="feature0.w")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model.graph.quantization_annotation.add(tensor_name="pixels")
    write_metadata(model, mine="kept – ümlaut")
    cut = convert(model, "detections").model
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "ir_version"):
        assert getattr(cut, field) == getattr(model, field)
    assert cut.graph.doc_string == "about the graph"
    assert metadata(cut)["mine"] == "kept – ümlaut"
    before = {n.name: n for n in model.graph.node}
    kept = [n for n in cut.graph.node if n.domain != "dhead"]
    assert {n.name for n in kept} == {f"{kind}{i}" for kind in ("feature", "a", "b") for i in (0, 1)}
    assert kept[0].doc_string == "about a node"
    assert [(p.key, p.value) for p in kept[0].metadata_props] == [("origin", "line 3")]
    for node in kept:
        assert attributes(node) == attributes(before[node.name])
    assert [q.tensor_name for q in cut.graph.quantization_annotation] == ["feature0.w"]
    weights = {t.name: t for t in model.graph.initializer}
    assert {t.name for t in cut.graph.initializer} == {n for n in weights if n.endswith((".w", ".b"))}
    assert all(t == weights[t.name] for t in cut.graph.initializer)


def test_names_that_are_taken() -> None:
    """The graph already has tensors called box_0 and boxes, inside."""
    model = small_detector()
    renames = {"feature0": "box_0", "feature1": "boxes"}
    for node in model.graph.node:
        node.input[:] = [renames.get(n, n) for n in node.input]
        node.output[:] = [renames.get(n, n) for n in node.output]
    for form in ("raw", "decoded"):
        result = convert(model, form)
        onnx.checker.check_model(result.model)
        assert result.report["max_box_error_px"] < 1e-3
        assert convert(result.model, "raw").spec == result.spec
    assert [o.name for o in convert(model, "decoded").model.graph.output] == ["boxes", "scores"]


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"form": "cooked"}, "form is not known.*'cooked'"),
        ({"conf": 1.5}, "conf is out of range"),
        ({"iou": -0.1}, "iou is out of range"),
        ({"conf": float("nan")}, "conf is out of range"),
        ({"max_det": 0}, "max_det is out of range"),
        ({"max_candidates": 2.5}, "max_candidates is out of range"),
        ({"form": "raw", "dynamic_thresholds": True}, "needs form 'detections'"),
    ],
)
def test_bad_options(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        convert(small_detector(), **options)


def test_a_foreign_dhead_node() -> None:
    model = convert(small_detector(), "decoded").model
    del node_of(model).input[-1]
    with pytest.raises(GraphError, match=r"not one that dhead_trt writes.*3 inputs"):
        find_tail(model)
    model = convert(small_detector(), "decoded").model
    del model.metadata_props[:]
    with pytest.raises(GraphError, match="not the metadata dhead_spec"):
        find_tail(model)


def test_raw_maps_that_do_not_fit_their_spec() -> None:
    model = convert(small_detector(), "raw").model
    spec = HeadSpec.from_json(metadata(model)["dhead_spec"])
    write_metadata(model, dhead_spec=spec.replace(num_classes=3, names=()).to_json())
    with pytest.raises(GraphError, match="channels of cls_0"):
        find_tail(model)


def test_without_verification() -> None:
    result = convert(small_detector(), "raw", verify=False)
    assert result.report["verified"] is False
    assert result.report["checks"] == []
    assert convert(small_detector(), "raw").model == result.model


def test_the_report_is_json() -> None:
    report = convert(small_detector(), "raw").report
    assert json.loads(json.dumps(report)) == report
    assert report["verified"] is True
    assert all(c["max_box_error_px"] <= c["box_tolerance_px"] <= 0.05 for c in report["checks"])


def test_describe() -> None:
    found = describe(small_detector())
    assert json.loads(json.dumps(found)) == found
    assert found["form"] == "native"
    assert found["spec"]["strides"] == [8, 16]
    assert found["inputs"] == [{"name": "images", "dtype": "float32", "shape": [1, 3, 64, 96]}]
    assert found["outputs"] == [{"name": "output0", "shape": [1, 68, 120]}]
    assert found["maps"] == {"box_0": "a0", "cls_0": "b0", "box_1": "a1", "cls_1": "b1"}
    assert found["tail_operators"]["Softmax"] == 1
    assert "metadata stride" in found["sources"]["strides"]
    text = describe_text(convert(small_detector(), "detections").model)
    assert "form           detections" in text
    assert "image size     64 × 96" in text
