"""Measures what a decode tail computes, by feeding it maps of our own: which map is what, centres, units, format.

The tail is a black box here: whatever operators an exporter wrote, in whatever order, these facts are what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import GraphError
from .run import Arrays, Session
from .walk import RAW_EXPORT

__all__ = ["BoxFormat", "Level", "Measured", "TailFunction", "measure"]

BoxFormat = Literal["xyxy", "xywh"]
Rows = npt.NDArray[np.float64]  # [B, 4+C, A]


@dataclass(frozen=True)
class Level:
    """The raw maps of one level, by their tensor names in the graph, and where its anchors lie."""

    box: str
    cls: str
    obj: str | None
    offset: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Measured:
    """What a tail was seen to compute."""

    levels: tuple[Level, ...]
    num_classes: int
    bins: int
    strides: tuple[int, ...]
    units: tuple[float, ...]  # pixels per bin, by level
    box_format: BoxFormat


class TailFunction:
    """The tail as a function of its raw maps: name → [B, ch, H, W]  →  rows [B, 4+C, A] in float64.

    Args:
        session: from `tail_session`.
        extra: arrays for graph inputs that the tail reads the shape of.
        shapes: shapes of the raw maps at the sizes of `extra`.
        dtypes: their dtypes.
        outputs: names of the graph's outputs: one joined, or boxes and scores.
    """

    def __init__(
        self,
        session: Session,
        extra: Mapping[str, npt.NDArray[Any]],
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, str],
        outputs: tuple[str, ...],
    ) -> None:
        self._session, self._extra, self.outputs = session, dict(extra), outputs
        self.shapes, self.dtypes = dict(shapes), dict(dtypes)

    def at(self, extra: Mapping[str, npt.NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> TailFunction:
        """The same tail at other sizes."""
        return TailFunction(self._session, extra, shapes, self.dtypes, self.outputs)

    def __call__(self, maps: Arrays) -> Rows:
        """Runs the tail."""
        feeds = self._extra | {k: v.astype(self.dtypes[k]) for k, v in maps.items()}
        return joined(self._session.run(feeds), self.outputs, anchors=None)

    def random_maps(self, seed: int, scale: float = 2.0, limit: float = 8.0) -> Arrays:
        """Normal maps of standard deviation `scale`, clipped, already rounded to the graph's dtype."""
        rng = np.random.default_rng(seed)
        return {
            k: np.clip(rng.standard_normal(s) * scale, -limit, limit).astype(self.dtypes[k])
            for k, s in self.shapes.items()
        }


def joined(arrays: Arrays, outputs: tuple[str, ...], anchors: int | None) -> Rows:
    """One [B, 4+C, A] float64 array of a graph's outputs, joined (one output) or apart (boxes [B,A,4], scores [B,A,C]).

    Raises:
        GraphError: other shapes, or another number of anchors than `anchors`.
    """
    values = [np.asarray(arrays[name], dtype=np.float64) for name in outputs]
    shapes = ", ".join(f"{n} {list(v.shape)}" for n, v in zip(outputs, values, strict=True))
    bad = GraphError(
        "The graph's outputs are not those of a detect head",
        received=shapes,
        expected="one output [B, 4+classes, anchors], or boxes [B, anchors, 4] and scores [B, anchors, classes]"
        + (f" with {anchors} anchors" if anchors else ""),
        fix=RAW_EXPORT,
    )
    if any(v.ndim != 3 for v in values):
        raise bad
    if len(values) == 1:
        rows = values[0]
    else:
        boxes, scores = values
        if boxes.shape[2] != 4 or boxes.shape[:2] != scores.shape[:2]:
            raise bad
        rows = np.concatenate([boxes, scores], axis=2).transpose(0, 2, 1)
    if rows.shape[1] < 5 or (anchors is not None and rows.shape[2] != anchors):
        raise bad
    return rows


def measure(tail: TailFunction) -> Measured:
    """Measures a tail.

    Raises:
        GraphError: it is not a decode that a HeadSpec can describe; the message says what was seen.
    """
    levels, num_classes = _levels(tail)
    channels = {tail.shapes[level.box][1] for level in levels}
    if len(channels) != 1 or next(iter(channels)) % 4:
        raise GraphError(
            "The box maps of the levels do not fit together",
            received=f"channels {[tail.shapes[level.box][1] for level in levels]}",
            expected="4·bins channels, the same at every level",
            fix=RAW_EXPORT,
        )
    bins = next(iter(channels)) // 4
    origin, far = tail(_one_bin(tail, levels, bins, 0)), tail(_one_bin(tail, levels, bins, max(bins - 1, 1)))
    box_format = _box_format(origin)
    strides, units = [], []
    for level in levels:
        low, high = level.offset, level.offset + level.size[0] * level.size[1]
        strides.append(_stride(origin[0, :2, low:high], level, tail))
        spread = far[0, 2:4, low:high] if box_format == "xywh" else far[0, 2:4, low:high] - far[0, :2, low:high]
        units.append(float(np.median(spread)) / 2 / max(bins - 1, 1))
    return Measured(tuple(levels), num_classes, bins, tuple(strides), tuple(units), box_format)


def _levels(tail: TailFunction) -> tuple[list[Level], int]:
    """Finds, for every raw map, which output rows (box or class) and which anchors it reaches."""
    base = tail.random_maps(seed=1, scale=1.0, limit=3.0)
    before = tail(base)
    num_classes, total = before.shape[1] - 4, before.shape[2]
    groups: dict[int, dict[str, str]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for name, shape in tail.shapes.items():
        height, width = shape[2:]
        ramp = 1 + np.linspace(0, 16, shape[1]).reshape(1, -1, 1, 1)
        changed = np.any(tail(base | {name: base[name] + ramp}) != before, axis=0)  # [4+C, A]
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        kind = _kind(rows, num_classes, shape[1])
        cells = height * width
        solid = columns.size > 0 and columns[-1] - columns[0] + 1 == columns.size == cells
        if kind is None or not solid:
            raise _not_a_map(name, shape, rows, columns, num_classes, total)
        offset = int(columns[0])
        group = groups.setdefault(offset, {})
        if kind == "cls" and "cls" in group and shape[1] == 1:
            kind = "obj"
        if kind in group or sizes.setdefault(offset, (height, width)) != (height, width):
            raise _not_a_map(name, shape, rows, columns, num_classes, total)
        group[kind] = name
    order = sorted(groups)
    kinds = {frozenset(g) for g in groups.values()}
    ends = [o + sizes[o][0] * sizes[o][1] for o in order]
    if kinds not in ({frozenset({"box", "cls"})}, {frozenset({"box", "cls", "obj"})}) or [*order, total] != [0, *ends]:
        raise GraphError(
            "The raw maps do not form levels",
            received="; ".join(f"anchors from {o}: {sorted(groups[o])} {sizes[o]}" for o in order)
            + f"; {total} anchors",
            expected="for each level one box map and one class map (and one objectness map), covering all anchors",
            fix=RAW_EXPORT,
        )
    found = [Level(groups[o]["box"], groups[o]["cls"], groups[o].get("obj"), o, sizes[o]) for o in order]
    return found, num_classes


def _kind(rows: npt.NDArray[np.intp], num_classes: int, channels: int) -> str | None:
    if rows.tolist() == [0, 1, 2, 3]:
        return "box"
    if rows.tolist() == list(range(4, 4 + num_classes)):
        if channels == num_classes:
            return "cls"
        if channels == 1:
            return "obj"
    return None


def _not_a_map(
    name: str,
    shape: tuple[int, ...],
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    classes: int,
    total: int,
) -> GraphError:
    span = f"{columns.size} of {total} anchors" + (f" ({columns[0]}…{columns[-1]})" if columns.size else "")
    return GraphError(
        "A convolution before the output is no box, class or objectness map of a detect head; "
        "a further branch means pose, segmentation or oriented boxes",
        received=f"{name!r} {list(shape)}, which reaches the output rows {_span(rows)} of {4 + classes} and {span}",
        expected=f"a map that reaches rows 0-3 (box) or all rows 4-{3 + classes} (scores) of one level",
        fix=RAW_EXPORT,
    )


def _span(rows: npt.NDArray[np.intp]) -> str:
    return f"{rows[0]}-{rows[-1]} ({rows.size})" if rows.size else "none"


def _one_bin(tail: TailFunction, levels: list[Level], bins: int, which: int) -> Arrays:
    """Maps whose every distance is `which` bins."""
    maps = {name: np.zeros(shape, dtype=np.float32) for name, shape in tail.shapes.items()}
    for level in levels:
        if bins == 1:
            maps[level.box][:] = which
        else:
            maps[level.box].reshape(maps[level.box].shape[0], 4, bins, -1)[:, :, which] = 30.0
    return maps


def _box_format(origin: Rows) -> BoxFormat:
    """With all distances 0, the last two rows are sizes 0 (xywh) or the centre again (xyxy)."""
    first, second = origin[:, :2], origin[:, 2:4]
    if np.abs(second).max() < 1e-2:
        return "xywh"
    if np.abs(second - first).max() <= 1e-2 + 1e-3 * np.abs(first).max():
        return "xyxy"
    raise GraphError(
        "The boxes of the output are neither xywh nor xyxy",
        received=f"for distances of 0, the first anchor is {np.array2string(origin[0, :4, 0], precision=4)}",
        expected="[cx, cy, 0, 0] or [cx, cy, cx, cy]",
        fix=RAW_EXPORT,
    )


def _stride(centers: npt.NDArray[np.float64], level: Level, tail: TailFunction) -> int:
    """The stride of a level from its centres ((x+½)s, (y+½)s), all of which must lie on that grid, row-major."""
    stride = round(2 * float(centers[0, 0]))
    height, width = level.size
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)).reshape(2, -1) * max(stride, 1)
    error = float(np.abs(centers - grid).max())
    limit = 1e-2 + (2.0**-9 if tail.dtypes[level.box] == "float16" else 1e-5) * float(grid.max())
    if stride < 1 or error > limit:
        raise GraphError(
            "The anchors of a level do not lie on the grid ((x+½)·stride, (y+½)·stride), row by row",
            received=f"level of {height}×{width} cells: first centre {centers[:, 0].tolist()}, "
            f"last {centers[:, -1].tolist()}, up to {error:.4g} px off the grid of stride {stride}",
            expected="a whole stride of at least 1 and centres on its grid",
            fix="The anchor order or offset of this export is another one. " + RAW_EXPORT,
        )
    return stride
