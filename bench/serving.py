"""Images per second of one machine: the Detector in process, behind Triton, and behind Ray Serve; same model and image.

    python bench/serving.py --output out/bench_serving.json

Triton and Ray run in environments of their own (see tests/serving_env.py). Clients send the encoded sample page, as a
camera's still would come; reading it counts. Latency is what a client waits, with all clients sending at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from common import command, machine, versions, write_json

from dhead_trt.build import build
from dhead_trt.detector import Detector
from dhead_trt.encoded import decode_image
from dhead_trt.serving import write_repository

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]


def quantiles(values: list[float]) -> dict[str, float]:
    """p50 and p95, milliseconds."""
    return {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (50, 95)}


def in_process(plan: Path, image: bytes, seconds: float, threads: int) -> dict[str, Any]:
    """`submit`, several images on their way."""
    with Detector(plan, threads=threads) as detector:
        waiting: deque[Any] = deque()
        done, times = 0, []
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            waiting.append((time.perf_counter(), detector.submit(decode_image(image))))
            if len(waiting) > 3:
                sent, result = waiting.popleft()
                result.result()
                times.append((time.perf_counter() - sent) * 1e3)
                done += 1
        elapsed = time.perf_counter() - started
        while waiting:
            waiting.popleft()[1].result()
    return {"images_per_s": round(done / elapsed, 2), "latency_ms": quantiles(times)}


def triton(plan: Path, page: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The pipeline and the ensemble, each with one client and with several."""
    import serving_env
    import test_triton

    python = serving_env.environment("triton", test_triton.PYTRITON, "tritonclient[http,grpc]")
    write_repository(plan, work / "models", name="whole", threads=args.threads, instances=args.instances)
    write_repository(plan, work / "models", name="steps", threads=args.threads, layout="ensemble")
    server = test_triton.start(python, work / "models", work)
    found = {}
    try:
        for model in ("whole", "steps"):
            for clients in (1, args.clients):
                one = {"protocol": "grpc", "model": model, "kind": "encoded", "images": [str(page)]}
                server.send([one] * 4, work, threads=2)
                record, _ = server.send([one] * (args.requests if clients > 1 else args.requests // 2), work, clients)
                assert not any(r["error"] for r in record["requests"])
                times = [r["ms"] for r in record["requests"]]
                found[f"Triton, {'pipeline' if model == 'whole' else 'ensemble'}, clients: {clients}"] = {
                    "images_per_s": round(len(times) / record["seconds"], 2), "latency_ms": quantiles(times)
                }  # fmt: skip
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(60)
    return found


def ray(plan: Path, page: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The example with one replica for each instance."""
    import serving_env
    import test_ray_serve
    import test_triton

    python = serving_env.environment("ray", test_ray_serve.RAY)
    job = {
        "app": str(ROOT / "examples" / "ray_serve"), "plan": str(plan), "images": [str(page)], "max_batch": 4,
        "port": test_triton.free_port(), "temporary": str(work / "r"), "replicas": args.instances, "ongoing": 16,
        "queued": 64, "threads": args.threads, "bench": [1, args.clients], "requests": args.requests,
    }  # fmt: skip
    (work / "ray.json").write_text(json.dumps(job))
    env = serving_env.plain(
        PYTHONPATH=os.pathsep.join([str(serving_env.package_under_test(work / "package")), job["app"]]),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="disabled",
        OMP_NUM_THREADS=str(args.threads),
    )
    driver = [str(python), str(ROOT / "tests" / "ray_driver.py"), str(work / "ray.json")]
    done = subprocess.run(driver, env=env, capture_output=True, text=True, timeout=400, cwd=work, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RECORD ")]
    if not lines:
        raise RuntimeError(done.stderr[-4000:])
    record = json.loads(lines[-1].removeprefix("RECORD "))
    return {
        f"Ray Serve, clients: {clients}": {
            "images_per_s": round(len(times) / seconds, 2), "latency_ms": quantiles(times)
        }
        for clients, (times, seconds) in record["bench"].items()
    }  # fmt: skip


def main() -> None:
    """Command line."""
    import fetch_sample_model

    import serving_env

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of each engine (default: 1)")
    parser.add_argument("--instances", type=int, default=2, help="copies of the model (default: 2)")
    parser.add_argument("--clients", type=int, default=8, help="that send at once (default: 8)")
    parser.add_argument("--requests", type=int, default=100, help="of each measurement (default: 100)")
    extensions = machine()["extensions"]
    fast = "avx512_bf16" in extensions or "amx_tile" in extensions
    parser.add_argument("--precision", default="bf16" if fast else "fp32", help="of the engine")
    parser.add_argument("--only", choices=["process", "triton", "ray"], action="append")
    parser.add_argument("--output", type=Path, help="write the record as JSON")
    args = parser.parse_args()
    page = ROOT / "tests" / "data" / "sample_page.png"
    work = serving_env.scratch("dhead-bench-")
    wanted = args.only or ["process", "triton", "ray"]
    results: dict[str, Any] = {}
    try:
        model = Path(fetch_sample_model.fetch())
        options = {"precision": args.precision, "batch": (1, 4, 8), "verify": False}
        plan = build(model, "openvino", output=work / "plan" / "page", **options).plan
        if "process" in wanted:
            results["in process, submit"] = in_process(plan, page.read_bytes(), 12, args.threads * args.instances)
        if "triton" in wanted:
            results |= triton(plan, page, work, args)
        if "ray" in wanted:
            results |= ray(plan, page, work, args)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name, row in results.items():
        latency = row["latency_ms"]
        print(f"{name:32} {row['images_per_s']:8.1f} images/s", *(f"  {q} {ms:7.1f} ms" for q, ms in latency.items()))
    if args.output is not None:
        record = {"command": command(), "machine": machine(), "versions": versions("openvino"), "results": results}
        write_json(args.output, record | {"precision": args.precision, "threads": args.threads})


if __name__ == "__main__":
    main()
