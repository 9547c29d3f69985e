"""The reference head on a CPU: PyTorch eager, ONNX Runtime and our engines, on the same input in one run.

    python bench/engine.py --threads 2 --output out/bench_engine.json

Features in (P3, P4, P5), raw maps out: the network alone, without decode. What is compared runs in turn, so that all
see the same machine. "direct" is our fp32 engine without Winograd convolutions (see dhead_trt.winograd).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Timing, command, interleave, machine, versions, write_json

from dhead_trt.artifact import Artifact
from dhead_trt.backends import get_backend
from dhead_trt.build import build
from dhead_trt.engine import Engine
from dhead_trt.export import export_onnx
from dhead_trt.heads import YOLOv8DecoupledHead

SIZES = {"reference": (256, 512, 1024), "light": (64, 128, 256)}
ENGINES: dict[str, dict[str, Any]] = {
    "ours fp32": {},
    "ours fp32 direct": {"options": {"winograd": False}},
    "ours bf16": {"precision": "bf16"},
    "ours bf16 winograd": {"precision": "bf16", "options": {"winograd": True}},
    "ours int8": {"precision": "int8", "calibration": "random"},
}
EAGER, RUNTIME = "torch eager fp32", "onnxruntime fp32"


def targets(extensions: list[str]) -> tuple[tuple[str, str, float], ...]:
    """(ours, theirs, at least so many times faster), for the reference head at batch 1."""
    wanted = (("ours bf16", EAGER, 4.0),) if "amx_tile" in extensions else (("ours fp32", EAGER, 1.2),)
    if {"avx512_vnni", "amx_tile"} & set(extensions):
        wanted += (("ours int8", EAGER, 4.0), ("ours int8", "ours fp32", 2.5))
    return wanted


def eager(head: torch.nn.Module, features: list[np.ndarray]) -> Callable[[], dict[str, np.ndarray]]:
    tensors = [torch.from_numpy(x) for x in features]

    def run() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {k: v.numpy() for k, v in head.raw(tensors).items()}

    return run


def runtime(path: Path, features: list[np.ndarray], threads: int) -> Callable[[], dict[str, np.ndarray]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    inputs = {i.name: x for i, x in zip(session.get_inputs(), features, strict=True)}
    return lambda: dict(zip(names, session.run(None, inputs), strict=True))


def error(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """Largest relative error of a map, ‖got - want‖ / ‖want‖."""
    return max(float(np.linalg.norm(got[k] - want[k]) / np.linalg.norm(want[k])) for k in want)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", choices=[*SIZES, "all"], default="reference")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--image", type=int, default=640)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns that each contestant gets; three calls or more in each"
    )
    parser.add_argument("--no-onnxruntime", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = machine()
    results = []
    for name in SIZES if args.head == "all" else [args.head]:
        torch.manual_seed(0)
        head = YOLOv8DecoupledHead(in_channels=SIZES[name]).eval()
        results += [measure(name, head, batch, args, where) for batch in args.batch]
    cpu = get_backend("openvino").availability().detail
    record = {
        "command": command(),
        "machine": where | {"openvino": dict(cpu)},
        "versions": versions("dhead-trt", "numpy", "torch", "openvino", "onnxruntime"),
        "threads": args.threads,
        "results": results,
    }
    if args.output:
        write_json(args.output, record)
        print(f"wrote {args.output}")
    return 0


def measure(name: str, head: YOLOv8DecoupledHead, batch: int, args: argparse.Namespace, where: dict[str, Any]) -> Any:
    rng = np.random.default_rng(0)
    levels = head.spec.level_shapes((args.image, args.image))
    features = [
        rng.standard_normal((batch, c, h, w)).astype(np.float32)
        for c, (h, w) in zip(head.in_channels, levels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / "head.onnx"
        export_onnx(head, onnx_path, image_size=args.image, form="raw", verify=False)
        runs: dict[str, Callable[[], dict[str, np.ndarray]]] = {EAGER: eager(head, features)}
        if not args.no_onnxruntime:
            runs[RUNTIME] = runtime(onnx_path, features, args.threads)
        engines: dict[str, Engine] = {}
        for i, (label, how) in enumerate(ENGINES.items()):
            artifact: Artifact = build(
                onnx_path, "openvino", output=Path(folder) / f"e{i}", batch=batch, verify=False, **how
            )
            engines[label] = Engine(artifact, output="raw", threads=args.threads)
            out = engines[label].infer(features)
            runs[label] = lambda e=engines[label], out=out: e.infer(features, out=out)  # type: ignore[misc]
        want = {k: v.copy() for k, v in runs[EAGER]().items()}
        errors = {label: error(run(), want) for label, run in runs.items()}
        timings = interleave(runs, args.rounds)
        precisions = {label: e.precision for label, e in engines.items()}
        for e in engines.values():
            e.close()
    return report(name, batch, args, where, timings, errors, precisions)


def report(
    name: str,
    batch: int,
    args: argparse.Namespace,
    where: dict[str, Any],
    timings: dict[str, Timing],
    errors: dict[str, float],
    precisions: dict[str, str],
) -> dict[str, Any]:
    base = timings[EAGER].median
    print(f"{name} head, batch {batch}, {args.image} px, {args.threads} threads, load {where['load_average']:.1f}")
    print(f"  {'':22} {'median ms':>10} {'min ms':>8} {'× eager':>8}  rel. error")
    for label, t in timings.items():
        note = (
            "" if precisions.get(label, "bf16") != "fp32" or "fp32" in label else "  (computed in fp32: no bf16 here)"
        )
        print(f"  {label:22} {t.median:10.1f} {t.minimum:8.1f} {base / t.median:8.2f}  {errors[label]:.1e}{note}")
    judged = []
    if name == "reference" and batch == 1:
        for ours, theirs, least in targets(where["extensions"]):
            ratio = timings[theirs].median / timings[ours].median
            verdict = "reached" if ratio >= least else "NOT reached"
            print(f"  target {ours} ≥ {least} × {theirs}: {ratio:.2f}, {verdict}")
            judged.append(
                {"ours": ours, "theirs": theirs, "at_least": least, "ratio": ratio, "reached": ratio >= least}
            )
    return {
        "head": name,
        "batch": batch,
        "image": args.image,
        "timings": {label: t.to_dict() | {"times_eager": base / t.median} for label, t in timings.items()},
        "relative_errors": errors,
        "computed_in": precisions,
        "targets": judged,
    }


if __name__ == "__main__":
    raise SystemExit(main())
