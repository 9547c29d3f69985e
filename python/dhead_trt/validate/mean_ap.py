"""COCO's mean average precision of a detector, by faster-coco-eval."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detections import Detections
from ..errors import BackendUnavailable
from ..progress import ProgressCallback
from ..tables import facts, table
from .agreement import match
from .coco import CocoData

__all__ = ["ClassScore", "ValReport", "detect_all", "mean_ap", "validate"]

_AHEAD = 8


@dataclass(frozen=True)
class ClassScore:
    """One class; NaN where the data have no label of it.

    Attributes:
        name: of the class.
        labels: how many there are (crowds left out).
        ap: average precision, mean over IoU 0.5, 0.55 … 0.95.
        ap50, ap75: at IoU 0.5 and 0.75.
        precision: [101] at IoU 0.5 and recall 0, 0.01 … 1.
    """

    name: str
    labels: int
    ap: float
    ap50: float
    ap75: float
    precision: tuple[float, ...]


@dataclass(frozen=True)
class ValReport:
    """Mean average precision.

    Attributes:
        model: what was measured.
        settings: conf, iou, max_det, multi_label of the detections.
        images: how many.
        classes: one entry each, in the model's order.
        f1: of each image, at `f1_conf` and IoU 0.5 against the labels.
        f1_conf: threshold of those.
        found, truth: those detections, and the labels, of each image.
    """

    model: str
    settings: dict[str, Any]
    images: int
    classes: tuple[ClassScore, ...]
    f1: tuple[float, ...]
    f1_conf: float
    found: tuple[Detections, ...]
    truth: tuple[Detections, ...]

    def mean(self, field: str = "ap") -> float:
        """Mean of "ap", "ap50" or "ap75" over the classes that have labels; NaN where none has."""
        values = [getattr(c, field) for c in self.classes if c.labels]
        return float(np.mean(values)) if values else float("nan")

    def worst(self, number: int = 3) -> list[int]:
        """Numbers of the images with the lowest F1, the worst first; those without a mistake are left out."""
        return [i for i in np.argsort(self.f1, kind="stable").tolist() if self.f1[i] < 1][:number]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; null where there is no label."""
        return {
            "model": self.model,
            "settings": self.settings,
            "num_images": self.images,
            "labels": sum(c.labels for c in self.classes),
            "map50_95": _number(self.mean("ap")),
            "map50": _number(self.mean("ap50")),
            "map75": _number(self.mean("ap75")),
            "classes": [
                {
                    "name": c.name,
                    "labels": c.labels,
                    "ap50_95": _number(c.ap),
                    "ap50": _number(c.ap50),
                    "ap75": _number(c.ap75),
                    "precision_at_iou50": [_number(v) for v in c.precision],
                }
                for c in self.classes
            ],
            "f1": {
                "conf": self.f1_conf,
                "images": [{"source": t.source, "f1": f} for t, f in zip(self.truth, self.f1, strict=True)],
            },
        }

    def render(self) -> str:
        """As text."""
        s = self.settings
        multi = ", several classes at an anchor" if s["multi_label"] else ""
        head = facts(
            [
                ("model", self.model),
                ("images", f"{self.images}, {sum(c.labels for c in self.classes)} labels"),
                ("detections", f"conf {s['conf']:g}, NMS IoU {s['iou']:g}, at most {s['max_det']}{multi}"),
            ]
        )
        rows = [[c.name, c.labels, *(_text(v) for v in (c.ap, c.ap50, c.ap75))] for c in self.classes]
        means = [_text(self.mean(f)) for f in ("ap", "ap50", "ap75")]
        rows.insert(0, ["all", sum(c.labels for c in self.classes), *means])
        return f"{head}\n\n" + table(["class", "labels", "mAP50-95", "mAP50", "mAP75"], rows, right=[1, 2, 3, 4])


def detect_all(
    detector: Any, sources: Iterable[Any], options: dict[str, Any], report: Callable[[int], None] | None = None
) -> Iterator[Detections]:
    """Results in order, several images on their way at once where the detector has `submit`.

    Args:
        detector: a Detector, or anything called like one.
        sources: images.
        options: of the call.
        report: told the number of images that are done.
    """
    waiting: deque[Future[Detections]] = deque()
    done = 0
    submit = getattr(detector, "submit", None)
    for source in sources:
        if submit is None:
            result = detector(source, **options)
        else:
            waiting.append(submit(source, **options))
            if len(waiting) < _AHEAD:
                continue
            result = waiting.popleft().result()
        done += 1
        if report is not None:
            report(done)
        yield result
    while waiting:
        result = waiting.popleft().result()
        done += 1
        if report is not None:
            report(done)
        yield result


def validate(
    detector: Any,
    data: CocoData,
    *,
    model: str = "model",
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    multi_label: bool = True,
    f1_conf: float = 0.25,
    progress: ProgressCallback | None = None,
) -> ValReport:
    """Measures a detector on labelled images. The options' defaults are those of Ultralytics' `val`.

    Args:
        detector: a Detector or OnnxReference.
        data: the images and labels.
        model: what the report calls it.
        conf, iou, max_det, multi_label: as for calling the Detector. Of `max_det`, COCO's mAP looks at the best 100.
        f1_conf: threshold of the detections that are kept to show, and of the F1 of single images.
        progress: called with ("detecting", part done).

    Raises:
        InputError: an image cannot be read, or the classes don't fit.
        BackendUnavailable: faster-coco-eval is not installed.
    """
    _evaluator()
    names = tuple(detector.names)
    classes = (detector.engine.spec if hasattr(detector, "engine") else detector.spec).num_classes
    names = names or tuple(map(str, range(classes)))
    categories = data.category_ids(detector.names, classes)
    settings = {"conf": conf, "iou": iou, "max_det": max_det, "multi_label": multi_label}
    results: list[dict[str, Any]] = []
    kept, truth, f1 = [], [], []

    def report(done: int) -> None:
        if progress is not None:
            progress("detecting", done / len(data.images))

    found = detect_all(detector, (i.path for i in data.images), settings, report)
    for image, detections in zip(data.images, found, strict=True):
        results += detections.to_coco(image.id, categories)
        labels = data.truth(image, categories, names, detections.image_size)
        shown = detections.filter(conf=f1_conf)
        pairs = len(match(shown, labels, 0.5))
        kept.append(shown)
        truth.append(labels)
        f1.append(1.0 if not len(shown) + len(labels) else 2 * pairs / (len(shown) + len(labels)))
    scores = mean_ap(data, results)
    counts = {c: sum(a["category_id"] == c and not a["iscrowd"] for a in data.annotations) for c in categories}
    rows = tuple(
        ClassScore(name, counts[category], *_class_score(scores[category]))
        for name, category in zip(names, categories, strict=True)
    )
    return ValReport(model, settings, len(data.images), rows, tuple(f1), f1_conf, tuple(kept), tuple(truth))


def mean_ap(data: CocoData, results: list[dict[str, Any]]) -> dict[int, npt.NDArray[np.float64]]:
    """Category → precision [10, 101] by IoU (0.5, 0.55 … 0.95) and recall (0, 0.01 … 1); -1 where it has no label.

    Args:
        data: the labels.
        results: detections in COCO's result format.
    """
    coco, evaluator = _evaluator()
    truth = coco(
        {
            "images": [{"id": i.id} for i in data.images],
            "categories": [{"id": i, "name": n} for i, n in data.categories.items()],
            "annotations": [dict(a) for a in data.annotations],
        }
    )
    categories = list(data.categories)
    if not results:
        labelled = {a["category_id"] for a in data.annotations if not a["iscrowd"]}
        return {c: np.full((10, 101), 0.0 if c in labelled else -1.0) for c in categories}
    run = evaluator(truth, truth.loadRes(results), "bbox")
    run.evaluate()
    run.accumulate()
    precision = np.asarray(run.eval["precision"], dtype=np.float64)  # IoU, recall, category, area, most detections
    order = list(run.params.catIds)
    return {c: precision[:, :, order.index(c), 0, -1] for c in categories}


def _class_score(precision: npt.NDArray[np.float64]) -> tuple[float, float, float, tuple[float, ...]]:
    if (precision < 0).all():
        nan = float("nan")
        return nan, nan, nan, (nan,) * precision.shape[1]
    return (
        float(precision.mean()),
        float(precision[0].mean()),
        float(precision[5].mean()),
        tuple(precision[0].tolist()),
    )


def _evaluator() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as e:
        raise BackendUnavailable(
            "mAP needs faster-coco-eval", received="not installed", fix='pip install "dhead-trt[val]"'
        ) from e
    return COCO, COCOeval_faster


def _number(value: float) -> float | None:
    return None if value != value else value


def _text(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"
