"""The CUDA rungs: `dhead_trt.cuda` on device arrays, judged as the C++ rungs are.

NEVER RUN ON A GPU: this was written and tested without one (tests/test_cuda_kernels.py climbs these rungs with the
kernels' source on the host; the ways through torch and CuPy have not run at all).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..postprocess import DetectResult
from .measure import TOLERANCES, Rung

if TYPE_CHECKING:
    from .climb import Climb

__all__ = ["cuda_rungs"]

_NAME = "CUDA decode and detect"
_PLUGIN = "TensorRT plugin"


def cuda_rungs(climb: Climb) -> None:
    """Runs the CUDA kernels where there is a GPU; else lists them, and the plugin, with the reason."""
    from .. import cuda

    available, reason = cuda.availability()
    if not available:
        reason = _reason(reason)
        climb.skip(_NAME, reason)
        climb.skip(_PLUGIN, reason)
        return
    spec = climb.spec
    kind, put, fetch = _library()

    def decode(maps: dict[str, NDArray[Any]]) -> tuple[Any, Any]:
        boxes, scores = cuda.decode_cuda({n: put(x) for n, x in maps.items()}, spec)
        return fetch(boxes), fetch(scores)

    def detect(**options: Any) -> DetectResult:
        found = cuda.detect_cuda({n: put(x) for n, x in climb.maps.items()}, spec, **options)
        return DetectResult(*(fetch(x) for x in found))

    tolerance = TOLERANCES["decode", "fp32"]

    def attempt(name: str, run: Callable[[str], None]) -> None:
        try:
            run(name)
        except Exception as e:  # a kernel that fails is a rung that fails; the ladder goes on
            climb.rungs.append(Rung(name, "failed", (), tolerance, " ".join(f"{type(e).__name__}: {e}".split())))

    attempt("CUDA decode", lambda name: climb.dense(name, tolerance, lambda: decode(climb.maps), f"on {kind}"))
    attempt("CUDA detect", lambda name: climb.filtered(name, detect))
    attempt("CUDA decode, fp16 maps", lambda name: climb.half(name, decode))
    climb.skip(_PLUGIN, "runs inside TensorRT; tests/gpu covers it")


def _reason(unavailable: str) -> str:
    """Why the kernels cannot run, as the doctor puts it where that is plainer than CUDA's word."""
    from ..doctor import find_gpus

    if importlib.util.find_spec("dhead_trt._cuda") is None:
        return "the CUDA kernels are not compiled into this installation"
    gpus, note = find_gpus()
    return unavailable if gpus else f"no GPU: {note}"


def _library() -> tuple[str, Callable[[NDArray[Any]], Any], Callable[[Any], NDArray[Any]]]:
    """What makes device arrays here: its name, a function to the GPU, and one back."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return "torch tensors", lambda x: torch.from_numpy(x).cuda(), lambda x: x.cpu().numpy()
    if importlib.util.find_spec("cupy") is not None:
        import cupy

        return "CuPy arrays", cupy.asarray, cupy.asnumpy
    from .._device import cuda_module

    module = cuda_module()

    def put(x: NDArray[Any]) -> Any:
        array = module.DeviceArray(list(x.shape), x.dtype.str, 0)
        array.copy_from_host(np.ascontiguousarray(x))
        return array

    return "arrays of dhead_trt", put, lambda x: np.asarray(x.to_host())
