"""dhead_trt: deploy YOLOv8-style decoupled detection heads.

Importing the package imports numpy and the compiled core, nothing else; every other module imports what it needs when
it is used, and names the missing extra where it is not there.
"""

from __future__ import annotations

from .errors import ArtifactError, BackendUnavailable, BuildError, DheadError, GraphError, InputError
from .postprocess import DetectResult, decode, detect, nms, simd_levels
from .spec import HeadSpec

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "BackendUnavailable",
    "BuildError",
    "DetectResult",
    "DheadError",
    "GraphError",
    "HeadSpec",
    "InputError",
    "__version__",
    "decode",
    "detect",
    "nms",
    "simd_levels",
]
