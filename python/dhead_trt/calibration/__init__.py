"""What values a network's activations take on real data: the scales of int8 come from here."""

from __future__ import annotations

from .batches import CalibrationBatches, calibration_batches, check_source
from .calibrate import METHODS, calibrate, method_options
from .histogram import Histogram
from .ranges import Ranges, model_sha256

__all__ = [
    "METHODS",
    "CalibrationBatches",
    "Histogram",
    "Ranges",
    "calibrate",
    "calibration_batches",
    "check_source",
    "method_options",
    "model_sha256",
]
