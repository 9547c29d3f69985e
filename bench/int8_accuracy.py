#!/usr/bin/env python3
"""Int8 against float32 on real document pages: the tables of docs/int8_accuracy.md.

    python bench/int8_accuracy.py [--calibration SET] [--measure SET …] [--refine 0 1] [--shares S …] [--output FILE]

Fetches the sample model and the pages (scripts/fetch_sample_model.py, scripts/make_test_pages.py). Ranges, fitted
weights and the ranking of the layers come from the pages of one set; the gate measures on those of others. Layers are
kept in float32 by the square of their error for each MAC, until the share of int8 is the one asked for. Standard output
is the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dhead_trt.calibration import CalibrationBatches, calibrate, calibration_batches
from dhead_trt.precision import quantizable
from dhead_trt.precision.gate import Gate
from dhead_trt.precision.raw_run import spec_of
from dhead_trt.refine import FITTED_PERCENTILE, Maker, RefinedMaker, equalized
from dhead_trt.shapes import tensor_infos
from dhead_trt.surgery import convert
from dhead_trt.tables import table

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PERCENTILE = 99.99
SETS = ("calibration", "heldout", "training", "unseen")


def _script(name: str, *arguments: str) -> Path:
    """What a script prints: a path."""
    done = subprocess.run([sys.executable, SCRIPTS / name, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip().splitlines()[-1])


def _order(maker: Maker, spec: Any, data: CalibrationBatches, threads: int) -> list[tuple[str, int]]:
    """(layer, MACs), what hurts most for its work first."""
    ranking = maker.rank((), data, spec, threads, None)
    layers = [s for s in ranking.layers if s.macs]
    return [(s.name, s.macs) for s in sorted(layers, key=lambda s: -(s.error**2) / s.macs)]


def _fill(order: list[tuple[str, int]], room: float) -> tuple[str, ...]:
    """Layers from the front of the ranking whose work fits."""
    kept = []
    for name, macs in order:
        if macs <= room:
            kept.append(name)
            room -= macs
    return tuple(kept)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", choices=SETS, default="training", help="calibrate, fit and rank on these")
    parser.add_argument("--measure", choices=SETS, nargs="*", default=["heldout", "unseen"])
    parser.add_argument("--refine", type=int, choices=(0, 1), default=[0, 1], nargs="*", help="fit the weights")
    parser.add_argument("--shares", type=float, default=[1.0, 0.85], nargs="*", help="least shares of MACs in int8")
    parser.add_argument("--rank-images", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON of the rows")
    args = parser.parse_args()
    raw = convert(_script("fetch_sample_model.py"), form="raw", verify=False).model
    spec, inputs = spec_of(raw, None), tensor_infos(raw)
    pages = _script("make_test_pages.py", "--sets", *{args.calibration, *args.measure})

    def batches(name: str) -> CalibrationBatches:
        return calibration_batches(str(pages / name), inputs, spec)

    data = batches(args.calibration)
    work = {layer.name: layer for layer in quantizable(raw)}
    total, last = sum(w.macs for w in work.values()), sum(w.macs for w in work.values() if w.last)
    made: list[tuple[dict[str, Any], Any]] = []
    for refine in args.refine:
        start = time.monotonic()
        graph = equalized(raw, data, args.threads, None) if refine else raw
        percentile = FITTED_PERCENTILE if refine else PERCENTILE
        ranges = calibrate(graph, data, method="percentile", percentile=percentile, threads=args.threads)
        if refine:
            maker: Maker = RefinedMaker(graph, ranges, "", data, spec, args.threads, None)
        else:
            maker = Maker(graph, ranges)
        calibrated = time.monotonic() - start
        order = _order(maker, spec, data.spread(args.rank_images), args.threads) if min(args.shares) < 1 else []
        for share in args.shares:
            start = time.monotonic()
            keep = _fill(order, max((1 - share) * total - last, 0))
            conversion = maker.make(keep, raw=spec)
            row = {
                "refine": refine,
                "kept": len(keep),
                "int8_macs": conversion.int8_macs,
                "calibration_s": calibrated,
                "conversion_s": time.monotonic() - start,
                "keep": keep,
            }
            made.append((row, conversion.model))
            print(f"refine {refine}, share {share:g}: {row['conversion_s']:.0f} s", file=sys.stderr)
    for name in args.measure:
        gate = Gate(raw, batches(name), threads=args.threads)
        for row, model in made:
            report = gate.measure(model)
            row[name] = {k: v for k, v in report.to_dict().items() if isinstance(v, float)}
            row[name]["detections"] = report.detail.counts[0]
    rows = [row for row, _ in made]
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    headers = ["refine", "kept", "int8 MACs"]
    headers += [f"{name}: {what}" for name in args.measure for what in ("AP50-95", "F1@0.5", "F1@0.75", "shift")]
    lines = [
        ["yes" if row["refine"] else "no", row["kept"], f"{row['int8_macs']:.1%}"]
        + [f"{row[n][k]:.4f}" for n in args.measure for k in ("ap50_95", "f1_50", "f1_75", "score_shift")]
        for row in rows
    ]
    print(table(headers, lines, right=list(range(1, len(headers)))))


if __name__ == "__main__":
    main()
