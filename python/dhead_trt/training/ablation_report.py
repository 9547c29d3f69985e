"""What the runs of an ablation say: means and deviations, gains and their uncertainty, the claims, two plots."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._figure import saved_figure
from ..tables import table
from .ablation import CONFIGURATIONS, EXTRAS

__all__ = ["METRICS", "Gain", "Report", "Spread", "plot_domains", "plot_study"]

METRICS = ("map50_95", "map50", "map75")
_LABELS = {"map50_95": "mAP50-95", "map50": "mAP50", "map75": "mAP75"}
_ALL = {**CONFIGURATIONS, **EXTRAS}
# Student's t, two-sided 95 %, by degrees of freedom
_T95 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: of the runs.
        deviation: sample standard deviation; NaN of a single run.
        runs: how many.
    """

    mean: float
    deviation: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        array = np.asarray(values, dtype=np.float64)
        return cls(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan, len(array))

    @property
    def half_width(self) -> float:
        """Half of the 95 % confidence interval of the mean; infinite of a single run."""
        if self.runs < 2:
            return math.inf
        t = _T95[min(self.runs, len(_T95)) - 1]  # of more runs: a little too wide
        return t * self.deviation / math.sqrt(self.runs)

    def text(self, digits: int = 3) -> str:
        """Mean ± deviation."""
        if self.runs < 2:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Gain:
    """What a part gains: the difference of two configurations, seed by seed.

    Attributes:
        part: what is added.
        over: what it is added to.
        points: the differences of mAP50-95, in points of 100.
    """

    part: str
    over: str
    points: Spread

    @property
    def verdict(self) -> str:
        """In words: whether the 95 % interval leaves out zero."""
        if self.points.runs < 2:
            return "one run: no telling"
        if abs(self.points.mean) <= self.points.half_width:
            return "no difference that these runs can show"
        return "helps" if self.points.mean > 0 else "harms"


class Report:
    """The finished runs, by configuration, domain and seed.

    Args:
        results: of `load_results`.
        timings: milliseconds by head: {"coupled": {"ms": …}, …}; may be empty.
    """

    def __init__(self, results: Sequence[Result], timings: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.results, self.timings = list(results), dict(timings or {})
        self.study: Mapping[str, Any] = self.results[0]["study"]
        self.domains = list(dict.fromkeys(r["domain"] for r in self.results))
        kinds = {d: len({r["configuration"] for r in self.results if r["domain"] == d}) for d in self.domains}
        self.domains.sort(key=lambda d: -kinds[d])
        self.standard = self.domains[0]  # the one that every configuration was run on

    def of(self, configuration: str, domain: str | None = None) -> dict[int, Result]:
        """Results by seed."""
        domain = domain or self.standard
        return {r["seed"]: r for r in self.results if r["configuration"] == configuration and r["domain"] == domain}

    def configurations(self, domain: str | None = None) -> list[str]:
        """Those that have results, in the table's order."""
        return [name for name in _ALL if self.of(name, domain)]

    def spread(self, configuration: str, metric: str, domain: str | None = None) -> Spread:
        """Of a metric over the seeds."""
        return Spread.of([r[metric] for r in self.of(configuration, domain).values()])

    def gain(self, part: str, name: str, over: str, domain: str | None = None) -> Gain | None:
        """Of `name` over `over`, by the seeds that both have; None where there are none."""
        a, b = self.of(name, domain), self.of(over, domain)
        seeds = sorted(a.keys() & b.keys())
        if not seeds:
            return None
        points = Spread.of([100 * (a[s]["map50_95"] - b[s]["map50_95"]) for s in seeds])
        return Gain(part, _ALL[over].text, points)

    def gains(self) -> list[Gain]:
        """Of every part of the study that has been measured."""
        pairs = (
            ("decoupling", "decoupled", "coupled"),
            ("focal loss", "focal", "decoupled"),
            ("IoU loss", "iou", "decoupled"),
            ("focal loss, beside the IoU loss", "focal_iou", "iou"),
            ("focal and IoU loss", "focal_iou", "decoupled"),
            ("EMA", "full", "focal_iou"),
            ("everything", "full", "coupled"),
            ("EMA, without focal loss", "iou_ema", "iou"),
            ("everything but focal loss", "iou_ema", "coupled"),
            ("task-aligned assignment", "coupled_tal", "coupled"),
            ("decoupling, both task-aligned", "decoupled", "coupled_tal"),
            ("decoupling, both with IoU loss and EMA", "iou_ema", "coupled_iou_ema"),
            ("light instead of decoupled", "light", "iou_ema"),
            ("dynamic instead of decoupled", "dynamic", "iou_ema"),
        )
        found = (self.gain(*pair) for pair in pairs)
        return [gain for gain in found if gain is not None]

    def speedups(self, fast: str = "decoupled", slow: str = "coupled") -> Spread | None:
        """Steps `slow` takes to its last mAP, over those `fast` takes to it, minus 1, in percent; -100: never."""
        a, b = self.of(fast), self.of(slow)
        values = []
        for seed in sorted(a.keys() & b.keys()):
            target, last = b[seed]["curve"][-1][1], b[seed]["curve"][-1][0]
            values.append(100 * (last / steps_to(a[seed]["curve"], target) - 1))
        return Spread.of(values) if values else None

    def cost(self, field: str, name: str = "decoupled", over: str = "coupled") -> float:
        """By how many percent more parameters or work `name` has than `over`."""
        a, b = next(iter(self.of(name).values())), next(iter(self.of(over).values()))
        return 100.0 * (float(a[field]) / float(b[field]) - 1)

    def render(self) -> str:
        """As text: the settings, the table, the gains, the domains, the claims."""
        return "\n\n".join(part for part in self.sections().values() if part)

    def sections(self) -> dict[str, str]:
        """The parts of `render` by name: "settings", "main", "gains", "verdict", "domains", "claims"."""
        return {
            "settings": self.settings(),
            "main": self.main_table(),
            "gains": self.gains_table(),
            "verdict": self.verdict(),
            "domains": self.domains_table(),
            "claims": self.claims_table(),
        }

    def verdict(self) -> str:
        """Which parts help, which harm, and which cannot be told from nothing."""
        lines = []
        for text, verdict in (
            ("Helped", "helps"),
            ("Harmed", "harms"),
            ("Not told from no difference at all", "no difference that these runs can show"),
        ):
            parts = [f"{g.part} over {g.over} ({g.points.mean:+.1f})" for g in self.gains() if g.verdict == verdict]
            if parts:
                lines.append(textwrap.fill(f"- {text}: {'; '.join(parts)}.", 120, subsequent_indent="  "))
        return "\n".join(lines)

    def settings(self) -> str:
        """One paragraph."""
        s = self.study
        return (
            f"{len(self.results)} runs: {s['train_images']} scenes of {s['size']} × {s['size']} px with {s['classes']} "
            f"classes, {s['epochs']} epochs of batches of {s['batch']} ({self.results[0]['steps']} steps), measured on "
            f"{s['val_images']} others; backbone {s['backbone']}."
        )

    def main_table(self) -> str:
        """One row per configuration of the standard domain."""
        rows = []
        for name in self.configurations():
            result = next(iter(self.of(name).values()))
            ms = self.timings.get(_ALL[name].head, {}).get("ms")
            rows.append(
                [
                    _ALL[name].text,
                    len(self.of(name)),
                    *(self.spread(name, m).text() for m in METRICS),
                    f"{result['parameters'] / 1e3:.0f} k",
                    f"{result['macs'] / 1e9:.3f}",
                    "" if ms is None else f"{ms:.2f}",
                ]
            )
        headers = ["configuration", "seeds", *_LABELS.values(), "parameters", "GMACs", "ms"]
        return table(headers, rows, right=range(1, 8))

    def gains_table(self) -> str:
        """What each part gains in mAP50-95."""
        rows = []
        for gain in self.gains():
            p = gain.points
            interval = f"± {p.half_width:.1f}" if p.runs > 1 else ""
            rows.append([gain.part, gain.over, f"{p.mean:+.1f}", interval, gain.verdict])
        return table(["part", "added to", "points", "95 %", "verdict"], rows, right=[2, 3]) if rows else ""

    def domains_table(self) -> str:
        """Coupled against decoupled on every domain."""
        rows = []
        for domain in self.domains:
            gain = self.gain("decoupling", "decoupled", "coupled", domain)
            if gain is None:
                continue
            cells = [self.spread(name, "map50_95", domain).text() for name in ("coupled", "decoupled")]
            p = gain.points
            points = f"{p.mean:+.1f} ± {p.half_width:.1f}" if p.runs > 1 else f"{p.mean:+.1f}"
            rows.append([domain, len(self.of("decoupled", domain)), *cells, points, gain.verdict])
        headers = ["domain", "seeds", "coupled mAP50-95", "decoupled mAP50-95", "points, 95 %", "verdict"]
        return table(headers, rows, right=[1, 2, 3, 4]) if rows else ""

    def claims(self) -> list[tuple[str, str, str, str]]:
        """The tutorial's claims: what, what it says, what was measured, whether that holds."""
        rows = []
        gain = self.gain("decoupling", "decoupled", "coupled")
        if gain is not None:
            p = gain.points
            rows.append(
                ("mAP", "+2.5 to 3.5 points", f"{p.mean:+.1f} ± {p.half_width:.1f} points", _holds(p, 2.5, 3.5))
            )
        speed = self.speedups()
        if speed is not None:
            text = f"{speed.mean:+.0f} ± {speed.half_width:.0f} %" if speed.mean > -99.5 else "did not get there"
            rows.append(("convergence", "+20 %", text, _holds(speed, 20, 20)))
        slow, fast = (self.timings.get(n, {}) for n in ("decoupled", "coupled"))
        if slow and fast:
            a, b = slow["ms"], fast["ms"]
            # as far apart as the quartiles allow: no interval of the mean, but a noisy timing decides nothing
            low = 100 * (slow.get("low", a) / fast.get("high", b) - 1)
            high = 100 * (slow.get("high", a) / fast.get("low", b) - 1)
            holds = "no: less" if high < 15 else "no: more" if low > 20 else "cannot be told"
            if low >= 15 and high <= 20:
                holds = "yes"
            rows.append(("inference cost", "+15 to 20 %", f"{100 * (a / b - 1):+.0f} % ({b:.2f} → {a:.2f} ms)", holds))
        if self.of("decoupled") and self.of("coupled"):
            for text, field in (("parameters of the head", "head_parameters"), ("parameters in all", "parameters")):
                more = Spread(self.cost(field), 0.0, 2)
                rows.append((text, "+80 to 100 %", f"{more.mean:+.0f} %", _holds(more, 80, 100)))
            rows.append(("GMACs in all", "", f"{self.cost('macs'):+.0f} %", ""))
        return rows

    def claims_table(self) -> str:
        """The claims as text."""
        rows = self.claims()
        return table(["claim", "tutorial", "measured, decoupled against coupled", "holds"], rows) if rows else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: settings, timings, and every run."""
        keep = ("configuration", "domain", "seed", *METRICS, "curve", "steps", "skipped", "seconds", "finished")
        first = {name: next(iter(self.of(name).values())) for name in self.configurations()}
        sizes = ("parameters", "head_parameters", "macs", "head_macs")
        return {
            "study": dict(self.study),
            "timings": self.timings,
            "configurations": {name: {k: r[k] for k in sizes} for name, r in first.items()},
            "runs": [{k: _short(r[k]) for k in keep} for r in self.results],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Reads what `to_dict` wrote."""
        nothing = dict.fromkeys(("parameters", "head_parameters", "macs", "head_macs"), math.nan)
        sizes = data["configurations"]
        results = [{**r, "study": data["study"], **sizes.get(r["configuration"], nothing)} for r in data["runs"]]
        return cls(results, data["timings"])


def steps_to(curve: Sequence[Sequence[float]], target: float) -> float:
    """Steps until the curve of (step, mAP) reaches a value, between its points on a straight line; infinite: never."""
    before = (0.0, 0.0)
    for step, value in curve:
        if value >= target:
            share = (target - before[1]) / (value - before[1]) if value > before[1] else 1.0
            return before[0] + share * (step - before[0])
        before = (step, value)
    return math.inf


def plot_study(report: Report, path: str | os.PathLike[str]) -> Path:
    """ablation_study.png: mAP by configuration with error bars, gains with their intervals, convergence, cost.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    names = report.configurations()
    y = np.arange(len(names))[::-1]
    with saved_figure(path, (12, 8), title="Ablation of the decoupled head, measured") as figure:
        (a, b), (c, d) = figure.subplots(2, 2)
        for i, metric in enumerate(METRICS):
            spreads = [report.spread(n, metric) for n in names]
            a.barh(
                y + 0.26 * (1 - i),
                [s.mean for s in spreads],
                0.24,
                xerr=[_finite(s.deviation) for s in spreads],
                label=_LABELS[metric],
                error_kw={"linewidth": 0.9, "capsize": 2},
            )
        a.set_yticks(y, [_ALL[n].text for n in names])
        a.set(title="Accuracy: mean and standard deviation over seeds")
        a.margins(x=0.25)
        a.legend(loc="center right", fontsize=7)
        gains = report.gains()
        rows = np.arange(len(gains))[::-1]
        colours = {"helps": "C2", "harms": "C3"}
        b.barh(
            rows,
            [g.points.mean for g in gains],
            0.6,
            xerr=[_finite(g.points.half_width) for g in gains],
            color=[colours.get(g.verdict, "0.75") for g in gains],
            error_kw={"linewidth": 0.9, "capsize": 2},
        )
        b.axvline(0, color="0.3", linewidth=0.8)
        b.set_yticks(rows, [f"{g.part}\n(over {g.over})" for g in gains], fontsize=7)
        b.set(title="Gain in mAP50-95, points (grey: may be zero)")
        for n in [n for n in names if n in CONFIGURATIONS]:
            curves = np.array([r["curve"] for r in report.of(n).values()])  # [seeds, points, 2]
            mean, spread = curves[:, :, 1].mean(0), curves[:, :, 1].std(0)
            c.plot(curves[0, :, 0], mean, "o-", markersize=3, label=_ALL[n].text)
            c.fill_between(curves[0, :, 0], mean - spread, mean + spread, alpha=0.15)
        c.set(title="Convergence (scenes for validation, a part of them)", xlabel="step", ylabel="mAP50-95")
        c.legend(fontsize=7)
        _plot_cost(d, report, names)
    return Path(path)


def _plot_cost(axes: Any, report: Report, names: Sequence[str]) -> None:
    heads: dict[str, str] = {}
    for name in names:
        heads.setdefault(_ALL[name].head, name)
    ms = {h: report.timings.get(h, {}).get("ms") for h in heads}
    columns = [("parameters", "parameters, k", 1e3), ("macs", "MMACs", 1e6)]
    x = np.arange(len(heads))
    width = 0.27
    values: list[tuple[str, list[float]]] = [
        (label, [next(iter(report.of(n).values()))[field] / unit for n in heads.values()])
        for field, label, unit in columns
    ]
    if all(v is not None for v in ms.values()):
        values.append(("µs", [1e3 * float(v) for v in ms.values() if v is not None]))
    for i, (label, numbers) in enumerate(values):
        relative = [n / numbers[0] for n in numbers]
        bars = axes.bar(x + (i - 1) * width, relative, width * 0.9, label=label)
        axes.bar_label(bars, [f"{n:.3g}" for n in numbers], fontsize=7)
    axes.set_xticks(x, list(heads))
    axes.set(title=f"Cost of the whole detector, {next(iter(heads))} = 1")
    axes.legend(fontsize=7)


def plot_domains(report: Report, path: str | os.PathLike[str]) -> Path:
    """multi_dataset_benchmark.png: coupled against decoupled on every domain, three metrics, with error bars.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    domains = [d for d in report.domains if report.of("coupled", d) and report.of("decoupled", d)]
    x = np.arange(len(domains))
    with saved_figure(path, (12, 3.8), title="Coupled and decoupled heads on generated domains, measured") as figure:
        for axes, metric in zip(figure.subplots(1, 3, sharey=True), METRICS, strict=True):
            for i, name in enumerate(("coupled", "decoupled")):
                spreads = [report.spread(name, metric, d) for d in domains]
                bars = axes.bar(
                    x + (i - 0.5) * 0.38,
                    [s.mean for s in spreads],
                    0.36,
                    yerr=[_finite(s.deviation) for s in spreads],
                    label=name,
                    error_kw={"linewidth": 0.9, "capsize": 3},
                )
                axes.bar_label(bars, [f"{s.mean:.3f}" for s in spreads], fontsize=7, padding=4)
            axes.set_xticks(x, domains)
            axes.set(title=_LABELS[metric])
            axes.margins(y=0.15)
        figure.axes[0].legend(fontsize=8)
    return Path(path)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _holds(measured: Spread, low: float, high: float) -> str:
    """Whether the interval measured and the interval claimed meet."""
    half = measured.half_width
    if measured.mean + half < low:
        return "no: less"
    if measured.mean - half > high:
        return "no: more"
    return "yes" if half < max(5.0, 0.5 * abs(measured.mean)) else "cannot be told"


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    return [_short(v) for v in value] if isinstance(value, list) else value
