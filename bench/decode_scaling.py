"""How decode, detection and NMS scale: with threads, with anchors (to a million) and with survivors.

    python bench/decode_scaling.py --output out/bench_decode_scaling.json --plot out/bench_decode_scaling.png

Beside each stands its floor: reading the same maps once, with the same blocks and threads, and doing nothing. Where the
floor does not gain from a second thread (memory is busy), nothing that reads the maps can.

Anchors: one image of growing size, 200 survivors. Survivors: the anchors of a 1280-pixel image, all survivors enter the
NMS, at most 300 come out. "exponent" is the slope of log(time) over log(count): 1 is linear.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Timing, command, interleave, machine, ratio, versions, write_json

import dhead_trt
from dhead_trt import HeadSpec, _core, postprocess
from dhead_trt._figure import saved_figure

SPEC = HeadSpec(num_classes=80, strides=(8, 16, 32), bins=17)
TARGET = 1.7  # from one thread to two, batch 16
SIDES = (64, 128, 320, 640, 1280, 2560, 4480, 6976)  # of the image: 84 … 997 568 anchors
SURVIVORS = (10, 100, 300, 1000, 3000, 10000, 30000)
MOST = 1 << 17
KINDS = ("decode", "detect", "NMS of decoded boxes", "read all maps", "read class maps")
Maps = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
Case = tuple[int, int, int]  # the count that is swept, side of the image, survivors


def make_maps(side: int, batch: int, survivors: int) -> Maps:
    """Random maps; `survivors` anchors of each image, anywhere, have one class above the threshold."""
    rng = np.random.default_rng(0)
    shapes = SPEC.level_shapes((side, side))
    maps: Maps = {}
    for i, (h, w) in enumerate(shapes):
        some = rng.normal(0, 2, min(1 << 20, batch * 4 * SPEC.bins * h * w)).astype(np.float32)
        maps[f"box_{i}"] = np.resize(some, (batch, 4 * SPEC.bins, h, w))
        maps[f"cls_{i}"] = np.resize(some.clip(max=3) - 5, (batch, SPEC.num_classes, h, w))
    ends = np.cumsum([h * w for h, w in shapes])
    for b in range(batch):
        chosen = rng.choice(ends[-1], survivors, replace=False)
        for i, (h, w) in enumerate(shapes):
            mine = chosen[(chosen < ends[i]) & (chosen >= ends[i] - h * w)] - (ends[i] - h * w)
            classes = rng.integers(0, SPEC.num_classes, len(mine))
            maps[f"cls_{i}"][b, classes, mine // w, mine % w] = rng.uniform(-1, 3, len(mine))
    return maps


def runs_for(maps: Maps, threads: int, kinds: Sequence[str] = KINDS) -> dict[str, Callable[[], Any]]:
    """What is timed; every output is there before."""
    levels = range(SPEC.num_levels)
    batch = len(maps["box_0"])
    boxes, scores = postprocess.decode(maps, SPEC)
    found = postprocess.empty_detections(batch, 300)

    def read(boxes_too: bool) -> float:
        box, cls = [maps[f"box_{i}"] for i in levels], [maps[f"cls_{i}"] for i in levels]
        strides = list(SPEC.strides)
        return _core._read_maps(box, cls, [], strides, SPEC.num_classes, SPEC.bins, boxes_too, threads=threads)

    options: dict[str, Any] = {"max_candidates": MOST, "out": found, "threads": threads}
    runs: dict[str, Callable[[], Any]] = {
        "decode": lambda: postprocess.decode(maps, SPEC, out=(boxes, scores), threads=threads),
        "detect": lambda: postprocess.detect(maps, SPEC, **options),
        "NMS of decoded boxes": lambda: postprocess.nms(boxes, scores, **options),
        "read all maps": lambda: read(True),
        "read class maps": lambda: read(False),
    }
    return {kind: runs[kind] for kind in kinds}


def with_threads(batch: int, rounds: int, threads: tuple[int, int]) -> dict[str, Any]:
    maps = make_maps(640, batch, 84)
    runs = {(kind, n): run for n in threads for kind, run in runs_for(maps, n).items()}
    timings = interleave({f"{kind}, {n}": run for (kind, n), run in runs.items()}, rounds)
    one, more = threads
    print(f"\nbatch {batch}, 8400 anchors: {one} thread, {more} threads (median ms), gain [95 % interval]; by minima")
    result = {}
    for kind in KINDS:
        a, b = timings[f"{kind}, {one}"], timings[f"{kind}, {more}"]
        gain = ratio(a, b)
        least = a.minimum / b.minimum
        verdict = f" target {TARGET:g}x {'met' if gain.value >= TARGET else 'NOT MET'}"
        target = "" if kind.startswith("read") or batch == 1 else verdict
        print(f"  {kind:22}{a.median:9.3f}{b.median:9.3f}   {gain}; {least:.2f}x{target}")
        result[kind] = {"one": a.to_dict(), "more": b.to_dict(), **gain.to_dict(), "by_minima": least}
    return result


def exponent(counts: Sequence[int], times: Sequence[float], low: int) -> float:
    """Slope of log(time) over log(count), of counts from `low` on."""
    at = np.array(counts) >= low
    return float(np.polyfit(np.log(np.array(counts)[at]), np.log(np.array(times)[at]), 1)[0])


def sweep(title: str, cases: Sequence[Case], kinds: Sequence[str], rounds: int, low: int) -> dict[str, Any]:
    """Times of `kinds` for each case; the exponents are those of counts from `low` on."""
    print(f"\n{title:>22}" + "".join(f"{kind:>24}" for kind in kinds) + "   (median ms, 1 thread)")
    counts: list[int] = []
    times: dict[str, list[Timing]] = {kind: [] for kind in kinds}
    for count, side, survivors in cases:
        timings = interleave(runs_for(make_maps(side, 1, survivors), 1, kinds), rounds, slice_ms=20.0)
        counts.append(count)
        for kind in kinds:
            times[kind].append(timings[kind])
        print(f"{count:22}" + "".join(f"{timings[kind].median:24.4f}" for kind in kinds))
    medians = {kind: [t.median for t in times[kind]] for kind in kinds}
    slopes = {kind: exponent(counts, medians[kind], low) for kind in kinds}
    print(f"{f'exponent from {low}':>22}" + "".join(f"{slopes[kind]:24.2f}" for kind in kinds))
    return {"counts": counts, "median_ms": medians, "exponent": slopes, "exponent_from": low}


def draw(path: Path, record: dict[str, Any]) -> None:
    title = f"Decode, detection and NMS: 80 classes, 17 bins, 1 thread, {record['simd']}, {record['machine']['cpu']}"
    with saved_figure(path, (10, 4), title=title) as figure:
        for axes, name in zip(figure.subplots(1, 2), ("anchors", "survivors"), strict=True):
            found = record[name]
            for kind, times in found["median_ms"].items():
                style = ":" if kind.startswith("read") else "o-"
                label = f"{kind} (exponent {found['exponent'][kind]:.2f})"
                axes.loglog(found["counts"], times, style, label=label, markersize=4)
            axes.set_xlabel(name)
            axes.set_ylabel("ms an image")
            axes.grid(True, which="major", alpha=0.3)
            axes.legend(frameon=False, fontsize=8)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2, help="compared with one thread")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--most-anchors", type=int, default=10**6)
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    parser.add_argument("--plot", type=Path, help="where to draw the two sweeps")
    args = parser.parse_args()
    record: dict[str, Any] = {
        "command": command(),
        "machine": machine(),
        "versions": {**versions("numpy"), "dhead_trt": dhead_trt.__version__},
        "simd": postprocess.simd_levels()[-1],
    }
    print(f"80 classes, 17 bins, {record['simd']}, {record['machine']['cpu']}")
    record["threads"] = {b: with_threads(b, args.rounds, (1, args.threads)) for b in args.batch}
    rounds = max(3, args.rounds // 3)
    sides = [(SPEC.num_anchors((side, side)), side) for side in SIDES]
    grown = [(n, side, min(200, n // 2)) for n, side in sides if n <= args.most_anchors]
    record["anchors"] = sweep("anchors", grown, ("decode", "detect", "read all maps", "read class maps"), rounds, 8000)
    crowded = [(n, 1280, n) for n in SURVIVORS]
    record["survivors"] = sweep("survivors", crowded, ("detect", "NMS of decoded boxes"), rounds, 1000)
    if args.output:
        write_json(args.output, record)
        print(f"\nwrote {args.output}")
    if args.plot:
        draw(args.plot, record)
        print(f"wrote {args.plot}")


if __name__ == "__main__":
    main()
