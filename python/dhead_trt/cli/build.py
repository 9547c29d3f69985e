"""`dhead-trt build`, and what scripts/build_engine.py shares with it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackendUnavailable, InputError
from ..progress import Progress, duration
from ..tables import size, table
from .common import FORMS, Source, add_head_options, add_model, batch, emit_json, image_sizes, need_output, resolve
from .export import refuse_head_options
from .int8 import add_int8_options, int8_arguments

if TYPE_CHECKING:
    from ..artifact import Artifact

__all__ = ["Built", "add_arguments", "add_build_options", "build_all", "choose", "precision_of", "run", "summary"]

DESCRIPTION = """\
Turn an ONNX graph or a PyTorch head into an engine: export, surgery, precision and the backend's own builder, each step
checked. Beside the plan lies FILE.json, which says what the plan is; keep the two together.
"""
EXAMPLES = """\
examples:
  dhead-trt build yolov8n.onnx -o yolov8n                        for what this machine can run
  dhead-trt build yolov8n.onnx --backend openvino --bf16         for CPUs with AMX or AVX512-BF16
  dhead-trt build yolov8n.onnx --backend tensorrt_rtx --fp16 --batch 1,4,16
  dhead-trt build yolov8n.onnx --backend tensorrt_rtx --compute-capability 8.9 --compute-capability 12.0
  dhead-trt build yolov8n.onnx --int8 --calib images/            int8, checked on images held out of the calibration
  dhead-trt build decoupled --size s --backend all --fp16 -o out/head
"""
BACKEND_CHOICES = ("auto", "openvino", "tensorrt_rtx", "tensorrt", "all")


@dataclass(frozen=True)
class Built:
    """What became of one backend: an artifact and the seconds it took, or the reason why there is none."""

    backend: str
    artifact: Artifact | None = None
    seconds: float = 0.0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        if self.artifact is None:
            return {"backend": self.backend, "plan": None, "reason": self.reason}
        a = self.artifact
        return {
            "backend": a.backend,
            "plan": str(a.plan),
            "sidecar": str(a.sidecar),
            "bytes": sum(f.size for f in a.files),
            "precision": a.precision,
            "form": a.form,
            "seconds": round(self.seconds, 3),
            "notes": list(a.notes),
        }


def add_build_options(parser: argparse.ArgumentParser, *, backend: str) -> None:
    """Options of a build, without the model."""
    parser.add_argument(
        "--backend",
        action="append",
        choices=BACKEND_CHOICES,
        help=f"may be repeated; all: every one that can build here (default: {backend})",
    )
    precision = parser.add_mutually_exclusive_group()
    for name, text in (
        ("fp32", "single precision (the default)"),
        ("fp16", "half precision, but for the decode"),
        ("bf16", "bfloat16, for OpenVINO on CPUs that have it"),
        ("int8", "8-bit integers, by data of --calib; checked against float32 before anything is written"),
    ):
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=text)
    add_int8_options(parser)
    parser.add_argument(
        "--batch", type=batch, default=(1, 1, 1), metavar="N|MIN,OPT,MAX", help="batch size, or its range (default: 1)"
    )
    parser.add_argument(
        "--image-size",
        type=image_sizes,
        metavar="HxW",
        help="network input in pixels: 640, 480x640, or min,opt,max of these (default: the graph's own)",
    )
    parser.add_argument(
        "--compute-capability",
        action="append",
        metavar="X.Y",
        help="GPU to build for, such as 8.6; may be repeated (GPU backends; default: all the backend offers)",
    )
    parser.add_argument("--form", choices=FORMS, help="what the plan's outputs are (default: the best of the backend)")
    parser.add_argument("--no-verify", action="store_true", help="don't compare each step with the original")
    parser.add_argument("--json", metavar="FILE", help="write the summary as JSON ('-': to standard output)")
    add_head_options(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add_model(parser, accepts="an ONNX file of any form, or module:attribute of a torch head")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the plan to write (default: MODEL-PRECISION, with the backend's suffix)",
    )
    add_build_options(parser, backend="auto")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    source = resolve(args)
    if source.model is None:
        refuse_head_options(args)
    output = need_output(args.output or Path(f"{source.name}-{precision_of(args)}"))
    with Progress(enabled=not args.quiet) as progress:
        built = build_all(source, choose(args.backend or ["auto"]), args, output, progress)
    if not args.quiet and args.json != "-":
        print(summary(built))
    emit_json([b.to_dict() for b in built], args.json)
    return 0


def precision_of(args: argparse.Namespace) -> str:
    """The precision that the options name."""
    return str(args.precision or "fp32")


def choose(names: Sequence[str]) -> tuple[list[str], bool]:
    """The backends meant, each once, and whether those that cannot build may be passed over ("all")."""
    from ..backends import BACKENDS

    if "all" in names:
        if len(set(names)) > 1:
            raise InputError("--backend all stands alone", received=", ".join(names))
        return list(BACKENDS), True
    return list(dict.fromkeys(names)), False


def build_all(
    source: Source, backends: tuple[list[str], bool], args: argparse.Namespace, output: Path, progress: Progress
) -> list[Built]:
    """Builds one engine for each backend.

    Args:
        source: the model.
        backends: from `choose`.
        args: parsed options of `add_build_options`.
        output: the plan; with several backends their names are added to its stem, since each plan needs a sidecar.
        progress: told what happens.

    Raises:
        BackendUnavailable: a backend asked for by name cannot build here, or of "all" none can.
        DheadError: what `build` raises.
    """
    from ..backends import get_backend
    from ..build import build

    names, lenient = backends
    results: list[Built] = []
    for name in names:
        precision = precision_of(args)
        if lenient:
            backend = get_backend(name)
            able = backend.availability()
            if not able.can_build:
                results.append(Built(name, reason=able.reason))
                continue
            if precision not in backend.precisions:
                results.append(Built(name, reason=f"it does not build {precision}"))
                continue
        gpu = name.startswith("tensorrt")
        target = output if len(names) == 1 else output.with_name(f"{_stem(output)}-{name}")
        started = time.monotonic()
        artifact = build(
            source.value,
            name,
            output=target,
            precision=precision,
            batch=args.batch,
            image_size=args.image_size,
            form=args.form,
            compute_capabilities=args.compute_capability if gpu or not lenient else None,
            progress=lambda phase, done=None, name=name: progress(f"{name}: {phase}", done),  # type: ignore[misc]
            verify=not args.no_verify,
            **int8_arguments(args, precision == "int8", f"--{precision}"),
        )
        progress.done()
        results.append(Built(artifact.backend, artifact, time.monotonic() - started))
    if not any(b.artifact for b in results):
        raise BackendUnavailable(
            "No backend can build here",
            received="; ".join(f"{b.backend}: {b.reason.rstrip('.')}" for b in results),
            fix='For a CPU engine: pip install "dhead-trt[cpu]"',
        )
    return results


def summary(built: Sequence[Built]) -> str:
    """A table of what was built, the notes, and the backends passed over."""
    rows = []
    for b in built:
        if b.artifact is not None:
            a = b.artifact
            capabilities = ", ".join(a.compute_capabilities) or "any"
            total = size(sum(f.size for f in a.files))
            rows.append([str(a.plan), a.backend, a.precision, a.form, capabilities, total, duration(b.seconds)])
    lines = [table(["plan", "backend", "precision", "form", "capability", "size", "time"], rows, right=[5, 6])]
    for b in built:
        if b.artifact is not None:
            lines += [f"note: {b.artifact.plan.name}: {note}" for note in b.artifact.notes]
        else:
            lines.append(f"not built: {b.backend}: {b.reason}")
    return "\n".join(lines)


def _stem(output: Path) -> str:
    return output.stem if output.suffix in {".xml", ".plan", ".engine", ".trt"} else output.name
