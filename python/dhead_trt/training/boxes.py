"""Overlap of boxes: IoU and its generalisations, for losses and assignment."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["IOU_KINDS", "IouKind", "overlap", "pairwise_iou"]

IouKind = Literal["iou", "giou", "diou", "ciou"]
IOU_KINDS: tuple[IouKind, ...] = get_args(IouKind)
EPS = 1e-7


def overlap(a: Tensor, b: Tensor, kind: IouKind = "iou") -> Tensor:
    """IoU, GIoU, DIoU or CIoU of boxes [..., 4] (xyxy, broadcast against each other) → [...].

    GIoU (Rezatofighi et al. 2019): IoU less the empty part of the enclosing box. DIoU (Zheng et al. 2020): IoU less the
    squared distance of the centres over the squared diagonal of the enclosing box. CIoU (the same): DIoU less α·v, v
    the squared difference of the aspect angles over (π/2)², α = v / (1 - IoU + v), a constant for the gradient.
    Boxes without an area have IoU 0; sides turned inside out count as 0. Divisions are guarded by 1e-7.

    Raises:
        InputError: the kind is not known.
    """
    if kind not in IOU_KINDS:
        raise InputError("The overlap is not known", received=repr(kind), expected=f"one of {', '.join(IOU_KINDS)}")
    wh_a, wh_b = (a[..., 2:] - a[..., :2]).clamp(min=0), (b[..., 2:] - b[..., :2]).clamp(min=0)
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    common = inner[..., 0] * inner[..., 1]
    union = wh_a[..., 0] * wh_a[..., 1] + wh_b[..., 0] * wh_b[..., 1] - common
    iou = common / (union + EPS)
    if kind == "iou":
        return iou
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if kind == "giou":
        area = outer[..., 0] * outer[..., 1]
        return iou - (area - union) / (area + EPS)
    diagonal = outer.square().sum(-1)
    offset = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(-1) / 4
    diou = iou - offset / (diagonal + EPS)
    if kind == "diou":
        return diou
    angle_a, angle_b = (torch.atan(wh[..., 0] / (wh[..., 1] + EPS)) for wh in (wh_a, wh_b))
    v = (4 / math.pi**2) * (angle_b - angle_a).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + EPS)
    return diou - alpha * v


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of a [..., N, 4] with every box of b [..., M, 4] → [..., N, M]."""
    return overlap(a.unsqueeze(-2), b.unsqueeze(-3))
