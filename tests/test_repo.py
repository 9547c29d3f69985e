"""The repository itself: no large files, no build products, no machine's paths, versions that agree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 2 * 1024 * 1024
PRODUCTS = re.compile(
    r"\.(so|o|a|dll|dylib|pyc|pyd|whl|onnx|pt|pth|safetensors|plan|engine|trt|blob|xml\.bin|tar|gz|zip|7z)$"
    r"|(^|/)(build|dist|out|__pycache__|\.venv|\.mypy_cache|\.ruff_cache|\.pytest_cache|node_modules)/"
)
OURS = {"weights/scenes.safetensors"}  # trained by this repository itself
# Assembled from pieces, so that this file does not match itself.
MACHINE_PATHS = re.compile(
    "|".join(rf"(?<![\w.~$}})/-])/{d}/(?=[\w.])" for d in ("home", "root", "work", "mnt", "Users"))
)
ALLOWED_PATHS = re.compile(r"/home/(user|you)/|/root/\.\.\.")
TEXT = {".py", ".pyi", ".md", ".toml", ".txt", ".sh", ".h", ".hpp", ".cpp", ".cc", ".cu", ".cuh", ".cmake", ".yaml",
        ".yml", ".json", ".in", ""}  # fmt: skip


def tracked() -> list[Path]:
    """Files in git's index that exist in the working tree; skipped where this is no clone."""
    try:
        out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone, or git is not installed: there is no list of tracked files")
    paths = [ROOT / name for name in out.stdout.decode().split("\0") if name]
    assert len(paths) > 20
    return [p for p in paths if p.is_file()]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_no_large_file() -> None:
    sizes = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked()}
    assert {n: s for n, s in sizes.items() if s > LARGEST} == {}


def test_no_build_products() -> None:
    names = {p.relative_to(ROOT).as_posix() for p in tracked()}
    assert sorted(n for n in names - OURS if PRODUCTS.search(n)) == []
    assert names >= OURS


def test_text_is_utf8_with_unix_line_ends_and_no_machine_paths() -> None:
    problems = []
    for path in tracked():
        if path.suffix not in TEXT:
            continue
        name = path.relative_to(ROOT).as_posix()
        if b"\r" in path.read_bytes():
            problems.append(f"{name}: carriage return")
        for number, line in enumerate(lines(path), 1):
            if MACHINE_PATHS.search(ALLOWED_PATHS.sub("", line)):
                problems.append(f"{name}:{number}: absolute path of a machine: {line.strip()[:100]}")
    assert problems == []


def test_nothing_is_tuned_to_one_machine() -> None:
    """No -march=native and the like, and every source file is named in CMake, not globbed."""
    forbidden = re.compile(r"-march=native|-mtune=native|-Ofast|-ffast-math|file\s*\(\s*GLOB|--use_fast_math", re.I)
    problems = [
        f"{p.relative_to(ROOT)}:{n}: {line.strip()}"
        for p in tracked()
        if p.name == "CMakeLists.txt" or p.suffix == ".cmake"
        for n, line in enumerate(lines(p), 1)
        if forbidden.search(line.split("#", 1)[0])
    ]
    assert problems == []


def test_the_checks_themselves_can_fail() -> None:
    assert PRODUCTS.search("models/a.onnx")
    assert PRODUCTS.search("build/x.txt")
    assert not PRODUCTS.search("a/builder.py")
    assert MACHINE_PATHS.search("open('/" + "home/me/a')")
    assert not MACHINE_PATHS.search("https://example.org/home/x")


def test_tool_versions_agree() -> None:
    """pre-commit and pyproject.toml pin the same linters; the package, CMake and the changelog the same version."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    for tool in ("ruff", "clang-format"):
        pin = re.search(rf'"{tool}==([\d.]+)"', pyproject)
        assert pin, f"{tool} is not pinned in pyproject.toml"
        assert set(re.findall(rf"\b{tool}==([\d.]+)", hooks)) == {pin[1]}
    found = re.search(r'^version = "([^"]+)"', pyproject, re.M)
    assert found
    version = found[1]
    init = (ROOT / "python/dhead_trt/__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{version}"' in init
    assert f"VERSION {version} " in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_named_extras_exist() -> None:
    """Every `dhead-trt[extra]` in code and documents is an extra of pyproject.toml."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = pyproject.split("[project.optional-dependencies]", 1)[1].split("\n[", 1)[0]
    extras = set(re.findall(r"^([a-z]+) = \[", block, re.M))
    assert {"onnx", "export", "cpu", "rtx", "trt", "image", "plot", "test", "dev"} <= extras
    unknown = []
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml"}:
            for match in re.finditer(r"dhead[-_]trt\[([a-z,]+)\]", path.read_text(encoding="utf-8")):
                unknown += [(path.name, e) for e in match[1].split(",") if e not in extras and e != "extra"]
    assert unknown == []
