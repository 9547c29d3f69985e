"""`dhead-trt triton-repo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import emit_json

DESCRIPTION = """\
Write a complete model repository for Triton Inference Server from an engine: configuration with dynamic batching,
instance groups and a bounded queue, labels, warm-up, and our pre- and post-processing as Python models.

An OpenVINO engine becomes one Python model that holds a Detector (pipeline); a TensorRT plan runs in Triton's own
TensorRT backend between two Python models (ensemble).
"""
EXAMPLES = """\
examples:
  dhead-trt triton-repo yolov8n.xml -o models --instances 2 --threads 2
  dhead-trt triton-repo yolov8n.engine -o models --max-batch 8 --delay-us 1000
  dhead-trt triton-repo yolov8n.xml -o models --layout ensemble --image pixels
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("engine", type=Path, metavar="PLAN", help="an engine that takes images, from dhead-trt build")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="the repository; may hold other models")
    add("--name", help="the model that clients call (default: the plan's name)")
    add("--layout", choices=["pipeline", "ensemble"], help="default: ensemble for TensorRT, else pipeline")
    add("--image", choices=["encoded", "pixels"], default="encoded", help="what clients send (default: encoded files)")
    add("--max-batch", type=int, metavar="N", help="most images of a batch (default: what the plan takes)")
    add("--instances", type=int, default=2, metavar="N", help="copies that run at a time (default: 2)")
    add("--gpu", type=int, action="append", default=[], metavar="N", help="a GPU of the network; may be repeated")
    add("--threads", type=int, metavar="N", help="CPU threads of each instance")
    add("--delay-us", type=int, default=2000, metavar="US", help="wait of a request for its batch (default: 2000)")
    add("--max-queue", type=int, metavar="N", help="requests that may wait; 0: any number (default: 64)")
    add("--timeout-us", type=int, default=0, metavar="US", help="longest wait of a request (default: no limit)")
    add("--conf", type=float, default=0.25, help="score threshold where a request gives none (default: 0.25)")
    add("--iou", type=float, default=0.7, help="IoU threshold where a request gives none (default: 0.7)")
    add("--max-det", type=int, default=300, help="rows of an answer (default: 300)")
    add("--json", metavar="FILE", help="write what was made as JSON ('-': to standard output, nothing else)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..serving import write_repository

    made = write_repository(
        args.engine,
        args.output,
        name=args.name,
        layout=args.layout,
        image=args.image,
        max_batch=args.max_batch,
        instances=args.instances,
        gpus=tuple(args.gpu),
        threads=args.threads,
        delay_us=args.delay_us,
        max_queue=args.max_queue,
        timeout_us=args.timeout_us,
        conf=args.conf,
        iou=args.iou,
        max_det=args.max_det,
    )
    if args.json != "-":
        for model in made.models:
            print(made.path / model)
    if not args.quiet:
        for note in made.notes:
            print(f"  note: {note}", file=sys.stderr)
        print(f"  tritonserver --model-repository={made.path}", file=sys.stderr)
    record = {"path": str(made.path), "name": made.name, "models": list(made.models), "notes": list(made.notes)}
    emit_json(record, args.json)
    return 0
