"""Convolutions that round their inputs and weights to int8 in the forward pass, with scales that are trained."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["HIGH", "LOW", "FakeQuant", "QatConv2d"]

LOW, HIGH = -128, 127  # of activations: what QuantizeLinear saturates at; weights stay within ±127
PERCENTILE = 99.99
_TINY = 1e-12


class _Round(torch.autograd.Function):
    """x → round(x / s) · s within low … high; the gradients are those of "learned step size quantization" (LSQ)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = x / scale
        ctx.save_for_backward(steps, scale)
        ctx.low, ctx.high = low, high
        return steps.round().clamp(low, high) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        steps, scale = ctx.saved_tensors
        inside = (steps >= ctx.low) & (steps <= ctx.high)
        slope = torch.where(inside, steps.round() - steps, steps.clamp(ctx.low, ctx.high))
        damp = (scale.numel() / (steps.numel() * ctx.high)) ** 0.5
        return grads[0] * inside, (grads[0] * slope).sum_to_size(scale.shape) * damp, None, None


def _rounded(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    return cast("Tensor", cast("Any", _Round).apply(x, scale, low, high))


class FakeQuant(nn.Module):
    """Rounds to int8 and back, with a scale that is trained.

    Args:
        channels: scales of the first axis (weights [channels, …]); None: one for the whole tensor.

    Attributes:
        raw_scale: the parameter, [channels] or [1]; the scale is its magnitude. 0 until it is set.
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.raw_scale = nn.Parameter(torch.zeros(channels or 1))

    @property
    def scale(self) -> Tensor:
        """float32 [channels] or [1], above 0."""
        return self.raw_scale.abs().clamp_min(_TINY)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widens the scale to hold x: each channel's largest weight; 99.99 % of an activation's magnitudes."""
        if self.channels is not None:
            top = x.abs().reshape(self.channels, -1).amax(dim=1)
        else:
            values = x.detach().abs().flatten().cpu().numpy()
            top = torch.tensor([float(np.percentile(values, PERCENTILE))])
        new = top.to(self.raw_scale) / HIGH
        self.raw_scale.copy_(torch.maximum(self.raw_scale, torch.where(new > 0, new, torch.zeros_like(new))))

    def forward(self, x: Tensor) -> Tensor:
        """x rounded, of the same shape."""
        if self.channels is None:
            return _rounded(x, self.scale, LOW, HIGH)
        scale = self.scale.reshape(-1, *[1] * (x.dim() - 1))
        return _rounded(x, scale, -HIGH, HIGH)


class QatConv2d(nn.Conv2d):
    """A convolution of rounded inputs and weights.

    Attributes:
        input_quant, weight_quant: `FakeQuant`, or torch.ao's FakeQuantize.
    """

    input_quant: nn.Module
    weight_quant: nn.Module

    @classmethod
    def of(cls, conv: nn.Conv2d, input_quant: nn.Module, weight_quant: nn.Module) -> QatConv2d:
        """The convolution with its own weights, quantized."""
        made = cls.__new__(cls)
        made.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in conv.__dict__.items()}
        made.input_quant, made.weight_quant = input_quant, weight_quant
        return made

    def plain(self) -> nn.Conv2d:
        """The convolution without rounding, of the same weights."""
        made = nn.Conv2d.__new__(nn.Conv2d)
        made.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in self.__dict__.items()}
        del made._modules["input_quant"], made._modules["weight_quant"]
        return made

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Conv2d's."""
        weight: Tensor = self.weight_quant(self.weight)
        made: Tensor = self._conv_forward(self.input_quant(input), weight, self.bias)
        return made
