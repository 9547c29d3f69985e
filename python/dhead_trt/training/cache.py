"""Prepared images on disk: scenes are drawn, and pictures decoded, only once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..files import atomic_files
from .loader import Detections, one_thread

__all__ = ["Cached", "cached"]


class Cached(Dataset[tuple[Tensor, Tensor]]):
    """A data set read from the files that `cached` wrote; the images stay on disk.

    Attributes:
        names, size: those of the data set.
    """

    def __init__(self, folder: Path, key: str, names: tuple[str, ...], size: tuple[int, int]) -> None:
        self.names, self.size = names, size
        self._path = folder / f"{key}-images.npy"
        with np.load(folder / f"{key}-targets.npz", allow_pickle=False) as arrays:
            self._targets, self._ends = arrays["targets"], np.cumsum(arrays["counts"])
        self._images: Any = None

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self._images is None:  # opened by the process that reads
            self._images = np.load(self._path, mmap_mode="r", allow_pickle=False)
        start = int(self._ends[index - 1]) if index else 0
        targets = self._targets[start : int(self._ends[index])]
        return torch.from_numpy(np.array(self._images[index])), torch.from_numpy(targets.copy())


def cached(
    data: Detections,
    folder: str | os.PathLike[str],
    *,
    workers: int = 1,
    progress: Callable[[str, float | None], None] | None = None,
) -> Cached:
    """`data` with all its images prepared, and kept in `folder`: 3·H·W bytes each.

    The files are named after what the data set says of itself (its `describe`d attributes); files of the same name are
    taken as they are.

    Args:
        data: all images of one size.
        folder: where.
        workers: processes that prepare them.
        progress: called with (phase, part done).
    """
    folder = Path(folder)
    size = (int(data[0][0].shape[1]), int(data[0][0].shape[2]))
    key = _key(data, size)
    files = [f"{key}-images.npy", f"{key}-targets.npz"]
    if not all((folder / name).is_file() for name in files):
        with atomic_files(folder, files) as staging:
            images = np.lib.format.open_memmap(
                staging / files[0], mode="w+", dtype=np.uint8, shape=(len(data), 3, *size)
            )
            parts: list[Any] = []
            loader: DataLoader[Any] = DataLoader(
                _Arrays(data), batch_size=None, num_workers=workers, worker_init_fn=one_thread
            )
            for i, (image, targets) in enumerate(loader):
                images[i] = image.numpy()
                parts.append(targets.numpy().copy())  # not a view of memory shared with a worker
                if progress is not None:
                    progress("preparing images", (i + 1) / len(data))
            images.flush()
            del images
            np.savez(
                staging / files[1],
                counts=np.array([len(p) for p in parts], np.int64),
                targets=np.concatenate(parts).reshape(-1, 5).astype(np.float32),
            )
    return Cached(folder, key, tuple(data.names), size)


class _Arrays(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: Detections) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[index]


def _key(data: Any, size: tuple[int, int]) -> str:
    """A name that changes with the data: their kind, length, names, seed, paths, and the first images' bytes."""
    about = {
        "kind": type(data).__name__,
        "length": len(data),
        "names": list(data.names),
        "size": size,
        "seed": getattr(data, "seed", None),
        "paths": [str(p) for p in getattr(data, "paths", ())],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for i in range(min(len(data), 8)):
        image, targets = data[i]
        digest.update(image.numpy().tobytes() + targets.numpy().tobytes())
    return digest.hexdigest()[:16]
