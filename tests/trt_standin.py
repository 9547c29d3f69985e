"""Builds the TensorRT code against the stand-ins of tests/cpp/trt, and gives access to both.

Headers: DHEAD_TENSORRT_HEADERS (";"-separated folders, one per major version), else those that
scripts/fetch_tensorrt_headers.py fetches (TensorRT 10.14).
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conftest import ROOT, load_script

JOBS = "2"


@functools.cache
def header_dirs() -> tuple[Path, ...]:
    """Folders of TensorRT headers; skips the test where there are none."""
    given = os.environ.get("DHEAD_TENSORRT_HEADERS")
    if given:
        return tuple(Path(d) for d in given.split(";"))
    try:
        return (Path(load_script("fetch_tensorrt_headers").fetch()),)
    except (RuntimeError, OSError) as e:
        pytest.skip(f"TensorRT's headers cannot be fetched: {e}")


def header_major(folder: Path) -> int:
    """Major version of a folder of headers."""
    for line in (folder / "NvInferVersion.h").read_text().splitlines():
        words = line.split()
        if len(words) > 2 and words[1] in ("NV_TENSORRT_MAJOR", "TRT_MAJOR_ENTERPRISE") and words[2].isdigit():
            return int(words[2])
    raise AssertionError(f"{folder} names no version")


def headers_of(major: int) -> Path:
    """The headers of one major version; skips the test where they are not at hand."""
    for folder in header_dirs():
        if header_major(folder) == major:
            return folder
    pytest.skip(f"no TensorRT {major} headers here (DHEAD_TENSORRT_HEADERS names none)")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time: test processes share the builds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def run(command: list[str], **kwargs: Any) -> str:
    """Runs a command; its output is the failure's text."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def build(major: int, *, sanitize: str = "", python: bool = False) -> Path:
    """Configures and builds tests/cpp/trt; returns its build folder. Later calls find it built."""
    for tool in ("cmake", "c++"):
        if shutil.which(os.environ.get("CXX", tool) if tool == "c++" else tool) is None:
            pytest.skip(f"{tool} is not installed")
    kind = sanitize.split(",")[0] or ("module" if python else "plain")
    folder = ROOT / "build" / "trt-tests" / f"{kind}{major}-py{sys.version_info[0]}{sys.version_info[1]}"
    with locked(folder.with_suffix(".lock")):
        run(
            [
                "cmake", "-S", str(ROOT / "tests" / "cpp" / "trt"), "-B", str(folder),
                *(["-G", "Ninja"] if shutil.which("ninja") else []),
                f"-DDHEAD_TENSORRT_HEADERS={headers_of(major)}",
                f"-DDHEAD_SANITIZE={sanitize}",
                f"-DDHEAD_PYTHON={'ON' if python else 'OFF'}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DCMAKE_BUILD_TYPE={'Sanitize' if sanitize else 'Release'}",
            ]
        )  # fmt: skip
        targets = [f"_trt{major}", f"standin_nvonnxparser{major}"] if python else []
        run(["cmake", "--build", str(folder), "-j", JOBS, *(["--target", *targets] if targets else [])])
    return folder


class StandIn:
    """The compiled module, and the stand-ins it runs against."""

    def __init__(self, major: int) -> None:
        folder = build(major, python=True)
        self.major = major
        self.module = load_module(folder, major)
        self.folder = folder / f"standin{major}"
        self.cudart = str(self.folder / f"libcudart.so.{major}")
        self.cuda = ctypes.CDLL(self.cudart)
        self.trt = ctypes.CDLL(str(self.folder / f"libnvinfer.so.{major}"))
        for name in ("standin_cuda_live", "standin_cuda_count"):
            getattr(self.cuda, name).restype = ctypes.c_long
        self.cuda.standin_cuda_limit.argtypes = [ctypes.c_long]
        self.trt.standin_trt_set.argtypes = [ctypes.c_char_p, ctypes.c_long]
        self.trt.standin_trt_get.argtypes = [ctypes.c_char_p]
        self.trt.standin_trt_get.restype = ctypes.c_long

    def library(self) -> Any:
        return self.module.Library(str(self.folder), cudart=self.cudart)

    def reset(self) -> None:
        self.cuda.standin_cuda_reset()
        self.trt.standin_trt_reset()

    def set(self, key: str, value: int) -> None:
        self.trt.standin_trt_set(key.encode(), value)

    def get(self, key: str) -> int:
        return int(self.trt.standin_trt_get(key.encode()))

    def fail(self, call: str, after: int = 0) -> None:
        self.cuda.standin_cuda_fail(call.encode(), after)

    def live(self, kind: str) -> int:
        return int(self.cuda.standin_cuda_live(kind.encode()))

    def count(self, what: str) -> int:
        return int(self.cuda.standin_cuda_count(what.encode()))


def load_module(folder: Path, major: int) -> ModuleType:
    """Imports _trt<major> from a build folder, under its own name."""
    name = f"_trt{major}"
    if name in sys.modules:
        return sys.modules[name]
    found = sorted((folder / "csrc_trt").glob(f"{name}.*.so"))
    assert found, f"{name} was not built in {folder}"
    spec = importlib.util.spec_from_file_location(name, found[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def interrupt_a_build(kind: str, model: bytes, folder: Path) -> None:
    """Runs interrupt_build.py on `model`, and checks that the interrupted build leaves nothing in `folder`."""
    source = folder / "model.onnx"
    source.write_bytes(model)
    command = [sys.executable, str(ROOT / "tests" / "interrupt_build.py"), kind, str(source), str(folder / "x.plan")]
    path = os.pathsep.join(p for p in sys.path if p)
    assert run(command, env=os.environ | {"PYTHONPATH": path}, timeout=120) == "interrupted\n"
    assert list(folder.iterdir()) == [source]
