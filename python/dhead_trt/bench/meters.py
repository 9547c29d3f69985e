"""Memory and energy, where the machine tells: /proc, NVML (package nvidia-ml-py), RAPL."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Protocol

__all__ = ["EnergyMeter", "NvmlEnergy", "RaplEnergy", "device_memory", "energy_meters", "gpus", "resident"]

_RAPL = Path("/sys/class/powercap")


def resident() -> dict[str, float] | None:
    """This process's memory in MiB: "rss", now, and "peak", the most it ever was; None where there is no /proc."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = {
        key: re.search(rf"^{field}:\s+(\d+) kB", text, re.M) for key, field in (("rss", "VmRSS"), ("peak", "VmHWM"))
    }
    return {key: int(m[1]) / 1024 for key, m in found.items() if m}


class EnergyMeter(Protocol):
    """Something that counts joules."""

    @property
    def name(self) -> str:
        """What it covers."""
        ...

    def start(self) -> None:
        """Begins to count."""
        ...

    def joules(self) -> float:
        """Since `start`."""
        ...


class RaplEnergy:
    """The energy counter of a processor's package, by Linux's powercap. It counts everything that runs there.

    Args:
        zone: folder of the zone, with `name`, `energy_uj` and `max_energy_range_uj`.

    Raises:
        OSError: it is not readable (usually for root only).
    """

    def __init__(self, zone: Path) -> None:
        self._counter = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._label = (zone / "name").read_text().strip()
        self._before = self._read()

    @property
    def name(self) -> str:
        """The zone."""
        return f"RAPL {self._label}"

    def start(self) -> None:
        """Begins to count."""
        self._before = self._read()

    def joules(self) -> float:
        """Since `start`; the counter may have wrapped around once."""
        return ((self._read() - self._before) % (self._range + 1)) / 1e6

    def _read(self) -> int:
        return int(self._counter.read_text())


class NvmlEnergy:
    """The energy counter of a GPU (Volta or newer). It counts everything that runs there.

    Args:
        nvml: the module pynvml, initialised.
        index: of the GPU.

    Raises:
        Exception: NVML's own, where this GPU has no counter.
    """

    def __init__(self, nvml: Any, index: int = 0) -> None:
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByIndex(index)
        self._index = index
        self._before = self._read()

    @property
    def name(self) -> str:
        """The GPU."""
        return f"NVML GPU {self._index}"

    def start(self) -> None:
        """Begins to count."""
        self._before = self._read()

    def joules(self) -> float:
        """Since `start`."""
        return (self._read() - self._before) / 1e3

    def _read(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def energy_meters(*, rapl: Path = _RAPL, index: int = 0) -> tuple[list[EnergyMeter], list[str]]:
    """The meters that work here, and why the others do not, one sentence each."""
    meters: list[EnergyMeter] = []
    missing: list[str] = []
    zones = sorted(z for z in rapl.glob("intel-rapl:*") if z.name.count(":") == 1) if rapl.is_dir() else []
    for zone in zones:
        try:
            meters.append(RaplEnergy(zone))
        except (OSError, ValueError) as e:  # noqa: PERF203 - one or two zones
            reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            missing.append(f"energy of the processor: {zone.name} cannot be read ({reason})")
    if not zones:
        missing.append("energy of the processor: this system shows no RAPL counters")
    nvml, reason = _nvml()
    if nvml is None:
        missing.append(f"energy of the GPU: {reason}")
    else:
        try:
            meters.append(NvmlEnergy(nvml, index))
        except Exception as e:  # NVML's own kinds: no counter on this GPU, not permitted, …
            missing.append(f"energy of the GPU: {e}")
    return meters, missing


def gpus() -> list[dict[str, Any]]:
    """Name, driver, memory and power limit of each GPU that NVML shows; empty without nvidia-ml-py or a GPU."""
    nvml, _ = _nvml()
    if nvml is None:
        return []
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu: dict[str, Any] = {
            "name": _text(nvml.nvmlDeviceGetName(handle)),
            "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        }
        with contextlib.suppress(Exception):  # not every GPU tells
            gpu["memory_GiB"] = round(nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 1)
        with contextlib.suppress(Exception):
            gpu["power_limit_W"] = nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3
        found.append(gpu)
    return found


def device_memory() -> float | None:
    """MiB of GPU memory that this process holds, over all GPUs; None where NVML does not tell."""
    nvml, _ = _nvml()
    if nvml is None:
        return None
    total, seen = 0.0, False
    for index in range(nvml.nvmlDeviceGetCount()):
        with contextlib.suppress(Exception):  # not permitted in some containers
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index)):
                if process.pid == os.getpid() and process.usedGpuMemory is not None:
                    total, seen = total + process.usedGpuMemory / 2**20, True
    return total if seen else None


def _nvml() -> tuple[Any, str]:
    """The module pynvml, initialised, or None and why."""
    try:
        import pynvml
    except ImportError:
        return None, 'nvidia-ml-py is not installed (pip install "dhead-trt[nvml]")'
    try:
        pynvml.nvmlInit()
    except Exception as e:  # no driver, no permission
        return None, f"NVML does not start: {e}"
    return pynvml, ""


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
