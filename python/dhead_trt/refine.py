"""Int8 graphs of one calibrated model with any layers kept: as they are, or with weights fitted to what int8 does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .calibration import CalibrationBatches, Ranges, model_sha256
from .precision import Int8Conversion, to_int8
from .precision.equalize import channel_ranges, equalize
from .precision.raw_run import raw_graph
from .precision.reconstruct import Reconstruction, reconstruct
from .precision.search import MAX_TRIALS
from .precision.sensitivity import Sensitivity, rank_layers
from .progress import ProgressCallback
from .spec import HeadSpec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["FITTED_PERCENTILE", "Maker", "RefinedMaker", "equalized"]

FITTED_PERCENTILE = 99.995  # equalized channels have fewer outliers to clip than others
_FIT_IMAGES = 96  # at most; they are in memory
_REFINED_TRIALS = 16  # of a search: each fits the weights anew

High = Literal["float32", "float16"]


class Maker:
    """Makes int8 graphs of a model and its ranges.

    Args:
        model: float32 graph of any form.
        ranges: of its activations.
        sha256: of the model that the user gave; None: this one.

    Attributes:
        ranges, sha256: see above.
        trials: how many graphs a search may make.
        refined: whether weights are fitted.
    """

    trials = MAX_TRIALS
    refined = False

    def __init__(self, model: ModelProto, ranges: Ranges, sha256: str | None = None) -> None:
        self.model, self.ranges, self.sha256 = model, ranges, sha256 or model_sha256(model)
        self._raw: dict[frozenset[str], ModelProto] = {}

    def make(
        self, keep: Sequence[str], *, high: High = "float32", io_dtype: str = "float32", raw: HeadSpec | None = None
    ) -> Int8Conversion:
        """The int8 graph with these layers kept; cut at the raw maps of this head where `raw` is given."""
        model, scales = self._weights(keep)
        if raw is not None:
            key = frozenset(keep) if scales else frozenset()
            if key not in self._raw:
                self._raw = {key: raw_graph(model, raw)}
            model = self._raw[key]
        return to_int8(model, self.ranges, keep=keep, high=high, io_dtype=io_dtype, weight_scales=scales)

    def rank(
        self,
        keep: Sequence[str],
        batches: Iterable[Any],
        spec: HeadSpec,
        threads: int | None,
        progress: ProgressCallback | None,
    ) -> Sensitivity:
        """What each layer in int8 costs alone, with the model's own weights."""
        reference = raw_graph(self.model, spec)
        plain = to_int8(reference, self.ranges, keep=keep)
        return rank_layers(reference, plain.model, batches, spec, threads=threads, progress=progress)

    def told(self, keep: Sequence[str]) -> str:
        """For the summary."""
        return ""

    def told_of(self, keep: Sequence[str]) -> dict[str, Any] | None:
        """For the sidecar: what was done to the weights; None where nothing was."""
        return None

    def _weights(self, keep: Sequence[str]) -> tuple[ModelProto, dict[str, Any]]:
        """The float32 graph to quantize, and the scales of its weights."""
        return self.model, {}


class RefinedMaker(Maker):
    """Fits the weights for every set of kept layers; see `precision.reconstruct`.

    Args:
        model: equalized float32 graph.
        ranges: of its activations.
        sha256: of the model that the user gave.
        data: calibration images, to fit on.
        spec: of its head.
        threads, progress: as for `reconstruct`.
    """

    trials = _REFINED_TRIALS
    refined = True

    def __init__(
        self,
        model: ModelProto,
        ranges: Ranges,
        sha256: str,
        data: CalibrationBatches,
        spec: HeadSpec,
        threads: int | None,
        progress: ProgressCallback | None,
    ) -> None:
        super().__init__(model, ranges, sha256)
        self._data, self._spec, self._threads, self._progress = data.spread(_FIT_IMAGES), spec, threads, progress
        self._fits: dict[frozenset[str], Reconstruction] = {}

    def _fit(self, keep: Sequence[str]) -> Reconstruction:
        key = frozenset(keep)
        if key not in self._fits:
            self._fits[key] = reconstruct(
                self.model,
                self.ranges,
                self._data,
                self._spec,
                keep=keep,
                images=_FIT_IMAGES,
                threads=self._threads,
                progress=self._progress,
            )
        return self._fits[key]

    def _weights(self, keep: Sequence[str]) -> tuple[ModelProto, dict[str, Any]]:
        fit = self._fit(keep)
        return fit.model, dict(fit.weight_scales)

    def told(self, keep: Sequence[str]) -> str:
        """For the summary."""
        return f"; channels equalized, weights fitted on {self._fit(keep).images} of them"

    def told_of(self, keep: Sequence[str]) -> dict[str, Any] | None:
        """For the sidecar."""
        fit = self._fit(keep)
        return {
            "images": fit.images,
            "layers": [{"name": f.name, "plain": f.plain, "fitted": f.fitted, "size": f.size} for f in fit.layers],
        }


def equalized(
    model: ModelProto, data: CalibrationBatches, threads: int | None, progress: ProgressCallback | None
) -> ModelProto:
    """The float32 graph with like ranges in the channels of its activations; see `precision.equalize`."""
    made: ModelProto = equalize(model, channel_ranges(model, data, threads=threads, progress=progress)).model
    return made
