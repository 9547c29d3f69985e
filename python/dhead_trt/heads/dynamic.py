"""A decoupled head whose branches are taken from one stem by weights that depend on the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..spec import DistanceUnit
from .base import conv_block
from .branches import BinnedHead

__all__ = ["DynamicDecoupledHead"]


class DynamicDecoupledHead(BinnedHead):
    """Dynamic decoupling, after TOOD's layer attention (Feng et al. 2021).

    Per level a stem of `num_layers` × [Conv3×3 + BatchNorm + SiLU] serves both tasks. Each task weighs all layers'
    outputs, channel by channel, by σ(linear(mean over the map)), and mixes them by Conv1×1 + BatchNorm + SiLU: how far
    the tasks part is learned, and depends on the image. Half the 3×3 convolutions of the decoupled head.

    Args:
        num_classes: C.
        in_channels: channels of each level's feature map.
        strides: pixels of the network input per cell, per level.
        reg_max: largest distance; there are reg_max + 1 bins per side.
        num_layers: of the stem.
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
        num_layers: int = 2,
        *,
        distance_unit: DistanceUnit = "stride",
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(num_classes, in_channels, strides, reg_max, distance_unit=distance_unit, names=names)
        self.stems = nn.ModuleList(
            nn.ModuleList(nn.Sequential(*conv_block(c)) for _ in range(num_layers)) for c in in_channels
        )
        self.cls_mix = nn.ModuleList(_Mix(c, num_layers) for c in in_channels)
        self.reg_mix = nn.ModuleList(_Mix(c, num_layers) for c in in_channels)
        self._add_predictions()

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Features, one per level → box_i [B, 4·bins, H, W] and cls_i [B, C, H, W], both logits."""
        maps = {}
        for i, x in enumerate(self._levels(inputs)):
            layers = []
            stem = self.stems[i]
            assert isinstance(stem, nn.ModuleList)
            for block in stem:
                x = block(x)
                layers.append(x)
            shared = torch.cat(layers, dim=1)
            maps[f"box_{i}"] = self.reg_preds[i](self.reg_mix[i](shared))
            maps[f"cls_{i}"] = self.cls_preds[i](self.cls_mix[i](shared))
        return maps

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The raw maps."""
        return self.raw(features)


class _Mix(nn.Module):
    """The part of a task in the stem's layers: [B, layers·C, H, W] → [B, C, H, W]."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels * layers, channels * layers, 1))
        self.mix = nn.Sequential(
            nn.Conv2d(channels * layers, channels, 1), nn.BatchNorm2d(channels), nn.SiLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mix(x * self.attention(x).sigmoid())
        return y
