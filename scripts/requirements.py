"""Prints what pyproject.toml requires, one requirement a line, for `pip install -r`.

    python scripts/requirements.py build dev

"build" is the build system, the run-time dependencies, CMake and Ninja; any other word is an extra, with the extras it
names itself resolved. The Makefile installs requirements and package apart, so that a changed source costs a rebuild
and not a new look at every dependency.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def load(path: Path = PYPROJECT) -> dict[str, Any]:
    """pyproject.toml as a dictionary; Python 3.10 has no tomllib, but pip brings tomli."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        from pip._vendor import tomli as tomllib  # type: ignore[no-redef]
    return dict(tomllib.loads(path.read_text(encoding="utf-8")))


def requirements(data: dict[str, Any], groups: list[str]) -> list[str]:
    """The requirements of "build" and of extras, in order, without repeats and without the package itself."""
    project = data["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    itself = re.compile(rf"{re.escape(project['name'])}\[([\w,\s-]+)\]$")
    found: dict[str, None] = {}

    def add(extra: str) -> None:
        if extra not in extras:
            raise SystemExit(f"error: {extra!r} is not an extra of {project['name']}; there are {sorted(extras)}")
        for item in extras[extra]:
            match = itself.match(item)
            if match:
                for other in match[1].split(","):
                    add(other.strip())
            else:
                found[item] = None

    for group in groups:
        if group == "build":
            minimum = data["tool"]["scikit-build"]["cmake"]["version"]
            found.update(dict.fromkeys([*data["build-system"]["requires"], f"cmake{minimum}", "ninja"]))
            found.update(dict.fromkeys(project["dependencies"]))
        else:
            add(group)
    return list(found)


if __name__ == "__main__":
    print("\n".join(requirements(load(), sys.argv[1:])))
