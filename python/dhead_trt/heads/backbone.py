"""A backbone and neck in the manner of YOLOv8: CSP stages, and a path-aggregation pyramid of strides 8, 16, 32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .base import initialize

__all__ = ["BACKBONES", "Backbone", "BackboneSize"]


@dataclass(frozen=True)
class BackboneSize:
    """Widths and depths of a backbone with its neck.

    Attributes:
        channels: of the stages at strides 2, 4, 8, 16 and 32.
        neck: channels of the three feature maps that go to the head.
        depth: bottlenecks of the stages at strides 4, 8, 16 and 32.
        neck_depth: bottlenecks of each stage of the neck.
        finest: stride of the finest feature map: 8, or 4 for small objects; the others have twice and four times that.
    """

    channels: tuple[int, int, int, int, int]
    neck: tuple[int, int, int]
    depth: tuple[int, int, int, int] = (1, 2, 2, 1)
    neck_depth: int = 1
    finest: int = 8


# n to x: YOLOv8's own widths and depths; p: for CPUs, 0.93 million parameters with the head
BACKBONES = {
    "p": BackboneSize((16, 32, 64, 80, 96), (48, 64, 64), (2, 2, 1, 1)),
    "n": BackboneSize((16, 32, 64, 128, 256), (64, 128, 256), (1, 2, 2, 1), 1),
    "s": BackboneSize((32, 64, 128, 256, 512), (128, 256, 512), (1, 2, 2, 1), 1),
    "m": BackboneSize((48, 96, 192, 384, 576), (192, 384, 576), (2, 4, 4, 2), 2),
    "l": BackboneSize((64, 128, 256, 512, 512), (256, 512, 512), (3, 6, 6, 3), 3),
    "x": BackboneSize((80, 160, 320, 640, 640), (320, 640, 640), (3, 6, 6, 3), 3),
}


class ConvNormAct(nn.Sequential):
    """Conv k×k (no bias), BatchNorm, SiLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.03),
            nn.SiLU(inplace=True),
        )


class Bottleneck(nn.Module):
    """Two 3×3 convolutions, added to their input where `shortcut`."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNormAct(channels, channels, 3), ConvNormAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """YOLOv8's cross-stage block: half of the channels pass by, the other half go through `depth` bottlenecks."""

    def __init__(self, c_in: int, c_out: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        self.width = c_out // 2
        self.cv1 = ConvNormAct(c_in, 2 * self.width)
        self.cv2 = ConvNormAct((2 + depth) * self.width, c_out)
        self.blocks = nn.ModuleList(Bottleneck(self.width, shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).split(self.width, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        y: Tensor = self.cv2(torch.cat(parts, dim=1))
        return y


class SPPF(nn.Module):
    """Spatial pyramid pooling: three 5×5 maximum poolings in a row, their results side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvNormAct(channels, channels // 2), ConvNormAct(4 * (channels // 2), channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        y: Tensor = self.cv2(torch.cat(parts, dim=1))
        return y


class Backbone(nn.Module):
    """Images [B, 3, H, W] → features [B, neck_i, H/s, W/s] for the strides s = 8, 16, 32, or 4, 8, 16.

    Args:
        size: widths and depths, or one of the names in BACKBONES.

    Attributes:
        out_channels: of the features.
        strides: of them.

    Raises:
        InputError: the name is not known; in `forward`, H or W is no multiple of 32.
    """

    def __init__(self, size: BackboneSize | str = "p") -> None:
        super().__init__()
        if isinstance(size, str):
            if size not in BACKBONES:
                raise InputError(
                    "The model size is not known", received=repr(size), expected=f"one of {list(BACKBONES)}"
                )
            size = BACKBONES[size]
        if size.finest not in (4, 8):
            raise InputError("The finest stride is not possible", received=size.finest, expected="4 or 8")
        c, n, d = size.channels, size.neck, size.depth
        self.out_channels = n
        self.strides = (size.finest, 2 * size.finest, 4 * size.finest)
        self.stem = ConvNormAct(3, c[0], 3, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvNormAct(c[i], c[i + 1], 3, 2), C2f(c[i + 1], c[i + 1], d[i])) for i in range(4)
        )
        self.sppf = SPPF(c[4])
        # downwards: every level gets what the next coarser one knows; the last is the head's finest
        last = 1 if size.finest == 4 else 2
        widths = [c[4], *(c[i] for i in range(3, last, -1)), n[0]]
        self.up = nn.ModuleList(
            C2f(widths[k] + c[3 - k], widths[k + 1], size.neck_depth, shortcut=False) for k in range(len(widths) - 1)
        )
        # upwards again, to the head's other two
        self.down = nn.ModuleList(ConvNormAct(n[k], n[k], 3, 2) for k in range(2))
        self.out = nn.ModuleList(
            C2f(n[k] + widths[-2 - k], n[k + 1], size.neck_depth, shortcut=False) for k in range(2)
        )
        initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The three features, from the finest to the coarsest."""
        if not torch.jit.is_tracing() and (  # type: ignore[attr-defined,no-untyped-call] # checked before
            images.dim() != 4 or images.shape[1] != 3 or images.shape[2] % 32 or images.shape[3] % 32
        ):
            raise InputError(
                "The images do not fit the backbone",
                received=f"shape {tuple(images.shape)}",
                expected="[B, 3, H, W], H and W multiples of 32",
            )
        x = self.stem(images)
        pyramid = []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        tops = [self.sppf(x)]
        for k, block in enumerate(self.up):
            tops.append(block(torch.cat((_double(tops[-1]), pyramid[2 - k]), dim=1)))
        features = [tops[-1]]
        for k in range(2):
            features.append(self.out[k](torch.cat((self.down[k](features[-1]), tops[-2 - k]), dim=1)))
        return features


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
