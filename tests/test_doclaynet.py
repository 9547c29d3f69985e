"""The real trained model, on document pages: every form that runs on a CPU computes what the original ONNX computes.

The original graph under ONNX Runtime is the reference: all its 21504 anchors, and its outputs followed by the float64
oracle's NMS. Run with `-s` to see the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhead_trt import reference
from dhead_trt.build import build
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.engine import Engine
from dhead_trt.images import load_image
from dhead_trt.letterbox import Letterbox, letterbox

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

SIZE = (1024, 1024)
ANCHORS = 128 * 128 + 64 * 64 + 32 * 32
BOX_TOL, SCORE_TOL = 0.05, 1e-4  # pixels of the network input
NAMES = (
    "Caption", "Footnote", "Formula", "List-item", "Page-footer", "Page-header",
    "Picture", "Section-header", "Table", "Text", "Title",
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A page as the network sees it, and what the original graph says about it."""

    path: Path
    canvas: np.ndarray  # [1, 3, 1024, 1024]
    box: Letterbox
    boxes: np.ndarray  # [21504, 4] xyxy, canvas pixels
    scores: np.ndarray  # [21504, 11]
    found: Any  # the oracle's NMS of these


@dataclass(frozen=True)
class Worst:
    """The largest differences over all pages."""

    box: float = 0.0
    score: float = 0.0

    def with_(self, box: float, score: float) -> Worst:
        return Worst(max(self.box, box), max(self.score, score))


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    data = model.SerializeToString() if hasattr(model, "SerializeToString") else str(model)
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def split_output(output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """output0 [1, 4 + C, A] → boxes [A, 4] xyxy and scores [A, C], float64."""
    rows = output[0].T.astype(np.float64)
    centre, half = rows[:, :2], rows[:, 2:4] / 2
    return np.concatenate([centre - half, centre + half], axis=1), rows[:, 4:]


@pytest.fixture(scope="module")
def pages(doclaynet: Path, sample_pages: list[Path]) -> list[Page]:
    original = session(doclaynet)
    out = []
    for path in sample_pages:
        canvas, box = letterbox(load_image(path), SIZE)
        (output,) = original.run(None, {"images": canvas[None]})
        boxes, scores = split_output(output)
        out.append(Page(path, canvas[None], box, boxes, scores, reference.nms(boxes[None], scores[None])))
    return out


@pytest.fixture(scope="module")
def plan(doclaynet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact = build(doclaynet, "openvino", output=tmp_path_factory.mktemp("plan") / "doclaynet")
    assert (artifact.form, artifact.precision) == ("raw", "fp32")
    return artifact.plan


@pytest.fixture(scope="module")
def raw_graph(doclaynet: Path) -> Any:
    from dhead_trt.surgery import convert

    return convert(doclaynet, form="raw", verify=False)


def test_the_reference_sees_what_is_on_the_pages(pages: list[Page]) -> None:
    """So that the comparisons below are about something: all 11 classes on the first page, dozens of boxes on each."""
    for page in pages:
        assert page.boxes.shape == (ANCHORS, 4)
        assert int(page.found.num_dets[0, 0]) >= 10, page.path
    first = pages[0].found
    seen = set(first.classes[0, : int(first.num_dets[0, 0])].tolist())
    assert seen == set(range(len(NAMES)))


def test_spec(plan: Path) -> None:
    with Engine(plan) as engine:
        spec = engine.spec
    assert (spec.num_classes, spec.bins, spec.strides, spec.distance_unit) == (11, 16, (8, 16, 32), "stride")
    assert spec.names == NAMES
    assert spec.image_size == SIZE


def dense(pages: list[Page], run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], what: str) -> None:
    """Every anchor of every page within the tolerances."""
    worst = Worst()
    for page in pages:
        boxes, scores = run(page.canvas)
        assert boxes.shape == (ANCHORS, 4)
        assert scores.shape == (ANCHORS, len(NAMES))
        worst = worst.with_(float(np.abs(boxes - page.boxes).max()), float(np.abs(scores - page.scores).max()))
    print(f"{what}: {len(pages)} pages × {ANCHORS} anchors: box ≤ {worst.box:.2e} px, score ≤ {worst.score:.2e}")
    assert worst.box <= BOX_TOL
    assert worst.score <= SCORE_TOL


def test_native_form_in_onnx_runtime(pages: list[Page], doclaynet: Path) -> None:
    from dhead_trt.surgery import convert

    graph = session(convert(doclaynet, form="native", verify=False).model)
    dense(pages, lambda canvas: split_output(graph.run(None, {"images": canvas})[0]), "native, ONNX Runtime")


def test_raw_form_in_onnx_runtime_and_the_cpp_decode(pages: list[Page], raw_graph: Any) -> None:
    from dhead_trt import postprocess

    graph, spec = session(raw_graph.model), raw_graph.spec
    assert tuple(o.name for o in graph.get_outputs()) == spec.input_names

    def run(canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = dict(zip(spec.input_names, graph.run(list(spec.input_names), {"images": canvas}), strict=True))
        boxes, scores = postprocess.decode(maps, spec)
        return boxes[0], scores[0]

    dense(pages, run, "raw, ONNX Runtime + C++ decode")


def test_decoded_by_the_openvino_engine(pages: list[Page], plan: Path) -> None:
    with Engine(plan, output="decoded", threads=2) as engine:

        def run(canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            out = engine.infer(canvas)
            return out["boxes"][0], out["scores"][0]

        dense(pages, run, "decoded, OpenVINO engine fp32")


def test_detections_of_raw_form_in_onnx_runtime(pages: list[Page], raw_graph: Any) -> None:
    from dhead_trt import postprocess

    graph, spec = session(raw_graph.model), raw_graph.spec
    worst, count = Worst(), 0
    for page in pages:
        maps = dict(zip(spec.input_names, graph.run(list(spec.input_names), {"images": page.canvas}), strict=True))
        found = postprocess.detect(maps, spec)._asdict()
        worst, count = same_detections(rows_of(found), page, worst), count + int(found["num_dets"][0, 0])
    print(f"detections, ONNX Runtime + C++: {count} boxes: box ≤ {worst.box:.2e} px, score ≤ {worst.score:.2e}")


def test_detections_of_the_openvino_engine(pages: list[Page], plan: Path) -> None:
    worst, count = Worst(), 0
    with Engine(plan, threads=2) as engine:
        for page in pages:
            found = engine.infer(page.canvas)
            worst, count = same_detections(rows_of(found), page, worst), count + int(found["num_dets"][0, 0])
    print(f"detections, OpenVINO engine fp32: {count} boxes: box ≤ {worst.box:.2e} px, score ≤ {worst.score:.2e}")


def test_the_detector_on_files(pages: list[Page], plan: Path, tmp_path: Path) -> None:
    """From the file to boxes on the page, as users call it; and JSON and picture of it."""
    worst, count = Worst(), 0
    with Detector(plan, threads=2) as detector:
        results = detector([page.path for page in pages])
        for page, result in zip(pages, results, strict=True):
            assert isinstance(result, Detections)
            assert result.source == str(page.path)
            assert result.names == NAMES
            assert result == detector(page.path)
            boxes = page.box.to_network(result.xyxy)
            worst = same_detections((boxes, result.confidence, result.class_id), page, worst, clipped=True)
            count += len(result)
    print(f"Detector, files: {count} boxes: box ≤ {worst.box:.2e} px, score ≤ {worst.score:.2e}")
    first = results[0]
    assert Detections.from_json(first.save_json(tmp_path / "page.json")) == first
    assert json.loads((tmp_path / "page.json").read_text())["image_size"] == [1754, 1240]
    picture = first.draw(pages[0].path, tmp_path / "page.png")
    assert picture.size == (1240, 1754)
    assert (load_image(tmp_path / "page.png") != load_image(pages[0].path)).any(axis=2).mean() > 0.02


def rows_of(found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = int(found["num_dets"][0, 0])
    return found["det_boxes"][0, :n], found["det_scores"][0, :n], found["det_classes"][0, :n]


def same_detections(rows: tuple[Any, Any, Any], page: Page, worst: Worst, clipped: bool = False) -> Worst:
    """The same detections as the original's, one to one: same class, IoU ≥ 0.99, score within 1e-3."""
    boxes, scores, classes = (np.asarray(r).astype(np.float64) for r in rows)
    n = int(page.found.num_dets[0, 0])
    want_boxes, want_scores, want_classes = page.found.boxes[0, :n], page.found.scores[0, :n], page.found.classes[0, :n]
    if clipped:  # as the detector does, to the image
        want_boxes = page.box.to_network(page.box.to_image(want_boxes))
    assert len(boxes) == n, f"{page.path.name}: {len(boxes)} detections, the original has {n}"
    free = np.ones(n, dtype=bool)
    for box, score, label in zip(boxes, scores, classes, strict=True):
        fits = free & (want_classes == label) & (np.abs(want_scores - score) <= 1e-3) & (iou(box, want_boxes) >= 0.99)
        assert fits.any(), f"{page.path.name}: {NAMES[int(label)]} {score:.4f} at {box.round(2)} is not the original's"
        match = int(np.argmax(fits))
        free[match] = False
        box_error, score_error = float(np.abs(want_boxes[match] - box).max()), float(abs(want_scores[match] - score))
        assert box_error <= BOX_TOL
        assert score_error <= SCORE_TOL
        worst = worst.with_(box_error, score_error)
    return worst


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    inter = np.maximum(0, sides).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - inter
    return np.where(union > 0, inter / np.where(union > 0, union, 1), 0)
