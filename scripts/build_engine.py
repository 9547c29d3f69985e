#!/usr/bin/env python3
"""Build engines from a head or an ONNX graph, and prove that they compute what it computes.

    python scripts/build_engine.py --fp16
    python scripts/build_engine.py --int8 --model yolov8n.onnx --calib images/
    python scripts/build_engine.py --fp16 --model yolov8n.onnx --backend tensorrt_rtx --batch 1,4,16 --output out/n

Without --model the reference head (YOLOv8DecoupledHead: channels 256, 512, 1024, 80 classes, 17 bins, random weights)
is exported, converted and built for every backend that can build on this machine; then the parity ladder is printed.
The same as `dhead-trt export`, `dhead-trt build` and `dhead-trt parity`, one after the other.

Exit status: 0, built and within tolerance; 1, built, but something is off; 2, not built.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dhead_trt.cli import Parser
from dhead_trt.cli import run as run_command
from dhead_trt.cli.build import add_build_options, build_all, choose, precision_of, summary
from dhead_trt.cli.common import Source, emit_json, need_output, resolve
from dhead_trt.cli.export import refuse_head_options
from dhead_trt.export import export_onnx
from dhead_trt.parity import plot, run_ladder
from dhead_trt.progress import Progress
from dhead_trt.tables import size


def parser() -> argparse.ArgumentParser:
    """The options: those of `dhead-trt build`, with --model and --output."""
    p = Parser(
        prog="build_engine.py",
        description=(__doc__ or "").split("Exit status")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--model",
        default="decoupled",
        metavar="MODEL",
        help="ONNX file, module:attribute of a torch head, 'decoupled', 'stable' or 'coupled' (default: decoupled)",
    )
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="path of the engines without suffix (default: out/MODEL-PRECISION)",
    )
    add_build_options(p, backend="all")
    p.add_argument("--no-parity", action="store_true", help="build only")
    p.add_argument("-q", "--quiet", action="store_true", help="no progress")
    p.add_argument("--traceback", action="store_true", help="show where an error was raised")
    p.set_defaults(run=run)
    return p


def run(args: argparse.Namespace) -> int:
    """Export, build, compare; returns the exit status."""
    source = resolve(args)
    if source.model is None:
        refuse_head_options(args)
    precision = precision_of(args)
    if precision == "int8" and args.calib is None and source.model is not None:
        args.calib = "random"  # the reference head has no data of its own; the summary says what that means
    output = need_output(args.output or Path("out") / f"{source.name}-{precision}")
    graph = source
    with Progress(enabled=not args.quiet) as progress:
        if source.model is not None:
            onnx = output.with_name(f"{source.name}.onnx")
            progress("export: PyTorch to ONNX, compared in ONNX Runtime")
            image_size, is_range = _largest(args.image_size)
            exported = export_onnx(source.model, onnx, image_size=image_size, dynamic_size=is_range)
            progress.done(f"{onnx} ({size(onnx.stat().st_size)})")
            graph = Source(source.name, path=exported.path)
        built = build_all(graph, choose(args.backend or ["all"]), args, output, progress)
    print(summary(built))
    report = None
    if not args.no_parity:
        with Progress(enabled=not args.quiet) as progress:
            report = run_ladder(
                source.value,
                engines=[b.artifact.plan for b in built if b.artifact is not None],
                precisions=list(dict.fromkeys(["fp32", precision])),
                seed=args.seed,
                name=source.name,
                progress=progress,
            )
        print(f"\nParity\n{report.render()}")
        made = [report.save_json(output.with_name(f"{output.name}-parity.json"))]
        made.append(plot(report, output.with_name(f"{output.name}-parity.png")))
        print("written: " + ", ".join(map(str, made)))
    emit_json({"built": [b.to_dict() for b in built], "parity": report and report.to_dict()}, args.json)
    return 0 if report is None or report.passed else 1


def _largest(image_size: Any) -> tuple[tuple[int, int], bool]:
    """The size to export at (the one asked for, 640, or the largest of a range), and whether it is a range."""
    if image_size is None:
        return (640, 640), False
    is_range = isinstance(image_size[-1], tuple)
    return (image_size[-1] if is_range else image_size), is_range


if __name__ == "__main__":
    sys.exit(run_command(parser().parse_args()))
