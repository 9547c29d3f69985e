"""Batches and sizes of a build: what is asked for, and what a graph allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import small_models as small
from dhead_trt import BuildError, InputError
from dhead_trt.build import build
from dhead_trt.engine import Engine
from dhead_trt.shapes import batch_range, run_reference, set_shapes, size_range


@pytest.mark.parametrize("batch", [1, 3, (1, 2, 4), (2, 2, 3)])
@pytest.mark.parametrize("dynamic", [True, False])
def test_batches(tmp_path: Path, batch: Any, dynamic: bool) -> None:
    """Dynamic and fixed exports give static and dynamic engines; every image of a batch is really processed."""
    data = small.onnx_bytes("detector", "native", dynamic)
    artifact = build(data, "openvino", output=tmp_path / "e.xml", batch=batch)
    low, _, high = batch_range(batch)
    x = small.images(high)
    want = small.torch_maps(small.detector(), x)
    with Engine(artifact.plan, output="raw", threads=2) as engine:
        for n in range(low, high + 1):
            got = engine.infer(x[:n])
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value[:n], rtol=0, atol=1e-3)
                assert n == 1 or np.abs(got[name][0] - got[name][1]).max() > 0.01, "two images gave the same"
        for n in (low - 1, high + 1):
            with pytest.raises(InputError, match="wrong shape"):
                engine.infer(small.images(n))


def test_sizes(tmp_path: Path) -> None:
    data = small.onnx_bytes("detector", "native", True, True)
    cases: list[tuple[Any, list[tuple[int, int]], list[tuple[int, int]]]] = [
        (None, [(64, 96), (32, 32), (128, 64)], []),
        (96, [(96, 96)], [(64, 96)]),
        ((64, 128), [(64, 128)], [(128, 64)]),
        (((32, 32), (64, 64), (96, 128)), [(32, 32), (96, 128), (64, 32)], [(128, 128)]),
    ]
    for image_size, good, bad in cases:
        artifact = build(data, "openvino", output=tmp_path / "e.xml", batch=(1, 1, 2), image_size=image_size)
        with Engine(artifact.plan, output="raw", threads=2) as engine:
            for size in good:
                x = small.images(2, size=size)
                got = engine.infer(x)
                for name, value in small.torch_maps(small.detector(), x).items():
                    np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-3)
            for size in bad:
                with pytest.raises(InputError, match="wrong shape"):
                    engine.infer(small.images(1, size=size))


def test_sizes_of_features(tmp_path: Path) -> None:
    data = small.onnx_bytes("head", "native", True, True)
    artifact = build(data, "openvino", output=tmp_path / "e.xml", image_size=((32, 32), (64, 64), (96, 128)))
    with Engine(artifact.plan, output="raw", threads=2) as engine:
        for size in ((32, 32), (64, 96), (96, 128)):
            x = small.features(1, size=size)
            got = engine.infer(x)
            for name, value in small.torch_maps(small.head(), x).items():
                np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-3)
        with pytest.raises(InputError, match=r"p3.*expected \[1, 16, 4\.\.12, 4\.\.16\]"):
            engine.infer(small.features(1, size=(128, 128)))


def test_weights_of_something_else_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"somebody's weights")
    with pytest.raises(InputError, match=r"model\.bin is there already"):
        build(small.head(), "openvino", output=tmp_path / "model", image_size=small.SIZE)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"somebody's weights"]


@pytest.mark.parametrize("backend", ["openvino", "tensorrt_rtx"])
def test_sizes_of_a_head_of_one_level(tmp_path: Path, backend: str) -> None:
    """Its input is a feature map, not an image: sizes are of the network's input, 8 times as large."""
    from dhead_trt.heads import StableDecoupledHead

    head = StableDecoupledHead(in_channels=8, num_classes=2, num_layers=1).eval()
    artifact = build(head, backend, output=tmp_path / "a", image_size=(64, 96))
    assert artifact.inputs[0].shape == (1, 8, 8, 12)
    assert artifact.spec is not None
    assert artifact.spec.image_size in (None, (64, 96))
    artifact = build(head, backend, output=tmp_path / "b", image_size=(64, 128, 256))
    assert artifact.inputs[0].profile == ((1, 8, 8, 8), (1, 8, 16, 16), (1, 8, 32, 32))


def test_a_fixed_size_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"another image size.*128x128 wanted, expected 64x96"):
        build(small.onnx_bytes("detector"), "openvino", output=tmp_path / "e", image_size=128)
    with pytest.raises(BuildError, match="another image size at input 'p3'"):
        build(small.onnx_bytes("head"), "openvino", output=tmp_path / "e", image_size=128)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [0, -1, (1, 2), (2, 1, 3), (0, 1, 1), (1, 2.5, 3), "1", None, 1.0])
def test_malformed_batches(batch: Any) -> None:
    with pytest.raises(InputError, match="batch"):
        batch_range(batch)


@pytest.mark.parametrize(
    "size", [0, (640,), (640, 0), (1, 2, 3, 4), 640.0, "640", ((2, 2), (1, 1), (3, 3)), (64.5, 64)]
)
def test_malformed_sizes(size: Any) -> None:
    with pytest.raises(InputError, match="image size"):
        size_range(size)


def _batch_bound(kind: str) -> onnx.ModelProto:
    """A graph exported with a fixed batch of 1, whose first node reshapes in the way `kind` says."""
    nodes = {
        # the leading 1 is the batch: 0 may stand for it
        "leading": ([helper.make_node("Reshape", ["images", "s"], ["r"])], [1, 4, 4, 8]),
        # the batch is swallowed by another axis: more images come out mixed up
        "mixing": ([helper.make_node("Reshape", ["images", "s"], ["r"])], [2, -1, 4, 8]),
    }[kind]
    tail = [
        helper.make_node("ReduceSum", ["r", "axes"], ["m"], keepdims=1),
        helper.make_node("Add", ["images", "m"], ["y"]),
    ]
    inits = [
        helper.make_tensor("s", TensorProto.INT64, [4], nodes[1]),
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
    ]
    graph = helper.make_graph(
        nodes[0] + tail,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 4, 4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        inits,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_fixed_batch_is_changed_only_where_that_is_proven() -> None:
    model = _batch_bound("leading")
    before = model.SerializeToString()
    changed, inputs = set_shapes(model, None, batch=(1, 2, 4))
    assert model.SerializeToString() == before
    assert inputs[0].shape == (-1, 4, 4, 8)
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 8)).astype(np.float32)
    want = np.concatenate([run_reference(model, {"images": x[i : i + 1]})["y"] for i in range(3)])
    np.testing.assert_allclose(run_reference(changed, {"images": x})["y"], want, rtol=1e-5)
    with pytest.raises(BuildError, match=r"batch.*dynamic batch|dynamic batch"):
        set_shapes(_batch_bound("mixing"), None, batch=(1, 2, 4))


def test_inputs_that_are_no_images_are_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BuildError, match=r"x \[1, 8\]"):
        set_shapes(model, None, batch=1)
