"""int8 from build(): the gate, automatic mixed precision and its replay, held-out data, the cache."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import small_models as small
from dhead_trt import refine
from dhead_trt.artifact import Artifact, TensorInfo
from dhead_trt.build import build
from dhead_trt.calibration import Ranges, calibrate
from dhead_trt.errors import BuildError, InputError
from dhead_trt.int8_options import Int8Options, int8_data
from dhead_trt.precision import sensitivity
from dhead_trt.precision.sensitivity import Sensitivity
from dhead_trt.surgery import convert


@pytest.fixture(scope="module")
def model() -> bytes:
    return small.onnx_bytes("detector")


@pytest.fixture(scope="module")
def ranges(model: bytes) -> Ranges:
    """So narrow that int8 clips, so that the search has layers to find."""
    graph = convert(model, "raw", verify=False).model
    good = calibrate(graph, iter([{"images": small.images(2, seed=3)}]))
    return Ranges({n: (a / 4, b / 4) for n, (a, b) in good.tensors.items()}, "minmax", good.model_sha256, "d", 2)


def make(model: bytes, output: Path, **options: Any) -> Artifact:
    return build(model, "openvino", output=output, precision="int8", verify=False, **options)


def plan(artifact: Artifact) -> bytes:
    return artifact.plan.with_suffix(".bin").read_bytes()


def held(count: int) -> dict[str, np.ndarray]:
    return {"images": small.images(count, seed=3)}


def pictures(folder: Path, seeds: Iterable[int]) -> Path:
    folder.mkdir()
    for seed in seeds:
        pixels = np.rint(small.images(1, seed=seed)[0].transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_search_and_replay(model: bytes, ranges: Ranges, tmp_path: Path) -> None:
    images = held(4)
    found = make(model, tmp_path / "a", calibration=ranges, held_out=images, auto_mixed=True, min_agreement=0.8)
    report = found.report["int8"]
    assert report["gate"]["agreement"] >= 0.8
    assert report["keep"]
    assert any("chosen on these images" in note for note in found.notes)
    assert set(report["keep"]) <= set(report["kept"])
    assert 0 <= report["int8_macs"] < 1
    saved = tmp_path / "a-mixed.json"
    assert json.loads(saved.read_text())["keep"] == report["keep"]
    by_name = make(model, tmp_path / "b", calibration=ranges, min_agreement=None, keep=report["keep"])
    by_file = make(model, tmp_path / "c", calibration=ranges, held_out=images, auto_mixed=saved, min_agreement=0.8)
    assert plan(by_name) == plan(by_file) == plan(found)
    assert by_file.report["int8"]["keep"] == report["keep"]


def test_a_search_that_ends_below_the_gate_stops_the_build(
    model: bytes, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own ranking: the layers are not ranked twice."""
    ranked = []

    def rank_once(*args: Any, **options: Any) -> Sensitivity:
        ranked.append(1)
        return sensitivity.rank_layers(*args, images=1, **options)

    monkeypatch.setattr(refine.Maker, "trials", 1)
    monkeypatch.setattr(refine, "rank_layers", rank_once)
    with pytest.raises(BuildError, match=r"does not agree with float32.*layers that int8 hurts most are \S+ \(0"):
        make(model, tmp_path / "e", calibration=ranges, held_out=held(2), auto_mixed=True, min_agreement=1.0)
    assert not list(tmp_path.iterdir())
    assert len(ranked) == 1


def test_refined_weights_are_built_measured_and_told(model: bytes, tmp_path: Path) -> None:
    images, others = held(6), {"images": small.images(3, seed=8)}
    found = make(model, tmp_path / "a", calibration=images, held_out=others, refine=True, min_agreement=0.3)
    report = found.report["int8"]
    assert report["method_options"] == {"percentile": refine.FITTED_PERCENTILE}
    assert report["refined"]["images"] == 6
    layers = report["refined"]["layers"]
    assert len(layers) == report["quantized"]
    assert sum(f["fitted"] / f["plain"] for f in layers) < len(layers)
    assert any("weights fitted on 6 of them" in note for note in found.notes)
    again = make(model, tmp_path / "b", calibration=images, held_out=others, refine=True, min_agreement=0.3)
    assert plan(again) == plan(found)
    plain = make(model, tmp_path / "c", calibration=images, held_out=others, min_agreement=0.3)
    assert plain.report["int8"]["refined"] is None
    assert plain.report["int8"]["model_sha256"] == report["model_sha256"]
    assert plan(plain) != plan(found)


def test_a_refined_search_is_replayed(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine.RefinedMaker, "trials", 3)
    options: dict[str, Any] = {"calibration": held(4), "held_out": {"images": small.images(2, seed=8)}, "refine": True}
    options["calib_method"] = "minmax"
    try:
        found = make(model, tmp_path / "a", auto_mixed=True, min_agreement=0.97, **options)
    except BuildError:
        pytest.fail("three trials did not find a mixture")
    saved = tmp_path / "a-mixed.json"
    assert saved.is_file()
    replayed = make(model, tmp_path / "b", auto_mixed=saved, min_agreement=0.97, **options)
    assert plan(replayed) == plan(found)
    assert not any("chosen with" in note for note in replayed.notes)
    for gate in (0.3, None):  # the note does not depend on the measurement
        plain = make(model, tmp_path / "c", auto_mixed=saved, **{**options, "refine": False}, min_agreement=gate)
        assert any("were chosen with refine, and are kept here without it" in note for note in plain.notes)
    chosen = json.loads(saved.read_text())
    assert chosen["hashes"]["refine"] == "yes"
    del chosen["hashes"]["refine"]  # as searches before there was refine
    saved.write_text(json.dumps(chosen))
    other = make(model, tmp_path / "d", auto_mixed=saved, min_agreement=None, **options)
    assert any("were chosen without refine, and are kept here with it" in note for note in other.notes)


def test_a_cache_is_of_one_way_only(model: bytes, tmp_path: Path) -> None:
    """Ranges of the equalized graph are not those of the model, and the message says which they are."""
    plain, refined = tmp_path / "plain.json", tmp_path / "refined.json"
    options: dict[str, Any] = {"calibration": held(4), "min_agreement": None}
    make(model, tmp_path / "a", calib_cache=plain, **options)
    with pytest.raises(InputError, match=r"cache was made without refine.*Name another file \(--calib-cache\)"):
        make(model, tmp_path / "b", calib_cache=plain, refine=True, **options)
    first = make(model, tmp_path / "b", calib_cache=refined, refine=True, **options)
    again = make(model, tmp_path / "c", calib_cache=refined, refine=True, **options)
    assert plan(again) == plan(first)
    with pytest.raises(InputError, match="cache is of another model"):
        make(model, tmp_path / "d", calib_cache=refined, **options)
    with pytest.raises(InputError, match=r"ranges are of another model.*cached with refine are of its equalized graph"):
        make(model, tmp_path / "d", calibration=refined, held_out=held(2))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"calibration": iter([{"images": np.zeros((1, 3, 64, 64), np.float32)}])}, "reads the calibration images"),
        ({"calibration": "ranges.json"}, "reads the calibration images several times: received ranges"),
    ],
)
def test_refine_is_refused_early(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        build("none.onnx", "openvino", output=tmp_path / "a", precision="int8", refine=True, **options)
    with pytest.raises(InputError, match="belong to precision='int8'"):
        build("none.onnx", "openvino", output=tmp_path / "a", precision="fp32", refine=True)


def test_folders_held_out_images_and_cache(model: bytes, tmp_path: Path) -> None:
    first, second = pictures(tmp_path / "one", range(5)), pictures(tmp_path / "two", range(5, 7))
    cache = tmp_path / "ranges.json"
    options: dict[str, Any] = {"calib_cache": cache, "min_agreement": 0.1, "calib_images": 50}
    split = make(model, tmp_path / "a", calibration=first, **options)
    assert split.report["int8"]["images"] == 4
    assert any("50 calibration images were asked for; there are 5" in note for note in split.notes)
    assert any("on 1 held-out image:" in note for note in split.notes)
    with pytest.raises(InputError, match="cache is of another data"):
        make(model, tmp_path / "b", calibration=first, held_out=second, **options)
    cache.unlink()
    apart = make(model, tmp_path / "b", calibration=first, held_out=second, **options)
    assert apart.report["int8"]["images"] == 5
    assert any("on 2 held-out images" in note for note in apart.notes)
    few = make(model, tmp_path / "c", calibration=second)
    assert few.report["int8"]["gate"] is None
    assert any("was not measured" in note for note in few.notes)
    assert make(model, tmp_path / "d", calibration=second, batch=3).report["int8"]["images"] == 2


def test_options_that_would_be_ignored_are_refused(model: bytes, ranges: Ranges, tmp_path: Path) -> None:
    for options, message in (
        ({"calibration": ranges, "calib_method": "mse"}, "calibration is done already"),
        ({"calibration": ranges, "calib_cache": tmp_path / "c.json"}, "calibration is done already"),
        ({"calibration": ranges, "auto_mixed": True}, "auto_mixed needs images"),
        ({"calibration": ranges, "auto_mixed": True, "min_agreement": None}, "needs a min_agreement"),
        ({"calibration": ranges, "auto_mixed": tmp_path / "none.json"}, "cannot be read"),
        ({"calibration": ranges, "keep": ["none"]}, "keep names no layer"),
    ):
        with pytest.raises(InputError, match=message):
            make(model, tmp_path / "e", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="belong to precision='int8'"):
        build(model, "openvino", output=tmp_path / "e", held_out=held(1))
    assert not list(tmp_path.iterdir())


def test_large_folders_hold_64_images_back(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(1000)]
    for i, file in enumerate(files):
        file.write_text(str(i))
    spec = small.head().spec
    inputs = (TensorInfo("images", "float32", (1, 3, 64, 64)),)
    data, held_back, _ = int8_data(Int8Options(calibration=files), inputs, spec)
    assert data is not None
    assert held_back is not None
    assert (data.count, held_back.count) == (938, 62)
