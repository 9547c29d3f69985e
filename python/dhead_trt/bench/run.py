"""The measurement: warm-up, interleaved rounds in random order, then memory, energy and layers."""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..backends.base import silent
from ..errors import InputError
from ..progress import ProgressCallback
from .footprint import footprint
from .machine import Bystanders, command, machine, versions
from .meters import energy_meters, resident
from .report import CLOCKS, BenchReport, Cell, Clock, Comparison
from .statistics import Latency, Steadiness, paired_ratio, round_medians, steadiness
from .subjects import Image, Model, Options, Stages, Subject, prepare, sample_images, tensors

__all__ = ["bench"]

_SLICE_MS = 40.0  # a turn lasts about so long
_MOST_CALLS = 100  # in a turn
_FEWEST_ROUNDS, _MOST_ROUNDS = 8, 100
_PACKAGES = (
    "numpy", "openvino", "onnxruntime", "onnx", "tensorrt", "tensorrt-rtx-cu13", "nvidia-ml-py",
)  # fmt: skip


def bench(
    models: Sequence[str | os.PathLike[str]],
    *,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    images: Sequence[Image] | None = None,
    seconds: float = 5.0,
    rounds: int | None = None,
    warmup: float = 1.0,
    end_to_end: bool = True,
    layers: bool = False,
    memory: bool = True,
    energy: bool = True,
    device: str | None = None,
    image_size: tuple[int, int] | None = None,
    conf: float = 0.25,
    iou: float = 0.7,
    max_det: int = 300,
    confidence: float = 0.95,
    seed: int = 0,
    engine_options: dict[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> BenchReport:
    """Measures engines, and ONNX graphs in ONNX Runtime, side by side.

    For each batch size all models, at all numbers of threads, take turns, in an order that is drawn anew each round, so
    that what the machine does meanwhile meets all alike. A turn is one unmeasured call and then calls for about 40 ms,
    of each clock: "engine", the network alone; "tensors", `Engine.infer` from the network's input to detections;
    "images", the Detector from uint8 images in memory to detections on them.

    Args:
        models: plans (or sidecars) of engines, and ONNX files, which run in ONNX Runtime with this package's letterbox,
            decode and NMS around them. The first is the baseline of the comparisons.
        batches: images of a call; None: the smallest each model takes.
        threads: CPU threads of network, letterbox and decode; None: each one's own choice.
        images: uint8 [height, width, 3] arrays; None: drawn ones.
        seconds: of measured turns for each model and number of threads, at each batch size; not fewer than 8 rounds.
        rounds: how many rounds instead.
        warmup: seconds of calls before the first round, for each.
        end_to_end: also the clock "images".
        layers: also the time of every layer, of engines that tell.
        memory: also the memory of a process that opens the model and calls it three times.
        energy: also joules per image, where RAPL or NVML can be read.
        device: of the engines, in the backend's words.
        image_size: (height, width) of the network input where a model leaves it open.
        conf, iou, max_det: as in `Engine.infer`.
        confidence: of the intervals of ratios.
        seed: of the order and of the bootstrap.
        engine_options: more options for `Engine`.
        progress: called with the phase and the part of it that is done.

    Raises:
        InputError: no model, an option out of range, or a batch that no model takes.
        ArtifactError, GraphError, BackendUnavailable: a model cannot be used here.
    """
    _check(batches, threads, seconds, rounds, warmup, confidence)
    say = progress or silent
    started = time.time()
    options = Options(device, image_size, conf, iou, max_det, engine_options)
    pictures = list(images) if images is not None else sample_images()
    if not pictures:
        raise InputError("There are no images", received="an empty list")
    report = BenchReport(
        command=command(),
        started=started,
        machine=machine(),
        versions={"dhead_trt": __version__, **versions(*_PACKAGES)},
        options={
            "seconds": seconds, "rounds": rounds, "warmup": warmup, "conf": conf, "iou": iou, "max_det": max_det,
            "seed": seed, "images": "drawn" if images is None else "given", "image_count": len(pictures),
            "image_shapes": sorted({f"{im.shape[1]}x{im.shape[0]}" for im in pictures}),
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="dhead-bench-") as folder, ExitStack() as stack:
        say("looking at the models", None)
        found = prepare(models, Path(folder))
        runners: list[tuple[Model, int | None, Subject]] = []
        for model in found:
            for count in threads or (None,):
                say(f"loading {model.name}", None)
                subject = model.open(count, options)
                stack.callback(subject.close)
                runners.append((model, count, subject))
        plan = _Plan(options, pictures, seconds, rounds, warmup, end_to_end, random.Random(seed), say)
        wanted = list(dict.fromkeys(batches)) if batches else sorted({_smallest(s) for _, _, s in runners})
        for batch in wanted:
            contestants = _contestants(runners, batch, plan, report)
            if contestants:
                _measure(contestants, batch, plan, report)
        if not report.cells:
            raise InputError(
                "No model takes such a batch", received=", ".join(map(str, wanted)), expected=report.not_run[0]
            )
        _compare(report, confidence, seed)
        if energy:
            _energy(report, plan)
        if layers:
            _layers(report, plan)
        for cell in report.cells:
            cell.contestant = None
    if memory:
        with tempfile.TemporaryDirectory(prefix="dhead-bench-") as folder:
            _memory(report, prepare(models, Path(folder)), options, pictures[0], say)
    report.seconds = time.time() - started
    return report


@dataclass
class _Plan:
    """What holds for all batch sizes."""

    options: Options
    images: list[Image]
    seconds: float
    rounds: int | None
    warmup: float
    end_to_end: bool
    order: random.Random
    say: ProgressCallback


@dataclass
class Contestant:
    """One model at one number of threads and one batch size: what it is called with, and what it took."""

    model: Model
    threads: int | None
    subject: Subject
    batch: int
    arrays: dict[str, Any]
    images: list[Image]
    kinds: tuple[str, ...]
    calls: dict[str, int] = field(default_factory=dict)  # of a turn
    rounds: dict[str, list[list[Stages]]] = field(default_factory=dict)
    detections: dict[str, int] = field(default_factory=dict)

    def call(self, kind: str) -> Stages:
        """One call."""
        if kind == "images":
            stages, self.detections[kind] = self.subject.on_images(self.images)
        else:
            stages, self.detections[kind] = self.subject.on_tensors(self.arrays)
        return stages

    def warm(self, seconds: float) -> float:
        """Calls for a while; the milliseconds that a turn will take."""
        turn = 0.0
        for kind in self.kinds:
            took: list[float] = []
            end = time.perf_counter() + seconds / len(self.kinds)
            while len(took) < 3 or time.perf_counter() < end:
                took.append(sum(self.call(kind).values()))
            one = float(np.median(took[len(took) // 2 :]))
            self.calls[kind] = min(max(math.ceil(_SLICE_MS / max(one, 1e-3)), 1), _MOST_CALLS)
            self.rounds[kind] = []
            turn += one * (self.calls[kind] + 1)
        return turn

    def turn(self) -> None:
        """One round's calls of each clock."""
        for kind in self.kinds:
            self.call(kind)  # the caches are its own again, and another's threads have gone to sleep
            self.rounds[kind].append([self.call(kind) for _ in range(self.calls[kind])])


def _contestants(
    runners: list[tuple[Model, int | None, Subject]], batch: int, plan: _Plan, report: BenchReport
) -> list[Contestant]:
    """Those that take the batch; the others are listed in the report."""
    result = []
    for model, count, subject in runners:
        try:
            arrays = tensors(subject, model.spec, plan.images, batch, plan.options)
        except InputError as e:
            sentence = f"{model.name}: {e}"
            if sentence not in report.not_run:
                report.not_run.append(sentence)
            continue
        kinds: tuple[str, ...] = ("tensors",)
        if plan.end_to_end and subject.takes_images:
            kinds = ("tensors", "images")
        elif plan.end_to_end:
            sentence = (
                f"{model.name}: no clock from images, it takes {subject.inputs[0].name} {subject.inputs[0].describe()}"
            )
            if sentence not in report.not_run:
                report.not_run.append(sentence)
        images = [plan.images[i % len(plan.images)] for i in range(batch)]
        result.append(Contestant(model, count, subject, batch, arrays, images, kinds))
    return result


def _measure(contestants: list[Contestant], batch: int, plan: _Plan, report: BenchReport) -> None:
    """Warm-up and rounds of one batch size; adds its cells."""
    turns = []
    for i, c in enumerate(contestants):
        plan.say(f"batch {batch}: warming up", i / len(contestants))
        turns.append(c.warm(plan.warmup))
    count = plan.rounds
    if count is None:
        wanted = int(plan.seconds * 1e3 * len(contestants) / max(sum(turns), 1e-3))
        count = min(max(wanted, _FEWEST_ROUNDS), _MOST_ROUNDS)
    before, bystanders = resident(), Bystanders()
    for number in range(count):
        plan.say(f"batch {batch}: measuring", number / count)
        for c in plan.order.sample(contestants, len(contestants)):
            c.turn()
    after, busy = resident(), bystanders.busy()
    verdicts = [{kind: steadiness(_medians(c, kind)) for kind in c.kinds} for c in contestants]
    start = max(s.start for v in verdicts for s in v.values())
    for c, verdict in zip(contestants, verdicts, strict=True):
        cell = _cell(c, verdict, start)
        cell.others_busy = busy
        if before is not None and after is not None:
            cell.memory["process_grew_MiB"] = round(after["rss"] - before["rss"], 3)
        report.cells.append(cell)


def _medians(c: Contestant, kind: str) -> list[float]:
    return round_medians([[sum(s.values()) for s in r] for r in c.rounds[kind]])


def _cell(c: Contestant, verdict: dict[str, Steadiness], start: int) -> Cell:
    """The summary of one contestant, of the rounds from `start` on."""
    clocks: dict[str, Clock] = {}
    for kind in c.kinds:
        kept = c.rounds[kind][start:]
        rounds = {kind: [[sum(s.values()) for s in r] for r in kept]}
        if kind == "tensors":
            rounds = {"engine": [[s["engine"] for s in r] for r in kept], **rounds}
        for clock, samples in rounds.items():
            flat = [v for r in samples for v in r]
            clocks[clock] = Clock(
                latency=Latency.of(flat),
                images_per_second=c.batch * 1e3 / float(np.mean(flat)),
                rounds_ms=round_medians(samples),
                samples_ms=flat,
                steady=verdict[kind],
            )
    kind = c.kinds[-1]
    calls = [s for r in c.rounds[kind][start:] for s in r]
    stages = {stage: float(np.mean([s[stage] for s in calls])) for stage in calls[0]}
    return Cell(
        model=c.model.name,
        backend=c.model.backend,
        precision=c.model.precision,
        computes_in=c.subject.precision,
        device=c.subject.device,
        form=c.model.form,
        batch=c.batch,
        threads=c.threads,
        clocks=clocks,
        stages=stages,
        stages_of=kind,
        detections=c.detections[kind],
        input={name: list(a.shape) for name, a in c.arrays.items()},
        notes=list(c.subject.notes),
        contestant=c,
    )


def _compare(report: BenchReport, confidence: float, seed: int) -> None:
    """Each model against the first at the same batch and threads; each number of threads against the first."""
    for cell in report.cells:
        same_batch = [c for c in report.cells if c.batch == cell.batch]
        pairs = []
        first = next(c for c in same_batch if c.threads == cell.threads)
        if first is not cell:
            pairs.append(("model", first))
        fewest = next(c for c in same_batch if c.model == cell.model)
        if fewest is not cell:
            pairs.append(("threads", fewest))
        for what, base in pairs:
            for clock in cell.clocks.keys() & base.clocks.keys():
                ratio = paired_ratio(
                    cell.clocks[clock].rounds_ms, base.clocks[clock].rounds_ms, confidence=confidence, seed=seed
                )
                report.comparisons.append(
                    Comparison(what, clock, cell.batch, cell.model, cell.threads, base.model, base.threads, ratio)
                )
    models, clocks = [c.model for c in report.cells], list(CLOCKS)
    report.comparisons.sort(
        key=lambda c: (c.what, c.batch, c.threads or 0, models.index(c.model), clocks.index(c.clock))
    )


def _energy(report: BenchReport, plan: _Plan, seconds: float = 2.0) -> None:
    """Joules of calls back to back, for each meter that works here."""
    meters, missing = energy_meters()
    report.not_run += missing
    if not meters:
        return
    for i, cell in enumerate(report.cells):
        plan.say("measuring energy", i / len(report.cells))
        c: Contestant = cell.contestant
        kind, calls, start = c.kinds[-1], 0, time.perf_counter()
        for meter in meters:
            meter.start()
        while time.perf_counter() - start < seconds:
            c.call(kind)
            calls += 1
        took = time.perf_counter() - start
        for meter in meters:
            joules = meter.joules()
            cell.energy[meter.name] = {"joules_per_image": joules / (calls * c.batch), "watts": joules / took}


def _layers(report: BenchReport, plan: _Plan, calls: int = 20) -> None:
    """The layers of each cell."""
    for i, cell in enumerate(report.cells):
        plan.say("measuring layers", i / len(report.cells))
        c: Contestant = cell.contestant
        took = float(np.mean(cell.clocks["engine"].samples_ms))
        found = c.subject.layers(c.arrays, max(3, min(calls, int(2000 / max(took, 1e-3)))))
        cell.layers = sorted(found, key=lambda layer: -layer[2])
        if not found:
            report.not_run.append(f"{cell.model}: {cell.backend} does not tell the time of its layers")


def _memory(report: BenchReport, models: list[Model], options: Options, image: Image, say: ProgressCallback) -> None:
    """The memory of each cell, in a process of its own."""
    by_name = {m.name: m for m in models}
    for i, cell in enumerate(report.cells):
        say("measuring memory", i / len(report.cells))
        found = footprint(by_name[cell.model], cell.batch, cell.threads, options, image.shape)
        if isinstance(found, str):
            report.not_run.append(f"{cell.model}: memory: {found}")
        else:
            cell.memory.update(found)


def _smallest(subject: Subject) -> int:
    """The smallest batch a model takes."""
    first = subject.inputs[0]
    if first.shape[0] != -1:
        return first.shape[0]
    return 1 if first.profile is None else max(first.profile[0][0], 1)


def _check(
    batches: Sequence[int] | None, threads: Sequence[int] | None, seconds: float, rounds: int | None, warmup: float,
    confidence: float,
) -> None:  # fmt: skip
    """Raises: InputError: an option is out of range."""
    for name, values in (("batches", batches), ("threads", threads)):
        if values is not None and (not values or any(isinstance(v, bool) or int(v) != v or v < 1 for v in values)):
            raise InputError(f"{name} are out of range", received=list(values), expected="whole numbers from 1")
    for name, value, low, high in (
        ("seconds", seconds, 0, 3600), ("warmup", warmup, 0, 3600), ("confidence", confidence, 0.5, 0.9999),
    ):  # fmt: skip
        if not low <= value <= high:
            raise InputError(f"{name} is out of range", received=value, expected=f"{low} to {high}")
    if rounds is not None and (isinstance(rounds, bool) or int(rounds) != rounds or not 1 <= rounds <= 100_000):
        raise InputError("rounds is out of range", received=rounds, expected="1 to 100000")
