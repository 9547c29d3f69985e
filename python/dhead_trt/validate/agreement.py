"""Agreement of two detectors on the same images: which boxes have a partner, and how far the partners differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detections import Detections
from ..errors import InputError
from ..tables import facts, table

__all__ = ["IOUS", "Agreement", "ImageAgreement", "agree", "iou_matrix", "match"]

IOUS = (0.5, 0.75, 0.95)
_QUANTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def iou_matrix(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """IoU of boxes [N, 4] with boxes [M, 4], xyxy: [N, M]; 0 where both are empty."""
    p, q = np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4)
    sides = np.maximum(0, np.minimum(p[..., 2:], q[..., 2:]) - np.maximum(p[..., :2], q[..., :2]))
    inter = sides.prod(axis=2)
    union = (p[..., 2:] - p[..., :2]).prod(axis=2) + (q[..., 2:] - q[..., :2]).prod(axis=2) - inter
    out: npt.NDArray[np.float64] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return out


def match(a: Detections, b: Detections, iou: float) -> list[tuple[int, int]]:
    """Pairs (row of a, row of b) of the same class and IoU ≥ `iou`, the closest first, each row in one pair at most."""
    overlaps = iou_matrix(a.xyxy, b.xyxy)
    overlaps[a.class_id[:, None] != b.class_id[None, :]] = -1
    rows, columns = np.nonzero(overlaps >= iou)
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    free_a, free_b = np.ones(len(a), bool), np.ones(len(b), bool)
    pairs = []
    for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if free_a[i] and free_b[j]:
            free_a[i] = free_b[j] = False
            pairs.append((i, j))
    return pairs


@dataclass(frozen=True)
class ImageAgreement:
    """Two results for one image.

    Attributes:
        source: its path, or its number.
        counts: detections of the first and of the second.
        matched: pairs at each IoU of `IOUS`.
        box: largest difference of a coordinate, of each pair at the lowest IoU, pixels of the image.
        score: difference of the scores, of each such pair.
        lonely: the highest score without a partner at the lowest IoU, or 0.
    """

    source: str
    counts: tuple[int, int]
    matched: tuple[int, ...]
    box: tuple[float, ...]
    score: tuple[float, ...]
    lonely: float

    def f1(self, level: int = 0) -> float:
        """2 · pairs / (detections of both) at IOUS[level]; 1 where neither found anything."""
        total = sum(self.counts)
        return 1.0 if total == 0 else 2 * self.matched[level] / total


@dataclass(frozen=True)
class Agreement:
    """Two detectors on many images.

    Attributes:
        names: of the first and of the second.
        conf: threshold of both.
        images: one entry each.
    """

    names: tuple[str, str]
    conf: float
    images: tuple[ImageAgreement, ...]

    def f1(self, level: int = 0) -> float:
        """Over the boxes of all images, at IOUS[level]."""
        total = sum(sum(i.counts) for i in self.images)
        return 1.0 if total == 0 else 2 * sum(i.matched[level] for i in self.images) / total

    @property
    def counts(self) -> tuple[int, int]:
        """Detections of each."""
        return sum(i.counts[0] for i in self.images), sum(i.counts[1] for i in self.images)

    def worst(self, number: int = 3) -> list[int]:
        """Numbers of the images that agree least, the worst first; those that agree wholly are left out."""
        keys = [(i.f1(0), i.f1(1), i.f1(2), -max(i.box, default=0.0)) for i in self.images]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return [i for i in order if keys[i] < (1.0, 1.0, 1.0, -0.0)][:number]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        box = [v for i in self.images for v in i.box]
        score = [v for i in self.images for v in i.score]
        return {
            "names": list(self.names),
            "conf": self.conf,
            "num_images": len(self.images),
            "detections": list(self.counts),
            "f1": {f"{iou:g}": self.f1(level) for level, iou in enumerate(IOUS)},
            "pairs": len(box),
            "box_delta_px": _quantiles(box),
            "score_delta": _quantiles(score),
            "highest_score_without_partner": max((i.lonely for i in self.images), default=0.0),
            "images": [
                {
                    "source": i.source,
                    "detections": list(i.counts),
                    "f1": {f"{iou:g}": i.f1(level) for level, iou in enumerate(IOUS)},
                    "box_delta_px_max": max(i.box, default=None),
                    "score_delta_max": max(i.score, default=None),
                    "highest_score_without_partner": i.lonely,
                }
                for i in self.images
            ],
        }

    def render(self) -> str:
        """As text."""
        d = self.to_dict()
        first, second = self.names
        head = facts(
            [
                ("agreement", f"{first} against {second}, {len(self.images)} images, conf {self.conf:g}"),
                ("detections", f"{self.counts[0]} and {self.counts[1]}, {d['pairs']} pairs"),
                ("without partner", f"highest score {d['highest_score_without_partner']:.4f}"),
            ]
        )
        f1 = table(["IoU", "F1"], [[k, f"{v:.4f}"] for k, v in d["f1"].items()], right=[0, 1])
        if not d["pairs"]:
            return f"{head}\n\n{f1}"
        deltas = table(
            ["of the pairs", *_QUANTILES],
            [
                ["box difference, px", *(f"{d['box_delta_px'][q]:.4f}" for q in _QUANTILES)],
                ["score difference", *(f"{d['score_delta'][q]:.2e}" for q in _QUANTILES)],
            ],
            right=[1, 2, 3],
        )
        return f"{head}\n\n{f1}\n\n{deltas}"


def agree(
    first: Iterable[Detections],
    second: Iterable[Detections],
    *,
    names: tuple[str, str] = ("first", "second"),
    conf: float = 0.25,
) -> Agreement:
    """Compares results image by image.

    Args:
        first, second: one Detections for each image, in the same order.
        names: what the report calls them.
        conf: the threshold that both were found with, for the report.

    Raises:
        InputError: they are not of the same images.
    """
    a, b = list(first), list(second)
    if len(a) != len(b):
        raise InputError("The results are not of the same images", received=f"{len(a)} and {len(b)} images")
    return Agreement(names, conf, tuple(_image(x, y, i) for i, (x, y) in enumerate(zip(a, b, strict=True))))


def _image(a: Detections, b: Detections, number: int) -> ImageAgreement:
    if a.image_size != b.image_size:
        raise InputError("The results are not of the same images", received=f"image {number}", expected=a.image_size)
    levels = [match(a, b, iou) for iou in IOUS]
    pairs = levels[0]
    rows, columns = [i for i, _ in pairs], [j for _, j in pairs]
    box = np.abs(a.xyxy[rows].astype(np.float64) - b.xyxy[columns]).max(axis=1) if pairs else np.zeros(0)
    score = np.abs(a.confidence[rows].astype(np.float64) - b.confidence[columns]) if pairs else np.zeros(0)
    alone = [*np.delete(a.confidence, rows).tolist(), *np.delete(b.confidence, columns).tolist()]
    return ImageAgreement(
        a.source or b.source or str(number),
        (len(a), len(b)),
        tuple(map(len, levels)),
        tuple(box.tolist()),
        tuple(score.tolist()),
        max(alone, default=0.0),
    )


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {name: float(np.quantile(values, q, method="higher")) for name, q in _QUANTILES.items()}
