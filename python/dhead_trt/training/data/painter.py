"""Draws one synthetic scene: background, clutter, objects with exact boxes, stripes in front, and the camera.

Everything is float32 on [3, H, W], 0 … 255, and drawn on the tile it covers only.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .domains import Domain
from .shapes import SHAPES, Shape, clip_outline

__all__ = ["MIN_INSIDE", "MIN_VISIBLE", "paint"]

MIN_INSIDE = 0.6  # share of an object's box that lies in the frame
MIN_VISIBLE = 0.7  # share of an object's pixels in the frame that nothing hides

Plane = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
Tile = tuple[slice, slice]

_TRIES = 6
_BANK = 320
_COLOURS = 6


def paint(
    rng: np.random.Generator, domain: Domain, height: int, width: int, shapes: Sequence[int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """One scene of the given shapes (numbers in SHAPES); classes are counted in this order.

    Returns:
        The image, uint8 RGB [3, H, W]; its objects, float32 [N, 5]: class, x1, y1, x2, y2 in pixels; and for each
        pixel the number of the object that is seen there, from 1, or 0, uint8 [H, W].
    """
    canvas = _Canvas(rng, domain, height, width, shapes)
    canvas.background()
    for _ in range(_integer(rng, *domain.clutter)):
        canvas.clutter()
    low, high = domain.size
    top = max(low, min(high * min(height, width), domain.size_limit))
    sizes = []
    for _ in range(_integer(rng, *domain.objects)):
        if rng.random() < domain.tiny:
            sizes.append(float(rng.uniform(min(6.0, low), low)))
        else:
            sizes.append(low * (top / low) ** rng.random())
    for size in sorted(sizes, reverse=True):  # the small in front of the large
        canvas.add(size)
    for _ in range(_integer(rng, 0, domain.occluders)):
        canvas.occlude()
    targets = np.array([(c, *b) for c, b in zip(canvas.classes, canvas.boxes, strict=True)], dtype=np.float32)
    return canvas.photograph(), targets.reshape(-1, 5), canvas.owner


class _Canvas:
    """A scene while it is drawn."""

    def __init__(
        self, rng: np.random.Generator, domain: Domain, height: int, width: int, shapes: Sequence[int]
    ) -> None:
        self.rng, self.domain, self.height, self.width, self.shapes = rng, domain, height, width, shapes
        self.pixels: Plane = np.empty((3, height, width), dtype=np.float32)
        self.owner = np.zeros((height, width), dtype=np.uint8)
        self.columns = np.arange(width, dtype=np.float32) + 0.5
        self.rows = np.arange(height, dtype=np.float32) + 0.5
        self.classes: list[int] = []
        self.boxes: list[Box] = []
        self.whole: list[int] = [0]  # pixels of each object in the frame; the first entry is the background
        self.visible: list[int] = [0]

    def background(self) -> None:
        """Soft blotches of two scales around one colour."""
        base = _colour(self.rng, saturation=0.55)
        for nodes, amplitude in ((3, 38.0), (8, 14.0)):
            grid = self.rng.uniform(-amplitude, amplitude, (3, nodes, nodes)).astype(np.float32)
            soft = _blend(self.height, nodes) @ grid @ _blend(self.width, nodes).T
            if nodes == 3:
                np.add(soft, base[:, None, None], out=self.pixels)
            else:
                self.pixels += soft

    def clutter(self) -> None:
        """One thing behind the objects: an edge, a band, a blob, squares of a carpet, or a stroke."""
        rng = self.rng
        kind, colour = _integer(rng, 0, 4), _colour(rng)
        strength = float(rng.uniform(0.15, 0.6))
        if kind == 0:
            self._mix((slice(None), slice(None)), np.clip(self._line_distance() + 0.5, 0, 1), colour, strength)
        elif kind == 1:
            self._mix((slice(None), slice(None)), self._band(float(rng.uniform(0.5, 6.0))), colour, strength)
        elif kind == 2:
            spread = float(rng.uniform(0.06, 0.3)) * min(self.height, self.width)
            cx, cy = rng.random() * self.width, rng.random() * self.height
            x = np.exp(-0.5 * np.square((self.columns - np.float32(cx)) / np.float32(spread)))
            y = np.exp(-0.5 * np.square((self.rows - np.float32(cy)) / np.float32(spread)))
            self._mix((slice(None), slice(None)), y[:, None] * x[None, :], colour, strength)
        elif kind == 3:
            period = float(rng.uniform(4, 24))
            x = np.where(((self.columns + rng.random() * 24) / period) % 1 < 0.5, 1, -1).astype(np.float32)
            y = np.where(((self.rows + rng.random() * 24) / period) % 1 < 0.5, 1, -1).astype(np.float32)
            amplitude = np.float32(rng.uniform(2, 12))
            self.pixels += amplitude * (
                y[:, None] * x[None, :] if rng.random() < 0.5 else np.broadcast_to(x, (1, len(x)))
            )
        else:
            self._stroke(colour, strength)

    def add(self, size: float) -> None:
        """Draws an object whose box's longer side is `size`, where it finds a place."""
        rng = self.rng
        number = _integer(rng, 0, len(self.shapes) - 1)
        shape = SHAPES[self.shapes[number]]
        angle = rng.random() * 2 * math.pi
        cos, sin = math.cos(angle), math.sin(angle)
        turned = shape.outline @ np.array([[cos, sin], [-sin, cos]])
        low, high = turned.min(axis=0), turned.max(axis=0)
        radius = size / float(max(high - low))
        extent = [*(low * radius).tolist(), *(high * radius).tolist()]
        for _ in range(_TRIES):
            cx, cy = rng.random() * self.width, rng.random() * self.height
            box = (cx + extent[0], cy + extent[1], cx + extent[2], cy + extent[3])
            inside = _clip(box, self.width, self.height)
            if _area(inside) < MIN_INSIDE * _area(box) or self._crowded(inside):
                continue
            if inside != box:
                seen = clip_outline(turned * radius + (cx, cy), self.width, self.height)
                (x1, y1), (x2, y2) = seen.min(axis=0).tolist(), seen.max(axis=0).tolist()
                inside = (x1, y1, x2, y2)
            if self._draw(shape, inside, cx, cy, radius, cos, sin):
                self.classes.append(number)
                self.boxes.append(inside)
                return

    def occlude(self) -> None:
        """A stripe in front of everything, unless it would hide too much of something."""
        cover = self._band(float(self.rng.uniform(0.5, 0.02 * min(self.height, self.width))))
        mask = cover > 0.5
        hidden = np.bincount(self.owner[mask], minlength=len(self.whole))
        if self._affordable(hidden):
            self._take(hidden)
            self.owner[mask] = 0
            self._mix((slice(None), slice(None)), cover, _colour(self.rng), 1.0)

    def photograph(self) -> npt.NDArray[np.uint8]:
        """Exposure, focus and noise; uint8 [3, H, W]."""
        rng, domain = self.rng, self.domain
        image = self.pixels
        np.clip(image, 0, 255, out=image)
        if rng.random() < domain.blur:
            for _ in range(_integer(rng, 1, 2)):
                image = _smooth(image, _integer(rng, 0, 2))
        light = np.float32(rng.uniform(*domain.light))
        if light < 0.5:
            x = np.square(self.columns / self.width - np.float32(rng.uniform(0.3, 0.7)))
            y = np.square(self.rows / self.height - np.float32(rng.uniform(0.3, 0.7)))
            image = image * (light * (1 - np.float32(rng.uniform(0, 0.5)) * (x[None, :] + y[:, None])))
        else:
            image = image * light
        grain = _grain(rng, self.height, self.width)
        read = np.float32(rng.uniform(*domain.noise))
        if domain.shot:
            deviation = np.sqrt(image * np.float32(domain.shot**2 / 255) + read * read)
            grain = grain * deviation
        else:
            grain = grain * read
        image += grain
        image += np.float32(0.5)
        return np.clip(image, 0, 255, out=image).astype(np.uint8)

    def _draw(self, shape: Shape, box: Box, cx: float, cy: float, radius: float, cos: float, sin: float) -> bool:
        """Draws an object at its place, unless that would hide too much of another."""
        rows = slice(max(math.floor(box[1]) - 1, 0), min(math.ceil(box[3]) + 1, self.height))
        columns = slice(max(math.floor(box[0]) - 1, 0), min(math.ceil(box[2]) + 1, self.width))
        tile = (rows, columns)
        u = (self.columns[columns] - np.float32(cx)) / np.float32(radius)
        v = ((self.rows[rows] - np.float32(cy)) / np.float32(radius))[:, None]
        x, y = u * np.float32(cos) + v * np.float32(sin), v * np.float32(cos) - u * np.float32(sin)
        depth = shape.inside(x, y) * np.float32(radius)
        mask = depth > 0
        own = int(np.count_nonzero(mask))
        hidden = np.bincount(self.owner[tile][mask], minlength=len(self.whole))
        if not own or not self._affordable(hidden):
            return False
        self._take(hidden)
        self.owner[tile][mask] = len(self.whole)
        self.whole.append(own)
        self.visible.append(own)
        rng, pixels = self.rng, self.pixels[:, rows, columns]
        step = max(1, min(mask.shape) // 8)
        sample = pixels[:, ::step, ::step]
        under = mask[::step, ::step]
        behind = (sample * under).sum(axis=(1, 2)) / max(int(np.count_nonzero(under)), 1)
        colour = self._contrasting(behind)
        cover = np.clip(depth + np.float32(0.5), 0, 1)
        paint: Plane = colour[:, None, None]
        if radius > 7 and rng.random() < 0.5:  # light from one side
            slope = (u[None, :] * np.float32(rng.uniform(-1, 1)) + v * np.float32(rng.uniform(-1, 1))) * np.float32(28)
            paint = paint + slope[None]
        if radius > 7 and rng.random() < 0.35:  # a rim
            rim = np.clip(np.float32(max(1.0, 0.09 * radius)) - depth + np.float32(0.5), 0, 1)
            shade = colour * np.float32(0.55 if colour.sum() > 330 else 0.7)
            shade += np.float32(0 if colour.sum() > 330 else 70)
            paint = paint + rim * (shade[:, None, None] - paint)
        change = paint - pixels
        change *= cover
        pixels += change
        return True

    def _crowded(self, box: Box) -> bool:
        area = _area(box)
        for other in self.boxes:
            w = min(box[2], other[2]) - max(box[0], other[0])
            h = min(box[3], other[3]) - max(box[1], other[1])
            if w > 0 and h > 0 and w * h > self.domain.max_iou * (area + _area(other) - w * h):
                return True
        return False

    def _affordable(self, hidden: npt.NDArray[np.int64]) -> bool:
        return all(
            not n or self.visible[i] - n >= MIN_VISIBLE * self.whole[i] for i, n in enumerate(hidden.tolist()) if i
        )

    def _take(self, hidden: npt.NDArray[np.int64]) -> None:
        for i, n in enumerate(hidden.tolist()):
            self.visible[i] -= n

    def _contrasting(self, behind: Plane) -> Plane:
        best, distance = behind, -1.0
        for _ in range(_COLOURS):
            colour = _colour(self.rng)
            d = float(np.linalg.norm(colour - behind))
            if d >= self.domain.contrast:
                return colour
            if d > distance:
                best, distance = colour, d
        return best if distance > 60 else np.where(behind > 127, behind * 0.25, 255 - behind * 0.25).astype(np.float32)

    def _line_distance(self) -> Plane:
        """Pixels to a random line, positive on one side, [H, W]."""
        angle = self.rng.random() * 2 * math.pi
        c, s = math.cos(angle), math.sin(angle)
        through = c * self.rng.random() * self.width + s * self.rng.random() * self.height
        return self.columns * np.float32(c) + (self.rows * np.float32(s) - np.float32(through))[:, None]

    def _band(self, half_width: float) -> Plane:
        return np.clip(np.float32(half_width + 0.5) - np.abs(self._line_distance()), 0, 1)

    def _stroke(self, colour: Plane, strength: float) -> None:
        """A short thin line."""
        rng = self.rng
        length, half = float(rng.uniform(10, 70)), float(rng.uniform(0.5, 1.3))
        angle, x0, y0 = rng.random() * 2 * math.pi, rng.random() * self.width, rng.random() * self.height
        c, s = math.cos(angle), math.sin(angle)
        ends_x, ends_y = sorted((x0, x0 + c * length)), sorted((y0, y0 + s * length))
        columns = slice(max(int(ends_x[0]) - 3, 0), min(int(ends_x[1]) + 4, self.width))
        rows = slice(max(int(ends_y[0]) - 3, 0), min(int(ends_y[1]) + 4, self.height))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        u = self.columns[columns] - np.float32(x0)
        v = (self.rows[rows] - np.float32(y0))[:, None]
        along = np.clip(u * np.float32(c) + v * np.float32(s), 0, np.float32(length))
        away = np.hypot(u - along * np.float32(c), v - along * np.float32(s))
        self._mix((rows, columns), np.clip(np.float32(half + 0.5) - away, 0, 1), colour, strength)

    def _mix(self, tile: Tile, cover: Plane, colour: Plane, strength: float) -> None:
        rows, columns = tile
        pixels = self.pixels[:, rows, columns]
        change = colour[:, None, None] - pixels
        change *= cover * np.float32(strength)
        pixels += change


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """From `low` to `high`, both included."""
    return low + int(rng.random() * (high + 1 - low))


def _colour(rng: np.random.Generator, saturation: float = 1.0) -> Plane:
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.random() * saturation, 0.12 + 0.88 * rng.random())
    return np.array([r, g, b], dtype=np.float32) * np.float32(255)


def _clip(box: Box, width: int, height: int) -> Box:
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


@lru_cache(maxsize=64)
def _blend(length: int, nodes: int) -> Plane:
    """[length, nodes]: smooth interpolation between nodes at even distances."""
    place = (np.arange(length) + 0.5) / length * (nodes - 1)
    left = np.minimum(place.astype(np.int64), nodes - 2)
    share = place - left
    share = share * share * (3 - 2 * share)
    weights = np.zeros((length, nodes), dtype=np.float32)
    weights[np.arange(length), left] = 1 - share
    weights[np.arange(length), left + 1] = share
    return weights


@lru_cache(maxsize=1)
def _bank() -> Plane:
    """A sheet of normal noise that scenes cut theirs from."""
    return np.random.default_rng(0x5CE9E).standard_normal((3, _BANK, _BANK), dtype=np.float32)


def _grain(rng: np.random.Generator, height: int, width: int) -> Plane:
    """Normal noise [3, H, W] of deviation 1, cut from the sheet anywhere, mirrored and with its channels shifted."""
    sheet = _bank()
    if height > _BANK or width > _BANK:
        sheet = np.tile(sheet, (1, -(-height // _BANK) + 1, -(-width // _BANK) + 1))
    top = int(rng.random() * (sheet.shape[1] - height + 1))
    left = int(rng.random() * (sheet.shape[2] - width + 1))
    cut = sheet[:, top : top + height, left : left + width]
    turn = _integer(rng, 0, 3)
    if turn & 1:
        cut = cut[:, ::-1]
    if turn & 2:
        cut = cut[:, :, ::-1]
    return cut


def _smooth(image: Plane, kind: int) -> Plane:
    """Binomial blur [1 2 1]/4 over both axes (0) or three pixels of motion along one (1: rows, 2: columns)."""
    if kind == 0:
        return _three(_three(image, 1, 2.0), 2, 2.0)
    return _three(image, kind, 1.0)


def _three(image: Plane, axis: int, middle: float) -> Plane:
    out = image * np.float32(middle / (middle + 2))
    side = image * np.float32(1 / (middle + 2))
    first: list[slice] = [slice(None)] * 3
    last: list[slice] = [slice(None)] * 3
    first[axis], last[axis] = slice(None, -1), slice(1, None)
    out[tuple(last)] += side[tuple(first)]
    out[tuple(first)] += side[tuple(last)]
    edge_first: list[slice] = [slice(None)] * 3
    edge_last: list[slice] = [slice(None)] * 3
    edge_first[axis], edge_last[axis] = slice(0, 1), slice(-1, None)
    out[tuple(edge_first)] += side[tuple(edge_first)]
    out[tuple(edge_last)] += side[tuple(edge_last)]
    return out
