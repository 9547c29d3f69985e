"""`dhead-trt val`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..progress import Progress
from .common import emit_json, image_size, spare

if TYPE_CHECKING:
    from ..detections import Detections

DESCRIPTION = """\
Measure how good an engine is: COCO's mAP on labelled images (--data), agreement with another engine or with the
original ONNX (--against), or both.

Exit status: 0, measured; 1, worse than --min-map or --min-f1 allows; 2, it could not be measured.
"""
EXAMPLES = """\
examples:
  dhead-trt val yolov8n.xml --data instances_val2017.json --images val2017/
  dhead-trt val yolov8n.xml --images val2017/ --against yolov8n.onnx --min-f1 0.99
  dhead-trt val yolov8n.xml --data labels.json --images pages/ --json report.json --plot report.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="an engine, or an ONNX file (run in ONNX Runtime)")
    add("--images", required=True, metavar="DIR", help="folder of the images; without --data also a pattern")
    add("--data", type=Path, metavar="FILE", help="labels in COCO's JSON format; file names are relative to --images")
    add("--against", type=Path, metavar="MODEL", help="another engine, or an ONNX file, to agree with")
    add("--limit", type=int, metavar="N", help="only the first N images")
    add("--conf", type=float, default=0.25, help="threshold of the compared and shown detections (default: 0.25)")
    add("--iou", type=float, default=0.7, help="IoU above which the lower score goes (default: 0.7)")
    add("--max-det", type=int, default=300, help="most detections of an image (default: 300)")
    add("--single-label", action="store_true", help="mAP of the best class of an anchor only")
    add("--min-map", type=float, metavar="X", help="fail below this mAP50-95")
    add("--min-f1", type=float, metavar="X", help="fail below this F1 at IoU 0.5, with --against")
    add("--image-size", type=image_size, metavar="HxW", help="size of the input where the model leaves it open")
    add("--device", metavar="NAME", help="device of the backend (default: its first)")
    add("--threads", type=int, metavar="N", help="threads of CPU engines")
    add("--json", metavar="FILE", help="write the reports as JSON ('-': to standard output, nothing else)")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw curves and worst images (two reports: NAME-agreement too)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..validate import CocoData, validate
    from ..validate.plot import plot_validation

    if args.data is None and args.against is None:
        raise InputError("There is nothing to measure against", expected="--data labels.json, --against MODEL, or both")
    for option, value, needs in (("--min-map", args.min_map, "--data"), ("--min-f1", args.min_f1, "--against")):
        if value is not None and getattr(args, needs[2:]) is None:
            raise InputError(f"{option} needs {needs}")
    spare((args.json, args.plot), (args.model, args.against), (args.data,))
    if args.limit is not None and args.limit < 1:
        raise InputError("--limit is out of range", received=args.limit, expected="1 or more")
    data = None if args.data is None else CocoData.load(args.data, args.images, limit=args.limit)
    paths = _paths(args.images, args.limit) if data is None else [i.path for i in data.images]
    report: dict[str, Any] = {}
    texts, good = [], True
    with Progress(enabled=not args.quiet) as progress:
        detector = _open(args.model, args)
        try:
            if data is not None:
                options = {"iou": args.iou, "max_det": args.max_det, "multi_label": not args.single_label}
                val = validate(detector, data, model=args.model.name, f1_conf=args.conf, progress=progress, **options)
                report["validation"] = val.to_dict()
                texts.append(val.render())
                good &= args.min_map is None or val.mean() >= args.min_map
                if args.plot is not None:
                    progress("drawing")
                    plot_validation(val, args.plot)
            if args.against is not None:
                agreement, text = _agreement(args, detector, paths, progress, apart=data is not None)
                report["agreement"] = agreement.to_dict()
                texts.append(text)
                good &= args.min_f1 is None or agreement.f1() >= args.min_f1
        finally:
            _close(detector)
    if args.json != "-":
        print("\n\n".join(texts))
    emit_json(report, args.json)
    return 0 if good else 1


def _agreement(
    args: argparse.Namespace, detector: Any, paths: list[Path], progress: Progress, *, apart: bool
) -> tuple[Any, str]:
    from ..validate import agree
    from ..validate.mean_ap import detect_all
    from ..validate.plot import plot_agreement

    options = {"conf": args.conf, "iou": args.iou, "max_det": args.max_det}
    other = _open(args.against, args)
    results: list[list[Detections]] = []
    try:
        for model, found in ((args.model, detector), (args.against, other)):

            def report(done: int, name: str = model.name) -> None:
                progress(f"comparing: {name}", done / len(paths))

            results.append(list(detect_all(found, paths, options, report)))
    finally:
        _close(other)
    agreement = agree(*results, names=(args.model.name, args.against.name), conf=args.conf)
    if args.plot is not None:
        progress("drawing")
        target = args.plot.with_name(f"{args.plot.stem}-agreement{args.plot.suffix}") if apart else args.plot
        plot_agreement(agreement, results[0], results[1], target)
    return agreement, agreement.render()


def _open(path: Path, args: argparse.Namespace) -> Any:
    if not path.is_file():
        raise InputError("There is no such model", received=repr(str(path)))
    if path.suffix.lower() == ".onnx":
        from ..validate import OnnxReference

        return OnnxReference(path, image_size=args.image_size, threads=args.threads)
    from ..detector import Detector

    return Detector(path, args.device, threads=args.threads, image_size=args.image_size)


def _close(detector: Any) -> None:
    close = getattr(detector, "close", None)
    if close is not None:
        close()


def _paths(text: str, limit: int | None) -> list[Path]:
    from ..images import expand_paths

    paths = expand_paths(text) or [Path(text)]
    if not paths[0].is_file():
        raise InputError("There is no such folder of images", received=repr(text))
    return paths[:limit]
