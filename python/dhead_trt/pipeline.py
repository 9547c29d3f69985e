"""A two-stage pipeline of threads behind a bounded queue: what `Detector.submit` runs on.

Loaders decode and letterbox, runners run the engine and its post-processing; while one image is in the engine, the next
is being prepared, and with two runners the decode and NMS of one overlap the engine of the other.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from .errors import InputError

__all__ = ["Pipeline"]

_open: weakref.WeakSet[Pipeline[Any, Any, Any]] = weakref.WeakSet()

Job = TypeVar("Job")
Ready = TypeVar("Ready")
Result = TypeVar("Result")


class Pipeline(Generic[Job, Ready, Result]):
    """Runs `run(prepare(job))` for each job, the two halves in threads of their own.

    A program that forgets `close` still ends: then what runs is waited for, and the rest is cancelled. In a forked
    child there are none of the threads, and `submit` says so.

    Args:
        prepare: the first half; what it raises goes into the job's future.
        run: the second half, likewise.
        loaders, runners: threads of each half.
        depth: jobs that may be on their way at once; `submit` waits where there are so many.

    Raises:
        InputError: a number is below 1.
    """

    def __init__(
        self,
        prepare: Callable[[Job], Ready],
        run: Callable[[Ready], Result],
        *,
        loaders: int = 2,
        runners: int = 2,
        depth: int = 8,
    ) -> None:
        for name, value in (("loaders", loaders), ("runners", runners), ("depth", depth)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is out of range", received=repr(value), expected="1 or more")
        self._prepare, self._run, self._depth = prepare, run, depth
        self._process = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Future[Result], Job] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[Future[Result], Ready] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._pending: set[Future[Result]] = set()
        self._closed = False
        self._loading = loaders
        self._loaders = self._start(self._load, loaders, "load")
        self._runners = self._start(self._work, runners, "run")
        _open.add(self)

    def submit(self, job: Job) -> Future[Result]:
        """Takes a job, waiting where `depth` are on their way.

        Raises:
            InputError: the pipeline is closed, or was closed while this waited, or is of the process that this was
                forked from.
        """
        if os.getpid() != self._process:
            raise InputError(
                "This detector was opened in another process", received="a fork of it", fix="Open one in each process"
            )
        future: Future[Result] = Future()
        with self._changed:
            if not self._own_thread():  # a callback that submits must not wait for the thread that it stops
                self._changed.wait_for(lambda: self._closed or len(self._pending) < self._depth)
            if self._closed:
                raise InputError("This detector is closed", fix="Open another one")
            self._pending.add(future)
            future.add_done_callback(self._done)
            self._jobs.put((future, job))
        return future

    def close(self, *, cancel: bool = False, wait: bool = True) -> None:
        """Ends the threads when the jobs on their way (`cancel`: only those that run) are done, and waits for that
        unless `wait` is false. Twice is fine."""
        if os.getpid() != self._process:
            return  # the threads are those of the parent
        with self._changed:
            first, self._closed = not self._closed, True
            self._changed.notify_all()
            waiting = list(self._pending) if cancel else []
        for future in waiting:
            future.cancel()
        if first:
            for _ in self._loaders:
                self._jobs.put(None)
        if not wait or self._own_thread():
            return  # a callback of a future closes: its own thread cannot wait for itself
        for thread in (*self._loaders, *self._runners):
            thread.join()

    def _own_thread(self) -> bool:
        return threading.current_thread() in (*self._loaders, *self._runners)

    def _done(self, future: Future[Result]) -> None:
        with self._changed:
            self._pending.discard(future)
            self._changed.notify_all()

    def _load(self) -> None:
        while (entry := self._jobs.get()) is not None:
            future, job = entry
            del entry
            if future.set_running_or_notify_cancel():
                try:
                    ready = self._prepare(job)
                except BaseException as e:
                    future.set_exception(e)
                    del e
                else:
                    self._ready.put((future, ready))
                    del ready
            del future, job
        with self._changed:
            self._loading -= 1
            last = self._loading == 0
        if last:  # nothing more comes for the runners
            for _ in self._runners:
                self._ready.put(None)

    def _work(self) -> None:
        while (entry := self._ready.get()) is not None:
            future, ready = entry
            del entry
            try:
                result = self._run(ready)
            except BaseException as e:
                future.set_exception(e)
            else:
                future.set_result(result)
                del result
            del future, ready

    @staticmethod
    def _start(work: Callable[[], None], count: int, name: str) -> list[threading.Thread]:
        threads = [threading.Thread(target=work, name=f"dhead-{name}-{i}", daemon=True) for i in range(count)]
        for thread in threads:
            thread.start()
        return threads


@atexit.register
def _end() -> None:
    """Ends the threads before the interpreter does: one that comes back from C++ later takes the process down."""
    for pipeline in list(_open):
        pipeline.close(cancel=True)
