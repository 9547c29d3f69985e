"""The parity report: what it measures, what fails it, and that a rung which did not run is never a pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cases import BY_NAME
from dhead_trt import HeadSpec, InputError, parity, reference
from dhead_trt.backends import BACKENDS, available_backends
from dhead_trt.build import build
from dhead_trt.export import export_onnx
from dhead_trt.heads import YOLOv8DecoupledHead
from dhead_trt.parity import ParityReport, Rung, Stats, Tolerance, measure, plot, run_ladder
from dhead_trt.parity.detections import match, threshold_for
from dhead_trt.postprocess import simd_levels

SIZE = (96, 128)


@pytest.fixture(scope="module")
def head() -> YOLOv8DecoupledHead:
    """A small head with boxes and scores that vary, as a trained one's do."""
    torch.manual_seed(3)
    made = YOLOv8DecoupledHead(num_classes=5, in_channels=(8, 12, 16))
    with torch.no_grad():
        for level in range(3):
            made.cls_preds[level].weight.mul_(6)
            made.cls_preds[level].bias.fill_(-2.0)
            made.reg_preds[level].weight.mul_(3)
    return made.eval()


@pytest.fixture(scope="module")
def graph(head: YOLOv8DecoupledHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(head, tmp_path_factory.mktemp("graph") / "head.onnx", image_size=SIZE).path


@pytest.fixture(scope="module")
def report(head: YOLOv8DecoupledHead) -> ParityReport:
    return run_ladder(head, precisions=["fp32", "fp16", "bf16"], batch=2, image_size=SIZE, threads=2, conf=0.3)


def test_every_rung_is_there_and_passes(report: ParityReport) -> None:
    status = {r.name: r.status for r in report.rungs}
    wanted = {"oracle (float64)": "reference", "torch decode": "passed", "onnxruntime native": "passed"}
    wanted |= {"onnxruntime raw": "passed", "onnxruntime fp16": "passed", "openvino fp32": "passed"}
    wanted |= {"openvino fp16": "passed", "openvino bf16": "passed"}
    for level in simd_levels():
        wanted |= {f"C++ decode {level}": "passed", f"C++ detect {level}": "passed"}
    assert {name: status.get(name) for name in wanted} == wanted
    assert report.passed
    assert report.rungs[0].status == "reference"


def test_what_cannot_run_is_listed_with_a_reason_and_not_passed(report: ParityReport) -> None:
    status = {r.name: r for r in report.rungs}
    states = available_backends()
    for name in ("tensorrt", "tensorrt_rtx"):
        if not states[name].can_run:
            assert status[name].status == "skipped"
            assert " ".join(states[name].reason.split()) == status[name].reason
    for rung in report.rungs:
        if rung.status == "skipped":
            assert rung.reason
            assert rung.stats == ()
    text = report.render()
    skipped = [r.name for r in report.rungs if r.status == "skipped"]
    assert f"{len(skipped)} not run here" in text.splitlines()[-1]


def test_figures_are_those_of_the_rung(head: YOLOv8DecoupledHead, report: ParityReport) -> None:
    """The torch rung's figures, computed here once more by hand."""
    rng_feeds = report.inputs
    assert rng_feeds.startswith("random, seed 0: ")
    from dhead_trt.postprocess import decode
    from dhead_trt.shapes import random_inputs, tensor_infos
    from dhead_trt.surgery import convert

    graph = convert(export_onnx(head, _tmp(), image_size=SIZE, dynamic_size=True).path, "raw").model
    feeds = random_inputs(tensor_infos(graph), batch=2, size=SIZE, spec=head.spec, seed=0)
    with torch.inference_mode():
        maps = {k: v.numpy() for k, v in head.raw([torch.from_numpy(v) for v in feeds.values()]).items()}
    boxes, scores = reference.decode(maps, head.spec)
    got_boxes, got_scores = decode(maps, head.spec)
    (rung,) = (r for r in report.rungs if r.name == f"C++ decode {simd_levels()[-1]}")
    for output, error in (("boxes", np.abs(got_boxes - boxes)), ("scores", np.abs(got_scores - scores))):
        stats = rung.of(output)
        assert stats is not None
        assert stats.count == error.size
        assert stats.max == pytest.approx(error.max(), rel=1e-6)
        assert stats.mean == pytest.approx(error.mean(), rel=1e-6)
        levels = [rung.of(output, i) for i in range(3)]
        assert max(s.max for s in levels if s is not None) == stats.max
        assert sum(s.count for s in levels if s is not None) == stats.count


def _tmp() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp()) / "graph.onnx"


def test_random_weights_are_compared_below_the_threshold() -> None:
    """A head whose scores all lie near the prior still has its detections compared; the report says how."""
    torch.manual_seed(0)
    fresh = YOLOv8DecoupledHead(num_classes=3, in_channels=(8, 8, 8)).eval()
    for pred in fresh.cls_preds:
        torch.nn.init.normal_(pred.weight, std=0.01)
    found = run_ladder(fresh, precisions=[], image_size=(64, 64))
    assert "nothing scores above 0.25" in found.inputs
    native = next(r for r in found.rungs if r.name == "onnxruntime native")
    assert native.detections is not None
    assert native.detections[0] == native.detections[1] > 0


def test_an_engine_is_measured_against_its_original(graph: Path, head: YOLOv8DecoupledHead, tmp_path: Path) -> None:
    engine = build(graph, "openvino", output=tmp_path / "engine.xml", batch=(1, 2, 3))
    found = run_ladder(head, engines=[engine.plan], image_size=SIZE)
    assert [r.status for r in found.rungs if r.name == "openvino fp32"] == ["passed"]


def test_a_wrong_engine_fails(graph: Path, tmp_path: Path) -> None:
    """Another head's engine, of the same shapes: the report fails, and says by how much."""
    torch.manual_seed(11)
    other = YOLOv8DecoupledHead(num_classes=5, in_channels=(8, 12, 16)).eval()
    engine = build(other, "openvino", output=tmp_path / "other.xml", image_size=SIZE)
    found = run_ladder(graph, engines=[engine.plan])
    assert not found.passed
    (rung,) = (r for r in found.rungs if r.status == "failed")
    assert rung.name == "openvino fp32"
    assert "largest box error" in rung.reason
    assert "limit 0.05" in rung.reason
    assert "Failed:" in found.render()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["passed"] is False


def test_given_inputs_are_used_and_checked(graph: Path) -> None:
    rng = np.random.default_rng(5)
    feeds = {f"p{i + 3}": rng.standard_normal((1, c, 96 >> i + 3, 128 >> i + 3)) for i, c in enumerate((8, 12, 16))}
    found = run_ladder(graph, precisions=[], inputs=feeds, inputs_from="mine.npz")
    assert found.inputs == "mine.npz: p3 1x8x12x16, p4 1x12x6x8, p5 1x16x3x4"
    with pytest.raises(InputError, match="other names"):
        run_ladder(graph, inputs={"x": feeds["p3"]})
    with pytest.raises(InputError, match="'p3' does not fit"):
        run_ladder(graph, inputs=feeds | {"p3": feeds["p3"][:, :7]})
    feeds["p4"][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="'p4' holds NaN"):
        run_ladder(graph, inputs=feeds)


def test_the_size_of_random_input_is_one_that_the_engine_takes(tmp_path: Path) -> None:
    head = YOLOv8DecoupledHead(num_classes=5, in_channels=(8, 12, 16)).eval()
    engine = build(head, "openvino", output=tmp_path / "a.xml", image_size=(64, 96, 128))
    found = run_ladder(head, engines=[engine.plan])
    assert " p3 1x8x12x12" in found.inputs
    assert [r.status for r in found.rungs if r.name == "openvino fp32"] == ["passed"]


def test_an_engine_of_other_inputs_is_refused(graph: Path, tmp_path: Path) -> None:
    other = YOLOv8DecoupledHead(num_classes=5, in_channels=(8, 16), strides=(8, 16)).eval()
    engine = build(other, "openvino", output=tmp_path / "other.xml", image_size=SIZE)
    with pytest.raises(InputError, match=r"other.xml is the engine of another model.*received p3 .*expected p3"):
        run_ladder(graph, engines=[engine.plan])


def test_batch_of_random_inputs(graph: Path, tmp_path: Path) -> None:
    """Also where the graph has a batch of its own."""
    fixed = export_onnx(
        YOLOv8DecoupledHead(num_classes=5, in_channels=(8, 12, 16)).eval(),
        tmp_path / "fixed.onnx",
        image_size=SIZE,
        dynamic_batch=False,
    ).path
    for model in (graph, fixed):
        found = run_ladder(model, precisions=[], batch=2)
        assert " p3 2x8x" in found.inputs
        assert found.passed
    with pytest.raises(InputError, match="batch is out of range: received 0"):
        run_ladder(graph, batch=0)


def test_doclaynet(doclaynet: Path, sample_page: Path, tmp_path: Path) -> None:
    """The real model on a real page: every rung, fp32 within 0.05 px and 1e-4, the same detections."""
    from dhead_trt.cli.parity import read_inputs

    feeds = read_inputs(sample_page, doclaynet, None)
    found = run_ladder(doclaynet, inputs=feeds, threads=2)
    assert found.passed, found.render()
    native = next(r for r in found.rungs if r.name == "onnxruntime native")
    engine = next(r for r in found.rungs if r.name == "openvino fp32")
    for rung in (native, engine):
        boxes, scores = rung.of("boxes"), rung.of("scores")
        assert boxes is not None
        assert scores is not None
        assert boxes.max <= 0.05
        assert scores.max <= 1e-4
        assert rung.detections is not None
        assert rung.detections[0] == rung.detections[1] >= 11


# -- the measure itself -----------------------------------------------------------------------------------------------

SPEC = HeadSpec(num_classes=2, strides=(8, 16), bins=4)
SHAPES = ((2, 3), (1, 2))
LIMIT = Tolerance(boxes=0.1, scores=0.01)


def decoded() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 100, (2, 8, 4)), rng.uniform(0, 1, (2, 8, 2))


def test_measure_equal() -> None:
    want = decoded()
    stats, problem, _ = measure(*want, want, SPEC, SHAPES, LIMIT)
    assert problem == ""
    assert [(s.output, s.level) for s in stats] == [
        ("boxes", None), ("scores", None), ("boxes", 0), ("scores", 0), ("boxes", 1), ("scores", 1),
    ]  # fmt: skip
    assert {(s.max, s.mean, s.p999) for s in stats} == {(0.0, 0.0, 0.0)}
    assert [s.count for s in stats] == [64, 32, 48, 24, 16, 8]


@pytest.mark.parametrize(
    ("what", "size", "text"),
    [
        ("boxes", 0.2, "largest box error 0.200 px, limit 0.1"),
        ("scores", 0.02, "largest score error 0.020, limit 0.01"),
    ],
)
def test_measure_finds_one_wrong_value(what: str, size: float, text: str) -> None:
    want = decoded()
    got = {"boxes": want[0].copy(), "scores": want[1].copy()}
    got[what][1, 7, 1] += size
    stats, problem, _ = measure(got["boxes"], got["scores"], want, SPEC, SHAPES, LIMIT)
    assert problem == text
    by = {(s.output, s.level): s for s in stats}
    assert by[what, None].max == pytest.approx(size)
    assert by[what, 1].max == pytest.approx(size)
    assert by[what, 0].max == 0
    assert by[what, None].mean == pytest.approx(size / by[what, None].count)


@pytest.mark.parametrize(("got", "want", "fails"), [(np.nan, 1.0, True), (1.0, np.nan, True), (np.nan, np.nan, False),
                                                   (np.inf, np.inf, False), (-np.inf, np.inf, True)])  # fmt: skip
def test_measure_non_finite(got: float, want: float, fails: bool) -> None:
    a, b = decoded(), decoded()
    a[0][0, 0, 0], b[0][0, 0, 0] = got, want
    stats, problem, _ = measure(*a, b, SPEC, SHAPES, LIMIT)
    assert bool(problem) is fails
    assert (stats[0].max == np.inf) is fails
    assert stats[0].to_dict()["max"] == ("inf" if fails else 0.0)


def test_gate_judges_what_can_be_seen() -> None:
    """In reduced precision an anchor counts where its best score passes the gate on either side."""
    want = decoded()
    want[1][:] = 0.1
    want[1][0, 2] = 0.8
    wrong = want[0].copy()
    wrong[1, 5] += 3
    gated = Tolerance(0.1, 0.01, gate=0.25)
    assert measure(wrong, want[1], want, SPEC, SHAPES, gated)[1] == ""
    assert "3.000 px" in measure(wrong, want[1], want, SPEC, SHAPES, LIMIT)[1]
    wrong[0, 2, 0] += 0.2
    assert "0.200 px" in measure(wrong, want[1], want, SPEC, SHAPES, gated)[1]
    invented = want[1].copy()
    invented[1, 5] = 0.26
    assert "largest box error 3.000 px" in measure(wrong, invented, want, SPEC, SHAPES, gated)[1]
    assert "largest score error 0.160" in measure(wrong, invented, want, SPEC, SHAPES, gated)[1]
    text = measure(want[0], want[1], want, SPEC, SHAPES, gated)[2]
    assert text.startswith("1 anchors score above 0.25: their boxes are at most 0 px off")


def test_detections_are_judged_too(head: YOLOv8DecoupledHead) -> None:
    """Boxes and scores within the limits do not pass a rung that loses detections."""
    from dhead_trt.parity.climb import Climb

    case = BY_NAME["clustered"]
    climb = Climb(case.spec, {}, case.maps(), conf=0.25, iou=0.7, threads=1, tell=lambda phase, done=None: None)
    boxes, scores = climb.decoded
    loose = Tolerance(boxes=1e9, scores=1e9, detections=0.95)
    climb.dense("same", loose, lambda: (boxes, scores))
    climb.dense("nothing", loose, lambda: (boxes, scores * 0))
    climb.dense("shifted", loose, lambda: (boxes + 40, scores))
    assert [r.status for r in climb.rungs] == ["passed", "failed", "failed"]
    total = climb.rungs[0].detections[1]  # type: ignore[index]
    assert climb.rungs[1].reason == f"0 of {total} detections found again, 0 others"
    assert climb.rungs[2].reason.endswith(f"{total} others")


def test_large_boxes_may_be_off_in_proportion() -> None:
    want = decoded()
    want[0][0, 0] = 4096
    got = want[0].copy()
    got[0, 0, 0] += 0.3
    assert measure(got, want[1], want, SPEC, SHAPES, LIMIT)[1] == ""
    got[0, 0, 0] += 0.2
    assert measure(got, want[1], want, SPEC, SHAPES, LIMIT)[1] != ""


def test_shapes_are_checked() -> None:
    want = decoded()
    with pytest.raises(InputError, match="Decoded boxes have the wrong shape"):
        measure(want[0][:, :7], want[1], want, SPEC, SHAPES, LIMIT)


def test_threshold_for() -> None:
    scores = np.linspace(0.001, 0.2, 1000).reshape(1, 500, 2)
    assert threshold_for(scores + 0.3, 0.25) == 0.25
    low = threshold_for(scores, 0.25)
    assert (scores.max(axis=2) > low).sum() == 100
    assert threshold_for(np.full((1, 1, 1), 0.1), 0.25) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["clustered", "ties", "crowd", "special", "no_survivor"])
def test_match_of_equal_outputs_is_complete(name: str) -> None:
    case = BY_NAME[name]
    want = reference.decode(case.maps(), case.spec)
    m = match(want, want, conf=0.25, iou=0.7, overlap=0.99, slack=1e-3)
    total = int(reference.nms(*want).num_dets.sum())
    assert (m.found, m.extra) == (total, 0)
    assert m.wanted == total


def test_match_sees_a_lost_and_an_invented_detection() -> None:
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 60, 60]]], float)
    scores = np.array([[[0.9], [0.8], [0.1]]])
    options = {"conf": 0.25, "iou": 0.7, "overlap": 0.99, "slack": 1e-3}
    lost = match((boxes, scores * np.array([[1], [0], [1]])), (boxes, scores), **options)
    assert (lost.found, lost.wanted, lost.extra) == (1, 2, 0)
    invented = match((boxes, scores + np.array([[0], [0], [0.5]])), (boxes, scores), **options)
    assert (invented.found, invented.wanted, invented.extra) == (2, 2, 1)
    moved = match((boxes + 0.5, scores), (boxes, scores), **options)
    assert moved.found == 0
    border = np.array([[[0.9], [0.2502], [0.1]]])  # within the slack of the threshold: may come or go
    near = match((boxes, border - 0.0005), (boxes, border), **options)
    assert (near.found, near.wanted, near.extra) == (1, 1, 0)


# -- the report -------------------------------------------------------------------------------------------------------


def of(*statuses: str) -> ParityReport:
    stats = (Stats("boxes", None, 1e-3, 1e-4, 5e-4, 10, tuple(np.linspace(0, 1e-3, 126))),)
    rungs = [Rung(s, s, stats if s in ("passed", "failed") else (), LIMIT, "a reason") for s in statuses]  # type: ignore[arg-type]
    return ParityReport("model", SPEC, "random", tuple(rungs))


def test_passed_needs_a_rung_that_ran() -> None:
    assert of("reference", "passed", "skipped").passed
    assert not of("reference", "skipped").passed
    assert not of("reference", "passed", "failed").passed
    assert of("reference", "passed", "skipped").render().endswith("1 passed, 0 failed, 1 not run here")


def test_json_reads_back(report: ParityReport, tmp_path: Path) -> None:
    data = json.loads(report.save_json(tmp_path / "report.json").read_text(encoding="utf-8"))
    assert data["passed"] is True
    assert HeadSpec.from_dict(data["spec"]) == report.spec
    assert [r["name"] for r in data["rungs"]] == [r.name for r in report.rungs]
    first = next(r for r in data["rungs"] if r["status"] == "passed")
    assert {"output", "level", "max", "mean", "p999", "count"} == set(first["errors"][0])
    assert data["facts"]["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot(report: ParityReport, tmp_path: Path, suffix: str) -> None:
    path = plot(report, tmp_path / f"report{suffix}")
    head = path.read_bytes()[:512]
    assert head.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_plot_is_not_empty(report: ParityReport, tmp_path: Path) -> None:
    """Each rung that ran leaves marks of its colour."""
    from PIL import Image

    pixels = np.asarray(Image.open(plot(report, tmp_path / "a.png")).convert("RGB")).astype(int)
    green = np.abs(pixels - (0x2B, 0x7A, 0x4B)).sum(axis=2) < 30
    rows = np.flatnonzero(green[:, 400:].any(axis=1))
    bands = 1 + int((np.diff(rows) > 4).sum())
    assert bands == sum(r.status == "passed" for r in report.rungs)
    assert pixels.shape[1] > 1200


def test_plot_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no known format"):
        plot(of("passed"), tmp_path / "a.docx")
    with pytest.raises(InputError, match="nothing to draw"):
        plot(of("skipped"), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_public_names() -> None:
    assert set(parity.__all__) <= set(dir(parity))
    assert set(BACKENDS) == {"tensorrt", "tensorrt_rtx", "openvino"}


def test_a_plan_that_holds_the_nms() -> None:
    """Its detections are compared, and nothing else can be; where there are none it is not counted as passed."""
    from dhead_trt import postprocess
    from dhead_trt.parity.climb import Climb

    case, tolerance = BY_NAME["clustered"], parity.TOLERANCES["engine", "fp16"]
    climb = Climb(case.spec, {}, case.maps(), conf=0.25, iou=0.7, threads=1, tell=lambda phase, done=None: None)
    plan = postprocess.detect(climb.maps, case.spec, conf=0.25, iou=0.7)._asdict()
    climb._plan_detections("same", tolerance, plan, "a note")
    climb._plan_detections("fewer", tolerance, plan | {"num_dets": plan["num_dets"] // 2}, "")
    climb._plan_detections("shifted", tolerance, plan | {"det_boxes": plan["det_boxes"] + 40}, "")
    climb.asked = 1.0
    climb._plan_detections("nothing", tolerance, plan, "")
    assert [r.status for r in climb.rungs] == ["passed", "failed", "failed", "skipped"]
    total = int(plan["num_dets"].sum())
    assert climb.rungs[0].detections == (total, total)
    assert climb.rungs[0].reason.endswith("conf 0.25 and IoU 0.7; a note")
    assert "detections found again" in climb.rungs[1].reason
    assert "nothing scores above 1" in climb.rungs[3].reason
