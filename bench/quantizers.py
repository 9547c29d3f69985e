#!/usr/bin/env python3
"""Our int8 pass beside ONNX Runtime's, NNCF's and NVIDIA ModelOpt's quantizers: the same graph, data and measure.

    python bench/quantizers.py [--subject head scenes-head doclaynet] [--python OTHER/bin/python …] [--output FILE.json]

Subjects: `head`, the reference head (256, 512, 1024 channels, 640 px) with random weights, on random features;
`scenes-head`, the trained decoupled head of weights/scenes.safetensors on its backbone's features of generated scenes
(192 px); `doclaynet`, the sample model, in opset 17, on real pages (scripts/fetch_sample_model.py, make_test_pages.py).

Each quantizer runs in a process of its own, by the first interpreter that has it: this one, or those of --python, since
they do not all install side by side. Those that none has are named. All get the layers that make the raw maps as an
exclusion; the rest are their defaults for a CPU, but for the choices that the name says. Every graph then runs in ONNX
Runtime, its Q/DQ nodes as they are written, on data that calibrated nothing:

- rms: root mean square of (int8 - float32) over all values of the box maps, and of the class maps (logits)
- box, px: mean of abs(difference) of the decoded coordinates, over anchors of float32 score above 0.25 (if none: all)
- score: the largest abs(difference) of a decoded score. Both decodes are the float64 oracle's (dhead_trt.reference)
- AP50-95, F1@0.5, shift: of the accuracy gate; nothing where the float32 graph detects nothing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Rows = list[dict[str, np.ndarray]]

# -- the quantizers: (folder with model.onnx, calibration.npz, keep.json; variant) → int8.onnx in that folder --


def _data(folder: Path) -> Rows:
    with np.load(folder / "calibration.npz") as saved:
        arrays = {name: saved[name] for name in saved.files}
    return [{n: a[i : i + 1] for n, a in arrays.items()} for i in range(len(next(iter(arrays.values()))))]


def ours(folder: Path, variant: str, keep: list[str]) -> None:
    import onnx

    from dhead_trt.calibration import calibrate
    from dhead_trt.precision import to_int8

    model = onnx.load(folder / "model.onnx")
    ranges = calibrate(model, _data(folder), method=variant, threads=2)
    onnx.save(to_int8(model, ranges, keep=keep).model, folder / "int8.onnx")


def onnxruntime(folder: Path, variant: str, keep: list[str]) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(_data(folder))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    methods = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
    quantize_static(
        folder / "model.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=keep,
        calibrate_method=getattr(CalibrationMethod, methods[variant]),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "CalibPercentile": 99.99,
        },
    )


def nncf(folder: Path, variant: str, keep: list[str]) -> None:
    import nncf as library
    import onnx

    rows = _data(folder)
    preset = {"mixed": library.QuantizationPreset.MIXED, "performance": library.QuantizationPreset.PERFORMANCE}
    made = library.quantize(
        onnx.load(folder / "model.onnx"),
        library.Dataset(rows),
        preset=preset[variant],
        subset_size=len(rows),
        ignored_scope=library.IgnoredScope(names=keep) if keep else None,
    )
    onnx.save(made, folder / "int8.onnx")


def modelopt(folder: Path, variant: str, keep: list[str]) -> None:
    from modelopt.onnx.quantization import quantize

    rows = _data(folder)
    quantize(
        str(folder / "model.onnx"),
        quantize_mode="int8",
        calibration_data={n: np.concatenate([r[n] for r in rows]) for n in rows[0]},
        calibration_method=variant,
        calibration_eps=["cpu"],
        nodes_to_exclude=keep,
        high_precision_dtype="fp32",
        output_path=str(folder / "int8.onnx"),
    )


QUANTIZERS: dict[str, tuple[Callable[[Path, str, list[str]], None], str, tuple[str, ...]]] = {
    "ours": (ours, "dhead_trt", ("percentile", "minmax", "mse", "entropy")),
    "onnxruntime": (onnxruntime, "onnxruntime.quantization", ("minmax", "percentile", "entropy")),
    "nncf": (nncf, "nncf", ("mixed", "performance")),
    "modelopt": (modelopt, "modelopt.onnx", ("max", "entropy")),
}


def make(name: str, variant: str, folder: Path) -> None:
    """Runs one quantizer, in the process that `--make` starts; the cost goes into cost.json."""
    from importlib.metadata import version

    keep = json.loads((folder / "keep.json").read_text("utf-8"))
    started = time.monotonic()
    QUANTIZERS[name][0](folder, variant, keep)
    seconds = time.monotonic() - started
    package = {"ours": "numpy", "modelopt": "nvidia-modelopt"}.get(name, name)
    try:
        found = version(package)
    except Exception:  # onnxruntime-gpu brings the module under another name
        found = version("onnxruntime-gpu")
    cost = {"seconds": seconds, "peak_mb": _peak_mb(), "version": "" if name == "ours" else found}
    (folder / "cost.json").write_text(json.dumps(cost), "utf-8")


def _peak_mb() -> float:
    """Most memory this process had, in MB (Linux; getrusage would count what the parent had when it forked)."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


# -- the subjects: a float32 graph of form raw, and rows to calibrate and to measure with --


def _exported(module: Any, folder: Path, size: int) -> Any:
    import onnx

    from dhead_trt.export import export_onnx

    path = folder / "exported.onnx"
    export_onnx(module, path, form="raw", image_size=size, dynamic_batch=False)
    return onnx.load(path)


def head(folder: Path, calibration: int, held: int) -> tuple[Any, Rows, Rows]:
    import torch

    from dhead_trt.heads import YOLOv8DecoupledHead

    torch.manual_seed(0)
    module = YOLOv8DecoupledHead().eval()
    model = _exported(module, folder, 640)
    rng = np.random.default_rng(1)
    shapes = [(i.name, [d.dim_value for d in i.type.tensor_type.shape.dim]) for i in model.graph.input]
    rows = [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes} for _ in range(calibration + held)]
    return model, rows[:calibration], rows[calibration:]


def scenes_head(folder: Path, calibration: int, held: int) -> tuple[Any, Rows, Rows]:
    import torch

    from dhead_trt.training.data import Scenes
    from dhead_trt.training.model import load_weights

    detector = load_weights(ROOT / "weights" / "scenes.safetensors")
    model = _exported(detector.head, folder, 192)
    names = [i.name for i in model.graph.input]

    def features(count: int, seed: int) -> Rows:
        rows = []
        for i in range(count):
            image = torch.from_numpy(Scenes(count, (192, 192), "mixed", seed=seed).arrays(i)[0])
            with torch.inference_mode():
                made = detector.backbone(image[None].float() / 255)
            rows.append({n: f.numpy() for n, f in zip(names, made, strict=True)})
        return rows

    return model, features(calibration, 2027), features(held, 2026)


def doclaynet(folder: Path, calibration: int, held: int) -> tuple[Any, Rows, Rows]:
    from dhead_trt.images import load_image
    from dhead_trt.letterbox import letterbox
    from dhead_trt.precision.opset import upgrade
    from dhead_trt.surgery import convert, load_model

    def script(name: str) -> Path:
        command = [sys.executable, ROOT / "scripts" / name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return Path(done.stdout.strip().splitlines()[-1])

    def pages(files: Iterable[Path], count: int) -> Rows:
        chosen = sorted(files)
        chosen = [chosen[i * len(chosen) // count] for i in range(min(count, len(chosen)))]
        return [{"images": np.asarray(letterbox(load_image(p), (1024, 1024))[0][None])} for p in chosen]

    model = convert(upgrade(load_model(script("fetch_sample_model.py")), 17), form="raw", verify=False).model
    where = script("make_test_pages.py")
    return (
        model,
        pages((where / "calibration").glob("*.png"), calibration),
        pages((where / "heldout").glob("*.png"), held),
    )


SUBJECTS = {"head": (head, 8, 4), "scenes-head": (scenes_head, 64, 300), "doclaynet": (doclaynet, 6, 25)}


# -- measuring --


class Truth:
    """The float32 graph's maps, decoded boxes and scores, and its gate."""

    def __init__(self, model: Any, rows: Rows, threads: int) -> None:
        from dhead_trt.errors import InputError
        from dhead_trt.precision.gate import Gate
        from dhead_trt.precision.raw_run import MapRunner, spec_of

        self.spec, self.rows, self.threads, self.runner = spec_of(model, None), rows, threads, MapRunner
        self.maps = self._run(model)
        self.decoded = [self._decode(m) for m in self.maps]
        try:
            self.gate: Gate | None = Gate(model, rows, threads=threads)
        except InputError:  # it finds nothing
            self.gate = None

    def _run(self, model: Any) -> list[dict[str, np.ndarray]]:
        runner = self.runner(model, threads=self.threads)
        return [runner.run(row) for row in self.rows]

    def _decode(self, maps: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        from dhead_trt.reference import decode

        return decode(maps, self.spec)

    def measure(self, model: Any) -> dict[str, float]:
        """The figures of an int8 graph."""
        maps = self._run(model)
        figures = {}
        for kind in ("box", "cls"):
            error = [
                np.square(m[n] - t[n]).mean() for m, t in zip(maps, self.maps, strict=True) for n in t if kind in n
            ]
            size = [t[n].size for t in self.maps for n in t if kind in n]
            figures[f"{kind}_rms"] = float(np.sqrt(np.average(error, weights=size)))
        boxes, scores = [], []
        for m, (box, score) in zip(maps, self.decoded, strict=True):
            b, s = self._decode(m)
            sure = score.max(axis=-1) > 0.25
            boxes.append(np.abs(b - box)[sure])
            scores.append(float(np.abs(s - score).max()))
        if not any(map(len, boxes)):
            boxes = [np.abs(self._decode(m)[0] - box) for m, (box, _) in zip(maps, self.decoded, strict=True)]
        figures |= {"box_px": float(np.concatenate([b.ravel() for b in boxes]).mean()), "score": max(scores)}
        if self.gate is not None:
            report = self.gate.measure(model)
            figures |= {"ap50_95": report.ap50_95, "f1_50": report.f1_50, "score_shift": report.score_shift}
        return figures


def _interpreter(module: str, others: list[str]) -> str | None:
    """The first interpreter that has a module."""
    for python in (sys.executable, *others):
        code = f"import importlib.util as u; raise SystemExit(u.find_spec({module!r}) is None)"
        if subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0:
            return python
    return None


def compare(subject: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each quantizer and variant."""
    import onnx

    from dhead_trt.errors import DheadError
    from dhead_trt.precision import quantizable

    prepare, calibration, held = SUBJECTS[subject]
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        model, data, held_out = prepare(folder, args.images or calibration, args.held or held)
        onnx.save(model, folder / "model.onnx")
        np.savez(folder / "calibration.npz", **{n: np.concatenate([r[n] for r in data]) for n in data[0]})
        (folder / "keep.json").write_text(json.dumps([layer.name for layer in quantizable(model) if layer.last]))
        truth = Truth(model, held_out, args.threads)
        for name in args.quantizer:
            _, module, variants = QUANTIZERS[name]
            python = _interpreter(module, args.python)
            if python is None:
                print(f"{name}: not installed (module {module})", file=sys.stderr)
                continue
            for variant in variants:
                (folder / "int8.onnx").unlink(missing_ok=True)
                command = [python, __file__, "--make", name, variant, str(folder)]
                env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
                done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
                row = {"subject": subject, "quantizer": f"{name} {variant}", "calibrated_on": len(data)}
                if done.returncode or not (folder / "int8.onnx").exists():
                    row["error"] = (done.stderr.strip().splitlines() or ["no graph"])[-1][:200]
                else:
                    row |= json.loads((folder / "cost.json").read_text("utf-8"))
                    try:
                        row |= truth.measure(onnx.load(folder / "int8.onnx"))
                    except DheadError as e:
                        row["error"] = str(e)[:200]
                rows.append(row)
                print(f"{subject}: {row}", file=sys.stderr)
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """A table of one subject's rows, for docs/int8.md."""
    columns = {
        "quantizer": "{}", "version": "{}", "box_rms": "{:.3f}", "cls_rms": "{:.3f}", "box_px": "{:.3f}",
        "score": "{:.3f}", "ap50_95": "{:.3f}", "f1_50": "{:.3f}", "score_shift": "{:+.3f}", "seconds": "{:.0f}",
        "peak_mb": "{:.0f}",
    }  # fmt: skip
    columns = {c: f for c, f in columns.items() if any(c in row for row in rows)}
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [form.format(row[c]) if c in row else row.get("error", "") for c, form in columns.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", nargs="*", choices=SUBJECTS, default=["head", "scenes-head"])
    parser.add_argument("--quantizer", nargs="*", choices=QUANTIZERS, default=list(QUANTIZERS))
    parser.add_argument("--images", type=int, help="items to calibrate on (default: 8, 64, 6 of the three subjects)")
    parser.add_argument("--held", type=int, help="items to measure on (default: 4, 300, 25)")
    parser.add_argument("--python", nargs="*", default=[], help="interpreters that have what this one has not")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON of the rows")
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make[0], args.make[1], Path(args.make[2]))
        return
    found = {subject: compare(subject, args) for subject in args.subject}
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print("\n\n".join(f"{subject}\n\n{render(rows)}" for subject, rows in found.items() if rows))


if __name__ == "__main__":
    main()
