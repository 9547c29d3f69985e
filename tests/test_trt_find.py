"""cmake/FindTensorRT.cmake on the trees that TensorRT comes in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")

OLD = "#define NV_TENSORRT_MAJOR 10 //!< x\n#define NV_TENSORRT_MINOR 3 //!< x\n#define NV_TENSORRT_PATCH 0 //!< x\n"
NEW = """#define TRT_MAJOR_ENTERPRISE 11
#define TRT_MINOR_ENTERPRISE 1
#define TRT_PATCH_ENTERPRISE 0
#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< TensorRT major version.
#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE
#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE
"""
RTX = NEW.replace("ENTERPRISE", "RTX").replace("RTX 11", "RTX 1").replace("MINOR_RTX 1", "MINOR_RTX 7")

PROJECT = """cmake_minimum_required(VERSION 3.24)
project(x LANGUAGES NONE)
set(CMAKE_FIND_USE_CMAKE_SYSTEM_PATH OFF)  # nothing of this machine is looked at
set(CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH OFF)
set(ENV{{TensorRT_ROOT}} "")
set(ENV{{TENSORRT_ROOT}} "")
list(APPEND CMAKE_MODULE_PATH "{modules}")
find_package(TensorRT {wanted})
message(STATUS "found=${{TensorRT_FOUND}} version=${{TensorRT_VERSION}} rtx=${{TensorRT_IS_RTX}} "
  "parser=${{TensorRT_HAS_ONNX_PARSER}} dir=${{TensorRT_INCLUDE_DIR}} lib=${{TensorRT_nvinfer_LIBRARY}}")
if(TARGET TensorRT::headers)
  message(STATUS "headers target")
endif()
if(TARGET TensorRT::nvinfer AND TARGET TensorRT::nvonnxparser)
  message(STATUS "library targets")
endif()
"""


def tree(root: Path, include: str, version: str, libs: tuple[str, ...] = (), *, parser: bool = True) -> None:
    folder = root / include
    folder.mkdir(parents=True)
    (folder / "NvInfer.h").write_text("")
    (folder / "NvInferVersion.h").write_text(version)
    if parser:
        (folder / "NvOnnxParser.h").write_text("")
    for lib in libs:
        (root / lib).parent.mkdir(parents=True, exist_ok=True)
        (root / lib).write_text("")


def find(folder: Path, *arguments: str, wanted: str = "") -> str:
    source = folder / "project"
    source.mkdir(exist_ok=True)
    (source / "CMakeLists.txt").write_text(PROJECT.format(modules=ROOT / "cmake", wanted=wanted))
    command = ["cmake", "-S", str(source), "-B", str(folder / "b"), "--fresh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_sdk_archive(tmp_path: Path) -> None:
    root = tmp_path / "TensorRT-10.3.0.26"
    tree(root, "include", OLD, ("lib/libnvinfer.so", "lib/libnvonnxparser.so"))
    text = find(tmp_path, f"-DTensorRT_ROOT={root}")
    assert "found=TRUE version=10.3.0 rtx=FALSE parser=TRUE" in text
    assert f"dir={root}/include lib={root}/lib/libnvinfer.so" in text
    assert "headers target" in text
    assert "library targets" in text


@pytest.mark.parametrize("architecture", ["x86_64-linux-gnu", "aarch64-linux-gnu"], ids=["Debian", "JetPack"])
def test_multiarch_packages(tmp_path: Path, architecture: str) -> None:
    root = tmp_path / "usr"
    libs = tuple(f"lib/{architecture}/lib{n}.so" for n in ("nvinfer", "nvonnxparser"))
    tree(root, f"include/{architecture}", NEW, libs)
    text = find(tmp_path, f"-DCMAKE_PREFIX_PATH={root}", f"-DCMAKE_LIBRARY_ARCHITECTURE={architecture}")
    assert "found=TRUE version=11.1.0 rtx=FALSE parser=TRUE" in text
    assert f"lib={root}/{libs[0]}" in text


def test_tensorrt_for_rtx(tmp_path: Path) -> None:
    root = tmp_path / "TensorRT-RTX-1.7.1"
    tree(root, "include", RTX, ("lib/libtensorrt_rtx.so", "lib/libtensorrt_onnxparser_rtx.so"))
    text = find(tmp_path, f"-DTensorRT_ROOT={root}")
    assert "found=TRUE version=1.7.0 rtx=TRUE" in text
    assert f"lib={root}/lib/libtensorrt_rtx.so" in text
    assert "library targets" in text


def test_headers_alone(tmp_path: Path) -> None:
    root = tmp_path / "headers"
    tree(root, ".", NEW, parser=False)
    text = find(tmp_path, f"-DTensorRT_ROOT={root}")
    assert "found=TRUE version=11.1.0 rtx=FALSE parser=FALSE" in text
    assert "headers target" in text
    assert "library targets" not in text


def test_nothing_and_too_old(tmp_path: Path) -> None:
    assert "found=FALSE" in find(tmp_path)
    text = find(tmp_path, wanted="REQUIRED")
    assert "Set TensorRT_ROOT" in text
    root = tmp_path / "sdk"
    tree(root, "include", OLD)
    text = find(tmp_path, f"-DTensorRT_ROOT={root}", wanted="10.8")
    assert "found=FALSE" in text
    assert "10.3.0" in text
