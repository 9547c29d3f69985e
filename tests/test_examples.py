"""Every example runs, as its own program, on a small engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dhead_trt
import small_models
from conftest import ROOT
from dhead_trt.build import build

pytest.importorskip("openvino", reason="OpenVINO is not installed")

TESTED = {"quickstart", "detect_folder", "detect_video", "threads", "torch_tensors"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """engine.xml, model.onnx, images/0.png … 2.png."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "model.onnx").write_bytes(small_models.onnx_bytes("detector"))
    build(folder / "model.onnx", "openvino", output=folder / "engine", batch=1, verify=False)
    (folder / "images").mkdir()
    for i in range(3):
        small_models.picture((90, 120 + i), i, (4, 5)).save(folder / "images" / f"{i}.png")
    return folder


def run(name: str, *arguments: object, folder: Path) -> str:
    package = str(Path(dhead_trt.__file__).parents[1])  # as these tests import it
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_none_is_forgotten() -> None:
    assert {p.stem for p in (ROOT / "examples").glob("*.py")} == TESTED


def test_quickstart(home: Path) -> None:
    text = run("quickstart", home / "model.onnx", home / "images" / "0.png", folder=home)
    assert "written to out" in text
    assert len(json.loads((home / "out" / "found.json").read_text())["detections"]) > 0


def test_detect_folder(home: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (home / "images").iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "bad.png").write_bytes(b"")
    text = run("detect_folder", home / "engine.xml", images, tmp_path / "out", folder=tmp_path)
    assert "skipped: Image 3" in text
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"{i}.{kind}" for i in range(3) for kind in ("json", "csv", "png")}


def test_detect_video(home: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for i in range(7):
        writer.write(np.full((64, 96, 3), 30 * i, np.uint8))
    writer.release()
    lines = run("detect_video", home / "engine.xml", path, 3, folder=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("frame")] == [
        "frame 0 at 0.00 s",
        "frame 3 at 0.30 s",
        "frame 6 at 0.60 s",
    ]


def test_threads(home: Path) -> None:
    paths = sorted((home / "images").iterdir())
    assert run("threads", home / "engine.xml", *paths, folder=home).count("<Detections") == 3


def test_torch_tensors(home: Path) -> None:
    text = run("torch_tensors", home / "engine.xml", home / "images" / "1.png", folder=home)
    assert "<Detections" in text
    assert "boxes on the stretched image" in text
