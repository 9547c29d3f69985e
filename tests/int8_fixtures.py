"""Fixtures for tests of int8 graphs: `model = int8_fixtures.model` gives a test file its own."""

from __future__ import annotations

import onnx
import pytest

import small_models
from dhead_trt.calibration import Ranges, calibrate
from dhead_trt.precision.layers import quantizable


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """The small detector."""
    return onnx.load_from_string(small_models.onnx_bytes("detector"))


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto) -> Ranges:
    """Its calibration."""
    return calibrate(model, [{"images": small_models.images(4, seed)} for seed in range(2)], threads=2)


def spoiled(model: onnx.ModelProto, ranges: Ranges, layer: str) -> Ranges:
    """The same, with the scale of one layer's input 20 times too large."""
    name = next(x.input for x in quantizable(model) if x.name == layer)
    low, high = ranges.tensors[name]
    return Ranges({**ranges.tensors, name: (20 * low, 20 * high)}, "minmax")
