"""Data sets on disk, what happens to bad labels, augmentation, and scenes written as COCO files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

from dhead_trt.errors import InputError  # noqa: E402
from dhead_trt.training.data import (  # noqa: E402
    Augmentation,
    CocoDataset,
    Scenes,
    YoloDataset,
    augment,
    contact_sheet,
    write_coco,
)
from dhead_trt.training.data.augment import flip, rescale  # noqa: E402
from dhead_trt.validate import CocoData  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def picture(path: Path, width: int = 80, height: int = 60, box: tuple[int, int, int, int] | None = None) -> Path:
    pixels = np.full((height, width, 3), 40, np.uint8)
    if box:
        pixels[box[1] : box[3], box[0] : box[2]] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def coco(folder: Path, annotations: list[dict], images: int = 1) -> Path:
    for i in range(images):
        picture(folder / f"{i}.png", box=(20, 10, 60, 40))
    content = {
        "images": [{"id": i + 5, "file_name": f"{i}.png", "width": 80, "height": 60} for i in range(images)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [{"id": n, "image_id": 5, **a} for n, a in enumerate(annotations, 1)],
    }
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


# ---- COCO ------------------------------------------------------------------------------------------------------------


def test_coco_boxes_lie_on_the_letterboxed_picture(tmp_path):
    data = CocoDataset(coco(tmp_path, [{"category_id": 9, "bbox": [20, 10, 40, 30]}]), tmp_path, (160, 160))
    image, targets = data[0]
    assert data.names == ("cat", "dog")
    assert image.dtype == torch.uint8
    assert tuple(image.shape) == (3, 160, 160)
    # 80 × 60 → twice as large, 20 px of padding above
    assert targets.tolist() == [[1, 40, 40, 120, 100]]
    bright = (image[0] > 145).nonzero()
    assert bright.min(0).values.tolist() == pytest.approx([40, 40], abs=1)
    assert (bright.max(0).values + 1).tolist() == pytest.approx([100, 120], abs=1)
    assert image[0, 5, 5] == 114


def test_coco_names_choose_and_order(tmp_path):
    path = coco(tmp_path, [{"category_id": c, "bbox": [0, 0, 9, 9]} for c in (3, 9, 9)])
    data = CocoDataset(path, tmp_path, (64, 64), names=("dog", "cat"))
    assert data.names == ("dog", "cat")
    assert data[0][1][:, 0].tolist() == [1, 0, 0]
    only = CocoDataset(path, tmp_path, (64, 64), names=("dog",))
    assert only[0][1][:, 0].tolist() == [0, 0]
    assert only.counts.kept == 2
    with pytest.raises(InputError, match=r"no such category.*cow"):
        CocoDataset(path, tmp_path, (64, 64), names=("cow",))


def test_coco_bad_labels(tmp_path):
    path = coco(
        tmp_path,
        [
            {"category_id": 3, "bbox": [-10, -10, 30, 30]},  # clipped
            {"category_id": 3, "bbox": [70, 50, 500, 500]},  # clipped
            {"category_id": 3, "bbox": [100, 10, 20, 20]},  # outside
            {"category_id": 3, "bbox": [10, 10, 0, 20]},  # no area
            {"category_id": 3, "bbox": [10, 10, 0.5, 20]},  # hardly any
            {"category_id": 9, "bbox": [0, 0, 50, 50], "iscrowd": 1},
        ],
        images=2,
    )
    data = CocoDataset(path, tmp_path, (60, 80))
    assert data[0][1].tolist() == [[0, 0, 0, 20, 20], [0, 70, 50, 80, 60]]
    assert (data.counts.kept, data.counts.clipped, data.counts.dropped) == (2, 2, 3)
    assert tuple(data[1][1].shape) == (0, 5)  # an image without objects stays
    with pytest.raises(InputError, match="Annotation 1 is not a box"):
        CocoDataset(coco(tmp_path, [{"category_id": 3, "bbox": [10, 10, -5, 5]}]), tmp_path, (64, 64))
    with pytest.raises(InputError, match="does not fit the file"):
        CocoDataset(coco(tmp_path, [{"category_id": 4, "bbox": [10, 10, 5, 5]}]), tmp_path, (64, 64))
    with pytest.raises(InputError, match="32 to 8192"):
        CocoDataset(path, tmp_path, (8, 8))


def test_rotated_photographs(tmp_path):
    """Labels refer to the picture as viewers show it: EXIF orientation 6 makes 80 × 60 a picture of 60 × 80."""
    path = coco(tmp_path, [{"category_id": 3, "bbox": [0, 60, 60, 20]}])
    image = Image.open(tmp_path / "0.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "0.png", exif=exif)
    data = CocoDataset(path, tmp_path, (80, 60))
    assert data[0][1].tolist() == [[0, 0, 60, 60, 80]]
    assert data.counts.clipped == 0


# ---- YOLO ------------------------------------------------------------------------------------------------------------


def yolo(folder: Path, rows: str | None, *, yaml: str | None = None) -> Path:
    picture(folder / "images" / "train" / "a.png", box=(20, 15, 60, 45))
    picture(folder / "images" / "train" / "b.png")
    if rows is not None:
        label = folder / "labels" / "train" / "a.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(rows)
    if yaml is not None:
        (folder / "data.yaml").write_text(yaml)
    return folder


def test_yolo_boxes_lie_on_the_letterboxed_picture(tmp_path):
    data = YoloDataset(
        yolo(tmp_path, "1 0.5 0.5 0.5 0.5\n\n0 .25 .5 .1 .1\n", yaml="names: [cat, 'dog']\n"), (120, 160)
    )
    assert data.names == ("cat", "dog")
    image, targets = data[0]
    assert targets[0].tolist() == [1, 40, 30, 120, 90]
    bright = (image[0] > 145).nonzero()
    assert bright.min(0).values.tolist() == pytest.approx([30, 40], abs=1)
    assert tuple(data[1][1].shape) == (0, 5)  # no text file: an empty image


@pytest.mark.parametrize(
    ("yaml", "names"),
    [
        ("path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: a dog  # comment\n", ("cat", "a dog")),
        ("train: images/train\nnames:\n- cat\n- 'a dog'\n", ("cat", "a dog")),
        ("# top\ntrain: images/train\nnc: 2\nnames: {0: cat, 1: a dog}\n", ("cat", "a dog")),
    ],
)
def test_yolo_yaml(tmp_path, yaml, names):
    yolo(tmp_path, "1 .5 .5 .5 .5", yaml=yaml)
    assert YoloDataset(tmp_path / "data.yaml", (64, 64)).names == names
    with pytest.raises(InputError, match="no split 'test'"):
        YoloDataset(tmp_path / "data.yaml", (64, 64), split="test")


def test_yolo_layouts(tmp_path):
    picture(tmp_path / "flat" / "a.png")
    (tmp_path / "flat" / "a.txt").write_text("2 .5 .5 1 1")
    flat = YoloDataset(tmp_path / "flat", (64, 64))
    assert flat.names == ("0", "1", "2")
    assert flat[0][1].tolist() == [[2, 0, 8, 64, 56]]
    (tmp_path / "flat" / "classes.txt").write_text("a\nb\nc\n")
    assert YoloDataset(tmp_path / "flat", (64, 64)).names == ("a", "b", "c")
    picture(tmp_path / "robo" / "val" / "images" / "a.png")
    (tmp_path / "robo" / "val" / "labels").mkdir()
    (tmp_path / "robo" / "val" / "labels" / "a.txt").write_text("0 .5 .5 1 1")
    assert len(YoloDataset(tmp_path / "robo", (64, 64), split="val")[0][1]) == 1
    with pytest.raises(InputError, match="There are no images"):
        YoloDataset(tmp_path / "robo", (64, 64), split="train")


def test_yolo_outlines(tmp_path):
    data = YoloDataset(yolo(tmp_path, "0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n"), (60, 80))
    assert data[0][1].tolist() == [[0, 20, 15, 60, 45]]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("0 .5 .5 .5", "line 1 is not a label"),
        ("cat .5 .5 .5 .5", "line 1 is not a label"),
        ("0 .5 .5 .5 x", "line 1 is not a label"),
        ("0 .5 .5 .5 .5 .5", "line 1 is not a label"),
        ("0 40 30 20 20", "line 1 is in pixels"),
        ("0 nan .5 .5 .5", "line 1 is not a box"),
        ("0 .5 .5 -.5 .5", "line 1 is not a box"),
        ("7 .5 .5 .5 .5", "unknown class.*0 to 1"),
        ("-1 .5 .5 .5 .5", "unknown class"),
    ],
)
def test_yolo_bad_rows(tmp_path, row, text):
    with pytest.raises(InputError, match=text):
        YoloDataset(yolo(tmp_path, row), (64, 64), names=("cat", "dog"))


def test_yolo_boxes_outside(tmp_path):
    data = YoloDataset(yolo(tmp_path, "0 0 0 .5 .5\n0 1.5 .5 .2 .2\n0 .5 .5 0 .5\n"), (60, 80))
    assert data[0][1].tolist() == [[0, 0, 0, 20, 15]]
    assert (data.counts.kept, data.counts.clipped, data.counts.dropped) == (1, 1, 2)


# ---- written scenes --------------------------------------------------------------------------------------------------


def test_written_scenes_are_read_back(tmp_path):
    scenes = Scenes(5, (96, 128), seed=8)
    path = write_coco(scenes, tmp_path / "out")
    assert list(CocoData.load(path, path.parent / "images").categories.values()) == list(scenes.names)
    data = CocoDataset(path, path.parent / "images", (96, 128))
    assert data.counts.clipped == 0
    for i in range(5):
        image, targets = data[i]
        assert torch.equal(image, scenes[i][0])
        assert torch.allclose(targets, scenes[i][1], atol=2e-3)
    assert len(CocoDataset(write_coco(scenes, tmp_path / "two", limit=2), tmp_path / "two" / "images", (96, 128))) == 2
    with pytest.raises(InputError, match="no samples"):
        write_coco(scenes, tmp_path / "none", limit=0)


def test_script(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "make_scenes.py")]
    done = subprocess.run(
        [*command, "--images", "3", "--size", "64", "96", "--domain", "dense", "--output", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "3 scenes of dense" in done.stdout
    data = CocoDataset(tmp_path / "s" / "annotations.json", tmp_path / "s" / "images", (64, 96))
    assert torch.equal(data[2][0], Scenes(3, (64, 96), "dense")[2][0])
    subprocess.run([*command, "--size", "64", "--sheet", str(tmp_path / "x.png")], capture_output=True, check=True)
    assert Image.open(tmp_path / "x.png").size == (4 * 134 - 6, 4 * 134 - 6)
    bad = subprocess.run([*command, "--domain", "sunny", "--sheet", "x.png"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: There is no such domain")


def test_contact_sheet_shows_the_boxes():
    image, targets = torch.zeros(3, 32, 48, dtype=torch.uint8), torch.tensor([[0.0, 10, 8, 30, 24]])
    sheet = np.asarray(contact_sheet([(image, targets)] * 3, ("x",), columns=2, zoom=2))
    assert sheet.shape == (2 * 64 + 6, 2 * 96 + 6, 3)
    assert sheet[16:48, 20:22].max() > 100
    assert (sheet[70:, 102:] == 255).all()
    with pytest.raises(InputError, match="no samples"):
        contact_sheet([], ())


# ---- augmentation ----------------------------------------------------------------------------------------------------

SIZES = st.integers(32, 90)


@st.composite
def samples(draw):
    """A dark canvas with one bright rectangle, and its target."""
    height, width = draw(SIZES), draw(SIZES)
    x1, y1 = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    x2, y2 = draw(st.integers(x1 + 8, width)), draw(st.integers(y1 + 8, height))
    image = torch.full((3, height, width), 20, dtype=torch.uint8)
    image[:, y1:y2, x1:x2] = 220
    return image, torch.tensor([[1.0, x1, y1, x2, y2]])


def bright_box(image) -> list[int]:
    at = (image[0] > 167).nonzero()  # between the padding's 114 and the rectangle's 220
    (y1, x1), (y2, x2) = at.min(0).values.tolist(), (at.max(0).values + 1).tolist()
    return [x1, y1, x2, y2]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(samples(), st.sampled_from([1, 2]))
def test_flipped_boxes(sample, axis):
    image, targets = flip(*sample, axis)
    assert targets[0, 1:].tolist() == bright_box(image)
    again = flip(image, targets, axis)
    assert torch.equal(again[0], sample[0])
    assert torch.equal(again[1], sample[1])


@settings(deadline=None, derandomize=True, max_examples=120)
@given(samples(), st.floats(0.4, 2.5), st.floats(0, 1), st.floats(0, 1))
def test_rescaled_boxes(sample, factor, down, across):
    image, targets = rescale(*sample, factor, (down, across), keep=0.5)
    assert image.shape == sample[0].shape
    if len(targets):
        # blurred edges: the threshold is crossed within one enlarged pixel
        assert targets[0, 1:].tolist() == pytest.approx(bright_box(image), abs=0.5 + max(1.0, factor) * 0.75)
    else:  # most of it must have left the frame, or it became tiny
        seen = int((image[0] > 167).sum())
        whole = float((sample[1][0, 3:] - sample[1][0, 1:3]).prod()) * factor**2
        assert seen < 0.62 * whole + 12 or min(sample[1][0, 3:] - sample[1][0, 1:3]) * factor < 4


@settings(deadline=None, derandomize=True, max_examples=60)
@given(samples(), st.integers(0, 1000))
def test_augmented_boxes_stay_in_the_frame(sample, seed):
    how = Augmentation(flip_vertical=0.5, scale=1.5)
    before = sample[0].clone(), sample[1].clone()
    image, targets = augment(*sample, how, np.random.default_rng(seed))
    assert image.dtype == torch.uint8
    assert image.shape == sample[0].shape
    height, width = image.shape[1:]
    assert (targets[:, 1:] >= 0).all()
    assert (targets[:, 3] <= width).all()
    assert (targets[:, 4] <= height).all()
    assert (targets[:, 3:] - targets[:, 1:3] >= 2).all()
    assert (targets[:, 0] == 1).all()
    assert torch.equal(sample[0], before[0])
    assert torch.equal(sample[1], before[1])


def test_augmentation_without_objects():
    image, targets = augment(
        torch.zeros(3, 40, 40, dtype=torch.uint8), torch.zeros(0, 5), Augmentation(), np.random.default_rng(0)
    )
    assert tuple(targets.shape) == (0, 5)
    assert image.shape == (3, 40, 40)


def test_augmentation_is_reproducible():
    sample = Scenes(1, (64, 64), seed=3)[0]
    how = Augmentation()
    a, b, c = (how(*sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[0], c[0])
    nothing = Augmentation(flip=0, scale=0, brightness=0, contrast=0, saturation=0)
    assert torch.equal(nothing(*sample, np.random.default_rng(1))[0], sample[0])


def test_colour_changes_the_picture_but_not_the_boxes():
    scenes = Scenes(1, (64, 64), seed=3)
    how = Augmentation(flip=0, scale=0)
    image, targets = augment(*scenes[0], how, np.random.default_rng(1))
    assert torch.equal(targets, scenes[0][1])
    assert not torch.equal(image, scenes[0][0])
    grey = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    levels = {int(augment(grey, targets, how, np.random.default_rng(s))[0].float().mean().round()) for s in range(40)}
    assert min(levels) < 85
    assert max(levels) > 115
    assert min(levels) >= 75
    assert max(levels) <= 125


@pytest.mark.parametrize("field", ["flip", "scale", "saturation", "keep"])
def test_augmentation_out_of_range(field):
    for value in (-0.1, 4.1, float("nan")):
        with pytest.raises(InputError, match=f"Augmentation.{field}"):
            Augmentation(**{field: value})
