"""The losses of detection heads: classification, box distribution, overlap, objectness, and their balance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .boxes import IouKind, overlap

__all__ = ["TaskBalancedLoss", "bce_loss", "dfl_loss", "focal_loss", "iou_loss", "objectness_loss"]


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every logit against a target in 0..1; same shape, not reduced."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def focal_loss(logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al. 2017), continuous in its target as in generalised focal loss (Li et al. 2020).

    alpha_t · |t - p|^gamma · BCE(p, t), with alpha_t = alpha·t + (1 - alpha)·(1 - t): for t of 0 or 1 it is
    -alpha_t (1 - p_t)^gamma log(p_t).

    Args:
        logits: of any shape.
        target: 0..1, same shape.
        alpha: weight of the positives; negative: no weights.
        gamma: 0: BCE.

    Returns:
        The loss of every element.
    """
    loss = bce_loss(logits, target)
    distance = (target - logits.sigmoid()).abs()
    loss = loss * (distance.square() if gamma == 2 else distance.clamp(min=1e-12).pow(gamma))
    return loss if alpha < 0 else loss * (alpha * target + (1 - alpha) * (1 - target))


def dfl_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Distribution focal loss (Li et al. 2020) of distances.

    -((j + 1 - t) log p_j + (t - j) log p_{j+1}) with j = ⌊t⌋: the cross-entropy against the two bins next to t.

    Args:
        logits: [..., bins].
        target: [...], in bins; clamped into 0..bins-1.

    Returns:
        [...].
    """
    bins = logits.shape[-1]
    target = target.clamp(0, bins - 1)
    low = target.floor().clamp(max=max(bins - 2, 0)).long()
    high = (low + 1).clamp(max=bins - 1)
    weight = target - low
    log_p = logits.log_softmax(-1)
    at = [log_p.gather(-1, j.unsqueeze(-1)).squeeze(-1) for j in (low, high)]
    return -((1 - weight) * at[0] + weight * at[1])


def iou_loss(boxes: Tensor, target: Tensor, kind: IouKind = "ciou") -> Tensor:
    """1 - overlap of boxes [..., 4] with their targets [..., 4] → [...]."""
    return 1 - overlap(boxes, target, kind)


def objectness_loss(logits: Tensor, target: Tensor) -> Tensor:
    """BCE of the objectness against 0..1 (1, or the overlap of the box with its object); not reduced."""
    return bce_loss(logits, target)


class TaskBalancedLoss(nn.Module):
    """The sum of the tasks' losses, each with its weight.

    Fixed: Σ wᵢ·Lᵢ. Dynamic (Kendall, Gal and Cipolla 2018): with a learned sᵢ = log σᵢ² for each task, its uncertainty,
    Σ ½·exp(-sᵢ)·wᵢ·Lᵢ + ½·sᵢ, whose minimum over sᵢ is at exp(sᵢ) = wᵢ·Lᵢ. sᵢ starts at 0 and is kept within -5..5. Its
    parameters must be given to the optimizer too.

    Args:
        weights: task → wᵢ.
        use_dynamic_weight: learn the weights.

    Attributes:
        log_variance: sᵢ [tasks], a parameter where the weights are learned.

    Raises:
        InputError: no tasks, or a negative weight; in `forward`, other tasks than these.
    """

    log_variance: Tensor

    def __init__(self, weights: Mapping[str, float], use_dynamic_weight: bool = False) -> None:
        super().__init__()
        if not weights or any(not 0 <= w < math.inf for w in weights.values()):
            raise InputError("The weights of the losses are out of range", received=dict(weights), expected="0 or more")
        self.weights, self.use_dynamic_weight = dict(weights), use_dynamic_weight
        start = torch.zeros(len(weights))
        if use_dynamic_weight:
            self.log_variance = nn.Parameter(start)
        else:
            self.register_buffer("log_variance", start, persistent=False)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The losses by task (scalars) → their weighted sum."""
        if set(losses) != set(self.weights):
            raise InputError("Other losses than weights", received=sorted(losses), expected=f"{sorted(self.weights)}")
        parts = torch.stack([self.weights[name] * losses[name] for name in self.weights])
        if not self.use_dynamic_weight:
            return parts.sum()
        s = self.log_variance.clamp(-5, 5)
        return 0.5 * (parts * (-s).exp() + s).sum()

    def effective(self) -> dict[str, float]:
        """Task → what its loss is multiplied with now."""
        values: Sequence[float] = (0.5 * (-self.log_variance.detach().clamp(-5, 5)).exp()).tolist()
        if not self.use_dynamic_weight:
            return dict(self.weights)
        return {name: w * v for (name, w), v in zip(self.weights.items(), values, strict=True)}
