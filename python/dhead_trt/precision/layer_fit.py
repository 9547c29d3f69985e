"""One convolution fitted to given outputs from rounded inputs: least squares, then GPTQ rounding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .int8 import LEVELS

__all__ = ["Fit", "Window", "draw_positions", "nearest", "patches", "weight_scale"]

DAMP = 1e-2  # of the mean square of the inputs, added where weights are rounded
ON_OBJECTS = 0.7  # share of the positions

Floats = npt.NDArray[np.float64]


class Fit:
    """Sums over positions that a least squares fit of a layer needs.

    Attributes:
        gram: inputs (and 1) by inputs, float64 [K+1, K+1].
        cross: inputs (and 1) by float32 outputs, [K+1, O].
        power: squares of the float32 outputs, summed.
        count: positions.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.gram, self.cross = np.zeros((inputs + 1, inputs + 1)), np.zeros((inputs + 1, outputs))
        self.power, self.count = 0.0, 0

    def add(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> None:
        """Takes positions in: x [n, K], y [n, O]."""
        x = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):  # see finite
            self.gram += x.T @ x
            self.cross += x.T @ y
        self.power += float(np.square(y, dtype=np.float64).sum())
        self.count += len(x)

    @property
    def finite(self) -> bool:
        """Whether all inputs and outputs were numbers, not too large for sums of squares in float32."""
        sums = (np.diag(self.gram), self.cross, self.power)
        return all(bool(np.isfinite(s).all()) for s in sums)

    @property
    def size(self) -> float:
        """Root mean square of the outputs."""
        return float(np.sqrt(self.power / self.count / self.cross.shape[1]))

    def error(self, weight: Floats, bias: Floats) -> float:
        """Root mean square difference from the outputs."""
        w = _joined(weight, bias)
        square = self.power - 2 * float((w * self.cross.T).sum()) + float(((w @ self.gram) * w).sum())
        return float(np.sqrt(max(square, 0.0) / self.count / self.cross.shape[1]))

    def solve(self, weight: Floats, bias: Floats, ridge: float) -> tuple[Floats, Floats]:
        """Weights and bias of the least squares, held to the given ones by the ridge."""
        old = _joined(weight, bias)
        penalty = np.full(len(self.gram), ridge * float(np.diag(self.gram)[:-1].mean()) + _tiny(self.gram))
        penalty[-1] = 1e-6 * self.count  # the bias is almost free
        step = np.linalg.solve(self.gram + np.diag(penalty), self.cross - self.gram @ old.T)
        new = old + step.T
        return new[:, :-1].reshape(weight.shape), new[:, -1]

    def round(self, weight: Floats, bias: Floats, scale: Floats) -> tuple[Floats, Floats]:
        """GPTQ: weights on the grid of the scales [O], and the bias that goes with them."""
        w = weight.reshape(len(weight), -1)
        mean = self.gram[-1, :-1] / self.count
        spread = self.gram[:-1, :-1] - self.count * np.outer(mean, mean)  # the bias takes the mean's share
        spread += np.eye(len(spread)) * (DAMP * float(np.diag(spread).mean()) + _tiny(self.gram))
        order = np.argsort(-np.diag(spread), kind="stable")
        inverse = _inverse_root(spread[np.ix_(order, order)], float(np.diag(self.gram)[:-1].mean()))
        left, done = w[:, order].copy(), np.empty_like(w)
        for k in range(len(order)):
            column = np.clip(np.rint(left[:, k] / scale), -LEVELS, LEVELS) * scale
            off = (left[:, k] - column) / inverse[k, k]
            left[:, k + 1 :] -= np.outer(off, inverse[k, k + 1 :])
            done[:, order[k]] = column
        return done.reshape(weight.shape), bias - (done - w) @ mean


def _inverse_root(spread: Floats, size: float) -> Floats:
    """Upper triangular U with UᵀU = inverse of a matrix; damped more where inputs that hardly vary leave only noise."""
    for damp in (0.0, *(size * 10.0**power for power in range(-7, 1))):  # float32 sums are off by 1e-7
        root = _root(spread + damp * np.eye(len(spread)))
        if root is not None:
            return root
    return np.eye(len(spread))  # each to nearest


def _root(matrix: Floats) -> Floats | None:
    try:
        return np.asarray(np.linalg.cholesky(np.linalg.inv(matrix)).T)
    except np.linalg.LinAlgError:
        return None


def _joined(weight: Floats, bias: Floats) -> Floats:
    return np.concatenate([weight.reshape(len(weight), -1), bias[:, None]], axis=1)


def _tiny(gram: Floats) -> float:
    return 1e-9 * float(gram[-1, -1])  # inputs that are always 0 do not make the system singular


def weight_scale(weight: Floats) -> Floats:
    """Of each output channel, on float32's grid; 1 for a channel of zeros."""
    top = np.abs(weight).reshape(len(weight), -1).max(axis=1) / LEVELS
    some = np.maximum(np.where(top > 0, top, 1.0), np.finfo(np.float32).tiny)
    return some.astype(np.float32).astype(np.float64)


def nearest(weight: Floats, scale: Floats) -> Floats:
    """Weights [O, …] on the grids of the scales [O]."""
    per = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.asarray(np.clip(np.rint(weight / per), -LEVELS, LEVELS) * per)


class Window(NamedTuple):
    """Where a convolution looks: kernel, strides, dilations, and the zeros around."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right


def draw_positions(
    shape: tuple[int, int], importance: npt.NDArray[np.float32], count: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of a map: most where objects are, some anywhere."""
    height, width = shape
    rows = np.arange(height) * importance.shape[0] // height
    columns = np.arange(width) * importance.shape[1] // width
    chance = importance[np.ix_(rows, columns)].ravel().astype(np.float64) + 1e-9
    count = min(count, chance.size)
    objects = round(ON_OBJECTS * count)
    edges = np.cumsum(chance)
    chosen = np.searchsorted(edges, rng.random(objects) * edges[-1], side="right")
    chosen = np.concatenate([np.minimum(chosen, chance.size - 1), rng.integers(0, chance.size, count - objects)])
    return chosen // width, chosen % width


def patches(
    x: npt.NDArray[np.float32], window: Window, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """What a convolution reads at some places of its output: [n, C·kh·kw], in the order of its weights."""
    top, left, bottom, right = window.pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    down = rows * window.strides[0], window.dilations[0]
    across = columns * window.strides[1], window.dilations[1]
    taps = [
        padded[:, down[0] + i * down[1], across[0] + j * across[1]]
        for i in range(window.kernel[0])
        for j in range(window.kernel[1])
    ]
    stacked = np.stack(taps, axis=1)  # [C, kh·kw, n]
    return np.ascontiguousarray(stacked.reshape(-1, len(rows)).T)
