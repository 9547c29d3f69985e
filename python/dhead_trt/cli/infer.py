"""`dhead-trt infer`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..progress import Progress, duration
from ..tables import table
from .common import emit_json, write_text

if TYPE_CHECKING:
    from ..detections import Detections

DESCRIPTION = """\
Run an engine on pictures (files, folders, patterns), or on feature maps in .npz files.

Standard output gets a table of the detections, or with --json - a JSON list. With --output, each picture gets its JSON
and a copy with the boxes drawn on it.
"""
EXAMPLES = """\
examples:
  dhead-trt infer yolov8n.xml street.jpg
  dhead-trt infer yolov8n.xml pictures/ --conf 0.4 -o results
  dhead-trt infer head.xml features.npz --json -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("engine", type=Path, metavar="PLAN", help="an engine, from dhead-trt build")
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="picture, folder, pattern, or .npz of arrays by input name",
    )
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="write NAME.json and NAME.png (the picture with its boxes) to this folder",
    )
    add("--no-draw", action="store_true", help="with --output: JSON only")
    add("--conf", type=float, default=0.25, help="score threshold (default: 0.25)")
    add("--iou", type=float, default=0.7, help="IoU above which the lower score goes (default: 0.7)")
    add("--max-det", type=int, default=300, help="most detections of a picture (default: 300)")
    add(
        "--class",
        dest="classes",
        action="append",
        metavar="C",
        help="only this class (number or name); may be repeated",
    )
    add("--agnostic", action="store_true", help="suppress across classes")
    add("--device", metavar="NAME", help="device of the backend (default: its first)")
    add("--threads", type=int, metavar="N", help="threads of a CPU engine")
    add("--json", metavar="FILE", help="write all detections as one JSON list ('-': to standard output, nothing else)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..images import expand_paths

    paths: list[Path] = []
    for text in args.inputs:
        paths += expand_paths(text) or [Path(text)]
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise InputError("There is no such input", received=repr(str(missing[0])))
    features = [p for p in paths if p.suffix.lower() == ".npz"]
    if features and len(features) != len(paths):
        raise InputError(
            "Pictures and .npz files cannot be mixed", received=f"{len(features)} of {len(paths)} are .npz"
        )
    if args.output is not None:
        _spare(args, paths)
    started = time.monotonic()
    with Progress(enabled=not args.quiet) as progress:
        progress("loading the engine")
        found, failed = (_on_features if features else _on_pictures)(args, paths, progress)
    if args.json != "-":
        rows = [
            [d.source, row.name, f"{row.confidence:.3f}", *(f"{v:.1f}" for v in row.xyxy)] for d in found for row in d
        ]
        if rows:
            print(table(["input", "class", "score", "x1", "y1", "x2", "y2"], rows, right=[2, 3, 4, 5, 6]))
        if not args.quiet:
            took = duration(time.monotonic() - started)
            done = f"{_count(len(rows), 'detection')} in {_count(len(paths) - len(failed), 'file')}"
            print(f"{done}, {took} with loading the engine")
            if args.output is not None:
                print(f"written to {args.output}")
    emit_json([d.to_dict() for d in found], args.json)
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    return 2 if failed else 0


Found = tuple[list["Detections"], list[InputError]]


def _on_pictures(args: argparse.Namespace, paths: list[Path], progress: Progress) -> Found:
    """The results, and what was wrong with pictures that could not be read; of a single one it is raised."""
    from ..detector import Detector

    found: list[Detections] = []
    failed: list[InputError] = []
    options = {"conf": args.conf, "iou": args.iou, "max_det": args.max_det, "agnostic": args.agnostic}
    with Detector(
        args.engine, device=args.device, threads=args.threads, classes=_classes(args.classes), **options
    ) as detector:
        for done, (path, stem) in enumerate(zip(paths, _stems(paths, paths), strict=True)):
            progress("detecting", done / len(paths))
            try:
                detections = detector(path)
            except InputError as e:
                if len(paths) == 1:
                    raise
                failed.append(e)
                continue
            if args.output is not None:
                write_text(args.output / f"{stem}.json", detections.to_json() + "\n")
                if not args.no_draw:
                    detections.draw(path, args.output / f"{stem}.png")
            found.append(detections)
    return found, failed


def _on_features(args: argparse.Namespace, paths: list[Path], progress: Progress) -> Found:
    """One result for each image of each file's batch; boxes are in pixels of the network input."""
    from ..detections import Detections, class_ids
    from ..engine import Engine
    from ..shapes import takes_features
    from .common import read_npz

    found = []
    with Engine(args.engine, args.device, threads=args.threads) as engine:
        spec = engine.spec
        wanted = _classes(args.classes)
        classes = None if wanted is None else class_ids(wanted, spec.names)
        for done, path in enumerate(paths):
            progress("detecting", done / len(paths))
            inputs = read_npz(path)
            out = engine.infer(
                inputs,
                conf=args.conf,
                iou=args.iou,
                max_det=args.max_det,
                classes=classes,
                class_agnostic=args.agnostic,
            )
            first = inputs[engine.inputs[0].name]
            scale = spec.strides[0] if takes_features(engine.inputs, spec) else 1
            size = (first.shape[2] * scale, first.shape[3] * scale)
            for image, number in enumerate(out["num_dets"].reshape(-1).tolist()):
                found.append(
                    Detections(
                        out["det_boxes"][image, :number],
                        out["det_scores"][image, :number],
                        out["det_classes"][image, :number],
                        spec.names,
                        size,
                        f"{path}[{image}]",
                    )
                )
    if args.output is not None:
        for stem, detections in zip(_stems(paths, found), found, strict=True):
            write_text(args.output / f"{stem}.json", detections.to_json() + "\n")
    return found, []


def _spare(args: argparse.Namespace, paths: list[Path]) -> None:
    """Makes sure that no result is written over an input, or over a file of the engine.

    Raises:
        InputError: one would be; or the folder is a file.
    """
    if args.output.exists() and not args.output.is_dir():
        raise InputError("The output is a file", received=str(args.output), expected="a folder")
    engine = [args.engine, *(args.engine.with_suffix(suffix) for suffix in (".json", ".xml", ".bin"))]
    kept = {p.resolve() for p in (*paths, *engine)}
    for stem in _stems(paths, paths):
        for path in (args.output / f"{stem}.json", *(() if args.no_draw else (args.output / f"{stem}.png",))):
            if path.resolve() in kept:
                raise InputError(
                    "The results would replace a file that is read",
                    received=f"--output {args.output}",
                    expected=f"a folder without {path.name}",
                )


def _classes(texts: list[str] | None) -> list[int | str] | None:
    """Numbers where they are numbers, else names."""
    return None if texts is None else [int(t) if t.isdecimal() else t for t in texts]


def _stems(paths: list[Path], results: Sequence[object]) -> list[str]:
    """A file name for each result: the input's, with a number where that would not be one of a kind."""
    names = [p.stem for p in paths] if len(paths) == len(results) else [paths[0].stem] * len(results)
    unique = len(set(names)) == len(names)
    return names if unique else [f"{name}-{i}" for i, name in enumerate(names)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
