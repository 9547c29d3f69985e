"""`dhead-trt bench`."""

from __future__ import annotations

import argparse
import ast
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..progress import Progress
from .common import emit_json, image_size, need_output

DESCRIPTION = """\
Measure latency, throughput, memory and energy of engines, side by side: all take turns in random order, so that the
machine's moods meet all alike. ONNX files run in ONNX Runtime, for comparison, with this package's pre- and
post-processing. Ratios are against the first MODEL, with intervals.

Exit status: 0, measured (a note says where a clock never settled); 1, only with --strict: one never settled; 2, it
could not be measured.
"""
EXAMPLES = """\
examples:
  dhead-trt bench yolov8n.xml
  dhead-trt bench yolov8n-bf16.xml yolov8n.xml yolov8n.onnx --batch 1 4 --threads 1 2 --images pictures/
  dhead-trt bench yolov8n.xml --layers --json bench.json --plot bench.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="engines, and ONNX files; the first is the baseline")
    add("--batch", type=int, nargs="+", metavar="N", help="images of a call (default: the smallest each model takes)")
    add("--threads", type=int, nargs="+", metavar="N", help="CPU threads (default: the backend's choice)")
    add("--images", metavar="PATH", help="picture, folder or pattern to run on (default: drawn pictures, 1280 × 720)")
    add("--seconds", type=float, default=5.0, help="measured time of each model, threads and batch (default: 5)")
    add("--rounds", type=int, metavar="N", help="turns of each instead of --seconds")
    add("--warmup", type=float, default=1.0, metavar="S", help="seconds of calls before, each (default: 1)")
    add("--engine-only", action="store_true", help="no clock from images to detections")
    add("--layers", action="store_true", help="the time of every layer too, of engines that tell")
    add("--no-memory", action="store_true", help="leave out the memory (a process of its own for each)")
    add("--no-energy", action="store_true", help="leave out the energy")
    add("--image-size", type=image_size, metavar="HxW", help="size of the input where the model leaves it open")
    add("--conf", type=float, default=0.25, help="keep where score > CONF (default: 0.25)")
    add("--iou", type=float, default=0.7, help="IoU above which the lower score goes (default: 0.7)")
    add("--device", metavar="NAME", help="device of the backend (default: its first)")
    add("--option", action="append", metavar="NAME=VALUE", help="an option for the engine, such as hint=throughput")
    add("--seed", type=int, default=0, help="of the order of turns (default: 0)")
    add("--strict", action="store_true", help="exit with status 1 where a clock never settled")
    add("--json", metavar="FILE", help="write everything as JSON ('-': to standard output, nothing else)")
    add("--plot", type=Path, metavar="FILE", help="draw latency, throughput and stages (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..bench import bench, plot_bench

    _check_outputs(args)
    images = None if args.images is None else _images(args.images)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(enabled=not args.quiet))
        report = bench(
            args.models,
            batches=args.batch,
            threads=args.threads,
            images=images,
            seconds=args.seconds,
            rounds=args.rounds,
            warmup=args.warmup,
            end_to_end=not args.engine_only,
            layers=args.layers,
            memory=not args.no_memory,
            energy=not args.no_energy,
            device=args.device,
            image_size=args.image_size,
            conf=args.conf,
            iou=args.iou,
            seed=args.seed,
            engine_options=_options(args.option),
            progress=progress,
        )
    if args.plot is not None:
        plot_bench(report, args.plot)
    if args.json != "-":
        print(report.render())
    emit_json(report.to_dict(), args.json)
    return 1 if args.strict and not report.settled else 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Before minutes of measuring: can the results be written, and is no model among them?"""
    outputs = [Path(args.json)] if args.json not in (None, "-") else []
    outputs += [args.plot] if args.plot is not None else []
    read = set()
    for model in map(Path, args.models):
        read |= {p.resolve() for p in (model, *(model.with_suffix(s) for s in (".json", ".xml", ".bin")))}
    for path in outputs:
        if need_output(path).resolve() in read:
            raise InputError("The results would replace a file that is read", received=str(path))
    if args.plot is not None:
        import importlib.util

        if args.plot.suffix.lower() not in {".png", ".svg", ".pdf"}:
            raise InputError("The picture has no known format", received=args.plot.name, expected=".png, .svg or .pdf")
        if importlib.util.find_spec("matplotlib") is None:
            from ..errors import BackendUnavailable

            raise BackendUnavailable("matplotlib is not installed", fix='pip install "dhead-trt[plot]"')


def _images(text: str) -> list[Any]:
    """The pictures, decoded once."""
    import numpy as np

    from ..images import expand_paths, load_image

    paths = expand_paths(text) or [Path(text)]
    return [np.ascontiguousarray(load_image(p)) for p in paths[:64]]


def _options(texts: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE: numbers, True and False as such, everything else as text."""
    options: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError("--option is not NAME=VALUE", received=repr(text))
        try:
            options[name] = json.loads(value.lower()) if value.lower() in {"true", "false"} else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options
