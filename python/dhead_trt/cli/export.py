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
from .int8 import add_int8_options, int8_arguments

if TYPE_CHECKING:
    from ..quantize import Int8Options, Int8Result
    from ..spec import HeadSpec
    from ..surgery import Conversion

DESCRIPTION = """\
Write the ONNX graph of a PyTorch head, or convert an ONNX graph to another form.

Forms: native (outputs boxes and scores, decoded by ONNX operators), raw (ends at the head's maps; dhead_trt decodes
after the engine), decoded and detections (one DHeadDecode or DHeadDetect node, for TensorRT with our plugin).
Every graph is run in ONNX Runtime and compared with the original before it is written. With --int8 it gets Q/DQ nodes,
for trtexec and other runtimes: calibrated and checked as `dhead-trt build --int8` does it.
"""
EXAMPLES = """\
examples:
  dhead-trt export decoupled --size n -o head.onnx              our head, channels of YOLOv8n
  dhead-trt export decoupled --image-size 480x640 --fp16        half precision inside, fp32 outside
  dhead-trt export my_model:make_head --weights best.pt -o head.onnx
  dhead-trt export yolov8n.onnx --form raw -o yolov8n-raw.onnx  cut the tail off an Ultralytics export
  dhead-trt export yolov8n.onnx --int8 --fp16 --calib images/   int8 by Q/DQ, the rest in half precision
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_model(parser, accepts="module:attribute of a torch head (or of a function that makes one), or an ONNX file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="what to write (default: MODEL-FORM.onnx)")
    parser.add_argument("--form", choices=FORMS, help="default: native for a head, raw for an ONNX file")
    parser.add_argument(
        "--image-size", type=image_size, metavar="HxW", help="network input in pixels, 640 or 480x640 (default: 640)"
    )
    parser.add_argument(
        "--fp16",
        action="store_true",
        help="compute in half precision, but for the decode; with --int8: what is not int8",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="8-bit integers by Q/DQ nodes, by data of --calib; checked against float32 before anything is written",
    )
    add_int8_options(parser)
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
    int8 = _int8_options(args)
    source = resolve(args)
    if source.model is None:
        refuse_head_options(args, *(["image_size"] if int8 is None else []), "opset", "static_batch", "dynamic_size")
    form: Form = args.form or ("native" if source.model is not None else "raw")
    suffix = "".join(f"-{name}" for name in ("int8", "fp16") if getattr(args, name))
    output = need_output(args.output or Path(f"{source.name}-{form}{suffix}.onnx"))
    quantized: Int8Result | None = None
    # every step works on the staged file: a graph that fails a later step does not stay behind
    with Progress(enabled=not args.quiet) as progress, atomic_path(output) as staged:
        if source.model is not None:
            made = _export(args, source.model, form, staged, progress)
        else:
            assert source.path is not None
            made = _convert(args, source.path, form, staged, progress)
        if int8 is not None:
            quantized = _quantize(args, staged, int8, source.model is None, progress)
        elif args.fp16:
            _half(args, staged, progress)
    if quantized is not None:
        made["int8"] = list(quantized.notes)
        if quantized.mixed is not None:
            from ..quantize import write_mixed

            made["search"] = write_mixed(quantized.mixed, output.parent, output.stem)
    made = {"graph": str(output), "size": size(output.stat().st_size), **made}
    if not args.quiet and args.json != "-":
        print(facts({k: "\n".join(v) if isinstance(v, list) else v for k, v in made.items()}))
    emit_json(made if quantized is None else {**made, "int8_report": quantized.report}, args.json)
    return 0


def _int8_options(args: argparse.Namespace) -> Int8Options | None:
    """What --int8 asks for, checked; None without it."""
    given = int8_arguments(args, args.int8, "--fp16" if args.fp16 else "no --int8")
    if not args.int8:
        return None
    from ..quantize import Int8Options, check_options

    given["limit"] = given.pop("calib_images")
    options = Int8Options(**{name.removeprefix("calib_"): value for name, value in given.items()})
    check_options(options)
    return options


def _quantize(
    args: argparse.Namespace, output: Path, options: Int8Options, as_given: bool, progress: Progress
) -> Int8Result:
    """The float32 graph at `output`, replaced by its int8 form; `as_given`: its shape is not this command's choice."""
    from ..quantize import quantize
    from ..shapes import tensor_infos
    from ..spec import HeadSpec
    from ..surgery import load_model

    model = load_model(output)
    inputs = tensor_infos(model)
    if as_given and args.image_size is not None and -1 not in inputs[0].shape[2:]:
        raise InputError(
            "The graph's image size is fixed: --image-size says what to calibrate at where it is open",
            received="--image-size {}x{}".format(*args.image_size),
            expected=inputs[0].describe(),
            fix="Leave it out",
        )
    text = {p.key: p.value for p in model.metadata_props}.get("dhead_spec")
    spec = None if text is None else HeadSpec.from_json(text)
    if spec is not None and spec.image_size is None:
        spec = spec.replace(image_size=args.image_size)  # what images are letterboxed to where the graph leaves it open
    made = quantize(
        model,
        inputs,
        spec,
        options,
        high="float16" if args.fp16 else "float32",
        io_dtype="float16" if args.io_fp16 else "float32",
        progress=progress,
    )
    _save(made.model, output)
    return made


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
    compared = [f"{name}: at most {e['max']:.2e} off" for name, e in result.parity.items()]
    return {"form": form, **_described(result.spec), "against PyTorch": compared or "not compared"}


def _convert(args: argparse.Namespace, path: Path, form: Form, output: Path, progress: Progress) -> dict[str, Any]:
    """An ONNX graph: surgery."""
    conversion = _cut(args, path, form, output, progress)
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
