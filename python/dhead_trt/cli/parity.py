"""`dhead-trt parity`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, InputError
from ..progress import Progress
from .common import add_head_options, emit_json, image_size, read_npz, resolve
from .export import refuse_head_options

DESCRIPTION = """\
Run a model in every way this machine can, on the same input, and compare each with the float64 oracle: the original's
own decode, ONNX Runtime, our C++ decode and detect at each SIMD level, and engines. What cannot run here is listed with
the reason, and never counted as passed.

With --layers, find where an engine departs instead: every inner tensor of the engine, built again with them as outputs,
against ONNX Runtime in fp32, in the order of the graph; the first tensor beyond the tolerance is named.

Exit status: 0, all that ran is within tolerance; 1, something is not; 2, it could not be compared.
"""
EXAMPLES = """\
examples:
  dhead-trt parity yolov8n.onnx                                  random input, engines built for the occasion
  dhead-trt parity yolov8n.onnx --input page.png --fp16 --bf16
  dhead-trt parity out/head.xml --against decoupled              an engine against the head it came from
  dhead-trt parity head.plan --against head.pt --head decoupled  … with its weights, a state dict
  dhead-trt parity yolov8n.onnx --engine a.xml --engine b.xml --json report.json --plot report.png
  dhead-trt parity n.plan --against yolov8n.onnx --layers        layer by layer: where does it go wrong?
"""
PICTURES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="an ONNX file, module:attribute of a torch head, or our 'decoupled' …; an engine, with --against",
    )
    add = parser.add_argument
    add("--against", metavar="MODEL", help="the original, where MODEL is an engine")
    add("--engine", action="append", default=[], metavar="PLAN", help="an engine to measure; may be repeated")
    add("--fp16", action="store_true", help="also in half precision (graph, and OpenVINO engine)")
    add("--bf16", action="store_true", help="also in bfloat16 (OpenVINO engine)")
    add("--input", type=Path, metavar="FILE", help="a picture, or .npz of the inputs by name (default: random)")
    add("--batch", type=int, metavar="N", help="batch of random input (default: the model's, or 1)")
    add("--image-size", type=image_size, metavar="HxW", help="size of the input where it is open (default: 640)")
    add("--conf", type=float, default=0.25, help="score threshold of the compared detections (default: 0.25)")
    add("--iou", type=float, default=0.7, help="IoU threshold of their NMS (default: 0.7)")
    add("--threads", type=int, metavar="N", help="threads of the C++ core and the engines")
    add("--levels", action="store_true", help="show the errors of each pyramid level too")
    add("--layers", action="store_true", help="compare every inner tensor, to find where an engine departs")
    add("--layer-tolerance", type=float, metavar="X", help="relative error of a tensor (default: by precision)")
    add("--backend", metavar="NAME", help="with --layers and no engine: what to build (default: openvino)")
    add("--json", metavar="FILE", help="write the report as JSON ('-': to standard output, nothing else)")
    add("--plot", type=Path, metavar="FILE", help="draw the distribution of the errors (.png, .svg, .pdf)")
    add_head_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from ..parity import plot, run_ladder

    engines = [Path(e) for e in args.engine]
    original = args.model
    if args.against is not None:
        engines.insert(0, Path(args.model))
        original = args.against
    elif _is_engine(Path(original)):
        raise InputError(
            "An engine alone has nothing to be compared with",
            received=original,
            fix="Name the original: --against model.onnx",
        )
    if args.plot is not None and args.plot.suffix.lower() not in PICTURES:
        raise InputError("The picture has no known format", received=str(args.plot), expected=", ".join(PICTURES))
    source = resolve(args, original)
    if source.path is not None:
        refuse_head_options(args)
    inputs = None if args.input is None else read_inputs(args.input, source.value, args.image_size)
    if args.layers:
        return _layers(args, source.value, engines, inputs, Path(original).name)
    for option in ("layer_tolerance", "backend"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option.replace('_', '-')} goes with --layers", received="no --layers")
    with Progress(enabled=not args.quiet) as progress:
        report = run_ladder(
            source.value,
            engines=engines,
            precisions=["fp32", *(p for p in ("fp16", "bf16") if getattr(args, p))],
            inputs=inputs,
            inputs_from="" if args.input is None else args.input.name,
            batch=args.batch,
            image_size=args.image_size,
            seed=args.seed,
            conf=args.conf,
            iou=args.iou,
            name=Path(original).name,
            threads=args.threads,
            progress=progress,
        )
    if args.json != "-":
        print(report.render(levels=args.levels))
    emit_json(report.to_dict(), args.json)
    if args.plot is not None:
        plot(report, args.plot)
    return 0 if report.passed else 1


def _layers(args: argparse.Namespace, model: Any, engines: list[Path], inputs: Any, name: str) -> int:
    """`--layers`: one engine, or one precision."""
    from ..backends import get_backend
    from ..parity import compare_layers, plot_layers

    chosen = [p for p in ("fp16", "bf16") if getattr(args, p)]
    if len(engines) > 1 or len(chosen) + len(engines) > 1 or (engines and args.backend is not None):
        raise InputError(
            "--layers looks at one engine", received="several", expected="an engine, or --backend with --fp16 or --bf16"
        )
    backend = get_backend(args.backend or "openvino").name
    with Progress(enabled=not args.quiet) as progress:
        report = compare_layers(
            model,
            engine=engines[0] if engines else None,
            backend=backend,
            precision=chosen[0] if chosen else "fp32",
            inputs=inputs,
            inputs_from="" if args.input is None else args.input.name,
            batch=args.batch,
            image_size=args.image_size,
            seed=args.seed,
            tolerance=args.layer_tolerance,
            name=name,
            threads=args.threads,
            progress=progress,
        )
    if args.json != "-":
        print(report.render())
    emit_json(report.to_dict(), args.json)
    if args.plot is not None:
        plot_layers(report, args.plot)
    return 0 if report.passed else 1


def _is_engine(path: Path) -> bool:
    from ..artifact import Artifact

    if not path.is_file() or path.suffix == ".onnx":
        return False
    try:
        Artifact.load(path, verify=False)
    except ArtifactError:
        return False
    return True


def read_inputs(path: Path, model: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    """The arrays of an .npz file, or a picture letterboxed to the model's input.

    Raises:
        InputError: the file is neither, or the model does not take pictures.
    """
    if not path.is_file():
        raise InputError("There is no such input", received=repr(str(path)))
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    from ..images import IMAGE_SUFFIXES, load_image
    from ..letterbox import letterbox
    from ..shapes import tensor_infos
    from ..surgery import load_model

    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(
            "The input is neither a picture nor .npz", received=path.name, expected=".png, .jpg, …, or .npz"
        )
    if not isinstance(model, Path):
        expected = "an .npz of the features by name"
        raise InputError("Pictures go into whole models, this is a head", received=path.name, expected=expected)
    inputs = tensor_infos(load_model(model))
    if len(inputs) != 1 or inputs[0].shape[1] != 3:
        raise InputError("The model does not take pictures", received=", ".join(t.describe() for t in inputs))
    height, width = inputs[0].shape[2:]
    if -1 in (height, width):
        height, width = size or (640, 640)
    chw, _ = letterbox(load_image(path), (height, width))
    return {inputs[0].name: chw[None]}
