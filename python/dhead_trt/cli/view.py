"""`dhead-trt view`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import InputError
from ..progress import Progress

DESCRIPTION = """\
Serve a page on this machine that shows what an engine finds: drop, choose or paste an image, see boxes, scores and the
time of each stage, and move the thresholds.

Only this machine can reach the page unless --host says otherwise. Images stay in memory; nothing is written to disk and
nothing leaves the machine. Ctrl-C ends it.
"""
EXAMPLES = """\
examples:
  dhead-trt view yolov8n.xml
  dhead-trt view yolov8n.xml --port 0 --open
  dhead-trt view yolov8n.xml --conf 0.4 --max-upload 64
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("engine", type=Path, metavar="PLAN", help="an engine that takes images, from dhead-trt build")
    add(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1, this machine only)"
    )
    add("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    add("--open", action="store_true", help="open the page in a browser")
    add("--conf", type=float, help="score threshold at first (default: 0.25, or what the plan holds)")
    add(
        "--iou",
        type=float,
        help="IoU above which the lower score goes at first (default: 0.7, or what the plan holds)",
    )
    add("--max-det", type=int, help="most detections of an image, at first (default: 300, or what the plan holds)")
    add("--device", metavar="NAME", help="device of the backend (default: its first)")
    add("--threads", type=int, metavar="N", help="threads of a CPU engine")
    add("--max-upload", type=float, default=32, metavar="MIB", help="largest image file (default: 32)")
    add("--max-pixels", type=float, default=50, metavar="MILLIONS", help="most pixels of an image (default: 50)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..detector import Detector
    from ..view import Viewer

    if not (0 < args.max_upload < 1e6 and 0 < args.max_pixels < 1e6):
        raise InputError(
            "A limit is out of range",
            received=f"--max-upload {args.max_upload:g}, --max-pixels {args.max_pixels:g}",
            expected="more than 0",
        )
    given = {"conf": args.conf, "iou": args.iou, "max_det": args.max_det}
    options = {name: value for name, value in given.items() if value is not None}
    with Progress(enabled=not args.quiet) as progress:
        progress("loading the engine")
        detector = Detector(args.engine, device=args.device, threads=args.threads, **options)
    with (
        detector,
        Viewer(
            detector,
            host=args.host,
            port=args.port,
            max_upload=int(args.max_upload * 2**20),
            max_pixels=int(args.max_pixels * 1e6),
            options=options,
        ) as viewer,
    ):
        if not viewer.loopback:
            print(
                f"warning: listening on {viewer.host}, so everyone who can reach this machine can use the page; there "
                "is no password and no encryption",
                file=sys.stderr,
            )
        print(viewer.url, flush=True)
        if not args.quiet:
            print("Ctrl-C ends it", file=sys.stderr)
        if args.open:
            import webbrowser

            webbrowser.open(viewer.url)
        try:
            viewer.serve()
        except KeyboardInterrupt:
            if not args.quiet:
                print("stopped", file=sys.stderr)
    return 0
