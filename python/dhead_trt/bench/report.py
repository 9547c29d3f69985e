"""What a run of `bench` found: as objects, as text, as JSON."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..progress import duration
from ..tables import facts, table
from .statistics import Latency, Ratio, Steadiness

__all__ = ["CLOCKS", "BenchReport", "Cell", "Clock", "Comparison"]

SCHEMA = 1
CLOCKS = {
    "engine": "the network alone",
    "tensors": "network input → detections (Engine.infer)",
    "images": "images in memory → detections (Detector)",
}
_TOP_LAYERS = 12


@dataclass
class Clock:
    """One clock of one cell.

    Attributes:
        latency: of a call, over the rounds that count.
        images_per_second: batch / mean latency, calls one after another.
        rounds_ms: the median call of each round that counts.
        samples_ms: all calls of these rounds.
        steady: of all rounds.
    """

    latency: Latency
    images_per_second: float
    rounds_ms: list[float]
    samples_ms: list[float]
    steady: Steadiness

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; times to the tenth of a microsecond."""
        return {
            "latency_ms": self.latency.to_dict(),
            "images_per_second": self.images_per_second,
            "steady": self.steady.to_dict(),
            "rounds_ms": [round(v, 4) for v in self.rounds_ms],
            "samples_ms": [round(v, 4) for v in self.samples_ms],
        }


@dataclass
class Cell:
    """One model at one batch size and number of threads.

    Attributes:
        model: its name in the report.
        backend, precision, form: as its file says.
        computes_in: the precision it really computes in here.
        device: where it runs.
        batch: images of a call.
        threads: CPU threads; None: the backend's choice.
        clocks: by name (`CLOCKS`).
        stages: mean milliseconds of a call by stage.
        stages_of: the clock that these stages add up to.
        detections: found in the last call.
        input: shapes of the network's input.
        notes: what a person should know of how it runs.
        layers: (name, kind, mean ms), slowest first; measured apart.
        memory: MiB.
        energy: by meter: joules_per_image, watts.
        others_busy: processors that other processes kept busy meanwhile.
    """

    model: str
    backend: str
    precision: str
    computes_in: str
    device: str
    form: str
    batch: int
    threads: int | None
    clocks: dict[str, Clock]
    stages: dict[str, float]
    stages_of: str
    detections: int
    input: dict[str, list[int]]
    notes: list[str] = field(default_factory=list)
    layers: list[tuple[str, str, float]] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    energy: dict[str, dict[str, float]] = field(default_factory=dict)
    others_busy: float | None = None
    contestant: Any = None  # while it is measured

    @property
    def label(self) -> str:
        """The model, and its threads where they were chosen."""
        return self.model if self.threads is None else f"{self.model}, {_threads(self.threads)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = (
            "model", "backend", "precision", "computes_in", "device", "form", "batch", "threads", "stages_of",
            "detections", "input", "notes", "memory", "energy", "others_busy",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in plain},
            "stages_ms": self.stages,
            "clocks": {name: clock.to_dict() for name, clock in self.clocks.items()},
            "layers": [{"name": n, "kind": k, "ms": ms} for n, k, ms in self.layers],
        }


@dataclass(frozen=True)
class Comparison:
    """The ratio of two cells of one batch size; `what` differs between them: "model" or "threads"."""

    what: str
    clock: str
    batch: int
    model: str
    threads: int | None
    base: str
    base_threads: int | None
    ratio: Ratio

    @property
    def faster(self) -> Ratio:
        """How many times as fast as the base."""
        return self.ratio.inverse()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        names = ("what", "clock", "batch", "model", "threads", "base", "base_threads")
        return {
            **{name: getattr(self, name) for name in names},
            "time_ratio": self.ratio.to_dict(),
            "times_as_fast": self.faster.to_dict(),
        }


@dataclass
class BenchReport:
    """Everything a run found, and where.

    Attributes:
        command, started, seconds: what was run, when (seconds since 1970) and for how long.
        machine, versions, options: see `machine`, `versions` and the arguments of `bench`.
        cells: in the order they were measured.
        comparisons: of cells.
        not_run: one sentence for each thing that was asked for and not measured.
    """

    command: str
    started: float
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def settled(self) -> bool:
        """False where some clock never settled."""
        return not list(self._unsettled())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "date": datetime.datetime.fromtimestamp(self.started, datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "machine": self.machine,
            "versions": self.versions,
            "options": self.options,
            "clocks": CLOCKS,
            "cells": [c.to_dict() for c in self.cells],
            "comparisons": [c.to_dict() for c in self.comparisons],
            "not_run": self.not_run,
        }

    def render(self) -> str:
        """Tables for a terminal."""
        parts = [self._header(), self._latencies(), self._stages()]
        parts += [self._comparisons(), self._resources(), self._layers(), self._remarks()]
        return "\n\n".join(p for p in parts if p)

    def origin(self) -> str:
        """Command, machine and versions, in three lines."""
        return facts(
            [
                ("command", self.command),
                ("machine", machine_line(self.machine)),
                ("versions", versions_line(self.versions)),
            ]
        )

    def _header(self) -> str:
        o = self.options
        images = f"{o['image_count']} {o['images']}, {', '.join(o['image_shapes'])}"
        return self.origin() + "\n" + facts([("images  ", images), ("took    ", duration(self.seconds))])

    def _latencies(self) -> str:
        rows = []
        for cell in self.cells:
            for name, clock in cell.clocks.items():
                one = clock.latency
                rows.append([
                    cell.model, cell.computes_in, cell.batch, cell.threads or "-", name,
                    *(_ms(v) for v in (one.p50, one.p90, one.p95, one.p99, one.max)),
                    one.calls, _rate(clock.images_per_second),
                ])  # fmt: skip
        headers = [
            "model",
            "in",
            "batch",
            "threads",
            "clock",
            "p50 ms",
            "p90",
            "p95",
            "p99",
            "max",
            "calls",
            "images/s",
        ]
        used = {name for c in self.cells for name in c.clocks}
        legend = "; ".join(f"{name}: {what}" for name, what in CLOCKS.items() if name in used)
        return table(headers, rows, right=[2, 3, *range(5, 12)]) + f"\n{legend}"

    def _stages(self) -> str:
        names = list(dict.fromkeys(stage for c in self.cells for stage in c.stages))
        rows = []
        for cell in self.cells:
            total = sum(cell.stages.values())
            shares = [
                f"{_ms(cell.stages[n])} ({cell.stages[n] / total:.0%})" if n in cell.stages else "-" for n in names
            ]
            rows.append([cell.model, cell.batch, cell.threads or "-", cell.stages_of, *shares, cell.detections])
        heads = ["model", "batch", "threads", "clock", *names, "detections"]
        text = table(heads, rows, right=[1, 2, *range(4, len(heads))])
        return "Mean milliseconds by stage, and detections of a call\n" + text

    def _comparisons(self) -> str:
        rows = []
        for c in self.comparisons:
            fast = c.faster
            span = "too few rounds" if fast.low is None else f"{fast.low:.3f} – {fast.high:.3f}"
            who = c.model if c.what == "model" else f"{c.model}, {_threads(c.threads)}"
            base = c.base if c.what == "model" else _threads(c.base_threads)
            shared = f"{c.threads or '-'}" if c.what == "model" else ""
            verdict = "" if fast.low is None else "" if fast.differs else "no difference seen"
            rows.append([who, base, c.batch, shared, c.clock, f"{fast.value:.3f}", span, fast.rounds, verdict])
        if not rows:
            return ""
        percent = f"{self.comparisons[0].ratio.confidence:.0%}"
        heads = ["model", "against", "batch", "threads", "clock", "times as fast", f"{percent} interval", "rounds", ""]
        text = table(heads, rows, right=[2, 3, 5, 6, 7])
        return "Paired by round (geometric mean; bootstrap of the rounds)\n" + text

    def _resources(self) -> str:
        rows = []
        for cell in self.cells:
            m = cell.memory
            joules = [f"{v['joules_per_image']:.3g} J ({v['watts']:.0f} W, {name})" for name, v in cell.energy.items()]
            if "rss_MiB" not in m and not joules:
                continue
            rows.append([
                cell.model, cell.batch, cell.threads or "-",
                *(f"{m[k]:.0f}" if k in m else "-" for k in ("before_MiB", "rss_MiB", "peak_MiB", "device_MiB")),
                "; ".join(joules) or "-",
            ])  # fmt: skip
        if not rows:
            return ""
        heads = ["model", "batch", "threads", "before", "loaded", "peak", "on device", "energy per image"]
        return "Memory of a process of its own, MiB\n" + table(heads, rows, right=range(1, 7))

    def _layers(self) -> str:
        parts = []
        for cell in self.cells:
            if cell.layers:
                total = sum(ms for _, _, ms in cell.layers)
                rows = [[n, k, f"{ms:.3f}", f"{ms / total:.1%}"] for n, k, ms in cell.layers[:_TOP_LAYERS]]
                rest = cell.layers[_TOP_LAYERS:]
                if rest:
                    ms = sum(ms for _, _, ms in rest)
                    rows.append([f"{len(rest)} others", "", f"{ms:.3f}", f"{ms / total:.1%}"])
                title = f"Layers of {cell.label}, batch {cell.batch}: {total:.2f} ms in all, measured apart"
                parts.append(f"{title}\n" + table(["layer", "kind", "ms", "share"], rows, right=[2, 3]))
        return "\n\n".join(parts)

    def _remarks(self) -> str:
        lines = [f"{c.label}: {note}" for c in self.cells for note in c.notes]
        lines += self._unsettled()
        left = {s.steady.start for c in self.cells for s in c.clocks.values()} - {0}
        if left:
            lines.append(f"the first {max(left)} rounds were left out: not steady yet")
        busy = max((c.others_busy or 0.0 for c in self.cells), default=0.0)
        if busy > 0.25:
            lines.append(
                f"other processes kept {busy:.1f} of the machine's processors busy: trust ratios more than times"
            )
        lines += [f"not measured: {reason}" for reason in self.not_run]
        if any(clock.latency.p99 is None for c in self.cells for clock in c.clocks.values()):
            lines.append("-: too few calls for that percentile (p90: 10, p95: 20, p99: 100)")
        return "\n".join(f"note: {line}" for line in dict.fromkeys(lines))

    def _unsettled(self) -> Iterator[str]:
        for cell in self.cells:
            for name, clock in cell.clocks.items():
                if name != "engine" and not clock.steady.settled:
                    yield f"{cell.label}, batch {cell.batch}, {name}: {clock.steady.describe()}"


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    extensions = f" ({', '.join(machine['extensions'])})" if machine.get("extensions") else ""
    gpus = "".join(f", {g['name']} (driver {g['driver']})" for g in machine.get("gpus", []))
    load = f", load {machine['load_average']:.1f}" if machine.get("load_average") is not None else ""
    online = machine.get("cpus_online")
    of = f" of {online}" if online not in (None, machine["cpus"]) else ""
    return f"{machine['cpu']}, {machine['cpus']}{of} cores{extensions}{gpus}, {machine['system']}{load}"


def versions_line(versions: dict[str, str]) -> str:
    """The versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _threads(count: int | None) -> str:
    return "default threads" if count is None else f"{count} thread{'' if count == 1 else 's'}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
