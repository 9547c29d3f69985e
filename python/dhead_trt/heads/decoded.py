"""Raw maps to boxes and scores in torch, with operations that export to ONNX at any batch and map size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..spec import DistanceUnit, HeadSpec
from .base import Head, RawModel

__all__ = [
    "DecodedHead",
    "LevelGrid",
    "WholeModel",
    "anchor_boxes",
    "anchor_centers",
    "by_anchor",
    "decode_maps",
    "expected_distances",
]


class LevelGrid(NamedTuple):
    """The anchors of a level whose size is fixed.

    Attributes:
        centers: [2, H, W], x and y in pixels of the network input.
        height, width: cells.
    """

    centers: Tensor
    height: int
    width: int

    @classmethod
    def of(cls, height: int, width: int, stride: int, device: torch.device | None = None) -> LevelGrid:
        """The grid of a level of `height` × `width` cells."""
        return cls(anchor_centers(height, width, stride, device), height, width)


def expected_distances(box: Tensor, bins: int, project: Tensor | None = None, grid: LevelGrid | None = None) -> Tensor:
    """Box logits [B, 4·bins, H, W] → Σ_j j·softmax(z)_j, [B, 4, H, W], float32; one bin is the distance itself."""
    if bins == 1:
        return box.float()
    if project is None:
        project = torch.arange(bins, device=box.device)
    sides = (-1, grid.height, grid.width) if grid else (box.shape[0], *box.shape[2:])
    probability = box.float().reshape(sides[0], 4, bins, *sides[1:]).softmax(dim=2)
    return (probability * project.float().reshape(1, 1, bins, 1, 1)).sum(dim=2)


def anchor_centers(height: int, width: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Centres of a level's anchors, [2, H, W]: x, y in pixels of the network input."""
    x = (torch.arange(width, device=device).float().unsqueeze(0) + 0.5) * stride  # [1, W]
    y = (torch.arange(height, device=device).float().unsqueeze(1) + 0.5) * stride  # [H, 1]
    return torch.stack((x + 0 * y, y + 0 * x))  # ONNX broadcasts a sum in one node; expand would take eight


def anchor_boxes(distances: Tensor, stride: int, unit: DistanceUnit, grid: LevelGrid | None = None) -> Tensor:
    """Distances [B, 4, H, W] of one level → boxes [B, H·W, 4], xyxy in pixels of the network input.

    Without a `grid` the anchors come from the map's own size at run time.
    """
    if grid is None:
        centers = anchor_centers(distances.shape[2], distances.shape[3], stride, distances.device)
    else:
        centers = grid.centers
    sides = distances * stride if unit == "stride" else distances
    return by_anchor(torch.cat((centers - sides[:, :2], centers + sides[:, 2:]), dim=1), 4, grid)


def by_anchor(x: Tensor, channels: int, grid: LevelGrid | None = None) -> Tensor:
    """[B, C, H, W] → [B, H·W, C]."""
    flat = x.reshape(-1, channels, grid.height * grid.width) if grid else x.flatten(2)
    return flat.transpose(1, 2)


def decode_maps(
    maps: Mapping[str, Tensor], spec: HeadSpec, grids: Sequence[LevelGrid] | None = None
) -> tuple[Tensor, Tensor]:
    """Raw maps → boxes [B, A, 4] and scores [B, A, C], both float32, whatever the maps are.

    Args:
        maps: box_i, cls_i, and obj_i where the head has objectness.
        spec: what they are.
        grids: those of the levels, where the sizes are fixed: an exported graph then holds them as constants.
    """
    boxes, scores = [], []
    for i, stride in enumerate(spec.strides):
        grid = grids[i] if grids else None
        distances = expected_distances(maps[f"box_{i}"], spec.bins, grid=grid)
        boxes.append(anchor_boxes(distances, stride, spec.distance_unit, grid))
        score = maps[f"cls_{i}"].float().sigmoid()
        if spec.objectness:
            score = score * maps[f"obj_{i}"].float().sigmoid()
        scores.append(by_anchor(score, spec.num_classes, grid))
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)


class DecodedHead(nn.Module):
    """A head followed by its decode: features → boxes [B, A, 4] xyxy px and scores [B, A, C], float32.

    Args:
        head: any module with `.spec` and `.raw`: a head, or a whole model that takes images.

    Raises:
        InputError: the module is neither.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        if not isinstance(head, RawModel):
            raise InputError(
                "The module is no detection head",
                received=type(head).__name__,
                expected="a module with .spec (HeadSpec) and .raw(features)",
                fix="use one of dhead_trt.heads, or give yours these two members",
            )
        self.head = head
        self.spec = head.spec

    def forward(self, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
        """Features of every level (or images) → boxes [B, A, 4] and scores [B, A, C]."""
        return decode_maps(cast("RawModel", self.head).raw(inputs), self.spec)


class WholeModel(nn.Module):
    """A backbone (with its neck) and a head as one model: images in.

    Args:
        backbone: images [B, 3, H, W] → the features of every level.
        head: takes those features.
    """

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    @property
    def spec(self) -> HeadSpec:
        """That of the head."""
        return self.head.spec

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] → raw maps by name."""
        return self.head.raw(self.backbone(inputs))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The raw maps."""
        return self.raw(images)
