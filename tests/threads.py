"""Calls at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable


def in_threads(work: Callable[[int], object], count: int) -> list[BaseException]:
    """Calls work(0) … work(count - 1), each in a thread, and all at once; gives what they raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(count)

    def call(i: int) -> None:
        try:
            start.wait()
            work(i)
        except BaseException as e:
            raised.append(e)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return raised
