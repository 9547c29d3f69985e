"""Where a figure comes from: the processor, the GPU, the versions, the command, and what else ran meanwhile."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Bystanders", "command", "machine", "versions"]

_EXTENSIONS = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd")


def machine() -> dict[str, Any]:
    """Processor, its vector extensions, how many of its cores this process may use, memory, system, GPUs."""
    model, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        model = fields.get("model name", model)
        flags = fields.get("flags", fields.get("Features", ""))
    result: dict[str, Any] = {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpus_online": os.cpu_count(),
        "extensions": [f for f in _EXTENSIONS if f in flags.split()],
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    with contextlib.suppress(ValueError, OSError, AttributeError):
        result["memory_GiB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    with contextlib.suppress(OSError):
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        result["governor"] = governor.read_text(encoding="utf-8").strip()
    from .meters import gpus

    found = gpus()
    if found:
        result["gpus"] = found
    return result


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages (names on the index) that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def command(argv: Sequence[str] | None = None) -> str:
    """The command line, with the script named by its folder and itself and other files by their names: no paths of the
    machine."""
    words = list(sys.argv if argv is None else argv)
    script = Path(words[0])
    if script.name in {"dhead-trt", "__main__.py"}:
        first = ["dhead-trt"]
    else:
        first = ["python", f"{script.parent.name}/{script.name}" if script.parent.name else script.name]
    rest = [Path(w).name if os.path.isabs(w) else w for w in words[1:]]
    return shlex.join([*first, *rest])


class Bystanders:
    """How many of the machine's processors others kept busy, since it was made: what a timing should be doubted by."""

    def __init__(self) -> None:
        self._start = self._read()

    def busy(self) -> float | None:
        """Mean number of processors that other processes used; None where the system does not tell."""
        now = self._read()
        if now is None or self._start is None or now[2] - self._start[2] < 0.05:
            return None
        wall = now[2] - self._start[2]
        return max(0.0, (now[0] - self._start[0] - (now[1] - self._start[1])) / wall)

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """(seconds busy on all processors, of them by this process and its children, clock)."""
        try:
            with open("/proc/stat", encoding="ascii") as f:
                fields = [int(v) for v in f.readline().split()[1:]]
            ticks = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return None
        busy = sum(fields[:8]) - fields[3] - fields[4]  # neither idle nor waiting for a disk
        own = sum(os.times()[:4])
        return busy / ticks, own, time.monotonic()
