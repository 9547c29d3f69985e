#!/usr/bin/env python3
"""Int8 against float32 on real document pages: the table of docs/int8_accuracy.md.

    python bench/int8_accuracy.py [--equalize ALPHA] [--percentile P …] [--shares S …] [--output FILE.json]

Fetches the sample model and the pages (scripts/fetch_sample_model.py, scripts/make_test_pages.py). Ranges, factors and
the ranking of the layers come from the 25 calibration pages; the gate measures on the 25 held-out ones, and on the
calibration pages for comparison. Layers are put back into float32 by error for each MAC, until the share of int8 is the
one asked for. Standard output is the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dhead_trt.calibration import calibrate
from dhead_trt.images import load_image
from dhead_trt.letterbox import letterbox
from dhead_trt.precision import quantizable, to_int8
from dhead_trt.precision.equalize import channel_ranges, equalize
from dhead_trt.precision.gate import Gate
from dhead_trt.precision.sensitivity import rank_layers
from dhead_trt.surgery import convert
from dhead_trt.tables import table

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SIDE = 1024  # pixels


def _script(name: str) -> Path:
    """What a script prints: a path."""
    done = subprocess.run([sys.executable, SCRIPTS / name], check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip().splitlines()[-1])


def _pages(folder: Path) -> list[dict[str, Any]]:
    return [
        {"images": np.asarray(letterbox(load_image(p), (SIDE, SIDE))[0][None])} for p in sorted(folder.glob("*.png"))
    ]


def _fill(order: list[tuple[str, int]], total: int, share: float) -> tuple[str, ...]:
    """Layers from the front of the ranking that fit into 1 - share of the work."""
    room, kept = (1 - share) * total, []
    for name, macs in order:
        if macs <= room:
            kept.append(name)
            room -= macs
    return tuple(kept)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equalize", type=float, default=[0.0, 0.5], nargs="*", metavar="ALPHA", help="0: not")
    parser.add_argument("--percentile", type=float, default=[99.99], nargs="*")
    parser.add_argument("--shares", type=float, default=[1.0, 0.85], nargs="*", help="least shares of MACs in int8")
    parser.add_argument("--rank-images", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON of the rows")
    args = parser.parse_args()
    raw = convert(_script("fetch_sample_model.py"), form="raw", verify=False).model
    pages = _script("make_test_pages.py")
    data, held = _pages(pages / "calibration"), _pages(pages / "heldout")
    gates = [Gate(raw, batches, threads=args.threads) for batches in (data, held)]
    low_high = channel_ranges(raw, data, threads=args.threads)
    rows = []
    for alpha in args.equalize:
        model = equalize(raw, low_high, alpha=alpha).model if alpha else raw
        work = {layer.name: layer.macs for layer in quantizable(model)}
        total = sum(work.values())
        for percentile in args.percentile:
            ranges = calibrate(model, data, method="percentile", percentile=percentile, threads=args.threads)
            order: list[tuple[str, int]] = []
            if min(args.shares) < 1:
                quantized = to_int8(model, ranges).model
                ranking = rank_layers(model, quantized, data, images=args.rank_images, threads=args.threads)
                found = [s for s in ranking.layers if s.name in work and s.macs]
                order = [(s.name, s.macs) for s in sorted(found, key=lambda s: -s.error / s.macs)]
            last = sum(layer.macs for layer in quantizable(model) if layer.last)
            for share in args.shares:
                keep = _fill(order, total, min(1.0, share + last / total))
                made = to_int8(model, ranges, keep=keep)
                reports = [gate.measure(made.model) for gate in gates]
                rows.append(
                    {
                        "alpha": alpha,
                        "percentile": percentile,
                        "kept": len(keep),
                        "int8_macs": made.int8_macs,
                        "calibration_ap50_95": reports[0].ap50_95,
                        "calibration_f1_50": reports[0].f1_50,
                        "ap50_95": reports[1].ap50_95,
                        "f1_50": reports[1].f1_50,
                        "f1_75": reports[1].f1_75,
                        "score_shift": reports[1].score_shift,
                        "keep": keep,
                    }
                )
                print(f"alpha {alpha:g}, percentile {percentile:g}, share {share:g}: done", file=sys.stderr)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    names = [n for n in rows[0] if n != "keep"]
    print(table(names, [[f"{row[n]:.4g}" for n in names] for row in rows], right=list(range(len(names)))))


if __name__ == "__main__":
    main()
