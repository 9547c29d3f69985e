"""Runs examples/ray_serve in the environment that holds Ray, loads it, kills a replica: `ray_driver.py JOB.json`.

JOB: {"app": folder of app.py, "plan", "images": [paths], "port", "replicas", "ongoing", "queued"}. Prints one line of
JSON with what every request got.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve


def ask(job: dict[str, Any], body: bytes, query: str = "") -> dict[str, Any]:
    """One request: its status and JSON; status 0 where the connection broke."""
    url = f"http://127.0.0.1:{job['port']}/{query}"
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as e:
        status, text = e.code, e.read()
    except (urllib.error.URLError, OSError) as e:
        return {"status": 0, "answer": str(e), "ms": (time.perf_counter() - started) * 1e3}
    try:
        told: Any = json.loads(text)
    except ValueError:
        told = text.decode(errors="replace")[:200]
    return {"status": status, "answer": told, "ms": (time.perf_counter() - started) * 1e3}


def load(job: dict[str, Any], bodies: list[bytes], count: int, clients: int) -> tuple[list[dict[str, Any]], float]:
    """`count` requests of `clients` at a time; and the seconds they took."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        told = list(pool.map(lambda i: {"image": i % len(bodies)} | ask(job, bodies[i % len(bodies)]), range(count)))
    return told, time.perf_counter() - started


def measure(job: dict[str, Any], bodies: list[bytes]) -> dict[int, Any]:
    """For bench/serving.py: by number of clients, each request's milliseconds, and the seconds of all."""
    found: dict[int, Any] = {}
    for clients in job["bench"]:
        load(job, bodies, 4, 2)
        rows, seconds = load(job, bodies, job["requests"] // (2 if clients == 1 else 1), clients)
        assert {r["status"] for r in rows} == {200}
        found[clients] = ([r["ms"] for r in rows], seconds)
    return found


def story(job: dict[str, Any], bodies: list[bytes]) -> dict[str, Any]:
    """Calm, bad requests, too many, the death of a replica under load, and calm again."""
    record: dict[str, Any] = {}
    record["calm"], record["calm_s"] = load(job, bodies, job["calm"], 4)
    record["bad"] = [ask(job, b"no image"), ask(job, b""), ask(job, bodies[0], "?conf=2"), ask(job, b"x", "?conf=a")]
    record["flood"], record["flood_s"] = load(job, bodies, job["flood"], job["flood_clients"])
    victim = next(r["answer"]["replica"] for r in record["calm"] if r["status"] == 200)
    killer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
    killer.start()
    under: list[dict[str, Any]] = []
    started = time.monotonic()
    while time.monotonic() - started < job["kill_s"]:  # load before, during and after the death
        more, _ = load(job, bodies, 40, 8)
        under += more
    killer.join()
    record["killed"], record["victims"] = under, [victim]
    recovered = time.monotonic() + 120
    while time.monotonic() < recovered:
        states = serve.status().applications["detection"].deployments["Detection"].replica_states
        record["states"] = {getattr(k, "value", str(k)): v for k, v in states.items()}
        if record["states"] == {"RUNNING": job["replicas"]}:
            break
        time.sleep(0.5)
    record["after"], record["after_s"] = load(job, bodies, job["calm"], 4)
    return record


def main() -> None:
    """Command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    import app  # its folder is on PYTHONPATH, for Ray's workers too

    ray.init(
        num_cpus=job["replicas"] * job.get("threads", 1) + 1,
        include_dashboard=False,
        object_store_memory=100 * 1024 * 1024,
        log_to_driver=False,
        _temp_dir=job["temporary"],
    )
    try:
        app.deploy(
            job["plan"], replicas=job["replicas"], threads=job.get("threads", 1), ongoing=job["ongoing"],
            queued=job["queued"], port=job["port"], max_batch=job["max_batch"], wait_ms=2 if "bench" in job else 20,
        )  # fmt: skip
        bodies = [Path(p).read_bytes() for p in job["images"]]
        record = {"bench": measure(job, bodies)} if "bench" in job else story(job, bodies)
    finally:
        serve.shutdown()
        ray.shutdown()
    print("RECORD " + json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
