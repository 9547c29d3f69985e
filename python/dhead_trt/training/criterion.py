"""The loss of a detection head: its raw maps against the objects of the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..heads.decoded import anchor_centers
from ..spec import HeadSpec
from .assign import Anchors, CenterAssigner, TaskAlignedAssigner, pad_targets
from .boxes import IOU_KINDS, IouKind, overlap
from .losses import TaskBalancedLoss, bce_loss, dfl_loss, focal_loss, iou_loss, objectness_loss

__all__ = ["DetectionLoss", "LossConfig"]


@dataclass(frozen=True)
class LossConfig:
    """What a detector is trained on.

    Attributes:
        classification: "bce" or "focal".
        box: "iou", "giou", "diou", "ciou", or "l1": |distance error| in cells, without an IoU loss.
        assigner: "task" or "center"; "auto": "center" for heads with objectness, else "task".
        topk: positives of an object, at most.
        weights: of the losses cls, box, dfl and obj; those that the head has are used.
        dynamic: learn the weights.
        focal_alpha, focal_gamma: of the focal loss.
    """

    classification: Literal["bce", "focal"] = "bce"
    box: Literal["iou", "giou", "diou", "ciou", "l1"] = "ciou"
    assigner: Literal["auto", "task", "center"] = "auto"
    topk: int = 10
    weights: Mapping[str, float] = field(default_factory=lambda: {"cls": 0.5, "box": 7.5, "dfl": 1.5, "obj": 1.0})
    dynamic: bool = False
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("classification", ("bce", "focal")),
            ("box", (*IOU_KINDS, "l1")),
            ("assigner", ("auto", "task", "center")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"LossConfig.{name} is not known", received=repr(getattr(self, name)), expected=", ".join(allowed)
                )
        if self.topk < 1:
            raise InputError("LossConfig.topk is out of range", received=self.topk, expected="1 or more")


class DetectionLoss(nn.Module):
    """Raw maps and targets → the losses by task, and their weighted sum.

    Every loss is divided by the sum of the class targets (at least 1), as in YOLOv8; an image without objects has only
    the class loss (and objectness) of its background.

    Args:
        spec: of the head.
        config: which losses.
    """

    def __init__(self, spec: HeadSpec, config: LossConfig | None = None) -> None:
        super().__init__()
        self.spec, self.config = spec, config or LossConfig()
        kind = self.config.assigner
        if kind == "auto":
            kind = "center" if spec.objectness else "task"
        self.assigner = (
            TaskAlignedAssigner(self.config.topk) if kind == "task" else CenterAssigner(min(self.config.topk, 5))
        )
        tasks = ["cls", "box"] + ["dfl"] * (spec.bins > 1) + ["obj"] * spec.objectness
        self.balance = TaskBalancedLoss({t: self.config.weights.get(t, 1.0) for t in tasks}, self.config.dynamic)
        self._anchors: dict[tuple[tuple[int, int], ...], Anchors] = {}

    def forward(
        self, maps: Mapping[str, Tensor], targets: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss.

        Args:
            maps: raw maps by name, any float type; computed in float32.
            targets: [M, 6]: index in the batch, class, x1, y1, x2, y2 in pixels.
            size: height and width of the images.

        Returns:
            The weighted sum, a scalar, and each task's own loss.
        """
        spec = self.spec
        flat = {
            kind: torch.cat([maps[f"{kind}_{i}"].float().flatten(2) for i in range(spec.num_levels)], 2).transpose(1, 2)
            for kind in ("box", "cls", *(["obj"] * spec.objectness))
        }
        anchors = self.anchors(
            tuple((m.shape[2], m.shape[3]) for m in (maps[f"cls_{i}"] for i in range(spec.num_levels)))
        )
        batch, number = flat["cls"].shape[:2]
        logits = flat["box"].reshape(batch, number, 4, spec.bins)
        unit = (anchors.strides if spec.distance_unit == "stride" else torch.ones_like(anchors.strides)).view(1, -1, 1)
        if spec.bins == 1:
            distances = logits.squeeze(-1)
        else:
            distances = logits.softmax(-1) @ torch.arange(spec.bins, dtype=torch.float32, device=logits.device)
        classes, truth, valid = pad_targets(targets, batch, size, spec.num_classes)
        with torch.no_grad():
            score = flat["cls"].sigmoid()
            if spec.objectness:
                score = score * flat["obj"].sigmoid()
            predicted = _boxes(distances * unit, anchors)
        found = self.assigner(score, predicted, anchors, classes, truth, valid)
        at = found.positive
        label = classes.gather(1, found.objects)
        weight = found.weight
        total = weight.sum().clamp(min=1.0)
        # with objectness the overlap is the objectness's task, and the class is learned where there is an object
        target = torch.zeros_like(flat["cls"])
        target.scatter_(2, label.unsqueeze(2), (at.float() if spec.objectness else weight).unsqueeze(2))
        each = self._classify(flat["cls"], target)
        losses: dict[str, Tensor] = {}
        if spec.objectness:
            losses["cls"] = each[at].sum() / total
        else:
            losses["cls"] = each.sum() / total
        aim = truth.gather(1, found.objects.unsqueeze(2).expand(-1, -1, 4))[at]  # [P, 4]
        centers, step = anchors.centers.expand(batch, -1, -1)[at], unit.expand(batch, -1, 1)[at]
        wanted = torch.cat((centers - aim[:, :2], aim[:, 2:] - centers), 1) / step  # in the head's unit
        got, share = distances[at], weight[at]
        boxes = torch.cat((centers - got[:, :2] * step, centers + got[:, 2:] * step), 1)
        if self.config.box == "l1":
            losses["box"] = ((got - wanted).abs().mean(1) * share).sum() / total
        else:
            kind: IouKind = self.config.box
            losses["box"] = (iou_loss(boxes, aim, kind) * share).sum() / total
        if spec.bins > 1:
            spread = dfl_loss(logits[at], wanted.clamp(0, spec.bins - 1 - 0.01))
            losses["dfl"] = (spread.mean(1) * share).sum() / total
        if spec.objectness:
            quality = torch.zeros_like(weight)
            quality[at] = overlap(boxes.detach(), aim).clamp(0, 1) * share
            losses["obj"] = objectness_loss(flat["obj"].squeeze(2), quality).sum() / total
        combined: Tensor = self.balance(losses)
        return combined, {name: loss.detach() for name, loss in losses.items()}

    def anchors(self, shapes: tuple[tuple[int, int], ...]) -> Anchors:
        """The anchors of levels of these sizes; kept for the next call."""
        if shapes not in self._anchors:
            centers = [
                anchor_centers(h, w, s).flatten(1).T for (h, w), s in zip(shapes, self.spec.strides, strict=True)
            ]
            strides = [torch.full((h * w,), float(s)) for (h, w), s in zip(shapes, self.spec.strides, strict=True)]
            self._anchors = {shapes: Anchors(torch.cat(centers), torch.cat(strides))}
        return self._anchors[shapes]

    def _classify(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.config.classification == "focal":
            return focal_loss(logits, target, alpha=self.config.focal_alpha, gamma=self.config.focal_gamma)
        return bce_loss(logits, target)


def _boxes(distances: Tensor, anchors: Anchors) -> Tensor:
    return torch.cat((anchors.centers - distances[..., :2], anchors.centers + distances[..., 2:]), -1)
