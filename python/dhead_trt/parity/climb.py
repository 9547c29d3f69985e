"""The rungs: each runs one way of computing, measures it against the reference, and records what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import reference
from ..artifact import Artifact
from ..errors import BackendUnavailable
from ..progress import ProgressCallback
from ..spec import HeadSpec
from .detections import match, pair, threshold_for
from .measure import TOLERANCES, Rung, Stats, Tolerance, measure, stats_of

__all__ = ["Climb", "Work"]

Arrays = dict[str, NDArray[Any]]
Work = Callable[[], tuple[Any, Any]]  # returns boxes [B, A, 4] and scores [B, A, C]

# How like the reference's a detection must be to be found again: (least IoU, largest difference of scores).
_SAME = (0.99, 1e-3)
_SIMILAR = (0.9, 0.05)  # in reduced precision


class Climb:
    """One input, one reference, and the rungs measured so far.

    Args:
        spec: the head.
        feeds: inputs by name.
        maps: raw maps that the reference decodes; kept as float32.
        conf, iou: of the detections that are compared; `self.conf` is what was used.
        threads: of the C++ core and engines.
        tell: told which rung runs.
    """

    def __init__(
        self, spec: HeadSpec, feeds: Arrays, maps: Arrays, *, conf: float, iou: float, threads: int | None,
        tell: ProgressCallback,
    ) -> None:  # fmt: skip
        self.spec, self.feeds, self.tell, self.threads, self.iou = spec, feeds, tell, threads, iou
        self.maps = {n: np.ascontiguousarray(maps[n], dtype=np.float32) for n in spec.input_names}
        self.shapes = [tuple(self.maps[f"box_{i}"].shape[2:]) for i in range(spec.num_levels)]
        self.decoded = reference.decode(self.maps, spec)
        self.asked, self.conf = conf, threshold_for(self.decoded[1], conf)
        self.rungs: list[Rung] = []

    def reference(self, remark: str) -> None:
        """Lists the reference itself."""
        self.rungs.append(Rung("oracle (float64)", "reference", reason=remark))

    def skip(self, name: str, reason: str) -> None:
        """Lists a rung that cannot run here."""
        self.rungs.append(Rung(name, "skipped", reason=" ".join(reason.split())))

    def dense(self, name: str, tolerance: Tolerance, work: Work, remark: str = "") -> None:
        """Runs `work` and compares every anchor, and the detections that follow from them."""
        self.tell(f"rung: {name}", None)
        try:
            boxes, scores = work()
        except BackendUnavailable as e:
            self.skip(name, str(e))
            return
        against = self.decoded
        if tolerance.gate is not None and tolerance.gate > self.conf:
            tolerance = replace(tolerance, gate=self.conf)
        stats, problem, judged = measure(boxes, scores, against, self.spec, self.shapes, tolerance)
        overlap, slack = _SAME if tolerance.gate is None else _SIMILAR
        found = None
        if tolerance.detections is not None:
            m = match((boxes, scores), against, conf=self.conf, iou=self.iou, overlap=overlap, slack=slack)
            found = (m.found, m.wanted)
            if m.found < tolerance.detections * m.wanted or m.extra > max(1, (1 - tolerance.detections) * m.wanted):
                lost = f"{m.found} of {m.wanted} detections found again, {m.extra} others"
                problem = "; ".join(filter(None, [problem, lost]))
        remark = "; ".join(filter(None, [judged, remark]))
        self._add(name, tolerance, stats, problem, found, remark)

    def core(self) -> None:
        """Our C++ decode at each SIMD level, on float32 and float16 maps; and its detect, against the oracle's."""
        from .. import postprocess

        tolerance = TOLERANCES["decode", "fp32"]
        levels = postprocess.simd_levels()
        for level in levels:
            self.dense(
                f"C++ decode {level}",
                tolerance,
                lambda level=level: postprocess.decode(self.maps, self.spec, threads=self.threads, simd=level),  # type: ignore[misc]
            )
        for level in levels:
            self.filtered(
                f"C++ detect {level}",
                lambda level=level, **options: postprocess.detect(
                    self.maps, self.spec, threads=self.threads, simd=level, **options
                ),
            )
        self.half(
            f"C++ decode {levels[-1]}, fp16 maps",
            lambda maps: postprocess.decode(maps, self.spec, threads=self.threads),
        )

    def cuda(self) -> None:
        """The CUDA kernels, where there is a GPU; else they and the plugin are listed, with the reason."""
        from .gpu import cuda_rungs

        cuda_rungs(self)

    def engine(self, artifact: Artifact, name: str = "") -> None:
        """An engine, with our decode behind it."""
        from ..engine import Engine

        name = name or f"{artifact.backend} {artifact.precision}"
        self.tell(f"rung: {name}", None)
        try:
            output = "detections" if artifact.form == "detections" else "decoded"
            engine = Engine(artifact.plan, output=output, threads=self.threads)
        except BackendUnavailable as e:
            self.skip(name, f"{artifact.plan.name}: {e}")
            return
        with engine:
            # weights kept in half precision are rounded, whatever the engine computes in
            precision = artifact.precision if artifact.precision == "fp16" else engine.precision
            tolerance = TOLERANCES["engine", precision]
            feeds = {t.name: x.astype(t.dtype) for t, x in zip(engine.inputs, self.feeds.values(), strict=True)}
            if output == "detections":
                self._plan_detections(name, tolerance, engine.infer(feeds), "; ".join(engine.notes))
                return

            def work() -> tuple[Any, Any]:
                found = engine.infer(feeds)
                return found["boxes"], found["scores"]

            self.dense(name, tolerance, work, "; ".join(engine.notes))

    def openvino(self, graph: Any, precision: str, folder: Path) -> None:
        """An OpenVINO engine built for the occasion from the raw graph."""
        from ..build import build

        name = f"openvino {precision}"
        self.tell(f"rung: {name}", None)
        batch = next(iter(self.feeds.values())).shape[0]
        try:
            plan = folder / f"parity-{precision}.xml"
            artifact = build(graph, "openvino", output=plan, precision=precision, batch=batch, verify=False)
        except BackendUnavailable as e:
            self.skip(name, str(e))
            return
        self.engine(artifact, name)

    def other_backends(self, seen: set[str]) -> None:
        """Lists the backends of which there is no engine."""
        from ..backends import available_backends

        for name, state in available_backends().items():
            if name not in seen:
                self.skip(name, state.reason if not state.can_run else "no engine of it was given")

    def _plan_detections(self, name: str, tolerance: Tolerance, got: Arrays, notes: str) -> None:
        """Detections of a plan that holds the NMS: its thresholds are fixed, and must be those asked for."""
        want = reference.detect(self.maps, self.spec, conf=self.asked, iou=self.iou)
        if not want.num_dets.any():
            reason = f"the plan gives detections only, and nothing scores above {self.asked:g}: give it an --input"
            self.skip(name, reason)
            return
        overlap, slack = _SAME if tolerance.gate is None else _SIMILAR
        rows = reference.OracleDetections(
            got["num_dets"], got["det_boxes"].astype(np.float64), got["det_scores"].astype(np.float64),
            got["det_classes"], want.dropped, want.anchors,
        )  # fmt: skip
        m = pair(rows, want, conf=self.asked, overlap=overlap, slack=slack)
        stats: tuple[Stats, ...] = (stats_of("boxes", None, m.box_errors), stats_of("scores", None, m.score_errors))
        share, problem = tolerance.detections or 1.0, ""
        if m.found < share * m.wanted or m.extra > max(1, (1 - share) * m.wanted):
            problem = f"{m.found} of {m.wanted} detections found again, {m.extra} others"
        remark = f"the plan's own NMS, taken to be built with conf {self.asked:g} and IoU {self.iou:g}"
        self._add(name, tolerance, stats, problem, (m.found, m.wanted), "; ".join(filter(None, [remark, notes])))

    def half(self, name: str, decode: Callable[[Arrays], tuple[Any, Any]]) -> None:
        """Runs `decode` on float16 maps, and compares every anchor with the oracle's on the same ones."""
        tolerance = TOLERANCES["decode", "fp32"]
        with np.errstate(over="ignore"):
            maps = {n: x.astype(np.float16) for n, x in self.maps.items()}
        self.tell(f"rung: {name}", None)
        boxes, scores = decode(maps)
        stats, problem, _ = measure(boxes, scores, reference.decode(maps, self.spec), self.spec, self.shapes, tolerance)
        self._add(name, tolerance, stats, problem, None, "against the oracle on the same fp16 maps")

    def filtered(self, name: str, detect: Callable[..., Any]) -> None:
        """Runs `detect(conf=, iou=)`, a DetectResult, against the oracle's on the same maps: the same set and order."""
        self.tell(f"rung: {name}", None)
        options = {"conf": self.conf, "iou": self.iou}
        want = reference.detect(self.maps, self.spec, **options)  # type: ignore[arg-type]
        got = detect(**options)
        rows = reference.OracleDetections(
            got.num_dets, got.det_boxes.astype(np.float64), got.det_scores.astype(np.float64), got.det_classes,
            want.dropped, want.anchors,
        )  # fmt: skip
        m = pair(rows, want, conf=self.conf, overlap=0.9, slack=1e-5)
        tolerance = TOLERANCES["decode", "fp32"]
        stats: tuple[Stats, ...] = (stats_of("boxes", None, m.box_errors), stats_of("scores", None, m.score_errors))
        problems = []
        if m.found != m.wanted or m.extra:
            problems.append(f"{m.found} of {m.wanted} detections found again, {m.extra} others")
        reach = max(1.0, float(np.abs(want.boxes).max(initial=0)) / 1024)
        for s, limit in zip(stats, (tolerance.boxes * reach, tolerance.scores), strict=True):
            if not s.max <= limit:
                problems.append(f"largest error of {s.output} {s.max:.2e}, limit {limit:g}")
        self._add(name, tolerance, stats, "; ".join(problems), (m.found, m.wanted), "")

    def _add(
        self, name: str, tolerance: Tolerance, stats: tuple[Stats, ...], problem: str, found: tuple[int, int] | None,
        remark: str,
    ) -> None:  # fmt: skip
        status = "failed" if problem else "passed"
        self.rungs.append(Rung(name, status, stats, tolerance, problem or remark, found))  # type: ignore[arg-type]
