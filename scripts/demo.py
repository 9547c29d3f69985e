#!/usr/bin/env python3
"""What `make demo` runs: the reference head from PyTorch to engines, our own trained detector on generated scenes in
fp32, fp16 and INT8, then a real model on a document page.

    python scripts/demo.py

Everything it makes lies in out/ (or $OUT), and is listed at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from dhead_trt.progress import duration
from dhead_trt.tables import size, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "tests" / "data" / "sample_page.png"


def step(title: str, *command: object) -> None:
    """Shows and runs one command; a failure ends the demo with its exit status."""
    shown = " ".join(str(c).removeprefix(f"{ROOT}{os.sep}") for c in command)
    print(f"\n== {title}\n$ {shown}", flush=True)
    status = subprocess.run([str(c) for c in command], cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(f"error: the demo stops here: `{shown}` ended with status {status}")


def main() -> None:
    """Runs the demo."""
    started = time.monotonic()
    out = Path(os.environ.get("OUT") or "out")
    (ROOT / out).mkdir(parents=True, exist_ok=True)
    python = Path(sys.executable)
    dhead = [python, "-m", "dhead_trt"]
    script = Path("scripts")
    step("What is here", *dhead, "doctor")
    step(
        "The reference head, from PyTorch to engines",
        python,
        script / "build_engine.py",
        "--fp16",
        "--output",
        out / "reference-head-fp16",
    )
    scenes = out / "scenes"
    accuracy = [script / "scenes_accuracy.py", "--images", 200, "--calibration", 100, "--output", scenes, "--quiet"]
    step("Our own detector (weights/), on 200 scenes that it has never seen: mAP by precision", python, *accuracy)
    pictures = [scenes / "scenes" / "images" / f"{i:06d}.png" for i in range(3)]
    step("Detect on three of them, in INT8", *dhead, "infer", scenes / "scenes-int8.xml", *pictures, "-o", scenes)
    print("\n== A real trained model: YOLOv8n, 11 classes of document layout", flush=True)
    fetched = subprocess.run(
        [python, script / "fetch_sample_model.py"], cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True
    )
    if fetched.returncode:
        raise SystemExit(
            "error: the sample model could not be fetched (see above); the reference head's engines are made"
        )
    model = Path(fetched.stdout.strip())
    engine = out / "doclaynet.xml"
    step("Build it for this CPU", *dhead, "build", model, "--backend", "openvino", "-o", engine)
    page = PAGE.relative_to(ROOT)
    step(
        "Does the engine compute what the ONNX computes?", *dhead, "parity", engine, "--against", model, "--input", page
    )
    step("Detect on a document page", *dhead, "infer", engine, page, "-o", out)
    print(f"\n== Made in {duration(time.monotonic() - started)}")
    files = sorted(p for p in (ROOT / out).iterdir() if p.is_file())
    print(table(["file", "size"], [[out / p.name, size(p.stat().st_size)] for p in files], right=[1]))
    print(f"\nLook at {out / PAGE.name}: the page with its boxes; {out / PAGE.stem}.json has them as numbers.")


if __name__ == "__main__":
    main()
