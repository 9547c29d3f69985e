"""From images to detections on a CPU: our Detector, and the usual ONNX Runtime + numpy/OpenCV pipeline, in one run.

    python bench/detector.py --threads 2 --output out/bench_detector.json

The same decoded document pages (uint8 RGB arrays), one image a call, the sample model (YOLOv8n, 1024 px). The usual
pipeline: cv2 letterbox, numpy to planar floats, ONNX Runtime on the whole graph, numpy filter, NMS by class offset with
cv2.dnn. All see the same machine in turn: each turn rests until the others' idle threads sleep, calls once unmeasured,
then measures. "direct" and "winograd" say how the wide 3×3 convolutions are computed (see dhead_trt.winograd; fp32 has
them by default, bf16 has not). int8 is calibrated on other pages. "submit" is the mean time of an image with several
on their way; its two numbers are the threads that prepare images and those that run the engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from common import Timing, command, machine, ratio, versions, write_json

from dhead_trt.build import build
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.letterbox import letterbox, plan_letterbox

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
CONF, IOU, SIZE = 0.25, 0.7, 1024
USUAL = "ONNX Runtime + OpenCV"
Stages = dict[str, float]
ENGINES: dict[str, dict[str, Any]] = {  # how they are built
    "fp32": {},
    "fp32 direct": {"options": {"winograd": False}},
    "bf16": {"precision": "bf16"},
    "bf16 winograd": {"precision": "bf16", "options": {"winograd": True}},
    "int8": {"precision": "int8", "min_agreement": None},
}
TARGETS = {"fp32": 1.5, "bf16": 4.0, "int8": 4.0}
MOST_POST = 3.0  # % of the total
WORKERS = ((1, 1), (2, 1))
REST_S = 0.02


def usual(path: Path, threads: int) -> Callable[[np.ndarray], tuple[int, Stages]]:
    """The pipeline that people write by hand; gives the number of boxes and milliseconds of its stages."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: np.ndarray) -> tuple[int, Stages]:
        start = time.perf_counter()
        height, width = image.shape[:2]
        gain = min(SIZE / height, SIZE / width)
        w, h = round(width * gain), round(height * gain)
        resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
        top, left = round((SIZE - h) / 2 - 0.1), round((SIZE - w) / 2 - 0.1)
        border = (top, SIZE - h - top, left, SIZE - w - left)
        canvas = cv2.copyMakeBorder(resized, *border, cv2.BORDER_CONSTANT, value=(114, 114, 114))
        batch = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None]).astype(np.float32) / 255
        prepared = time.perf_counter()
        (output,) = session.run(None, {"images": batch})
        ran = time.perf_counter()
        rows = output[0].T
        scores = rows[:, 4:].max(axis=1)
        keep = scores > CONF
        rows, scores = rows[keep], scores[keep]
        classes = rows[:, 4:].argmax(axis=1)
        boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]], axis=1)
        shifted = boxes + np.pad(classes[:, None] * 7680.0, ((0, 0), (0, 3))) if len(boxes) else boxes
        chosen = np.array(cv2.dnn.NMSBoxes(shifted.tolist(), scores.tolist(), CONF, IOU), dtype=int).reshape(-1)
        boxes = boxes[chosen]
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip((boxes - [left, top, left, top]) / gain, 0, [width, height, width, height])
        end = time.perf_counter()
        stages = {"pre": prepared - start, "engine": ran - prepared, "post": end - ran}
        return len(boxes), {k: v * 1e3 for k, v in stages.items()}

    return run


def ours(detector: Detector) -> Callable[[np.ndarray], tuple[int, Stages]]:
    """One call of the Detector; its stages are what the engine's own profile leaves on either side."""
    rows = 40
    box = plan_letterbox((64, 64), detector.image_size)
    found = (
        np.tile(np.array([10, 10, 30, 30], np.float32), (rows, 1)),
        np.full(rows, 0.5, np.float32),
        np.zeros(rows, int),
    )

    def run(image: np.ndarray) -> tuple[int, Stages]:
        with detector.engine.profile() as profile:
            start = time.perf_counter()
            number = len(detector(image))
            total = (time.perf_counter() - start) * 1e3
        call = profile.calls[0]
        start = time.perf_counter()  # boxes back to the image, as the call above did
        Detections(box.to_image(found[0]).astype(np.float32), found[1], found[2], detector.names, (64, 64))
        post = call["decode"] + (time.perf_counter() - start) * 1e3
        return number, {"pre": total - call["engine"] - post, "engine": call["engine"], "post": post}

    return run


def submitted(detector: Detector, images: list[np.ndarray], count: int) -> float:
    """Mean milliseconds of an image, several on their way."""
    waiting: deque[Any] = deque(detector.submit(images[0]) for _ in range(2))
    while waiting:
        waiting.popleft().result()
    start = time.perf_counter()
    for i in range(count):
        waiting.append(detector.submit(images[i % len(images)]))
        if len(waiting) > 4:
            waiting.popleft().result()
    while waiting:
        assert isinstance(waiting.popleft().result(), Detections)
    return (time.perf_counter() - start) * 1e3 / count


def quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 90, 99)}


def pages(seeds: range) -> list[np.ndarray]:
    import make_sample_page

    return [np.asarray(make_sample_page.make_page(seed)) for seed in seeds]


def build_engines(model: Path, names: list[str], folder: Path) -> dict[str, Path]:
    """Plans by name of the engine."""
    plans = {}
    for name in names:
        how = dict(ENGINES[name])
        if how.get("precision") == "int8":
            canvases = [letterbox(page, (SIZE, SIZE))[0][None] for page in pages(range(10, 18))]
            how["calibration"] = [{"images": canvas} for canvas in canvases]
        plans[name] = build(model, "openvino", output=folder / name.replace(" ", "_"), verify=False, **how).plan
    return plans


def measure(
    runs: dict[str, Callable[[np.ndarray], tuple[int, Stages]]], images: list[np.ndarray], rounds: int
) -> tuple[dict[str, list[Stages]], dict[str, Timing]]:
    """Stages of every call, and total times, each turn once over the images."""
    stages: dict[str, list[Stages]] = {name: [] for name in runs}
    totals = {name: Timing() for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(REST_S)
            run(images[0])
            turn = [run(image)[1] for image in images]
            stages[name] += turn
            sums = [sum(s.values()) for s in turn]
            totals[name].samples += sums
            totals[name].turns.append(float(np.median(sums)))
    return stages, totals


def letterbox_alone(image: np.ndarray, threads: int) -> dict[str, dict[str, float]]:
    """Quantiles of its milliseconds."""
    boxed = {}
    for dtype in ("float32", "float16"):
        canvas = np.empty((3, SIZE, SIZE), dtype)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            letterbox(image, (SIZE, SIZE), dtype=dtype, out=canvas, threads=threads)
            times.append((time.perf_counter() - start) * 1e3)
        boxed[dtype] = quantiles(times)
    return boxed


def report(stages: dict[str, list[Stages]], totals: dict[str, Timing]) -> dict[str, Any]:
    """Prints the table, gives its rows."""
    print(f"{'':24}{'total p50':>10}{'p90':>9}{'p99':>9}{'pre':>8}{'engine':>9}{'post':>8}{'post %':>8}   faster")
    results: dict[str, Any] = {}
    for name, rows in stages.items():
        total = quantiles(totals[name].samples)
        parts = {k: quantiles([s[k] for s in rows]) for k in rows[0]}
        share = 100 * parts["post"]["p50"] / total["p50"]
        faster = ratio(totals[USUAL], totals[name])
        results[name] = {"total_ms": total, **{f"{k}_ms": v for k, v in parts.items()}, **faster.to_dict()}
        line = "".join(f"{total[q]:>{w}.1f}" for q, w in (("p50", 10), ("p90", 9), ("p99", 9)))
        line += f"{parts['pre']['p50']:>8.2f}{parts['engine']['p50']:>9.1f}{parts['post']['p50']:>8.2f}{share:>7.1f}%"
        target = TARGETS.get(name.removeprefix("ours "))
        if target is not None:
            results[name] |= {"target": target, "met": faster.value >= target, "post_share_met": share <= MOST_POST}
        verdict = "" if target is None else f" target {target:g}x {'met' if faster.value >= target else 'NOT MET'}"
        print(f"{name:24}{line}   {'' if name == USUAL else faster}{verdict}")
    return results


def main() -> None:
    """Command line."""
    import fetch_sample_model
    from PIL import Image

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each, all pages in each (default: 10)")
    parser.add_argument("--engines", nargs="+", choices=sorted(ENGINES), help="default: all this CPU computes in")
    parser.add_argument("--pin", action="store_true", help="tie our engines' threads to cores (their load option)")
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    cv2.setNumThreads(args.threads)
    model = Path(fetch_sample_model.fetch())
    with Image.open(ROOT / "tests" / "data" / "sample_page.png") as page:
        images = [np.asarray(page.convert("RGB")), *pages(range(1, 4))]
    info = machine()
    has_bf16 = "avx512_bf16" in info["extensions"] or "amx_tile" in info["extensions"]
    names = args.engines or [n for n in ENGINES if has_bf16 or not n.startswith("bf16")]
    with tempfile.TemporaryDirectory() as folder:
        plans = build_engines(model, names, Path(folder))

        def opened(name: str, workers: tuple[int, int] = (2, 1)) -> Detector:
            threads = {"threads": args.threads, "workers": workers, "pin": args.pin}
            return Detector(plans[name], conf=CONF, iou=IOU, **threads)

        detectors = {f"ours {name}": opened(name) for name in names}
        runs = {USUAL: usual(model, args.threads)} | {name: ours(d) for name, d in detectors.items()}
        boxes = {name: [run(image)[0] for image in images] for name, run in runs.items()}
        stages, totals = measure(runs, images, args.rounds)
        for detector in detectors.values():
            detector.close()
        overlapped: dict[str, float] = {}
        for name in names:
            for workers in WORKERS:
                time.sleep(REST_S)
                with opened(name, workers) as detector:
                    overlapped[f"ours {name}, submit {workers}"] = submitted(detector, images, 4 * args.rounds)
        boxed = letterbox_alone(images[0], args.threads)
    print(f"{args.threads} threads, {len(images)} pages {images[0].shape[1]} × {images[0].shape[0]}, ms an image")
    record: dict[str, Any] = {
        "command": command(),
        "machine": info,
        "versions": versions("numpy", "opencv-python-headless", "onnxruntime", "openvino"),
        "threads": args.threads,
        "image": list(images[0].shape),
        "boxes": boxes,
        "letterbox_ms": boxed,
        "results": report(stages, totals),
        "submit_ms": overlapped,
    }
    record["targets"] = [
        {"ours": name, "of": USUAL, **row} for name, row in record["results"].items() if "target" in row
    ]
    base = totals[USUAL].median
    for name, value in overlapped.items():
        row = record["results"][name.partition(",")[0]]
        row["submit_ms"] = min(value, row.get("submit_ms", value))  # the better of the numbers of workers
        print(f"{name:34}{value:>6.1f}{'':46}{base / value:>5.2f}x")
    print(f"letterbox alone: float32 {boxed['float32']['p50']:.2f} ms, float16 {boxed['float16']['p50']:.2f} ms")
    print(f"boxes found on the pages: {boxes}")
    if args.output is not None:
        write_json(args.output, record)


if __name__ == "__main__":
    main()
