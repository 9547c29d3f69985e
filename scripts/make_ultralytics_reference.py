"""Stores what Ultralytics' own predict finds on the test pages, for the Detector to be compared with.

    python scripts/make_ultralytics_reference.py            # writes tests/data/ultralytics_doclaynet.json

The original ONNX under ONNX Runtime, `conf=0.25`, `iou=0.7`, `imgsz=1024`, on the committed page and on those that the
tests draw (see `sample_pages` in tests/conftest.py). Ultralytics (AGPL-3.0) is a test tool, never a dependency: it runs
in a child process, out of the folders that scripts/make_test_models.py installs under the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "tests" / "data" / "ultralytics_doclaynet.json"
SIZE, CONF, IOU = 1024, 0.25, 0.7
PAGES = ((1, 1754), (2, 1024), (3, 900), (4, 2339), (5, 640))  # seed and height of the pages that are drawn


def script(name: str) -> Any:
    """A script of this folder, as a module."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def draw_pages(folder: Path) -> list[Path]:
    """The committed page, and the drawn ones as PNG files in `folder`."""
    from PIL import Image

    make_page = script("make_sample_page").make_page
    paths = [ROOT / "tests" / "data" / "sample_page.png"]
    for seed, height in PAGES:
        page = make_page(seed)
        size = (round(page.width * height / page.height), height)
        paths.append(folder / f"page{seed}.png")
        (page if size == page.size else page.resize(size, Image.Resampling.LANCZOS)).save(paths[-1])
    return paths


def digest(path: Path) -> str:
    """sha256 of an image's pixels, which Pillow and its fonts decide."""
    from PIL import Image

    with Image.open(path) as image:
        return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()


def make() -> dict[str, Any]:
    """Runs Ultralytics in a child process; what the JSON file holds."""
    models, model = script("make_test_models"), script("fetch_sample_model").fetch()
    cache = models.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    if not all((cache / "sites" / s / ".packages").is_file() for s in (models.NEW, "dependencies")):
        with models._locked(cache / "lock"):
            models._install(cache, print)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pages = draw_pages(folder)
        job = {"model": str(model), "pages": [str(p) for p in pages]}
        (folder / "job.json").write_text(json.dumps(job))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(str(cache / "sites" / s) for s in (models.NEW, "dependencies", "standins")),
            "YOLO_CONFIG_DIR": temporary,
            "YOLO_OFFLINE": "1",
            "YOLO_AUTOINSTALL": "0",
            "YOLO_VERBOSE": "0",
        }
        command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
        found = json.loads((folder / "found.json").read_text())
        return {
            "made_by": "scripts/make_ultralytics_reference.py",
            "versions": {
                "ultralytics": models.NEW,
                **{p: importlib.metadata.version(p) for p in ("torch", "onnxruntime", "pillow")},
            },
            "model_sha256": hashlib.sha256(Path(model).read_bytes()).hexdigest(),
            "options": {"imgsz": SIZE, "conf": CONF, "iou": IOU},
            "columns": ["left", "top", "right", "bottom", "score", "class"],
            "pages": [
                {"name": page.name, "pixels_sha256": digest(page), "detections": rows}
                for page, rows in zip(pages, found, strict=True)
            ],
        }


def worker() -> None:
    """In the child process, which alone imports ultralytics."""
    import torch

    torch.set_num_threads(2)
    ultralytics = importlib.import_module("ultralytics")
    nms = importlib.import_module("ultralytics.utils.nms")
    # The stand-in has no NMS; Ultralytics brings the same one for where torchvision is not imported.
    vars(importlib.import_module("torchvision.ops"))["nms"] = nms.TorchNMS.nms
    job = json.loads(Path("job.json").read_text())
    model = ultralytics.YOLO(job["model"], task="detect")
    found = []
    for page in job["pages"]:
        (result,) = model.predict(page, imgsz=SIZE, conf=CONF, iou=IOU, device="cpu", verbose=False)
        rows = result.boxes.data.double().tolist()
        found.append([[round(v, 4) for v in r[:4]] + [round(r[4], 7), int(r[5])] for r in rows])
    Path("found.json").write_text(json.dumps(found))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="the JSON file (default: tests/data/…)")
    args = parser.parse_args()
    if args.worker:
        worker()
        return 0
    data = make()
    pages = data.pop("pages")
    lines = []
    for page in pages:
        rows = ",\n".join(f"   {json.dumps(row)}" for row in page.pop("detections"))
        lines.append(f'  {json.dumps(page)[:-1]}, "detections": [\n{rows}\n  ]}}')
        print(f"{page['name']}: {rows.count('[')} detections", file=sys.stderr)
    text = json.dumps(data, indent=1)[:-2] + ',\n "pages": [\n' + ",\n".join(lines) + "\n ]\n}\n"
    json.loads(text)
    temporary = args.output.with_suffix(".part")
    temporary.write_text(text)
    os.replace(temporary, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
