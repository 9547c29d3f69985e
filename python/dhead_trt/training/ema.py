"""Exponential moving average of a model's weights, its buffers included."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["EMA"]


class EMA:
    """shadow ← d·shadow + (1 - d)·value, for every floating-point parameter and buffer.

    BatchNorm's statistics are averaged like the weights that they belong to; integer buffers are copied. With a ramp
    the decay rises as decay·(1 - exp(-updates / ramp)), so that the first updates do not hold on to random weights.

    Args:
        model: what is averaged; the shadow starts as a copy.
        decay: d.
        ramp: updates in which the decay reaches 63 %; 0: constant.

    Attributes:
        shadow: name → averaged tensor.
        updates: how many there were.

    Raises:
        InputError: decay or ramp is out of range.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, ramp: float = 0.0) -> None:
        if not 0 <= decay < 1 or not ramp >= 0:
            raise InputError(
                "EMA's decay or ramp is out of range",
                received=f"decay={decay}, ramp={ramp}",
                expected="0 <= decay < 1, ramp >= 0",
            )
        self.model, self.decay, self.ramp, self.updates = model, decay, ramp, 0
        self.shadow = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._backup: dict[str, Tensor] | None = None

    def decay_now(self) -> float:
        """The decay of the latest update."""
        return self.decay * (1 - math.exp(-self.updates / self.ramp)) if self.ramp else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's present values into the average.

        Raises:
            InputError: the shadow is applied: the model's values are not its own.
        """
        if self._backup is not None:
            raise InputError("EMA.update between apply_shadow and restore", fix="Call restore() first")
        self.updates += 1
        weight = 1 - self.decay_now()
        averaged, values = [], []
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                averaged.append(self.shadow[name])
                values.append(value.detach())
            else:
                self.shadow[name].copy_(value)
        torch._foreach_lerp_(averaged, values, weight)

    @torch.no_grad()
    def apply_shadow(self) -> None:
        """Puts the average into the model; `restore` takes it out again.

        Raises:
            InputError: it is in the model already.
        """
        if self._backup is not None:
            raise InputError("EMA.apply_shadow twice", fix="Call restore() in between")
        state = self.model.state_dict()
        self._backup = {name: value.detach().clone() for name, value in state.items()}
        for name, value in state.items():
            value.copy_(self.shadow[name])

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the model's own values back.

        Raises:
            InputError: the average was not applied.
        """
        if self._backup is None:
            raise InputError("EMA.restore without apply_shadow")
        for name, value in self.model.state_dict().items():
            value.copy_(self._backup[name])
        self._backup = None

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """`with ema.applied() as model:` the model with the average in it; restored at the end, whatever happens."""
        self.apply_shadow()
        try:
            yield self.model
        finally:
            self.restore()

    def state_dict(self) -> dict[str, Any]:
        """decay, ramp, updates, and shadow (copies)."""
        shadow = {name: value.clone() for name, value in self.shadow.items()}
        return {"decay": self.decay, "ramp": self.ramp, "updates": self.updates, "shadow": shadow}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            InputError: it is another model's.
        """
        shadow = state["shadow"]
        mine = {name: tuple(value.shape) for name, value in self.shadow.items()}
        if {name: tuple(value.shape) for name, value in shadow.items()} != mine:
            raise InputError(
                "The EMA is another model's", expected=f"{len(mine)} tensors of this model's names and shapes"
            )
        self.decay, self.ramp, self.updates = float(state["decay"]), float(state["ramp"]), int(state["updates"])
        for name, value in self.shadow.items():
            value.copy_(shadow[name])
