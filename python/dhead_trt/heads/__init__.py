"""Detection heads in PyTorch: the reference's decoupled, stable and coupled ones, a light and a dynamic one.

Every head has `.spec`, `.in_channels` and `.raw(features) -> {"box_0": …, "cls_0": …}` (see HeadSpec). Export, build
and parity take any torch module with `.spec` and `.raw`; `DecodedHead` turns one into boxes and scores.
"""

from __future__ import annotations

from ..errors import BackendUnavailable

try:
    import torch as _torch
except ImportError as e:
    raise BackendUnavailable(
        "dhead_trt.heads needs PyTorch", received=str(e), fix='pip install "dhead-trt[export]"'
    ) from e

from .backbone import Backbone, BackboneSize
from .base import Head, RawModel
from .coupled import CoupledHead
from .decoded import DecodedHead, WholeModel
from .decoupled import YOLOv8DecoupledHead, create_yolov8_decoupled
from .dynamic import DynamicDecoupledHead
from .fuse import fuse_conv_bn
from .light import LightDecoupledHead
from .stable import StableDecoupledHead, StablePyramidHead

del _torch

__all__ = [
    "Backbone",
    "BackboneSize",
    "CoupledHead",
    "DecodedHead",
    "DynamicDecoupledHead",
    "Head",
    "LightDecoupledHead",
    "RawModel",
    "StableDecoupledHead",
    "StablePyramidHead",
    "WholeModel",
    "YOLOv8DecoupledHead",
    "create_yolov8_decoupled",
    "fuse_conv_bn",
]
