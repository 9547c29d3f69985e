"""The Detector on a small engine: every way of calling it gives what the oracle gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import small_models
from dhead_trt import reference
from dhead_trt.build import build
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.engine import Engine
from dhead_trt.errors import ArtifactError, InputError
from dhead_trt.heads import CoupledHead, WholeModel
from dhead_trt.letterbox import letterbox

pytest.importorskip("openvino", reason="OpenVINO is not installed")

MapsOf = Callable[[np.ndarray], dict[str, np.ndarray]]
FEW = {"conf": 0.5}  # where runs of different batch size are compared: far from near-ties
H, W = 256, 320  # large against the head's boxes, so that most are not clipped to the image
SIZES = [(64, 96), (50, 41), (200, 333), (33, 90), (128, 192), (7, 70), (96, 64)]


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.asarray(small_models.picture(size, seed))


def pictures() -> list[np.ndarray]:
    return [picture(size, seed) for seed, size in enumerate(SIZES)]


def built(folder: Path, name: str, **options: Any) -> Path:
    return small_models.openvino_plan(folder / name, **{"image_size": (H, W), **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Path:
    return built(folder, "one_to_three", batch=(1, 2, 3))


@pytest.fixture(scope="module")
def detector(plan: Path) -> Iterator[Detector]:
    with Detector(plan, threads=2) as d:
        yield d


@pytest.fixture(scope="module")
def maps_of(plan: Path) -> Iterator[MapsOf]:
    """Canvas [3, H, W] → the raw maps of this very engine, so that every decision of the NMS can be compared."""
    with Engine(plan, output="raw", threads=2) as engine:
        yield lambda canvas: engine.infer(canvas[None])


@pytest.fixture(scope="module")
def spec(plan: Path) -> Any:
    with Engine(plan) as engine:
        return engine.spec


def oracle(maps_of: MapsOf, spec: Any, image: np.ndarray, *, rect: bool = False, **options: Any) -> np.ndarray:
    """Rows left, top, right, bottom, score, class on the image, by float64 NMS and the Ultralytics formulas."""
    canvas, _ = letterbox(image, (H, W), rect=rect)
    found = reference.detect(maps_of(canvas), spec, **options)
    n = int(found.num_dets[0, 0])
    height, width = image.shape[:2]
    gain = min(H / height, W / width)
    new_h, new_w = max(round(height * gain), 1), max(round(width * gain), 1)
    top, left = (round((side - new) / 2 - 0.1) for side, new in zip(canvas.shape[1:], (new_h, new_w), strict=True))
    boxes = (found.boxes[0, :n] - [left, top, left, top]) / np.array([new_w / width, new_h / height] * 2)
    boxes = np.clip(boxes, 0, [width, height, width, height])
    return np.column_stack([boxes, found.scores[0, :n], found.classes[0, :n]])


def assert_rows(found: Detections, want: np.ndarray) -> None:
    """The same detections in the same order; in pixels of the image, which may be larger than the canvas."""
    assert found.class_id.tolist() == want[:, 5].tolist()
    scale = max(1.0, *(a / b for a, b in zip(found.image_size, (H, W), strict=True)))
    np.testing.assert_allclose(found.xyxy, want[:, :4], rtol=0, atol=2e-3 * scale)
    np.testing.assert_allclose(found.confidence, want[:, 4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_one_image(detector: Detector, maps_of: MapsOf, spec: Any, index: int) -> None:
    image = pictures()[index]
    want = oracle(maps_of, spec, image)
    assert len(want) > 0
    found = detector(image)
    assert_rows(found, want)
    assert found.image_size == SIZES[index]
    assert found.source is None


@pytest.mark.parametrize(
    "options",
    [
        {"conf": 0.4},
        {"conf": 0.0, "max_det": 5},
        {"iou": 0.2},
        {"classes": [1, 3]},
        {"class_agnostic": True, "iou": 0.3},
        {"multi_label": True, "conf": 0.1},
        {"max_candidates": 7},
    ],
    ids=str,
)
def test_options_of_a_call(detector: Detector, plan: Path, maps_of: MapsOf, spec: Any, options: dict) -> None:
    image = picture((80, 100), 9)
    ours = {"agnostic" if k == "class_agnostic" else k: v for k, v in options.items()}
    want = oracle(maps_of, spec, image, **options)
    assert len(want) > 0
    assert_rows(detector(image, **ours), want)
    with Detector(detector.engine, **ours) as second:  # as defaults
        assert_rows(second(image), want)
        assert_rows(second(image, **{"conf": 0.25, "iou": 0.7, "classes": None, "agnostic": False} | ours), want)
    assert len(detector(image)) > 0  # an engine that was lent stays open
    plain = oracle(maps_of, spec, image)
    assert plain.shape != want.shape or not np.array_equal(plain, want)  # the option mattered


def test_nothing_found(detector: Detector) -> None:
    found = detector(picture((70, 80)), conf=1.0)
    assert len(found) == 0
    assert found.image_size == (70, 80)


def test_all_kinds_of_input_agree(detector: Detector, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    image = picture((70, 90), 4)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    want = detector(image)
    assert len(want) > 0
    tensor = torch.from_numpy(image.copy())
    for source in (Image.fromarray(image), image / 255.0, image[::-1][::-1], tensor, tensor.permute(2, 0, 1)):
        assert detector(source) == want
    for source in (path, str(path)):
        found = detector(source)
        assert found.source == str(path)
        assert found[:].to_dict() | {"source": None} == want.to_dict()
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    assert detector(bgr, bgr=True) == want
    assert detector(bgr) != want
    with Detector(detector.engine, bgr=True) as other:
        assert other(bgr) == want
        assert other(image, bgr=False) == want
        assert other(str(path)).xyxy.tolist() == want.xyxy.tolist()


def same(a: Detections, b: Detections) -> None:
    """Equal but for the rounding that differs between batch sizes."""
    assert (a.class_id.tolist(), a.image_size, a.source) == (b.class_id.tolist(), b.image_size, b.source)
    np.testing.assert_allclose(a.xyxy, b.xyxy, rtol=0, atol=5e-3)
    np.testing.assert_allclose(a.confidence, b.confidence, rtol=0, atol=1e-5)


def test_lists_of_any_sizes_and_lengths(detector: Detector) -> None:
    alone = [detector(image, **FEW) for image in pictures()]
    assert all(len(found) > 3 for found in alone)
    for count in (0, 1, 2, 3, 4, 7):  # the engine takes up to 3
        results = detector(pictures()[:count], **FEW)
        assert isinstance(results, list)
        assert len(results) == count
        for got, want in zip(results, alone, strict=False):
            same(got, want)
    for got, want in zip(detector(tuple(pictures()), **FEW), alone, strict=True):
        same(got, want)


def test_a_fixed_batch_is_filled_up(folder: Path, detector: Detector) -> None:
    with Detector(built(folder, "four", batch=4)) as four:
        for count in (1, 4, 6):
            for got, image in zip(four(pictures()[:count], **FEW), pictures(), strict=False):
                same(got, detector(image, **FEW))
        same(four(pictures()[2], **FEW), detector(pictures()[2], **FEW))


def test_rect(folder: Path, spec: Any) -> None:
    plan = built(folder, "rect", batch=(1, 2, 4), image_size=((32, 32), (H, W), (H, W)))
    with Detector(plan, rect=True) as rect, Detector(plan) as square, Engine(plan, output="raw") as raw:

        def maps(canvas: np.ndarray) -> dict[str, np.ndarray]:
            return raw.infer(canvas[None])

        assert rect.image_size == square.image_size == (H, W)
        for image, found in zip(pictures(), rect(pictures(), **FEW), strict=True):
            same(found, rect(image, **FEW))
            want = oracle(maps, spec, image, rect=True)
            assert_rows(rect(image), want)
            padded = oracle(maps, spec, image)
            assert_rows(square(image), padded)
            whole = letterbox(image, (H, W), rect=True)[1].size == (H, W)
            assert whole == (want.shape == padded.shape and np.array_equal(want, padded))
    with Detector(plan, image_size=(32, 64)) as small:
        assert small.image_size == (32, 64)
        assert small(pictures()[0]).image_size == SIZES[0]


def test_errors_stand_in_their_place(detector: Detector, tmp_path: Path) -> None:
    good = pictures()
    for i, image in enumerate(good):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"")
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    paths: list[Any] = [tmp_path / f"{i}.png" for i in range(len(good))]
    paths[5] = tmp_path / "missing.png"
    paths.append(np.full((4, 4, 3), np.nan))
    results = detector(paths, on_error="return", **FEW)
    assert [isinstance(r, Detections) for r in results] == [True, True, False, True, False, False, True, False]
    for i in (0, 1, 3, 6):
        same(results[i], detector(paths[i], **FEW))
    for i, says in ((2, "0 bytes"), (4, "damaged"), (5, "No such file"), (7, "NaN")):
        assert isinstance(results[i], InputError)
        assert f"Image {i}: " in str(results[i])
        assert says in str(results[i])
    with pytest.raises(InputError, match=r"Image 2: .*2\.png"):
        detector(paths)
    with pytest.raises(InputError, match=r"^The image file is empty"):  # one image needs no number
        detector(paths[2])
    assert "0 bytes" in str(detector(paths[2], on_error="return"))
    with pytest.raises(InputError, match="on_error"):
        detector(paths, on_error="ignore")


def test_folders_globs_and_streams(detector: Detector, tmp_path: Path) -> None:
    for i, image in enumerate(pictures()):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("x")
    results = detector(tmp_path)
    assert [Path(r.source).name for r in results] == [f"{i}.png" for i in range(len(SIZES))]
    assert [r.image_size for r in results] == SIZES
    assert [Path(r.source).name for r in detector(str(tmp_path / "[12].png"))] == ["1.png", "2.png"]
    taken = []

    def source() -> Iterator[np.ndarray]:
        for image in pictures():
            taken.append(1)
            yield image

    stream = detector.stream(source())
    first = next(stream)
    assert first.image_size == SIZES[0]
    assert len(taken) == 3  # one batch of the engine, not everything
    assert [first.image_size, *(r.image_size for r in stream)] == SIZES


def test_extreme_images(detector: Detector) -> None:
    for size in ((1, 1), (1, 500), (20000, 10)):
        found = detector(np.full((*size, 3), 77, np.uint8), conf=0.01)
        assert found.image_size == size
        assert (found.xyxy >= 0).all()
        assert (found.xyxy[:, 2] <= size[1]).all()
        assert (found.xyxy[:, 3] <= size[0]).all()


def test_uniform_scale_is_that_of_ultralytics(detector: Detector, maps_of: MapsOf, spec: Any) -> None:
    image = picture((200, 333), 2)
    exact = detector(image)
    with Detector(detector.engine, uniform_scale=True) as other:
        uniform = other(image)
    gain = min(H / 200, W / 333)
    canvas, box = letterbox(image, (H, W))
    n = len(exact)
    raw = reference.detect(maps_of(canvas), spec).boxes[0, :n] - [box.pad[1], box.pad[0]] * 2
    want = np.clip(raw / gain, 0, [333, 200, 333, 200])
    np.testing.assert_allclose(uniform.xyxy, want, rtol=0, atol=0.01)
    assert not np.allclose(uniform.xyxy, exact.xyxy, rtol=0, atol=0.05)


def test_threads_share_a_detector(detector: Detector) -> None:
    images = [picture((60 + 7 * i, 90 + 3 * i), i) for i in range(12)]
    want = [detector(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(detector, images * 10))
    for i, found in enumerate(got):
        assert found == want[i % 12], i


def test_results_do_not_share_memory_with_later_calls(detector: Detector) -> None:
    first = detector(pictures()[0])
    before = first.xyxy.copy()
    detector(pictures()[2])
    np.testing.assert_array_equal(first.xyxy, before)


def test_an_onnx_file_says_how_to_build(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a built engine.*dhead-trt build model\.onnx"):
        Detector(tmp_path / "model.onnx")


def test_damaged_engines(plan: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        Detector(tmp_path / "none.xml")
    for file in plan.parent.glob(f"{plan.stem}.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / plan.with_suffix(".json").name).unlink()
    with pytest.raises(ArtifactError, match="sidecar"):
        Detector(tmp_path / plan.name)


def test_engines_that_are_no_image_detectors(folder: Path, plan: Path) -> None:
    head = build(small_models.onnx_bytes("head"), "openvino", output=folder / "head", verify=False).plan
    with pytest.raises(InputError, match="does not take images"):
        Detector(head)
    with Engine(plan, output="decoded") as engine, pytest.raises(InputError, match="does not give detections"):
        Detector(engine)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"conf": 1.5}, "conf is out of range"),
        ({"conf": float("nan")}, "conf is out of range"),
        ({"conf": "high"}, "conf is out of range"),
        ({"iou": -0.1}, "iou is out of range"),
        ({"max_det": 0}, "max_det is out of range"),
        ({"max_candidates": 2.5}, "max_candidates is out of range"),
        ({"classes": ["cow"]}, "no such class"),
        ({"classes": [-1]}, "no such class"),
    ],
)
def test_options_out_of_range(detector: Detector, options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        detector(picture((9, 9)), **options)
    with pytest.raises(InputError, match=says):
        Detector(detector.engine, **options)


def test_other_wrong_arguments(detector: Detector, plan: Path) -> None:
    with pytest.raises(InputError, match="no such option: received cnof, expected conf"):
        detector(picture((9, 9)), cnof=0.5)
    with pytest.raises(InputError, match="not an image"):
        detector(None)
    with pytest.raises(InputError, match="rect needs"):
        Detector(plan, rect=True)
    with pytest.raises(InputError, match="size is fixed"):
        Detector(plan, image_size=(32, 32))
    with pytest.raises(InputError, match="already has its device"):
        Detector(detector.engine, "CPU")


def test_closing(plan: Path) -> None:
    with Detector(plan) as closed:
        closed(picture((9, 9)))
    with pytest.raises(InputError, match="closed"):
        closed(picture((9, 9)))


def test_sides_beyond_each_other_give_empty_boxes(tmp_path: Path) -> None:
    """A head without bins can predict negative distances; that must not cost the image its other detections."""
    with small_models.seeded(3):
        head = CoupledHead(5, small_models.CHANNELS, bins=1).eval()
        small_models._liven(head)
        model = WholeModel(small_models.Backbone(), head).eval()
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    plan = build(model, "openvino", output=tmp_path / "m", image_size=small_models.SIZE, verify=False).plan
    with Detector(plan, conf=0.01) as detector:
        found = detector(image)
        raw = detector.engine.infer(letterbox(image, small_models.SIZE)[0][None], conf=0.01)
    boxes = raw["det_boxes"][0, : len(found)]
    inside_out = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    assert 0 < inside_out.sum() < len(found)
    assert (found.area[inside_out] == 0).all()
    assert found.area[~inside_out].max() > 0


def test_progress_of_many(tmp_path: Path) -> None:
    plan = built(tmp_path, "m", batch=(1, 2, 2))
    told: list[tuple[str, float | None]] = []
    with Detector(plan, threads=1) as detector:
        found = detector(pictures()[:4], progress=lambda phase, part=None: told.append((phase, part)))
        assert told == [("detecting", part) for part in (0.25, 0.5, 0.75, 1.0)]
        assert found == detector(pictures()[:4])
        told.clear()
        list(detector.stream(iter(pictures()[:2]), progress=lambda phase, part=None: told.append((phase, part))))
        assert told == [("detecting", None)] * 2


def test_classes_of_any_kind_and_absurd_numbers(tmp_path: Path) -> None:
    with Detector(built(tmp_path, "m"), threads=1) as detector:
        images = pictures()[:2]
        want = detector(images, classes=[1])
        assert all(len(found) for found in want)
        for classes in (1, (1,), {1}, np.array([1]), iter([1])):
            assert detector(images, classes=classes) == want
        with pytest.raises(InputError, match="no such class"):
            detector(images[0], classes=1.0)
        for name in ("max_det", "max_candidates"):
            with pytest.raises(InputError, match=f"{name} is out of range: received 1000000000, expected 1 to 1048576"):
                detector(images[0], **{name: 10**9})
