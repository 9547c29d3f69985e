"""The options of --int8, for `build` and `export`."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError

__all__ = ["add_int8_options", "int8_arguments"]

_NAMES = (
    "calib", "calib_method", "percentile", "calib_images", "calib_cache", "held_out", "min_agreement", "auto_mixed",
    "keep", "refine",
)  # fmt: skip


def add_int8_options(parser: argparse.ArgumentParser) -> None:
    """Options that belong to --int8. Those not given are None."""
    group = parser.add_argument_group("int8")
    group.add_argument(
        "--calib",
        metavar="DIR",
        help="data to calibrate with: a folder or glob of images, .npz of inputs, ranges (.json) of an earlier "
        "calibration, or 'random' for a trial with a bare head",
    )
    group.add_argument(
        "--calib-method",
        choices=("percentile", "minmax", "entropy", "mse"),
        help="how ranges come from the data (default: percentile)",
    )
    group.add_argument(
        "--percentile", type=float, metavar="P", help="of that method (default: 99.99, with --refine 99.995)"
    )
    group.add_argument("--calib-images", type=int, metavar="N", help="use so many at most (default: all)")
    group.add_argument("--calib-cache", metavar="FILE", help="keep the ranges here; of other data they are refused")
    group.add_argument(
        "--held-out", metavar="DIR", help="images to check on (default: every fourth of --calib, kept out of it)"
    )
    group.add_argument(
        "--min-agreement",
        type=_agreement,
        metavar="A",
        help="least AP50-95 and F1 against float32, 0 to 1; 'none': not checked (default: 0.95)",
    )
    group.add_argument(
        "--auto-mixed",
        nargs="?",
        const=True,
        metavar="FILE",
        help="leave the fewest layers in higher precision that reach it; FILE: as an earlier search chose",
    )
    group.add_argument(
        "--refine",
        action="store_true",
        default=None,
        help="even out channels and fit the weights to rounded activations: minutes more, closer to float32",
    )
    group.add_argument("--keep", action="append", metavar="LAYER", help="leave this layer in higher precision")


def _agreement(text: str) -> float | str:
    if text.lower() == "none":
        return "none"
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def int8_arguments(args: argparse.Namespace, wanted: bool, instead: str) -> dict[str, Any]:
    """The options of --int8 as `dhead_trt.build.build` calls them; none where int8 is not `wanted`.

    Args:
        args: parsed options of `add_int8_options`.
        wanted: whether --int8 was given.
        instead: what was given, for the message.

    Raises:
        InputError: one was given without --int8.
    """
    if not wanted:
        given = [name for name in _NAMES if getattr(args, name) is not None]
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} belongs to --int8", received=instead)
        return {}
    agreement = 0.95 if args.min_agreement is None else args.min_agreement
    return {
        "calibration": args.calib,
        "calib_method": args.calib_method,
        "calib_percentile": args.percentile,
        "calib_images": args.calib_images,
        "calib_cache": args.calib_cache,
        "held_out": args.held_out,
        "min_agreement": None if agreement == "none" else agreement,
        "auto_mixed": args.auto_mixed or False,
        "keep": tuple(args.keep or ()),
        "refine": bool(args.refine),
    }
