"""A histogram of magnitudes that grows with its data, and the thresholds read from it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "Histogram"]

BINS = 2048
_LEVELS = 127  # of a signed symmetric int8: the magnitudes 0 … 127
_FLUSH = 1 << 20  # values per step: what counting needs beside the data stays in a cache

Floats = npt.NDArray[np.float64]


class Histogram:
    """Counts |x| in 2048 equal bins from 0.

    The range starts at the first data's largest magnitude and doubles, merging neighbours, whenever more comes, so
    that memory does not depend on how much data there is. Zeros are not counted: padding must not sway the thresholds.

    Attributes:
        low, high: smallest and largest value seen.
        seen: how many values.
        counts: int64 [2048].
        width: of a bin; 0 while only zeros were seen.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.seen = 0
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0

    def add(self, values: npt.NDArray[np.floating], *, count: bool = True) -> None:
        """Takes in an array of finite values; `count` False: their extremes only.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        flat = np.ravel(values)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.seen += flat.size
        top = max(-low, high)
        if not count or top <= 0:
            return
        if self.width == 0:
            self.width = max(top / BINS, float(np.finfo(np.float32).tiny))
        while top > self.width * BINS * (1 + 1e-6):
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[: BINS // 2], self.counts[BINS // 2 :] = pairs, 0
            self.width *= 2
        factor = np.float32(1 / self.width) if np.isfinite(np.float32(1 / self.width)) else np.float32(0)
        for start in range(0, flat.size, _FLUSH):
            part = flat[start : start + _FLUSH]
            bins = np.minimum(np.abs(part) * factor, BINS - 1).astype(np.int32)
            found = np.bincount(bins, minlength=BINS)
            found[0] -= part.size - np.count_nonzero(part)
            self.counts += found

    @property
    def amax(self) -> float:
        """The largest magnitude seen; 0 where nothing was."""
        return max(-self.low, self.high, 0.0) if self.seen else 0.0

    def percentile(self, percent: float) -> float:
        """The magnitude that `percent` % of the values that are not zero do not pass."""
        total = int(self.counts.sum())
        if total == 0:
            return self.amax
        place = int(np.searchsorted(np.cumsum(self.counts), total * percent / 100))
        return min((min(place, BINS - 1) + 1) * self.width, self.amax)

    def mse(self) -> float:
        """The clipping threshold whose int8 grid has the least mean squared error, values spread evenly in each bin."""
        used = self._used()
        if used <= _LEVELS:
            return self.amax
        centers = (np.arange(used) + 0.5) * self.width
        weight = self.counts[:used].astype(np.float64)
        tops = self._candidates(used)
        errors = np.empty(len(tops))
        for i, top in enumerate(tops):
            step = top / _LEVELS
            grid = np.minimum(np.rint(centers / step), _LEVELS) * step
            errors[i] = float(weight @ (centers - grid) ** 2)
        return float(min(tops[int(np.argmin(errors))], self.amax))

    def entropy(self) -> float:
        """The threshold that loses the least information: Kullback–Leibler divergence of clipped from quantized counts
        (TensorRT's calibration)."""
        used = self._used()
        if used <= _LEVELS + 1:
            return self.amax
        best, threshold = math.inf, self.amax
        counts = self.counts[:used].astype(np.float64)
        for top in range(_LEVELS + 1, used + 1, max(1, used // 256)):
            p = counts[:top].copy()
            p[-1] += counts[top:].sum()
            # the same bins on 128 levels: each level's count is spread evenly over those of its bins that are not empty
            level = np.minimum(np.arange(top) * (_LEVELS + 1) // top, _LEVELS)
            held = counts[:top]
            filled = held > 0
            sums = np.bincount(level, held, _LEVELS + 1)
            many = np.bincount(level, filled, _LEVELS + 1)
            q = np.where(filled, (sums / np.maximum(many, 1))[level], 0.0)
            divergence = _divergence(p, q)
            if divergence < best:
                best, threshold = divergence, top * self.width
        return min(threshold, self.amax)

    def _used(self) -> int:
        filled = np.flatnonzero(self.counts)
        return int(filled[-1]) + 1 if filled.size else 0

    def _candidates(self, used: int) -> Floats:
        """Thresholds to try: 256, down to a twentieth of the range."""
        top = min(used * self.width, self.amax)
        return np.linspace(top / 20, top, 256)


def _divergence(p: Floats, q: Floats) -> float:
    """KL(p ‖ q) of two histograms; a bin that q misses costs as if it held a ten-thousandth of the least."""
    if p.sum() <= 0 or q.sum() <= 0:
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    some = p > 0
    floor = q[q > 0].min() * 1e-4
    return float(np.sum(p[some] * np.log(p[some] / np.maximum(q[some], floor))))
