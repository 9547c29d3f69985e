"""Measuring engines: `bench(["a.xml", "b.xml"])` gives a `BenchReport`, `plot_bench` draws it.

    from dhead_trt.bench import bench, plot_bench

    report = bench(["model.xml", "model.onnx"], batches=[1, 4], threads=[2])
    print(report.render())
    plot_bench(report, "bench.png")

The modules `statistics`, `machine` and `meters` serve any benchmark of a user's own.
"""

from __future__ import annotations

from .plot import plot_bench
from .report import CLOCKS, BenchReport, Cell, Clock, Comparison
from .run import bench
from .statistics import Latency, Ratio, Steadiness, paired_ratio, steadiness

__all__ = [
    "CLOCKS",
    "BenchReport",
    "Cell",
    "Clock",
    "Comparison",
    "Latency",
    "Ratio",
    "Steadiness",
    "bench",
    "paired_ratio",
    "plot_bench",
    "steadiness",
]
