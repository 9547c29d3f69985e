"""The picture of a mixed-precision search: accuracy against the share of work done in int8."""

from __future__ import annotations

import os
from pathlib import Path

from .._figure import saved_figure
from .search import Mixed, Trial

__all__ = ["plot"]

_PASSED, _FAILED = "#2b7a4b", "#b3261e"


def plot(mixed: Mixed, path: str | os.PathLike[str]) -> Path:
    """Draws every mixture that was measured, AP50-95 as dots and F1 at 0.5 as crosses; the choice has a ring.

    Right of it, where layers were ranked: the error of each layer alone, those kept in colour.

    Args:
        mixed: the search.
        path: the picture to write; its suffix (.png, .svg, .pdf) chooses the format.

    Raises:
        BackendUnavailable: matplotlib is not installed.
        InputError: the suffix is not one that matplotlib writes.
    """
    ranked = mixed.sensitivity.layers[:24] if mixed.sensitivity is not None else ()
    title = f"int8: {mixed.best.int8_macs:.1%} of the MACs, {len(mixed.keep)} layers in higher precision"
    with saved_figure(path, (11 if ranked else 6, 4.6), title=title) as figure:
        axes = figure.subplots(1, 2, width_ratios=[3, 2]) if ranked else [figure.subplots()]
        curve = axes[0]
        for passes, color in ((True, _PASSED), (False, _FAILED)):
            some = [t for t in mixed.trials if (t.agreement >= mixed.min_agreement) is passes]
            if some:
                shares = [100 * t.int8_macs for t in some]
                word = "passes" if passes else "does not pass"
                curve.plot(shares, [t.ap50_95 for t in some], "o", color=color, markersize=5, label=f"AP50-95, {word}")
                curve.plot(shares, [t.f1_50 for t in some], "x", color=color, markersize=5, label="F1 at IoU 0.5")
        front = _front(mixed.trials)
        curve.plot(
            [100 * t.int8_macs for t in front], [t.agreement for t in front], color="#999999", linewidth=0.8, zorder=0
        )
        best = mixed.best
        curve.plot([100 * best.int8_macs], [best.ap50_95], "o", markersize=13, markerfacecolor="none", color="black")
        curve.axhline(mixed.min_agreement, color="black", linewidth=0.8, linestyle="--")
        curve.set_xlabel("multiply-accumulates in int8 [%]")
        curve.set_ylabel("agreement with float32")
        curve.grid(color="#dddddd", linewidth=0.6)
        curve.set_axisbelow(True)
        curve.legend(loc="lower left", fontsize=8, frameon=False)
        if ranked:
            bars = axes[1]
            colors = [_FAILED if s.name in mixed.keep else "#9aa5b1" for s in ranked]
            bars.barh(range(len(ranked)), [s.error for s in ranked], color=colors)
            bars.set_yticks(range(len(ranked)), [_short(s.name) for s in ranked], fontsize=7)
            bars.set_ylim(len(ranked) - 0.4, -0.6)
            bars.set_xlabel("error of the layer alone (red: kept in higher precision)")
    return Path(path)


def _front(trials: tuple[Trial, ...]) -> list[Trial]:
    """The trials that no other one beats in both figures, by falling share."""
    front: list[Trial] = []
    for t in sorted(trials, key=lambda t: (-t.int8_macs, -t.agreement)):
        if not front or t.agreement > front[-1].agreement:
            front.append(t)
    return front


def _short(name: str) -> str:
    text = name.removesuffix("/Conv").removesuffix("/conv").lstrip("/")
    return text if len(text) <= 28 else "…" + text[-27:]
