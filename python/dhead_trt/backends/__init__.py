"""The backends by name. Importing this imports none of their libraries."""

from __future__ import annotations

from ..errors import BackendUnavailable, InputError
from .base import Availability, Backend, BuildRequest, BuildResult, Runner

__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "BuildRequest",
    "BuildResult",
    "Runner",
    "available_backends",
    "choose_backend",
    "get_backend",
]

BACKENDS = ("tensorrt", "tensorrt_rtx", "openvino")


def get_backend(name: str) -> Backend:
    """The backend called `name`, installed or not.

    Raises:
        InputError: there is none of that name.
    """
    if name == "openvino":
        from .openvino import OpenVINOBackend

        return OpenVINOBackend()
    if name == "tensorrt_rtx":
        from .tensorrt_rtx import TensorRTRTXBackend

        return TensorRTRTXBackend()
    if name == "tensorrt":
        from .tensorrt import TensorRTBackend

        return TensorRTBackend()
    raise InputError("There is no such backend", received=repr(name), expected=", ".join((*BACKENDS, "auto")))


def available_backends() -> dict[str, Availability]:
    """What each backend can do on this machine, by name."""
    return {name: get_backend(name).availability() for name in BACKENDS}


def choose_backend() -> tuple[Backend, str]:
    """The backend that `backend="auto"` means here, and a sentence that says why.

    First choice is one that builds and runs here, TensorRT before TensorRT for RTX before OpenVINO; then one that can
    at least build.

    Raises:
        BackendUnavailable: none can build here; says what each one lacks.
    """
    found = available_backends()
    for name, a in found.items():
        if a.can_build and a.can_run:
            passed = [f"{n} does not run ({found[n].reason.rstrip('.')})" for n in BACKENDS[: BACKENDS.index(name)]]
            return get_backend(name), "; ".join([f"{name} builds and runs here", *passed]) + "."
    for name, a in found.items():
        if a.can_build:
            return get_backend(name), f"{name} is the only one that builds here; nothing here can run it ({a.reason})"
    raise BackendUnavailable(
        "No backend can build an engine here",
        received="; ".join(f"{n}: {a.reason.rstrip('.')}" for n, a in found.items()),
        fix='For a CPU engine: pip install "dhead-trt[cpu]"',
    )
