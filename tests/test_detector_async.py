"""Detector.submit: the same results as calling, errors where they belong, a bounded queue, a clean end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import small_models
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.engine import Engine
from dhead_trt.errors import InputError
from dhead_trt.pipeline import Pipeline

pytest.importorskip("openvino", reason="OpenVINO is not installed")


def picture(i: int) -> np.ndarray:
    """Coloured blocks; size and content by number."""
    small = np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.repeat(np.repeat(small, 8 + i % 5, axis=0), 10 + i % 3, axis=1)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return small_models.openvino_plan(folder / "small", image_size=(96, 128), batch=(1, 1, 2))


@pytest.fixture
def detector(plan: Path) -> Iterator[Detector]:
    with Detector(plan, threads=1) as d:
        yield d


def test_futures_give_what_calls_give(detector: Detector) -> None:
    images = [picture(i) for i in range(20)]
    want = [detector(image) for image in images]
    assert sum(map(len, want)) > 50
    futures = [detector.submit(image) for image in images]
    assert [f.result(60) for f in futures] == want
    few = detector.submit(images[0], conf=0.5, max_det=2).result(60)
    assert few == detector(images[0], conf=0.5, max_det=2)
    assert len(few) == 2
    assert detector.submit(images[3][:, :, ::-1], bgr=True).result(60) == want[3]


def test_eight_threads_give_what_one_gives(detector: Detector) -> None:
    images = [picture(i) for i in range(16)]
    want = [detector(image) for image in images]

    def work(start: int) -> list[Detections]:
        order = [(start + k) % 16 for k in range(48)]
        futures = [(i, detector.submit(images[i])) for i in order]
        found = [(i, f.result(60)) for i, f in futures]
        return [d for i, d in found if d != want[i]]

    with ThreadPoolExecutor(8) as pool:
        wrong = list(pool.map(work, range(8)))
    assert wrong == [[]] * 8


def test_errors_reach_the_caller(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    futures = [detector.submit(s) for s in (picture(0), tmp_path / "empty.png", None, picture(1))]
    assert len(futures[0].result(60)) > 0
    assert futures[3].result(60) == detector(picture(1))
    with pytest.raises(InputError, match="0 bytes"):
        futures[1].result(60)
    assert isinstance(futures[2].exception(60), InputError)
    with pytest.raises(InputError, match="conf is out of range"):
        detector.submit(picture(0), conf=2)
    with pytest.raises(InputError, match="no such option"):
        detector.submit(picture(0), cnof=2)


def test_errors_of_the_engine_reach_the_caller(plan: Path) -> None:
    engine = Engine(plan)
    with Detector(engine) as detector:
        assert len(detector.submit(picture(0)).result(60)) > 0
        engine.close()
        with pytest.raises(InputError, match="closed"):
            detector.submit(picture(0)).result(60)


def test_asyncio(detector: Detector) -> None:
    async def main() -> list[Detections]:
        return await asyncio.gather(*(asyncio.wrap_future(detector.submit(picture(i))) for i in range(6)))

    assert asyncio.run(main()) == [detector(picture(i)) for i in range(6)]


def names() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("dhead-")]


def test_close_waits_for_what_was_submitted_and_ends_the_threads(plan: Path) -> None:
    before = len(names())
    detector = Detector(plan, queue=16, workers=(1, 3))
    assert len(names()) == before  # none until they are needed
    futures = [detector.submit(picture(i)) for i in range(16)]
    assert len(names()) == before + 4
    detector.close()
    assert all(f.done() for f in futures)
    assert all(isinstance(f.result(), Detections) for f in futures)
    assert len(names()) == before
    detector.close()
    with pytest.raises(InputError, match="closed"):
        detector.submit(picture(0))
    with pytest.raises(InputError, match="closed"):
        detector(picture(0))


def test_wrong_numbers(plan: Path) -> None:
    for options in ({"queue": 0}, {"queue": True}, {"workers": (1, 0)}, {"workers": (1,)}, {"workers": 3}):
        with pytest.raises(InputError, match="queue or workers"):
            Detector(plan, **options)
    with pytest.raises(InputError, match="depth"):
        Pipeline(lambda j: j, lambda r: r, depth=0)


def test_the_queue_is_bounded() -> None:
    gate = threading.Event()
    started: list[int] = []

    def run(n: int) -> int:
        gate.wait(60)
        return n * n

    def prepare(n: int) -> int:
        started.append(n)
        return n

    pipeline: Pipeline[int, int, int] = Pipeline(prepare, run, depth=3)
    taken: list[Any] = []
    feeder = threading.Thread(target=lambda: taken.extend(pipeline.submit(n) for n in range(10)))
    feeder.start()
    time.sleep(0.3)
    assert feeder.is_alive()
    assert len(started) == 3
    gate.set()
    feeder.join(60)
    pipeline.close()
    assert [f.result() for f in taken] == [n * n for n in range(10)]


def test_closing_wakes_those_who_wait_and_can_cancel() -> None:
    gate = threading.Event()
    pipeline: Pipeline[int, int, int] = Pipeline(lambda n: (gate.wait(60), n)[1], lambda n: n, loaders=1, depth=2)
    first, second = pipeline.submit(1), pipeline.submit(2)
    outcome: list[Any] = []

    def third() -> None:
        try:
            outcome.append(pipeline.submit(3))
        except InputError as e:
            outcome.append(e)

    waiter = threading.Thread(target=third)
    waiter.start()
    while not first.running():
        time.sleep(0.01)
    closer = threading.Thread(target=lambda: pipeline.close(cancel=True))
    closer.start()
    time.sleep(0.1)
    gate.set()
    for thread in (waiter, closer):
        thread.join(60)
        assert not thread.is_alive()
    assert first.result() == 1
    with pytest.raises(CancelledError):
        second.result()
    # the place that the cancelled one left free is not given away after closing
    assert len(outcome) == 1
    assert isinstance(outcome[0], InputError)


def test_a_callback_may_close() -> None:
    pipeline: Pipeline[int, int, int] = Pipeline(lambda n: n, lambda n: n)
    done = threading.Event()
    pipeline.submit(1).add_done_callback(lambda f: (pipeline.close(), done.set()))
    assert done.wait(60)
    pipeline.close()


def test_callbacks_may_submit() -> None:
    """From a full queue too: waiting there would stop the thread that empties it."""
    pipeline: Pipeline[int, int, int] = Pipeline(lambda n: n, lambda n: n, loaders=1, runners=1, depth=1)
    done: list[int] = []
    ended = threading.Event()

    def again(future: Any) -> None:
        done.append(future.result())
        if done[-1] < 50:
            for _ in range(2):
                last = pipeline.submit(done[-1] + 25)
            last.add_done_callback(again)
        else:
            ended.set()

    pipeline.submit(0).add_done_callback(again)
    assert ended.wait(60)
    pipeline.close()
    assert done == [0, 25, 50]


def test_the_stages_overlap() -> None:
    """Twelve jobs of 2 × 30 ms take little more than 13 × 30 ms with one thread for each half, not 24 × 30."""

    def wait(n: int) -> int:
        time.sleep(0.03)
        return n

    pipeline: Pipeline[int, int, int] = Pipeline(wait, wait, loaders=1, runners=1)
    started = time.monotonic()
    futures = [pipeline.submit(n) for n in range(12)]
    assert [f.result() for f in futures] == list(range(12))
    took = time.monotonic() - started
    pipeline.close()
    assert took < 20 * 0.03


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc (Linux)")
def test_memory_stays_flat(detector: Detector) -> None:
    """8 threads × 500 images: less than 1 % more memory at the end than after the first fifth."""
    images = [picture(i) for i in range(10)]
    want = [detector(image) for image in images]
    levels: list[int] = []

    def work(thread: int) -> int:
        wrong = 0
        for k in range(500):
            i = (thread + k) % 10
            found = detector.submit(images[i]).result(60) if k % 2 else detector(images[i])
            wrong += found != want[i]
            if thread == 0 and k % 100 == 99:
                levels.append(resident())
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    print(f"resident memory: {[round(v / 2**20, 1) for v in levels]} MiB")
    assert max(levels[1:]) < levels[0] * 1.01


@pytest.mark.parametrize("seed", range(12))
def test_random_use_of_the_pipeline(seed: int) -> None:
    """Jobs that work, fail in either half and are cancelled, from several threads, and a close at any moment: every
    future that was given is done, with its own result or error, never more are on their way than allowed, and no
    thread stays."""
    rng = np.random.default_rng(seed)
    depth, loaders, runners = (int(n) for n in rng.integers(1, 5, 3))
    before, lock, busy, most = len(names()), threading.Lock(), 0, 0

    def enter(change: int) -> None:
        nonlocal busy, most
        with lock:
            busy += change
            most = max(most, busy)

    def prepare(job: int) -> int:
        enter(1)
        if job % 7 == 3:
            enter(-1)
            raise ValueError(job)
        time.sleep(0.0005 * (job % 3))
        return job

    def run(job: int) -> int:
        enter(-1)
        if job % 11 == 5:
            raise KeyError(job)
        time.sleep(0.0005 * (job % 2))
        return job * job

    pipeline = Pipeline(prepare, run, loaders=loaders, runners=runners, depth=depth)
    cancel, pause = bool(rng.integers(2)), float(rng.uniform(0, 0.05))
    given: list[tuple[int, Any]] = []
    refused = []

    def use(thread: int) -> None:
        for k in range(40):
            job = thread * 40 + k
            try:
                future = pipeline.submit(job)
            except InputError:
                refused.append(job)
                return
            with lock:
                given.append((job, future))
            if job % 13 == 0:
                future.cancel()

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    if seed % 3:
        time.sleep(pause)
        pipeline.close(cancel=cancel)
    for t in threads:
        t.join(60)
        assert not t.is_alive()
    pipeline.close()
    assert len(names()) == before
    assert busy == 0
    assert most <= depth
    assert seed % 3 or len(given) == 160
    for job, future in given:
        assert future.done()
        if future.cancelled():
            assert job % 13 == 0 or cancel
        elif job % 7 == 3:
            assert isinstance(future.exception(), ValueError)
        elif job % 11 == 5:
            assert isinstance(future.exception(), KeyError)
        else:
            assert future.result() == job * job


def test_a_small_soak(detector: Detector) -> None:
    """bench/soak.py in little: eight threads, calls and submits mixed; results bit by bit, and memory that stays."""
    resource = pytest.importorskip("resource", reason="not a POSIX system")
    images = [picture(i) for i in range(12)]
    want = [detector(image) for image in images]

    def work(start: int) -> int:
        wrong = 0
        for k in range(60):
            i = (start + k) % 12
            wrong += (detector.submit(images[i]).result(60) if k % 2 else detector(images[i])) != want[i]
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            assert sum(pool.map(work, range(8))) == 0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= early * 1.01 + 4096  # KiB


LEAVING = """
import sys, time
import numpy as np
from dhead_trt.detector import Detector

detector = Detector(sys.argv[1], threads=1)
image = np.zeros((700, 900, 3), np.uint8)
detector(image)
futures = [detector.submit(image) for _ in range(8)]
time.sleep(float(sys.argv[2]))
print("end")
"""


@pytest.mark.parametrize("seconds", ["0", "0.003", "0.02"])
def test_a_program_that_forgets_to_close_ends_well(plan: Path, seconds: str) -> None:
    """Threads that come back from C++ while the interpreter ends would abort the process."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, str(plan), seconds], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_instead_of_waiting_for_ever(detector: Detector) -> None:
    want = detector.submit(picture(0)).result(60)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        signal.alarm(60)
        said = []
        for call in (detector, lambda image: detector.submit(image).result(5)):
            try:
                said.append(f"{len(call(picture(0)))} detections")
            except BaseException as e:  # noqa: PERF203
                said.append(str(e).split(":")[0])
        detector.close()
        os.write(write, "; ".join(said).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        assert pipe.read() == ("This engine was opened in another process; This detector was opened in another process")
    assert status == 0
    assert detector.submit(picture(0)).result(60) == want


def test_a_detector_that_is_dropped_leaves_no_threads(plan: Path) -> None:
    before = len(names())
    detector = Detector(plan)
    futures = [detector.submit(picture(i)) for i in range(8)]
    assert len(names()) == before + 4
    del detector
    gc.collect()
    assert all(isinstance(f.result(60), Detections) for f in futures)  # what was submitted is done all the same
    ends = time.monotonic() + 60
    while len(names()) > before and time.monotonic() < ends:
        time.sleep(0.01)
    assert len(names()) == before
