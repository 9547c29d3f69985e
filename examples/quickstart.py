#!/usr/bin/env python3
"""From an ONNX detector to boxes on a picture, in Python.

    python examples/quickstart.py yolov8n.onnx street.jpg

Without arguments it fetches the sample model (scripts/fetch_sample_model.py) and looks at the sample page.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dhead_trt.build import build
from dhead_trt.detector import Detector

ROOT = Path(__file__).resolve().parent.parent


def main(model: str, picture: str, out: Path) -> None:
    """Builds an engine for this CPU, runs it on a picture, and saves what it found."""
    artifact = build(model, backend="openvino", output=out / "engine.xml")
    with Detector(artifact.plan, conf=0.25) as detector:
        found = detector(picture)
    for detection in found:
        print(f"{detection.name:16s} {detection.confidence:.2f}  {[round(v, 1) for v in detection.xyxy]}")
    found.save_json(out / "found.json")
    found.draw(picture, out / "found.png")
    print(f"{found!r}\nwritten to {out}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        arguments = sys.argv[1:]
    else:
        script = ROOT / "scripts" / "fetch_sample_model.py"
        fetched = subprocess.run([sys.executable, script], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        arguments = [fetched, str(ROOT / "tests" / "data" / "sample_page.png")]
    folder = Path("out")
    folder.mkdir(exist_ok=True)
    main(*arguments, folder)
