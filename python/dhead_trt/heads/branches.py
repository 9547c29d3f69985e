"""What the heads with bins and no objectness share: a class and a box prediction per level, behind two branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..spec import DistanceUnit, HeadSpec
from .base import Head, initialize, set_class_prior

__all__ = ["BinnedHead", "BranchedHead"]


class BinnedHead(Head):
    """Base of the heads whose sides are distributions over reg_max + 1 bins.

    A subclass makes what it puts in front, and then calls `_add_predictions`.

    Attributes:
        num_classes, reg_max: as given.
        project: 0..reg_max, the value of each bin. Part of every such head's state, so that weights of one load.
    """

    cls_preds: nn.ModuleList
    reg_preds: nn.ModuleList
    project: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        strides: Sequence[int],
        reg_max: int,
        *,
        distance_unit: DistanceUnit,
        names: Sequence[str],
    ) -> None:
        spec = HeadSpec(num_classes, tuple(strides), reg_max + 1, distance_unit, names=tuple(names))
        super().__init__(spec, in_channels)
        self.num_classes, self.reg_max = num_classes, reg_max

    def _add_predictions(self) -> None:
        """The Conv1×1 of every level and `project`; then the initial values of all that the head has."""
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, self.num_classes, 1) for c in self.in_channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, 4 * self.spec.bins, 1) for c in self.in_channels)
        self.register_buffer("project", torch.arange(self.spec.bins, dtype=torch.float32))
        initialize(self)
        for pred in self.cls_preds:
            assert isinstance(pred, nn.Conv2d)
            set_class_prior(pred)


class BranchedHead(BinnedHead):
    """Base of the heads with two branches of their own on every level, each of two `_block`s."""

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
        super().__init__(num_classes, in_channels, strides, reg_max, distance_unit=distance_unit, names=names)
        self.cls_convs = nn.ModuleList(nn.Sequential(*self._block(c), *self._block(c)) for c in in_channels)
        self.reg_convs = nn.ModuleList(nn.Sequential(*self._block(c), *self._block(c)) for c in in_channels)
        self._add_predictions()

    def _block(self, channels: int) -> list[nn.Module]:
        """[B, C, H, W] → the same shape."""
        raise NotImplementedError

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Features, one per level → box_i [B, 4·bins, H, W] and cls_i [B, C, H, W], both logits."""
        maps = {}
        for i, x in enumerate(self._levels(inputs)):
            maps[f"box_{i}"] = self.reg_preds[i](self.reg_convs[i](x))
            maps[f"cls_{i}"] = self.cls_preds[i](self.cls_convs[i](x))
        return maps
