"""The glyphs of the synthetic scenes: what is inside them, and where they end.

A shape lives in its own coordinates: centred, at most about 1 from the centre, y down. It is given twice: as a signed
distance (positive inside, exact near the edges, not beyond the corners), which is drawn, and as an outline of points,
from which the box is taken. `tests/test_training_scenes.py` holds the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["SHAPES", "SHAPE_NAMES", "Shape", "clip_outline"]

Plane = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

_ARC = 192  # points of a whole circle: the outline is short of it by 1 - cos(pi / 192), 0.014 px at a radius of 100
_SQUARE = 0.8
_CROSS = 0.31
_HOLE = 0.55
_STAR_INNER = 0.48
_MOON_SHIFT, _MOON_CUT = 0.45, 0.75
_GLASS_HEIGHT, _GLASS_SLOPE, _GLASS_WAIST = 0.8, 0.66, 0.1


@dataclass(frozen=True)
class Shape:
    """A glyph.

    Attributes:
        name: of its class.
        inside: x, y float32 of any one shape → the signed distance to the edge, positive inside. May overwrite them.
        outline: [N, 2] points (x, y) of its outer edge, in order.
    """

    name: str
    inside: Callable[[Plane, Plane], Plane]
    outline: Points


def clip_outline(points: Points, width: float, height: float) -> Points:
    """The part of a polygon [N, 2] inside 0 … width, 0 … height (Sutherland-Hodgman); [0, 2] where nothing is."""
    for axis, limit, sign in ((0, 0.0, 1.0), (0, width, -1.0), (1, 0.0, 1.0), (1, height, -1.0)):
        if not len(points):
            return points
        depth = (points[:, axis] - limit) * sign
        if depth.min() >= 0:
            continue
        follower, next_depth = np.roll(points, -1, axis=0), np.roll(depth, -1)
        crosses = (depth >= 0) != (next_depth >= 0)
        share = np.where(crosses, depth / np.where(crosses, depth - next_depth, 1.0), 0.0)
        cuts = points + (follower - points) * share[:, None]
        cuts[:, axis] = limit
        both = np.stack([points, cuts], axis=1).reshape(-1, 2)
        points = both[np.stack([depth >= 0, crosses], axis=1).ravel()]
    return points


def _disc(x: Plane, y: Plane) -> Plane:
    return 1 - _radius(x, y)


def _ring(x: Plane, y: Plane) -> Plane:
    half = np.float32((1 - _HOLE) / 2)
    depth: Plane = half - np.abs(_radius(x, y) - (1 - half))
    return depth


def _square(x: Plane, y: Plane) -> Plane:
    depth: Plane = np.float32(_SQUARE) - np.maximum(np.abs(x), np.abs(y))
    return depth


def _triangle(x: Plane, y: Plane) -> Plane:
    slope = np.float32(math.sqrt(0.75))
    depth: Plane = np.minimum(0.5 - y, 0.5 + 0.5 * y - slope * np.abs(x))
    return depth


def _cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    depth: Plane = np.minimum(1 - np.maximum(x, y), np.float32(_CROSS) - np.minimum(x, y))
    return depth


def _star(x: Plane, y: Plane) -> Plane:
    # Four mirrors fold the plane onto half a point of the star; what is left is one edge.
    c, s = np.float32(math.cos(math.pi / 5)), np.float32(math.sin(math.pi / 5))
    x, y = np.abs(x), -y
    for side in (np.float32(1), np.float32(-1)):
        past: Plane = 2 * np.maximum(side * c * x - s * y, 0)
        x, y = x - past * (side * c), y + past * s
    ex, ey = _STAR_INNER * math.sin(math.pi / 5), _STAR_INNER * math.cos(math.pi / 5) - 1
    length = math.hypot(ex, ey)
    depth: Plane = np.float32(ey / length) * np.abs(x) - np.float32(ex / length) * (y - 1)
    return depth


def _moon(x: Plane, y: Plane) -> Plane:
    bite: Plane = _radius(x - np.float32(_MOON_SHIFT), y) - np.float32(_MOON_CUT)
    return np.minimum(1 - _radius(x, y), bite)


def _hourglass(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    side: Plane = np.float32(_GLASS_SLOPE) * y + np.float32(_GLASS_WAIST) - x
    side *= np.float32(1 / math.hypot(1, _GLASS_SLOPE))
    depth: Plane = np.minimum(np.float32(_GLASS_HEIGHT) - y, side)
    return depth


def _radius(x: Plane, y: Plane) -> Plane:
    radius: Plane = np.sqrt(x * x + y * y)
    return radius


def _arc(start: float, stop: float) -> Points:
    """Points of the unit circle between two angles, both included."""
    angles = np.linspace(start, stop, max(2, math.ceil(_ARC * abs(stop - start) / (2 * math.pi)) + 1))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=np.float64)


def _circle_outline() -> Points:
    return _arc(0, 2 * math.pi)[:-1]


def _star_outline() -> Points:
    turns = np.arange(10) * math.pi / 5
    radius = np.where(np.arange(10) % 2, _STAR_INNER, 1.0)
    return np.stack([radius * np.sin(turns), -radius * np.cos(turns)], axis=1)


def _cross_outline() -> Points:
    w = _CROSS
    quarter = _polygon((w, -1), (w, -w), (1, -w))
    turned = [quarter]
    for _ in range(3):
        turned.append(np.stack([-turned[-1][:, 1], turned[-1][:, 0]], axis=1))
    return np.concatenate(turned)


def _moon_outline() -> Points:
    horn_x = (1 + _MOON_SHIFT**2 - _MOON_CUT**2) / (2 * _MOON_SHIFT)
    horn = math.acos(horn_x)
    outer = _arc(horn, 2 * math.pi - horn)
    turn = math.atan2(math.sqrt(1 - horn_x**2), horn_x - _MOON_SHIFT)
    inner = _arc(2 * math.pi - turn, turn) * _MOON_CUT + (_MOON_SHIFT, 0)
    return np.concatenate([outer, inner[1:-1]])


def _hourglass_outline() -> Points:
    h, w = _GLASS_HEIGHT, _GLASS_WAIST
    far = _GLASS_SLOPE * h + w
    return _polygon((-far, -h), (far, -h), (w, 0), (far, h), (-far, h), (-w, 0))


_s, _t = _SQUARE, math.sqrt(0.75)
SHAPES: tuple[Shape, ...] = (
    Shape("disc", _disc, _circle_outline()),
    Shape("square", _square, _polygon((-_s, -_s), (_s, -_s), (_s, _s), (-_s, _s))),
    Shape("triangle", _triangle, _polygon((0, -1), (_t, 0.5), (-_t, 0.5))),
    Shape("ring", _ring, _circle_outline()),
    Shape("cross", _cross, _cross_outline()),
    Shape("star", _star, _star_outline()),
    Shape("moon", _moon, _moon_outline()),
    Shape("hourglass", _hourglass, _hourglass_outline()),
)
SHAPE_NAMES: tuple[str, ...] = tuple(shape.name for shape in SHAPES)
