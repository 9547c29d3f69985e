"""The stable decoupled head: objectness, no DFL, dropout, a choice of norms; one level, or one per pyramid level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ..errors import InputError
from ..spec import HeadSpec
from .base import Head, conv_block, initialize, set_class_prior

__all__ = ["StableDecoupledHead", "StablePyramidHead"]


class StableDecoupledHead(Head):
    """One level: two branches of num_layers × [Conv3×3 + norm + SiLU + Dropout2d (not after the last)].

    The box is 4 distances (bins = 1); objectness is predicted from the box branch.

    Args:
        in_channels: channels of the feature map; a multiple of 32 with `use_gn`.
        num_classes: C.
        num_layers: blocks per branch.
        use_gn: GroupNorm(32) in place of BatchNorm.
        dropout_rate: of Dropout2d between the blocks.
        stride: pixels of the network input per cell.
        names: class names, or none.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_classes: int = 80,
        num_layers: int = 3,
        use_gn: bool = False,
        dropout_rate: float = 0.1,
        *,
        stride: int = 8,
        names: Sequence[str] = (),
    ) -> None:
        spec = HeadSpec(num_classes, (stride,), 1, objectness=True, names=tuple(names))
        super().__init__(spec, (in_channels,))
        if num_layers < 1:
            raise InputError("num_layers is out of range", received=num_layers, expected="at least 1")
        if not 0 <= dropout_rate < 1:
            raise InputError("dropout_rate is out of range", received=dropout_rate, expected="at least 0, less than 1")
        self.cls_convs = _branch(in_channels, num_layers, use_gn, dropout_rate)
        self.reg_convs = _branch(in_channels, num_layers, use_gn, dropout_rate)
        self.cls_pred = nn.Conv2d(in_channels, num_classes, 1)
        self.reg_pred = nn.Conv2d(in_channels, 4, 1)
        self.obj_pred = nn.Conv2d(in_channels, 1, 1)
        initialize(self)
        for conv, std in ((self.cls_pred, 0.01), (self.obj_pred, 0.01), (self.reg_pred, 0.001)):
            nn.init.normal_(conv.weight, std=std)
        set_class_prior(self.cls_pred)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class and box and objectness of one feature map.

        [B, in_channels, H, W] → class logits [B, C, H, W], distances [B, 4, H, W], objectness [B, 1, H, W].
        """
        box = self.reg_convs(x)
        return self.cls_pred(self.cls_convs(x)), self.reg_pred(box), self.obj_pred(box)

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """The feature, alone or in a list of one → box_0, cls_0, obj_0."""
        cls, box, obj = self(*self._levels(inputs))
        return {"box_0": box, "cls_0": cls, "obj_0": obj}


class StablePyramidHead(Head):
    """A StableDecoupledHead for every level of a pyramid.

    Args:
        in_channels: channels of each level's feature map.
        num_classes: C.
        strides: pixels of the network input per cell, per level.
        num_layers, use_gn, dropout_rate, names: as for StableDecoupledHead.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (256, 512, 1024),
        num_classes: int = 80,
        strides: Sequence[int] = (8, 16, 32),
        num_layers: int = 3,
        use_gn: bool = False,
        dropout_rate: float = 0.1,
        *,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(HeadSpec(num_classes, tuple(strides), 1, objectness=True, names=tuple(names)), in_channels)
        self.levels = nn.ModuleList(
            StableDecoupledHead(c, num_classes, num_layers, use_gn, dropout_rate, stride=s)
            for c, s in zip(in_channels, strides, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Features, one per level → class logits, distances and objectness, each a list over the levels."""
        outputs = [level(x) for level, x in zip(self.levels, self._levels(features), strict=True)]
        cls, box, obj = (list(maps) for maps in zip(*outputs, strict=True))
        return cls, box, obj

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Features, one per level → box_0, cls_0, box_1, …, then obj_0, obj_1, …"""
        kinds = dict(zip(("cls", "box", "obj"), self(cast("Sequence[Tensor]", inputs)), strict=True))
        return {name: kinds[name[:3]][int(name[4:])] for name in self.spec.input_names}


def _branch(channels: int, num_layers: int, use_gn: bool, dropout_rate: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_layers):
        layers += conv_block(channels, groups=use_gn)
        if i < num_layers - 1:
            layers.append(nn.Dropout2d(dropout_rate))
    return nn.Sequential(*layers)
