"""What every benchmark shares: interleaved timing, the machine, the versions, the JSON record."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dhead_trt.bench.machine import command, machine, versions
from dhead_trt.files import atomic_path

__all__ = ["Ratio", "Timing", "command", "interleave", "machine", "ratio", "versions", "write_json"]


@dataclass
class Timing:
    """Milliseconds of single calls, and the median of each turn."""

    samples: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    def to_dict(self) -> dict[str, float | int]:
        return {"median_ms": self.median, "min_ms": self.minimum, "calls": len(self.samples)}


@dataclass(frozen=True)
class Ratio:
    """How many times faster, with the bounds of a 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"

    def to_dict(self) -> dict[str, float]:
        return {"ratio": self.value, "low": self.low, "high": self.high}


def ratio(theirs: Timing, ours: Timing, resamples: int = 2000) -> Ratio:
    """Median over the turns of theirs / ours, each pair measured right after one another; bounds by bootstrap over the
    turns (2.5 % and 97.5 %)."""
    pairs = np.array(theirs.turns) / np.array(ours.turns)
    drawn = np.random.default_rng(0).integers(0, len(pairs), (resamples, len(pairs)))
    low, high = np.percentile(np.median(pairs[drawn], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(pairs)), float(low), float(high))


def interleave(
    runs: Mapping[str, Callable[[], object]], rounds: int, slice_ms: float = 40.0, pause_s: float = 0.0
) -> dict[str, Timing]:
    """Times `runs` in turn, `rounds` times, so that all see the same machine.

    Each turn calls its function once unmeasured (its caches are then warm), then measured for about `slice_ms`, at
    least 3 times. `pause_s` before each turn lets threads that another left spinning (ONNX Runtime's) go to sleep.
    """
    timings = {name: Timing() for name in runs}
    for run in runs.values():  # threads, compilation, first touch of memory
        run()
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(pause_s)
            run()
            end = time.perf_counter() + slice_ms / 1e3
            turn: list[float] = []
            while len(turn) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                turn.append((time.perf_counter() - start) * 1e3)
            timings[name].samples += turn
            timings[name].turns.append(statistics.median(turn))
    return timings


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes `record`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
