"""`dhead-trt inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..spec import HeadSpec
from ..tables import facts, size, table
from .common import emit_json

DESCRIPTION = """\
Show what an ONNX graph or an engine is: its form, its head, its inputs and outputs, and where each fact comes from.
"""
EXAMPLES = """\
examples:
  dhead-trt inspect yolov8n.onnx
  dhead-trt inspect out/head.plan
  dhead-trt inspect out/head.plan --json -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an ONNX graph, a plan, or its .json sidecar")
    parser.add_argument("--no-verify", action="store_true", help="don't compare an engine's files with their checksums")
    parser.add_argument("--json", metavar="FILE", help="write it as JSON ('-': to standard output, nothing else)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    path: Path = args.file
    if not path.exists():
        raise InputError("There is no such file", received=repr(str(path)))
    if path.suffix.lower() == ".onnx" or (not path.with_suffix(".json").exists() and path.suffix != ".json"):
        data, text = _graph(path)
    else:
        data, text = _engine(path, verify=not args.no_verify)
    if args.json != "-":
        print(text)
    emit_json(data, args.json)
    return 0


def _graph(path: Path) -> tuple[dict[str, Any], str]:
    from ..surgery import describe

    d = describe(path)
    spec = HeadSpec.from_dict(d["spec"])
    tail = ", ".join(f"{op} x{n}" if n > 1 else op for op, n in d["tail_operators"].items())
    text = facts(
        [
            ("file", f"{path.name}, {size(path.stat().st_size)}"),
            ("form", d["form"] + (f" (boxes {d['box_format']})" if d["box_format"] else "")),
            ("made by", d["producer"] or "unknown"),
            ("operator sets", ", ".join(f"{k} {v}" for k, v in d["opsets"].items())),
            ("nodes", f"{d['nodes']}" + (f"; in the tail: {tail}" if tail else "")),
            *_head(spec),
            ("inputs", "\n".join(f"{t['name']} {t['dtype']} {_shape(t['shape'])}" for t in d["inputs"])),
            ("outputs", "\n".join(f"{t['name']} {_shape(t['shape'])}" for t in d["outputs"])),
            ("raw maps", "\n".join(f"{name} = {tensor}" for name, tensor in d["maps"].items())),
            ("found in", "\n".join(f"{fact}: {source}" for fact, source in d["sources"].items())),
        ]
    )
    return {"file": str(path), "kind": "onnx", **d}, text


def _engine(path: Path, *, verify: bool) -> tuple[dict[str, Any], str]:
    from ..artifact import Artifact

    artifact = Artifact.load(path, verify=verify)
    capabilities = ", ".join(artifact.compute_capabilities)
    checked = "checksums match" if verify else "checksums not looked at"
    parts = [
        facts(
            [
                ("plan", f"{artifact.plan.name}, {size(sum(f.size for f in artifact.files))}, {checked}"),
                ("backend", f"{artifact.backend} {artifact.backend_version}"),
                ("precision", artifact.precision),
                ("form", artifact.form),
                *([("detection", artifact.detection.describe())] if artifact.detection is not None else []),
                *([("built for", f"compute capability {capabilities}")] if capabilities else []),
                *([("built on", artifact.gpu)] if artifact.gpu else []),
                ("built by", f"dhead_trt {artifact.dhead_trt}"),
                ("built from", f"ONNX with sha256 {artifact.source_sha256[:16]}…"),
                *(_head(artifact.spec) if artifact.spec is not None else []),
                *([("notes", "\n".join(artifact.notes))] if artifact.notes else []),
            ]
        ),
        table(
            ["", "tensor", "type", "shape"],
            [
                ["input" if t in artifact.inputs else "output", t.name, t.dtype, t.describe()]
                for t in (*artifact.inputs, *artifact.outputs)
            ],
        ),
    ]
    return {"file": str(artifact.plan), "kind": "engine", **artifact.to_dict()}, "\n\n".join(parts)


def _head(spec: HeadSpec) -> list[tuple[str, object]]:
    names = ", ".join(spec.names[:8]) + (", …" if len(spec.names) > 8 else "")
    return [
        ("classes", f"{spec.num_classes}" + (f": {names}" if names else "")),
        ("strides", ", ".join(map(str, spec.strides))),
        ("bins", f"{spec.bins}, distances in {'strides' if spec.distance_unit == 'stride' else 'pixels'}"),
        ("objectness", "yes" if spec.objectness else "no"),
        ("image size", "not fixed" if spec.image_size is None else "{}x{}".format(*spec.image_size)),
    ]


def _shape(shape: list[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"
