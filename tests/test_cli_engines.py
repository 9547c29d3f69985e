"""The command line's work with engines: build, infer, inspect and parity, end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cli_calls
from cli_calls import COMMAND, HEAD, refused
from dhead_trt import cli
from dhead_trt.artifact import Artifact
from dhead_trt.cli import common

inside = cli_calls.inside


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small head as an OpenVINO engine for batches of 1 to 3, in a folder of its own."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "my_heads.py").write_text(HEAD)
    words = ["build", "my_heads:make", "--backend", "openvino", "--batch", "1,2,3", "--image-size", "96x128"]
    done = subprocess.run(
        [*COMMAND, *words, "-o", "engines/head"], cwd=folder, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "engines/head.xml" in done.stdout
    assert "openvino" in done.stdout
    assert done.stderr.startswith("  openvino: ")
    return folder / "engines"


@pytest.fixture
def built(built_once: Path, inside: Path) -> Path:
    """A copy of that engine in the test's own folder."""
    return Path(shutil.copytree(built_once, inside / "engines")) / "head.xml"


def test_build_makes_what_it_says(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = Artifact.load(built)
    assert (artifact.backend, artifact.precision, artifact.form) == ("openvino", "fp32", "raw")
    assert artifact.inputs[0].shape[1:] == (8, 12, 16)
    assert sorted(p.name for p in built.parent.iterdir()) == ["head.bin", "head.json", "head.xml"]
    assert cli.main(["inspect", str(built)]) == 0
    text = capsys.readouterr().out
    assert "checksums match" in text
    assert "[1..3, 8, 12, 16]" in text
    assert cli.main(["inspect", str(built.with_suffix(".json")), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "openvino"


def test_inspect_sees_a_damaged_engine(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = built.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "head.bin is truncated" in refused(capsys, "inspect", built)
    assert "head.bin is truncated" in refused(capsys, "infer", built, built)
    assert cli.main(["inspect", str(built), "--no-verify"]) == 0


def test_build_for_all_passes_over_what_cannot(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dhead_trt.backends import available_backends

    words = ["build", "my_heads:make", "--backend", "all", "--image-size", "64", "-o", "head", "--json", "s.json", "-q"]
    assert cli.main(words) == 0
    assert capsys.readouterr() == ("", "")
    summary = {row["backend"]: row for row in json.loads((inside / "s.json").read_text())}
    for name, state in available_backends().items():
        if state.can_build:
            plan = Path(summary[name]["plan"])
            assert plan.stem == f"head-{name}"
            assert Artifact.load(plan).backend == name
        else:
            assert summary[name]["plan"] is None
            assert summary[name]["reason"] == state.reason


def test_a_backend_asked_for_by_name_must_build(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "build", "my_heads:make", "--backend", "tensorrt", "--image-size", "64")
    assert "tensorrt cannot build here" in line
    assert "stands alone" in refused(capsys, "build", "my_heads:make", "--backend", "all", "--backend", "openvino")


def test_infer_features(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch of two feature sets gives two results, equal to the oracle's on the torch head's maps."""
    import torch

    from dhead_trt import reference

    sys.path.insert(0, str(inside))
    import my_heads

    rng = np.random.default_rng(0)
    shapes = ((2, 8, 12, 16), (2, 8, 6, 8), (2, 8, 3, 4))
    features = {f"p{i + 3}": rng.standard_normal(s).astype("f4") for i, s in enumerate(shapes)}
    np.savez("features.npz", **features)
    assert cli.main(["infer", str(built), "features.npz", "--json", "-", "--conf", "0.6", "--output", "found"]) == 0
    found = json.loads(capsys.readouterr().out)
    head = my_heads.make().eval()
    with torch.inference_mode():
        maps = {k: v.numpy() for k, v in head.raw([torch.from_numpy(v) for v in features.values()]).items()}
    want = reference.detect(maps, head.spec, conf=0.6)
    assert [len(image["detections"]) for image in found] == want.num_dets.reshape(-1).tolist()
    assert sum(want.num_dets.reshape(-1)) > 3
    for image, data in enumerate(found):
        assert data["image_size"] == [96, 128]
        for row, detection in enumerate(data["detections"]):
            assert detection["class_id"] == want.classes[image, row]
            assert np.abs(np.subtract(detection["xyxy"], want.boxes[image, row])).max() < 0.05
            assert abs(detection["confidence"] - want.scores[image, row]) < 1e-4
    assert sorted(p.name for p in Path("found").iterdir()) == ["features-0.json", "features-1.json"]


def test_infer_refuses(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no such input" in refused(capsys, "infer", built, "absent.png")
    (inside / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    assert "Not a readable .npz file" in refused(capsys, "infer", built, "bad.npz")
    np.savez("other.npz", x=np.zeros((1, 2)))
    assert "input names do not match" in refused(capsys, "infer", built, "other.npz")
    assert "cannot be mixed" in refused(capsys, "infer", built, "other.npz", "my_heads.py")
    assert "There is no engine here" in refused(capsys, "infer", "absent.xml", "other.npz")
    assert "The output is a file" in refused(capsys, "infer", built, "other.npz", "-o", "other.npz")


def test_infer_writes_over_nothing_that_it_reads(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Annotated copies do not replace their pictures, nor a picture's JSON the sidecar of the engine."""
    sidecar = built.with_suffix(".json").read_bytes()
    (inside / "pages").mkdir()
    pictures = [inside / "pages" / "a.png", inside / f"{built.stem}.bmp"]
    for picture in pictures:
        picture.write_bytes(b"a picture")
    assert "a folder without a.png" in refused(capsys, "infer", built, "pages", "-o", "pages")
    line = refused(capsys, "infer", built, pictures[1], "-o", built.parent)
    assert f"would replace a file that is read: received --output {built.parent}" in line
    assert built.with_suffix(".json").read_bytes() == sidecar
    assert [p.read_bytes() for p in pictures] == [b"a picture"] * 2


def test_infer_pictures(doclaynet: Path, sample_page: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real model: build, detect on two pictures in a folder, draw, and write JSON that reads back."""
    from PIL import Image

    from dhead_trt.detections import Detections

    (inside / "pages").mkdir()
    page = Image.open(sample_page)
    page.save("pages/a.png")
    page_bytes = Path("pages/a.png").read_bytes()
    page.resize((620, 877)).save("pages/b.jpg")
    assert cli.main(["build", str(doclaynet), "--backend", "openvino", "-o", "doc", "-q"]) == 0
    assert cli.main(["infer", "doc.xml", "pages", "--output", "results"]) == 0
    text = capsys.readouterr().out
    assert "Section-header" in text
    assert "detections in 2 files" in text
    assert sorted(p.name for p in Path("results").iterdir()) == ["a.json", "a.png", "b.json", "b.png"]
    found = Detections.from_json(Path("results/a.json"))
    assert len(found.counts()) == 11
    assert found.image_size == (1754, 1240)
    drawn = np.asarray(Image.open("results/a.png").convert("RGB"))
    assert drawn.shape == (1754, 1240, 3)
    assert (drawn != np.asarray(page.convert("RGB"))).any(axis=2).sum() > 10_000
    words = ["infer", "doc.xml", "pages/a.png", "--class", "Table", "--class", "10", "--json", "-", "-q"]
    assert cli.main(words) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert {d["name"] for d in one["detections"]} == {"Table", "Title"}
    assert "'Tisch'" in refused(capsys, *words[:4], "Tisch")
    # a picture that cannot be read does not keep the others from being detected on
    Path("pages/aa.png").write_bytes(page_bytes[: len(page_bytes) // 2])
    assert cli.main(["infer", "doc.xml", "pages", "-o", "again", "-q", "--json", "all.json"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: The image file is damaged")
    assert err.count("\n") == 1
    assert sorted(p.name for p in Path("again").iterdir()) == ["a.json", "a.png", "b.json", "b.png"]
    assert [Path(d["source"]).name for d in json.loads(Path("all.json").read_text())] == ["a.png", "b.jpg"]
    assert "damaged" in refused(capsys, "infer", "doc.xml", "pages/aa.png")


def test_parity_of_an_engine(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parity", str(built), "--against", "my_heads:make", "--json", "p.json", "--plot", "p.png"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "openvino fp32" in text
    assert text.rstrip().endswith("not run here")
    data = json.loads(Path("p.json").read_text())
    assert data["passed"] is True
    assert data["model"] == "my_heads:make"
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG"


def test_parity_of_an_engine_against_weights(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    state = common.resolve(cli.build_parser().parse_args(["export", "my_heads:make"])).model.state_dict()  # type: ignore[union-attr]
    torch.save(state, "head.pt")
    words = ["parity", str(built), "--against", "head.pt", "--head", "my_heads:make", "-q"]
    assert cli.main(words) == 0
    state["cls_preds.1.weight"] += 0.1
    torch.save(state, "head.pt")
    assert cli.main(words) == 1
    assert "openvino fp32" in capsys.readouterr().out.split("Failed:")[1]


def test_parity_layer_by_layer(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parity", str(built), "--against", "my_heads:make", "--layers", "-q"]
    assert cli.main([*words, "--json", "l.json", "--plot", "l.png"]) == 0
    text = capsys.readouterr().out
    data = json.loads(Path("l.json").read_text())
    assert (data["backend"], data["precision"], data["passed"], data["first"]) == ("openvino", "fp32", True, None)
    assert f"All {len(data['layers'])} tensors are within 0.001" in text
    assert {"box_0", "cls_2"} < {x["tensor"] for x in data["layers"]}
    assert Path("l.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main([*words, "--layer-tolerance", "1e-12"]) == 1
    assert "the first:" in capsys.readouterr().out
    assert "--layers looks at one engine" in refused(capsys, *words, "--fp16")
    assert "--layer-tolerance goes with --layers" in refused(capsys, "parity", "my_heads:make", "--layer-tolerance", 1)
    assert "tolerance is out of range" in refused(capsys, *words, "--layer-tolerance", "0")


def test_parity_fails_with_1(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "other_heads.py").write_text(HEAD.replace("manual_seed(1)", "manual_seed(2)"))
    assert cli.main(["parity", str(built), "--against", "other_heads:make"]) == 1
    out, err = capsys.readouterr()
    assert "Failed:" in out
    assert "error:" not in err


def test_parity_refuses(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "parity", built)
    assert "Name the original: --against" in line
    np.savez("x.npz", x=np.zeros((1, 2)))
    assert "other names" in refused(capsys, "parity", "my_heads:make", "--input", "x.npz")
    assert "There is no such input" in refused(capsys, "parity", "my_heads:make", "--input", "y.npz")
    assert "neither a picture nor .npz" in refused(capsys, "parity", "my_heads:make", "--input", "my_heads.py")
    assert "no known format" in refused(capsys, "parity", "my_heads:make", "--plot", "x.foo")
    assert "The model is a folder" in refused(capsys, "parity", inside)
    (inside / "w.pt").write_bytes(b"")
    assert "YOLO('x.pt').export" in refused(capsys, "parity", "w.pt")
