"""Synthetic scenes as a torch data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import InputError
from .domains import Domain, domain
from .painter import paint
from .shapes import SHAPE_NAMES

__all__ = ["Sample", "Scenes", "collate"]

Sample = tuple[Tensor, Tensor]

_MIN_SIDE, _MAX_SIDE = 32, 4096


class Scenes(Dataset[Sample]):
    """Pictures of simple shapes among clutter, drawn when they are asked for.

    Scene `i` depends on `seed`, `domain`, `size` and `i` alone, so any process may draw any scene, and a large
    `num_images` costs nothing. Boxes are those of the shape's outline inside the frame, to 0.03 px; a shape that
    others partly hide keeps its whole box. Every shape that is drawn is labelled: one that would lie outside the frame
    by more than 40 % of its box, or hide more than 30 % of another's pixels, is not drawn at all.

    Args:
        num_images: how many.
        size: (height, width), 32 to 4096 pixels each.
        domain: "mixed", "dense", "small", "low_light", or a Domain.
        seed: of the whole set; sets of different seeds have no scene in common.
        classes: only these shapes, by name; they are numbered in this order. None: all eight.

    Attributes:
        names: of the classes.
        size: (height, width).

    Raises:
        InputError: a size, number, class or domain there is not.
    """

    def __init__(
        self,
        num_images: int,
        size: tuple[int, int] = (192, 192),
        domain: str | Domain = "mixed",
        *,
        seed: int = 0,
        classes: Sequence[str] | None = None,
    ) -> None:
        _check(num_images, size, seed, classes)
        self.num_images, self.size, self.seed = int(num_images), (int(size[0]), int(size[1])), int(seed)
        self.domain = _domain(domain)
        self.names: tuple[str, ...] = SHAPE_NAMES if classes is None else tuple(classes)
        self._shapes = tuple(SHAPE_NAMES.index(name) for name in self.names)

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Sample:
        """Image uint8 RGB [3, H, W] and targets float32 [N, 5]: class, x1, y1, x2, y2 in pixels."""
        image, targets = self.arrays(index)
        return torch.from_numpy(image), torch.from_numpy(targets)

    def arrays(self, index: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.float32]]]:
        """The same as numpy arrays.

        Raises:
            IndexError: there is no such scene.
        """
        if not -self.num_images <= index < self.num_images:
            raise IndexError(f"scene {index} of {self.num_images}")
        rng = np.random.default_rng((self.seed, index % self.num_images))
        image, targets, _ = paint(rng, self.domain, *self.size, self._shapes)
        return image, targets


def collate(batch: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Samples of one size → images uint8 [B, 3, H, W] and targets float32 [M, 6]: index in the batch, class, xyxy."""
    images = torch.stack([image for image, _ in batch])
    rows = [torch.cat([targets.new_full((len(targets), 1), i), targets], dim=1) for i, (_, targets) in enumerate(batch)]
    return images, torch.cat(rows) if rows else images.new_zeros((0, 6), dtype=torch.float32)


def _domain(name: str | Domain) -> Domain:
    return domain(name)


def _check(num_images: int, size: tuple[int, int], seed: int, classes: Sequence[str] | None) -> None:
    if num_images < 1 or seed < 0:
        raise InputError(
            "There is no such set of scenes",
            received=f"num_images={num_images}, seed={seed}",
            expected="at least one image, and a seed of 0 or more",
        )
    if len(size) != 2 or not all(_MIN_SIDE <= s <= _MAX_SIDE for s in size):
        raise InputError(
            "Scenes have no such size", received=size, expected=f"(height, width), {_MIN_SIDE} to {_MAX_SIDE} each"
        )
    if classes is not None and (not classes or len(set(classes)) != len(classes) or set(classes) - set(SHAPE_NAMES)):
        raise InputError("There are no such shapes", received=list(classes), expected=", ".join(SHAPE_NAMES))
