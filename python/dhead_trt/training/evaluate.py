"""mAP of a torch model while it is trained: our decode and NMS, COCO's evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..heads import RawModel
from ..postprocess import detect
from ..validate.coco import CocoData, CocoImage
from ..validate.mean_ap import mean_ap
from .data import collate
from .loader import Detections

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    model: Any, data: Detections, *, limit: int | None = None, batch: int = 32, conf: float = 0.001, iou: float = 0.7
) -> dict[str, float]:
    """map50_95, map50 and map75 of a model on a data set, by the settings of `dhead-trt val`.

    The model is put into eval mode for it, and back.

    Args:
        model: a torch module with `.spec` and `.raw(images)`.
        data: the images.
        limit: only the first so many.
        batch: images of a step.
        conf, iou: thresholds of the detections.

    Raises:
        BackendUnavailable: faster-coco-eval is not installed.
    """
    assert isinstance(model, RawModel)
    number = len(data) if limit is None else min(limit, len(data))
    spec = model.spec
    training = model.training  # type: ignore[attr-defined] # a module that is a RawModel too
    model.eval()  # type: ignore[attr-defined]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    try:
        for start in range(0, number, batch):
            images, targets = collate([data[i] for i in range(start, min(start + batch, number))])
            maps: Mapping[str, Tensor] = model.raw(images.float() / 255)
            arrays = {name: maps[name].float().contiguous().numpy() for name in spec.input_names}
            found = detect(arrays, spec, conf=conf, iou=iou, multi_label=True)
            for i in range(len(images)):
                n = int(found.num_dets[i, 0])
                results += _rows(start + i, found.det_boxes[i, :n], found.det_classes[i, :n], found.det_scores[i, :n])
            for row in targets.tolist():
                box = [row[2], row[3], row[4] - row[2], row[5] - row[3]]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": start + int(row[0]),
                        "category_id": int(row[1]),
                        "bbox": box,
                        "area": max(box[2], 0.0) * max(box[3], 0.0),
                        "iscrowd": 0,
                    }
                )
    finally:
        model.train(training)  # type: ignore[attr-defined]
    truth = CocoData(
        tuple(CocoImage(i, Path(str(i))) for i in range(number)),
        {c: spec.name_of(c) for c in range(spec.num_classes)},
        tuple(annotations),
    )
    precision = [p for p in mean_ap(truth, results).values() if not (p < 0).all()]
    if not precision:
        return dict.fromkeys(("map50_95", "map50", "map75"), float("nan"))
    stacked = np.stack(precision)  # [classes, 10, 101]
    return {
        "map50_95": float(stacked.mean()),
        "map50": float(stacked[:, 0].mean()),
        "map75": float(stacked[:, 5].mean()),
    }


def _rows(image: int, boxes: Any, classes: Any, scores: Any) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image,
            "category_id": int(c),
            "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            "score": float(s),
        }
        for b, c, s in zip(boxes, classes, scores, strict=True)
    ]
