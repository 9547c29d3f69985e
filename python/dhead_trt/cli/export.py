"""`dhead-trt export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import atomic_path
from ..progress import Progress
from ..tables import facts, size
from .common import FORMS, Form, add_head_options, add_model, emit_json, image_size, need_output, resolve

if TYPE_CHECKING:
    from ..spec import HeadSpec
    from ..surgery import Conversion

DESCRIPTION = """\
Write the ONNX graph of a PyTorch head, or convert an ONNX graph to another form.

Forms: native (outputs boxes and scores, decoded by ONNX operators), raw (ends at the head's maps; dhead_trt decodes
after the engine), decoded and detections (one DHeadDecode or DHeadDetect node, for TensorRT with our plugin).
Every graph is run in ONNX Runtime and compared with the original before it is written.
"""
EXAMPLES = """\
examples:
  dhead-trt export decoupled --size n -o head.onnx              our head, channels of YOLOv8n
  dhead-trt export decoupled --image-size 480x640 --fp16        half precision inside, fp32 outside
  dhead-trt export my_model:make_head --weights best.pt -o head.onnx
  dhead-trt export yolov8n.onnx --form raw -o yolov8n-raw.onnx  cut the tail off an Ultralytics export
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_model(parser, accepts="module:attribute of a torch head (or of a function that makes one), or an ONNX file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="what to write (default: MODEL-FORM.onnx)")
    parser.add_argument("--form", choices=FORMS, help="default: native for a head, raw for an ONNX file")
    parser.add_argument(
        "--image-size", type=image_size, metavar="HxW", help="network input in pixels, 640 or 480x640 (default: 640)"
    )
    parser.add_argument("--fp16", action="store_true", help="compute in half precision, but for the decode")
    parser.add_argument("--io-fp16", action="store_true", help="with --fp16: inputs and outputs in half precision too")
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: 17)")
    parser.add_argument("--static-batch", action="store_true", help="batch 1 only, instead of any batch")
    parser.add_argument("--dynamic-size", action="store_true", help="any height and width")
    parser.add_argument("--no-verify", action="store_true", help="don't compare the graph with the original")
    parser.add_argument("--json", metavar="FILE", help="write what was made as JSON ('-': to standard output)")
    add_head_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.io_fp16 and not args.fp16:
        raise InputError("--io-fp16 goes with --fp16", received="--io-fp16 alone")
    source = resolve(args)
    if source.model is None:
        refuse_head_options(args, "image_size", "opset", "static_batch", "dynamic_size")
    form: Form = args.form or ("native" if source.model is not None else "raw")
    output = need_output(args.output or Path(f"{source.name}-{form}{'-fp16' if args.fp16 else ''}.onnx"))
    # every step works on the staged file: a graph that fails a later step does not stay behind
    with Progress(enabled=not args.quiet) as progress, atomic_path(output) as staged:
        if source.model is not None:
            made = _export(args, source.model, form, staged, progress)
        else:
            assert source.path is not None
            made = _convert(args, source.path, form, staged, progress)
    made = {"graph": str(output), "size": size(output.stat().st_size), **made}
    if not args.quiet and args.json != "-":
        print(facts({k: "\n".join(v) if isinstance(v, list) else v for k, v in made.items()}))
    emit_json(made, args.json)
    return 0


def refuse_head_options(args: argparse.Namespace, *more: str) -> None:
    """For an ONNX graph: the options of heads, and `more`, would do nothing, and are not passed over silently.

    Raises:
        InputError: one was given.
    """
    names = (*more, "size", "num_classes", "weights")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) not in (None, False)]
    if given:
        raise InputError(
            "An ONNX graph keeps what it was exported with: these options are for PyTorch heads",
            received=", ".join(given),
            fix="dhead-trt build sets batch and image size",
        )


def _export(args: argparse.Namespace, model: Any, form: Form, output: Path, progress: Progress) -> dict[str, Any]:
    """A torch head: exported as native or raw; the forms with a node of ours are made from that by surgery."""
    from ..export import export_onnx

    progress("exporting to ONNX" if args.no_verify else "exporting to ONNX, and comparing with PyTorch")
    first: Form = form if form in ("native", "raw") else "native"
    result = export_onnx(
        model,
        output,
        image_size=args.image_size,
        opset=17 if args.opset is None else args.opset,
        form=first,
        dynamic_batch=not args.static_batch,
        dynamic_size=args.dynamic_size,
        verify=not args.no_verify,
    )
    if form != first:
        _cut(args, output, form, output, progress)
    if args.fp16:
        _half(args, output, progress)
    compared = [f"{name}: at most {e['max']:.2e} off" for name, e in result.parity.items()]
    return {"form": form, **_described(result.spec), "against PyTorch": compared or "not compared"}


def _convert(args: argparse.Namespace, path: Path, form: Form, output: Path, progress: Progress) -> dict[str, Any]:
    """An ONNX graph: surgery."""
    conversion = _cut(args, path, form, output, progress)
    if args.fp16:
        _half(args, output, progress)
    report = conversion.report
    compared = [
        f"{what}: at most {report[key]:.2e} off"
        for what, key in (("boxes", "max_box_error_px"), ("scores", "max_score_error"))
        if report.get(key) is not None
    ]
    return {
        "form": f"{conversion.form} (was {conversion.source_form})",
        **_described(conversion.spec),
        "against the original": compared or "not compared",
    }


def _cut(args: argparse.Namespace, path: Path, form: Form, output: Path, progress: Progress) -> Conversion:
    from ..surgery import convert, load_model

    progress("reading the graph")
    model = load_model(path)
    progress(f"converting to {form}" if args.no_verify else f"converting to {form}, and comparing with the original")
    conversion = convert(model, form, verify=not args.no_verify)
    _save(conversion.model, output)
    return conversion


def _half(args: argparse.Namespace, output: Path, progress: Progress) -> None:
    from ..precision import to_fp16
    from ..surgery import load_model

    progress("converting to fp16")
    _save(to_fp16(load_model(output), io_dtype="float16" if args.io_fp16 else "float32"), output)


def _save(model: Any, output: Path) -> None:
    import onnx

    onnx.save(model, str(output))


def _described(spec: HeadSpec) -> dict[str, Any]:
    return {
        "classes": spec.num_classes,
        "strides": ", ".join(map(str, spec.strides)),
        "bins": spec.bins,
        "distance": spec.distance_unit,
        "objectness": "yes" if spec.objectness else "no",
    }
