"""`dhead-trt infer`."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DheadError, InputError
from ..progress import Progress, duration
from ..tables import table
from .common import emit_json, write_text
from .infer_video import Lines, is_video, on_videos

if TYPE_CHECKING:
    from ..detections import Detections
    from ..detector import Detector

DESCRIPTION = """\
Run an engine on pictures (files, folders, patterns), on videos and cameras, or on feature maps in .npz files.

Standard output gets a table of the detections (of videos: of their classes), or with --json - a JSON list, or with
--jsonl - one line of JSON for each picture or frame, as soon as it is there. With --output, each picture gets its JSON
and a copy with the boxes drawn on it, and each video one line of JSON per frame and a copy with the boxes.
"""
EXAMPLES = """\
examples:
  dhead-trt infer yolov8n.xml street.jpg
  dhead-trt infer yolov8n.xml pictures/ --conf 0.4 -o results
  find /data -name '*.jpg' | dhead-trt infer yolov8n.xml - --jsonl found.jsonl
  dhead-trt infer yolov8n.xml drive.mp4 -o results
  dhead-trt infer yolov8n.xml camera:0 --frames 100 --jsonl -
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
        help="picture, folder, pattern, video, stream (rtsp://…), camera:0, .npz of arrays by input name, "
        "or - for a list of pictures on standard input, one a line",
    )
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="write NAME.json and NAME.png (the picture with its boxes) there; of a video NAME.jsonl and NAME.mp4",
    )
    add("--no-draw", action="store_true", help="with --output: JSON only")
    add("--conf", type=float, help="score threshold (default: 0.25, or what the plan holds)")
    add("--iou", type=float, help="IoU above which the lower score goes (default: 0.7, or what the plan holds)")
    add("--max-det", type=int, help="most detections of a picture (default: 300, or what the plan holds)")
    add(
        "--class",
        dest="classes",
        action="append",
        metavar="C",
        help="only this class (number or name); may be repeated",
    )
    add("--agnostic", action="store_true", default=None, help="suppress across classes")
    add("--multi-label", action="store_true", default=None, help="every class above --conf, not only a box's best")
    add("--stride", type=int, default=1, metavar="N", help="of videos: every how many frames one is looked at")
    add("--frames", type=int, metavar="N", help="of videos: stop after so many frames that were looked at")
    add("--device", metavar="NAME", help="device of the backend (default: its first)")
    add("--threads", type=int, metavar="N", help="threads of a CPU engine")
    add("--json", metavar="FILE", help="write all detections as one JSON list ('-': to standard output, nothing else)")
    add("--jsonl", metavar="FILE", help="write one line of JSON per picture or frame, as they come ('-' likewise)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.json == "-" and args.jsonl == "-":
        raise InputError("Only one of --json and --jsonl can go to standard output")
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise InputError("The output is a file", received=str(args.output), expected="a folder")
    videos = [text for text in args.inputs if is_video(text)]
    if videos and args.json is not None:
        raise InputError("Videos give one line of JSON per frame", received="--json", fix="Use --jsonl")
    paths = _paths([text for text in args.inputs if not is_video(text)])
    if len(paths) == 1 and not videos and not paths[0].exists():
        raise InputError("There is no such input", received=repr(str(paths[0])))
    features = [p for p in paths if p.suffix.lower() == ".npz"]
    if features and (len(features) != len(paths) or videos):
        raise InputError(
            "Pictures and .npz files cannot be mixed",
            received=f"{len(features)} of {len(paths) + len(videos)} are .npz",
        )
    if not paths and not videos:
        raise InputError("There is nothing to detect on", received="an empty list")
    _spare(args, [*paths, *map(Path, videos)], paths)
    started = time.monotonic()
    with Progress(enabled=not args.quiet) as progress, Lines(args.jsonl) as lines:
        progress("loading the engine")
        if features:
            found, failed, counted = *_on_features(args, paths, progress), ""
            for detections in found:
                lines.add(detections.to_dict())
        else:
            found, failed, counted = _on_images(args, paths, videos, progress, lines)
    if "-" not in (args.json, args.jsonl):
        rows = [
            [d.source, row.name, f"{row.confidence:.3f}", *(f"{v:.1f}" for v in row.xyxy)] for d in found for row in d
        ]
        if rows:
            print(table(["input", "class", "score", "x1", "y1", "x2", "y2"], rows, right=[2, 3, 4, 5, 6]))
        if counted:
            print(counted)
        if not args.quiet:
            took = duration(time.monotonic() - started)
            done = [f"{_count(len(rows), 'detection')} in {_count(len(paths) - len(failed), 'file')}"] * bool(paths)
            print(", ".join([*done, f"{took} with loading the engine"]))
            if args.output is not None:
                print(f"written to {args.output}")
    emit_json([d.to_dict() for d in found], args.json)
    for error in failed:
        print(f"error: {error}", file=sys.stderr)
    return 2 if failed else 0


def _paths(texts: Sequence[str]) -> list[Path]:
    """Files of the arguments, folders and patterns expanded, "-" replaced by the lines of standard input."""
    from ..images import expand_paths

    paths: list[Path] = []
    for text in texts:
        if text == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")  # names as the system has them, text or not
            paths += [Path(line) for line in (line.rstrip("\r\n") for line in sys.stdin) if line.strip()]
        else:
            paths += expand_paths(text) or [Path(text)]
    return paths


def _on_images(
    args: argparse.Namespace, paths: list[Path], videos: list[str], progress: Progress, lines: Lines
) -> tuple[list[Detections], list[DheadError], str]:
    """The results of pictures, what was wrong with those that could not be read (of a single one it is raised), and a
    table of what was found in videos."""
    from ..detector import Detector

    found: list[Detections] = []
    failed: list[DheadError] = []
    options = {name: getattr(args, name) for name in ("conf", "iou", "max_det", "agnostic", "multi_label")}
    with Detector(
        args.engine, device=args.device, threads=args.threads, classes=_classes(args.classes), **options
    ) as detector:
        results = zip(paths, _stems(paths, paths), _each(detector, paths), strict=True)
        for done, (path, stem, result) in enumerate(results, 1):
            if isinstance(result, DheadError):
                if len(paths) == 1 and not videos:
                    raise result
                failed.append(result)
                lines.add({"source": str(path), "error": str(result)})
                continue
            if args.output is not None:
                write_text(args.output / f"{stem}.json", result.to_json() + "\n")
                if not args.no_draw:
                    result.draw(path, args.output / f"{stem}.png")
            found.append(result)
            lines.add(result.to_dict())
            progress("detecting", done / len(paths))
        counted, bad = on_videos(detector, videos, args, progress, lines)
    if bad and len(videos) == 1 and not paths:
        raise bad[0]
    return found, failed + bad, counted


def _each(detector: Detector, paths: Sequence[Path]) -> Iterator[Any]:
    """Detections or an error for each picture, in order, a few of them on their way at once."""
    if (detector.engine.inputs[0].shape[0]) > 1:  # a batch that must be full
        yield from detector.stream(paths, on_error="return")
        return
    waiting: deque[Any] = deque()
    for path in paths:
        waiting.append(detector.submit(path))
        if len(waiting) > 4:
            yield _outcome(waiting.popleft())
    while waiting:
        yield _outcome(waiting.popleft())


def _outcome(future: Any) -> Any:
    try:
        return future.result()
    except DheadError as e:
        return e


def _on_features(
    args: argparse.Namespace, paths: list[Path], progress: Progress
) -> tuple[list[Detections], list[DheadError]]:
    """One result for each image of each file's batch; boxes are in pixels of the network input."""
    from ..detections import Detections, class_ids, ordered
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
                multi_label=args.multi_label,
            )
            first = inputs[engine.inputs[0].name]
            scale = spec.strides[0] if takes_features(engine.inputs, spec) else 1
            size = (first.shape[2] * scale, first.shape[3] * scale)
            for image, number in enumerate(out["num_dets"].reshape(-1).tolist()):
                found.append(
                    Detections(
                        ordered(out["det_boxes"][image, :number]),
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


def _spare(args: argparse.Namespace, read: list[Path], pictures: list[Path]) -> None:
    """Makes sure that no result is written over an input, or over a file of the engine.

    Raises:
        InputError: one would be.
    """
    engine = [args.engine, *(args.engine.with_suffix(suffix) for suffix in (".json", ".xml", ".bin"))]
    kept = {p.resolve() for p in (*read, *engine)}
    written = [(f"--{name}", Path(to)) for name in ("json", "jsonl") if (to := getattr(args, name)) not in (None, "-")]
    if args.output is not None:
        suffixes = (".json",) if args.no_draw else (".json", ".png")
        written += [
            (f"--output {args.output}", args.output / f"{stem}{suffix}")
            for stem in _stems(pictures, pictures)
            for suffix in suffixes
        ]
    for option, path in written:
        if path.resolve() in kept:
            raise InputError(
                "The results would replace a file that is read",
                received=option if option.startswith("--output") else f"{option} {path}",
                expected="another file" if option.startswith("--json") else f"a folder without {path.name}",
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
