"""From images to detections on a CPU: our Detector, and Ultralytics' own `predict`, in turn on the same pictures.

    python bench/ultralytics_predict.py --threads 2 --output out/bench_ultralytics.json

Ultralytics (AGPL-3.0) is a peer here, never a dependency: it runs in a child process out of folders of its own, which
scripts/make_test_models.py installs under the cache. It gets the same ONNX file (YOLOv8n, 1024 px; it runs it in ONNX
Runtime, here with the same number of threads) and the same decoded pictures. A turn is one unmeasured call, then one
measured call of each picture; both tell how many boxes they found.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CONF, IOU, SIZE = 0.25, 0.7, 1024
PEER = "Ultralytics predict"


class Peer:
    """Ultralytics in its process: one line with the numbers of pictures goes in, one line of JSON comes out."""

    def __init__(self, model: Path, pictures: Path, threads: int, folder: str) -> None:
        sys.path.insert(0, str(ROOT / "scripts"))
        models = importlib.import_module("make_test_models")
        cache = models.cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        if not all((cache / "sites" / s / ".packages").is_file() for s in (models.NEW, "dependencies")):
            with models._locked(cache / "lock"):
                models._install(cache, lambda text: print(text, file=sys.stderr))
        self.version = models.NEW
        sites = [str(cache / "sites" / s) for s in (models.NEW, "dependencies", "standins")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sites),
            "YOLO_CONFIG_DIR": folder,
            "YOLO_OFFLINE": "1",
            "YOLO_AUTOINSTALL": "0",
            "YOLO_VERBOSE": "0",
            "OMP_NUM_THREADS": str(threads),
        }
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker", str(model), str(pictures), str(threads)],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, picture: int) -> tuple[int, dict[str, float]]:
        """Boxes found, and milliseconds: "total", and Ultralytics' own "pre", "engine" and "post"."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{picture}\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"Ultralytics' process ended with status {self._child.wait()}")
        boxes, stages = json.loads(line)
        return boxes, stages

    def close(self) -> None:
        """Ends the process."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(timeout=30)


def worker(model: str, pictures: str, threads: int) -> None:
    """In the child process, which alone imports ultralytics."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes to standard error
    import onnxruntime as ort
    import torch

    torch.set_num_threads(threads)
    real = ort.InferenceSession

    def limited(path: str, options: Any = None, **more: Any) -> Any:
        options = options or ort.SessionOptions()
        options.intra_op_num_threads = threads
        return real(path, options, **more)

    ort.InferenceSession = limited
    ultralytics = importlib.import_module("ultralytics")
    nms = importlib.import_module("ultralytics.utils.nms")
    # The stand-in for torchvision has no NMS; Ultralytics brings the same one for where torchvision is not imported.
    vars(importlib.import_module("torchvision.ops"))["nms"] = nms.TorchNMS.nms
    with np.load(pictures) as arrays:
        images = [np.ascontiguousarray(arrays[name][:, :, ::-1]) for name in sorted(arrays.files)]  # it wants B, G, R
    network = ultralytics.YOLO(model, task="detect")
    for line in sys.stdin:
        image = images[int(line)]
        start = time.perf_counter()
        (result,) = network.predict(image, imgsz=SIZE, conf=CONF, iou=IOU, device="cpu", verbose=False)
        boxes = result.boxes.data.numpy()
        total = (time.perf_counter() - start) * 1e3
        speed = result.speed
        stages = {
            "total": total,
            "pre": speed["preprocess"],
            "engine": speed["inference"],
            "post": speed["postprocess"],
        }
        answers.write(json.dumps([len(boxes), stages]) + "\n")
        answers.flush()


def main() -> None:
    """Command line."""
    from common import command, machine, versions, write_json
    from PIL import Image

    from dhead_trt.bench import Latency, paired_ratio
    from dhead_trt.build import build
    from dhead_trt.detector import Detector

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each, four pictures a turn (default: 8)")
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "scripts"))
    model = Path(importlib.import_module("fetch_sample_model").fetch())
    with Image.open(ROOT / "tests" / "data" / "sample_page.png") as page:
        images = [np.asarray(page.convert("RGB"))]
    make_page = importlib.import_module("make_sample_page").make_page
    images += [np.asarray(make_page(seed)) for seed in (1, 2, 3)]
    info = machine()
    kinds = ["fp32"] + ["bf16"] * ("avx512_bf16" in info["extensions"] or "amx_tile" in info["extensions"])
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "pictures.npz", **{f"p{i}": im for i, im in enumerate(images)})
        peer = Peer(model, Path(folder) / "pictures.npz", args.threads, folder)
        detectors = {}
        for kind in kinds:
            plan = build(model, "openvino", output=Path(folder) / kind, precision=kind, verify=False).plan
            detectors[f"ours {kind}"] = Detector(plan, threads=args.threads, conf=CONF, iou=IOU)

        def ours(detector: Detector) -> Callable[[int], tuple[int, dict[str, float]]]:
            def run(picture: int) -> tuple[int, dict[str, float]]:
                start = time.perf_counter()
                found = len(detector(images[picture]))
                return found, {"total": (time.perf_counter() - start) * 1e3}

            return run

        runs: dict[str, Callable[[int], tuple[int, dict[str, float]]]] = {PEER: peer}
        runs |= {name: ours(d) for name, d in detectors.items()}
        boxes = {name: [run(i)[0] for i in range(len(images))] for name, run in runs.items()}
        rounds: dict[str, list[list[dict[str, float]]]] = {name: [] for name in runs}
        order = np.random.default_rng(0)
        for _ in range(args.rounds):
            for name in order.permutation(list(runs)):
                runs[name](0)
                rounds[name].append([runs[name](i)[1] for i in range(len(images))])
        peer.close()
        for detector in detectors.values():
            detector.close()
    record: dict[str, Any] = {
        "command": command(),
        "machine": info,
        "versions": {"ultralytics": peer.version, **versions("numpy", "torch", "onnxruntime", "openvino", "dhead-trt")},
        "threads": args.threads,
        "boxes": boxes,
        "results": {},
    }
    print(f"{args.threads} threads, {len(images)} pages, one image a call, ms")
    print(f"{'':24}{'p50':>8}{'p90':>8}{'pre':>8}{'engine':>8}{'post':>8}   times as fast (95 %)   boxes")
    medians = {n: [float(np.median([s["total"] for s in turn])) for turn in turns] for n, turns in rounds.items()}
    for name, turns in rounds.items():
        calls = [s for turn in turns for s in turn]
        total = Latency.of([s["total"] for s in calls])
        stages = {k: float(np.median([s[k] for s in calls])) for k in calls[0] if k != "total"}
        fast = paired_ratio(medians[PEER], medians[name])
        record["results"][name] = {
            "total_ms": total.to_dict(),
            "stages_ms": stages,
            "times_as_fast": fast.to_dict(),
            "rounds_ms": medians[name],
        }
        parts = "".join(f"{stages[k]:8.1f}" if k in stages else f"{'-':>8}" for k in ("pre", "engine", "post"))
        span = "" if fast.low is None or name == PEER else f"({fast.low:.2f} – {fast.high:.2f})"
        tail = f"{total.p90:8.1f}" if total.p90 is not None else f"{'-':>8}"
        print(f"{name:24}{total.p50:8.1f}{tail}{parts}   {fast.value:.2f} {span:18}   {boxes[name]}")
    if args.output:
        write_json(args.output, record)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
