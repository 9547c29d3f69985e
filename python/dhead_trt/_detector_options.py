"""What a call of a Detector may change, and what its engine can do of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .baked import Wanted, refuse_unlike
from .detections import class_ids
from .engine import Engine
from .errors import InputError

__all__ = ["Classes", "Options"]

_MOST = 1 << 20  # rows of results are memory, used or not
Classes = Iterable[int | str] | int | str


@dataclass(frozen=True)
class Options:
    """Options of detection under the Detector's names; None: the engine's default."""

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: Classes | None = None
    agnostic: bool | None = None
    multi_label: bool | None = None
    max_candidates: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.classes, Iterable) and not isinstance(self.classes, str):
            object.__setattr__(self, "classes", tuple(self.classes))  # an iterator could be read only once

    def changed(self, changes: Mapping[str, Any], engine: Engine) -> Options:
        """With the options of one call.

        Raises:
            InputError: one is not known, out of range, or not to be had from the engine.
        """
        if not changes:
            return self
        known = [f.name for f in fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise InputError("There is no such option", received=", ".join(unknown), expected=", ".join(known))
        chosen = replace(self, **changes)
        chosen.check(engine)
        return chosen

    def check(self, engine: Engine) -> None:
        """Looks at every option.

        Raises:
            InputError: one is out of range, or the engine's plan holds another value of it.
        """
        for name in ("conf", "iou"):
            value = getattr(self, name)
            good = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool) and 0 <= value <= 1
            if value is not None and not good:
                raise InputError(f"{name} is out of range", received=repr(value), expected="0 to 1")
        for name in ("max_det", "max_candidates"):
            value = getattr(self, name)
            good = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 1 <= value <= _MOST
            if value is not None and not good:
                raise InputError(f"{name} is out of range", received=repr(value), expected=f"1 to {_MOST}")
        wanted = self.wanted(engine.spec.names)
        if engine.detection is not None:
            refuse_unlike(engine.detection, wanted)

    def wanted(self, names: tuple[str, ...]) -> Wanted:
        """The same under the names of `Engine.infer`, classes as numbers."""
        return Wanted(
            conf=self.conf,
            iou=self.iou,
            max_det=self.max_det,
            max_candidates=self.max_candidates,
            classes=None if self.classes is None else class_ids(self.classes, names),
            class_agnostic=self.agnostic,
            multi_label=self.multi_label,
        )
