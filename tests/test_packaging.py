"""The package as users get it: built wheels and sdists, bare environments, several Pythons.

Wheels are built with pip from a copy of the sources (what an sdist holds), never from the working tree, so that nothing
that lies about in it can help.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
THIS = "{}.{}".format(*sys.version_info[:2])

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]


def environment() -> dict[str, str]:
    """The environment of a user's shell: nothing of this test run's Python leaks in."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST")
    return {k: v for k, v in os.environ.items() if k not in hidden} | {"PYTHONNOUSERSITE": "1"}


def run(*command: object, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment(), text=True, capture_output=True, check=False
    )
    if check:
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def interpreter(version: str) -> str | None:
    """A Python of that version that can make environments (this one, on PATH, or pyenv's), or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    names = [f"python{version}", *(str(p) for p in sorted(pyenv.glob(f"{version}.*/bin/python{version}")))]
    for name in [sys.executable] if version == THIS else names:
        probe = "import sys, venv, ensurepip; print('{}.{}'.format(*sys.version_info[:2]))"
        if shutil.which(name) is not None:
            done = run(name, "-c", probe, check=False)
            if done.returncode == 0 and done.stdout.strip() == version:
                return name
    return None


def online(done: subprocess.CompletedProcess[str]) -> None:
    """Skips where pip failed because it cannot reach an index; any other failure fails."""
    if done.returncode:
        text = done.stdout + done.stderr
        if re.search(r"Temporary failure in name resolution|Network is unreachable|Connection refused", text):
            pytest.skip("no package index can be reached, and the build requirements are not cached")
        pytest.fail(text[-4000:])


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from the repository."""
    folder = tmp_path_factory.mktemp("sdist")
    code = (
        "import os, sys; os.chdir(sys.argv[1]);"
        "from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[2]))"
    )
    run(sys.executable, "-c", code, ROOT, folder)
    (made,) = folder.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def sources(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sources")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    return root


class Wheels:
    """Wheels and bare environments, one of each for every Python, made when first asked for."""

    def __init__(self, sources: Path, folder: Path) -> None:
        self.sources, self.folder = sources, folder
        self._wheels: dict[str, Path] = {}
        self._pythons: dict[str, Path] = {}

    def wheel(self, version: str) -> Path:
        if version not in self._wheels:
            python = interpreter(version)
            if python is None:
                pytest.skip(f"Python {version} is not on this machine: its wheel was not tried")
            venv = self.folder / f"build-{version}"
            run(python, "-m", "venv", venv)
            out = self.folder / f"wheel-{version}"
            options = [
                f"--config-settings=cmake.define.DHEAD_{part}=OFF" for part in ("CUDA", "TENSORRT")
            ]  # to be quick
            pip = [venv / "bin/python", "-m", "pip", "wheel", "--no-deps", "-w", out]
            online(run(*pip, *options, self.sources, check=False))
            (self._wheels[version],) = out.glob("*.whl")
        return self._wheels[version]

    def python(self, version: str) -> Path:
        """The interpreter of an environment that holds the wheel and numpy, nothing else."""
        if version not in self._pythons:
            wheel = self.wheel(version)
            python = interpreter(version)
            assert python is not None
            venv = self.folder / f"bare-{version}"
            run(python, "-m", "venv", venv)
            online(run(venv / "bin/python", "-m", "pip", "install", "-q", wheel, check=False))
            self._pythons[version] = venv / "bin/python"
        return self._pythons[version]


@pytest.fixture(scope="module")
def wheels(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wheels]:
    return Wheels(sources, tmp_path_factory.mktemp("wheels"))


def test_sdist_holds_the_sources_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    wanted = {
        "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "CHANGELOG.md", "Makefile",
        "cmake/DheadOptions.cmake", "csrc/CMakeLists.txt", "csrc/include/dhead/decode.h", "csrc/bindings/core.cpp",
        "python/dhead_trt/__init__.py", "python/dhead_trt/py.typed", "python/dhead_trt/cli/__init__.py",
        "scripts/build_engine.py", "tests/test_packaging.py", "PKG-INFO",
    }  # fmt: skip
    assert wanted <= names, sorted(wanted - names)
    products = re.compile(r"\.(so|o|a|whl|onnx|pyc|plan|engine)$|(^|/)(build|\.venv|out|__pycache__)/")
    assert [n for n in names if products.search(n)] == []
    assert sdist.stat().st_size < 8 * 1024 * 1024


@pytest.mark.parametrize("version", VERSIONS)
def test_wheel(wheels: Wheels, version: str) -> None:
    """What is in the wheel, and what its metadata promise."""
    wheel = wheels.wheel(version)
    tag = version.replace(".", "")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
        entries = next(archive.read(n).decode() for n in names if n.endswith(".dist-info/entry_points.txt"))
    extensions = [n for n in names if n.endswith(".so")]
    assert any(n.startswith(f"dhead_trt/_core.cpython-{tag}") for n in extensions), extensions
    assert all(f"cpython-{tag}" in n or "/lib" in n for n in extensions), extensions
    assert {"dhead_trt/py.typed", "dhead_trt/_core.pyi", "dhead_trt/spec.py"} <= set(names)
    outside = {n.split("/")[0] for n in names} - {"dhead_trt"}
    assert len(outside) == 1, outside
    assert next(iter(outside)).endswith(".dist-info")
    assert [n for n in names if n.endswith((".cpp", ".h", ".cu", ".a")) or "tests/" in n] == []
    assert re.search(r"^Requires-Python: >=3\.10$", metadata, re.M)
    assert re.search(r"^License-Expression: Apache-2\.0$", metadata, re.M)
    base = [r for r in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M) if "extra ==" not in r]
    assert [re.match(r"[\w-]+", r)[0] for r in base] == ["numpy"]  # type: ignore[index]
    assert "dhead-trt = dhead_trt.cli:main" in entries


IMPORTED = """
import sys, sysconfig, os
stdlib = set(sys.stdlib_module_names)
before = set(sys.modules)
import dhead_trt
after = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(after - stdlib))
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_import_needs_numpy_only(wheels: Wheels, version: str) -> None:
    """In an environment of numpy alone, the import brings in numpy, the standard library and ourselves."""
    python = wheels.python(version)
    installed = run(python, "-m", "pip", "list", "--format=freeze").stdout.lower()
    names = set(re.findall(r"^([\w-]+)==", installed, re.M))
    assert names - {"pip", "setuptools", "wheel"} == {"numpy", "dhead-trt"}
    done = run(python, "-W", "error", "-c", IMPORTED, cwd=wheels.folder)
    found = set(eval(done.stdout))
    assert "dhead_trt" in found
    assert found - {"dhead_trt", "numpy", "_distutils_hack", "__mp_main__"} <= {"cython_runtime", "_cython_3"}, found


@pytest.mark.parametrize("version", VERSIONS)
def test_core_works_with_numpy_alone(wheels: Wheels, version: str) -> None:
    """The compiled core decodes and detects; every command that needs more names the extra, in one line."""
    python = wheels.python(version)
    code = """
import numpy as np, dhead_trt
from dhead_trt import reference
from dhead_trt.postprocess import decode, detect
spec = dhead_trt.HeadSpec(num_classes=3, strides=(8, 16), bins=16)
rng = np.random.default_rng(0)
maps = {n: rng.normal(0, 2, (1, spec.channels(n), *s)).astype("f4")
        for i, s in enumerate(((5, 7), (3, 4))) for n in (f"box_{i}", f"cls_{i}")}
boxes, scores = decode(maps, spec)
want = reference.decode(maps, spec)
assert np.abs(boxes - want[0]).max() < 2e-4 and np.abs(scores - want[1]).max() < 1e-6
found, oracle = detect(maps, spec), reference.detect(maps, spec)
assert int(found.num_dets[0, 0]) == int(oracle.num_dets[0, 0]) > 0
assert (found.det_classes == oracle.classes).all()
print("same")
"""
    assert run(python, "-c", code, cwd=wheels.folder).stdout.strip() == "same"
    doctor = run(python, "-m", "dhead_trt", "doctor", cwd=wheels.folder).stdout
    assert "not installed" in doctor
    assert 'pip install "dhead-trt[cpu]"' in doctor
    script = python.parent / "dhead-trt"
    assert run(script, "--version").stdout.strip() == "dhead-trt 0.1.0"
    onnx = wheels.folder / "a.onnx"
    onnx.write_bytes(b"\x08\x08")
    for command, extra in (
        (["export", "decoupled"], "dhead-trt[export]"),
        (["inspect", onnx], "dhead-trt[onnx]"),
        (["build", onnx, "--backend", "openvino"], "dhead-trt["),
    ):
        done = run(script, *command, cwd=wheels.folder, check=False)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
        assert done.returncode == 2, (command, done.stdout, done.stderr)
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: "), lines
        assert f'pip install "{extra}' in lines[0], lines


def test_import_time(wheels: Wheels) -> None:
    """`import dhead_trt` costs at most 0.15 s over numpy's import (best of several, on a shared machine)."""
    python = wheels.python(THIS)
    code = "import time, numpy; t = time.perf_counter(); import dhead_trt; print(time.perf_counter() - t)"
    times = [float(run(python, "-c", code, cwd=wheels.folder).stdout) for _ in range(7)]
    assert min(times) < 0.15, times


def test_no_build_without_a_compiler_is_told_plainly(sources: Path, tmp_path: Path) -> None:
    """The Makefile says what is missing before it downloads anything."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sh", "make", "find", "awk", "git", "test", "mkdir", "touch", "env"):
        path = shutil.which(name)
        if path is not None:
            (tools / name).symlink_to(path)
    (tools / "python3").symlink_to(Path(sys.executable).resolve())
    if shutil.which("make") is None:
        pytest.skip("make is not on this machine")
    done = subprocess.run(
        ["make", "-C", str(sources), "install", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}"],
        env=environment() | {"PATH": str(tools), "CXX": "no-such-compiler"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no C++ compiler was found" in done.stderr
    assert not (tmp_path / "venv").exists()
