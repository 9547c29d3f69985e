"""Errors of one rung against the reference, their tolerances, and the report that holds all rungs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..spec import HeadSpec
from ..tables import facts, table

__all__ = ["TOLERANCES", "ParityReport", "Rung", "Stats", "Tolerance", "measure", "stats_of"]

Status = Literal["reference", "passed", "failed", "skipped"]

# Probabilities of which the report keeps the quantiles, for the plot: dense where the tail is.
QUANTILES = np.concatenate([np.linspace(0, 0.9, 46), 1 - np.logspace(-1, -5, 80)[1:], [1.0]])


@dataclass(frozen=True)
class Tolerance:
    """What a rung may be off by at most.

    Attributes:
        boxes: pixels of the network input, for coordinates up to 1024, in proportion beyond.
        scores: absolute.
        gate: None: every value of every anchor is held to the limits. A score: only anchors whose best score is above
            it on either side are, since nobody sees the others; all their boxes, and 99 of 100 of their scores, since
            a steep logit turns one rounding into a large step of a few scores.
        detections: share of the reference's detections that must be found again; as many of the others may be new.
            Less than 1, since equal scores and overlaps at the threshold fall either way. None: not compared.
    """

    boxes: float
    scores: float
    gate: float | None = None
    detections: float | None = 0.95


# By kind of rung, and precision. "decode": the same raw maps, decoded by other code. "network": ONNX Runtime runs the
# network too; two runs of it, with and without its optimiser, differ by up to 1e-2 px. "engine": a backend runs it, and
# its kernels may also sum in the reduced precision. bfloat16 has 8 times the rounding of half precision.
# What was measured: docs/parity.md.
TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("decode", "fp32"): Tolerance(2e-4, 1e-6, detections=None),  # detect has rungs of its own
    ("torch", "fp32"): Tolerance(2e-3, 1e-5, detections=None),
    ("network", "fp32"): Tolerance(0.05, 1e-4),
    ("network", "fp16"): Tolerance(0.5, 0.01, gate=0.25),
    ("engine", "fp32"): Tolerance(0.05, 1e-4),
    ("engine", "fp16"): Tolerance(1.0, 0.01, gate=0.25),
    ("engine", "bf16"): Tolerance(8.0, 0.08, gate=0.25),
    ("engine", "int8"): Tolerance(32.0, 0.25, gate=0.25, detections=0.8),  # what counts is the gate of the build
}


@dataclass(frozen=True)
class Stats:
    """The distribution of the absolute error of one output. Units: pixels for boxes, none for scores.

    Attributes:
        output: "boxes" or "scores".
        level: number of the pyramid level; None: all of them.
        max, mean, p999: inf where one side is finite and the other is not.
        count: values compared.
        quantiles: the error at each probability of `QUANTILES`.
    """

    output: str
    level: int | None
    max: float
    mean: float
    p999: float
    count: int
    quantiles: tuple[float, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; inf as the text "inf"."""
        values: dict[str, Any] = {"output": self.output, "level": self.level}
        for name in ("max", "mean", "p999"):
            number = getattr(self, name)
            values[name] = number if math.isfinite(number) else "inf"
        return values | {"count": self.count}


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        name: what ran: "core decode avx2", "openvino fp32", …
        status: "reference" (what the others are measured against), "passed", "failed" or "skipped".
        stats: errors over all levels and of each level; empty where it did not run.
        tolerance: what it may be off by; None where it did not run, or is the reference.
        reason: why it was skipped or failed; otherwise a remark, or empty.
        detections: how many detections of the reference it found again, and how many there are; None: not compared.
    """

    name: str
    status: Status
    stats: tuple[Stats, ...] = ()
    tolerance: Tolerance | None = None
    reason: str = ""
    detections: tuple[int, int] | None = None

    def of(self, output: str, level: int | None = None) -> Stats | None:
        """The stats of an output."""
        return next((s for s in self.stats if (s.output, s.level) == (output, level)), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "tolerance": None if self.tolerance is None else vars(self.tolerance),
            "detections": None if self.detections is None else {"found": self.detections[0], "of": self.detections[1]},
            "errors": [s.to_dict() for s in self.stats],
        }


@dataclass(frozen=True)
class ParityReport:
    """All rungs of a ladder.

    Attributes:
        model: what was examined.
        spec: its head.
        inputs: a sentence on the input that was used.
        rungs: in the order they ran; the first is the reference.
        facts: machine and versions.
    """

    model: str
    spec: HeadSpec
    inputs: str
    rungs: tuple[Rung, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """No rung failed, and at least one ran. Skipped rungs are not counted either way."""
        states = [r.status for r in self.rungs]
        return "failed" not in states and "passed" in states

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "model": self.model,
            "passed": self.passed,
            "spec": self.spec.to_dict(),
            "inputs": self.inputs,
            "rungs": [r.to_dict() for r in self.rungs],
            "facts": dict(self.facts),
        }

    def render(self, *, levels: bool = False) -> str:
        """The report as text: one line for each rung, with `levels` also one for each level."""
        rows: list[list[str]] = []
        for rung in self.rungs:
            for level in (None, *range(self.spec.num_levels)) if levels else (None,):
                pair = [rung.of(output, level) for output in ("boxes", "scores")]
                if pair == [None, None]:
                    continue
                row = [rung.name if level is None else f"  level {level}"]
                for s, output in zip(pair, ("boxes", "scores"), strict=True):
                    row += [""] * 3 if s is None else [_figure(v) for v in (s.max, s.mean, s.p999)]
                    limit = None if level is not None or rung.tolerance is None else getattr(rung.tolerance, output)
                    row.append("" if limit is None else f"{limit:g}")
                found = "" if rung.detections is None else "{} of {}".format(*rung.detections)
                rows.append([*row, *((found, rung.status) if level is None else ("", ""))])
        heads = [
            "rung",
            "box max",
            "mean",
            "p99.9",
            "limit",
            "score max",
            "mean",
            "p99.9",
            "limit",
            "detections",
            "result",
        ]
        lines = [f"Input: {self.inputs}"]
        lines += [f"Reference: {r.name}, {r.reason}" for r in self.rungs if r.status == "reference"]
        lines += ["Errors: boxes in pixels of the network input", "", table(heads, rows, right=range(1, 10))]
        for title, status in (("Failed", "failed"), ("Remarks", "passed"), ("Not run here, so not judged", "skipped")):
            chosen = [(r.name, r.reason) for r in self.rungs if r.status == status and r.reason]
            if chosen:
                lines += ["", f"{title}:", facts(chosen, indent="  ", wrap=True)]
        counts = {s: sum(r.status == s for r in self.rungs) for s in ("passed", "failed", "skipped")}
        lines += ["", "{passed} passed, {failed} failed, {skipped} not run here".format(**counts)]
        return "\n".join(lines)

    def save_json(self, path: str | Path) -> Path:
        """Writes `to_dict` as JSON, all of it or nothing."""
        import json

        from ..files import atomic_path

        with atomic_path(path) as temporary:
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return Path(path)


def measure(
    boxes: ArrayLike,
    scores: ArrayLike,
    reference: tuple[NDArray[np.float64], NDArray[np.float64]],
    spec: HeadSpec,
    shapes: Sequence[tuple[int, int]],
    tolerance: Tolerance,
) -> tuple[tuple[Stats, ...], str, str]:
    """Compares dense outputs with the reference's.

    Args:
        boxes, scores: [B, A, 4] and [B, A, C] of the rung.
        reference: the same of the reference, float64.
        spec: the head.
        shapes: (Hi, Wi) of each level.
        tolerance: what decides.

    Returns:
        Stats of boxes and scores, over all levels first, then of each; why it fails, empty if it does not; and what was
        judged, empty if that is everything.

    Raises:
        InputError: a shape is not the reference's.
    """
    errors: dict[str, NDArray[np.float64]] = {}
    for name, got, want in (("boxes", boxes, reference[0]), ("scores", scores, reference[1])):
        x = np.asarray(got).astype(np.float64)
        if x.shape != want.shape:
            raise InputError(f"Decoded {name} have the wrong shape", received=x.shape, expected=want.shape)
        errors[name] = _error(x, want)
    bounds = np.cumsum([0, *(h * w for h, w in shapes)])
    stats = [stats_of(name, None, e) for name, e in errors.items()]
    for level in range(spec.num_levels):
        part = slice(bounds[level], bounds[level + 1])
        stats += [stats_of(name, level, e[:, part]) for name, e in errors.items()]

    relative, of_scores = errors["boxes"] / np.maximum(1, _magnitude(reference[0]) / 1024), errors["scores"]
    judged = ""
    if tolerance.gate is None:
        worst = {"box": float(relative.max(initial=0)), "score": float(of_scores.max(initial=0))}
    else:
        best = np.fmax(reference[1], np.asarray(scores).astype(np.float64)).max(axis=2, initial=-1)
        seen = best > tolerance.gate
        score = float(np.quantile(of_scores[seen], 0.99, method="higher")) if seen.any() else 0.0
        worst = {"box": float(relative[seen].max(initial=0)), "score": score}
        judged = (
            f"{int(seen.sum())} anchors score above {tolerance.gate:.2g}: their boxes are at most "
            f"{_figure(worst['box'])} px off, 99% of their scores at most {_figure(score)}"
        )
    limits = {"box": tolerance.boxes, "score": tolerance.scores}
    problems = [
        f"largest {name} error {_figure(worst[name])}{' px' if name == 'box' else ''}, limit {limit:g}"
        for name, limit in limits.items()
        if not worst[name] <= limit
    ]
    return tuple(stats), "; ".join(problems), judged


def _error(got: NDArray[np.float64], want: NDArray[np.float64]) -> NDArray[np.float64]:
    """|got - want|; 0 where both are the same non-finite value, inf where they differ in being finite."""
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    error[same] = 0
    error[np.isnan(error)] = np.inf
    return error


def _magnitude(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    magnitude: NDArray[np.float64] = np.where(np.isfinite(boxes), np.abs(boxes), 0).max(
        axis=-1, keepdims=True, initial=0
    )
    return magnitude


def stats_of(output: str, level: int | None, error: NDArray[np.float64]) -> Stats:
    """Stats of absolute errors; the quantiles are kept where they are over all levels."""
    flat = error.ravel()
    if flat.size == 0:
        return Stats(output, level, 0.0, 0.0, 0.0, 0)
    kept: tuple[float, ...] = ()
    if level is None:
        kept = tuple(float(q) for q in np.quantile(flat, QUANTILES, method="higher"))
    p999 = float(np.quantile(flat, 0.999, method="higher"))
    return Stats(output, level, float(flat.max()), float(flat.mean()), p999, flat.size, kept)


def _figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.2e}" if value < 1e-2 else f"{value:.3f}"
