"""Whole detectors: our backbone with any of our heads, and their files of weights (safetensors)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from ..errors import InputError
from ..heads import (
    CoupledHead,
    DynamicDecoupledHead,
    Head,
    LightDecoupledHead,
    StablePyramidHead,
    WholeModel,
    YOLOv8DecoupledHead,
)
from ..heads.backbone import BACKBONES, Backbone, BackboneSize
from ..spec import HeadSpec
from .tensor_file import TensorFile

__all__ = ["HEAD_KINDS", "Detector", "build_detector", "load_weights", "save_weights"]

HEAD_KINDS = ("decoupled", "light", "dynamic", "coupled", "stable")
_FILE = TensorFile(
    format="dhead_trt.detector.1",
    missing="There is no such file of weights",
    wrong="does not hold a detector",
    expected="a file that dhead-trt train (save_weights) wrote",
)
_COUNTER = "num_batches_tracked"  # of BatchNorm: no part of what the model computes


class Detector(WholeModel):
    """Backbone, neck and head, which knows how it was made.

    Attributes:
        head_kind: one of HEAD_KINDS.
        size: widths and depths of the backbone.
    """

    def __init__(self, backbone: Backbone, head: Head, head_kind: str, size: BackboneSize) -> None:
        super().__init__(backbone, head)
        self.head_kind, self.size = head_kind, size

    def set_image_size(self, image_size: tuple[int, int]) -> None:
        """Notes in the spec which network input, (height, width), the model was trained for: exports take it."""
        self.head.spec = self.head.spec.replace(image_size=image_size)

    def describe(self) -> dict[str, Any]:
        """What `build_detector` needs to make this model again, as plain JSON types."""
        size = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.size).items()}
        return {"head": self.head_kind, "size": size, "spec": self.spec.to_dict()}


def build_detector(
    size: str | BackboneSize = "p",
    head: str = "decoupled",
    num_classes: int = 80,
    *,
    reg_max: int = 16,
    names: Sequence[str] = (),
    image_size: tuple[int, int] | None = None,
) -> Detector:
    """A detector with random weights.

    Args:
        size: "p" (under a million parameters), "n", "s", "m", "l", "x" (YOLOv8's widths), or your own.
        head: "decoupled" (the reference's), "light", "dynamic", "coupled" or "stable".
        num_classes: C.
        reg_max: of the heads with a distribution: reg_max + 1 bins. The coupled and the stable head have none.
        names: class names, or none.
        image_size: (height, width) that it is for, multiples of 32; exports take it.

    Raises:
        InputError: an argument is not known or out of range.
    """
    if head not in HEAD_KINDS:
        raise InputError("The head is not known", received=repr(head), expected=f"one of {', '.join(HEAD_KINDS)}")
    backbone = Backbone(size)
    sized = BACKBONES[size] if isinstance(size, str) else size
    where = {"num_classes": num_classes, "in_channels": backbone.out_channels, "strides": backbone.strides}
    made: Head
    if head == "coupled":
        made = CoupledHead(**where, names=names)  # type: ignore[arg-type] # one dict for all five
    elif head == "stable":
        made = StablePyramidHead(**where, num_layers=2, names=names)  # type: ignore[arg-type]
    else:
        kinds: dict[str, Any] = {
            "decoupled": YOLOv8DecoupledHead,
            "light": LightDecoupledHead,
            "dynamic": DynamicDecoupledHead,
        }
        made = kinds[head](**where, reg_max=reg_max, names=names)
    if made.spec.bins == 1:
        start_boxes(made)
    model = Detector(backbone, made, head, sized)
    if image_size is not None:
        model.set_image_size(image_size)
    return model


def start_boxes(head: nn.Module, cells: float = 2.0) -> None:
    """Lets the boxes of a head without bins start that large: a box without an area has no gradient."""
    for name, module in head.named_modules():
        if "reg_pred" in name and isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.constant_(module.bias, cells)


def save_weights(
    model: Detector,
    path: str | os.PathLike[str],
    *,
    state: Mapping[str, Tensor] | None = None,
    half: bool = True,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a detector as safetensors; what it is stands in the metadata, so that `load_weights` needs only the file.

    Args:
        model: what the weights belong to.
        path: the file.
        state: other weights of this model, such as the EMA's shadow; default: its own.
        half: floating-point tensors as fp16.
        info: more metadata (seed, command, mAP, …), plain JSON types.

    Raises:
        InputError: a weight is not finite, or with `half` too large for fp16.
        BackendUnavailable: safetensors is not installed.
    """
    tensors = {}
    for name, value in (state or model.state_dict()).items():
        if name.endswith(_COUNTER):
            continue
        tensor = value.detach().cpu()
        if half and tensor.is_floating_point():
            tensor = tensor.half()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError("A weight is not finite", received=name, fix="half=False, if it is too large for fp16")
        tensors[name] = tensor
    return _FILE.write(path, tensors, {"model": json.dumps(model.describe()), "info": json.dumps(dict(info or {}))})


def load_weights(path: str | os.PathLike[str]) -> Detector:
    """The detector of a file that `save_weights` wrote, in float32 and eval mode.

    Raises:
        InputError: the file cannot be read, or is not a detector's.
        BackendUnavailable: safetensors is not installed.
    """
    return _FILE.read(path, _detector_of)


def _detector_of(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Detector:
    made = json.loads(metadata["model"])
    spec = HeadSpec.from_dict(made["spec"])
    sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in made["size"].items()}
    model = build_detector(
        BackboneSize(**cast("dict[str, Any]", sizes)),
        made["head"],
        spec.num_classes,
        reg_max=spec.bins - 1,
        names=spec.names,
        image_size=spec.image_size,
    )
    model.head.spec = spec
    state = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    counters = {n: t for n, t in model.state_dict().items() if n.endswith(_COUNTER)}
    model.load_state_dict({**counters, **state})
    return model.eval()


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `info` that a file of weights was saved with.

    Raises:
        InputError, BackendUnavailable: as `load_weights`.
    """
    found: dict[str, Any] = _FILE.read(path, lambda metadata, _: json.loads(metadata.get("info", "{}")))
    return found


def parameters_of(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())
