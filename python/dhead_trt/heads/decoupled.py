"""The decoupled head: separate class and box branches on every level, DFL boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, overload

from torch import Tensor, nn

from ..errors import InputError
from ..spec import DistanceUnit
from .backbone import BACKBONES, Backbone
from .base import conv_block
from .branches import BranchedHead
from .decoded import WholeModel, anchor_boxes, by_anchor, expected_distances

__all__ = ["CHANNELS", "YOLOv8DecoupledHead", "create_yolov8_decoupled"]

CHANNELS = {
    "n": (256, 512, 512),
    "s": (256, 512, 512),
    "m": (384, 768, 768),
    "l": (512, 1024, 1024),
    "x": (512, 1024, 1024),
}


class YOLOv8DecoupledHead(BranchedHead):
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

    def _block(self, channels: int) -> list[nn.Module]:
        return conv_block(channels)

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
