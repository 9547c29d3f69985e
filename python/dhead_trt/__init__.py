"""dhead_trt: deploy YOLOv8-style decoupled detection heads.

Importing the package imports numpy and the compiled core, nothing else; every other module imports what it needs when
it is used, and names the missing extra where it is not there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError, BackendUnavailable, BuildError, DheadError, GraphError, InputError
from .postprocess import DetectResult, decode, detect, nms, simd_levels
from .spec import HeadSpec

if TYPE_CHECKING:
    from .artifact import Artifact
    from .detections import Detections
    from .detector import Detector
    from .engine import Engine

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "BackendUnavailable",
    "BuildError",
    "DetectResult",
    "Detections",
    "Detector",
    "DheadError",
    "Engine",
    "GraphError",
    "HeadSpec",
    "InputError",
    "__version__",
    "decode",
    "detect",
    "nms",
    "simd_levels",
]

_LAZY = {"Artifact": "artifact", "Detections": "detections", "Detector": "detector", "Engine": "engine"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
