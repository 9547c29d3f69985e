"""Threads, fork, and what importing the package starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cases import BY_NAME, Case
from dhead_trt import HeadSpec, decode, detect, nms
from dhead_trt.postprocess import empty_detections

BIG = Case("big", HeadSpec(num_classes=30, strides=(8, 16, 32), bins=16), ((80, 80), (40, 40), (20, 20)), batch=3)


def test_eight_python_threads_at_once() -> None:
    """Each with its own case, several threads inside, again and again: the bits of a quiet call."""
    cases = [BIG, *(BY_NAME[n] for n in ("clustered_17_bins", "objectness", "float16", "crowd", "batch_16", "ties"))]
    cases.append(Case("big_16", BIG.spec, BIG.shapes, batch=2, dtype="float16"))
    maps = [c.maps() for c in cases]
    dense = [decode(m, c.spec, threads=1) for m, c in zip(maps, cases, strict=True)]
    found = [detect(m, c.spec, threads=1, **c.options) for m, c in zip(maps, cases, strict=True)]
    suppressed = [nms(*d, threads=1) for d in dense]
    start = threading.Barrier(8)

    def work(i: int) -> int:
        c, m = cases[i], maps[i]
        start.wait(30)
        for turn in range(6):
            for g, w in zip(decode(m, c.spec, threads=1 + turn % 4), dense[i], strict=True):
                np.testing.assert_array_equal(g, w)
            for g, w in zip(detect(m, c.spec, threads=1 + turn % 4, **c.options), found[i], strict=True):
                np.testing.assert_array_equal(g, w)
            for g, w in zip(nms(*dense[i], threads=1 + turn % 4), suppressed[i], strict=True):
                np.testing.assert_array_equal(g, w)
        return i

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_a_thread_that_ends_and_another_that_begins() -> None:
    """Working memory belongs to the thread that calls."""
    maps = BIG.maps()
    want = detect(maps, BIG.spec)
    for _ in range(20):
        with ThreadPoolExecutor(1) as pool:
            got = pool.submit(detect, maps, BIG.spec, threads=2).result(60)
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)


def test_the_gil_is_released() -> None:
    """Another Python thread goes on while a call runs."""
    spec = HeadSpec(num_classes=80, strides=(8,), bins=16)
    maps = Case("gil", spec, ((160, 160),), batch=4, kind="random").maps()
    out = decode(maps, spec)
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    interval = sys.getswitchinterval()
    thread.start()
    try:
        sys.setswitchinterval(30)  # nobody is made to give the GIL away
        for _ in range(200):
            start = time.perf_counter()
            decode(maps, spec, out=out, simd="scalar", threads=1)  # tens of milliseconds
            end = time.perf_counter()
            if sum(start < t < end for t in ticks) >= 3:
                break
        else:
            pytest.fail("no other thread ran while decode did")
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_after_the_pool_has_threads() -> None:
    """Also while another thread is inside the pool."""
    maps = BIG.maps()
    want = detect(maps, BIG.spec, threads=4)
    out = empty_detections(3)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            decode(maps, BIG.spec, threads=4)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                try:
                    got = detect(maps, BIG.spec, threads=4, out=out)
                    same = all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))
                    os._exit(0 if same else 3)
                except BaseException:
                    os._exit(4)
            end = time.monotonic() + 60
            while (status := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > end:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    pytest.fail("the forked child hangs")
                time.sleep(0.005)
            assert os.waitstatus_to_exitcode(status[1]) == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc to count threads")
def test_importing_starts_no_thread_and_one_thread_needs_none() -> None:
    program = """
        import os, numpy as np
        count = lambda: len(os.listdir("/proc/self/task"))
        before = count()
        import dhead_trt
        assert count() == before, "import"
        spec = dhead_trt.HeadSpec(num_classes=80, strides=(8,), bins=16)
        maps = {"box_0": np.zeros((2, 64, 80, 80), np.float32), "cls_0": np.zeros((2, 80, 80, 80), np.float32)}
        dhead_trt.detect(maps, spec, threads=1)
        assert count() == before, "threads=1"
        for _ in range(3):
            dhead_trt.detect(maps, spec, threads=3)
            dhead_trt.decode(maps, spec, threads=3)
        assert count() == before + 2, f"threads=3: {count() - before} more"
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to read memory")
def test_memory_does_not_grow() -> None:
    maps = BIG.maps()

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(20):
        detect(maps, BIG.spec, threads=2)
    before = resident()
    for _ in range(500):
        detect(maps, BIG.spec, threads=2)
    assert resident() - before < 4 << 20
