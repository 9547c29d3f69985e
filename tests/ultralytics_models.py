"""The Ultralytics exports that the surgery tests run on, by name (see scripts/make_test_models.py)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from conftest import load_script

__all__ = ["JOBS", "detect_names", "refused_names", "ultralytics_model"]

_SCRIPT = load_script("make_test_models")
JOBS: dict[str, dict[str, Any]] = _SCRIPT.jobs()


def detect_names() -> list[str]:
    """Exports that must convert."""
    return [name for name in JOBS if not name.startswith("refuse-")]


def refused_names() -> list[str]:
    """Exports that must be refused."""
    return [name for name in JOBS if name.startswith("refuse-")]


@functools.cache
def _made() -> dict[str, Any] | str:
    try:
        models: dict[str, Any] = _SCRIPT.make()
    except _SCRIPT.MakeError as e:
        return f"the Ultralytics test models cannot be made here: {e}"
    return models


def ultralytics_model(name: str) -> Path:
    """Path of an export; skips with the reason where it cannot be made."""
    made = _made()
    if isinstance(made, str):
        pytest.skip(made)
    entry = made[name]
    if "error" in entry:
        pytest.skip(f"{name} cannot be exported here: {entry['error']}")
    path: Path = entry["path"]
    return path
