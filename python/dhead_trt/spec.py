"""HeadSpec: what every step after the head must know about it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast

from .errors import InputError

__all__ = ["MAX_BINS", "MAX_LEVELS", "DistanceUnit", "HeadSpec"]

MAX_LEVELS = 6
MAX_BINS = 64
DistanceUnit = Literal["stride", "pixel"]


@dataclass(frozen=True)
class HeadSpec:
    """Describes the raw maps of a decoupled detection head, and how they decode.

    Level i has `box_i` [B, 4·bins, Hi, Wi] (side-major l, t, r, b; bins-minor), `cls_i` [B, C, Hi, Wi] logits and, with
    objectness, `obj_i` [B, 1, Hi, Wi] logits. Anchor (x, y) has its centre at ((x+½)·stride, (y+½)·stride).

    Attributes:
        num_classes: C.
        strides: pixels of the network input per cell, one per level, ascending.
        bins: length of each side's distribution (reg_max + 1 in the reference head, reg_max in Ultralytics');
            1 means the value is the distance itself.
        distance_unit: "stride": distances count cells of their level; "pixel": they are pixels.
        objectness: True where the score is σ(cls)·σ(obj).
        names: class names; empty, or one per class.
        image_size: (height, width) of the network input the head was exported for, if fixed.

    Raises:
        InputError: a field is out of range, or two fields contradict each other.
    """

    num_classes: int
    strides: tuple[int, ...]
    bins: int
    distance_unit: DistanceUnit = "stride"
    objectness: bool = False
    names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the one place where a frozen field is normalised
        set_(self, "num_classes", _integer("num_classes", self.num_classes, 1))
        set_(self, "bins", _integer("bins", self.bins, 1, MAX_BINS))
        set_(self, "strides", tuple(_integer("strides", s, 1) for s in _sequence("strides", self.strides)))
        set_(self, "names", tuple(str(n) for n in _sequence("names", self.names)))
        if not 1 <= len(self.strides) <= MAX_LEVELS:
            raise InputError(
                "HeadSpec.strides has the wrong length", received=len(self.strides), expected=f"1 to {MAX_LEVELS}"
            )
        if self.distance_unit not in ("stride", "pixel"):
            raise InputError(
                "HeadSpec.distance_unit is not known", received=repr(self.distance_unit), expected="'stride' or 'pixel'"
            )
        if not isinstance(self.objectness, bool):
            raise InputError(
                "HeadSpec.objectness is not a bool", received=repr(self.objectness), expected="True or False"
            )
        if self.names and len(self.names) != self.num_classes:
            raise InputError(
                "HeadSpec.names does not match num_classes",
                received=f"{len(self.names)} names",
                expected=f"{self.num_classes}, or none",
            )
        if self.image_size is not None:
            size = _sequence("image_size", self.image_size)
            if len(size) != 2:
                raise InputError(
                    "HeadSpec.image_size has the wrong length", received=len(size), expected="(height, width)"
                )
            set_(self, "image_size", tuple(_integer("image_size", v, 1) for v in size))

    @property
    def num_levels(self) -> int:
        """Number of pyramid levels."""
        return len(self.strides)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the raw maps in contract order: box_0, cls_0, box_1, cls_1, …, then obj_0, … where present."""
        maps = [f"{kind}_{i}" for i in range(self.num_levels) for kind in ("box", "cls")]
        if self.objectness:
            maps += [f"obj_{i}" for i in range(self.num_levels)]
        return tuple(maps)

    def channels(self, name: str) -> int:
        """Channels of the raw map `name` ("box_0", "cls_2", …)."""
        return {"box": 4 * self.bins, "cls": self.num_classes, "obj": 1}[name.split("_")[0]]

    def level_shapes(self, image_size: tuple[int, int] | None = None) -> tuple[tuple[int, int], ...]:
        """(Hi, Wi) of each level for a network input of `image_size` (height, width).

        A stride-2 convolution with padding rounds up, so a level has ceil(size / stride) cells.
        """
        size = image_size or self.image_size
        if size is None:
            raise InputError("The image size is not fixed by this HeadSpec", expected="image_size=(height, width)")
        return tuple((math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in self.strides)

    def num_anchors(self, image_size: tuple[int, int] | None = None) -> int:
        """Anchors over all levels for a network input of `image_size` (height, width)."""
        return sum(h * w for h, w in self.level_shapes(image_size))

    def name_of(self, class_id: int) -> str:
        """Name of a class, or its number as text where the spec has no names."""
        return self.names[class_id] if self.names else str(class_id)

    def replace(self, **changes: Any) -> HeadSpec:
        """A copy with some fields changed, validated again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads it back to an equal spec."""
        return cast("dict[str, Any]", json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadSpec:
        """Reads what `to_dict` wrote.

        Raises:
            InputError: a field is missing, unknown, or out of range.
        """
        if not isinstance(data, Mapping):
            raise InputError("HeadSpec is not a JSON object", received=type(data).__name__, expected="an object")
        known = {f.name for f in fields(cls)}
        unknown, missing = sorted(set(data) - known), sorted({"num_classes", "strides", "bins"} - set(data))
        if unknown or missing:
            raise InputError(
                "HeadSpec has unknown or missing fields",
                received=f"unknown {unknown}, missing {missing}",
                expected=f"fields {sorted(known)}",
            )
        return cls(**data)

    def to_json(self) -> str:
        """One line of JSON, as stored in ONNX metadata under the key "dhead_spec"."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> HeadSpec:
        """Reads what `to_json` wrote.

        Raises:
            InputError: not JSON, or not a HeadSpec.
        """
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, TypeError) as e:
            raise InputError(
                "HeadSpec is not valid JSON", received=f"{e}", expected="what HeadSpec.to_json wrote"
            ) from e
        return cls.from_dict(data)


def _integer(field: str, value: object, low: int, high: int | None = None) -> int:
    try:
        number = int(value)  # type: ignore[call-overload]
        exact = not isinstance(value, (bool, str)) and number == value
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or number < low or (high is not None and number > high):
        bound = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise InputError(f"HeadSpec.{field} is out of range", received=repr(value), expected=bound)
    return int(number)


def _sequence(field: str, value: object) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes)):
        raise InputError(f"HeadSpec.{field} is not a sequence", received=repr(value), expected="a list or a tuple")
    try:
        return tuple(value)  # type: ignore[arg-type]
    except TypeError as e:
        raise InputError(
            f"HeadSpec.{field} is not a sequence", received=repr(value), expected="a list or a tuple"
        ) from e
