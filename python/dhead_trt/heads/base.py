"""What all heads share: the interface, the checks, the blocks and their initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..spec import HeadSpec

__all__ = ["CLASS_PRIOR", "Head", "RawModel", "conv_block", "initialize", "set_class_prior"]

CLASS_PRIOR = 0.01  # the score that every class starts from
_GROUPS = 32


@runtime_checkable
class RawModel(Protocol):
    """A torch module that ends in a head: what export, build and parity ask of a model.

    `raw` takes the features [B, C_i, H_i, W_i] of every level, or images [B, 3, H, W] for a whole model, and returns
    the raw maps by the names of `spec.input_names`.
    """

    spec: HeadSpec

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]: ...


class Head(nn.Module):
    """Base of the heads.

    Attributes:
        spec: what the raw maps are.
        in_channels: channels of the feature map of each level.
    """

    spec: HeadSpec
    in_channels: tuple[int, ...]

    def __init__(self, spec: HeadSpec, in_channels: Sequence[int]) -> None:
        super().__init__()
        if len(in_channels) != spec.num_levels or any(not isinstance(c, int) or c < 1 for c in in_channels):
            raise InputError(
                "in_channels does not fit the strides",
                received=f"in_channels={tuple(in_channels)}, strides={spec.strides}",
                expected="one positive integer per stride",
            )
        self.spec, self.in_channels = spec, tuple(in_channels)

    def raw(self, inputs: Sequence[Tensor] | Tensor) -> dict[str, Tensor]:
        """Features, one [B, C_i, H_i, W_i] per level → raw maps by name, in the order of `spec.input_names`.

        Raises:
            InputError: the features are not those of this head's levels.
        """
        raise NotImplementedError

    def _levels(self, inputs: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """The features as a list, checked against the head's levels."""
        features = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call] # shapes are tensors; checked before
            return features
        shapes = [tuple(x.shape) for x in features]
        wrong = [s for s, c in zip(shapes, self.in_channels, strict=False) if len(s) != 4 or s[1] != c]
        if len(shapes) != len(self.in_channels) or wrong:
            raise InputError(
                "The features do not fit the head",
                received=f"shapes {shapes}",
                expected=f"{len(self.in_channels)} maps [B, C, H, W] with C of {self.in_channels}",
            )
        return features


def conv_block(channels: int, *, groups: bool = False) -> list[nn.Module]:
    """Conv3×3 (C → C, with bias), BatchNorm or GroupNorm(32), SiLU."""
    if groups and channels % _GROUPS:
        raise InputError(
            "GroupNorm needs a multiple of its groups",
            received=f"{channels} channels",
            expected=f"a multiple of {_GROUPS}",
        )
    norm = nn.GroupNorm(_GROUPS, channels) if groups else nn.BatchNorm2d(channels)
    return [nn.Conv2d(channels, channels, 3, padding=1), norm, nn.SiLU(inplace=True)]


def initialize(module: nn.Module) -> None:
    """Kaiming normal (fan_out, relu) for convolutions, biases 0, norms 1 and 0."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)


def set_class_prior(conv: nn.Conv2d, prior: float = CLASS_PRIOR) -> None:
    """Sets the bias so that σ(bias) = prior: -log((1 - prior) / prior)."""
    assert conv.bias is not None
    nn.init.constant_(conv.bias, -math.log((1 - prior) / prior))
