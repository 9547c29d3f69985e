"""The accuracy gate: how far an int8 graph's detections are from those of its float32 original."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..detections import Detections
from ..errors import BuildError, InputError
from ..postprocess import detect
from ..progress import ProgressCallback
from ..spec import HeadSpec
from ..tables import facts, table
from ..validate import Agreement, CocoData, CocoImage, agree, match
from ..validate.mean_ap import mean_ap
from .raw_run import Arrays, MapRunner, image_count, input_size, named_batches, raw_graph, spec_of

if TYPE_CHECKING:
    from onnx import ModelProto

    from .sensitivity import Sensitivity

__all__ = ["ClassAgreement", "Gate", "GateReport", "measure", "require"]

_NO_FILE = Path()
AP_CONF = 0.001  # detections down to here are ranked for AP, as COCO's evaluation does


class ClassAgreement(NamedTuple):
    """Average precision of one class, with the float32 detections as truth.

    Attributes:
        name: of the class.
        labels: float32 detections of it.
        ap50_95, ap50: mean over IoU 0.5 … 0.95, and at 0.5; NaN where there are no labels.
    """

    name: str
    labels: int
    ap50_95: float
    ap50: float


@dataclass(frozen=True)
class GateReport:
    """An int8 graph against its float32 original on the same images.

    Attributes:
        detail: boxes and scores of each image, float32 first.
        classes: average precision of every class.
        score_shift: mean of (int8 score - float32 score) over the pairs at IoU 0.5; below 0, int8 is less sure.
    """

    detail: Agreement
    classes: tuple[ClassAgreement, ...]
    score_shift: float

    @property
    def f1_50(self) -> float:
        """F1 of the detections above the threshold at IoU 0.5."""
        return self.detail.f1(0)

    @property
    def f1_75(self) -> float:
        """F1 at IoU 0.75."""
        return self.detail.f1(1)

    @property
    def ap50_95(self) -> float:
        """COCO's AP with the float32 detections as truth, mean over the classes that these have."""
        return float(np.mean([c.ap50_95 for c in self.classes if c.labels]))

    @property
    def ap50(self) -> float:
        """The same at IoU 0.5."""
        return float(np.mean([c.ap50 for c in self.classes if c.labels]))

    @property
    def agreement(self) -> float:
        """What the gate looks at: the lower of `ap50_95` and `f1_50`."""
        return min(self.ap50_95, self.f1_50)

    @property
    def images(self) -> int:
        """How many were compared."""
        return len(self.detail.images)

    def passed(self, min_agreement: float) -> bool:
        """Whether `agreement` is at least that."""
        return self.agreement >= min_agreement

    def worst(self, number: int = 3) -> list[str]:
        """Names of the images that agree least, the worst first; those that agree wholly are left out."""
        return [self.detail.images[i].source for i in self.detail.worst(number)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "agreement": self.agreement,
            "f1_50": self.f1_50,
            "f1_75": self.f1_75,
            "ap50_95": self.ap50_95,
            "ap50": self.ap50,
            "score_shift": self.score_shift,
            "classes": [
                {"name": c.name, "labels": c.labels, "ap50_95": _number(c.ap50_95), "ap50": _number(c.ap50)}
                for c in self.classes
            ],
            "worst_images": self.worst(),
            "detail": self.detail.to_dict(),
        }

    def render(self) -> str:
        """As text: the figures, the classes, the worst images."""
        detail = self.detail.to_dict()
        box, score = detail["box_delta_px"], detail["score_delta"]
        rows: list[tuple[str, object]] = [
            ("int8 against float32", f"{self.images} images, conf {self.detail.conf:g}"),
            ("detections", f"{self.detail.counts[0]} float32, {self.detail.counts[1]} int8, {detail['pairs']} pairs"),
            ("F1 at IoU 0.5, 0.75", f"{self.f1_50:.4f}, {self.f1_75:.4f}"),
            ("AP50-95, AP50", f"{self.ap50_95:.4f}, {self.ap50:.4f} (float32 detections as truth)"),
        ]
        if box:
            rows += [
                (
                    "score shift",
                    f"{self.score_shift:+.4f} on average, {score['p95']:.3f} (p95), {score['max']:.3f} (max)",
                ),
                ("box difference, px", f"{box['p50']:.2f} (p50), {box['p95']:.2f} (p95), {box['max']:.2f} (max)"),
            ]
        classes = table(
            ["class", "float32", "AP50-95", "AP50"],
            [[c.name, c.labels, f"{c.ap50_95:.4f}", f"{c.ap50:.4f}"] for c in self.classes if c.labels],
            right=[1, 2, 3],
        )
        text = f"{facts(rows)}\n\n{classes}"
        worst = self.detail.worst()
        if worst:
            chosen = [self.detail.images[i] for i in worst]
            text += "\n\n" + table(
                ["worst images", "float32", "int8", "F1@0.5", "F1@0.75"],
                [[i.source, *i.counts, f"{i.f1(0):.4f}", f"{i.f1(1):.4f}"] for i in chosen],
                right=[1, 2, 3, 4],
            )
        return text


class Gate:
    """Measures int8 graphs against one float32 graph; the latter's detections are found once.

    Both run on the CPU in ONNX Runtime, which computes the Q/DQ nodes as they are written (see `raw_run.MapRunner`).
    The decode and the NMS are this package's own.

    Args:
        reference: the float32 graph, of any form.
        batches: held-out inputs: mappings from input name to float32 [B, …], or bare arrays where there is one input.
            They are kept in memory. Of `CalibrationBatches` the rows that fill up the last batch are not compared.
        spec: the head; None: what the graph's metadata say.
        conf, iou, max_det: of the detections that are compared.
        names: of the images, for the report.
        threads: of ONNX Runtime.
        progress: called with ("float32 detections", part done).

    Raises:
        InputError: there are no images, or the float32 graph finds nothing in them.
        GraphError: the graph is not a supported detector.
        BackendUnavailable: onnxruntime or faster-coco-eval is not installed.
    """

    def __init__(
        self,
        reference: ModelProto,
        batches: Iterable[Any],
        spec: HeadSpec | None = None,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        names: Sequence[str] = (),
        threads: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> None:
        self.spec = spec_of(reference, spec)
        self.reference = raw_graph(reference, self.spec)
        self.conf, self.iou, self.max_det, self.threads = conf, iou, max_det, threads
        self.batches: list[Arrays] = list(named_batches(batches, self.reference))
        self._count = image_count(batches)
        self._names = tuple(map(str, names))
        found = self._detections(self.reference, "float32 detections", progress)
        self._truth = [d.filter(conf=conf) for d in found]
        if not self._truth:
            raise InputError("There are no held-out images", expected="images that were not used to calibrate")
        if not any(map(len, self._truth)):
            raise InputError(
                "The float32 model finds nothing in the held-out images, so there is nothing to agree with",
                received=f"{len(self._truth)} images, conf {conf:g}",
                fix="Give images such as the model is for, or a lower conf",
            )

    def measure(self, quantized: ModelProto, *, progress: ProgressCallback | None = None) -> GateReport:
        """Runs an int8 graph on the held-out images.

        Raises:
            GraphError: it does not load.
        """
        low = self._detections(raw_graph(quantized, self.spec), "int8 detections", progress)
        kept = [d.filter(conf=self.conf) for d in low]
        detail = agree(self._truth, kept, names=("float32", "int8"), conf=self.conf)
        shifts = [
            b.confidence[j] - a.confidence[i]
            for a, b in zip(self._truth, kept, strict=True)
            for i, j in match(a, b, 0.5)
        ]
        return GateReport(detail, self._average_precision(low), float(np.mean(shifts)) if shifts else 0.0)

    def _detections(self, model: ModelProto, phase: str, progress: ProgressCallback | None) -> list[Detections]:
        runner = MapRunner(model, threads=self.threads)
        found: list[Detections] = []
        for number, batch in enumerate(self.batches):
            maps = runner.run(batch)
            size = input_size(batch, maps, self.spec)
            result = detect(maps, self.spec, conf=AP_CONF, iou=self.iou, max_det=self.max_det, threads=self.threads)
            for i in range(len(result.num_dets)):
                n, image = int(result.num_dets[i, 0]), len(found)
                found.append(
                    Detections(
                        result.det_boxes[i, :n],
                        result.det_scores[i, :n],
                        result.det_classes[i, :n].astype(np.int64),
                        self.spec.names,
                        size,
                        self._names[image] if image < len(self._names) else f"image {image + 1}",
                    )
                )
            if progress is not None:
                progress(phase, (number + 1) / len(self.batches))
        return found[: self._count]

    def _average_precision(self, found: Sequence[Detections]) -> tuple[ClassAgreement, ...]:
        classes = range(self.spec.num_classes)
        annotations: list[dict[str, Any]] = []
        for image, truth in enumerate(self._truth):
            annotations += [
                {**row, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], "id": len(annotations) + i + 1}
                for i, row in enumerate(truth.to_coco(image, list(classes)))
            ]
        names = {c: self.spec.name_of(c) for c in classes}
        data = CocoData(tuple(CocoImage(i, _NO_FILE) for i in range(len(found))), names, tuple(annotations))
        results = [row for i, d in enumerate(found) for row in d.to_coco(i, list(classes))]
        scores = mean_ap(data, results)
        labels = np.bincount(np.concatenate([t.class_id for t in self._truth]), minlength=len(classes))
        nan = float("nan")
        return tuple(
            ClassAgreement(names[c], int(n), float(scores[c].mean()), float(scores[c][0].mean()))
            if n
            else ClassAgreement(names[c], 0, nan, nan)
            for c, n in enumerate(labels)
        )


def measure(
    reference: ModelProto,
    quantized: ModelProto,
    batches: Iterable[Any],
    spec: HeadSpec | None = None,
    *,
    conf: float = 0.25,
    iou: float = 0.7,
    names: Sequence[str] = (),
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> GateReport:
    """Agreement of an int8 graph with its float32 original on held-out inputs.

    Args:
        reference, quantized: graphs of any form.
        batches, spec, conf, iou, names, threads, progress: as for `Gate`.

    Raises:
        InputError, GraphError, BackendUnavailable: as `Gate`.
    """
    gate = Gate(reference, batches, spec, conf=conf, iou=iou, names=names, threads=threads, progress=progress)
    return gate.measure(quantized, progress=progress)


def require(report: GateReport, min_agreement: float, sensitivity: Sensitivity | None = None) -> None:
    """Lets a report pass, or stops the build.

    Args:
        report: of the int8 graph.
        min_agreement: the least `GateReport.agreement`, 0 to 1.
        sensitivity: of the layers, so that the message can name the worst.

    Raises:
        BuildError: the agreement is lower.
        InputError: min_agreement is not from 0 to 1.
    """
    if not 0 <= min_agreement <= 1:
        raise InputError("min_agreement is out of range", received=min_agreement, expected="0 to 1")
    if report.passed(min_agreement):
        return
    fix = "Calibrate on more images like those in use, by another method, or search for layers to keep (auto_mixed)"
    if sensitivity is not None and sensitivity.layers:
        worst = ", ".join(f"{s.name} ({s.error:.4f})" for s in sensitivity.layers[:5])
        fix = (
            f"The layers that int8 hurts most are {worst}: keep them in higher precision. Or: {fix[0].lower()}{fix[1:]}"
        )
    raise BuildError(
        "The int8 graph does not agree with float32",
        received=f"AP50-95 {report.ap50_95:.4f}, F1@0.5 {report.f1_50:.4f} on {report.images} images",
        expected=f"at least {min_agreement:g}",
        fix=fix,
    )


def _number(value: float) -> float | None:
    return None if value != value else value
