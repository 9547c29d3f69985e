"""What a command shows: its progress, and its tables."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time

import pytest

from dhead_trt.progress import Progress, duration
from dhead_trt.tables import facts, size, table


def test_progress_in_a_file_is_one_line_a_phase() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        for i in range(100):
            progress("reading", i / 100)
        progress("writing")
    lines = stream.getvalue().splitlines()
    assert lines == ["  reading: 0.0 s", "  writing: 0.0 s"]


def test_progress_says_nothing_when_disabled() -> None:
    stream = io.StringIO()
    with Progress(stream, enabled=False) as progress:
        progress("reading", 0.5)
    assert stream.getvalue() == ""


def test_progress_on_a_terminal_redraws_one_line() -> None:
    master, slave = pty.openpty()
    code = (
        "import time; from dhead_trt.progress import Progress\n"
        "with Progress() as p:\n"
        "    for i in range(5):\n"
        "        p('working', i / 4); time.sleep(0.06)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=slave, env=os.environ | {"TERM": "xterm", "COLUMNS": "80"}, check=True
    )
    os.close(slave)
    written = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # Linux reports the closed other end this way
            break
        if not chunk:
            break
        written += chunk
    os.close(master)
    assert done.returncode == 0
    text = written.decode()
    assert text.count("\n") == 1
    assert "[############............]  50%" in text
    assert "[########################] 100%" in text
    assert text.splitlines()[-1].split("\x1b[K")[-1].startswith("  working: 0.")


def test_an_error_leaves_no_half_drawn_line() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress(stream) as progress:
        progress("reading", 1 / (progress._phase is not None))
    assert stream.getvalue() == ""


def test_a_long_phase_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress(stream) as progress:
        for i in range(31):
            progress("building", i / 40)
            now[0] += 1
    assert stream.getvalue().splitlines() == [
        "  building: 25% … 10 s", "  building: 50% … 20 s", "  building: 75% … 30 s", "  building: 31 s",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")])
def test_size(number: int, text: str) -> None:
    assert size(number) == text


def test_table() -> None:
    assert table(["a", "figure"], [["x", 1], ["longer", 20]], right=[1]).splitlines() == [
        "a       figure",
        "------  ------",
        "x            1",
        "longer      20",
    ]
    assert table(["名"], [["é"]]).splitlines() == ["名", "--", "é"]
    with pytest.raises(ValueError, match="has 1 cells"):
        table(["a", "b"], [["x"]])


def test_wrapped_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    text = table(["name", "why"], [["x", "word " * 20]], wrap=True, indent="  ")
    assert max(map(len, text.splitlines())) <= 50
    assert text.count("word") == 20
    assert len({len(line) - len(line.lstrip()) for line in text.splitlines()[3:]}) == 1


def test_facts() -> None:
    assert facts({"a": 1, "long": "x\ny"}, indent=" ") == " a     1\n long  x\n       y"
