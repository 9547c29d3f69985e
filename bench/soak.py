"""Many threads, one Detector, for a long time: the same results as one by one, and memory that does not grow.

    python bench/soak.py ENGINE IMAGES [--threads 8] [--images 500] [--submit]

IMAGES is a folder, a pattern or a picture. Every thread detects on all of them in turn, until it has done `--images`;
half of the calls by `detector(image)` and half by `submit`, or all by `submit`. Each result is compared, bit by bit,
with that of a serial run. Resident memory is read from /proc four times a second; its growth is that of the median of
the last tenth of the run over the median of the second tenth, so that what is kept on purpose (buffers, arenas) is in
both.
Exits with 1 if a result differs, or memory grows by more than `--limit` (default 1 %).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from pathlib import Path

from dhead_trt import __version__
from dhead_trt.detector import Detector
from dhead_trt.images import expand_paths, load_image


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Runs the soak and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("source")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--images", type=int, default=500, help="per thread")
    parser.add_argument("--limit", type=float, default=0.01, help="growth of resident memory, as a fraction")
    parser.add_argument("--engine-threads", type=int, default=2)
    parser.add_argument("--submit", action="store_true", help="all calls by submit")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    suffixes = (args.engine.suffix, ".json", ".xml", ".bin")
    read = [*(expand_paths(args.source) or [Path(args.source)]), *(args.engine.with_suffix(s) for s in suffixes)]
    if args.json is not None and args.json.resolve() in {path.resolve() for path in read}:
        parser.error(f"--json {args.json} would replace a file that is read")

    # Arrays, as a camera gives them: reading files is not what this is about.
    images = [load_image(path) for path in expand_paths(args.source) or [args.source]]
    memory: list[int] = []
    wrong: list[str] = []
    done = [0] * args.threads
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            memory.append(resident())

    with Detector(args.engine, threads=args.engine_threads) as detector:
        want = [detector(image) for image in images]

        def work(thread: int) -> None:
            for k in range(args.images):
                index = (thread + k) % len(images)
                queued = args.submit or k % 2 == 0
                try:
                    found = detector.submit(images[index]).result() if queued else detector(images[index])
                    if found != want[index]:
                        wrong.append(f"thread {thread}, call {k}, image {index}: {len(found)} detections")
                except Exception as e:
                    wrong.append(f"thread {thread}, call {k}: {type(e).__name__}: {e}")
                done[thread] += 1

        threads = [threading.Thread(target=work, args=(i,)) for i in range(args.threads)]
        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
        name = f"{detector.engine.artifact.plan.name} ({detector.engine.artifact.backend} {detector.engine.precision})"

    tenth = max(len(memory) // 10, 1)
    early, late = (statistics.median(part) for part in (memory[tenth : 2 * tenth] or memory[:1], memory[-tenth:]))
    report = {
        "engine": name,
        "dhead_trt": __version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        "threads": args.threads,
        "calls": sum(done),
        "pictures": len(images),
        "detections": sum(map(len, want)),
        "different": len(wrong),
        "seconds": round(seconds, 1),
        "calls_per_second": round(sum(done) / seconds, 2),
        "resident_mib": {"early": round(early / 2**20, 1), "late": round(late / 2**20, 1)},
        "peak_mib": round(max(memory) / 2**20, 1),
        "growth": round(late / early - 1, 5),
    }
    print(json.dumps(report, indent=2))
    for line in wrong[:10]:
        print(line, file=sys.stderr)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if wrong or report["growth"] > args.limit else 0


if __name__ == "__main__":
    sys.exit(main())
