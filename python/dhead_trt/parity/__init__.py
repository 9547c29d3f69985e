"""The parity ladder: every step from the float64 oracle to a built engine, measured against the original.

`run_ladder` climbs it, `ParityReport` holds what it found, `plot` draws the distribution of the errors. A rung that
cannot run on this machine is listed with its reason, and never counted as passed. `compare_layers` finds the tensor
where an engine departs, `plot_layers` draws what it found.
"""

from __future__ import annotations

from .ladder import run_ladder
from .layers import LAYER_TOLERANCES, LayerError, LayerReport, compare_layers
from .layers_plot import plot_layers
from .measure import TOLERANCES, ParityReport, Rung, Stats, Tolerance, measure
from .plot import plot

__all__ = [
    "LAYER_TOLERANCES",
    "TOLERANCES",
    "LayerError",
    "LayerReport",
    "ParityReport",
    "Rung",
    "Stats",
    "Tolerance",
    "compare_layers",
    "measure",
    "plot",
    "plot_layers",
    "run_ladder",
]
