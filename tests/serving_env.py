"""Environments of the serving tests: a virtual environment each, made once and kept in the user's cache.

Triton and Ray want other versions of common packages than the test environment holds, and are large; so they are
installed beside it, and the package under test is put in front of their path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

import dhead_trt

ROOT = Path(__file__).resolve().parent.parent


def cache() -> Path:
    """$DHEAD_CACHE, or ~/.cache/dhead_trt."""
    return Path(os.environ.get("DHEAD_CACHE") or Path.home() / ".cache" / "dhead_trt").expanduser()


def environment(name: str, *requirements: str) -> Path:
    """The Python of a virtual environment with these packages, OpenVINO and Pillow of the versions here.

    Skips the test, with pip's own words, where they cannot be had.
    """
    wanted = [*requirements, *(f"{p}=={version(p)}" for p in ("openvino", "pillow"))]
    key = hashlib.sha256("\n".join([sys.version, sys.base_prefix, *wanted]).encode()).hexdigest()[:12]
    folder = cache() / "serving" / f"{name}-{key}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:  # several test runs may want it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "complete").exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        try:
            run(sys.executable, "-m", "venv", folder)
            run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--prefer-binary", *wanted)
        except subprocess.CalledProcessError as e:
            shutil.rmtree(folder, ignore_errors=True)
            last = (e.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"{name} is not tested: {' '.join(requirements)} cannot be installed here: {last}")
        (folder / "complete").write_text("\n".join(wanted))
    return python


def run(*command: object, seconds: float = 900) -> str:
    """Runs a command in the plain environment; gives its standard output."""
    text = [str(c) for c in command]
    done = subprocess.run(text, env=plain(), check=True, capture_output=True, text=True, timeout=seconds)
    return done.stdout


def plain(**more: str) -> dict[str, str]:
    """The environment variables without those of this Python."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST", "LD_LIBRARY_PATH")
    return {k: v for k, v in os.environ.items() if k not in hidden} | {"PYTHONNOUSERSITE": "1"} | more


def package_under_test(folder: Path) -> Path:
    """A folder that holds `dhead_trt`, the one that is imported here, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dhead_trt").symlink_to(Path(dhead_trt.__file__).parent, target_is_directory=True)
    return folder


def scratch(prefix: str) -> Path:
    """A folder with a short path: sockets in it have names of at most 107 bytes."""
    return Path(tempfile.mkdtemp(prefix=prefix))
