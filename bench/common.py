"""What every benchmark shares: interleaved timing, the machine, the versions, the JSON record."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


def machine() -> dict[str, Any]:
    """Processor, its vector extensions, how many this process may use, system."""
    model, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        model = fields.get("model name", model)
        flags = fields.get("flags", fields.get("Features", ""))
    wanted = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd")
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "extensions": [f for f in wanted if f in flags.split()],
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": os.getloadavg()[0],
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def command() -> str:
    """The command line, without machine paths."""
    script = Path(sys.argv[0])
    return " ".join(["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]])


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes `record` to a temporary name, then renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        file.write(json.dumps(record, indent=2) + "\n")
    os.replace(file.name, path)
