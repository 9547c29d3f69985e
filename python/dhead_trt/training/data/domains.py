"""The kinds of synthetic scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...errors import InputError

__all__ = ["DOMAINS", "Domain", "domain"]

Range = tuple[float, float]


@dataclass(frozen=True)
class Domain:
    """What scenes look like. Ranges are drawn from uniformly, sizes log-uniformly.

    Attributes:
        name: of the domain.
        text: what it is, in a sentence.
        objects: fewest and most that are tried; those without a free place are left out.
        size: longer side of the box: pixels at the least, share of the frame's shorter side at the most …
        size_limit: … and pixels at the most.
        tiny: share of the objects that are drawn from 6 px to size[0] instead.
        clutter: fewest and most things behind the objects that are no objects.
        occluders: most stripes in front of them.
        contrast: least distance of an object's colour from what is behind it, of 441 (black to white).
        light: gain of the exposure.
        noise: standard deviation of the sensor's noise, grey levels.
        shot: noise that grows with the root of the signal: its standard deviation at full light, grey levels.
        blur: share of the scenes that are out of focus or moved.
        max_iou: most that two boxes may overlap.
    """

    name: str
    text: str
    objects: tuple[int, int] = (2, 12)
    size: Range = (10.0, 0.95)
    size_limit: float = 4096.0
    tiny: float = 0.06
    clutter: tuple[int, int] = (1, 6)
    occluders: int = 2
    contrast: float = 95.0
    light: Range = (0.8, 1.1)
    noise: Range = (1.0, 9.0)
    shot: float = 0.0
    blur: float = 0.25
    max_iou: float = 0.3


DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {
        d.name: d
        for d in (
            Domain("mixed", "2 to 12 objects of every size, from 6 px to the whole frame"),
            Domain(
                "dense",
                "24 to 48 objects of 9 to 36 px, side by side",
                objects=(24, 48),
                size=(9.0, 0.3),
                size_limit=36.0,
                tiny=0.0,
                clutter=(0, 3),
                occluders=1,
                max_iou=0.2,
            ),
            Domain(
                "small",
                "4 to 16 objects of 6 to 16 px on a busy background",
                objects=(4, 16),
                size=(8.0, 0.5),
                size_limit=16.0,
                tiny=0.15,
                clutter=(4, 12),
                occluders=1,
                contrast=110.0,
                noise=(1.0, 7.0),
                blur=0.1,
                max_iou=0.1,
            ),
            Domain(
                "low_light",
                "the scenes of mixed at a tenth of the light, with the noise of a sensor",
                light=(0.1, 0.35),
                contrast=150.0,
                noise=(1.5, 4.0),
                shot=14.0,
                clutter=(1, 4),
            ),
        )
    }
)


def domain(name: str | Domain) -> Domain:
    """A domain by its name.

    Raises:
        InputError: there is none of this name.
    """
    if isinstance(name, Domain):
        return name
    if name not in DOMAINS:
        raise InputError("There is no such domain", received=name, expected=", ".join(DOMAINS))
    return DOMAINS[name]
