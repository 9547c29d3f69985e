"""A decoupled head for small devices: depthwise-separable convolutions in both branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..spec import DistanceUnit, HeadSpec
from .base import Head, initialize, set_class_prior

__all__ = ["LightDecoupledHead"]


class LightDecoupledHead(Head):
    """YOLOv8DecoupledHead with [depthwise Conv3×3 + BatchNorm + SiLU, Conv1×1 + BatchNorm + SiLU]×2 per branch.

    About a ninth of the weights and of the multiplications of the decoupled head's branches; the raw maps are the same.

    Args:
        num_classes: C.
        in_channels: channels of each level's feature map.
        strides: pixels of the network input per cell, per level.
        reg_max: largest distance; there are reg_max + 1 bins per side.
        distance_unit: "stride" or "pixel".
        names: class names, or none.

    Raises:
        InputError: an argument is out of range.
    """

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
        super().__init__(
            HeadSpec(num_classes, tuple(strides), reg_max + 1, distance_unit, names=tuple(names)), in_channels
        )
        self.cls_convs = nn.ModuleList(nn.Sequential(*_separable(c), *_separable(c)) for c in in_channels)
        self.reg_convs = nn.ModuleList(nn.Sequential(*_separable(c), *_separable(c)) for c in in_channels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in in_channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, 4 * (reg_max + 1), 1) for c in in_channels)
        self.register_buffer("project", torch.arange(reg_max + 1, dtype=torch.float32))
        initialize(self)
        for pred in self.cls_preds:
            assert isinstance(pred, nn.Conv2d)
            set_class_prior(pred)

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Features, one per level → box_i [B, 4·bins, H, W] and cls_i [B, C, H, W], both logits."""
        maps = {}
        for i, x in enumerate(self._levels(inputs)):
            maps[f"box_{i}"] = self.reg_preds[i](self.reg_convs[i](x))
            maps[f"cls_{i}"] = self.cls_preds[i](self.cls_convs[i](x))
        return maps

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The raw maps."""
        return self.raw(features)


def _separable(channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.BatchNorm2d(channels),
        nn.SiLU(inplace=True),
        nn.Conv2d(channels, channels, 1),
        nn.BatchNorm2d(channels),
        nn.SiLU(inplace=True),
    ]
