"""The CPU core on 64-bit ARM: cross-compiled, and run by qemu's user emulation, so that the NEON code is tested.

Needs Debian's g++-aarch64-linux-gnu and qemu-user (or their like elsewhere); skipped where they are missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import dhead_trt
from cases import CASES, assert_same_decode, dump
from conftest import ROOT
from dhead_trt import reference

COMPILER = os.environ.get("DHEAD_AARCH64_CXX", "aarch64-linux-gnu-g++")
EMULATOR = "qemu-aarch64"
SYSROOT = os.environ.get("DHEAD_AARCH64_SYSROOT", "/usr/aarch64-linux-gnu")
MISSING = [tool for tool in (COMPILER, EMULATOR, "cmake") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"the NEON code is NOT TESTED by this run: no {', '.join(MISSING)} "
    "(Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user)",
)


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=ROOT, timeout=500)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{output[-6000:]}"
    return output


def emulated(program: Path, *arguments: str | Path) -> str:
    return run(EMULATOR, "-L", SYSROOT, program, *arguments)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of core_tests and core_cases, compiled for aarch64; warnings are errors."""
    folder = tmp_path_factory.mktemp("aarch64")
    parts = [f"-DDHEAD_{part}=OFF" for part in ("CUDA", "TENSORRT", "PYTHON")]
    run(
        "cmake", "-S", ROOT, "-B", folder, *(["-G", "Ninja"] if shutil.which("ninja") else []), *parts,
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_BUILD_TYPE=Release", "-DDHEAD_TESTS=ON", "-DDHEAD_WERROR=ON",
    )  # fmt: skip
    run("cmake", "--build", folder, "-j", "2", "--target", "core_tests", "core_cases")
    return folder / "tests" / "cpp" / "core"


def test_core_tests(programs: Path) -> None:
    """All C++ tests of the core but the one that forks: qemu's emulation cannot fork a program of several threads."""
    output = emulated(programs / "core_tests", "-fork")
    assert "ok    decode_is_right_and_every_level_gives_the_same_bits" in output
    assert " 0 failures" in output


def test_case_table(programs: Path, tmp_path: Path) -> None:
    """NEON gives the bits of the scalar code there, and of this machine's code here; and they are the oracle's."""
    dump(tmp_path / "cases")
    output = emulated(programs / "core_cases", tmp_path / "cases", tmp_path / "found")
    assert "levels: scalar neon" in output
    assert f"{len(CASES)} cases, 0 failures" in output
    for case in CASES:
        maps = case.maps()

        def found(name: str, like: np.ndarray, folder: Path = tmp_path / "found" / case.name) -> np.ndarray:
            return np.fromfile(folder / f"{name}.bin", like.dtype.newbyteorder("<")).reshape(like.shape)

        decoded = dhead_trt.decode(maps, case.spec, threads=2)
        detected = dhead_trt.detect(maps, case.spec, threads=2, **case.options)
        there = found("boxes", decoded[0]), found("scores", decoded[1])
        assert_same_decode(there, reference.decode(maps, case.spec))
        for got, want in zip(there, decoded, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=case.name)  # NaN equals NaN
        for name, want in zip(detected._fields, detected, strict=True):
            np.testing.assert_array_equal(found(name, want), want, err_msg=f"{case.name}: {name}")
