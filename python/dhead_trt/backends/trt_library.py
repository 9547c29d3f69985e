"""Finds the compiled TensorRT modules, and a TensorRT library for one of them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailable

__all__ = ["MAJORS", "modules", "open_library", "plugin_library"]

MAJORS = (10, 11)
_INSTALL = (
    "Install dhead_trt where TensorRT's headers are found: `TensorRT_ROOT=<SDK> pip install .`, or "
    "`DHEAD_TENSORRT_HEADERS=$(python scripts/fetch_tensorrt_headers.py) pip install .`"
)


@functools.cache
def modules() -> dict[int, Any]:
    """The compiled modules by TensorRT major version: `_trt10`, `_trt11`, those that were built. Opens no library."""
    found = {}
    for major in MAJORS:
        if importlib.util.find_spec(f"dhead_trt._trt{major}") is not None:
            found[major] = importlib.import_module(f"dhead_trt._trt{major}")
    return found


def open_library(*, rtx: bool = False, path: str = "", major: int | None = None) -> tuple[Any, Any]:
    """(module, library): the first of the compiled modules whose TensorRT is here; `major`, a plan's, before others.

    Looks at `path`, else in $DHEAD_TENSORRT_LIBRARY_DIR, else in the pip packages, else where the system's loader does.
    The CUDA runtime is $DHEAD_CUDART_LIBRARY, else the one linked in, else pip's, else the system's.

    Raises:
        BackendUnavailable: no module was built, or none finds its library; says where each one looked.
    """
    usable = {m: module for m, module in modules().items() if m >= 11 or not rtx}
    product = "TensorRT for RTX (libtensorrt_rtx)" if rtx else "TensorRT (libnvinfer)"
    if not usable:
        needed = "TensorRT 11's headers" if rtx else "TensorRT's headers"
        raise BackendUnavailable(f"dhead_trt was built without {needed}, so {product} cannot be used", fix=_INSTALL)
    packages = _folders("tensorrt_rtx_libs" if rtx else "tensorrt_libs")
    tried: list[BackendUnavailable] = []
    for number in sorted(usable, key=lambda m: (m == major, m), reverse=True):
        module = usable[number]
        cudart = os.environ.get("DHEAD_CUDART_LIBRARY", "") or ("" if module.STATIC_CUDART else _pip_cudart())
        try:
            return module, module.Library(path, package_dirs=packages, rtx=rtx, cudart=cudart)
        except BackendUnavailable as e:
            tried.append(e)
    if len(tried) == 1:
        raise tried[0]
    raise BackendUnavailable(
        tried[0].problem,
        received="; ".join(str(e.received) for e in tried),
        expected=" or ".join(str(e.expected) for e in tried),
        fix=tried[0].fix,
    )


def plugin_library(major: int) -> str | None:
    """Path of our plugin library for a TensorRT major version, where it was built."""
    for name in (f"libdhead_trt_plugins{major}.so", "libdhead_trt_plugins.so"):
        path = Path(__file__).parents[1] / name
        if path.exists():
            return str(path)
    return None


def _folders(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [str(p) for p in spec.submodule_search_locations or ()]


def _pip_cudart() -> str:
    """libcudart of NVIDIA's pip packages, or nothing."""
    roots: Sequence[str] = _folders("nvidia")
    for root in roots:
        for pattern in ("cu13/lib/libcudart.so.*", "cuda_runtime/lib/libcudart.so.*"):
            found = sorted(Path(root).glob(pattern))
            if found:
                return str(found[-1])
    return ""
