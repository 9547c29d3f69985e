"""The logs of a training run: one CSV row for each step and for each epoch."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

__all__ = ["Log", "read_csv"]

EPOCHS, STEPS = "log.csv", "steps.csv"


class Log:
    """steps.csv and log.csv in a folder. Rows after `step` of an earlier, interrupted run are dropped.

    Args:
        folder: where.
        step: steps that are done; 0 starts new files.
        history: the rows of log.csv so far.
    """

    def __init__(self, folder: Path, step: int, history: Sequence[Mapping[str, float]]) -> None:
        self._steps_path, self._epochs_path = folder / STEPS, folder / EPOCHS
        kept = [r for r in read_csv(self._steps_path) if r["step"] <= step] if step else []
        self._fields: list[str] = list(kept[0]) if kept else []
        self._file: TextIO = self._steps_path.open("w", newline="", encoding="utf-8")
        self._writer: csv.DictWriter[str] | None = None
        for row in kept:
            self.step(row)
        self._history = [dict(row) for row in history]
        self._write_epochs()

    def step(self, row: Mapping[str, float]) -> None:
        """Adds a row to steps.csv; the first row's names are the columns."""
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row), restval="", extrasaction="ignore")
            self._writer.writeheader()
        self._writer.writerow({name: _short(value) for name, value in row.items()})
        if int(row["step"]) % 20 == 0:
            self._file.flush()

    def epoch(self, row: Mapping[str, float]) -> None:
        """Adds a row to log.csv."""
        self._history.append(dict(row))
        self._write_epochs()
        self._file.flush()

    def flush(self) -> None:
        """Writes what is still in memory: before a checkpoint, so that it never knows of more steps than the log."""
        self._file.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()

    def _write_epochs(self) -> None:
        names = list(dict.fromkeys(name for row in self._history for name in row))
        with self._epochs_path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows({name: _short(value) for name, value in row.items()} for row in self._history)


def read_csv(path: Path) -> list[dict[str, float]]:
    """Rows of numbers by column; empty cells are left out; no file: no rows. A last line cut short is left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value != ""}
            for row in csv.DictReader(file)
            if None not in row.values()
        ]


def _short(value: float) -> str:
    return (
        f"{value:.6g}"
        if isinstance(value, float) and not value.is_integer()
        else f"{value:g}"
        if abs(value) < 1e6
        else str(value)
    )
