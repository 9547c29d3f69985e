"""The learning rate: a linear warm-up, then half a cosine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from ..errors import InputError

__all__ = ["WarmupCosineScheduler"]


class WarmupCosineScheduler:
    """Sets the learning rate of an optimizer: linear from min_lr to max_lr, then a cosine back to min_lr.

    Used as PyTorch's schedulers are: the rate of epoch 0 is set at once, each `step()` goes one epoch on and returns
    the new rate. Epochs may be fractions: `step(2.5)` goes to the middle of the third, for a rate that changes with
    each batch. After `total_epochs` the rate stays at min_lr. A parameter group's own "lr_scale" multiplies its rate.

    Args:
        optimizer: whose "lr" is set.
        warmup_epochs: of the linear part; 0: none.
        total_epochs: of both parts together.
        min_lr, max_lr: the lowest and the highest rate.

    Attributes:
        last_epoch: where it stands.

    Raises:
        InputError: 0 <= warmup_epochs <= total_epochs, total_epochs > 0 or 0 <= min_lr <= max_lr does not hold.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: float = 5,
        total_epochs: float = 100,
        min_lr: float = 1e-6,
        max_lr: float = 1e-3,
    ) -> None:
        if not (0 <= warmup_epochs <= total_epochs and total_epochs > 0 and 0 <= min_lr <= max_lr < math.inf):
            raise InputError(
                "The schedule is out of range",
                received=f"warm-up {warmup_epochs}, epochs {total_epochs}, rates {min_lr} to {max_lr}",
                expected="0 <= warmup_epochs <= total_epochs, total_epochs > 0, 0 <= min_lr <= max_lr",
            )
        self.optimizer = optimizer
        self.warmup_epochs, self.total_epochs = warmup_epochs, total_epochs
        self.min_lr, self.max_lr = min_lr, max_lr
        self.last_epoch: float = 0
        self._set()

    def rate(self, epoch: float) -> float:
        """The rate of an epoch."""
        if epoch < self.warmup_epochs:
            return self.min_lr + (self.max_lr - self.min_lr) * epoch / self.warmup_epochs
        rest = self.total_epochs - self.warmup_epochs
        part = min((epoch - self.warmup_epochs) / rest, 1.0) if rest > 0 else 1.0
        return self.min_lr + (self.max_lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * part))

    def step(self, epoch: float | None = None) -> float:
        """Goes to the next epoch, or to `epoch`; sets and returns the rate."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        return self._set()

    def get_last_lr(self) -> list[float]:
        """The rate of each parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave, and sets the rate."""
        self.__dict__.update(state)
        self._set()

    def plot(self, path: str | os.PathLike[str] = "lr_schedule.png") -> Path:
        """Draws the rate over the epochs, on a logarithmic axis.

        Raises:
            BackendUnavailable: matplotlib is not installed.
        """
        from .plots import plot_schedule

        return plot_schedule(self, path)

    def _set(self) -> float:
        rate = self.rate(self.last_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate
