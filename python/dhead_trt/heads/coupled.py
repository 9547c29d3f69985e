"""The coupled head: the baseline that the decoupled heads are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InputError
from ..spec import HeadSpec
from .base import Head, conv_block, initialize, set_class_prior

__all__ = ["CoupledHead"]


class CoupledHead(Head):
    """Per level one stem, num_layers × [Conv3×3 + BatchNorm + SiLU], shared by class, box and objectness.

    Args:
        num_classes: C.
        in_channels: channels of each level's feature map.
        strides: pixels of the network input per cell, per level.
        bins: of each side's distribution; 1: the box is 4 distances.
        num_layers: blocks of the stem.
        names: class names, or none.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int = 80,
        in_channels: Sequence[int] = (256, 512, 1024),
        strides: Sequence[int] = (8, 16, 32),
        bins: int = 1,
        num_layers: int = 2,
        *,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(HeadSpec(num_classes, tuple(strides), bins, objectness=True, names=tuple(names)), in_channels)
        if num_layers < 1:
            raise InputError("num_layers is out of range", received=num_layers, expected="at least 1")
        self.stems = nn.ModuleList(
            nn.Sequential(*(m for _ in range(num_layers) for m in conv_block(c))) for c in in_channels
        )
        self.cls_preds = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in in_channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(c, 4 * bins, 1) for c in in_channels)
        self.obj_preds = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in in_channels)
        initialize(self)
        for preds, std in ((self.cls_preds, 0.01), (self.obj_preds, 0.01), (self.reg_preds, 0.001)):
            for conv in preds:
                assert isinstance(conv, nn.Conv2d)
                nn.init.normal_(conv.weight, std=std)
                if preds is self.cls_preds:
                    set_class_prior(conv)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Features → class logits [B, C, H, W], box logits [B, 4·bins, H, W], objectness [B, 1, H, W] per level."""
        stems = [stem(x) for stem, x in zip(self.stems, self._levels(features), strict=True)]
        cls, box, obj = (
            [pred(x) for pred, x in zip(preds, stems, strict=True)]
            for preds in (self.cls_preds, self.reg_preds, self.obj_preds)
        )
        return cls, box, obj

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Features, one per level → box_0, cls_0, box_1, …, then obj_0, obj_1, …"""
        cls, box, obj = self(self._levels(inputs))
        kinds = {"cls": cls, "box": box, "obj": obj}
        return {name: kinds[name[:3]][int(name[4:])] for name in self.spec.input_names}
