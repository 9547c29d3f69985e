"""The Q/DQ pass: where pairs go, what they hold, and that the graph still computes the same, in three engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import small_models as small
from dhead_trt.backends.openvino import new_core
from dhead_trt.build import build
from dhead_trt.calibration import Ranges, calibrate
from dhead_trt.engine import Engine
from dhead_trt.errors import BuildError, DheadError, InputError
from dhead_trt.precision import activation_tensors, quantizable, to_int8
from dhead_trt.shapes import run_reference
from dhead_trt.surgery import convert
from int8_models import WIDTH, Graph, block, chain


def feeds(seed: int = 0, count: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def ranges_of(model: onnx.ModelProto, **kwargs: Any) -> Ranges:
    return calibrate(model, iter(feeds()), **kwargs)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def readers(model: onnx.ModelProto, op: str) -> list[list[str]]:
    """For each node of that operator: the operators that make its float inputs."""
    made = {o: n.op_type for n in model.graph.node for o in n.output}
    return [[made.get(i, "-") for i in n.input] for n in model.graph.node if n.op_type == op]


# -- placement --


def test_layers() -> None:
    layers = quantizable(chain())
    assert [(x.name, x.input, x.weight, x.last) for x in layers] == [
        ("n_c0", "x", "w0", False),
        ("n_c1", "m0", "w1", False),
        ("n_c2", "m1", "w2", True),
    ]
    assert [x.macs for x in layers] == [256 * n for n in (3 * 8 * 9, 8 * 8 * 9, 8 * 5)]
    assert set(activation_tensors(chain())) == {"x", "m0", "m1"}


def test_pairs_stand_at_convolutions_and_nowhere_in_silu() -> None:
    made = to_int8(chain(), ranges_of(chain()))
    assert made.quantized == ("n_c0", "n_c1")
    assert made.kept == ("n_c2",)
    assert made.int8_macs == pytest.approx((3 * 8 * 9 + 8 * 8 * 9) / (3 * 8 * 9 + 8 * 8 * 9 + 40))
    convs = readers(made.model, "Conv")
    assert [c[:2] for c in convs] == [["DequantizeLinear"] * 2] * 2 + [["Mul", "-"]]
    assert readers(made.model, "Sigmoid") == [["Conv"], ["Conv"]]
    assert readers(made.model, "Mul") == [["Conv", "Sigmoid"]] * 2
    assert all("b" not in n.input[0] or n.op_type != "DequantizeLinear" for n in made.model.graph.node)
    entry = {p.key: p.value for p in made.model.metadata_props}
    assert entry["dhead_precision"] == "int8"


def test_scales_and_weights() -> None:
    """Symmetric, zero point 0, per output channel; the largest magnitude is 127."""
    model = chain()
    ranges = ranges_of(model)
    made = to_int8(model, ranges).model
    have, before = constants(made), constants(model)
    low, high = ranges.tensors["m0"]
    assert have["m0_scale"] == np.float32(max(-low, high) / 127)
    assert have["m0_zero"] == 0
    assert have["m0_zero"].dtype == np.int8
    np.testing.assert_allclose(have["w1_scale"], np.abs(before["w1"]).reshape(8, -1).max(1) / 127, rtol=1e-6)
    assert have["w1_int8"].dtype == np.int8
    assert np.abs(have["w1_int8"]).reshape(8, -1).max(1).tolist() == [127] * 8
    assert not have["w1_zero"].any()
    back = have["w1_int8"] * have["w1_scale"][:, None, None, None]
    assert np.all(np.abs(back - before["w1"]) <= have["w1_scale"][:, None, None, None] * 0.5001)
    assert "w1" not in have  # nothing is left behind
    np.testing.assert_array_equal(have["b1"], before["b1"])


def test_chains_share_scales() -> None:
    model = block()
    made = to_int8(model, ranges_of(model)).model
    have = constants(made)
    assert readers(made, "Concat") == [["DequantizeLinear"] * 3, ["DequantizeLinear"] * 2]
    assert readers(made, "MaxPool") == [["DequantizeLinear"]]
    assert readers(made, "Split")[0][0] == "DequantizeLinear"
    assert readers(made, "Add") == [["DequantizeLinear", "Mul"]]  # the shortcut is int8, the branch is not
    assert have["cat2_scale"] == have["pool_scale"] == have["m2_scale"]
    assert have["cat_scale"] == have["sum_scale"]
    plain = to_int8(model, ranges_of(model), chain=False).model
    assert readers(plain, "Concat") == [["Split", "Split", "Add"], ["Mul", "MaxPool"]]


def test_scales_that_differ_too_much_are_not_shared() -> None:
    """A tensor that a layer reads keeps its own scale where the shared one would cost more than a bit."""
    model = block()
    ranges = ranges_of(model)
    wide = dict(ranges.tensors)
    for name in ("sum", "cat"):
        wide[name] = (-50.0, 50.0)
    made = to_int8(model, Ranges(wide, "minmax")).model
    have = constants(made)
    own = max(map(abs, ranges.tensors["sb"]))
    assert have["sb_scale"] <= 2 * own / 127 * 1.001
    scales = {n: float(v) for n, v in have.items() if n.startswith("sb") and n.endswith("_scale")}
    assert max(scales.values()) == pytest.approx(50 / 127)  # a second pair, for the concat
    assert relative(run_reference(made, feeds()[0])["c4"], run_reference(model, feeds()[0])["c4"]) < 0.3


# -- values --


@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 3),
    kernel=st.sampled_from([1, 3]),
    depthwise=st.booleans(),
    residual=st.booleans(),
)
def test_random_graphs_stay_close(seed: int, depth: int, kernel: int, depthwise: bool, residual: bool) -> None:
    """Any small network: the error of int8 is a few per cent, and that of int8 in float16 hardly more."""
    g = Graph(seed)
    x = g.silu(g.conv("x", "in", 3, WIDTH), "in")
    for i in range(depth):
        y = g.silu(g.conv(x, str(i), WIDTH, WIDTH, kernel, WIDTH if depthwise else 1), str(i))
        x = g.node("Add", [x, y], f"a{i}") if residual else y
    model = g.model(g.conv(x, "out", WIDTH, 4, kernel=1), 4)
    ranges = ranges_of(model)
    want = run_reference(model, feeds()[0])["cout"]
    made = to_int8(model, ranges)
    error = relative(run_reference(made.model, feeds()[0])["cout"], want)
    assert 1e-6 < error < 0.08
    half = to_int8(model, ranges, high="float16")
    assert relative(run_reference(half.model, feeds()[0])["cout"], want) < 0.1
    assert len(made.quantized) == depth + 1


@pytest.mark.parametrize("opset", [12, 13, 17])
def test_old_opsets(opset: int) -> None:
    model = block(opset=opset)
    for high, least in (("float32", 13), ("float16", 19)):
        made = to_int8(model, ranges_of(model), high=high).model  # type: ignore[arg-type]
        version = next(o.version for o in made.opset_import if o.domain == "")
        assert version == max(opset, least)
        want = run_reference(model, feeds()[0])["c4"]
        assert relative(run_reference(made, feeds()[0])["c4"], want) < 0.08


def test_keep_and_last_layers() -> None:
    model, ranges = block(), ranges_of(block())
    made = to_int8(model, ranges, keep=["n_c2"])
    assert set(made.kept) == {"n_c2", "n_c4"}
    assert readers(made.model, "Conv")[2][:2] == ["Concat", "-"]
    everything = to_int8(model, ranges, last_layers="int8")
    assert everything.kept == ()
    assert everything.int8_macs == 1.0
    nothing = to_int8(model, ranges, keep=[x.name for x in quantizable(model)])
    assert nothing.int8_macs == 0
    np.testing.assert_allclose(
        run_reference(nothing.model, feeds()[0])["c4"], run_reference(model, feeds()[0])["c4"], atol=1e-5
    )


def test_float16_scales_clip_nothing() -> None:
    """Rounded up to float16's grid: tiny weights and ranges too."""
    model = chain()
    for t in model.graph.initializer:
        if t.name == "w1":
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(1e-4), "w1"))
    made = to_int8(model, ranges_of(model), high="float16").model
    have = constants(made)
    scale = have["w1_scale_fp16"]
    assert scale.dtype == np.float16
    assert (scale > 0).all()
    assert np.abs(have["w1_int8"]).max() <= 127
    want = run_reference(model, feeds()[0])["c2"]
    assert relative(run_reference(made, feeds()[0])["c2"], want) < 0.05


# -- bad data --


def test_dead_channels_and_tensors() -> None:
    """Channels of zero weights get a safe scale; a layer that saw only zeros stays out, with a note."""
    model = chain()
    for t in model.graph.initializer:
        if t.name == "w0":
            w = numpy_helper.to_array(t).copy()
            w[2] = 0
            t.CopyFrom(numpy_helper.from_array(w, "w0"))
    have = constants(to_int8(model, ranges_of(model)).model)
    assert np.isfinite(have["w0_scale"]).all()
    assert (have["w0_scale"] > 0).all()
    assert not have["w0_int8"][2].any()
    black = calibrate(model, iter([{"x": np.zeros((1, 3, 16, 16), np.float32)}]))
    made = to_int8(model, black)
    assert "n_c0" in made.kept
    assert "only zeros" in made.notes[0]
    out = run_reference(made.model, feeds()[0])["c2"]
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": ["nothing"]}, "keep names no layer"),
        ({"high": "bf16"}, "high is not a type"),
        ({"last_layers": "float16"}, "last_layers is not known"),
        ({"io_dtype": "float16"}, "need high='float16'"),
        ({"weight_scales": {"w1": np.zeros(8)}}, "scales of 'w1' do not fit"),
        ({"weight_scales": {"w1": np.ones(3)}}, "scales of 'w1' do not fit"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_int8(chain(), ranges_of(chain()), **change)


def test_ranges_of_another_graph() -> None:
    with pytest.raises(InputError, match="not of this graph"):
        to_int8(block(), Ranges({"x": (0, 1)}, "minmax"))


def test_trained_scales_are_kept() -> None:
    scales = np.linspace(0.01, 0.02, 8, dtype=np.float32)
    have = constants(to_int8(chain(), ranges_of(chain()), weight_scales={"w1": scales}).model)
    np.testing.assert_array_equal(have["w1_scale"], scales)


# -- engines --


def test_openvino_computes_what_the_graph_says(tmp_path: Path) -> None:
    """Within the noise of int8, from images to raw maps."""
    spec_model = small.onnx_bytes("detector")
    batch = {"images": small.images(2, seed=1)}
    artifact = build(
        spec_model, "openvino", output=tmp_path / "e", precision="int8", batch=2, calibration=batch, min_agreement=None
    )
    assert artifact.precision == "int8"
    with Engine(artifact, output="raw") as engine:
        got = engine.infer(batch)
    graph = convert(spec_model, "raw", verify=False).model
    want = run_reference(graph, batch)
    for name, value in want.items():
        assert relative(got[name], value) < 0.1
    int8 = artifact.report["int8"]
    assert int8["int8_macs"] > 0.85
    assert int8["images"] == 2
    assert artifact.notes[0].startswith("INT8: ")


def test_openvino_concat_block() -> None:
    ov = pytest.importorskip("openvino")
    from dhead_trt.precision.unsigned import unsigned_activations

    model = block()
    made = to_int8(model, ranges_of(model)).model
    core = new_core(ov)
    x = feeds()[0]
    compiled = core.compile_model(
        core.read_model(unsigned_activations(made).SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert relative(compiled(x)[0], run_reference(made, x)["c4"]) < 0.02


@pytest.mark.parametrize("batch", [1, (1, 2, 4)])
def test_tensorrt_rtx_builds(tmp_path: Path, batch: Any) -> None:
    """Every supported compute capability, static and dynamic, with no GPU; Turing's lack of int8 is said."""
    pytest.importorskip("tensorrt_rtx")
    from dhead_trt.backends.tensorrt_rtx import CAPABILITIES

    artifact = build(
        small.onnx_bytes("detector"),
        "tensorrt_rtx",
        output=tmp_path / "e",
        precision="int8",
        batch=batch,
        compute_capabilities=CAPABILITIES,
        calibration={"images": small.images(2)},
        min_agreement=None,
    )
    assert artifact.compute_capabilities == CAPABILITIES
    assert artifact.plan.stat().st_size > 10_000
    assert any("7.5" in note and "int8" in note for note in artifact.notes)
    assert artifact.report["int8"]["high"] == "float16"


def test_random_calibration_is_for_heads(tmp_path: Path) -> None:
    artifact = build(
        small.onnx_bytes("head"), "openvino", output=tmp_path / "e", precision="int8", calibration="random"
    )
    assert any("random features" in note for note in artifact.notes)
    with pytest.raises(InputError, match="bare heads only"):
        build(small.onnx_bytes("detector"), "openvino", output=tmp_path / "f", precision="int8", calibration="random")


def test_build_refusals(tmp_path: Path) -> None:
    head = small.onnx_bytes("head")
    for change, message in (
        ({"precision": "int8"}, "needs data to calibrate"),
        ({"precision": "int8", "calibration": "random", "min_agreement": 2.0}, "min_agreement is out of range"),
        ({"calibration": "random"}, "belong to precision='int8'"),
        ({"precision": "int8", "calibration": Ranges({}, "minmax", "0" * 64)}, "ranges are of another model"),
    ):
        with pytest.raises(DheadError, match=message):
            build(head, "openvino", output=tmp_path / "e", **change)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_gate_stops_a_bad_engine(tmp_path: Path) -> None:
    """Ranges a tenth as wide clip everything: nothing is written, and the layers are named."""
    model = small.onnx_bytes("detector")
    graph = convert(model, "raw", verify=False).model
    data = {"images": small.images(4, seed=3)}
    good = calibrate(graph, iter([{"images": data["images"][:1]}]))
    bad = Ranges(
        {n: (low / 20, high / 20) for n, (low, high) in good.tensors.items()}, "minmax", good.model_sha256, "", 1
    )
    with pytest.raises(BuildError, match=r"does not agree with float32.*layers that int8 hurts most"):
        build(model, "openvino", output=tmp_path / "e", precision="int8", calibration=bad, held_out=data)
    assert not list(tmp_path.iterdir())
