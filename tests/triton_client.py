"""A client of Triton, run in the environment that holds tritonclient: `python triton_client.py JOB.json OUT.npz`.

JOB: {"http": address, "grpc": address, "threads": n, "requests": [{"protocol", "model", "kind", "images": [paths],
"parameters"}, …]}. Sends them all, `threads` at a time, in order; writes for request i the arrays `i/name` and JSON of
what happened.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image

OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")
_local = threading.local()
_all: list[Any] = []


def client(job: dict[str, Any], protocol: str) -> Any:
    """This thread's own."""
    clients = _local.__dict__.setdefault("clients", {})
    if protocol not in clients:
        made: Any = (
            http.InferenceServerClient(job["http"], connection_timeout=120, network_timeout=120)
            if protocol == "http"
            else grpc.InferenceServerClient(job["grpc"])
        )
        clients[protocol] = made
        _all.append(made)
    return clients[protocol]


def tensor(protocol: str, kind: str, images: list[str]) -> Any:
    """`image` of a request."""
    if kind == "encoded":
        data = np.array([[Path(p).read_bytes()] for p in images], dtype=object)
    else:
        pixels = []
        for path in images:
            with Image.open(path) as image:
                pixels.append(np.asarray(image.convert("RGB")))
        data = np.stack(pixels)
    module: Any = http if protocol == "http" else grpc
    made = module.InferInput("image", list(data.shape), "BYTES" if kind == "encoded" else "UINT8")
    made.set_data_from_numpy(data)
    return made


def main() -> None:
    """Command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    arrays: dict[str, Any] = {}
    inputs = [tensor(r["protocol"], r["kind"], r["images"]) for r in job["requests"]]

    def send(index: int) -> dict[str, Any]:
        request = job["requests"][index]
        started = time.perf_counter()
        try:
            answer = client(job, request["protocol"]).infer(
                request["model"], [inputs[index]], parameters=request.get("parameters") or {}
            )
        except Exception as e:
            return {"error": str(e), "ms": (time.perf_counter() - started) * 1e3}
        ms = (time.perf_counter() - started) * 1e3
        for name in OUTPUTS:
            arrays[f"{index}/{name}"] = answer.as_numpy(name)
        return {"error": None, "ms": ms}

    started = time.perf_counter()
    with ThreadPoolExecutor(job["threads"]) as pool:
        told = list(pool.map(send, range(len(inputs))))
    record = {"requests": told, "seconds": time.perf_counter() - started}
    control = http.InferenceServerClient(job["http"])
    record["statistics"] = control.get_inference_statistics()
    control.close()
    for made in _all:
        made.close()
    np.savez(sys.argv[2], record=json.dumps(record), **arrays)


if __name__ == "__main__":
    main()
