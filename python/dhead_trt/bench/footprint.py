"""The memory that a model needs: in a process of its own, which opens it and calls it three times.

python -m dhead_trt.bench.footprint    # reads a job as JSON from standard input; `footprint` starts it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..spec import HeadSpec
from .meters import device_memory, resident
from .subjects import Model, Options, tensors

__all__ = ["footprint"]

_LIMIT_S = 120


def footprint(
    model: Model, batch: int, threads: int | None, options: Options, image_shape: tuple[int, ...]
) -> dict[str, float] | str:
    """MiB by name: "before_MiB", the process with the backend imported; "rss_MiB", after three calls; "peak_MiB", the
    most until then; "device_MiB" where NVML tells. Or a sentence that says why it is not known."""
    job = {
        "name": model.name, "path": str(model.path), "backend": model.backend, "precision": model.precision,
        "form": model.form, "spec": None if model.spec is None else model.spec.to_json(), "batch": batch,
        "threads": threads, "options": asdict(options), "image_shape": list(image_shape),
    }  # fmt: skip
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        child = subprocess.run(
            [sys.executable, "-m", "dhead_trt.bench.footprint"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            env=os.environ | {"PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return f"three calls took more than {_LIMIT_S} s"
    if child.returncode:
        lines = child.stderr.strip().splitlines()
        return lines[-1] if lines else f"its process ended with {child.returncode}"
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def _measure(job: dict[str, Any]) -> dict[str, float]:
    spec = None if job["spec"] is None else HeadSpec.from_json(job["spec"])
    model = Model(job["name"], Path(job["path"]), job["backend"], job["precision"], job["form"], spec)
    given = job["options"]
    size = given.pop("image_size")
    options = Options(image_size=None if size is None else (size[0], size[1]), **given)
    if model.backend == "onnxruntime":
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    else:
        from ..backends import get_backend

        get_backend(model.backend).availability()
    before = resident()
    device_before = device_memory()
    if before is None:
        raise SystemExit("this system has no /proc to read it from")
    images = [np.full(job["image_shape"], 114, np.uint8)]
    subject = model.open(job["threads"], options)
    arrays = tensors(subject, model.spec, images, job["batch"], options)
    for _ in range(3):
        subject.on_tensors(arrays)
        if subject.takes_images:
            subject.on_images(images * job["batch"])
    after, device = resident(), device_memory()
    assert after is not None
    result = {"before_MiB": before["rss"], "rss_MiB": after["rss"], "peak_MiB": after["peak"]}
    if device is not None:
        result["device_MiB"] = device - (device_before or 0.0)
    subject.close()
    return {name: round(value, 1) for name, value in result.items()}


if __name__ == "__main__":
    print(json.dumps(_measure(json.load(sys.stdin))))
