"""A decoupled head for small devices: depthwise-separable convolutions in both branches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .branches import BranchedHead

__all__ = ["LightDecoupledHead"]


class LightDecoupledHead(BranchedHead):
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

    def _block(self, channels: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.BatchNorm2d(channels),
            nn.SiLU(inplace=True),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.SiLU(inplace=True),
        ]

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The raw maps."""
        return self.raw(features)
