"""The decoupled head: separate class and box branches on every level, DFL boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..spec import DistanceUnit, HeadSpec
from .backbone import BACKBONES, Backbone
from .base import Head, conv_block, initialize, set_class_prior
from .decoded import WholeModel, anchor_boxes, by_anchor, expected_distances

__all__ = ["CHANNELS", "YOLOv8DecoupledHead", "create_yolov8_decoupled"]

CHANNELS = {
    "n": (256, 512, 512),
    "s": (256, 512, 512),
    "m": (384, 768, 768),
    "l": (512, 1024, 1024),
    "x": (512, 1024, 1024),
}


class YOLOv8DecoupledHead(Head):
    """Per level, [Conv3×3 + BatchNorm + SiLU]×2 + Conv1×1 for the classes, and the same for the box.

    Args:
        num_classes: C.
        in_channels: channels of each level's feature map.
        strides: pixels of the network input per cell, per level.
        reg_max: largest distance; there are reg_max + 1 bins per side.
        distance_unit: "stride" (distances count cells; what trained YOLOv8 heads use) or "pixel".
        names: class names, or none.

    Attributes:
        project: 0..reg_max, the value of each bin.

    Raises:
        InputError: an argument is out of range.
    """

    project: Tensor

    def __init__(
        self,
        num_classes: int = 80,
        in_channels: Sequence[int] = (256, 512, 1024),
        strides: Sequence[int] = (8, 16, 32),
        reg_max: int = 16,
        *,
        distance_unit: DistanceUnit = "stride",
        names: Sequence[str] = (),
    ) -> None:
        spec = HeadSpec(num_classes, tuple(strides), reg_max + 1, distance_unit, names=tuple(names))
        super().__init__(spec, in_channels)
        self.num_classes, self.reg_max = num_classes, reg_max
        self.cls_convs = nn.ModuleList(nn.Sequential(*conv_block(c), *conv_block(c)) for c in in_channels)
        self.reg_convs = nn.ModuleList(nn.Sequential(*conv_block(c), *conv_block(c)) for c in in_channels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in in_channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, 4 * (reg_max + 1), 1) for c in in_channels)
        self.register_buffer("project", torch.arange(reg_max + 1, dtype=torch.float32))
        initialize(self)
        for pred in self.cls_preds:
            assert isinstance(pred, nn.Conv2d)
            set_class_prior(pred)

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Features [P3, P4, P5] → box_i [B, 4·bins, H, W] and cls_i [B, C, H, W], both logits."""
        maps = {}
        for i, x in enumerate(self._levels(inputs)):
            maps[f"box_{i}"] = self.reg_preds[i](self.reg_convs[i](x))
            maps[f"cls_{i}"] = self.cls_preds[i](self.cls_convs[i](x))
        return maps

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits per level [B, C, H, W], and expected distances per level [B, 4, H, W] (l, t, r, b; float32)."""
        maps = self.raw(features)
        levels = range(self.spec.num_levels)
        distances = [expected_distances(maps[f"box_{i}"], self.spec.bins, self.project) for i in levels]
        return [maps[f"cls_{i}"] for i in levels], distances

    def decode_outputs(
        self,
        cls_outputs: Sequence[Tensor],
        reg_outputs: Sequence[Tensor],
        *,
        distance_unit: DistanceUnit | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What `forward` returned → per level boxes [B, H·W, 4] (xyxy, px) and scores [B, H·W, C].

        Args:
            cls_outputs: class logits per level.
            reg_outputs: expected distances per level.
            distance_unit: instead of the head's own. The tutorial this head comes from decodes with "pixel": distances
                are not multiplied by the stride.

        Raises:
            InputError: the unit is not known.
        """
        unit = distance_unit or self.spec.distance_unit
        if unit not in ("stride", "pixel"):
            raise InputError("distance_unit is not known", received=repr(unit), expected="'stride' or 'pixel'")
        boxes = [anchor_boxes(d, s, unit) for d, s in zip(reg_outputs, self.spec.strides, strict=True)]
        scores = [by_anchor(c.float().sigmoid(), self.num_classes) for c in cls_outputs]
        return boxes, scores


@overload
def create_yolov8_decoupled(
    config: str = "n", num_classes: int = 80, *, complete: Literal[False] = False
) -> YOLOv8DecoupledHead: ...
@overload
def create_yolov8_decoupled(config: str = "n", num_classes: int = 80, *, complete: Literal[True]) -> WholeModel: ...
def create_yolov8_decoupled(
    config: str = "n", num_classes: int = 80, *, complete: bool = False
) -> YOLOv8DecoupledHead | WholeModel:
    """The decoupled head with the channels of a model size, or a complete model with random weights.

    Args:
        config: "n", "s", "m", "l" or "x".
        num_classes: C.
        complete: with a backbone of that size's widths and depths in front, whose neck gives the head its channels.

    Returns:
        The head, or a WholeModel that takes images [B, 3, H, W], H and W multiples of 32.

    Raises:
        InputError: the size is not known.
    """
    if config not in CHANNELS:
        raise InputError("The model size is not known", received=repr(config), expected=f"one of {sorted(CHANNELS)}")
    head = YOLOv8DecoupledHead(num_classes, CHANNELS[config])
    if not complete:
        return head
    return WholeModel(Backbone(replace(BACKBONES[config], neck=CHANNELS[config])), head)
