"""The installed C++ package: find_package(dhead_trt), and examples/cpp built from it and run against the stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT
from dhead_trt.backends import trt_library
from dhead_trt.build import build
from dhead_trt.engine import Engine
from dhead_trt.letterbox import letterbox
from trt_standin import JOBS, StandIn, header_dirs, header_major, headers_of, locked, run

pytest.importorskip("torch")
pytest.importorskip("onnx")
import small_models as small

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trt")]
MAJOR = header_major(header_dirs()[0])


@pytest.fixture(scope="module")
def standin() -> StandIn:
    return StandIn(MAJOR)


@pytest.fixture(scope="module")
def example() -> Path:
    """examples/cpp, built from an installed package."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    folder = ROOT / "build" / "trt-tests" / f"package{MAJOR}"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    with locked(folder.with_suffix(".lock")):
        shutil.rmtree(folder / "prefix", ignore_errors=True)
        run(
            [
                "cmake", "-S", str(ROOT), "-B", str(folder / "build"), *generator, "-DCMAKE_BUILD_TYPE=Release",
                "-DDHEAD_PYTHON=OFF", "-DDHEAD_CUDA=OFF", "-DDHEAD_WERROR=ON", "-DDHEAD_TENSORRT=ON",
                f"-DDHEAD_TENSORRT_HEADERS={headers_of(MAJOR)}",
            ]
        )  # fmt: skip
        run(["cmake", "--build", str(folder / "build"), "-j", JOBS])
        run(["cmake", "--install", str(folder / "build"), "--component", "cpp", "--prefix", str(folder / "prefix")])
        config = folder / "prefix" / "lib" / "cmake" / "dhead_trt"
        source = ROOT / "examples" / "cpp"
        run(["cmake", "-S", str(source), "-B", str(folder / "example"), *generator, f"-Ddhead_trt_DIR={config}"])
        run(["cmake", "--build", str(folder / "example"), "-j", JOBS])
    return folder / "example" / "detect"


@pytest.fixture
def plan(standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    standin.reset()
    monkeypatch.setattr(trt_library, "modules", lambda: {standin.major: standin.module})
    monkeypatch.setenv("DHEAD_TENSORRT_LIBRARY_DIR", str(standin.folder))
    monkeypatch.setenv("DHEAD_CUDART_LIBRARY", standin.cudart)
    return build(small.onnx_bytes("detector"), "tensorrt", output=tmp_path / "e", verify=False, form="raw").plan


def image(folder: Path) -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(3).integers(0, 256, (50, 120, 3), dtype=np.uint8)
    path = folder / "image.ppm"
    path.write_bytes(b"P6\n120 50\n255\n" + pixels.tobytes())
    return path, pixels


def detect(example: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(example), *map(str, arguments)], capture_output=True, text=True, check=False, env=dict(os.environ)
    )


def test_the_example_agrees_with_python(example: Path, plan: Path, tmp_path: Path) -> None:
    path, pixels = image(tmp_path)
    done = detect(example, plan, path, 0.9)
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" ", 5) for line in done.stdout.splitlines()]
    with Engine(plan) as engine:
        chw, where = letterbox(pixels, small.SIZE)
        found = engine.infer(chw[None], conf=0.9)
        n = int(found["num_dets"][0, 0])
        assert n > 3
        assert [name for name, *_ in lines] == [engine.spec.name_of(int(c)) for c in found["det_classes"][0, :n]]
    got = np.array([[float(v) for v in values] for _, *values in lines])
    np.testing.assert_allclose(got[:, 0], found["det_scores"][0, :n], atol=6e-4)
    boxes = found["det_boxes"][0, :n].astype(np.float64)
    top, left = where.pad
    boxes[:, 0::2] = np.clip((boxes[:, 0::2] - left) * 120 / where.resized[1], 0, 120)
    boxes[:, 1::2] = np.clip((boxes[:, 1::2] - top) * 50 / where.resized[0], 0, 50)
    np.testing.assert_allclose(got[:, 1:], boxes, atol=0.06)


def test_the_example_says_what_is_wrong(example: Path, plan: Path, tmp_path: Path) -> None:
    path, _ = image(tmp_path)
    assert detect(example).returncode == 2
    sidecar, data = plan.with_suffix(".json"), plan.read_bytes()
    text = sidecar.read_text()

    def refused(*arguments: Any) -> str:
        done = detect(example, *arguments)
        assert done.returncode == 2, done.stdout
        assert done.stderr.startswith("error: ")
        return done.stderr

    assert "not a binary PPM" in refused(plan, plan)
    assert "cannot be read" in refused(tmp_path / "missing.plan", path)
    plan.write_bytes(data[:-1])
    assert "truncated" in refused(plan, path)
    plan.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "damaged" in refused(plan, path)
    plan.write_bytes(data)
    for old, new, words in (
        ('"8.6"', '"9.0"', "another GPU"),
        ('"backend": "tensorrt"', '"backend": "openvino"', "another backend"),
        ('"backend_version": "', '"backend_version": "3', "another version"),
        ('"strides": [', '"strides": "', "not readable"),
        ('"files": [', '"files": [[', "not readable"),
        ("{", "", "not readable"),
    ):
        assert old in text
        sidecar.write_text(text.replace(old, new, 1))
        assert words in refused(plan, path)
    sidecar.write_text(text.replace('"bins": 17', '"bins": 16'))
    assert "not those of its sidecar" in refused(plan, path)
    sidecar.unlink()
    assert "sidecar cannot be read" in refused(plan, path)
    os.environ["DHEAD_TENSORRT_LIBRARY_DIR"] = "/nonexistent"
    assert "TensorRT cannot be loaded" in refused(plan, path)


def test_the_package_stands_alone(example: Path, tmp_path: Path) -> None:
    """Its headers need nothing of TensorRT or CUDA, and Python's parts are not in it."""
    prefix = example.parents[1] / "prefix"
    files = {str(p.relative_to(prefix)) for p in prefix.rglob("*") if p.is_file()}
    assert {"include/dhead/params.h", "include/dhead/trt/engine.h", f"lib/libdhead_tensorrt{MAJOR}.a"} <= files
    assert not [f for f in files if f.startswith("dhead_trt") or f.endswith(".so")]
    for header in (
        p for p in files if p.startswith("include/dhead/trt/")
    ):  # usable without TensorRT's and CUDA's headers
        source = tmp_path / "alone.cpp"
        source.write_text(f"#include <{header.removeprefix('include/')}>\nint main() {{}}\n")
        run(["c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Werror", f"-I{prefix / 'include'}", str(source)])
    broken = subprocess.run(
        ["cmake", "-S", str(ROOT / "examples" / "cpp"), "-B", str(tmp_path / "b"), f"-Ddhead_trt_DIR={tmp_path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert broken.returncode != 0
