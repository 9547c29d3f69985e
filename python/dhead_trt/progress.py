"""Progress of long work on a terminal: a bar where there is one, plain lines where there is not.

Long functions take `progress: Callable[[str, float | None], None]`, and call it with the name of the phase and the
fraction of it that is done (0 to 1; None where that cannot be known). `Progress` is such a callable.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

__all__ = ["Progress", "ProgressCallback", "duration"]

ProgressCallback = Callable[[str, "float | None"], None]

_REDRAW_S = 0.05  # a terminal is redrawn at most this often
_LINE_S = 10.0  # and a log gets a line of an unfinished phase at most this often
_BAR = 24


def duration(seconds: float) -> str:
    """Seconds as people write them: "0.4 s", "12 s", "3 min 05 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class Progress:
    """Shows phases of work on `stream`, each ending in one line with its duration.

    Use as a context manager; call it with (phase, fraction). A new phase name ends the one before. Nothing is written
    where `enabled` is False. On a terminal the running phase is one line that redraws itself; elsewhere (a file, a
    pipe, CI) there is one plain line for each finished phase, and one every ten seconds for a long one.

    Args:
        stream: where to write; standard error by default, so that standard output stays for results.
        enabled: False: say nothing.
    """

    def __init__(self, stream: TextIO | None = None, *, enabled: bool = True) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled
        isatty = getattr(self._stream, "isatty", None)
        self._tty = bool(isatty and isatty()) and os.environ.get("TERM") != "dumb"
        self._phase: str | None = None
        self._fraction: float | None = None
        self._started = self._drawn = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.done()
        else:
            self.abandon()

    def __call__(self, phase: str, fraction: float | None = None) -> None:
        """Reports that `phase` is `fraction` (0 to 1, None: unknown) done."""
        if not self._enabled:
            return
        now = time.monotonic()
        if phase != self._phase:
            self.done()
            self._phase, self._started, self._drawn = phase, now, now if not self._tty else 0.0
        if fraction is not None:
            fraction = min(max(float(fraction), 0.0), 1.0)
        self._fraction = fraction
        if now - self._drawn >= (_REDRAW_S if self._tty else _LINE_S):
            self._drawn = now
            self._draw(now)

    def done(self, note: str = "") -> None:
        """Ends the running phase, if there is one, with a line that says how long it took."""
        if self._phase is None:
            return
        line = f"  {self._phase}: {note + ', ' if note else ''}{duration(time.monotonic() - self._started)}"
        self._write(("\r\x1b[K" if self._tty else "") + line + "\n")
        self._phase = None

    def abandon(self) -> None:
        """Leaves the running phase unfinished and the terminal's line empty, for an error to be written."""
        if self._phase is not None and self._tty:
            self._write("\r\x1b[K")
        self._phase = None

    def _draw(self, now: float) -> None:
        assert self._phase is not None
        spent = duration(now - self._started)
        if not self._tty:
            share = "" if self._fraction is None else f" {self._fraction:.0%}"
            self._write(f"  {self._phase}:{share} … {spent}\n")
            return
        if self._fraction is None:
            bar = ""
        else:
            full = round(self._fraction * _BAR)
            bar = f" [{'#' * full}{'.' * (_BAR - full)}] {self._fraction:4.0%}"
        width = max(shutil.get_terminal_size().columns - 1, 20)
        self._write("\r\x1b[K" + f"  {self._phase}{bar} {spent}"[:width])

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
