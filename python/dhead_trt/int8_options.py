"""What int8 is asked to do, checked before any model is read; and its data: what calibrates, and what proves."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .artifact import TensorInfo
from .calibration import CalibrationBatches, Ranges, calibration_batches, check_source, method_options
from .errors import InputError
from .shapes import random_inputs, takes_features
from .spec import HeadSpec

__all__ = ["DEFAULT_METHOD", "RANDOM", "Int8Options", "check_options", "int8_data", "ready_ranges"]

RANDOM = "random"  # as calibration data of a bare head: standard normal features
DEFAULT_METHOD = "percentile"  # the best on the pages of docs/int8.md
_HELD_OUT = 4  # every fourth calibration image proves, the others calibrate, where no held-out images are given
_MOST_HELD_OUT = 64  # of those: they stay in memory
_RANDOM_BATCHES = 4


@dataclass(frozen=True)
class Int8Options:
    """How to quantize.

    Attributes:
        calibration: what `calibration_batches` takes; Ranges, or the JSON file of some; "random" for a bare head.
        method: "minmax", "percentile", "entropy" or "mse"; None: "percentile".
        percentile: for that method.
        cache: JSON file for the ranges; a stale one is refused.
        limit: calibrate on so many images at most.
        held_out: images to measure the agreement on. None: every fourth calibration image (64 at most), which then does
            not calibrate.
        min_agreement: the least agreement with float32 (the lower of AP50-95 and F1 at IoU 0.5), 0 to 1; None: not
            measured.
        auto_mixed: search for the fewest layers to leave in high precision; a path: replay that JSON file's choice.
        keep: names of layers to leave in high precision.
        refine: equalize the channels of the activations, and fit the weights to the rounded activations. Takes minutes.
    """

    calibration: Any = None
    method: str | None = None
    percentile: float | None = None
    cache: str | os.PathLike[str] | None = None
    limit: int | None = None
    held_out: Any = None
    min_agreement: float | None = 0.95
    auto_mixed: bool | str | os.PathLike[str] = False
    keep: Sequence[str] = ()
    refine: bool = False


def check_options(options: Int8Options) -> None:
    """Everything about the options that does not depend on the model, so that a slip costs no export.

    Raises:
        InputError: an option is out of range or contradicts another, data is missing, a file is not what it should be.
    """
    source, held = options.calibration, options.held_out
    if source is None:
        raise InputError(
            "int8 needs data to calibrate with",
            expected="a folder of images like those in use, .npz files of inputs, an iterable of batches, or Ranges",
            fix="Give calibration= (--calib DIR); a few dozen images will do",
        )
    if options.min_agreement is not None and not _in_range(options.min_agreement):
        raise InputError(
            "min_agreement is out of range", received=repr(options.min_agreement), expected="0 to 1, or None"
        )
    if options.limit is not None and (isinstance(options.limit, bool) or not _is_count(options.limit)):
        raise InputError(
            "The number of calibration images is out of range",
            received=repr(options.limit),
            expected="at least 1, or None for all",
        )
    if not all(isinstance(name, str) and name for name in options.keep):
        raise InputError("keep is not a list of names", received=repr(options.keep), expected="names of layers")
    if held is not None:
        check_source(held)
    ready = isinstance(source, Ranges) or _is_ranges_file(source)
    if options.refine and (ready or isinstance(source, Iterator)):
        raise InputError(
            "refine reads the calibration images several times",
            received="ranges" if ready else "an iterator",
            expected="files, a list or an array",
            fix="Give images to calibrate on, or leave refine out",
        )
    if ready:
        ready_ranges(options)
    else:
        method_options(options.method or DEFAULT_METHOD, options.percentile)
        if not _is_random(source):
            check_source(source)
        if options.cache is not None and Path(options.cache).exists():
            Ranges.load(options.cache)
    if options.auto_mixed is True:
        if options.min_agreement is None:
            raise InputError("auto_mixed needs a min_agreement to reach", received="None", expected="0 to 1")
        if held is None and (ready or _is_random(source) or isinstance(source, Iterator)):
            raise InputError(
                "auto_mixed needs images to measure on",
                received="none held out",
                fix="Give held-out images (--held-out), or calibrate on files",
            )
    elif options.auto_mixed is not False:
        from .precision.search import Mixed

        Mixed.load(os.fspath(options.auto_mixed))


def _in_range(value: Any) -> bool:
    try:
        return bool(0 <= value <= 1)
    except TypeError:
        return False


def _is_count(value: Any) -> bool:
    return hasattr(value, "__index__") and int(value) >= 1


def _is_random(source: Any) -> bool:
    return isinstance(source, str) and source == RANDOM


def _is_ranges_file(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike)) and str(source).endswith(".json")


def int8_data(
    options: Int8Options, inputs: Sequence[TensorInfo], spec: HeadSpec | None
) -> tuple[CalibrationBatches | None, CalibrationBatches | None, list[str]]:
    """(data to calibrate with, None for ready ranges; data to measure on, None where there is none; notes).

    Raises:
        InputError: the data does not fit the model, or no image is left to calibrate with.
    """
    source, held, notes = options.calibration, options.held_out, list[str]()
    measuring = options.min_agreement is not None
    if measuring and spec is None:
        measuring = False
        notes.append("The agreement with float32 was not measured: the head of this model is not known.")
    proving = None if held is None else calibration_batches(held, inputs, spec)
    if isinstance(source, Ranges) or _is_ranges_file(source):
        if proving is None and measuring:
            notes.append("The agreement with float32 was not measured: give held-out images (--held-out).")
        return None, proving, notes
    if _is_random(source):
        notes.append(_RANDOM_NOTE)
        if proving is None and measuring:
            notes.append("The agreement with float32 was not measured.")
        return _random(inputs, spec), proving, notes
    data = calibration_batches(source, inputs, spec, limit=options.limit)
    if options.limit is not None and data.count is not None and data.count < options.limit:
        notes.append(f"{options.limit} calibration images were asked for; there are {data.count}.")
    if proving is None and measuring:
        split = data.split(max(_HELD_OUT, -(-(data.count or 0) // _MOST_HELD_OUT)))
        if split is None:
            few = "there is only 1 image" if data.count == 1 else f"there are only {data.count} images"
            why = few if data.again else "the data can be read once only"
            notes.append(
                f"The agreement with float32 was not measured: no images were held out, since {why}. Give held-out "
                "images (--held-out)."
            )
        else:
            data, proving = split
    if proving is not None and measuring:
        data = _apart(data, proving, notes)
    return data, proving, notes


def _apart(data: CalibrationBatches, proving: CalibrationBatches, notes: list[str]) -> CalibrationBatches:
    """The calibration data without what is measured on: scales that fit these very images would flatter the figures."""
    rest, both = data.without(proving)
    if rest.count == 0:
        raise InputError(
            "All calibration images are held-out images too, so none is left to calibrate with",
            received=f"{len(both)} of the same file or content, such as {both[0]}",
            fix="Give other images; without held-out images (--held-out), every fourth calibration image is held out",
        )
    if both:
        notes.append(
            f"{len(both)} of {data.count} calibration images are among the held-out ones (the same file or content) "
            f"and did not calibrate: {', '.join(both[:3])}{', …' if len(both) > 3 else ''}."
        )
    return rest


_RANDOM_NOTE = (
    "Calibrated on random features: the scales suit no real data. This engine is for trials of build and speed; "
    "calibrate on features of real images (.npz) before use."
)


def _random(inputs: Sequence[TensorInfo], spec: HeadSpec | None) -> CalibrationBatches:
    if not takes_features(inputs, spec):
        raise InputError(
            "Random calibration is for bare heads only",
            received="a model that takes images",
            fix="Give a folder of images like those in use",
        )
    made = [random_inputs(inputs, batch=1, spec=spec, seed=seed) for seed in range(_RANDOM_BATCHES)]
    return calibration_batches({t.name: np.concatenate([m[t.name] for m in made]) for t in inputs}, inputs, spec)


def ready_ranges(options: Int8Options) -> Ranges:
    """Ranges that were given, or those of a file.

    Raises:
        InputError: an option of a calibration is given too, or the file is none of ranges.
    """
    source = options.calibration
    for name in ("method", "percentile", "cache", "limit"):
        if getattr(options, name) is not None:
            raise InputError(
                f"The calibration is done already, and {name} belongs to a new one",
                received=f"{name}={getattr(options, name)!r}",
                fix="Leave it out, or give images to calibrate on",
            )
    return source if isinstance(source, Ranges) else Ranges.load(source)
