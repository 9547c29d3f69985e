"""What every benchmark shares: interleaved timing, the machine, the versions, the JSON record."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dhead_trt.bench.machine import command, machine, versions
from dhead_trt.files import atomic_path

__all__ = ["Timing", "command", "interleave", "machine", "versions", "write_json"]


@dataclass
class Timing:
    """Milliseconds of single calls."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    def to_dict(self) -> dict[str, float | int]:
        return {"median_ms": self.median, "min_ms": self.minimum, "calls": len(self.samples)}


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int, slice_ms: float = 40.0) -> dict[str, Timing]:
    """Times `runs` in turn, `rounds` times, so that all see the same machine.

    Each turn calls its function once unmeasured (its caches are then warm), then measured for about `slice_ms`, at
    least 3 times.
    """
    timings = {name: Timing() for name in runs}
    for run in runs.values():  # threads, compilation, first touch of memory
        run()
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            end = time.perf_counter() + slice_ms / 1e3
            calls = 0
            while calls < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                run()
                timings[name].samples.append((time.perf_counter() - start) * 1e3)
                calls += 1
    return timings


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes `record`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
