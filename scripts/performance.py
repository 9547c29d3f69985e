#!/usr/bin/env python3
"""Measures everything that docs/performance.md shows, and writes it: the text, and the plots in docs/images.

    python scripts/performance.py                 # every stage that has no result yet, then the page
    python scripts/performance.py --fresh         # every stage anew
    python scripts/performance.py --budget 230    # no stage is begun that would go beyond; run again for the rest
    python scripts/performance.py --only decode engine
    python scripts/performance.py --page          # the page alone, of the results that are there

Each stage is one command of bench/ or of `dhead-trt bench`, whose JSON lands in out/performance. A stage is run again
only where its command has changed, its result is missing, or it is named; a run that was stopped goes on where it was.
What could not run here is listed on the page with its reason. Exit status: 0, done; 1, a stage failed; 3, stages are
left that the budget did not allow.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import performance_page

from dhead_trt.bench.machine import Bystanders

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "out" / "performance"
NOT_RUN = 3  # status of a benchmark that cannot run on this machine


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: of the stage and of its files.
        words: after `python`; "{json}" and "{plot}" stand for its files, "{models}" for the folder of built models,
            "{results}" for that of all results.
        quick: other words for --quick.
        seconds: about how long it takes on two cores.
    """

    name: str
    words: tuple[str, ...]
    quick: tuple[str, ...]
    seconds: float

    def command(self, results: Path, quick: bool) -> list[str]:
        """The command's words, with paths below the repository where they are inside."""
        places = {
            "json": _inside(results / f"{self.name}.json"),
            "plot": _inside(results / f"{self.name}.png"),
            "models": _inside(results / "models"),
            "results": _inside(results),
        }
        return [word.format(**places) for word in (self.quick if quick else self.words)]


def stages() -> list[Stage]:
    """All of them, in the order of the page."""
    out = ("--output", "{json}")
    build = ("scripts/performance.py", "--build", "--results", "{results}")
    model = "{models}/yolov8n-doclaynet"
    bench = ("-m", "dhead_trt", "bench", f"{model}.onnx", f"{model}-fp32.xml", f"{model}-bf16.xml")
    page = ("--images", "tests/data/sample_page.png", "--json", "{json}", "--plot", "{plot}", "-q")
    light = ("{models}/light-head-fp32.xml", "{models}/light-head-bf16.xml")
    batches = ("-m", "dhead_trt", "bench", *light, "--engine-only", "--batch", "1", "4", "16", "--no-memory")
    written = ("--json", "{json}", "--plot", "{plot}", "-q")
    decode, peers = ("bench/decode.py", "--threads", "2"), ("bench/decode_peers.py", "--threads", "2")
    engine, detector = ("bench/engine.py", "--threads", "2"), ("bench/detector.py", "--threads", "2")
    peer = ("bench/ultralytics_predict.py", "--threads", "2")
    scaling = ("bench/decode_scaling.py", *out, "--plot", "{plot}")
    boxed = ("bench/letterbox.py", *out)
    return [
        Stage("models", build, build, 40),
        Stage("decode", (*decode, "--rounds", "15", *out), (*decode, "--rounds", "2", *out), 30),
        Stage("decode_scaling", scaling, (*scaling, "--rounds", "2", "--most-anchors", "100000"), 50),
        Stage("decode_peers", (*peers, "--rounds", "8", *out), (*peers, "--rounds", "2", *out), 45),
        Stage("letterbox", (*boxed, "--rounds", "10"), (*boxed, "--rounds", "3"), 25),
        Stage("engine", (*engine, "--rounds", "3", *out), (*engine, "--rounds", "1", "--head", "light", *out), 70),
        Stage("detector", (*detector, "--rounds", "8", *out), (*detector, "--rounds", "4", *out), 40),
        Stage("ultralytics", (*peer, "--rounds", "6", *out), (*peer, "--rounds", "2", *out), 50),
        Stage(
            "bench",
            (*bench, "--threads", "1", "2", "--rounds", "10", "--warmup", "0.5", *page),
            (*bench, "--threads", "2", "--rounds", "6", "--warmup", "0", *page),
            75,
        ),
        Stage(
            "batches",
            (*batches, "--threads", "1", "2", "--rounds", "12", "--warmup", "0.3", *written),
            (*batches, "--threads", "2", "--rounds", "6", "--warmup", "0", *written),
            40,
        ),
        Stage("gpu", ("bench/gpu.py", "--json", "{json}"), ("bench/gpu.py", "--json", "{json}"), 5),
    ]


def build_models(folder: Path) -> None:
    """The engines that `dhead-trt bench` is shown with: a trained detector, and the light head."""
    import torch
    from fetch_sample_model import fetch

    from dhead_trt.backends import get_backend
    from dhead_trt.build import build
    from dhead_trt.heads import YOLOv8DecoupledHead

    folder.mkdir(parents=True, exist_ok=True)
    model = Path(fetch())
    (folder / "yolov8n-doclaynet.onnx").write_bytes(model.read_bytes())
    torch.manual_seed(0)
    head = YOLOv8DecoupledHead(in_channels=(64, 128, 256)).eval()
    for precision in get_backend("openvino").precisions:
        if precision in {"fp32", "bf16"}:
            build(
                model, "openvino", output=folder / f"yolov8n-doclaynet-{precision}", precision=precision, verify=False
            )
            build(
                head, "openvino", output=folder / f"light-head-{precision}", precision=precision, batch=(1, 4, 16),
                image_size=640, verify=False,
            )  # fmt: skip


def run_stage(stage: Stage, results: Path, quick: bool) -> dict[str, Any]:
    """Runs one stage, and keeps what it said; its record, with "status" "done", "not run" or "failed"."""
    words = stage.command(results, quick)
    target = results / f"{stage.name}.json"
    target.unlink(missing_ok=True)
    started, watch = time.monotonic(), Bystanders()
    child = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    record: dict[str, Any] = {
        "command": words,
        "seconds": round(time.monotonic() - started, 1),
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "quick": quick,
        "others_busy": watch.busy(),
        "output": child.stdout,
        "status": "done",
    }
    if child.returncode == NOT_RUN and not target.exists():
        record["status"] = "not run"
        record["reason"] = (child.stdout.strip().splitlines() or ["no reason given"])[-1].removeprefix("NOT RUN: ")
    elif child.returncode != 0 or (not target.exists() and stage.name != "models"):
        record["status"] = "failed"
        record["reason"] = (child.stderr.strip().splitlines() or [f"status {child.returncode}"])[-1]
        print(child.stderr, file=sys.stderr)
    performance_page.write(results / f"{stage.name}.stage.json", json.dumps(record, indent=2) + "\n")
    return record


def stored(stage: Stage, results: Path, quick: bool) -> dict[str, Any] | None:
    """The record of a stage that need not be run again."""
    path = results / f"{stage.name}.stage.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = record["command"] == stage.command(results, quick)
    there = record["status"] == "not run" or stage.name == "models" or (results / f"{stage.name}.json").is_file()
    return record if same and there and record["status"] != "failed" else None


def run_all(
    chosen: Sequence[Stage], results: Path, *, quick: bool, fresh: bool, named: bool, budget: float | None
) -> tuple[int, int]:
    """Runs what is to be run; how many failed, and how many are left."""
    results.mkdir(parents=True, exist_ok=True)
    started, failed, left = time.monotonic(), 0, 0
    for stage in chosen:
        known = None if fresh or named else stored(stage, results, quick)
        if known is not None:
            print(f"{stage.name}: kept ({known['status']}, {known['finished']})")
            continue
        expected = stage.seconds * (0.3 if quick else 1.0)
        if budget is not None and time.monotonic() - started + expected > budget:
            print(f"{stage.name}: left for the next run (about {expected:.0f} s)")
            left += 1
            continue
        print(f"{stage.name}: python {' '.join(stage.command(results, quick))}", flush=True)
        record = run_stage(stage, results, quick)
        failed += record["status"] == "failed"
        print(
            f"{stage.name}: {record['status']}, {record['seconds']:.0f} s {record.get('reason', '')}".rstrip(),
            flush=True,
        )
    return failed, left


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    names = [s.name for s in stages()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=f"run these anew: {', '.join(names)}")
    parser.add_argument("--fresh", action="store_true", help="run every stage anew")
    parser.add_argument("--quick", action="store_true", help="few rounds, in minutes less: figures that mean little")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no stage that would end later")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where results are kept (default: out/performance)"
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where performance.md goes (default: docs)")
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.build:
        build_models(args.results / "models")
        return 0
    failed = left = 0
    if not args.page:
        chosen = [s for s in stages() if args.only is None or s.name in args.only]
        failed, left = run_all(
            chosen, args.results, quick=args.quick, fresh=args.fresh, named=args.only is not None, budget=args.budget
        )
    records = {s.name: _record(s, args.results) for s in stages()}
    for path in performance_page.make(records, args.results, args.docs):
        print(f"wrote {_inside(path)}")
    return 1 if failed else 3 if left else 0


def _record(stage: Stage, results: Path) -> dict[str, Any] | None:
    path = results / f"{stage.name}.stage.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _inside(path: Path) -> str:
    """Relative to the repository where it is inside, as the commands run there."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def _commit() -> str:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
