"""Which anchor learns which object: the task-aligned assigner, and a simple one by centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import pairwise_iou

__all__ = ["Anchors", "Assignment", "CenterAssigner", "TaskAlignedAssigner", "pad_targets"]


class Anchors(NamedTuple):
    """The anchors of all levels.

    Attributes:
        centers: [A, 2], x and y in pixels of the network input.
        strides: [A], pixels.
    """

    centers: Tensor
    strides: Tensor


class Assignment(NamedTuple):
    """What each anchor learns.

    Attributes:
        positive: [B, A], bool: it has an object.
        objects: [B, A], int64: the object's row in the padded targets; 0 where it has none.
        weight: [B, A]: the target of the object's class, 0..1; 0 where it has none.
    """

    positive: Tensor
    objects: Tensor
    weight: Tensor


def pad_targets(targets: Tensor, batch: int, size: tuple[int, int], num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Targets [M, 6] (index in batch, class, xyxy px) → classes [B, N], boxes [B, N, 4], valid [B, N].

    Boxes are cut at the image's edges; what is then narrower or lower than 1e-3 px, not finite, or of no class of the
    model is left out. N is the largest number of objects of an image, at least 1.

    Args:
        targets: of all images of the batch.
        batch: B.
        size: height and width of the images.
        num_classes: C.
    """
    targets = targets.reshape(-1, 6).float()
    height, width = size
    limit = targets.new_tensor([width, height, width, height])
    boxes = torch.minimum(targets[:, 2:].clamp(min=0), limit)
    image, label = targets[:, 0], targets[:, 1]
    good = targets.isfinite().all(1) & ((boxes[:, 2:] - boxes[:, :2]) > 1e-3).all(1)
    good &= (label >= 0) & (label < num_classes) & (image >= 0) & (image < batch)
    boxes, image, label = boxes[good], image[good].long(), label[good].long()
    counts = torch.bincount(image, minlength=batch)
    most = max(int(counts.max()) if len(image) else 0, 1)
    order = torch.argsort(image, stable=True)
    rank = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image[order]]
    classes = torch.zeros(batch, most, dtype=torch.long, device=image.device)
    padded = torch.zeros(batch, most, 4, device=image.device)
    valid = torch.zeros(batch, most, dtype=torch.bool, device=image.device)
    place = (image[order], rank)
    classes[place], padded[place], valid[place] = label[order], boxes[order], True
    return classes, padded, valid


def inside(anchors: Anchors, boxes: Tensor, least: float) -> Tensor:
    """Whether an anchor's centre lies in a box that is made at least `least` px wide and high: [B, N, A], bool."""
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=least / 2)
    return ((anchors.centers - center.unsqueeze(2)).abs() < half.unsqueeze(2) + 1e-6).all(-1)


@dataclass(frozen=True)
class TaskAlignedAssigner:
    """Task-aligned assignment (Feng et al. 2021, TOOD; as in YOLOv8).

    An anchor is a candidate of an object if its centre lies in the object's box (made at least one cell of the finest
    level wide and high, so that no small object is without one). Its alignment is score^alpha · IoU^beta, the score
    being that of the object's class. The `topk` best candidates of each object are its positives; an anchor of several
    objects goes to the one that it overlaps most. The class target is the alignment, scaled so that an object's best
    anchor has its largest IoU.

    Attributes:
        topk: positives of an object, at most.
        alpha, beta: powers of score and IoU.
    """

    topk: int = 10
    alpha: float = 0.5
    beta: float = 6.0

    @torch.no_grad()
    def __call__(
        self, scores: Tensor, boxes: Tensor, anchors: Anchors, classes: Tensor, truth: Tensor, valid: Tensor
    ) -> Assignment:
        """Assigns.

        Args:
            scores: [B, A, C], 0..1.
            boxes: [B, A, 4], predicted, xyxy px.
            anchors: of all levels.
            classes, truth, valid: of `pad_targets`.
        """
        finest = float(anchors.strides.min())
        candidate = inside(anchors, truth, finest) & valid.unsqueeze(2)  # [B, N, A]
        count, num_anchors = classes.shape[1], scores.shape[1]
        score = scores.transpose(1, 2).gather(1, classes.unsqueeze(2).expand(-1, -1, num_anchors))
        iou = pairwise_iou(truth, boxes) * candidate
        alignment = score.clamp(min=0).pow(self.alpha) * iou.pow(self.beta) * candidate
        # where nothing overlaps yet (a fresh network, a tiny object) the nearest centres are taken
        center = (truth[..., :2] + truth[..., 2:]) / 2
        far = (anchors.centers - center.unsqueeze(2)).square().sum(-1).sqrt() / anchors.strides
        ranking = alignment + 1e-12 / (1 + far)
        ranking = ranking.masked_fill(~candidate, -1.0)
        best = ranking.topk(min(self.topk, num_anchors), dim=2)
        chosen = torch.zeros_like(candidate).scatter_(2, best.indices, best.values > 0)
        several = chosen.sum(1, keepdim=True) > 1
        owner = torch.where(chosen, iou + 1e-9 / (1 + far), -1.0).argmax(1, keepdim=True)
        rows = torch.arange(count, device=owner.device).view(1, -1, 1)
        chosen &= ~several | (rows == owner)
        alignment = alignment * chosen
        top_alignment = alignment.amax(2, keepdim=True)
        top_iou = (iou * chosen).amax(2, keepdim=True)
        weight = (alignment * top_iou / (top_alignment + 1e-9)).amax(1)
        positive = chosen.any(1)
        return Assignment(positive, chosen.float().argmax(1), weight * positive)


@dataclass(frozen=True)
class CenterAssigner:
    """Assignment by place alone: the `topk` anchors nearest to an object's centre, on the level of its size.

    The level is the one whose stride times `scale` is nearest to the longer side (on a logarithmic scale); the anchors'
    centres must lie within the box (made at least one cell of that level wide and high). An anchor of several objects
    goes to the smallest. Targets are 1.

    Attributes:
        topk: positives of an object, at most.
        scale: side of an object in cells of its level.
    """

    topk: int = 5
    scale: float = 4.0

    @torch.no_grad()
    def __call__(
        self, scores: Tensor, boxes: Tensor, anchors: Anchors, classes: Tensor, truth: Tensor, valid: Tensor
    ) -> Assignment:
        """As TaskAlignedAssigner; scores and boxes are not looked at, but for their shapes."""
        strides = torch.unique(anchors.strides)
        wh = truth[..., 2:] - truth[..., :2]
        side = wh.amax(-1).clamp(min=1e-3)
        level = (side.log().unsqueeze(-1) - (strides * self.scale).log()).abs().argmin(-1)
        stride = strides[level]  # [B, N]
        center = (truth[..., :2] + truth[..., 2:]) / 2
        offset = (anchors.centers - center.unsqueeze(2)).abs()  # [B, N, A, 2]
        reach = torch.maximum(wh, stride.unsqueeze(-1)).unsqueeze(2) / 2
        candidate = (offset < reach + 1e-6).all(-1) & (anchors.strides == stride.unsqueeze(-1)) & valid.unsqueeze(2)
        near = -offset.square().sum(-1)
        ranking = near.masked_fill(~candidate, -torch.inf)
        best = ranking.topk(min(self.topk, scores.shape[1]), dim=2)
        chosen = torch.zeros_like(candidate).scatter_(2, best.indices, best.values > -torch.inf)
        area = wh.prod(-1).unsqueeze(2)
        owner = torch.where(chosen, area, torch.inf).argmin(1, keepdim=True)
        rows = torch.arange(classes.shape[1], device=owner.device).view(1, -1, 1)
        chosen &= rows == owner
        positive = chosen.any(1)
        return Assignment(positive, chosen.float().argmax(1), positive.to(scores.dtype))
