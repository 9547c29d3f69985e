"""Batches in an order that depends on the seed alone, from any batch on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import InputError
from .data import collate

__all__ = ["Augment", "Batch", "Detections", "Loader"]

Batch = tuple[Tensor, Tensor]
Augment = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


class Detections(Protocol):
    """A data set: image uint8 [3, H, W] and targets float32 [N, 5] (class, xyxy px) by index; and the class names."""

    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]: ...


class Loader:
    """Batches of images uint8 [B, 3, H, W] and targets [M, 6], epoch after epoch.

    The order of an epoch and its augmentation follow from (seed, epoch, index) alone, whatever the number of workers,
    so that a run can go on in the middle of an epoch as if nothing had happened. The last batch of an epoch is left out
    if it is not full (unless it is the only one).

    Args:
        data: the images.
        batch: B.
        seed: of order and augmentation.
        epoch_images: see TrainConfig.
        augment: (image, targets, generator) → the same, changed; or None.
        workers: processes.

    Attributes:
        batches: of an epoch.

    Raises:
        InputError: there are no images.
    """

    def __init__(
        self,
        data: Detections,
        batch: int,
        *,
        seed: int = 0,
        epoch_images: int = 0,
        augment: Augment | None = None,
        workers: int = 0,
    ) -> None:
        if len(data) < 1:
            raise InputError("There are no images to train on")
        self.data, self.batch, self.seed, self.workers, self.augment = data, batch, seed, workers, augment
        self.epoch_images = epoch_images
        self.batches = max((epoch_images or len(data)) // batch, 1)

    def indices(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The images of an epoch, in order."""
        if self.epoch_images:
            return (epoch * self.epoch_images + np.arange(self.epoch_images)) % len(self.data)
        return np.random.default_rng((self.seed, epoch, 0)).permutation(len(self.data))

    def from_batch(self, epoch: int, number: int = 0) -> Iterator[Batch]:
        """Batches from number `number` of `epoch` on, without an end."""
        loader: DataLoader[Any] = DataLoader(
            _Prepared(self.data, self.augment, self.seed),
            batch_sampler=_Order(self, epoch, number),
            num_workers=self.workers,
            collate_fn=collate,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=one_thread,
            generator=torch.Generator(),  # else it would draw from torch's own, which belongs to dropout
        )
        return iter(loader)


class _Order(Sampler[list[tuple[int, int]]]):
    def __init__(self, loader: Loader, epoch: int, number: int) -> None:
        self.loader, self.epoch, self.number = loader, epoch, number

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, number, size = self.epoch, self.number, self.loader.batch
        while True:
            order = self.loader.indices(epoch)
            for i in range(number, self.loader.batches):
                yield [(epoch, int(j)) for j in order[i * size : (i + 1) * size]]
            epoch, number = epoch + 1, 0


class _Prepared(Dataset[tuple[Tensor, Tensor]]):
    """Images by (epoch, index), augmented."""

    def __init__(self, data: Detections, augment: Augment | None, seed: int) -> None:
        self.data, self.augment, self.seed = data, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        image, targets = self.data[index]
        if self.augment is not None:
            image, targets = self.augment(image, targets, np.random.default_rng((self.seed, epoch, 1, index)))
        return image, targets


def one_thread(_: int) -> None:
    """How a worker of a DataLoader starts: its processes already share the cores."""
    torch.set_num_threads(1)
