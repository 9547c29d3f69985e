"""int8 from build() and the command line on awkward data: each case is one clear error, or scales that are safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import small_models as small
from dhead_trt.artifact import Artifact
from dhead_trt.build import build
from dhead_trt.calibration import Ranges
from dhead_trt.cli import main
from dhead_trt.errors import DheadError, InputError
from dhead_trt.precision.search import Mixed, Trial


@pytest.fixture(scope="module")
def detector() -> bytes:
    return small.onnx_bytes("detector")


@pytest.fixture(scope="module")
def head() -> bytes:
    return small.onnx_bytes("head")


def names(model: bytes) -> list[str]:
    return [i.name for i in onnx.load_from_string(model).graph.input]


def make(model: Any, output: Path, calibration: Any, **options: Any) -> Artifact:
    return build(model, "openvino", output=output, precision="int8", calibration=calibration, **options)


def picture(seed: int, size: tuple[int, int] = small.SIZE) -> np.ndarray:
    return np.rint(small.images(1, seed=seed, size=size)[0].transpose(1, 2, 0) * 255).astype(np.uint8)


def folder_of(path: Path, images: list[np.ndarray]) -> Path:
    path.mkdir(parents=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(path / f"{i:03}.png")
    return path


def npz(path: Path, model: bytes, count: int, seed: int = 0, **change: np.ndarray) -> Path:
    """Features for the head, `count` rows."""
    np.savez(path, **(dict(zip(names(model), small.features(count, seed), strict=True)) | change))
    return path


# -- what is safe --


def test_constant_images(detector: bytes, tmp_path: Path) -> None:
    """Without the gate: scales of what there was, and black, which says nothing of the first layer, leaves it as it is.

    With it, identical images prove nothing.
    """
    for value in (0, 255):
        flat = folder_of(tmp_path / str(value), [np.full((*small.SIZE, 3), value, np.uint8)] * 4)
        made = make(detector, tmp_path / f"flat{value}", flat, min_agreement=None)
        report = made.report["int8"]
        assert report["images"] == 4
        assert report["quantized"] > 0
        assert any("saw only zeros" in note for note in made.notes) is (value == 0)
        with pytest.raises(InputError, match=r"All calibration images are held-out images too.*000\.png"):
            make(detector, tmp_path / "no", flat)
    assert sorted(p.name for p in tmp_path.glob("no*")) == []


def test_an_image_that_shows_nothing_to_agree_on(head: bytes, tmp_path: Path) -> None:
    """The gate says so; it does not pass what it could not measure."""
    quiet = [f * 0 for f in small.features(1)]
    held = dict(zip(names(head), quiet, strict=True))
    lowered = onnx.load_from_string(head)
    for t in lowered.graph.initializer:
        values = numpy_helper.to_array(t)
        if values.shape == (small.CLASSES,):
            t.CopyFrom(numpy_helper.from_array(values - 30, t.name))
    with pytest.raises(InputError, match="finds nothing in the held-out images"):
        make(lowered, tmp_path / "e", npz(tmp_path / "c.npz", head, 4), held_out=held)
    assert not list(tmp_path.glob("e*"))


def test_one_image(detector: bytes, tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", [picture(0)])
    made = make(detector, tmp_path / "a", one)
    assert made.report["int8"]["images"] == 1
    assert made.report["int8"]["gate"] is None
    assert any("not measured" in n and "only 1 image." in n and "--held-out" in n for n in made.notes)
    file = make(detector, tmp_path / "b", one / "000.png")
    assert file.plan.with_suffix(".bin").read_bytes() == made.plan.with_suffix(".bin").read_bytes()


def test_channels_of_zeros(head: bytes, tmp_path: Path) -> None:
    """In the data and in the weights: the plan is what the graph computes, and the graph close to float32."""
    dead = onnx.load_from_string(head)
    first = next(n for n in dead.graph.node if n.op_type == "Conv")
    for t in dead.graph.initializer:
        if t.name == first.input[1]:
            values = numpy_helper.to_array(t).copy()
            values[::2] = 0
            t.CopyFrom(numpy_helper.from_array(values, t.name))
    features = small.features(8, seed=1)
    for f in features:
        f[:, ::3] = 0
    path = npz(tmp_path / "c.npz", head, 8, **dict(zip(names(head), features, strict=True)))
    made = make(dead, tmp_path / "a", path, min_agreement=0.5)
    assert made.report["int8"]["gate"]["agreement"] >= 0.5
    assert all(np.isfinite(o["relative"]) for o in made.report["verification"]["outputs"].values())
    silent = [f * 0 for f in features]
    path = npz(tmp_path / "z.npz", head, 8, **dict(zip(names(head), silent, strict=True)))
    made = make(head, tmp_path / "b", path, min_agreement=None)
    assert any("saw only zeros in calibration" in note for note in made.notes)
    assert all(o["relative"] < 0.2 for o in made.report["verification"]["outputs"].values())


def test_fewer_than_asked(detector: bytes, tmp_path: Path) -> None:
    few = folder_of(tmp_path / "few", [picture(i) for i in range(3)])
    made = make(detector, tmp_path / "a", few, calib_images=9, min_agreement=None)
    assert any("9 calibration images were asked for; there are 3" in note for note in made.notes)
    assert made.report["int8"]["images"] == 3


def test_images_of_any_size(detector: bytes, tmp_path: Path) -> None:
    """They are letterboxed, down to one pixel."""
    mixed = folder_of(tmp_path / "mixed", [picture(0, (1, 1)), picture(1, (200, 30)), picture(2, (64, 96))])
    assert make(detector, tmp_path / "a", mixed, min_agreement=None).report["int8"]["images"] == 3


# -- .npz: split like image files --


def test_npz_is_split(head: bytes, tmp_path: Path) -> None:
    """Over the files' borders, in batches of the plan; every fourth item proves."""
    data = tmp_path / "data"
    data.mkdir()
    npz(data / "a.npz", head, 5, seed=1)
    npz(data / "b.npz", head, 4, seed=2)
    made = make(head, tmp_path / "a", data, min_agreement=0.1, batch=2)
    assert made.report["int8"]["images"] == 7
    assert made.report["int8"]["gate"]["agreement"] > 0.1
    assert any("on 2 held-out images" in note for note in made.notes)
    limited = make(head, tmp_path / "b", data, min_agreement=0.1, calib_images=4)
    assert limited.report["int8"]["images"] == 3


# -- the same images on both sides --


def test_overlap(detector: bytes, tmp_path: Path) -> None:
    images = [picture(i) for i in range(6)]
    calib, held = folder_of(tmp_path / "calib", images), folder_of(tmp_path / "held", [*images[4:], picture(9)])
    made = make(detector, tmp_path / "a", calib, held_out=held, min_agreement=0.1)
    assert made.report["int8"]["images"] == 4
    assert any("2 of 6 calibration images are among the held-out ones" in n and "004.png" in n for n in made.notes)
    for same in (calib, [str(p) for p in sorted(calib.iterdir())]):
        with pytest.raises(InputError, match=r"none is left to calibrate with.*6 of the same"):
            make(detector, tmp_path / "b", calib, held_out=same)
    copies = folder_of(tmp_path / "copies", [picture(i // 2) for i in range(8)])
    split = make(detector, tmp_path / "c", copies, min_agreement=0.1)
    assert split.report["int8"]["images"] == 4  # 8 - 2 held out - their 2 copies
    assert not list(tmp_path.glob("b*"))


def test_overlap_of_rows_and_of_ranges(head: bytes, tmp_path: Path) -> None:
    calib = npz(tmp_path / "c.npz", head, 6)
    rows = [f[4:] for f in small.features(6)]
    made = make(head, tmp_path / "a", calib, held_out=dict(zip(names(head), rows, strict=True)), min_agreement=0.1)
    assert made.report["int8"]["images"] == 4
    cache = tmp_path / "r.json"
    make(head, tmp_path / "d", calib, calib_cache=cache, min_agreement=None)
    with pytest.raises(InputError, match="held-out images are those that the ranges were calibrated on"):
        make(head, tmp_path / "e", cache, held_out=calib)
    assert not list(tmp_path.glob("e*"))


# -- errors --


def bad_folder(path: Path) -> Path:
    path.mkdir()
    return path


def damaged(path: Path) -> Path:
    folder = folder_of(path, [picture(0)])
    (folder / "001.png").write_bytes((folder / "000.png").read_bytes()[:100])
    return folder


def broken_npz(path: Path) -> Path:
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04 nothing")
    return path.with_suffix(".npz")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bad_folder, "folder holds no image"),
        (lambda p: p / "none", "not there"),
        (lambda p: p / "*.png", "matches no file"),
        (lambda p: [], "no calibration data"),
        (lambda p: [p / "a.png"], "not there"),
        (lambda p: {}, "no calibration data"),
        (lambda p: 7, "not calibration data"),
        (broken_npz, "npz file cannot be read"),
        (damaged, r"001\.png"),
        (lambda p: iter([]), "no calibration data"),
        (lambda p: iter([np.zeros((1, 3, 8, 8), np.float32)]), "another shape"),
        (lambda p: [np.zeros((1, 3, 8, 8), np.float32)], "another shape"),
        (lambda p: iter([np.full((1, 3, *small.SIZE), np.nan, np.float32)]), "NaN or infinity at item 0"),
        (lambda p: [np.full((3, *small.SIZE), np.inf, np.float32)], "NaN or infinity at item"),
    ],
)
def test_bad_images(detector: bytes, tmp_path: Path, data: Any, message: str) -> None:
    """As calibration data and as held-out images."""
    out = tmp_path / "out"
    with pytest.raises(DheadError, match=message):
        make(detector, out / "e", data(tmp_path / "data"))
    with pytest.raises(DheadError, match=message if "no calibration data" not in message else "no"):
        make(detector, out / "e", small.images(2), held_out=data(tmp_path / "held"))
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f * np.nan, r"NaN or infinity at c\.npz\[0\].*input"),
        (lambda f: f[:, :, :1], r"c\.npz has another shape than input"),
        (lambda f: f[:, :1], r"c\.npz has another shape than input"),
        (lambda f: f[:2], r"no equal number of items"),
        (lambda f: f.astype(np.int32), r"c\.npz is not floating point"),
        (lambda f: np.float32(1), r"no equal number of items"),
    ],
)
def test_bad_npz(head: bytes, tmp_path: Path, change: Any, message: str) -> None:
    first = names(head)[0]
    path = npz(tmp_path / "c.npz", head, 5, **{first: change(small.features(5)[0])})
    good = dict(zip(names(head), small.features(2, seed=5), strict=True))
    with pytest.raises(DheadError, match=message):
        make(head, tmp_path / "e", path)
    with pytest.raises(DheadError, match=message):
        make(head, tmp_path / "e", good, held_out=path)
    assert not list(tmp_path.glob("e*"))


def test_npz_of_another_model(head: bytes, detector: bytes, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=small.images(2), b=small.images(2))
    with pytest.raises(InputError, match=r"c\.npz lacks an input.*arrays a, b"):
        make(detector, tmp_path / "e", tmp_path / "c.npz")
    with pytest.raises(InputError, match=r"takes .*, not images"):
        make(head, tmp_path / "e", folder_of(tmp_path / "f", [picture(0)]))


# -- before any model is read --


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None}, "needs data to calibrate with"),
        ({"calibration": "none/at/all"}, "not there"),
        ({"min_agreement": 1.5}, "min_agreement is out of range"),
        ({"min_agreement": "high"}, "min_agreement is out of range"),
        ({"min_agreement": float("nan")}, "min_agreement is out of range"),
        ({"calib_method": "best"}, "method is not known"),
        ({"calib_percentile": 5}, "percentile is out of range"),
        ({"calib_method": "mse", "calib_percentile": 99}, "belongs to method"),
        ({"calib_images": 0}, "number of calibration images"),
        ({"calib_images": 2.5}, "number of calibration images"),
        ({"held_out": "none/at/all"}, "not there"),
        ({"keep": [3]}, "not a list of names"),
        ({"auto_mixed": "none.json"}, "cannot be read"),
        ({"auto_mixed": True, "min_agreement": None}, "needs a min_agreement"),
        ({"auto_mixed": True, "calibration": "random"}, "needs images"),
        ({"auto_mixed": True, "calibration": iter([])}, "needs images"),
        ({"calibration": "none.json"}, "calibration cannot be read"),
    ],
)
def test_arguments_are_checked_first(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """The model is not even looked for."""
    good = {"calibration": np.zeros((1, 3, *small.SIZE), np.float32)}
    with pytest.raises(InputError, match=message):
        make("no such model.onnx", tmp_path / "e", **(good | options))
    assert not list(tmp_path.iterdir())


def test_layers_are_known_before_anything_runs(detector: bytes, tmp_path: Path) -> None:
    """Else a slip would cost the calibration."""
    phases: list[str] = []
    three = folder_of(tmp_path / "three", [picture(i) for i in range(3)])
    other = tmp_path / "other-mixed.json"
    trial = Trial((), 1.0, 0.5, 0.5, 0.5)
    Mixed((), 0.5, trial, (trial,), None, {"model": "0" * 64}).save(other)
    for options, message in (
        ({"keep": ["none"]}, "keep names no layer of this graph: received none"),
        ({"keep": "none"}, "keep names no layer of this graph: received none"),
        ({"auto_mixed": True}, "auto_mixed needs images"),
        ({"auto_mixed": other}, "mixed-precision result is of something else"),
    ):
        with pytest.raises(InputError, match=message):
            make(detector, tmp_path / "e", three, progress=lambda p, f=None: phases.append(p), **options)
    assert "calibrating" not in phases
    assert not list(tmp_path.glob("e*"))


def test_a_cache_that_is_none(tmp_path: Path) -> None:
    cache = tmp_path / "c.json"
    cache.write_text("{}")
    with pytest.raises(InputError, match="not a calibration"):
        make("no such model.onnx", tmp_path / "e", small.images(2), calib_cache=cache)
    ranges = Ranges({"x": (0, 1)}, "minmax")
    with pytest.raises(InputError, match="calibration is done already"):
        make("no such model.onnx", tmp_path / "e", ranges, calib_images=3)


# -- the command line --


def test_command_line(detector: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(detector)
    calib = folder_of(tmp_path / "calib", [picture(i) for i in range(8)])
    out = ["-o", str(tmp_path / "e"), "--backend", "openvino", "--quiet"]
    empty = bad_folder(tmp_path / "empty")
    for more, message in (
        (["--int8"], "needs data to calibrate with"),
        (["--int8", "--calib", str(empty)], "holds no image"),
        (["--int8", "--calib", str(calib), "--held-out", str(calib)], "none is left to calibrate with"),
        (["--int8", "--calib", str(calib), "--keep", "nothing"], "keep names no layer"),
        (["--int8", "--calib", str(calib), "--calib-images", "0"], "number of calibration images"),
        (["--int8", "--calib", str(calib), "--percentile", "3"], "percentile is out of range"),
        (["--fp32", "--min-agreement", "0.9"], "--min-agreement belongs to --int8"),
    ):
        assert main(["build", str(model), *out, *more]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not list(tmp_path.glob("e*.xml"))
    assert main(["build", str(model), *out, "--int8", "--calib", str(calib), "--min-agreement", "0.1"]) == 0
    assert Artifact.load(tmp_path / "e.xml").report["int8"]["images"] == 6
