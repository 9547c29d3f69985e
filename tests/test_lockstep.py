"""What fits of weights stand on: a graph run in steps, and the images and places they look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import small_models as small
from dhead_trt.calibration import calibrate, calibration_batches
from dhead_trt.errors import GraphError, InputError
from dhead_trt.precision import to_int8
from dhead_trt.precision.fit_data import fit_data, importance
from dhead_trt.precision.layers import Inspection, inspect
from dhead_trt.precision.lockstep import Lockstep
from dhead_trt.precision.raw_run import MapRunner, spec_of
from dhead_trt.shapes import tensor_infos
from int8_models import WIDTH, Graph, constant, noise, weights, yolo_like
from onnx_tools import set_initializer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def typed(model: Any) -> Inspection:
    return inspect(model)


def stops_of(found: Inspection) -> list[str]:
    return [layer.output for layer in found.layers]


def whole(model: Any, feed: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors of a graph from one session over all of it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {o.name for o in probe.graph.output}
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in names if n not in known)
    return MapRunner(probe, threads=1).run(feed)


# -- in steps --


def test_steps_make_what_one_session_makes() -> None:
    model = yolo_like()
    for graph in (model, to_int8(model, calibrate(model, noise(4))).model):
        found, feeds = typed(graph if graph is model else model), noise(3, 1)
        steps = Lockstep(found.model if graph is model else graph, stops_of(found), feeds, threads=1)
        stops = []
        for stop in steps:
            stops.append(stop)
            made = steps.peek(stop)
            for feed, value in zip(feeds, made, strict=True):
                np.testing.assert_allclose(value, whole(graph, feed, [stop])[stop], rtol=1e-4, atol=1e-5)
        assert stops == stops_of(found)
        assert stops == ["c0", "c1", "c2", "c3", "c4", "c5"]


def test_a_constant_set_changes_what_follows_alone() -> None:
    model, feeds = yolo_like(), noise(2)
    found = typed(model)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    set_initializer(changed, "w2", weights(7, WIDTH, 3 * WIDTH, 1))
    steps = Lockstep(found.model, stops_of(found), feeds, threads=1)
    for stop in steps:
        if stop == "c2":
            before = steps.constant("w2")
            steps.set("w2", weights(7, WIDTH, 3 * WIDTH, 1))
            assert not np.array_equal(steps.constant("w2"), before)
        graph = model if stop in ("c0", "c1") else changed
        for feed, value in zip(feeds, steps.peek(stop), strict=True):
            np.testing.assert_allclose(value, whole(graph, feed, [stop])[stop], rtol=1e-4, atol=1e-5)
    assert any(not np.array_equal(steps.constant(n), constant(model, n)) for n in ("w2",))
    np.testing.assert_array_equal(constant(found.model, "w2"), before)  # the graph itself stays


def test_only_what_is_still_read_is_kept() -> None:
    found = typed(yolo_like())
    steps = Lockstep(found.model, stops_of(found), noise(1), threads=1)
    live = {stop: set(steps.live[0]) for stop in steps}
    assert live == {
        "c0": {"x"},
        "c1": {"sa", "sb"},
        "c2": {"cat"},
        "c3": {"attended", "m2"},
        "c4": {"cat2"},
        "c5": {"m4"},
    }
    assert steps.live == [{}]


def test_images_that_do_not_fit_are_said() -> None:
    found = typed(yolo_like())
    with pytest.raises(InputError, match="does not fit the graph"):
        list(Lockstep(found.model, stops_of(found), [{"x": np.zeros((1, 4, 16, 16), np.float32)}]))


# -- what is looked at --


def fcn(size: int = 512) -> Any:
    """A network of stride 1 of a fixed size."""
    g = Graph(0)
    return g.model(g.conv(g.silu(g.conv("x", "0", 3, 4), "0"), "1", 4, 2, kernel=1), 2, size=size)


def data_of(model: Any, batches: Any, images: int = 9, crop: int | None = 32) -> Any:
    return fit_data(inspect(model), batches, images, crop, np.random.default_rng(0))


def test_large_images_are_cut_and_small_ones_are_not() -> None:
    image = np.arange(3 * 512 * 544, dtype=np.float32).reshape(1, 3, 512, 544)
    for _ in range(5):
        (feed,) = data_of(fcn(), [{"x": image}])
        part = feed.inputs["x"]
        assert part.shape == (1, 3, 256, 256)
        top, left = divmod(int(part[0, 0, 0, 0]), 544)
        assert top % 32 == left % 32 == 0
        np.testing.assert_array_equal(part, image[:, :, top : top + 256, left : left + 256])
    assert data_of(fcn(), [{"x": image}], crop=None)[0].inputs["x"].shape == image.shape
    assert data_of(fcn(), [{"x": image[:, :, :480]}])[0].inputs["x"].shape == (1, 3, 480, 544)


def position_encoding() -> Any:
    g = Graph(0)
    x = g.node("Add", [g.conv("x", "0", 3, 4), g.constant("places", np.ones((1, 4, 512, 512), np.float32))], "placed")
    return g.model(g.conv(x, "1", 4, 2, kernel=1), 2, size=512)


def rows_joined() -> Any:
    g = Graph(0)
    x = g.node("Concat", [g.conv("x", "0", 3, 4)] * 2, "stacked", axis=2)
    return g.model(g.conv(x, "1", 4, 2, kernel=1), 2, size=512)


@pytest.mark.parametrize("make", [position_encoding, rows_joined])
def test_what_knows_its_size_is_not_cut(make: Any) -> None:
    (feed,) = data_of(make(), [{"x": np.zeros((3, 3, 512, 512), np.float32)}], images=2)
    assert feed.inputs["x"].shape == (3, 3, 512, 512)  # the whole batch runs,
    assert feed.rows == 2  # and two images of it count


def test_batches_are_taken_image_by_image() -> None:
    batches = [{"x": np.full((2, 3, 16, 16), i, np.float32)} for i in range(4)]
    feeds = data_of(fcn(16), batches, images=5)
    assert [(float(f.inputs["x"].max()), f.inputs["x"].shape[0], f.rows) for f in feeds] == [
        (float(i // 2), 1, 1) for i in range(5)
    ]


@pytest.mark.parametrize("make", [fcn, rows_joined])
def test_rows_that_fill_up_a_batch_are_left_out(make: Any) -> None:
    model = fcn(16) if make is fcn else make()
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    arrays = np.random.default_rng(0).random((5, 3, side, side)).astype(np.float32)
    batches = calibration_batches({"x": arrays}, tensor_infos(model), None)
    assert [len(b["x"]) for b in batches] == [4, 4]
    feeds = data_of(model, batches)
    assert sum(f.rows for f in feeds) == 5
    seen = np.concatenate([f.inputs["x"][: f.rows] for f in feeds])
    np.testing.assert_array_equal(seen, arrays)


def test_importance_is_the_surest_class_of_all_levels_around() -> None:
    spec = spec_of(onnx.load_from_string(small.onnx_bytes("detector")), None)
    maps = {f"cls_{i}": np.full((2, 5, *s), -9.0, np.float32) for i, s in enumerate([(16, 24), (8, 12), (4, 6)])}
    maps["cls_0"][0, 3, 4, 5] = 2.0
    maps["cls_2"][1, 0, 3, 5] = 0.0  # covers 4 × 4 cells of the finest map
    found = importance(maps, spec, 2)
    assert found.shape == (2, 16, 24)
    near = np.zeros((16, 24), bool)
    near[2:7, 3:8] = True
    np.testing.assert_allclose(found[0], np.where(near, 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(9.0))), rtol=1e-5)
    assert (found[1, 10:, 18:] == 0.5).all()
    assert (found[1] == 0.5).sum() == 36
    maps["cls_1"][0, 0, 0, 0] = np.nan
    with pytest.raises(GraphError, match="does not give numbers"):
        importance(maps, spec, 1)
