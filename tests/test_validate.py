"""mAP against an implementation of its own, agreement against counted cases, and `dhead-trt val` from end to end."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import small_models
from dhead_trt import cli
from dhead_trt.build import build
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.errors import BackendUnavailable, InputError
from dhead_trt.validate import CocoData, CocoImage, OnnxReference, agree, match, validate
from dhead_trt.validate.agreement import iou_matrix
from dhead_trt.validate.mean_ap import mean_ap

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
pytest.importorskip("openvino", reason="OpenVINO is not installed")

IOUS = np.arange(10) * 0.05 + 0.5
SIZE = (96, 128)


def detections(rows: list[tuple[float, ...]], source: str | None = None) -> Detections:
    """left, top, right, bottom, score, class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5], (), (200, 200), source)


# -- mAP ---------------------------------------------------------------------------------------------------------------


def xyxy(bbox: list[float]) -> np.ndarray:
    return np.array([*bbox[:2], bbox[0] + bbox[2], bbox[1] + bbox[3]])


def plain_ap(truth: dict[int, np.ndarray], found: list[tuple[int, float, np.ndarray]], iou: float) -> np.ndarray:
    """Precision at 101 recalls of one class: image → boxes; (image, score, box). COCO's greedy rule, by hand."""
    free = {i: np.ones(len(b), bool) for i, b in truth.items()}
    hits = []
    for image, _, box in sorted(found, key=lambda f: -f[1]):
        overlaps = iou_matrix([box], truth[image])[0] if len(truth[image]) else np.zeros(0)
        overlaps = np.where(free[image], overlaps, -1)
        best = int(np.argmax(overlaps)) if len(overlaps) else -1
        hit = best >= 0 and overlaps[best] >= iou
        if hit:
            free[image][best] = False
        hits.append(hit)
    good = np.cumsum(hits)
    recall = good / sum(map(len, truth.values()))
    precision = good / np.arange(1, len(hits) + 1)
    return np.array([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_mean_ap_is_that_of_a_plain_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    images = tuple(CocoImage(i * 7 + 3, Path(f"{i}.png")) for i in range(5))
    scores = iter(rng.permutation(np.linspace(0.01, 0.99, 400)))
    for image in images:
        for category in (2, 9, 11):
            for _ in range(int(rng.integers(0, 4))):
                box = [*rng.uniform(0, 150, 2), *rng.uniform(5, 60, 2)]
                labels.append(
                    {"id": len(labels) + 1, "image_id": image.id, "category_id": category, "bbox": box}
                    | {"area": box[2] * box[3], "iscrowd": 0}
                )
                for _ in range(int(rng.integers(0, 3))):
                    near = [v + rng.normal(0, 3) for v in box[:2]] + [v * rng.uniform(0.8, 1.2) for v in box[2:]]
                    results.append(
                        {"image_id": image.id, "category_id": category, "bbox": near, "score": float(next(scores))}
                    )
    data = CocoData(images, {2: "a", 9: "b", 11: "c", 20: "never"}, tuple(labels))
    precision = mean_ap(data, results)
    assert (precision[20] == -1).all()
    for category in (2, 9, 11):
        mine = [a for a in labels if a["category_id"] == category]
        if not mine:
            continue
        corners = {
            i.id: np.array(
                [[*a["bbox"][:2], *np.add(a["bbox"][:2], a["bbox"][2:])] for a in mine if a["image_id"] == i.id]
            )
            for i in images
        }
        found = [
            (r["image_id"], r["score"], np.array([*r["bbox"][:2], *np.add(r["bbox"][:2], r["bbox"][2:])]))
            for r in results
            if r["category_id"] == category
        ]
        for level, iou in enumerate(IOUS):
            want = plain_ap(corners, found, iou) if found else np.zeros(101)
            np.testing.assert_allclose(precision[category][level], want, rtol=0, atol=1e-9)


# -- agreement ---------------------------------------------------------------------------------------------------------


def test_matching_takes_the_closest_of_the_same_class_once() -> None:
    a = detections([(0, 0, 10, 10, 0.9, 0), (0, 0, 10, 12, 0.8, 0), (50, 50, 60, 60, 0.7, 1)])
    b = detections([(0, 0, 10, 12, 0.9, 0), (50, 50, 60, 60, 0.7, 2), (0, 0, 10, 11, 0.6, 0)])
    assert sorted(match(a, b, 0.5)) == [(0, 2), (1, 0)]
    assert match(a, b, 0.95) == [(1, 0)]
    assert match(a, detections([]), 0.5) == match(detections([]), b, 0.5) == []


def test_agreement_counts() -> None:
    a = [detections([(0, 0, 10, 10, 0.9, 0), (20, 20, 40, 40, 0.5, 1)], "one.png"), detections([])]
    b = [detections([(0, 0, 10, 11, 0.8, 0), (90, 90, 99, 99, 0.4, 1)], "one.png"), detections([])]
    report = agree(a, b, names=("x", "y"))
    d = report.to_dict()
    assert d["f1"] == {"0.5": 0.5, "0.75": 0.5, "0.95": 0.0}  # one pair of IoU 10/11, of 2 + 2 boxes
    assert d["box_delta_px"]["max"] == pytest.approx(1)
    assert d["score_delta"]["max"] == pytest.approx(0.1)
    assert d["highest_score_without_partner"] == pytest.approx(0.5)
    assert report.images[1].f1() == 1
    assert report.worst() == [0]
    assert "0.5000" in report.render()
    same = agree(a, a)
    assert [same.f1(i) for i in range(3)] == [1, 1, 1]
    assert same.worst() == []
    nothing = agree([], [])
    assert nothing.f1() == 1
    assert "agreement" in nothing.render()
    with pytest.raises(InputError, match="not of the same images"):
        agree(a, b[:1])


# -- annotations -------------------------------------------------------------------------------------------------------


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 5, "name": "b"}, {"id": 3, "name": "a"}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}],
    } | changes


def test_annotations_are_checked(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    data = CocoData.load(coco(), tmp_path)
    assert list(data.categories.items()) == [(3, "a"), (5, "b")]
    assert data.annotations[0]["area"] == 12
    assert data.category_ids(("B", "a"), 2) == [5, 3]
    assert data.category_ids((), 2) == [3, 5]
    assert data.category_ids(("x", "y"), 2) == [3, 5]  # as many: by order
    with pytest.raises(InputError, match="not the categories"):
        data.category_ids(("x", "y", "z"), 3)
    truth = data.truth(data.images[0], [5, 3], ("b", "a"), (20, 20))
    assert truth.xyxy.tolist() == [[1, 2, 4, 6]]
    assert truth.class_names == ["a"]
    crowd = coco(annotations=[coco()["annotations"][0] | {"iscrowd": 1}])
    assert len(CocoData.load(crowd, tmp_path).truth(data.images[0], [5, 3], ("b", "a"), (20, 20))) == 0
    for broken, says in (
        ({"images": [], "annotations": []}, "no images"),
        ({"images": [{"id": 1}]}, "COCO's format"),
        ({"images": [{"id": 1, "file_name": "b.png"}]}, "1 of 1 images are missing"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "same id"),
        ({"annotations": [{"image_id": 2, "category_id": 3, "bbox": [1, 2, 3, 4]}]}, "Annotation 1"),
        ({"annotations": [{"image_id": 1, "category_id": 4, "bbox": [1, 2, 3, 4]}]}, "Annotation 1"),
        ({"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3]}]}, "Annotation 1"),
        ({"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, math.nan]}]}, "Annotation 1"),
        ({"categories": None}, "COCO's format"),
    ):
        with pytest.raises(InputError, match=says):
            CocoData.load(coco(**broken), tmp_path)
    (tmp_path / "no.json").write_text("{")
    for path, says in ((tmp_path / "no.json", "not JSON"), (tmp_path / "none.json", "cannot be read")):
        with pytest.raises(InputError, match=says):
            CocoData.load(path, tmp_path)


# -- an engine, from end to end ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine and its ONNX, six images, and labels that are what the engine finds, but for some of them."""
    home = tmp_path_factory.mktemp("val")
    (home / "model.onnx").write_bytes(small_models.onnx_bytes("detector", "raw", True, True))
    plan = build(home / "model.onnx", "openvino", output=home / "engine", image_size=SIZE, verify=False).plan
    assert plan == home / "engine.xml"
    images, labels = [], []
    (home / "images").mkdir()
    with Detector(plan, threads=1) as detector:
        for i in range(6):
            name = f"{i}.png"
            small_models.picture((90, 100 + 9 * i), i, (4, 4)).save(home / "images" / name)
            images.append({"id": 100 + i, "file_name": name})
            for row in detector(home / "images" / name, conf=0.5):
                left, top, right, bottom = row.xyxy
                labels.append(
                    {
                        "image_id": 100 + i,
                        "category_id": row.class_id + 1,
                        "bbox": [left, top, right - left, bottom - top],
                    }
                )
    categories = [{"id": c + 1, "name": f"kind {c}"} for c in range(small_models.CLASSES)]
    assert len(labels) > 20
    data = {"images": images, "categories": categories, "annotations": labels}
    (home / "labels.json").write_text(json.dumps(data))
    return home


def test_labels_that_the_engine_finds_give_a_map_of_one(folder: Path) -> None:
    data = CocoData.load(folder / "labels.json", folder / "images")
    with Detector(folder / "engine.xml", threads=1) as detector:
        same = validate(detector, data, conf=0.5, multi_label=False, f1_conf=0.5)
        assert same.mean() == pytest.approx(1, abs=1e-9)
        assert set(same.f1) == {1.0}
        assert same.worst() == []
        some = CocoData(data.images, data.categories, data.annotations[::2])
        half = validate(detector, some, conf=0.5, multi_label=False, f1_conf=0.5)
        assert 0.1 < half.mean() < 0.95
        assert len(half.worst()) == 3
        nothing = validate(detector, data, conf=1.0)
        assert nothing.mean() == 0
        assert all(c.ap == 0 for c in nothing.classes if c.labels)
    assert "mAP50-95" in half.render()
    json.dumps(half.to_dict(), allow_nan=False)


def test_onnx_runtime_and_the_engine_agree(folder: Path) -> None:
    reference = OnnxReference(folder / "model.onnx", image_size=SIZE, threads=1)
    paths = sorted((folder / "images").glob("*.png"))
    with Detector(folder / "engine.xml", threads=1) as detector:
        report = agree([detector(p) for p in paths], [reference(p) for p in paths])
    assert report.counts[0] > 20
    assert report.f1(0) > 0.99
    assert report.to_dict()["box_delta_px"]["p95"] < 0.05


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images, labels = str(folder / "engine.xml"), str(folder / "images"), str(folder / "labels.json")
    out, picture = tmp_path / "r.json", tmp_path / "r.png"
    words = [
        "val",
        model,
        "--data",
        labels,
        "--images",
        images,
        "--against",
        str(folder / "model.onnx"),
        "--threads",
        "1",
    ]
    words += ["--image-size", "96x128", "--json", str(out), "--plot", str(picture), "--quiet"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["validation"]["num_images"] == report["agreement"]["num_images"] == 6
    assert report["validation"]["map50_95"] > 0.5
    assert f"{report['validation']['map50_95']:.4f}" in text
    assert report["agreement"]["f1"]["0.5"] > 0.99
    for path in (picture, tmp_path / "r-agreement.png"):
        with Image.open(path) as drawn:
            assert min(drawn.size) > 400
            assert len(set(drawn.convert("L").resize((64, 64)).tobytes())) > 20
    assert cli.main(["val", model, "--data", labels, "--images", images, "-q", "--min-map", "0.999999"]) == 1
    assert cli.main(["val", model, "--against", model, "--images", f"{images}/*.png", "-q", "--min-f1", "1"]) == 0
    assert "6 images" in capsys.readouterr().out
    assert cli.main(["val", model, "--against", model, "--images", images, "-q", "--limit", "2", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"]["num_images"] == 2


def test_wrong_uses_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images, labels = str(folder / "engine.xml"), str(folder / "images"), str(folder / "labels.json")
    for words, says in (
        ([model, "--images", images], "nothing to measure against"),
        ([model, "--images", images, "--against", model, "--min-map", "0.5"], "--min-map needs --data"),
        (["none.xml", "--images", images, "--data", labels], "no such model"),
        ([model, "--images", "nowhere", "--against", model], "no such folder"),
        ([model, "--images", "nowhere", "--data", labels], "6 of 6 images are missing"),
        ([model, "--images", images, "--data", labels, "--limit", "0"], "--limit"),
        ([model, "--images", images, "--data", labels, "--json", labels], "would replace a file that is read"),
        ([model, "--images", images, "--against", model, "--json", model[:-3] + "json"], "would replace a file"),
    ):
        assert cli.main(["val", *words, "-q"]) == 2
        assert says in capsys.readouterr().err


def test_without_the_evaluator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    data = CocoData.load(folder / "labels.json", folder / "images")
    with pytest.raises(BackendUnavailable, match=r"dhead-trt\[val\]"):
        validate(None, data)
