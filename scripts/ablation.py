#!/usr/bin/env python3
"""Measure which part of the decoupled head gains how much: train, time, report.

    python scripts/ablation.py --jobs 2            # the whole study: hours on one core, about one on two
    python scripts/ablation.py --time              # milliseconds of each head through our OpenVINO engines
    python scripts/ablation.py --report docs/images --page docs/ablation.md     # the tables, a JSON and the two plots

Six configurations (coupled; decoupled; with focal loss; with IoU loss; with both; the full set with EMA) are trained on
generated scenes from several seeds, and the coupled and the decoupled head on further domains. Every run leaves
OUT/runs/<name>.json. A run that was stopped goes on where its last checkpoint is; a finished one is not repeated: the
same command goes on with a study that was killed.

Needs PyTorch, OpenVINO, faster-coco-eval and matplotlib: pip install "dhead-trt[export,cpu,val,plot,train]".
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dhead_trt.errors import DheadError, InputError
from dhead_trt.files import atomic_path
from dhead_trt.progress import Progress, duration
from dhead_trt.training.ablation import CONFIGURATIONS, EXTRAS, Run, Study, load_results, plan, run_one, scenes
from dhead_trt.training.ablation_report import Report, plot_domains, plot_study
from dhead_trt.training.ablation_time import time_heads

TIMINGS = "timings.json"


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0; 1 where a run failed; 2 for what cannot be used; 130 for Ctrl-C."""
    args = parse(argv)
    study = Study(
        size=args.size,
        backbone=args.backbone,
        train_images=args.train_images,
        val_images=args.val_images,
        epochs=args.epochs,
        batch=args.batch,
    )
    try:
        if args.run:
            name, domain, seed = args.run.rsplit("-", 2)
            return one(Run({**CONFIGURATIONS, **EXTRAS}[name], domain, int(seed)), study, args.out)
        if args.time:
            return measure(args.out, args.rounds)
        if args.report:
            return report(args.out, args.report, args.page)
        return run_all(args, study)
    except DheadError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    study = Study()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/ablation"), metavar="FOLDER", help="of the study")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each configuration")
    parser.add_argument("--domains", default="mixed,dense,small,low_light", help="the first for all configurations")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {', '.join({**CONFIGURATIONS, **EXTRAS})}")
    parser.add_argument("--extras", action="store_true", help="also the light and the dynamic head, and control runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--size", type=int, default=study.size, metavar="PIXELS", help="side of the scenes")
    parser.add_argument("--backbone", default=study.backbone, help="size, or channels of the stages and of the outputs")
    parser.add_argument("--train-images", type=int, default=study.train_images, help="scenes of a domain")
    parser.add_argument("--val-images", type=int, default=study.val_images, help="scenes to measure on")
    parser.add_argument("--epochs", type=int, default=study.epochs, help="of each run")
    parser.add_argument("--batch", type=int, default=study.batch, help="scenes of a step")
    parser.add_argument("--rounds", type=int, default=30, help="of --time")
    parser.add_argument("--time", action="store_true", help="time the heads of the finished runs")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="print the tables, write JSON and plots there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="with --report: also renew the tables of this page")
    parser.add_argument("--run", metavar="NAME", help=argparse.SUPPRESS)  # one run: what the jobs are started with
    return parser.parse_args(argv)


def one(run: Run, study: Study, out: Path) -> int:
    """One run, in this process."""
    import torch

    torch.set_num_threads(1)
    with Progress(sys.stderr) as progress:
        result = run_one(run, study, out, progress)
    print(f"{run.name}: mAP50-95 {result['map50_95']:.4f}, mAP50 {result['map50']:.4f}, {result['seconds']:.0f} s")
    return 0


def run_all(args: argparse.Namespace, study: Study) -> int:
    """All runs that are not finished, `jobs` at a time, each in a process of its own."""
    domains = [d.strip() for d in args.domains.split(",") if d.strip()]
    runs = plan(args.seeds, domains, extras=args.extras or args.only is not None)
    if args.only is not None:
        names = [n.strip() for n in args.only.split(",")]
        strange = [n for n in names if n not in {**CONFIGURATIONS, **EXTRAS}]
        if strange:
            raise InputError("There is no such configuration", received=", ".join(strange), expected="see --help")
        runs = [r for r in runs if r.configuration.name in names]
    waiting = [r for r in runs if not (args.out / "runs" / f"{r.name}.json").is_file()]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished", flush=True)
    with Progress(sys.stderr) as progress:  # drawn here, once, before several jobs want them
        for domain in dict.fromkeys(r.domain for r in waiting):
            scenes(study, domain, args.out, progress)
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in _PASSED]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running: dict[subprocess.Popen[bytes], Run] = {}
    failed: list[str] = []
    started, total = time.monotonic(), len(waiting)
    (args.out / "logs").mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < max(args.jobs, 1):
                run = waiting.pop(0)
                with open(args.out / "logs" / f"{run.name}.txt", "ab") as log:
                    command = [sys.executable, os.path.abspath(__file__), "--run", run.name, "--out", str(args.out)]
                    job = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=environment)
                running[job] = run
            time.sleep(0.2)
            for job in [j for j in running if j.poll() is not None]:
                run = running.pop(job)
                if job.returncode:
                    failed.append(run.name)
                    print(f"{run.name} failed: see {args.out / 'logs' / (run.name + '.txt')}", file=sys.stderr)
                    continue
                result = json.loads((args.out / "runs" / f"{run.name}.json").read_text("utf-8"))
                done = total - len(waiting) - len(running)
                left = (time.monotonic() - started) / done * (total - done)
                print(
                    f"[{done}/{total}] {run.name}: mAP50-95 {result['map50_95']:.4f}; {duration(left)} left", flush=True
                )
    finally:
        for job in running:
            job.send_signal(signal.SIGINT)  # a run writes its checkpoint
        for job in running:
            job.wait()
    return 1 if failed else 0


_PASSED = ("size", "backbone", "train_images", "val_images", "epochs", "batch")


def measure(out: Path, rounds: int) -> int:
    """Times one engine of each head that has a finished run."""
    timings = time_heads(out, load_results(out), rounds=rounds)
    with atomic_path(out / TIMINGS) as path:
        path.write_text(json.dumps(timings, indent=1) + "\n", "utf-8")
    for head, row in timings.items():
        print(f"{head:10} {row['ms']:.3f} ms  (quartiles {row['low']:.3f} to {row['high']:.3f})")
    return 0


def report(out: Path, folder: Path, page: Path | None) -> int:
    """Tables on standard output; ablation.json and the plots in a folder; the tables of a page between its marks."""
    timings = json.loads((out / TIMINGS).read_text("utf-8")) if (out / TIMINGS).is_file() else {}
    found = Report(load_results(out), timings)
    print(found.render())
    with atomic_path(folder / "ablation.json") as path:
        path.write_text(json.dumps(found.to_dict()) + "\n", "utf-8")
    plot_study(found, folder / "ablation_study.png")
    plot_domains(found, folder / "multi_dataset_benchmark.png")
    if page is not None:
        text = page.read_text("utf-8")
        for name, part in found.sections().items():
            block = part if name in ("settings", "verdict") else f"```text\n{part}\n```"
            start, end = text.find(f"<!-- {name} -->\n"), text.find("<!-- end -->", text.find(f"<!-- {name} -->\n"))
            if start >= 0 and end >= 0:
                text = f"{text[:start]}<!-- {name} -->\n{block}\n{text[end:]}"
        with atomic_path(page) as path:
            path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
