"""Do two decoded outputs lead to the same detections?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference

__all__ = ["Matching", "match", "threshold_for"]

F64 = NDArray[np.float64]
_WANTED = 100  # detections' candidates per image, where a threshold has to be found


@dataclass(frozen=True)
class Matching:
    """Detections of a rung paired with those of the reference, over the whole batch.

    Attributes:
        found: detections of the reference that the rung has too (same class, overlapping, about the same score).
        wanted: detections of the reference, but for those whose score is within rounding of the threshold.
        extra: detections of the rung that the reference does not have, with the same exception.
        box_errors, score_errors: absolute differences of the pairs, [N, 4] and [N].
    """

    found: int
    wanted: int
    extra: int
    box_errors: F64
    score_errors: F64


def threshold_for(scores: F64, conf: float) -> float:
    """`conf`, or where no score [B, A, C] passes it, a threshold that about a hundred anchors of an image pass.

    A head with random weights scores every anchor near its prior; its detections can be compared all the same.
    """
    best = np.nan_to_num(scores, nan=-1.0).max(axis=2)
    if best.size == 0 or (best > conf).any():
        return conf
    keep = min(_WANTED, best.shape[1] - 1)
    return float(np.sort(best, axis=1)[:, -keep - 1].max())


def match(
    got: tuple[Any, Any], want: tuple[Any, Any], *, conf: float, iou: float, overlap: float, slack: float
) -> Matching:
    """Runs the oracle's NMS on two decoded outputs (boxes [B, A, 4], scores [B, A, C]) and pairs what comes out.

    Args:
        conf, iou: of the NMS.
        overlap: least IoU of a pair.
        slack: largest difference of their scores; a detection nearer than this to `conf` need not be found.
    """
    a = reference.nms(*(np.asarray(x, dtype=np.float64) for x in got), conf=conf, iou=iou)
    b = reference.nms(*want, conf=conf, iou=iou)
    return pair(a, b, conf=conf, overlap=overlap, slack=slack)


def pair(got: Any, want: Any, *, conf: float, overlap: float, slack: float) -> Matching:
    """Pairs the rows of two results (num_dets, boxes, scores, classes), the best overlap first."""
    found = wanted = extra = 0
    boxes: list[F64] = []
    scores: list[F64] = []
    for image in range(want.scores.shape[0]):
        n, m = int(want.num_dets.reshape(-1)[image]), int(got.num_dets.reshape(-1)[image])
        wb, ws, wc = want.boxes[image, :n], want.scores[image, :n], want.classes[image, :n]
        gb, gs, gc = got.boxes[image, :m], got.scores[image, :m], got.classes[image, :m]
        free = np.ones(m, dtype=bool)
        for i in range(n):
            fits = free & (gc == wc[i]) & (np.abs(gs - ws[i]) <= slack)
            ious = np.where(fits, _iou(wb[i], gb), -1.0)
            j = int(np.argmax(ious)) if m else -1
            if m and ious[j] >= overlap:
                free[j] = False
                found += 1
                wanted += 1
                boxes.append(np.abs(gb[j] - wb[i]))
                scores.append(np.abs(gs[j] - ws[i]))
            elif ws[i] > conf + slack:
                wanted += 1
        extra += int((free & (gs > conf + slack)).sum())
    return Matching(found, wanted, extra, np.reshape(boxes, (-1, 4)), np.reshape(scores, -1))


def _iou(box: F64, others: F64) -> F64:
    inter = np.maximum(0, np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).prod(axis=1)
    area = np.maximum(0, box[2:] - box[:2]).prod() + np.maximum(0, others[:, 2:] - others[:, :2]).prod(axis=1)
    same = (others == box).all(axis=1)  # a box without area overlaps nothing, itself included
    union = area - inter
    result: F64 = np.where(same, 1.0, np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))
    return result
