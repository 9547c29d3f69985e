"""Every wrong cut must be seen: each test makes one thing wrong on purpose, in the graph or in what was found."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dhead_trt import reference
from dhead_trt.errors import GraphError
from dhead_trt.spec import HeadSpec
from dhead_trt.surgery import Tail, convert, find_tail, verify_cut, write_metadata
from onnx_tools import refused, run, set_initializer, small_detector, xyxy


def raw_of(model: onnx.ModelProto) -> onnx.ModelProto:
    return convert(model, "raw", verify=False).model


def test_the_detector_of_these_tests_is_right() -> None:
    result = convert(small_detector())
    assert result.spec == HeadSpec(64, (8, 16), 16, names=tuple(f"class {i}" for i in range(64)), image_size=(64, 96))
    assert dict(result.report["maps"]) == {"box_0": "a0", "cls_0": "b0", "box_1": "a1", "cls_1": "b1"}
    assert 0 < result.report["max_box_error_px"] < 1e-3
    assert [c["what"] for c in result.report["checks"]] == [
        "tail on random maps (σ = 1)",
        "tail on random maps (σ = 4)",
        "whole graph on random input",
    ]


# -- what find_tail found is wrong: verify_cut must fail --------------------------------------------------------------


def wrong_tails(tail: Tail) -> dict[str, Tail]:
    maps, spec = dict(tail.maps), tail.spec
    swapped = maps | {"box_0": maps["cls_0"], "cls_0": maps["box_0"]}

    def with_spec(**changes: Any) -> Tail:
        return dataclasses.replace(tail, spec=spec.replace(**changes))

    return {
        "box and class maps swapped": dataclasses.replace(tail, maps=swapped),
        "stride of one level": with_spec(strides=(8, 32)),
        "strides exchanged": with_spec(strides=(16, 8)),
        "unit": with_spec(distance_unit="pixel"),
        "bins": with_spec(bins=8),
        "classes": with_spec(num_classes=63, names=()),
        "box format": dataclasses.replace(tail, box_format="xyxy"),
        "objectness": with_spec(objectness=True),
    }


@pytest.mark.parametrize("weights", [1.0, 1e-6], ids=["lively weights", "flat weights"])
@pytest.mark.parametrize(
    "what", wrong_tails(Tail(HeadSpec(1, (8, 16), 16), "raw", dict.fromkeys(("box_0", "cls_0"), ""), ()))
)
def test_a_wrong_find_is_seen(what: str, weights: float) -> None:
    """64 = 4·16 channels in both branches, so that no shape gives the swap away; flat weights must not hide it."""
    model = small_detector(weights=weights)
    tail, cut = find_tail(model), raw_of(model)
    verify_cut(model, cut, tail)
    with pytest.raises(GraphError, match="does not compute what the original graph computes"):
        verify_cut(model, cut, wrong_tails(tail)[what])


def test_swapped_levels_are_seen() -> None:
    """Two levels of equal size, so that only the values differ."""
    model = small_detector(strides=(8, 8), size=(64, 64))
    tail = find_tail(model)
    maps = dict(tail.maps)
    for kind in ("box", "cls"):
        swapped = maps | {f"{kind}_0": maps[f"{kind}_1"], f"{kind}_1": maps[f"{kind}_0"]}
        with pytest.raises(GraphError, match="does not compute"):
            verify_cut(model, raw_of(model), dataclasses.replace(tail, maps=swapped))


def test_a_wrong_cut_is_seen() -> None:
    """The tail is understood, but the cut graph's outputs are exchanged: only the run of the whole can show it."""
    model = small_detector(strides=(8, 8), size=(64, 64))
    tail, cut = find_tail(model), raw_of(model)
    for value in (*cut.graph.output, *cut.graph.node):
        names = {"cls_0": "cls_1", "cls_1": "cls_0"}
        if isinstance(value, onnx.NodeProto):
            value.output[:] = [names.get(n, n) for n in value.output]
    with pytest.raises(GraphError, match="whole graph on random input"):
        verify_cut(model, cut, tail)


def test_changed_weights_are_seen() -> None:
    model = small_detector()
    tail, cut = find_tail(model), raw_of(model)
    weight = next(t for t in cut.graph.initializer if t.name == "b1.w")
    set_initializer(cut, "b1.w", numpy_helper.to_array(weight) * 1.01)
    with pytest.raises(GraphError, match=r"whole graph on random input.*class \d+, anchor"):
        verify_cut(model, cut, tail)


# -- the graph itself is unusual or contradictory: find_tail must refuse ----------------------------------------------


def test_altered_projection() -> None:
    weight = np.arange(16.0)
    weight[5] = 5.5
    refused(small_detector(projection=weight), r"not the DFL projection.*received Conv 'dfl_out'.*expected 0, 1, …, 15")
    refused(small_detector(projection=np.arange(16.0) + 1), "not the DFL projection")


def test_bins_by_the_projection_and_by_the_channels() -> None:
    """The tail is rewired to 8 bins of twice as many sides: reshaped, it still runs."""
    model = small_detector(bins=16)
    set_initializer(model, "dfl_shape", np.array([1, 4, 16, -1]))
    assert convert(model).spec.bins == 16
    tail = find_tail(small_detector(bins=16))
    assert tail.sources["bins"] == "channels of the box maps / 4; DFL weight 0..15"


def test_wrong_stride_constant() -> None:
    refused(small_detector(tail_strides=(8, 32)), "largest stride.*32 from the tail, measured, 16 from the metadata")
    unmarked = small_detector(tail_strides=(8, 32))
    del unmarked.metadata_props[:]
    refused(unmarked, r"stride 32.*\(4, 6\).*\(2, 3\)")
    refused(small_detector(tail_strides=(8.5, 16)), r"off the grid of stride|whole stride")


def test_wrong_centres_and_order() -> None:
    refused(small_detector(offset=0.0), "do not lie on the grid")
    refused(small_detector(offset=1.0), "do not lie on the grid")
    refused(small_detector(column_major=True), "do not lie on the grid")
    refused(small_detector(strides=(16, 8)), "ascending order")


def test_wrong_box_arithmetic() -> None:
    model = small_detector()
    set_initializer(model, "two", np.float32(3.0))
    refused(model, "do not lie on the grid|neither xywh nor xyxy")
    model = small_detector()
    next(n for n in model.graph.node if n.name == "low").input[1] = "rb"
    next(n for n in model.graph.node if n.name == "high").input[1] = "lt"
    refused(model, r"does not compute what the original graph computes \(tail on random maps")


def test_class_levels_in_another_order() -> None:
    refused(small_detector(class_order=(1, 0)), "do not form levels|is no box, class or objectness map")


@pytest.mark.parametrize(
    ("key", "value", "pattern"),
    [
        ("stride", "32", r"largest stride.*16 from the tail, measured, 32 from the metadata stride"),
        ("stride", "'many'", r"metadata entry stride cannot be read"),
        ("imgsz", "[64, 64]", r"image size.*\(64, 96\) from the graph's input, \(64, 64\) from the metadata imgsz"),
        ("imgsz", "big", r"metadata entry imgsz cannot be read"),
        ("names", "{0: 'a', 1: 'b'}", r"number of classes.*64 from the class maps, 2 from the metadata names"),
        ("names", "{0: 'a', 2: 'b'}", r"metadata entry names cannot be read"),
        ("names", "__import__('os').getcwd()", r"metadata entry names cannot be read"),
        ("task", "segment", r"segmentation model"),
        ("dhead_spec", "{}", r"metadata entry dhead_spec is damaged"),
    ],
)
def test_contradicting_metadata(key: str, value: str, pattern: str) -> None:
    model = small_detector()
    write_metadata(model, **{key: value})
    refused(model, pattern)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"num_classes": 60}, "num_classes.*64 from the tail, measured, 60 from dhead_spec"),
        ({"strides": (8, 32)}, r"strides.*\(8, 16\) from the tail, measured, \(8, 32\)"),
        ({"bins": 17}, "bins.*16 from the tail, measured, 17"),
        ({"distance_unit": "pixel"}, "distance_unit.*stride from the tail, measured, pixel"),
        ({"objectness": True}, "objectness.*False from the tail, measured, True"),
        ({"image_size": (32, 32)}, "image size"),
        ({"names": tuple("abcdefgh" * 8)}, "class names"),
    ],
)
def test_contradicting_spec(change: dict[str, Any], pattern: str) -> None:
    spec = HeadSpec(64, (8, 16), 16).replace(**change)
    refused(small_detector(), pattern, spec=spec)
    model = small_detector()
    write_metadata(model, dhead_spec=spec.to_json())
    refused(model, pattern)


def test_the_given_spec_against_the_written_one() -> None:
    model = convert(small_detector(), "raw").model
    refused(model, "strides.*the given spec.*the metadata dhead_spec", spec=HeadSpec(64, (8, 32), 16))


# -- harmless variations must pass ------------------------------------------------------------------------------------


def test_names_are_sorted_by_number() -> None:
    names = {i: f"n{i}" for i in sorted(range(12), key=str)}
    assert list(names)[:4] == [0, 1, 10, 11]
    assert convert(small_detector(classes=12, names=names)).spec.names == tuple(f"n{i}" for i in range(12))
    model = small_detector(classes=12)
    write_metadata(model, names=str({str(k): v for k, v in names.items()}))
    assert convert(model).spec.names == tuple(f"n{i}" for i in range(12))


def test_a_bias_as_its_own_node_belongs_to_the_map() -> None:
    model = small_detector(bias_apart=True)
    result = convert(model)
    assert dict(result.report["maps"])["box_0"] == "a0"
    image = np.random.default_rng(0).random((1, 3, 64, 96)).astype(np.float32)
    reference = run(small_detector(), {"images": image})["output0"]
    assert np.abs(run(model, {"images": image})["output0"] - reference).max() < 1e-2
    assert result.report["max_box_error_px"] < 1e-3


def test_a_quantized_map_is_the_dequantized_one() -> None:
    """Q/DQ behind the convolution belongs to the map: the values that the tail reads are those after it."""
    model = small_detector()
    place = next(i for i, n in enumerate(model.graph.node) if n.name == "b0") + 1
    for reader in model.graph.node:
        reader.input[:] = ["b0.dq" if n == "b0" else n for n in reader.input]
    scales = ["b0.scale", "b0.zero"]
    model.graph.node.insert(place, helper.make_node("QuantizeLinear", ["b0", *scales], ["b0.q"]))
    model.graph.node.insert(place + 1, helper.make_node("DequantizeLinear", ["b0.q", *scales], ["b0.dq"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.25), "b0.scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "b0.zero"))
    result = convert(model)
    assert dict(result.report["maps"])["cls_0"] == "b0.dq"
    image = np.random.default_rng(0).random((1, 3, 64, 96)).astype(np.float32)
    values = run(result.model, {"images": image})["cls_0"] / 0.25
    assert np.array_equal(values, np.round(values))


def test_weights_that_are_inputs() -> None:
    """IR version 3 lists every initializer among the inputs."""
    model = small_detector()
    model.ir_version = 3
    for t in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    onnx.checker.check_model(model)
    cut = convert(model, "decoded").model
    onnx.checker.check_model(cut)
    assert cut.ir_version == 3
    assert {i.name for i in cut.graph.input} == {"images"} | {t.name for t in cut.graph.initializer}


@pytest.mark.parametrize("classes", [1, 2, 60, 64, 68])
@pytest.mark.parametrize("bins", [2, 16, 17, 32])
def test_shapes_that_could_be_mistaken(classes: int, bins: int) -> None:
    spec = convert(small_detector(bins=bins, classes=classes)).spec
    assert (spec.bins, spec.num_classes) == (bins, classes)


def test_as_many_rows_as_anchors() -> None:
    """4 + classes = anchors = 24: no axis of the output can be told from the other by its length."""
    result = convert(small_detector(classes=20, strides=(16,), size=(64, 96)))
    assert (result.spec.num_classes, result.spec.strides) == (20, (16,))


# -- any single mutation: refused, or converted rightly ---------------------------------------------------------------


def mutate(model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """Changes one thing at random: an edge, an operator, an attribute, a constant, a node less, inputs exchanged."""
    nodes, kind = model.graph.node, int(rng.integers(7))
    node = nodes[int(rng.integers(len(nodes)))]
    names = [name for n in nodes for name in (*n.input, *n.output)]
    if kind == 0:
        nodes.remove(node)
        return f"without {node.name}"
    if kind == 1:
        node.input[int(rng.integers(len(node.input)))] = names[int(rng.integers(len(names)))]
        return f"{node.name} reads {list(node.input)}"
    if kind == 2:
        node.op_type = str(rng.choice(["Relu", "Add", "Sub", "Mul", "Div", "Softmax", "Sigmoid", "Neg", "Identity"]))
        return f"{node.name} is a {node.op_type}"
    if kind == 3 and node.attribute:
        attribute = node.attribute[int(rng.integers(len(node.attribute)))]
        if attribute.ints:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = int(rng.integers(-2, 5))
        else:
            attribute.i = int(rng.integers(-3, 5))
        return f"{node.name} has another {attribute.name}"
    if kind == 4 and len(node.input) > 1:
        node.input[0], node.input[1] = node.input[1], node.input[0]
        return f"{node.name} has its inputs exchanged"
    tail = [t for t in model.graph.initializer if not t.name.endswith((".w", ".b"))]
    tensor = tail[int(rng.integers(len(tail)))]
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[int(rng.integers(values.size))] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return f"{tensor.name} has another value"


@pytest.mark.parametrize("seed", range(8))
def test_any_mutation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = {"images": rng.random((1, 3, 32, 32)).astype(np.float32)}
    refusals = 0
    for _ in range(25):
        model = small_detector(classes=3, strides=(8, 16), size=(32, 32))
        what = mutate(model, rng)
        try:
            result = convert(model)
        except GraphError:
            refusals += 1
            continue
        rows = run(model, image)["output0"]
        boxes, scores = reference.decode(run(result.model, image), result.spec)
        assert np.abs(boxes - xyxy(rows)).max() < 0.02, what
        assert np.abs(scores - rows[:, 4:].transpose(0, 2, 1)).max() < 1e-4, what
    assert refusals >= 15
