"""What is not an ONNX detector, and says so: files, bytes, graphs of other kinds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dhead_trt.errors import DheadError, GraphError
from dhead_trt.surgery import convert, find_tail, load_model
from onnx_tools import refused, run, small_detector


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "detector.onnx"
    onnx.save(small_detector(), str(path))
    return path


def test_path_bytes_and_proto_are_equal(detector: Path) -> None:
    found = [
        find_tail(source).spec for source in (detector, str(detector), detector.read_bytes(), onnx.load(str(detector)))
    ]
    assert found.count(found[0]) == 4


def test_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", r"cannot be read.*none\.onnx \(No such file")
    refused(tmp_path, "is a directory")
    refused(42, "an object of type int.*expected a path, bytes or an onnx.ModelProto")


def test_garbage(tmp_path: Path) -> None:
    def written(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    refused(written("empty.onnx", b""), "empty.*0 bytes")
    refused(written("text.onnx", b"This is my model.\nIt is very good.\n"), "looks like a text file")
    refused(written("page.onnx", b"<!DOCTYPE html><html><body>404</body></html>"), "looks like a text file")
    refused(written("noise.onnx", np.random.default_rng(0).bytes(4096)), "damaged, truncated, or of another format")
    with zipfile.ZipFile(tmp_path / "yolov8n.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"...")
    refused(tmp_path / "yolov8n.pt", r"zip archive \(a PyTorch \.pt checkpoint\?\).*Export it first")
    refused(b"", "empty: the given bytes")


def test_truncated(detector: Path, tmp_path: Path) -> None:
    whole = detector.read_bytes()
    path = tmp_path / "cut.onnx"
    for share in (0.001, 0.1, 0.5, 0.9, 0.99, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(GraphError):
            load_model(path)


def test_every_truncation_is_a_dhead_error(detector: Path) -> None:
    whole = detector.read_bytes()
    for end in range(1, len(whole), max(1, len(whole) // 150)):
        with pytest.raises(DheadError):
            convert(whole[:end])


def test_external_data(detector: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(str(detector)), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert convert(path).spec == convert(detector).spec
    refused(path.read_bytes(), "external files that were not loaded.*Give the path")
    (tmp_path / "weights.bin").write_bytes(b"short")
    refused(path, r"external data of .*model\.onnx cannot be loaded")
    (tmp_path / "weights.bin").unlink()
    refused(path, r"external data of .*model\.onnx cannot be loaded.*Copy the whole folder")


def test_missing_external_data_of_more_than_2_gib(tmp_path: Path) -> None:
    model = small_detector()
    tensor = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[1 << 30], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "huge.bin"), ("offset", "0"), ("length", str(1 << 32))):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    (tmp_path / "huge.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "huge.onnx", r"external data of .*huge\.onnx cannot be loaded")
    refused(model, "external files that were not loaded.*'huge'")


def test_incomplete_protobufs() -> None:
    model = small_detector()
    refused(onnx.ModelProto(), "holds no ONNX graph.*0 nodes")
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.opset_import[:]
    refused(bare, "0 operator sets")
    torn = onnx.ModelProto()
    torn.CopyFrom(model)
    del torn.graph.node[3]
    refused(torn, "ONNX checker rejects")


def test_local_functions_are_inlined() -> None:
    model = small_detector()
    inner = next(n for n in model.graph.node if n.name == "probability")
    function = helper.make_function(
        "local", "Score", ["x"], ["y"], [helper.make_node("Sigmoid", ["x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    inner.op_type, inner.domain = "Score", "local"
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.ir_version = 8
    result = convert(model)
    assert result.spec == convert(small_detector()).spec
    assert not result.model.functions
    assert inner.op_type == "Score", "the model given must not change"


def test_nodes_out_of_order() -> None:
    """As onnxconverter-common writes float16 graphs: valid but for the order."""
    model = small_detector()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[1:] + nodes[:1])
    before = model.SerializeToString()
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    for form in ("native", "raw"):
        result = convert(model, form)
        onnx.checker.check_model(result.model)
        assert result.spec == find_tail(small_detector()).spec
    assert model.SerializeToString() == before
    circle = small_detector()
    circle.graph.node[0].input[0] = "a0"
    refused(circle, "ONNX checker rejects")


# -- graphs that are no detect head -----------------------------------------------------------------------------------


def graph(nodes: list[onnx.NodeProto], outputs: dict[str, list[int] | None], **weights: np.ndarray) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outputs.items()],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_other_networks() -> None:
    weight = np.ones((4, 3, 3, 3), np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3])
    refused(graph([conv], {"c": [1, 4, 30, 30]}, w=weight), "other outputs than a detect head")
    pooled = [conv, helper.make_node("GlobalAveragePool", ["c"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    refused(graph(pooled, {"y": [1, 4]}, w=weight), r"GlobalAveragePool.*classifier")
    relu = [conv, helper.make_node("Relu", ["c"], ["y"])]
    refused(graph(relu, {"y": [1, 4, 30, 30]}, w=weight), "operator Relu")
    refused(graph([helper.make_node("Sigmoid", ["x"], ["y"])], {"y": [1, 3, 32, 32]}), "without a convolution")
    custom = [conv, helper.make_node("Magic", ["c"], ["y"], domain="com.example")]
    model = graph(custom, {"y": [1, 4, 30, 30]}, w=weight)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    refused(model, "com.example::Magic")
    resized = [conv, helper.make_node("Sigmoid", ["c"], ["s"]), helper.make_node("Softmax", ["s"], ["t"]),
               helper.make_node("Reshape", ["t", "shape"], ["y"])]  # fmt: skip
    refused(
        graph(resized, {"y": [1, 40, 90]}, w=weight, shape=np.array([1, 40, 90])), "one box and one class map per level"
    )


def test_a_constant_output() -> None:
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.zeros((1, 5, 3), np.float32)))
    refused(graph([node], {"y": [1, 5, 3]}), "No convolution|no detector")


def test_nms_in_the_graph() -> None:
    model = small_detector(classes=2)
    nodes = [
        helper.make_node("Split", ["output0", "sizes"], ["bx", "sc"], axis=1),
        helper.make_node("Transpose", ["bx"], ["bt"], perm=[0, 2, 1]),
        helper.make_node("NonMaxSuppression", ["bt", "sc"], ["kept"], center_point_box=1),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 2]), "sizes"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("kept", TensorProto.INT64, ["n", 3]))
    refused(model, r"holds NMS.*NonMaxSuppression.*nms=None")
    plugin = small_detector(classes=2)
    plugin.graph.node.append(helper.make_node("EfficientNMS_TRT", ["bt", "sc"], ["n", "b"], domain="TRT"))
    plugin.graph.node.extend(nodes[:2])
    plugin.graph.node.append(plugin.graph.node[-3])
    del plugin.graph.node[-4]
    plugin.graph.initializer.append(numpy_helper.from_array(np.array([4, 2]), "sizes"))
    plugin.opset_import.append(helper.make_opsetid("TRT", 1))
    del plugin.graph.output[:]
    plugin.graph.output.append(helper.make_tensor_value_info("n", TensorProto.INT32, [1, 1]))
    plugin.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 100, 4]))
    refused(plugin, r"holds NMS.*TRT::EfficientNMS_TRT")


def test_control_flow_in_the_tail() -> None:
    model = small_detector()
    branch = helper.make_graph(
        [helper.make_node("Identity", ["output0"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)],
    )
    model.graph.node.append(helper.make_node("If", ["yes"], ["final"], then_branch=branch, else_branch=branch))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    anchors = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("final", TensorProto.FLOAT, [1, 68, anchors]))
    image = {"images": np.zeros((1, 3, 64, 96), np.float32)}
    assert run(model, image)["final"].shape == (1, 68, anchors)
    refused(model, r"control flow.*operator If")


def test_several_outputs() -> None:
    model = small_detector()
    model.graph.output.append(helper.make_tensor_value_info("a0", TensorProto.FLOAT, [1, 64, 8, 12]))
    refused(model, "other outputs than a detect head")
    model.graph.output.append(helper.make_tensor_value_info("a1", TensorProto.FLOAT, [1, 64, 4, 6]))
    refused(model, "other outputs than a detect head.*output0.*a0.*a1")


def test_operators_that_cannot_run() -> None:
    """A custom operator in the backbone: the tail is fine, but nothing can be verified."""
    model = small_detector()
    node = next(n for n in model.graph.node if n.name == "feature0")
    node.op_type, node.domain = "MagicConv", "com.example"
    del node.attribute[:]
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    refused(model, "ONNX Runtime, which checks every cut, cannot load this graph.*MagicConv")


# -- without the optional packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnx_graphsurgeon"])
def test_a_missing_package_is_named(package: str, detector: Path) -> None:
    code = (
        f"import sys\nsys.modules[{package!r}] = None\n"
        "from dhead_trt.surgery import convert\nfrom dhead_trt.errors import BackendUnavailable\n"
        f"try:\n    convert({str(detector)!r})\nexcept BackendUnavailable as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"package {package.replace('_', '-')} is needed" in done.stdout
    assert 'pip install "dhead-trt[onnx]"' in done.stdout


def test_importing_surgery_imports_no_onnx() -> None:
    code = "import sys, dhead_trt.surgery; print(sorted(m for m in sys.modules if m.startswith(('onnx', 'torch'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_printed(detector: Path, capfd: pytest.CaptureFixture[str]) -> None:
    convert(detector, "detections")
    assert capfd.readouterr() == ("", "")
