"""What weights are fitted on: images or parts of them, and where in them objects are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import GraphError, InputError
from ..spec import HeadSpec
from .analysis import GraphView
from .layers import Inspection
from .raw_run import Arrays, image_count, named_batches

__all__ = ["Feed", "fit_data", "importance"]

_CROP_FROM = 512  # pixels; of smaller images too much of a part is its border
_REACH = 2  # cells of the finest map around an object that count as one
_BY_CHANNEL = {"Add", "Concat", "Mul", "PRelu", "Split", "Sub"}  # treat every place alike if they join channels alone
_LOCAL = {"BatchNormalization", "Clip", "Constant", "Conv", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"}
_LOCAL |= {"MaxPool", "Relu", "Resize", "Sigmoid", "Tanh"} | _BY_CHANNEL


class Feed(NamedTuple):
    """One run of the network.

    Attributes:
        inputs: by name, float32.
        rows: how many of the batch count, from the first on.
    """

    inputs: Arrays
    rows: int


def fit_data(
    found: Inspection, batches: Iterable[Any], images: int, crop: int | None, rng: np.random.Generator
) -> list[Feed]:
    """Image by image where the network takes any size; whole batches where it does not.

    Args:
        found: the network.
        batches: its inputs.
        images: take so many at most, from the first on.
        crop: the network's stride, to take a random quarter of each large image; None: whole images.
        rng: for the parts.

    Raises:
        InputError: there are no images, or they hold NaN or do not fit.
    """
    local = all(_is_local(found.view, found.view.nodes[i]) for i in found.view.network)
    names = [v.name for v in found.model.graph.input]
    left = min(images, image_count(batches) or images)
    feeds: list[Feed] = []
    for batch in named_batches(batches, found.model):
        inputs = _checked(batch, names)
        count = len(inputs[names[0]])
        for row in range(count if local else min(count, 1)):
            some = slice(row, row + 1) if local else slice(None)
            one = {name: value[some] for name, value in inputs.items()}
            large = len(one) == 1 and min(one[names[0]].shape[2:]) >= _CROP_FROM
            one = _part(one, crop, rng) if crop is not None and local and large else one
            feeds.append(Feed(one, min(1 if local else count, max(left, 0))))
            left -= feeds[-1].rows
        if left <= 0:
            break
    if not feeds:
        raise InputError("There are no calibration images", expected="at least one")
    return [feed for feed in feeds if feed.rows]


def importance(maps: Arrays, spec: HeadSpec, rows: int) -> npt.NDArray[np.float32]:
    """How sure the float32 model is of an object around each cell of its finest map, 0 to 1.

    Args:
        maps: the raw maps.
        spec: of the head.
        rows: how many images of the batch to look at.

    Returns:
        [rows, height, width].

    Raises:
        GraphError: the maps hold NaN.
    """
    height, width = maps["cls_0"].shape[2:]
    found = np.full((rows, height, width), -np.inf, np.float32)
    for level in range(spec.num_levels):
        best = maps[f"cls_{level}"][:rows].max(axis=1)
        down = np.arange(height) * best.shape[1] // height
        across = np.arange(width) * best.shape[2] // width
        found = np.maximum(found, best[:, down[:, None], across])
    if np.isnan(found).any():
        raise GraphError("The network does not give numbers", received="NaN in its class scores")
    score = 1 / (1 + np.exp(-np.clip(found, -50, 50)))
    padded = np.pad(score, ((0, 0), (_REACH, _REACH), (_REACH, _REACH)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * _REACH + 1, 2 * _REACH + 1), axis=(1, 2))
    return np.asarray(windows.max(axis=(3, 4)), np.float32)


def _checked(batch: Arrays, names: list[str]) -> Arrays:
    missing = [name for name in names if name not in batch]
    if missing:
        raise InputError("A batch lacks an input", received=sorted(batch), expected=sorted(names))
    inputs = {name: np.asarray(batch[name], np.float32) for name in names}
    for name, value in inputs.items():
        if value.ndim != 4 or 0 in value.shape[1:]:
            raise InputError("A batch does not fit the graph", received=f"{name} {list(value.shape)}", expected="NCHW")
        if not np.isfinite(value).all():
            raise InputError("The calibration data holds NaN or infinity", received=f"input {name!r}")
    return inputs


def _is_local(view: GraphView, node: Any) -> bool:
    """Whether an operator treats every place of a map alike, whatever the map's size."""
    if node.op_type == "Resize":
        return len(node.input) < 4  # by a factor, not to a size
    if node.op_type in ("Concat", "Split"):
        return next((a.i for a in node.attribute if a.name == "axis"), 0) in (1, -3)
    if node.op_type in _BY_CHANNEL:  # not the likes of a position encoding
        constants = [view.initializers[name].dims for name in node.input if name in view.initializers]
        return all(side == 1 for dims in constants for side in dims[-2:])
    return node.op_type in _LOCAL


def _part(feed: Arrays, stride: int, rng: np.random.Generator) -> Arrays:
    """A random quarter of an image, cut at multiples of the network's stride."""
    ((name, image),) = feed.items()
    begin, size = [], []
    for side in image.shape[2:]:
        steps = side // stride
        size.append(max(steps // 2, 1) * stride if steps else side)
        begin.append(int(rng.integers(0, max((side - size[-1]) // stride, 0) + 1)) * stride)
    part = image[:, :, begin[0] : begin[0] + size[0], begin[1] : begin[1] + size[1]]
    return {name: np.ascontiguousarray(part)}
