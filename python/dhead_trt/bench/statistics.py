"""What samples of latency say: percentiles, ratios of paired rounds with intervals, whether a run had settled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Latency", "Ratio", "Steadiness", "paired_ratio", "steadiness"]

_QUANTILES = (50, 90, 95, 99)
_FEWEST_ROUNDS = 6  # below, an interval of paired rounds means nothing
_TREND_P = 0.01
_FEWEST_TREND = 6  # rounds; with fewer, even times that only ever rise have p > 0.01
_TREND_SIZE = 0.03  # of the median, over the whole run: less than that is no drift that matters


@dataclass(frozen=True)
class Latency:
    """A summary of single calls, in milliseconds.

    Attributes:
        calls: how many were timed.
        p50, p90, p95, p99: percentiles, interpolated between calls; None where there were too few calls for one to lie
            beyond (p90: 10, p95: 20, p99: 100).
        mean, std: over all calls.
        min, max: the fastest and the slowest.
    """

    calls: int
    p50: float
    p90: float | None
    p95: float | None
    p99: float | None
    mean: float
    std: float
    min: float
    max: float

    @classmethod
    def of(cls, samples: ArrayLike) -> Latency:
        """Summarises at least one call."""
        values = np.asarray(samples, dtype=np.float64).reshape(-1)
        if not len(values):
            raise ValueError("no samples")
        found = dict(zip(_QUANTILES, np.percentile(values, _QUANTILES).tolist(), strict=True))
        tails = {f"p{q}": found[q] if len(values) * (100 - q) >= 100 else None for q in _QUANTILES[1:]}
        return cls(
            calls=len(values),
            p50=found[50],
            mean=float(values.mean()),
            std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            min=float(values.min()),
            max=float(values.max()),
            **tails,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as another.

    Attributes:
        value: geometric mean over the rounds of time / baseline's time.
        low, high: its interval; None where there were fewer than 6 rounds.
        confidence: of the interval.
        rounds: pairs it is made of.
    """

    value: float
    low: float | None
    high: float | None
    confidence: float
    rounds: int

    @property
    def differs(self) -> bool:
        """True where the interval leaves 1 out."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    def inverse(self) -> Ratio:
        """The ratio the other way round: how many times as fast."""
        low = None if self.high is None else 1 / self.high
        high = None if self.low is None else 1 / self.low
        return Ratio(1 / self.value, low, high, self.confidence, self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def paired_ratio(
    times: ArrayLike, baseline: ArrayLike, *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Ratio:
    """Time over the baseline's time, from rounds in which both ran.

    The interval is a bootstrap of the rounds, whole pairs at a time, so that what slowed both in a round cancels. It is
    the studentised one (bootstrap-t on the logarithms), which holds its confidence for a dozen rounds, where that of
    plain percentiles is too narrow.

    Args:
        times, baseline: one positive time for each round, in the same order.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap; the same samples give the same interval.

    Raises:
        ValueError: the lengths differ, there is no round, or a time is not positive.
    """
    a, b = np.asarray(times, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a) or not (np.all(a > 0) and np.all(b > 0)):
        raise ValueError(f"two equally long lists of positive times are needed, not {a.shape} and {b.shape}")
    logs = np.log(a) - np.log(b)
    n, mean = len(logs), float(logs.mean())
    if n < _FEWEST_ROUNDS:
        return Ratio(math.exp(mean), None, None, confidence, n)
    error = float(logs.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12:
        return Ratio(math.exp(mean), math.exp(mean), math.exp(mean), confidence, n)
    drawn = logs[np.random.default_rng(seed).integers(0, n, (resamples, n))]
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    usable = errors > 1e-12  # a resample of one round, again and again, has no error of its own
    t = (drawn.mean(axis=1)[usable] - mean) / errors[usable]
    below, above = np.percentile(t, [50 * (1 - confidence), 100 - 50 * (1 - confidence)])
    return Ratio(
        math.exp(mean), math.exp(mean - float(above) * error), math.exp(mean - float(below) * error), confidence, n
    )


@dataclass(frozen=True)
class Steadiness:
    """Whether the rounds of a run show a trend.

    Attributes:
        settled: no trend from round `start` on.
        start: rounds at the beginning that are left out; 0 where it never settled.
        drift: change over the rounds from `start` on as a share of their median, by the median of the slopes between
            all pairs of rounds (Theil and Sen): 0.1 is 10 % slower at the end.
        p: of the trend by Mann and Kendall's test: how often noise alone looks like that.
        rounds: all of them.
    """

    settled: bool
    start: int
    drift: float
    p: float
    rounds: int

    def describe(self) -> str:
        """One sentence."""
        if not self.settled:
            way = "slower" if self.drift > 0 else "faster"
            return f"never settled: {abs(self.drift):.0%} {way} from the first round to the last"
        return "steady from the start" if not self.start else f"steady from round {self.start + 1} of {self.rounds}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def steadiness(times: ArrayLike) -> Steadiness:
    """Looks for a trend in one time per round: a clock that falls with heat, caches that still fill, memory that grows.

    A run drifts where Mann and Kendall's test sees a trend (p < 0.01) of more than 3 %. Where it does, the first
    quarter, then the first half, are left out and the rest is tested again, where 6 rounds or more are left.
    """
    values = np.asarray(times, dtype=np.float64).reshape(-1)
    n = len(values)
    whole: tuple[float, float] | None = None
    for start in dict.fromkeys((0, n // 4, n // 2)):
        if start and n - start < _FEWEST_TREND:
            break
        drift, p = _trend(values[start:])
        whole = whole or (drift, p)
        if p >= _TREND_P or abs(drift) <= _TREND_SIZE:
            return Steadiness(True, start, drift, p, n)
    drift, p = whole or (0.0, 1.0)
    return Steadiness(False, 0, drift, p, n)


def _trend(values: NDArray[np.float64]) -> tuple[float, float]:
    """(change over all values as a share of the median, two-sided p)."""
    n = len(values)
    if n < 4:
        return 0.0, 1.0
    i, j = np.triu_indices(n, 1)
    rises = values[j] - values[i]
    s = float(np.sign(rises).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return 0.0, 1.0
    z = (s - math.copysign(1, s)) / math.sqrt(variance) if s else 0.0
    drift = float(np.median(rises / (j - i))) * (n - 1) / float(np.median(values))
    return drift, math.erfc(abs(z) / math.sqrt(2))


def round_medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The median call of each round."""
    return [float(np.median(r)) for r in rounds]
