"""A float32 graph and calibration data → an int8 graph, and the proof that it still detects what the original does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .artifact import TensorInfo
from .calibration import CalibrationBatches, Ranges, calibrate, model_sha256
from .errors import BackendUnavailable, InputError
from .int8_options import DEFAULT_METHOD, RANDOM, Int8Options, check_options, int8_data, ready_ranges
from .progress import ProgressCallback
from .spec import HeadSpec

if TYPE_CHECKING:
    from onnx import ModelProto

    from .precision.search import Mixed
    from .precision.sensitivity import Sensitivity
    from .refine import Maker

__all__ = ["DEFAULT_METHOD", "RANDOM", "Int8Options", "Int8Result", "check_options", "quantize", "write_mixed"]


@dataclass(frozen=True)
class Int8Result:
    """An int8 graph and what is known of it.

    Attributes:
        model: in the form that was asked for.
        report: for the sidecar: method, hashes, layers kept, share of int8 work, agreement, the choice to replay.
        notes: sentences for people.
        mixed: of the search, where there was one.
        sample: a batch of the held-out inputs by name, to check a plan with; None where none were held out. On noise
            the activations of a trained model leave the calibrated ranges, and roundings say nothing of the plan.
    """

    model: ModelProto
    report: dict[str, Any]
    notes: tuple[str, ...]
    mixed: Mixed | None = field(default=None, compare=False)
    sample: dict[str, Any] | None = field(default=None, compare=False)


def quantize(
    model: ModelProto,
    inputs: Sequence[TensorInfo],
    spec: HeadSpec | None,
    options: Int8Options,
    *,
    high: Literal["float32", "float16"] = "float32",
    io_dtype: str = "float32",
    threads: int | None = None,
    progress: ProgressCallback,
) -> Int8Result:
    """Calibrates, quantizes, measures, and where asked for searches.

    Args:
        model: float32 graph of any form, with the inputs' shapes.
        inputs: of the graph, with their profiles.
        spec: of its head; None: native graphs without one, whose agreement cannot be measured.
        options: see there.
        high: what the rest computes in.
        io_dtype: of inputs and raw maps, with high="float16".
        threads: of ONNX Runtime.
        progress: told the phase.

    Raises:
        InputError: the data or an option does not fit.
        GraphError: the graph cannot be quantized.
        BuildError: it does not agree with float32; the message names the worst layers.
        BackendUnavailable: onnx or onnxruntime is not installed.
    """
    check_options(options)
    if options.auto_mixed is True and spec is None:
        raise InputError(
            "auto_mixed needs detections to measure, and this model's head is not known",
            expected="a supported detector",
            fix="Name the layers to leave in high precision (keep=, --keep)",
        )
    _check_layers(options, model)
    data, held_out, notes = int8_data(options, inputs, spec)
    if options.auto_mixed is True and held_out is None:
        raise InputError(
            "auto_mixed needs images to measure on",
            received="none held out",
            fix="Give held-out images (--held-out), or calibrate on more files",
        )
    maker = _maker(model, spec, options, data, held_out, threads, progress)
    ranges = maker.ranges
    keep, mixed, report = tuple(options.keep), None, None
    if options.min_agreement is not None and spec is not None and held_out is not None:
        keep, mixed, report, more = _prove(maker, model, spec, held_out, options, high, threads, progress)
        notes += more
    elif options.auto_mixed is not False:
        keep = (*keep, *_replayed(options, maker, notes))
    progress(f"precision to int8 ({high} elsewhere)", None)
    made = maker.make(keep, high=high, io_dtype=io_dtype)
    total = len(made.quantized) + len(made.kept)
    summary = (
        f"INT8: {len(made.quantized)} of {total} convolutions, {made.int8_macs:.1%} of the multiplications; scales by "
        f"{ranges.method} from {ranges.images} {'images' if ranges.images != 1 else 'image'}{maker.told(keep)}."
    )
    return Int8Result(
        made.model,
        {
            "method": ranges.method,
            "method_options": dict(ranges.options),
            "images": ranges.images,
            "model_sha256": maker.sha256,
            "data_sha256": ranges.data_sha256,
            "quantized": len(made.quantized),
            "kept": list(made.kept),
            "keep": list(keep),
            "int8_macs": round(made.int8_macs, 6),
            "high": high,
            "refined": maker.told_of(keep),
            "gate": report,
            "min_agreement": options.min_agreement,
        },
        (summary, *made.notes, *notes),
        mixed,
        next(iter(held_out), None) if held_out is not None and held_out.again else None,
    )


def _check_layers(options: Int8Options, model: ModelProto) -> None:
    """Refuses names of no layer, and the replay of another model's choice, before anything is calibrated."""
    from .precision import quantizable

    names = {layer.name for layer in quantizable(model)} if options.keep else set()
    if unknown := sorted(set(options.keep) - names):
        raise InputError(
            "keep names no layer of this graph", received=", ".join(unknown[:5]), expected=", ".join(sorted(names)[:3])
        )
    if options.auto_mixed not in (True, False) and not isinstance(options.calibration, Ranges):
        from .precision.search import Mixed

        Mixed.load(str(options.auto_mixed), hashes={"model": model_sha256(model)})


def _known(options: Int8Options, model: ModelProto, held_out: CalibrationBatches | None) -> Ranges:
    """Ranges that were given, if they are of this model, and not of the very data that shall prove them."""
    ranges = ready_ranges(options)
    if ranges.model_sha256 and ranges.model_sha256 != model_sha256(model):
        raise InputError(
            "The ranges are of another model",
            received=f"calibrated on {ranges.model_sha256[:12]}…",
            expected=f"{model_sha256(model)[:12]}…",
            fix="Calibrate this model; ranges that were cached with refine are of its equalized graph only",
        )
    if held_out is not None and options.min_agreement is not None and held_out.sha256() == (ranges.data_sha256 or None):
        raise InputError(
            "The held-out images are those that the ranges were calibrated on",
            received=held_out.source,
            fix="Give other images (--held-out): on these the agreement would flatter",
        )
    return ranges


def _replayed(options: Int8Options, maker: Maker, notes: list[str]) -> tuple[str, ...]:
    """The layers that an earlier search kept; tells where it searched among other weights."""
    from .precision.search import Mixed

    chosen = Mixed.load(str(options.auto_mixed), hashes={"model": maker.sha256})
    if chosen.hashes.get("refine", "no") != _yes(maker.refined):
        was, now = ("without", "with") if maker.refined else ("with", "without")
        notes.append(
            f"The layers kept were chosen {was} refine, and are kept here {now} it: another set may do better."
        )
    return chosen.keep


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _maker(
    model: ModelProto,
    spec: HeadSpec | None,
    options: Int8Options,
    data: CalibrationBatches | None,
    held_out: CalibrationBatches | None,
    threads: int | None,
    progress: ProgressCallback,
) -> Maker:
    """Calibrates, unless that was done before; and what makes int8 graphs from the result."""
    from .refine import FITTED_PERCENTILE, Maker, RefinedMaker, equalized

    if data is None:
        return Maker(model, _known(options, model, held_out))
    percentile = options.percentile
    if options.refine:
        if spec is None:
            raise InputError(
                "refine needs to know where the model sees objects, and its head is not known",
                expected="a supported detector",
                fix="Leave refine out",
            )
        _refuse_plain_cache(options, model)
        graph = equalized(model, data, threads, progress)
        if options.method in (None, "percentile") and percentile is None:
            percentile = FITTED_PERCENTILE
    else:
        graph = model
    ranges = calibrate(
        graph,
        data,
        method=options.method or DEFAULT_METHOD,
        percentile=percentile,
        cache=options.cache,
        expected=data.count,
        threads=threads,
        progress=progress,
    )
    if options.refine:
        assert spec is not None
        return RefinedMaker(graph, ranges, model_sha256(model), data, spec, threads, progress)
    return Maker(model, ranges)


def _refuse_plain_cache(options: Int8Options, model: ModelProto) -> None:
    """Refuses a cache of the same model without refine before the images are run, and says why it does not fit."""
    if options.cache is None or not Path(options.cache).exists():
        return
    if Ranges.load(options.cache).model_sha256 == model_sha256(model):
        raise InputError(
            "The calibration cache was made without refine, whose ranges are of the equalized graph",
            received=options.cache,
            fix="Name another file (--calib-cache), or leave refine out",
        )


def _prove(
    maker: Maker,
    model: ModelProto,
    spec: HeadSpec,
    held_out: CalibrationBatches,
    options: Int8Options,
    high: Literal["float32", "float16"],
    threads: int | None,
    progress: ProgressCallback,
) -> tuple[tuple[str, ...], Mixed | None, dict[str, Any], list[str]]:
    """Measures the int8 graph on held-out data, searches if asked to; raises where it does not agree."""
    from .precision.gate import Gate, require
    from .precision.search import search_mixed

    assert options.min_agreement is not None
    gate = Gate(model, held_out, spec, threads=threads, progress=progress)
    keep, mixed = tuple(options.keep), None
    notes: list[str] = []

    def make(more: Sequence[str]) -> Any:
        return maker.make([*options.keep, *more], high=high, raw=spec)

    def rank() -> Sensitivity:
        return maker.rank(options.keep, gate.batches, spec, threads, progress)

    if options.auto_mixed is True:
        mixed = search_mixed(
            model,
            None,
            gate,
            spec,
            min_agreement=options.min_agreement,
            max_trials=maker.trials,
            quantize=make,
            rank=rank,
            threads=threads,
            hashes={"model": maker.sha256, "data": maker.ranges.data_sha256, "refine": _yes(maker.refined)},
            progress=progress,
        )
        keep = (*keep, *mixed.keep)
    elif options.auto_mixed is not False:
        keep = (*keep, *_replayed(options, maker, notes))
    made = make(keep[len(options.keep) :])
    report = gate.measure(made.model, progress=progress)
    if not report.passed(options.min_agreement):
        ranked = None if mixed is None else mixed.sensitivity
        if ranked is None and made.quantized:
            ranked = rank()
        require(report, options.min_agreement, ranked)
    note = (
        f"Against float32 on {report.images} held-out image{'s' if report.images != 1 else ''}: AP50-95 "
        f"{report.ap50_95:.4f}, F1@0.5 {report.f1_50:.4f} (at least {options.min_agreement:g} asked for), scores "
        f"{report.score_shift:+.4f} on average."
    )
    if mixed is not None and mixed.keep:
        note += f" The {len(mixed.keep)} layers kept were chosen on these images: other images may agree less."
    return keep, mixed, report.to_dict(), [*notes, note]


def write_mixed(mixed: Mixed, folder: Path, stem: str) -> list[str]:
    """Writes the search's JSON (to replay) and, where matplotlib is installed, its picture; returns their names."""
    names = [mixed.save(folder / f"{stem}-mixed.json").name]
    with suppress(BackendUnavailable):
        names.append(mixed.plot(folder / f"{stem}-mixed.png").name)
    return names
