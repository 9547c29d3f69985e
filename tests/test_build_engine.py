"""scripts/build_engine.py and examples/quickstart.py, run as users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dhead_trt.artifact import Artifact
from dhead_trt.backends import available_backends

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "build_engine.py"

SMALL = """
import torch
from dhead_trt.heads import YOLOv8DecoupledHead

def make():
    torch.manual_seed(1)
    return YOLOv8DecoupledHead(num_classes=3, in_channels=(8, 8, 8))
"""


def script(path: Path, *args: object, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(path), *map(str, args)],
        cwd=cwd, env=os.environ | {"OMP_NUM_THREADS": "2"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.mark.slow
def test_default_run(tmp_path: Path) -> None:
    """--fp16 alone: a head of ours goes from PyTorch to an engine of every backend there is, and is compared."""
    done = script(SCRIPT, "--fp16", "--size", "n", cwd=tmp_path)
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    states = available_backends()
    buildable = [name for name, state in states.items() if state.can_build]
    assert "openvino" in buildable
    for name in buildable:
        artifact = Artifact.load(next((tmp_path / "out").glob(f"decoupled-fp16-{name}.json")))
        assert (artifact.backend, artifact.precision, artifact.form) == (name, "fp16", "raw")
        assert artifact.plan.name in done.stdout
    assert {"decoupled.onnx", "decoupled-fp16-parity.json", "decoupled-fp16-parity.png"} <= set(made)
    report = json.loads((tmp_path / "out" / "decoupled-fp16-parity.json").read_text())
    assert report["passed"] is True
    status = {r["name"]: r["status"] for r in report["rungs"]}
    assert status["openvino fp16"] == "passed"
    assert status["onnxruntime fp16"] == "passed"
    for name, state in states.items():
        if not state.can_run:
            assert all(s == "skipped" for rung, s in status.items() if rung.split()[0] == name), status
        if not state.can_build:
            assert f"not built: {name}" in done.stdout
    fp16 = next(r for r in report["rungs"] if r["name"] == "onnxruntime fp16")
    errors = {e["output"]: e["max"] for e in fp16["errors"] if e["level"] is None}
    assert 0 < errors["boxes"] <= 0.5
    assert 0 < errors["scores"] <= 0.01


def test_a_model_of_the_users(tmp_path: Path) -> None:
    """One backend, a batch range, a fixed name, JSON of the result."""
    (tmp_path / "mine.py").write_text(SMALL)
    args = ["--model", "mine:make", "--backend", "openvino", "--batch", "1,2,4", "--image-size", "96x128"]
    script(SCRIPT, *args, "--output", "made/head", "--json", "made/result.json", cwd=tmp_path)
    result = json.loads((tmp_path / "made" / "result.json").read_text())
    assert [b["plan"] for b in result["built"]] == ["made/head.xml"]
    assert result["parity"]["passed"] is True
    artifact = Artifact.load(tmp_path / "made" / "head.xml")
    assert artifact.inputs[0].profile == ((1, 8, 12, 16), (2, 8, 12, 16), (4, 8, 12, 16))


def test_an_onnx_file(doclaynet: Path, tmp_path: Path) -> None:
    """The real model, without the comparison."""
    args = ["--model", doclaynet, "--backend", "openvino", "--no-parity", "--no-verify", "--quiet"]
    done = script(SCRIPT, *args, cwd=tmp_path)
    assert done.stderr == ""
    assert Artifact.load(tmp_path / "out" / "yolov8n-doclaynet-fp32.xml").spec.num_classes == 11  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--model", "absent.onnx"], "There is no such model"),
        (["--int4"], "unrecognized arguments: --int4"),
        (["--calib", "images"], "--calib belongs to --int8"),
        (["--fp16", "--fp32"], "not allowed with"),
        (["--backend", "tensorrt"], "tensorrt cannot build here"),
        (["--batch", "x"], "'x' is no batch"),
    ],
)
def test_errors_are_one_line(args: list[str], part: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SMALL)
    extra = [] if "--model" in args else ["--model", "mine:make", "--image-size", "64"]
    done = script(SCRIPT, *args, *extra, cwd=tmp_path, status=2)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert part in lines[0]
    plans = [p for p in (tmp_path / "out").glob("*") if p.suffix in {".xml", ".plan", ".json"}]
    assert plans == []


def test_quickstart(doclaynet: Path, sample_page: Path, tmp_path: Path) -> None:
    done = script(ROOT / "examples" / "quickstart.py", doclaynet, sample_page, cwd=tmp_path)
    assert "Section-header" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "engine.bin", "engine.json", "engine.xml", "found.json", "found.png",
    ]  # fmt: skip
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert {d["name"] for d in found["detections"]} == set(found["names"])


def test_readme_python_example(doclaynet: Path, sample_page: Path, tmp_path: Path) -> None:
    """The README's Python example runs as it stands there, on files of those names."""
    import re
    import shutil

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len(example.strip().splitlines()) <= 12
    shutil.copy(doclaynet, tmp_path / "yolov8n.onnx")
    shutil.copy(sample_page, tmp_path / "page.png")
    (tmp_path / "example.py").write_text(example)
    done = script(tmp_path / "example.py", cwd=tmp_path)
    assert "Section-header" in done.stdout
    assert (tmp_path / "page-boxes.png").is_file()
