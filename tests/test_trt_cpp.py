"""The C++ tests of the TensorRT builder and engine, under the sanitizers; see tests/cpp/trt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trt_standin import build, header_dirs, header_major, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trt")]
TESTS = 39


def _majors() -> list[int]:
    return [header_major(d) for d in header_dirs()]


def _run(program: Path) -> str:
    environment = dict(os.environ, ASAN_OPTIONS="detect_leaks=1", UBSAN_OPTIONS="print_stacktrace=1")
    done = subprocess.run([str(program)], capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, f"{program.name}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    assert f"0 of {TESTS} failed" in done.stdout
    assert "unexpected call" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_against_the_stand_ins(sanitize: str) -> None:
    for major in _majors():
        _run(build(major, sanitize=sanitize) / f"trt_test{major}")


def test_parser_declarations_have_the_real_layout() -> None:
    checked = 0
    for folder in header_dirs():
        if (folder / "NvOnnxParser.h").exists():
            major = header_major(folder)
            assert run([str(build(major, sanitize="address,undefined") / f"parser_layout_test{major}")]).strip() == "ok"
            checked += 1
    if not checked:
        pytest.skip("no NvOnnxParser.h beside the headers at hand (the headers' wheel has none)")


def test_the_stub_generator_refuses_other_headers(tmp_path: Path) -> None:
    script = Path(__file__).parent / "cpp" / "trt" / "standin" / "generate_stubs.py"
    for name in ("NvInferImpl.h", "NvInferRuntimeCommon.h"):
        (tmp_path / name).write_text("class Something {};\n")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(tmp_path / "out.h")],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode != 0
    assert "have no IPluginRegistry" in done.stderr
    assert not (tmp_path / "out.h").exists()
