"""Automatic mixed precision: the fewest layers out of int8 that let the graph pass the accuracy gate."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import InputError
from ..files import atomic_path
from ..progress import ProgressCallback
from ..spec import HeadSpec
from ..tables import facts, table
from .gate import Gate, GateReport
from .sensitivity import IMAGES, Sensitivity, rank_layers

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..calibration import Ranges

__all__ = ["Mixed", "Trial", "search_mixed"]

MAX_TRIALS = 32
_SCHEMA = 1


class Quantized(Protocol):
    """What a quantizer returns, as `int8.Int8Conversion`."""

    @property
    def model(self) -> ModelProto: ...
    @property
    def quantized(self) -> tuple[str, ...]: ...
    @property
    def int8_macs(self) -> float: ...


class Trial(NamedTuple):
    """One mixture that was measured.

    Attributes:
        keep: layers in higher precision.
        int8_macs: share of the multiply-accumulates in int8, 0 to 1.
        agreement, ap50_95, f1_50: as of `GateReport`.
    """

    keep: tuple[str, ...]
    int8_macs: float
    agreement: float
    ap50_95: float
    f1_50: float


@dataclass(frozen=True)
class Mixed:
    """The mixture found, and the way to it.

    Attributes:
        keep: layers to leave in higher precision: `to_int8(model, ranges, keep=mixed.keep)` makes the graph again.
        min_agreement: what was asked for.
        best: the trial of `keep`.
        trials: all that were measured, in order; the first is everything in int8.
        sensitivity: of the layers; None where everything in int8 passes, so that no ranking was needed.
        hashes: of the model, ranges and data ("model_sha256", "data_sha256", …), as the caller knows them.
    """

    keep: tuple[str, ...]
    min_agreement: float
    best: Trial
    trials: tuple[Trial, ...]
    sensitivity: Sensitivity | None
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the mixture passes the gate."""
        return self.best.agreement >= self.min_agreement

    def render(self) -> str:
        """As text: the choice, the layers kept, the trials."""
        first, best = self.trials[0], self.best
        scores = f"AP50-95 {best.ap50_95:.4f}, F1@0.5 {best.f1_50:.4f}"
        text = facts(
            [
                ("mixed precision", f"{len(self.keep)} layers kept, {best.int8_macs:.1%} of the MACs in int8"),
                ("agreement", f"{best.agreement:.4f}, asked for {self.min_agreement:g} ({scores})"),
                ("all in int8", f"{first.agreement:.4f} at {first.int8_macs:.1%} of the MACs"),
            ]
        )
        if self.keep and self.sensitivity is not None:
            macs = {s.name: s.macs for s in self.sensitivity.layers}
            work = sum(macs.values()) or 1
            errors = self.sensitivity.error_of
            kept = [
                (n, f"{macs.get(n, 0) / work:.2%}", f"{errors(n):.5f}") for n in sorted(self.keep, key=errors)[::-1]
            ]
            text += "\n\n" + table(["kept layer", "of the MACs", "error alone"], kept, right=[1, 2])
        trials = [
            (i, len(t.keep), f"{t.int8_macs:.1%}", f"{t.ap50_95:.4f}", f"{t.f1_50:.4f}", self._passes(t))
            for i, t in enumerate(self.trials, 1)
        ]
        headers = ["trial", "kept", "int8 MACs", "AP50-95", "F1@0.5", "passes"]
        return f"{text}\n\n{table(headers, trials, right=[0, 1, 2, 3, 4])}"

    def _passes(self, trial: Trial) -> str:
        return "yes" if trial.agreement >= self.min_agreement else "no"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": _SCHEMA,
            "keep": list(self.keep),
            "min_agreement": self.min_agreement,
            "passed": self.passed,
            "best": _plain(self.best),
            "trials": [_plain(t) for t in self.trials],
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
            "hashes": dict(self.hashes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Mixed:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: it is not that.
        """
        try:
            if data["schema"] != _SCHEMA:
                raise ValueError(f"schema {data['schema']}")
            ranking = data["sensitivity"]
            return cls(
                tuple(map(str, data["keep"])),
                float(data["min_agreement"]),
                _trial(data["best"]),
                tuple(map(_trial, data["trials"])),
                None if ranking is None else Sensitivity.from_dict(ranking),
                dict(data["hashes"]),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise InputError(
                "This is no mixed-precision result", received=repr(e), expected="what to_dict wrote"
            ) from e

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes JSON, whole or not at all; returns the path."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, hashes: Mapping[str, str] | None = None) -> Mixed:
        """Reads what `save` wrote.

        Args:
            path: the file.
            hashes: those of now: a result with another value under one of these names is refused.

        Raises:
            InputError: it cannot be read, or is of another model or other data.
        """
        try:
            found = cls.from_dict(json.loads(Path(path).read_text("utf-8")))
        except (OSError, ValueError) as e:
            raise InputError("The mixed-precision result cannot be read", received=f"{path}: {e}") from e
        stale = [n for n, h in (hashes or {}).items() if found.hashes.get(n) != h]
        if stale:
            raise InputError(
                "The mixed-precision result is of something else",
                received=f"another {', '.join(stale)}",
                fix="Search again",
            )
        return found

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws agreement against the share of int8 MACs; see `mixed_plot.plot`."""
        from .mixed_plot import plot

        return plot(self, path)


def search_mixed(
    model: ModelProto,
    ranges: Ranges | None,
    batches: Iterable[Any] | Gate,
    spec: HeadSpec | None = None,
    *,
    min_agreement: float = 0.95,
    max_trials: int = MAX_TRIALS,
    rank_images: int = IMAGES,
    quantize: Callable[[Sequence[str]], Quantized] | None = None,
    rank: Callable[[], Sensitivity] | None = None,
    threads: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    hashes: Mapping[str, str] | None = None,
    progress: ProgressCallback | None = None,
) -> Mixed:
    """Finds the fewest layers (by MACs) to leave in higher precision for the graph to pass the gate.

    Everything in int8 is measured first. Where that does not pass, the layers are ranked by `rank_layers`, once; then
    the shortest passing beginning of the ranking is found by bisection, for two orders: by error, and by the square of
    the error for each MAC. Of the better one, layers that turn out not to be needed go back to int8, the largest first.
    Every step is measured with the real gate.

    Args:
        model: the float32 graph, of any form.
        ranges: its calibration; None with `quantize`.
        batches: inputs to measure on, as for `Gate`, or a Gate on `model`. Not those of the final gate, if that is to
            say something about other images.
        spec: the head; None: what the graph's metadata say.
        min_agreement: of the gate, 0 to 1.
        max_trials: at most so many mixtures are measured.
        rank_images: images that layers are ranked on, the first of the batches.
        quantize: makes the int8 graph from the layers to keep; default: `to_int8` with the ranges.
        rank: makes the ranking, where it is needed; default: `rank_layers` with everything in int8.
        threads: of ONNX Runtime.
        cache: folder of earlier rankings.
        hashes: what the result is of, to be kept in it.
        progress: called with a phase and the part done.

    Returns:
        The best mixture that passes. All layers in higher precision always do; see `Mixed.passed` where trials ran out.

    Raises:
        InputError: an argument is out of range, or there are no images.
        GraphError: a graph does not load.
    """
    if not 0 <= min_agreement <= 1:
        raise InputError("min_agreement is out of range", received=min_agreement, expected="0 to 1")
    if max_trials < 1:
        raise InputError("max_trials is out of range", received=max_trials, expected="at least 1")
    gate = batches if isinstance(batches, Gate) else Gate(model, batches, spec, threads=threads, progress=progress)
    make = quantize or _quantizer(model, ranges)
    whole = make(())
    search = _Search(gate, make, min_agreement, max_trials, progress)
    start, sensitivity = search.measure((), whole), None
    if start.agreement < min_agreement:
        sensitivity = rank() if rank is not None else rank_layers(
            gate.reference, whole.model, gate.batches, gate.spec, images=rank_images, threads=threads, cache=cache,
            progress=progress,
        )  # fmt: skip
        search.run(sensitivity, whole.quantized)
    best = search.best()
    return Mixed(best.keep, min_agreement, best, tuple(search.trials.values()), sensitivity, dict(hashes or {}))


class _Search:
    def __init__(
        self,
        gate: Gate,
        quantize: Callable[[Sequence[str]], Quantized],
        target: float,
        max_trials: int,
        progress: ProgressCallback | None,
    ) -> None:
        self.gate, self.quantize, self.target, self.room = gate, quantize, target, max_trials
        self.progress = progress
        self.trials: dict[frozenset[str], Trial] = {}

    def measure(self, keep: Sequence[str], made: Quantized | None = None) -> Trial:
        key = frozenset(keep)
        if key not in self.trials:
            self.room -= 1
            made = made or self.quantize(tuple(keep))
            report: GateReport = self.gate.measure(made.model)
            self.trials[key] = Trial(tuple(keep), made.int8_macs, report.agreement, report.ap50_95, report.f1_50)
            if self.progress is not None:
                done = len(self.trials)
                self.progress("mixed precision", done / (done + max(self.room, 0)))
        return self.trials[key]

    def run(self, sensitivity: Sensitivity, names: Sequence[str]) -> None:
        layers = [s for s in sensitivity.layers if s.name in set(names)]
        by_error = [s.name for s in layers]
        # errors of layers add up like those of independent noise: by their squares
        by_worth = [s.name for s in sorted(layers, key=lambda s: -(s.error**2) / max(s.macs, 1))]
        for order in (by_error, by_worth):
            self._bisect(order)
        macs = {s.name: s.macs for s in layers}
        again = True
        while again and self.room > 0:  # each pass begins from the best so far
            again, best = False, self.best()
            for name in sorted(best.keep, key=lambda n: -macs.get(n, 0)):
                if self.room <= 0:
                    break
                if self.measure([n for n in best.keep if n != name]).agreement >= self.target:
                    again = True
                    break

    def _bisect(self, order: Sequence[str]) -> None:
        """The shortest beginning of `order` that passes, where a longer one always does if a shorter one does."""
        low, high = 0, len(order)  # nothing kept does not pass; everything kept does
        while high - low > 1 and self.room > 0:
            middle = (low + high) // 2
            if self.measure(order[:middle]).agreement >= self.target:
                high = middle
            else:
                low = middle
        if high == len(order) and self.room > 0:
            self.measure(order)

    def best(self) -> Trial:
        """The passing trial of most int8 work (of those, the best agreement); where none passes, the best agreement."""
        passing = [t for t in self.trials.values() if t.agreement >= self.target]
        if passing:
            return max(passing, key=lambda t: (t.int8_macs, t.agreement))
        return max(self.trials.values(), key=lambda t: t.agreement)


def _quantizer(model: ModelProto, ranges: Ranges | None) -> Callable[[Sequence[str]], Quantized]:
    if ranges is None:
        raise InputError("There are no ranges to quantize with", fix="Give ranges, or quantize=")
    from .int8 import to_int8

    return lambda keep: to_int8(model, ranges, keep=keep)


def _plain(trial: Trial) -> dict[str, Any]:
    return {**trial._asdict(), "keep": list(trial.keep)}


def _trial(data: Mapping[str, Any]) -> Trial:
    numbers = (float(data[n]) for n in ("int8_macs", "agreement", "ap50_95", "f1_50"))
    return Trial(tuple(map(str, data["keep"])), *numbers)
