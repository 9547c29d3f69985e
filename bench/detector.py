"""From images to detections on a CPU: our Detector, and the usual ONNX Runtime + numpy/OpenCV pipeline, in one run.

    python bench/detector.py --threads 2 --output out/bench_detector.json

The same decoded document pages (uint8 RGB arrays), one image a call, the sample model (YOLOv8n, 1024 px). The usual
pipeline: cv2 letterbox, numpy to planar floats, ONNX Runtime on the whole graph, numpy filter, NMS by class offset with
cv2.dnn. All see the same machine in turn. "submit" is the mean time of an image with several on their way.
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
from common import command, machine, versions, write_json

from dhead_trt.build import build
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.letterbox import letterbox, plan_letterbox

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
CONF, IOU, SIZE = 0.25, 0.7, 1024
USUAL = "ONNX Runtime + OpenCV"
Stages = dict[str, float]


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


def main() -> None:
    """Command line."""
    import fetch_sample_model
    import make_sample_page
    from PIL import Image

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40, help="calls of each, in turn (default: 40)")
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    cv2.setNumThreads(args.threads)
    model = Path(fetch_sample_model.fetch())
    with Image.open(ROOT / "tests" / "data" / "sample_page.png") as page:
        images = [np.asarray(page.convert("RGB"))]
    images += [np.asarray(make_sample_page.make_page(seed)) for seed in (1, 2, 3)]
    info = machine()
    kinds = ["fp32"] + ["bf16"] * ("avx512_bf16" in info["extensions"] or "amx_tile" in info["extensions"])
    with tempfile.TemporaryDirectory() as folder:
        detectors = {}
        for kind in kinds:
            plan = build(model, "openvino", output=Path(folder) / kind, precision=kind, verify=False).plan
            detectors[f"ours {kind}"] = Detector(plan, threads=args.threads, conf=CONF, iou=IOU)
        runs = {USUAL: usual(model, args.threads)} | {name: ours(d) for name, d in detectors.items()}
        stages: dict[str, list[Stages]] = {name: [] for name in runs}
        boxes = {name: [run(image)[0] for image in images] for name, run in runs.items()}
        for i in range(args.rounds):
            for name, run in runs.items():
                stages[name].append(run(images[i % len(images)])[1])
        overlapped = {name: submitted(d, images, args.rounds) for name, d in detectors.items()}
        boxed = {}
        for dtype in ("float32", "float16"):
            canvas = np.empty((3, SIZE, SIZE), dtype)
            times = []
            for _ in range(30):
                start = time.perf_counter()
                letterbox(images[0], (SIZE, SIZE), dtype=dtype, out=canvas, threads=args.threads)
                times.append((time.perf_counter() - start) * 1e3)
            boxed[dtype] = quantiles(times)
        for detector in detectors.values():
            detector.close()
    record: dict[str, Any] = {
        "command": command(),
        "machine": info,
        "versions": versions("numpy", "opencv-python-headless", "onnxruntime", "openvino"),
        "threads": args.threads,
        "image": list(images[0].shape),
        "boxes": boxes,
        "letterbox_ms": boxed,
        "results": {},
    }
    base = float(np.median([sum(s.values()) for s in stages[USUAL]]))
    print(f"{args.threads} threads, {len(images)} pages {images[0].shape[1]} × {images[0].shape[0]}, ms an image")
    print(f"{'':24}{'total p50':>10}{'p90':>9}{'p99':>9}{'pre':>8}{'engine':>9}{'post':>8}{'post %':>8}{'faster':>8}")
    for name, rows in stages.items():
        total = quantiles([sum(s.values()) for s in rows])
        parts = {k: quantiles([s[k] for s in rows]) for k in rows[0]}
        share = 100 * parts["post"]["p50"] / total["p50"]
        ratio = base / total["p50"]
        record["results"][name] = {"total_ms": total, **{f"{k}_ms": v for k, v in parts.items()}, "ratio": ratio}
        line = "".join(f"{total[q]:>{w}.1f}" for q, w in (("p50", 10), ("p90", 9), ("p99", 9)))
        line += f"{parts['pre']['p50']:>8.2f}{parts['engine']['p50']:>9.1f}{parts['post']['p50']:>8.2f}"
        print(f"{name:24}{line}{share:>7.1f}%{ratio:>7.2f}×")
    for name, value in overlapped.items():
        record["results"][name]["submit_ms"] = value
        print(f"{name + ', submit':24}{value:>10.1f}{'':60}{base / value:>5.2f}×")
    print(f"letterbox alone: float32 {boxed['float32']['p50']:.2f} ms, float16 {boxed['float16']['p50']:.2f} ms")
    print(f"boxes found on the pages: {boxes}")
    if args.output is not None:
        write_json(args.output, record)


if __name__ == "__main__":
    main()
