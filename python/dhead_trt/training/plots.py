"""The plots of a training run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendUnavailable
from ..files import atomic_path
from .logs import EPOCHS, STEPS, read_csv
from .schedule import WarmupCosineScheduler

__all__ = ["moving", "plot_run", "plot_schedule", "plot_stability"]


def plot_run(folder: Path, schedule: WarmupCosineScheduler, *, clip: float) -> None:
    """training_stability.png and lr_schedule.png from the logs in `folder`; nothing where matplotlib is missing."""
    try:
        plot_schedule(schedule, folder / "lr_schedule.png")
        plot_stability(folder, clip=clip)
    except BackendUnavailable:
        return


def plot_schedule(schedule: WarmupCosineScheduler, path: str | os.PathLike[str]) -> Path:
    """The learning rate over the epochs, on a logarithmic axis.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    figure = _figure(7, 4)
    axes = figure.subplots()
    epochs = np.linspace(0, schedule.total_epochs, 400)
    axes.semilogy(epochs, [schedule.rate(float(e)) for e in epochs], color="C0")
    axes.axvline(schedule.warmup_epochs, color="C1", linestyle=":", label="end of the warm-up")
    axes.set(xlabel="epoch", ylabel="learning rate", title="Learning rate: warm-up and cosine")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return _save(figure, path)


def plot_stability(folder: Path, path: str | os.PathLike[str] | None = None, *, clip: float = 10.0) -> Path:
    """Loss and EMA loss, gradient norm with its threshold, smoothed loss (window 10), moving deviation (window 20).

    Args:
        folder: with steps.csv and log.csv.
        path: the picture; default: training_stability.png in the folder.
        clip: threshold of the gradient norm; 0: none.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    rows, epochs = read_csv(folder / STEPS), read_csv(folder / EPOCHS)
    step, loss, norm = (np.array([r.get(k, np.nan) for r in rows]) for k in ("step", "loss", "grad_norm"))
    figure = _figure(11, 7)
    (a, b), (c, d) = figure.subplots(2, 2)
    a.plot(step, loss, alpha=0.5, linewidth=0.6, label="loss")
    ema = [(r["step"], r["ema_loss"]) for r in epochs if "ema_loss" in r]
    if ema:
        a.plot(*zip(*ema, strict=True), "o-", markersize=3, color="C1", label="EMA's loss (validation)")
    a.set(title="Loss", ylabel="loss")
    a.legend()
    b.plot(step, norm, linewidth=0.6, label="gradient norm")
    if clip:
        b.axhline(clip, color="C3", linestyle="--", label=f"clipped at {clip:g}")
    b.set(title="Gradient norm", yscale="log")
    b.legend()
    c.plot(step, moving(loss, 10, np.mean), color="C2", linewidth=0.8)
    c.set(title="Smoothed loss (window 10)", xlabel="step", ylabel="loss")
    d.plot(step, moving(loss, 20, np.std), color="C4", linewidth=0.8)
    d.set(title="Moving standard deviation (window 20)", xlabel="step")
    for axes in (a, b, c, d):
        axes.grid(alpha=0.3)
    return _save(figure, path or folder / "training_stability.png")


def moving(values: npt.NDArray[Any] | Sequence[float], window: int, what: Any) -> npt.NDArray[np.float64]:
    """`what` (np.mean, np.std) over the last `window` values at each place; fewer at the start."""
    array = np.asarray(values, dtype=np.float64)
    return np.array([what(array[max(i - window + 1, 0) : i + 1]) for i in range(len(array))])


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise BackendUnavailable("Plots need matplotlib", received=str(e), fix='pip install "dhead-trt[plot]"') from e
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format=Path(path).suffix.lstrip(".") or "png")
    return Path(path)
