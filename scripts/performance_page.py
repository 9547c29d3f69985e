"""docs/performance.md out of the results that scripts/performance.py keeps: its text and its plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from performance_sections import SECTIONS, prose

from dhead_trt.bench.report import machine_line, versions_line
from dhead_trt.files import atomic_path

__all__ = ["make", "write"]

LARGEST_PLOT = 200_000  # bytes
Record = dict[str, Any]


def make(records: Mapping[str, Record | None], results: Path, docs: Path) -> list[Path]:
    """Writes performance.md and its plots into `docs`.

    Args:
        records: what `run_stage` gave, by stage; None where a stage never ran.
        results: where the stages' JSON lies.
        docs: the folder of the page.

    Returns:
        The files written, the page last.

    Raises:
        ValueError: a plot is larger than 200 kB.
    """
    done = {n: r for n, r in records.items() if r is not None and r["status"] == "done" and n != "models"}
    data = {n: json.loads((results / f"{n}.json").read_text(encoding="utf-8")) for n in done}
    images = docs / "images"
    written: list[Path] = []
    parts = [_head(done, data)]
    for name, section in SECTIONS.items():
        if name not in data:
            continue
        text, plots = section(data[name], results, images)
        for plot in plots:
            path = images / plot
            if path.stat().st_size > LARGEST_PLOT:
                raise ValueError(f"{plot} has {path.stat().st_size} bytes, more than {LARGEST_PLOT}")
            written.append(path)
        parts.append(text + "\n\n" + _origin(done[name], data[name], data))
    parts.append(_not_run(records, data))
    written.append(write(docs / "performance.md", "\n\n".join(parts) + "\n"))
    return written


def write(path: Path, text: str) -> Path:
    """Writes a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


# -- the text around the sections --------------------------------------------------------------------------------------


def _head(done: Mapping[str, Record], data: Mapping[str, Record]) -> str:
    lines = ["# Performance", ""]
    lines += ["`python scripts/performance.py` measured what follows, and wrote this page.", ""]
    if not data:
        return "\n".join([*lines, "No result is there yet."])
    first = next(iter(data.values()))
    machine = {k: v for k, v in first["machine"].items() if k != "load_average"}
    versions: dict[str, str] = {}
    for result in data.values():
        versions |= result.get("versions", {})
    days = sorted({r["finished"][:10] for r in done.values()})
    commits = sorted({r["commit"] for r in done.values()})
    lines += [
        f"- Machine: {machine_line(machine)}; no figure uses more than 2 threads",
        prose(f"- Versions: {versions_line(versions)}"),
        f"- Date: {' to '.join(dict.fromkeys((days[0], days[-1])))} (UTC), commit {', '.join(commits)}",
    ]
    if any(r["quick"] for r in done.values()):
        lines.append("- **With `--quick`: few rounds, figures that mean little.**")
    lines += [
        "",
        prose("""
            What is compared ran in turn, in one process or (Ultralytics) in two, so that the
            machine's moods met all alike. Milliseconds are medians of single calls where nothing
            else is said. Under each table: its command, when it ended, how long it took, and the
            machine's load average as it began."""),
    ]
    return "\n".join(lines)


def _origin(record: Record, result: Record, data: Mapping[str, Record]) -> str:
    load = result["machine"].get("load_average")
    at = f"load {load:.1f}" if load is not None else "load unknown"
    words = "dhead-trt " + " ".join(record["command"][2:]) if record["command"][0] == "-m" else (
        "python " + " ".join(record["command"]))  # fmt: skip
    text = f"`{words}`, {record['finished'][11:16]} UTC, {record['seconds']:.0f} s, {at}"
    if record["others_busy"] is not None and record["others_busy"] > 0.2:
        text += f", others kept {record['others_busy']:.1f} processors busy"
    first = next(iter(data.values()))["machine"]["cpu"]
    return (
        text
        if result["machine"]["cpu"] == first
        else f"{text}, **on another machine: {machine_line(result['machine'])}**"
    )


def _not_run(records: Mapping[str, Record | None], data: Mapping[str, Record]) -> str:
    lines = ["## Not measured", ""]
    for name, record in records.items():
        if record is None:
            lines.append(f"- {_TITLES.get(name, name)}: this stage was not run")
        elif record["status"] != "done":
            lines.append(f"- {_TITLES.get(name, name)}: not run on this machine: {record['reason']}")
    lines += [f"- {sentence}" for sentence in dict.fromkeys(s for r in data.values() for s in r.get("not_run", []))]
    lines += [
        "- TensorRT's EfficientNMS, TensorRT-YOLO, tensorrtx, DeepStream-Yolo: they run on NVIDIA GPUs only.",
        "- Ultralytics with its own PyTorch weights (`.pt`): the sample model is published as ONNX only.",
    ]
    return "\n".join(lines)


_TITLES = {"gpu": "the kernels on a GPU (bench/gpu.py)", "ultralytics": "Ultralytics' predict", "models": "the models"}
