"""The README of a Triton model: how to start the server, and how to call it."""

from __future__ import annotations

from collections.abc import Sequence

from ..artifact import Artifact
from .config import ModelConfig

__all__ = ["readme"]

_CLIENT = {
    "encoded": """\
    data = np.array([[open("street.jpg", "rb").read()]], dtype=object)           # [batch, 1]
    image = http.InferInput("image", list(data.shape), "BYTES")
    image.set_data_from_numpy(data)
""",
    "pixels": """\
    data = np.asarray(Image.open("street.jpg").convert("RGB"))[None]             # [batch, height, width, 3], RGB
    image = http.InferInput("image", list(data.shape), "UINT8")
    image.set_data_from_numpy(data)
""",
}


def readme(
    artifact: Artifact, name: str, configs: Sequence[ModelConfig], layout: str, image: str, notes: Sequence[str]
) -> str:
    """The text; `configs` of all models, the one that clients call first."""
    trt = artifact.backend == "tensorrt" and layout == "ensemble"
    rows = "\n".join(f"| `{c.name}` | {_what(c)} |" for c in configs)
    plugin = (
        ""
        if not trt or artifact.form == "raw"
        else f"""
The plan's form is `{artifact.form}`: it holds operators of dhead_trt, so Triton must load their library first:

    LD_PRELOAD=/path/to/libdhead_trt_plugins.so tritonserver --model-repository=…
    # or:  --backend-config=tensorrt,plugins=/path/to/libdhead_trt_plugins.so
"""
    )
    fixed = layout == "ensemble" and artifact.form == "detections"  # the plan holds its thresholds
    parameters = "" if fixed else ', parameters={"conf": "0.4"}'
    version = f"TensorRT {artifact.backend_version}; Triton must hold the same" if trt else artifact.backend_version
    return f"""# {name}

Written by `dhead-trt triton-repo` from `{artifact.plan.name}` ({artifact.backend} {artifact.precision}, form
{artifact.form}; built with {version}).

| model | what it does |
|---|---|
{rows}

## Start

    pip install "dhead-trt[cpu,image]"            # into the Python that Triton's Python backend runs
    tritonserver --model-repository=FOLDER
{plugin}
{"".join(f"- {n}" + chr(10) for n in notes)}
## Call

    import numpy as np, tritonclient.http as http
    client = http.InferenceServerClient("localhost:8000")
{_CLIENT[image]}    answer = client.infer("{name}", [image]{parameters})
    found = int(answer.as_numpy("num_dets")[0, 0])
    boxes = answer.as_numpy("det_boxes")[0, :found]                               # xyxy, pixels of the image

An image that cannot be read is an error of that request alone. Where more than the queue holds are waiting, requests
are refused at once ("Exceeds maximum queue size"): slow down, or add instances.
"""


def _what(config: ModelConfig) -> str:
    batch = f"batches of at most {config.max_batch}"
    if config.steps:
        return f"what clients call: an ensemble of the others; {batch}"
    kind = config.platform or "Python"
    where = f", {config.instances.count} × {config.instances.kind}" if config.instances else ""
    return f"{kind}{where}; {batch}"
