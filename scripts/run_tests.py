#!/usr/bin/env python3
"""Run the Python tests, every file in a process of its own, several at a time.

    python scripts/run_tests.py --jobs 2 [pytest arguments]

So no file sees what another left behind, and a process that a signal ended is named with its signal.

Exit code: 0 if all passed (skipped tests are listed with their reasons), else 1.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTHING_SELECTED = 5  # pytest's exit code
COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected|warnings?|xfailed|xpassed)")


def run(file: Path, arguments: list[str], limit: float) -> tuple[int, str]:
    """pytest on one file: its exit code (minus the signal that ended it), and what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", str(file.relative_to(ROOT)), *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit
        )
    except subprocess.TimeoutExpired as e:
        return 1, f"{(e.stdout or b'').decode(errors='replace')}\nnot done after {limit:g} s\n"
    return done.returncode, done.stdout.decode(errors="replace")


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=2, help="files at a time (default 2)")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that one file may take (default 1800)")
    args, rest = parser.parse_known_args()
    files = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda f: f.stat().st_size, reverse=True)
    started, total, failed, skipped = time.monotonic(), Counter[str](), [], []
    with ThreadPoolExecutor(args.jobs) as pool:
        for file, (code, text) in zip(files, pool.map(lambda f: run(f, rest, args.limit), files), strict=True):
            name = file.relative_to(ROOT)
            last = text.rstrip().rsplit("\n", 1)[-1].strip("= ")
            if code < 0:
                last = f"ended by {signal.Signals(-code).name}"
            print(f"{'ok    ' if code in (0, NOTHING_SELECTED) else 'FAILED'} {name}  {last}", flush=True)
            total.update({kind.rstrip("s"): int(n) for n, kind in COUNT.findall(last)})
            skipped += [line for line in text.splitlines() if line.startswith("SKIPPED")]
            if code not in (0, NOTHING_SELECTED):
                failed.append(str(name))
                print(text, flush=True)
    print("\n".join(["", *skipped]))
    kinds = ("passed", "failed", "error", "skipped", "warning")
    counts = ", ".join(f"{total[kind]} {kind}" for kind in kinds if total[kind])
    print(f"== {counts or 'no tests'} in {len(files)} files, {time.monotonic() - started:.0f} s")
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
