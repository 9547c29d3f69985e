"""`dhead_trt._cuda` without a GPU: the real binding and kernel sources, compiled for the host (tests/cpp/kernels/shim).

"Device" memory is then the host's, and a launch is done when it returns, or is queued on a stream of the TensorRT
stand-in's. Everything but the hardware is the real thing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "tests/cpp/kernels/shim"
SOURCES = [
    ROOT / "csrc/bindings/cuda.cpp",
    ROOT / "csrc/decode_cuda.cu",
    ROOT / "csrc/detect_cuda.cu",
    ROOT / "csrc/filter_cuda.cu",
    ROOT / "csrc/nms_cuda.cu",
    ROOT / "csrc/letterbox_cuda.cu",
    SHIM / "grid.cpp",
]


def build(folder: Path, cudart: str | None = None) -> ModuleType:
    """Compiles and loads the module; not put into sys.modules.

    Args:
        folder: for the files.
        cudart: the TensorRT stand-in's CUDA runtime: its memory and its streams are then the module's. Without it a
            launch is done when it returns, and what is ordered by a stream of another runtime's is not.
    """
    import pybind11

    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert compiler, "no C++ compiler"
    includes = [SHIM, ROOT / "csrc/include", ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    runtime = SHIM / ("runtime.cpp" if cudart is None else "runtime_streams.cpp")
    flags += [] if cudart is None else [f'-DDHEAD_STANDIN_CUDART="{cudart}"']
    flags += ["-Wno-unknown-pragmas", *(f"-I{i}" for i in includes)]

    def compile_one(source: Path) -> str:
        target = folder / f"{source.name}.o"
        command = [*compiler.split(), *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*SOURCES, runtime]))
    library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([*compiler.split(), "-shared", *objects, "-ldl", "-o", str(library)], check=True)
    # pybind11 hands out the module that it has made under that name in this process.
    name = "_cuda" if cudart is None else "on_streams._cuda"
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
