"""How good an engine is: COCO's mAP on labelled images, and agreement with another engine or the original ONNX."""

from .agreement import Agreement, ImageAgreement, agree, match
from .coco import CocoData, CocoImage
from .mean_ap import ClassScore, ValReport, validate
from .onnx_reference import OnnxReference

__all__ = [
    "Agreement",
    "ClassScore",
    "CocoData",
    "CocoImage",
    "ImageAgreement",
    "OnnxReference",
    "ValReport",
    "agree",
    "match",
    "validate",
]
