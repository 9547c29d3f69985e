"""The parity ladder: every step from the float64 oracle to a built engine, measured against the original.

`run_ladder` climbs it, `ParityReport` holds what it found, `plot` draws the distribution of the errors. A rung that
cannot run on this machine is listed with its reason, and never counted as passed.
"""

from __future__ import annotations

from .ladder import run_ladder
from .measure import TOLERANCES, ParityReport, Rung, Stats, Tolerance, measure
from .plot import plot

__all__ = ["TOLERANCES", "ParityReport", "Rung", "Stats", "Tolerance", "measure", "plot", "run_ladder"]
