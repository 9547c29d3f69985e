"""What a Detector finds out about its engine before it takes images."""

from __future__ import annotations

import os
from pathlib import Path

from .artifact import TensorInfo
from .engine import Engine
from .errors import InputError


def refuse_onnx(model: object) -> None:
    if isinstance(model, (str, os.PathLike)) and Path(model).suffix.lower() == ".onnx":
        name = Path(model).name
        raise InputError(
            "This is a model, not a built engine",
            received=name,
            expected="the plan that a build wrote",
            fix=f"Build it first: dhead-trt build {name} --backend openvino -o {Path(model).stem}",
        )


def image_input(engine: Engine) -> TensorInfo:
    """The engine's only input.

    Raises:
        InputError: it is not an image's, or the engine does not give detections.
    """
    names = {t.name for t in engine.outputs}
    tensors = engine.inputs
    tensor = tensors[0]
    if len(tensors) != 1 or len(tensor.shape) != 4 or tensor.shape[1] != 3 or not tensor.dtype.startswith("float"):
        raise InputError(
            "The engine does not take images",
            received=", ".join(f"{t.name} {t.describe()} {t.dtype}" for t in tensors),
            expected="one float input [batch, 3, height, width]",
            fix="Use Engine for a head alone",
        )
    if not {"num_dets", "det_boxes", "det_scores", "det_classes"} <= names:
        raise InputError(
            "The engine does not give detections",
            received=", ".join(sorted(names)),
            expected="num_dets, det_boxes, det_scores, det_classes",
            fix='Open it with Engine(path, output="detections")',
        )
    return tensor


def canvas(tensor: TensorInfo, wanted: tuple[int, int] | None, *, asked: bool) -> tuple[int, int]:
    fixed = tensor.shape[2:]
    if -1 not in fixed:
        if asked and tuple(wanted or ()) != fixed:
            raise InputError("The engine's input size is fixed", received=f"image_size={wanted}", expected=fixed)
        return fixed[0], fixed[1]
    if wanted is None and tensor.profile is not None:
        wanted = (tensor.profile[1][2], tensor.profile[1][3])
    if wanted is None or len(wanted) != 2 or min(wanted) < 1:
        raise InputError(
            "The engine's input size is not fixed, and no size was given",
            received=f"{tensor.name} {tensor.describe()}",
            fix="Pass image_size=(height, width)",
        )
    return int(wanted[0]), int(wanted[1])


def batch_range(tensor: TensorInfo) -> tuple[int, int]:
    """(fewest, most) images per call of the engine."""
    if tensor.shape[0] != -1:
        return tensor.shape[0], tensor.shape[0]
    if tensor.profile is None:
        return 1, 8
    low, high = tensor.profile[0][0], tensor.profile[2][0]
    return max(low, 1), high if high != -1 else max(tensor.profile[1][0], 8)
