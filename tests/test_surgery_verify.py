"""What the proof of a cut must not pass over: infinities on one side."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cases import BY_NAME
from dhead_trt.errors import GraphError
from dhead_trt.reference import decode

pytest.importorskip("onnxruntime")
from dhead_trt.surgery.verify import _compare, _infinite_in_one

CASE = BY_NAME["two_levels"]


def outputs(dtype: str = "float32") -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
    maps = {name: a.astype(np.float64) for name, a in CASE.maps().items()}
    boxes, scores = decode(maps, CASE.spec)
    rows = np.concatenate([boxes, scores], axis=2).transpose(0, 2, 1)
    return rows, maps, SimpleNamespace(spec=CASE.spec, box_format="xyxy", map_dtypes={"box_0": dtype})


def test_the_same_passes() -> None:
    rows, maps, tail = outputs()
    assert _compare("x", rows, maps, tail, {})["max_box_error_px"] == 0


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 3, 4])
def test_an_infinity_of_the_graph_alone_fails(value: float, row: int) -> None:
    rows, maps, tail = outputs()
    rows[0, row, 5] = value
    with pytest.raises(GraphError, match=rf"1 outputs are infinite in one only \(row {row}: {value} in the graph"):
        _compare("x", rows, maps, tail, {})


def test_overflow_of_half_precision_is_not_the_cuts_fault() -> None:
    expected = np.array([[[70_000.0, -70_000.0, 70_000.0, 100.0, np.inf, np.inf]]])
    rows = np.array([[[np.inf, -np.inf, -np.inf, np.inf, np.inf, 5.0]]])
    assert _infinite_in_one(rows, expected, "float16").tolist() == [[[False, False, True, True, False, True]]]
    assert _infinite_in_one(rows, expected, "float32").tolist() == [[[True, True, True, True, False, True]]]
