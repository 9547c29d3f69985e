"""fp16: the graph stays valid, runs, builds, and is close enough; what fp16 cannot hold stays in float32."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser

from dhead_trt import GraphError, InputError
from dhead_trt.export import export_onnx
from dhead_trt.heads import CoupledHead, DecodedHead, StableDecoupledHead, StablePyramidHead, YOLOv8DecoupledHead
from dhead_trt.precision import convert_fp16, to_fp16
from test_heads import trained_norms

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

HEADS = {
    "decoupled": lambda: YOLOv8DecoupledHead(5, (32, 48, 64)),
    "pixel": lambda: YOLOv8DecoupledHead(5, (32, 48), (8, 16), 15, distance_unit="pixel"),
    "stable": lambda: StableDecoupledHead(32, 5, stride=16),
    "stable_gn": lambda: StablePyramidHead((32, 64), 3, (8, 32), use_gn=True),
    "coupled": lambda: CoupledHead(5, (16, 24, 32)),
}


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return found | {t.name: t.data_type for t in graph.initializer}


def ops_in(model: onnx.ModelProto, kind: int) -> Counter[str]:
    """Operators whose first output is of a type, counted; without Cast."""
    types = types_of(model)
    return Counter(n.op_type for n in model.graph.node if n.op_type != "Cast" and types.get(n.output[0]) == kind)


def casts(model: onnx.ModelProto) -> int:
    return sum(n.op_type == "Cast" for n in model.graph.node)


def valid(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return model


def exported(name: str, folder: Path, **options: Any) -> tuple[Any, onnx.ModelProto]:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    head = trained_norms(HEADS[name]())
    path = export_onnx(head, folder / "model.onnx", image_size=(96, 128), **options).path
    return head, onnx.load(path)


def features(head: Any, size: tuple[int, int] = (96, 128), batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    levels = zip(head.in_channels, head.spec.level_shapes(size), strict=True)
    return {f"p{3 + i}": rng.standard_normal((batch, c, *hw), np.float32) for i, (c, hw) in enumerate(levels)}


# -- the heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dynamic_size", [False, True])
def test_heads_with_their_decode(name: str, dynamic_size: bool, tmp_path: Path) -> None:
    head, model = exported(name, tmp_path, dynamic_size=dynamic_size)
    before = model.SerializeToString()
    conversion = convert_fp16(model)
    assert model.SerializeToString() == before
    half = valid(conversion.model)
    assert not conversion.kept
    layers = Counter(n.op_type for n in model.graph.node)["Conv"]
    maps = len(head.spec.input_names)
    assert ops_in(half, HALF)["Conv"] == layers - maps
    assert ops_in(half, FLOAT)["Conv"] == maps
    tail = {"Softmax", "ReduceSum", "Sub", "Concat", "Range"}
    assert tail.isdisjoint(ops_in(half, HALF)), "the decode stays in float32"
    norms = ops_in(model, FLOAT)["InstanceNormalization"]
    if not norms:  # one cast per input, one before each last layer (or one for several that share their input)
        assert conversion.casts <= head.spec.num_levels + maps
    weights = {t.name: t for t in half.graph.initializer}
    half_bytes = sum(len(t.raw_data) for t in weights.values() if t.data_type == HALF)
    assert half_bytes > 0.7 * sum(len(t.raw_data) for t in weights.values())
    metadata = {p.key: p.value for p in half.metadata_props}
    assert metadata == {**{p.key: p.value for p in model.metadata_props}, "dhead_precision": "fp16"}

    feeds = features(head)
    with torch.no_grad():
        boxes, scores = (t.numpy() for t in DecodedHead(head)([torch.from_numpy(x) for x in feeds.values()]))
    got = run(half, feeds)
    assert got["boxes"].dtype == np.float32
    assert np.abs(got["boxes"] - boxes).max() < 0.25
    assert np.abs(got["scores"] - scores).max() < 5e-3
    assert np.abs(got["boxes"] - boxes).max() > 0, "nothing was converted"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("io_dtype", ["float32", "float16"])
def test_raw_maps(name: str, io_dtype: str, tmp_path: Path) -> None:
    head, model = exported(name, tmp_path, form="raw")
    half = valid(to_fp16(model, io_dtype=io_dtype))
    kind = FLOAT if io_dtype == "float32" else HALF
    assert {v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)} == {kind}
    assert [o.name for o in half.graph.output] == list(head.spec.input_names)
    if io_dtype == "float16" and name != "stable_gn":
        assert casts(half) == 0
    feeds = features(head)
    want = run(model, feeds)
    got = run(half, {n: x.astype(io_dtype) for n, x in feeds.items()})
    for map_name, w in want.items():
        assert got[map_name].dtype == io_dtype
        assert np.abs(got[map_name].astype(np.float64) - w).max() < 5e-3 * max(1, np.abs(w).max())


def test_io_of_a_native_graph(tmp_path: Path) -> None:
    head, model = exported("decoupled", tmp_path)
    half = valid(to_fp16(model, io_dtype="float16"))
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)}
    assert kinds == {"p3": HALF, "p4": HALF, "p5": HALF, "boxes": FLOAT, "scores": FLOAT}
    mixed = valid(to_fp16(model, io_dtype={"p4": "float16", "scores": "float16"}))
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*mixed.graph.input, *mixed.graph.output)}
    assert kinds == {"p3": FLOAT, "p4": HALF, "p5": FLOAT, "boxes": FLOAT, "scores": HALF}
    feeds = features(head)
    got = run(mixed, {**feeds, "p4": feeds["p4"].astype(np.float16)})
    assert np.abs(got["boxes"] - run(model, feeds)["boxes"]).max() < 0.25


def test_last_layers_in_half(tmp_path: Path) -> None:
    head, model = exported("decoupled", tmp_path)
    conversion = convert_fp16(model, last_layers="float16")
    assert "Conv" not in ops_in(valid(conversion.model), FLOAT)
    feeds = features(head)
    want, default, last = (run(m, feeds)["boxes"] for m in (model, to_fp16(model), conversion.model))
    assert np.abs(default - want).max() < np.abs(last - want).max() < 0.25


def test_converting_twice_changes_nothing_more(tmp_path: Path) -> None:
    _, model = exported("decoupled", tmp_path)
    once = convert_fp16(model, last_layers="float16").model
    twice = convert_fp16(once, last_layers="float16").model
    assert casts(twice) == casts(once)
    assert ops_in(twice, HALF) == ops_in(once, HALF)


@pytest.mark.slow
def test_reference_head_at_full_width_is_within_half_a_pixel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    head = YOLOv8DecoupledHead().eval()
    model = onnx.load(export_onnx(head, tmp_path / "model.onnx", image_size=(320, 416), verify=False).path)
    feeds = features(head, (320, 416), batch=1)
    with torch.no_grad():
        boxes, scores = (t.numpy() for t in DecodedHead(head)([torch.from_numpy(x) for x in feeds.values()]))
    got = run(to_fp16(model), feeds)
    sure = scores.max(axis=-1) > 0.25
    assert sure.sum() > 1000
    assert np.abs(got["boxes"] - boxes)[sure].max() < 0.5
    assert np.abs(got["scores"] - scores)[sure].max() < 5e-3


# -- a trained model --------------------------------------------------------------------------------------------------


def test_trained_model_on_a_real_page(doclaynet: Path, sample_page: Path) -> None:
    from PIL import Image

    page = Image.open(sample_page).convert("RGB")
    page = page.resize((round(page.width * 1024 / page.height), 1024))
    canvas = np.full((1024, 1024, 3), 114, np.uint8)
    canvas[:, : page.width] = np.asarray(page)
    image = (canvas.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    model = onnx.load(doclaynet)
    conversion = convert_fp16(model)
    assert conversion.casts <= 7
    assert not conversion.kept
    assert ops_in(conversion.model, HALF)["Conv"] == 57
    assert {"Softmax", "Sigmoid"} <= set(ops_in(conversion.model, FLOAT))
    want, got = (run(m, {"images": image})["output0"][0] for m in (model, valid(conversion.model)))
    sure = want[4:].max(axis=0) > 0.25
    assert sure.sum() > 100
    assert np.abs(got - want)[:4, sure].max() < 0.5
    assert np.abs(got - want)[4:, sure].max() < 0.02


# -- TensorRT for RTX -------------------------------------------------------------------------------------------------


def rtx_plan(model: onnx.ModelProto, profile: dict[str, list[tuple[int, ...]]] | None = None) -> Any:
    """Builds a strongly typed plan; the plan, or the parser's errors."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    onnx_parser = trt.OnnxParser(network, logger)
    if not onnx_parser.parse(model.SerializeToString()):
        return [onnx_parser.get_error(i).desc() for i in range(onnx_parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    if profile:
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            made.set_shape(name, *shapes)
        config.add_optimization_profile(made)
    return builder.build_serialized_network(network, config)


@pytest.mark.parametrize(("name", "form", "io_dtype"), [
    ("decoupled", "native", "float32"),
    ("decoupled", "raw", "float16"),
    ("stable", "raw", "float32"),
    ("stable_gn", "native", "float16"),
    ("coupled", "raw", "float16"),
])  # fmt: skip
def test_heads_build_in_tensorrt_rtx(name: str, form: str, io_dtype: str, tmp_path: Path) -> None:
    head, model = exported(name, tmp_path, form=form)
    half = to_fp16(model, io_dtype=io_dtype)
    shapes = {n: [(b, *x.shape[1:]) for b in (1, 2, 4)] for n, x in features(head).items()}
    plan = rtx_plan(half, shapes)
    assert not isinstance(plan, list), plan
    assert plan is not None
    assert plan.nbytes > 10_000


def test_a_graph_of_dynamic_size_builds_in_tensorrt_rtx(tmp_path: Path) -> None:
    head, model = exported("decoupled", tmp_path, dynamic_size=True)
    sizes = [(64, 64), (96, 128), (160, 160)]
    per_size = [features(head, s, b) for s, b in zip(sizes, (1, 2, 4), strict=True)]
    plan = rtx_plan(to_fp16(model), {n: [f[n].shape for f in per_size] for n in per_size[0]})
    assert not isinstance(plan, list), plan
    assert plan is not None


@pytest.mark.parametrize("io_dtype", ["float32", "float16"])
def test_trained_model_builds_in_tensorrt_rtx(doclaynet: Path, io_dtype: str) -> None:
    model = onnx.load(doclaynet)
    plan = rtx_plan(to_fp16(model, io_dtype=io_dtype))
    assert not isinstance(plan, list), plan
    assert plan is not None
    assert plan.nbytes < rtx_plan(model).nbytes


# -- single properties, on small graphs -------------------------------------------------------------------------------


def graph(text: str, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    """A model in ONNX's text form; `weights` are float32 initializers, or of the array's own type."""
    body = f'<ir_version: 8, opset_import: ["" : {opset}, "dhead" : 1]>\n{text}'
    model = parser.parse_model(body)
    model.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights.items())
    return model


def kernel(*shape: int, scale: float = 0.2, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


IMAGE = np.random.default_rng(5).random((1, 3, 16, 24), np.float32)


@pytest.mark.parametrize("opset", [12, 17, 20])
def test_resize_keeps_its_scales(opset: int) -> None:
    model = graph(
        """g (float[1,3,16,24] x) => (float[1,2,32,48] y) {
          a = Conv(x, w0)
          b = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (a, roi, scales)
          y = Conv(b, w1)
        }""",
        opset,
        w0=kernel(4, 3, 1, 1),
        w1=kernel(2, 4, 1, 1),
        roi=np.zeros(0, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    half = valid(to_fp16(model))
    kinds = types_of(half)
    assert ops_in(half, HALF)["Resize"] == 1
    resize = next(n for n in half.graph.node if n.op_type == "Resize")
    assert [kinds[n] for n in resize.input] == [HALF, FLOAT, FLOAT]
    assert np.abs(run(half, {"x": IMAGE})["y"] - run(model, {"x": IMAGE})["y"]).max() < 2e-3


@pytest.mark.parametrize("opset", [12, 17])
def test_shape_arithmetic_is_untouched(opset: int) -> None:
    """Sizes computed in float32 beyond 2048, where float16 would round them."""
    model = graph(
        """g (float[1,1,1,w] x) => (float[1,1,1,v] y) {
          a = Conv(x, w0)
          shape = Shape(a)
          floats = Cast <to = 1> (shape)
          more = Mul(floats, factor)
          whole = Floor(more)
          ints = Cast <to = 7> (whole)
          b = Expand(one, ints)
          c = Add(b, zero)
          d = Concat <axis = 3> (a, c)
          y = Conv(d, w0)
        }""",
        opset,
        w0=np.ones((1, 1, 1, 1), np.float32),
        factor=np.array([1, 1, 1, 1.0003], np.float32),
        one=np.ones((1, 1, 1, 1), np.float32),
        zero=np.zeros(1, np.float32),
    )
    half = valid(to_fp16(model))
    assert {"Mul", "Floor"} <= set(ops_in(half, FLOAT))
    x = np.zeros((1, 1, 1, 4099), np.float32)
    assert run(half, {"x": x})["y"].shape == run(model, {"x": x})["y"].shape == (1, 1, 1, 2 * 4099 + 1)
    kinds = types_of(half)
    concat = next(n for n in half.graph.node if n.op_type == "Concat")
    assert [kinds[n] for n in concat.input] == [HALF, HALF]


def test_constants_and_shared_initializers() -> None:
    model = graph(
        """g (float[1,3,16,24] x) => (float[1,4,16,24] y) {
          k = Constant <value = float {0.5}> ()
          k2 = Constant <value_float = 2.0> ()
          a = Conv(x, w0, shared)
          b = Mul(a, k)
          c = Mul(b, k2)
          d = Conv(c, w1, shared)
          e = Mul(d, k)
          y = Sigmoid(e)
        }""",
        w0=kernel(4, 3, 1, 1),
        w1=kernel(4, 4, 1, 1),
        shared=kernel(4),
    )
    half = valid(to_fp16(model))
    kinds = Counter(t.data_type for t in half.graph.initializer)
    assert kinds == {HALF: 4, FLOAT: 3}  # w0, shared, k, k2; and w1, shared, k for the last layer and the tail
    assert casts(half) == 2
    assert np.abs(run(half, {"x": IMAGE})["y"] - run(model, {"x": IMAGE})["y"]).max() < 1e-3


def test_a_tensor_is_cast_once() -> None:
    model = graph(
        """g (float[1,3,16,24] x) => (float[1,4,16,24] y, float[1,4,16,24] z, float[1,4,16,24] r) {
          a = Relu(x)
          r0 = Conv(a, w0)
          r = Relu(r0)
          b = Conv(r, w1)
          c = Conv(r, w1)
          y = Sigmoid(b)
          s = Softmax(c)
          z = Add(s, r)
        }""",
        w0=kernel(4, 3, 1, 1),
        w1=kernel(4, 4, 1, 1),
    )
    half = valid(to_fp16(model))
    assert [o.name for o in half.graph.output] == ["y", "z", "r"]
    assert {o.type.tensor_type.elem_type for o in half.graph.output} == {FLOAT}
    assert casts(half) == 3  # x; r for the two last layers and the sum; r as an output
    want, got = (run(m, {"x": IMAGE}) for m in (model, half))
    for name in want:
        assert np.abs(got[name] - want[name]).max() < 2e-3


@pytest.mark.parametrize(("factor", "why"), [(1e6, "beyond the largest float16"), (1e-9, "too small for float16")])
def test_weights_that_fp16_cannot_hold_stay_in_float32(factor: float, why: str) -> None:
    model = graph(
        """g (float[1,3,16,24] x) => (float[1,2,16,24] y) {
          a = Conv(x, w0)
          b = Conv(a, w1)
          c = Mul(b, k)
          y = Conv(c, w2)
        }""",
        w0=kernel(4, 3, 1, 1),
        w1=(kernel(4, 4, 1, 1, seed=1) * factor).astype(np.float32),
        k=np.float32(1 / factor).reshape(1),
        w2=kernel(2, 4, 1, 1),
    )
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    conversion = convert_fp16(model)
    assert set(conversion.kept) == {"node_b", "node_c"}
    assert why in conversion.kept["node_b"]
    with pytest.warns(UserWarning, match="stays in float32") as record:
        half = valid(to_fp16(model))
    assert [str(w.message) for w in record] == [
        f"to_fp16: {node} stays in float32: {conversion.kept[node]}" for node in ("node_b", "node_c")
    ]
    assert np.abs(run(half, {"x": IMAGE})["y"] - run(model, {"x": IMAGE})["y"]).max() < 2e-3


def test_values_that_flush_to_zero_are_counted() -> None:
    weight = kernel(4, 3, 1, 1)
    weight[0, 0] = 1e-9
    weight[1, 1] = -1e-9
    model = graph(
        "g (float[1,3,16,24] x) => (float[1,4,16,24] y) { a = Conv(x, w0) y = Conv(a, w1) }",
        w0=weight,
        w1=kernel(4, 4, 1, 1),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_fp16(model)
    assert convert_fp16(model).flushed == {"w0": 2}


def test_clip_bounds_may_be_infinite() -> None:
    model = graph(
        "g (float[1,3,16,24] x) => (float[1,4,16,24] y) { a = Conv(x, w0) b = Clip(a, lo, hi) y = Conv(b, w1) }",
        w0=kernel(4, 3, 1, 1),
        w1=kernel(4, 4, 1, 1),
        lo=np.float32(0).reshape(()),
        hi=np.float32(3.4e38).reshape(()),
    )
    half = valid(to_fp16(model))
    assert ops_in(half, HALF)["Clip"] == 1
    assert np.abs(run(half, {"x": IMAGE})["y"] - run(model, {"x": IMAGE})["y"]).max() < 2e-3


def test_subgraphs_stay_in_float32_and_see_float32() -> None:
    model = graph(
        """g (float[1,3,16,24] x, bool flag) => (float[1,4,16,24] y) {
          a = Conv(x, w0)
          b = If (flag) <
            then_branch = t () => (float[1,4,16,24] p) { p = Mul(a, k) },
            else_branch = e () => (float[1,4,16,24] q) { q = Conv(a, w1) }
          >
          c = Relu(b)
          y = Conv(c, w1)
        }""",
        w0=kernel(4, 3, 1, 1),
        w1=kernel(4, 4, 1, 1),
        k=np.array([3], np.float32),
    )
    half = valid(to_fp16(model))
    assert ops_in(half, HALF) == {"Conv": 1, "Relu": 1}
    for flag in (True, False):
        feeds = {"x": IMAGE, "flag": np.array(flag)}
        assert np.abs(run(half, feeds)["y"] - run(model, feeds)["y"]).max() < 3e-3


def test_other_input_types_and_types_fp16_lacks() -> None:
    """A uint8 image, NonMaxSuppression (float32 only) and Range (no float16 before opset 25)."""
    model = graph(
        """g (uint8[1,3,16,24] x) => (int64[n,3] kept, float[1,4,16,24] y) {
          f = Cast <to = 1> (x)
          s = Div(f, k255)
          a = Conv(s, w0)
          y = Conv(a, w1)
          flat = Reshape(a, flat_shape)
          scores = Reshape(a, score_shape)
          kept = NonMaxSuppression(flat, scores)
        }""",
        w0=kernel(4, 3, 1, 1),
        w1=kernel(4, 4, 1, 1),
        k255=np.array([255], np.float32),
        flat_shape=np.array([1, 384, 4]),
        score_shape=np.array([1, 4, 384]),
    )
    half = valid(to_fp16(model))
    assert ops_in(half, HALF)["Div"] == 1
    assert next(n for n in half.graph.node if n.op_type == "Cast" and n.input[0] == "x").attribute[0].i == HALF
    image = (IMAGE * 255).astype(np.uint8)
    want, got = (run(m, {"x": image}) for m in (model, half))
    assert np.abs(got["y"] - want["y"]).max() < 2e-3


def test_batch_normalization_is_of_one_type() -> None:
    model = graph(
        """g (float[1,3,16,24] x) => (float[1,4,16,24] y) {
          a = Conv(x, w0)
          b = BatchNormalization(a, gamma, beta, mean, var)
          y = Conv(b, w1)
        }""",
        w0=kernel(4, 3, 1, 1),
        w1=kernel(4, 4, 1, 1),
        gamma=np.ones(4, np.float32),
        beta=kernel(4),
        mean=kernel(4, seed=2),
        var=np.full(4, 0.7, np.float32),
    )
    half = valid(to_fp16(model))
    kinds = types_of(half)
    norm = next(n for n in half.graph.node if n.op_type == "BatchNormalization")
    assert {kinds[n] for n in norm.input} == {HALF}
    assert np.abs(run(half, {"x": IMAGE})["y"] - run(model, {"x": IMAGE})["y"]).max() < 3e-3


def test_a_biasless_convolution_of_consecutive_weights_is_a_layer_unless_behind_a_softmax() -> None:
    weights = {"w0": kernel(4, 3, 1, 1), "dfl": np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)}
    tail = graph(
        "g (float[1,3,16,24] x) => (float[1,1,16,24] y) {a = Conv(x, w0) b = Softmax <axis = 1> (a) y = Conv(b, dfl)}",
        **weights,
    )
    network = graph(
        "g (float[1,3,16,24] x) => (float[1,1,16,24] y) { a = Conv(x, w0) b = Relu(a) y = Conv(b, dfl) }", **weights
    )
    assert ops_in(to_fp16(tail, last_layers="float16"), HALF) == {"Conv": 1}
    assert ops_in(to_fp16(network, last_layers="float16"), HALF) == {"Conv": 2, "Relu": 1}


@pytest.mark.parametrize("last_layers", ["float32", "float16"])
def test_dhead_nodes_read_maps_of_one_type(last_layers: str) -> None:
    model = graph(
        """g (float[1,3,16,24] x, float[2] thresholds) => (float[1,384,4] boxes, float[1,384,5] scores) {
          a = Conv(x, w0)
          box = Conv(a, w1)
          cls = Conv(a, w2)
          boxes, scores = dhead.DHeadDecode (box, cls, thresholds)
        }""",
        w0=kernel(4, 3, 1, 1),
        w1=kernel(64, 4, 1, 1),
        w2=kernel(5, 4, 1, 1),
    )
    for io_dtype in ("float32", "float16"):
        half = to_fp16(model, io_dtype=io_dtype, last_layers=last_layers)
        kinds = types_of(half)
        node = next(n for n in half.graph.node if n.domain == "dhead")
        map_type = FLOAT if last_layers == "float32" else HALF
        assert [kinds[n] for n in node.input] == [map_type, map_type, FLOAT]
        assert [kinds[n] for n in node.output] == [FLOAT, FLOAT]
        assert kinds["thresholds"] == FLOAT


def test_keep() -> None:
    model = graph(
        "g (float[1,3,16,24] x) => (float[1,4,16,24] y) { a = Conv(x, w0) b = Relu(a) c = Sigmoid(b) y = Conv(c, w1) }",
        w0=kernel(4, 3, 1, 1),
        w1=kernel(4, 4, 1, 1),
    )
    model.graph.node[1].name = "the_relu"
    assert set(ops_in(to_fp16(model), HALF)) == {"Conv", "Relu", "Sigmoid"}
    assert set(ops_in(valid(to_fp16(model, keep=["the_relu"])), HALF)) == {"Conv", "Sigmoid"}
    assert set(ops_in(valid(to_fp16(model, keep={"Sigmoid", "Relu"})), HALF)) == {"Conv"}
    with pytest.raises(InputError, match=r"keep names no node.*the_rely"):
        to_fp16(model, keep=["the_rely"])


def test_bad_arguments() -> None:
    model = graph("g (float[1,3,16,24] x) => (float[1,4,16,24] y) { y = Conv(x, w0) }", w0=kernel(4, 3, 1, 1))
    for io_dtype in ("fp16", {"x": "int8"}, {"z": "float16"}):
        with pytest.raises(InputError, match="io_dtype does not fit"):
            to_fp16(model, io_dtype=io_dtype)
    with pytest.raises(InputError, match="last_layers"):
        to_fp16(model, last_layers="half")
    with pytest.raises(GraphError, match="nothing to convert"):
        to_fp16(graph("g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }"))
    wrong = graph("g (float[1,3,16,24] x) => (float[1,4,16,24] y) { y = Conv(x, w0) }", w0=kernel(4, 5, 1, 1))
    wrong.graph.node.append(helper.make_node("Add", ["y", "nowhere"], ["z"]))
    with pytest.raises(GraphError):
        to_fp16(wrong)
