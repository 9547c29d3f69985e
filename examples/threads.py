#!/usr/bin/env python3
"""One Detector for many threads, and futures that overlap reading, the engine and post-processing.

python examples/threads.py ENGINE IMAGE…
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dhead_trt.detections import Detections
from dhead_trt.detector import Detector


async def in_asyncio(detector: Detector, paths: Sequence[str]) -> list[Detections]:
    """The same from a coroutine."""
    return await asyncio.gather(*(asyncio.wrap_future(detector.submit(path)) for path in paths))


def main(engine: str, paths: Sequence[str]) -> list[Detections]:
    """Detects in three ways, which give the same results."""
    with Detector(engine, queue=max(8, len(paths))) as detector:
        with ThreadPoolExecutor(4) as pool:  # a server's request threads
            by_threads = list(pool.map(detector, paths))
        futures = [detector.submit(path) for path in paths]  # returns at once
        by_futures = [future.result() for future in futures]
        by_asyncio = asyncio.run(in_asyncio(detector, paths))
    assert by_threads == by_futures == by_asyncio
    for result in by_threads:
        print(repr(result))
    return by_threads


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
