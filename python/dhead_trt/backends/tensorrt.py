"""TensorRT, for Jetson and data-centre GPUs."""

from __future__ import annotations

import ctypes.util
import importlib.util
import sys
from typing import Any, NoReturn

from ..artifact import Artifact
from ..errors import BackendUnavailable
from .base import Availability, BuildRequest, BuildResult, Runner

__all__ = ["TensorRTBackend"]

_FIX = (
    'Use --backend openvino to run on this CPU (pip install "dhead-trt[cpu]"), '
    'or --backend tensorrt_rtx to build for RTX GPUs (pip install "dhead-trt[rtx]")'
)


class TensorRTBackend:
    """Says why TensorRT cannot be used: this version of dhead_trt has no TensorRT builder or engine yet."""

    name = "tensorrt"
    forms = ("detections", "decoded", "raw", "native")
    precisions = ("fp32", "fp16")
    suffixes = (".plan", ".engine", ".trt")

    def availability(self) -> Availability:
        """Never available yet; the reason says also whether the library is there."""
        where = _library()
        found = (
            f"its library is here ({where}), but" if where else "its library (libnvinfer) is not installed here, and"
        )
        reason = f"{found} this version of dhead_trt has no TensorRT builder and runner yet"
        return Availability(False, False, reason, {"libnvinfer": where or "not found"})

    def build(self, request: BuildRequest) -> BuildResult:
        """Raises BackendUnavailable."""
        self._refuse()

    def load(
        self, artifact: Artifact, device: str | None = None, *, threads: int | None = None, **options: Any
    ) -> Runner:
        """Raises BackendUnavailable."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BackendUnavailable("TensorRT cannot be used", received=self.availability().reason, fix=_FIX)


def _library() -> str | None:
    """Where libnvinfer was found: a pip package's name, the system's library name, or None."""
    for package in ("tensorrt_libs", "tensorrt"):
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            return f"the Python package {package}"
    return ctypes.util.find_library("nvinfer")
