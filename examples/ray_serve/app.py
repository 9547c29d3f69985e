"""A detector behind Ray Serve: replicas, batches, and an answer of "not now" where more is asked than can be done.

    pip install "dhead-trt[cpu,image]" "ray[serve]"
    python app.py yolov8n.xml --replicas 2 --threads 2
    curl --data-binary @street.jpg "http://127.0.0.1:8000/?conf=0.4"

Each replica is a process with a Detector of its own. It makes batches of what arrives together; a request beyond those
that a replica works on waits in the proxy, and one beyond the queue is refused with 503 at once. A replica that dies is
replaced; the requests it was working on end in an error (5xx), never in silence.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from dhead_trt.detector import Detector
from dhead_trt.encoded import decode_image
from dhead_trt.errors import DheadError

MAX_UPLOAD = 16 * 1024 * 1024


@serve.deployment
class Detection:
    """POST an image file to it, get its detections as JSON."""

    def __init__(self, plan: str, threads: int, max_batch: int, wait_s: float) -> None:
        self._detector = Detector(plan, threads=threads)
        self._work = ThreadPoolExecutor(max(threads, 2))  # reading images and running the engine, off the event loop
        self._batched.set_max_batch_size(max_batch)
        self._batched.set_batch_wait_timeout_s(wait_s)

    async def __call__(self, request: Request) -> JSONResponse:
        """One image."""
        try:
            conf, iou = (float(request.query_params.get(n, v)) for n, v in (("conf", 0.25), ("iou", 0.7)))
            if int(request.headers.get("content-length", 0)) > MAX_UPLOAD:
                return JSONResponse({"error": f"more than {MAX_UPLOAD} bytes"}, 413)
        except ValueError as e:
            return JSONResponse({"error": str(e)}, 422)
        answer = await self._batched((await request.body(), conf, iou))
        return JSONResponse(answer, 422 if "error" in answer else 200)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.002)
    async def _batched(self, jobs: list[tuple[bytes, float, float]]) -> list[dict[str, Any]]:
        """Images that arrived together: read side by side, run in the engine's batches by equal thresholds."""
        loop = asyncio.get_running_loop()
        images = await asyncio.gather(*(loop.run_in_executor(self._work, _read, data) for data, _, _ in jobs))
        answers: list[dict[str, Any]] = [{}] * len(jobs)
        for conf, iou in dict.fromkeys((conf, iou) for _, conf, iou in jobs):
            members = [i for i, (_, c, o) in enumerate(jobs) if (c, o) == (conf, iou)]
            found = await loop.run_in_executor(self._work, self._detect, [images[i] for i in members], conf, iou)
            for i, result in zip(members, found, strict=True):
                answers[i] = result | {"replica": os.getpid(), "batch": len(jobs)}
        return answers

    def _detect(self, images: list[Any], conf: float, iou: float) -> list[dict[str, Any]]:
        readable = [i for i in images if not isinstance(i, DheadError)]
        try:
            found = iter(self._detector(readable, conf=conf, iou=iou) if readable else [])
        except DheadError as e:  # the thresholds
            return [{"error": str(e)}] * len(images)
        return [{"error": str(i)} if isinstance(i, DheadError) else next(found).to_dict() for i in images]


def _read(data: bytes) -> Any:
    try:
        return decode_image(data)
    except DheadError as e:
        return e


def deploy(
    plan: str,
    *,
    replicas: int = 2,
    threads: int = 2,
    max_batch: int = 8,
    wait_ms: float = 2.0,
    ongoing: int = 16,
    queued: int = 64,
    port: int = 8000,
    host: str = "127.0.0.1",
) -> None:
    """Starts the service in the Ray cluster that is connected.

    Args:
        plan: the engine's file; the same path on every node.
        replicas: processes, each with an engine.
        threads: CPU threads of each; Ray places replicas by this number.
        max_batch, wait_ms: images of one batch, and how long one waits for others.
        ongoing: requests that a replica works on or has waiting for a batch.
        queued: requests that wait in the proxy; further ones get 503.
        port, host: where the proxy listens.
    """
    serve.start(http_options={"host": host, "port": port})
    deployment = Detection.options(
        num_replicas=replicas,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        ray_actor_options={"num_cpus": threads},
        health_check_period_s=1,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=10,
    )
    serve.run(deployment.bind(os.path.abspath(plan), threads, max_batch, wait_ms / 1000), name="detection")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan", help="an engine, from dhead-trt build")
    for name, value in (("replicas", 2), ("threads", 2), ("max-batch", 8), ("ongoing", 16), ("queued", 64)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--wait-ms", type=float, default=2.0, help="of an image for its batch (default: 2)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--cluster", help="address of a running Ray cluster, such as auto (default: one in here)")
    options = vars(parser.parse_args())
    cluster = options.pop("cluster")
    if cluster is None:
        ray.init(
            num_cpus=options["replicas"] * options["threads"] + 1, include_dashboard=False, configure_logging=True,
            object_store_memory=200 * 1024 * 1024,
        )  # fmt: skip
    else:
        ray.init(address=cluster)
    deploy(options.pop("plan"), **options)
    print(f"http://{options['host']}:{options['port']}/", flush=True)
    try:
        while True:
            asyncio.run(asyncio.sleep(3600))
    except KeyboardInterrupt:
        if cluster is None:
            serve.shutdown()
        else:  # the cluster may serve other things too
            serve.delete("detection")


if __name__ == "__main__":
    main()
