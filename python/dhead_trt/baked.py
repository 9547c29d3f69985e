"""What a plan that ends in detections holds of the options of detection, and what a call can still change.

Such a plan (form `detections`) filters and suppresses inside the engine, with the options it was built with. To ask for
less of what it gives is exact, and done afterwards: a higher conf, fewer detections, only some classes. (Boxes of a
lower score never suppress one of a higher score, and classes don't suppress each other.) Anything else needs another
plan, or one with the input `thresholds`, which takes conf and iou for each call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

__all__ = ["THRESHOLDS", "Baked", "Wanted", "baked_options", "keep_wanted", "refuse_unlike", "thresholds_for"]

THRESHOLDS = "thresholds"  # the plan's input, float32 [2]: conf, iou

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Baked:
    """Options of detection that are part of a plan, as in `dhead_trt.detect`.

    Attributes:
        conf, iou: only the defaults, where `dynamic_thresholds`.
        max_det: rows of the plan's outputs.
        dynamic_thresholds: the plan has the input `thresholds`.
    """

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    max_candidates: int = 4096
    class_agnostic: bool = False
    multi_label: bool = False
    dynamic_thresholds: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = {"float": (int, float), "int": (int,), "bool": (bool,)}[str(field.type)]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or value < 0:
                raise InputError(f"A plan's {field.name} is malformed", received=repr(value), expected=field.type)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def describe(self) -> str:
        """One line for people."""
        more = [n for n in ("class_agnostic", "multi_label") if getattr(self, n)]
        where = "conf and iou per call, by default" if self.dynamic_thresholds else "fixed:"
        text = f"{where} conf {self.conf:g}, iou {self.iou:g}, max_det {self.max_det}"
        return ", ".join([text, f"max_candidates {self.max_candidates}", *more])


@dataclass(frozen=True)
class Wanted:
    """Options that a call asks for; None: what the plan has."""

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    max_candidates: int | None = None
    classes: Iterable[int] | None = None
    class_agnostic: bool | None = None
    multi_label: bool | None = None


def baked_options(model: Any) -> Baked | None:
    """What the DHeadDetect node of an ONNX model holds; None where there is none."""
    for node in model.graph.node:
        if node.domain == "dhead" and node.op_type == "DHeadDetect":
            values = {a.name: a.f if a.type == a.FLOAT else a.i for a in node.attribute}
            return Baked(
                conf=_short(values["conf"]),
                iou=_short(values["iou"]),
                max_det=int(values["max_det"]),
                max_candidates=int(values["max_candidates"]),
                class_agnostic=bool(values.get("class_agnostic", 0)),
                multi_label=bool(values.get("multi_label", 0)),
                dynamic_thresholds=bool(node.input) and node.input[-1] == THRESHOLDS,
            )
    return None


def thresholds_for(baked: Baked, wanted: Wanted) -> npt.NDArray[np.float32]:
    """The input `thresholds` of a call: what it asks for, else what the plan was built with."""
    conf = baked.conf if wanted.conf is None else wanted.conf
    return np.array([conf, baked.iou if wanted.iou is None else wanted.iou], np.float32)


def refuse_unlike(baked: Baked, wanted: Wanted, *, filtered: bool = True) -> None:
    """Refuses what the plan cannot give.

    Args:
        filtered: results will go through `keep_wanted`; else only the plan's own options are possible.

    Raises:
        InputError: naming the plan's value and the one asked for.
    """
    fix = "Build the engine in form 'raw', whose calls may change all options"
    for name in ("conf", "iou", "max_det", "max_candidates", "class_agnostic", "multi_label"):
        asked, held = getattr(wanted, name), getattr(baked, name)
        if asked is None or (baked.dynamic_thresholds and name in ("conf", "iou")):
            continue
        less = filtered and ((name == "conf" and asked > held) or (name == "max_det" and asked < held))
        same = abs(asked - held) <= 1e-6 if name in ("conf", "iou") else asked == held
        if not (same or less):
            allowed = {"conf": " or more", "max_det": " or fewer"}.get(name, "") if filtered else ""
            raise InputError(
                f"This plan's {name} was fixed when it was built",
                received=f"{name}={asked!r}",
                expected=f"{held!r}{allowed}",
                fix=fix,
            )
    if wanted.classes is not None and not filtered:
        raise InputError("This plan gives all classes", received=f"classes={wanted.classes!r}", fix=fix)


def keep_wanted(found: Mapping[str, npt.NDArray[Any]], wanted: Wanted) -> Arrays:
    """The detections of a plan (num_dets [B,1], det_boxes [B,K,4], …) that the call asked for, moved to the front.

    Unused rows are 0, 0 and -1; other outputs are passed on.
    """
    rows = found["det_scores"].shape[1]
    number = np.arange(rows)[None, :]
    keep = number < found["num_dets"].reshape(-1, 1)
    if wanted.conf is not None:
        keep &= found["det_scores"] > wanted.conf
    if wanted.classes is not None:
        keep &= np.isin(found["det_classes"], list(wanted.classes))
    if wanted.max_det is not None:
        keep &= np.cumsum(keep, axis=1) <= wanted.max_det
        rows = min(rows, wanted.max_det)
    order = np.argsort(~keep, axis=1, kind="stable")[:, :rows]
    count = keep.sum(axis=1)
    used = number[:, :rows] < count[:, None]
    result = dict(found)
    result["num_dets"] = count.astype(np.int32).reshape(found["num_dets"].shape)
    boxes = np.take_along_axis(found["det_boxes"], order[:, :, None], axis=1)
    result["det_boxes"] = np.where(used[:, :, None], boxes, boxes.dtype.type(0))
    scores = np.take_along_axis(found["det_scores"], order, axis=1)
    result["det_scores"] = np.where(used, scores, scores.dtype.type(0))
    classes = np.take_along_axis(found["det_classes"], order, axis=1)
    result["det_classes"] = np.where(used, classes, classes.dtype.type(-1))
    return result


def _short(value: float) -> float:
    """0.25 rather than the float32's 0.25000000…: the shortest number that is the same float32."""
    return float(str(np.float32(value)))
