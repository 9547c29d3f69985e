"""Detections: validation, selection, formats, drawing."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dhead_trt.detections import Detection, Detections
from dhead_trt.draw import class_colour, draw
from dhead_trt.errors import BackendUnavailable, InputError

NAMES = ("cat", "dog", "naïve bird")
quick = settings(deadline=None, max_examples=50, derandomize=True)


def make(n: int = 3, *, size: tuple[int, int] = (40, 60), names: tuple[str, ...] = NAMES, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (n, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0.1, 0.5, (n, 2))]) * [size[1], size[0], size[1], size[0]]
    return Detections(boxes, np.sort(rng.uniform(0, 1, n))[::-1], rng.integers(0, 3, n), names, size, "a.png")


@st.composite
def some_detections(draw: st.DrawFn) -> Detections:
    n = draw(st.integers(0, 5))
    number = st.floats(0, 5000, width=32)
    pairs = st.tuples(number, number, number, number).map(
        lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
    )
    boxes = np.array([draw(pairs) for _ in range(n)], np.float32).reshape(-1, 4)
    scores = np.array([draw(st.floats(0, 1, width=32)) for _ in range(n)], np.float32)
    return Detections(boxes, scores, np.array([draw(st.integers(0, 2)) for _ in range(n)], int), NAMES, (5000, 5000))


def test_fields_are_normalised_frozen_and_copied() -> None:
    boxes = np.array([[1, 2, 3, 4]], dtype=np.float64)
    found = Detections(boxes, [0.5], [2], ["a", "b", "c"], [10, 20])
    assert (found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype) == (np.float32, np.float32, np.int64)
    assert (found.names, found.image_size) == (("a", "b", "c"), (10, 20))
    boxes[:] = 0
    np.testing.assert_array_equal(found.xyxy, [[1, 2, 3, 4]])
    with pytest.raises(ValueError, match="read-only"):
        found.xyxy[0, 0] = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.names = ()


def test_boxes_are_not_rounded() -> None:
    found = Detections([[0.25, 1.125, 3.75, 4.0625]], [0.5], [0], (), (9, 9))
    assert next(iter(found)).xyxy == (0.25, 1.125, 3.75, 4.0625)
    assert json.loads(found.to_json())["detections"][0]["xyxy"] == [0.25, 1.125, 3.75, 4.0625]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"xyxy": [[1, 2, 3]]}, "xyxy does not fit"),
        ({"xyxy": np.zeros((2, 4))}, "confidence does not fit"),
        ({"xyxy": [1, 2, 3, 4]}, r"\[4\]"),
        ({"xyxy": [[1, 2, 3, np.nan]]}, "NaN"),
        ({"xyxy": [[5, 2, 3, 4]]}, "right < left"),
        ({"xyxy": "boxes"}, "not an array of numbers|does not fit"),
        ({"confidence": [1.5]}, "out of range"),
        ({"confidence": [-0.1]}, "out of range"),
        ({"confidence": [np.inf]}, "NaN or infinity"),
        ({"confidence": [0.5, 0.5]}, "confidence does not fit"),
        ({"class_id": [3]}, "expected 0 to 2"),
        ({"class_id": [-1]}, "class_id is out of range"),
        ({"class_id": [0.5]}, "fractions"),
        ({"class_id": ["cat"]}, "class_id"),
        ({"names": "cat"}, "names"),
        ({"names": {0: "cat"}}, "names"),
        ({"image_size": (0, 5)}, "image_size"),
        ({"image_size": (5,)}, "image_size"),
    ],
)
def test_validation(fields: dict, says: str) -> None:
    good = {"xyxy": [[1, 2, 3, 4]], "confidence": [0.5], "class_id": [1], "names": NAMES, "image_size": (10, 10)}
    Detections(**good)
    with pytest.raises(InputError, match=says):
        Detections(**{**good, **fields})


def test_rows() -> None:
    found = make()
    assert len(found) == len(list(found)) == 3
    for i, row in enumerate(found):
        assert isinstance(row, Detection)
        assert row.xyxy == tuple(found.xyxy[i].tolist())
        assert (row.confidence, row.class_id) == (float(found.confidence[i]), int(found.class_id[i]))
        assert row.name == NAMES[row.class_id]
    assert Detections([[0, 0, 1, 1]], [1], [7], (), (5, 5)).class_names == ["7"]
    np.testing.assert_allclose(found.xywh[:, 2] * found.xywh[:, 3], found.area, rtol=1e-5)


def test_selection() -> None:
    found = make(5)
    assert found[1] == found[1:2] == found[[1]] == found[np.array([False, True, False, False, False])]
    assert found[-1] == found[4:]
    assert found[[3, 0]].confidence.tolist() == found.confidence[[3, 0]].tolist()
    assert len(found[[]]) == len(found[5:]) == 0
    assert found[::-1][::-1] == found
    assert found[1].source == "a.png"
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            found[wrong]


def test_filter_and_counts() -> None:
    found = Detections(
        np.array([[0, 0, 1, 1], [0, 0, 9, 9], [0, 0, 3, 3.0]]), [0.9, 0.5, 0.1], [1, 0, 1], NAMES, (9, 9)
    )
    assert found.counts() == {"dog": 2, "cat": 1}
    assert found.filter(conf=0.5).class_id.tolist() == [1]  # strictly above
    assert found.filter(classes="dog").area.tolist() == [1, 9]
    assert found.filter(classes=["cat", 2]).area.tolist() == [81]
    assert found.filter(min_area=9).area.tolist() == [81, 9]
    assert len(found.filter(classes=[])) == 0
    for wrong in ("cow", 3, -1, True, 0.5):
        with pytest.raises(InputError, match="no such class"):
            found.filter(classes=[wrong])


def test_scaled() -> None:
    twice = make().scaled((80, 180))
    np.testing.assert_allclose(twice.xyxy, make().xyxy * [3, 2, 3, 2], rtol=1e-6)
    assert twice.image_size == (80, 180)


@quick
@given(some_detections())
def test_json_gives_back_every_bit(found: Detections) -> None:
    again = Detections.from_json(found.to_json())
    assert again == found
    assert again.xyxy.tobytes() == found.xyxy.tobytes()


def test_json_files(tmp_path: Path) -> None:
    found = make()
    path = found.save_json(tmp_path / "new" / "a.json")
    assert Detections.from_json(path) == Detections.from_json(str(path)) == found
    assert "naïve bird" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"detections": 3, "names": [], "image_size": [1, 1]}'])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError):
        Detections.from_json(path)
    with pytest.raises(InputError, match="cannot be read"):
        Detections.from_json(tmp_path / "none.json")


def test_coco_yolo_csv() -> None:
    found = Detections([[10, 5, 30, 25]], [0.75], [1], NAMES, (50, 100), "dir/a,b.png")
    assert found.to_coco(7) == [{"image_id": 7, "category_id": 1, "bbox": [10, 5, 20, 20], "score": 0.75}]
    assert found.to_coco(7, category_ids=[1, 18, 16])[0]["category_id"] == 18
    assert found.to_yolo() == "1 0.2 0.3 0.2 0.4 0.75\n"
    assert found.to_yolo(confidence=False) == "1 0.2 0.3 0.2 0.4\n"
    (row,) = csv.DictReader(io.StringIO(found.to_csv()))
    assert row["source"] == "dir/a,b.png"
    assert [float(row[k]) for k in ("left", "top", "right", "bottom", "confidence")] == [10, 5, 30, 25, 0.75]
    assert (row["class_id"], row["name"]) == ("1", "dog")


def test_empty_everywhere(tmp_path: Path) -> None:
    none = Detections.empty((20, 30), NAMES)
    assert len(none) == 0
    assert list(none) == none.class_names == none.to_coco(1) == []
    assert none.counts() == {}
    assert none.to_yolo() == ""
    assert none.to_csv().count("\n") == 1
    assert none == none[:] == none.filter(conf=0.1, classes="cat") == Detections.from_json(none.to_json())
    assert none == Detections([], [], [], NAMES, (20, 30))
    assert none.xywh.shape == (0, 4)
    assert none.scaled((1, 1)).image_size == (1, 1)
    assert "nothing" in repr(none)
    for save, name in ((none.save_json, "a.json"), (none.save_yolo, "a.txt"), (none.save_csv, "a.csv")):
        assert save(tmp_path / name).exists()
    picture = none.draw(np.full((20, 30, 3), 9, np.uint8))
    assert (np.asarray(picture) == 9).all()


def test_equality_and_repr() -> None:
    assert make() == make()
    assert make() != make(seed=1)
    assert make() != make(size=(40, 61))
    assert make() != 3
    with pytest.raises(TypeError):
        hash(make())
    assert "dog" in repr(Detections([[0, 0, 1, 1]], [1], [1], NAMES, (5, 5)))


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    found = make().to_supervision()
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, make().xyxy)
    assert found.data["class_name"].tolist() == make().class_names
    assert len(Detections.empty((5, 5)).to_supervision()) == 0


def test_without_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "supervision", None)
    with pytest.raises(BackendUnavailable, match="pip install supervision"):
        make().to_supervision()


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_draws_the_box_at_its_place_in_its_colour() -> None:
    found = Detections([[10, 20, 50, 60]], [0.9], [1], NAMES, (100, 200))
    image = np.full((100, 200, 3), 255, np.uint8)
    picture = np.asarray(draw(image, found, labels=False, line_width=2, fill=0))
    assert (image == 255).all()  # the caller's image is untouched
    coloured = (picture == class_colour(1)).all(axis=2)
    want = np.zeros((100, 200), bool)
    want[20:60, 10:50] = True
    want[22:58, 12:48] = False
    np.testing.assert_array_equal(coloured, want)
    np.testing.assert_array_equal(picture[~want], 255)
    tinted = np.asarray(draw(image, found, labels=False, fill=0.5))
    assert (tinted[40, 30] < 255).any()
    assert (tinted[80, 150] == 255).all()


def test_bgr_arrays_come_out_as_rgb() -> None:
    image = np.zeros((30, 30, 3), np.uint8)
    image[:, :, 0] = 200
    assert np.asarray(draw(image, Detections.empty((30, 30)), bgr=True))[0, 0].tolist() == [0, 0, 200]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (40, 30), (200, 3), (300, 400), (2000, 3000)])
def test_every_size_of_image(size: tuple[int, int]) -> None:
    whole = [0, 0, size[1], size[0]]
    found = Detections([whole, [0, 0, 0, 0], [size[1], size[0]] * 2], [1, 0.5, 0], [0, 1, 2], NAMES, size)
    picture = np.asarray(found.draw(np.zeros((*size, 3), np.uint8)))
    assert picture.shape == (*size, 3)
    assert picture.any()


def test_text_grows_with_the_image_and_stays_readable() -> None:
    heights = []
    for side in (300, 1200, 4000):
        found = Detections([[side * 0.4, side * 0.4, side * 0.8, side * 0.8]], [0.5], [1], NAMES, (side, side))
        blank = np.full((side, side, 3), 255, np.uint8)
        labelled = np.asarray(draw(blank, found)) != np.asarray(draw(blank, found, labels=False))
        rows = np.flatnonzero(labelled.any(axis=(1, 2)))
        heights.append(int(rows[-1] - rows[0] + 1))
    assert heights[0] >= 9
    assert heights[0] < heights[1] < heights[2]
    assert heights[2] >= 4000 / 100


def test_labels_do_not_cover_each_other() -> None:
    """Twelve boxes stacked like lines of text: each label keeps a spot of its own."""
    boxes = [[300, 40 + 45 * i, 700, 40 + 45 * i + 30] for i in range(12)]
    found = Detections(boxes, np.linspace(0.95, 0.3, 12), np.arange(12) % 3, NAMES, (620, 1000))
    blank = np.full((620, 1000, 3), 255, np.uint8)
    changed = (np.asarray(draw(blank, found)) != np.asarray(draw(blank, found, labels=False))).any(axis=2)
    alone = 0
    for row in range(12):
        one = found[row]
        alone += (np.asarray(draw(blank, one)) != np.asarray(draw(blank, one, labels=False))).any(axis=2).sum()
    assert changed.sum() > 0.97 * alone


def test_writes_by_suffix_or_not_at_all(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    for name in ("a.png", "b.jpg"):
        make().draw(image, tmp_path / "made" / name)
        with Image.open(tmp_path / "made" / name) as written:
            assert written.size == (60, 40)
    for name in ("c.txt", "d"):
        with pytest.raises(InputError, match="cannot be written"):
            make().draw(image, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]


def test_draws_on_the_image_of_the_detections_only() -> None:
    with pytest.raises(InputError, match=r"received 61 × 40 pixels, expected 60 × 40.*scaled"):
        make().draw(np.zeros((40, 61, 3), np.uint8))


def test_colours_of_neighbouring_classes_differ() -> None:
    colours = [class_colour(i) for i in range(12)]
    assert len(set(colours)) == 12
    for a in range(12):
        for b in range(a):
            assert sum(abs(x - y) for x, y in zip(colours[a], colours[b], strict=True)) > 60, (a, b)
