#!/usr/bin/env python3
"""Build a detector of generated scenes as fp32, fp16 and INT8 engines, and measure each one's mAP on held-out scenes.

    python scripts/scenes_accuracy.py
    python scripts/scenes_accuracy.py --weights run/weights.safetensors --images 600 --json accuracy.json

The engines are OpenVINO's; INT8 is calibrated on other scenes again. Neither those nor the measured ones are among the
scenes that `dhead-trt train` draws: the seeds differ. Needs pip install "dhead-trt[train,cpu]".
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dhead_trt import Detector, __version__
from dhead_trt.build import build
from dhead_trt.errors import DheadError
from dhead_trt.export import export_onnx
from dhead_trt.files import atomic_path
from dhead_trt.progress import Progress
from dhead_trt.tables import size, table
from dhead_trt.training.data import Scenes, write_coco
from dhead_trt.training.model import load_weights
from dhead_trt.validate import CocoData, validate

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = ("fp32", "fp16", "int8")
HELD_OUT, CALIBRATION = 2026, 2027  # seeds; training scenes have 0, those of mAP during the training 1000003


def measure(args: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """One row for each precision."""
    progress("exporting the weights to ONNX, and comparing with PyTorch")
    model = load_weights(args.weights)
    shape = model.spec.image_size or (192, 192)
    graph = export_onnx(model, args.output / "scenes.onnx", image_size=shape).path
    progress("drawing scenes")
    labels = write_coco(Scenes(args.images, shape, args.domain, seed=HELD_OUT), args.output / "scenes")
    calibration = args.output / "calibration"
    write_coco(Scenes(args.calibration, shape, args.domain, seed=CALIBRATION), calibration)
    data = CocoData.load(labels, args.output / "scenes" / "images")
    rows = []
    for precision in PRECISIONS:
        more: dict[str, Any] = {"calibration": str(calibration / "images")} if precision == "int8" else {}
        plan = args.output / f"scenes-{precision}.xml"
        artifact = build(graph, "openvino", output=plan, precision=precision, progress=progress, **more)
        with Detector(plan, threads=args.threads) as detector:
            report = validate(detector, data, model=plan.name, progress=progress)
        rows.append(
            {
                "precision": precision,
                "engine": plan.name,
                "bytes": sum(f.size for f in artifact.files),
                "images": report.images,
                "map50_95": report.mean("ap"),
                "map50": report.mean("ap50"),
                "map75": report.mean("ap75"),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 2 where something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, default=ROOT / "weights" / "scenes.safetensors", help="of a detector")
    parser.add_argument("--images", type=int, default=600, help="held-out scenes (600)")
    parser.add_argument("--calibration", type=int, default=200, help="scenes to calibrate INT8 with (200)")
    parser.add_argument("--domain", default="mixed", help="of the scenes (mixed)")
    parser.add_argument("--threads", type=int, help="of the engines")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "scenes", metavar="FOLDER", help="(out/scenes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    try:
        with Progress(enabled=not args.quiet) as progress:
            rows = measure(args, progress)
        if args.json is not None:
            with atomic_path(args.json) as path:
                path.write_text(json.dumps({"dhead_trt": __version__, "rows": rows}, indent=2) + "\n", "utf-8")
    except DheadError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    base = rows[0]["map50_95"]
    shown = [
        [
            row["precision"],
            size(row["bytes"]),
            *(f"{row[k]:.4f}" for k in ("map50_95", "map50", "map75")),
            f"{row['map50_95'] - base:+.4f}",
        ]
        for row in rows
    ]
    print(table(["engine", "size", "mAP50-95", "mAP50", "mAP75", "against fp32"], shown, right=[1, 2, 3, 4, 5]))
    print(f"{rows[0]['images']} held-out scenes of the domain {args.domain!r}, seed {HELD_OUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
