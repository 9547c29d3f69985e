"""An int8 plan is compared with its graph where the graph sees objects."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("openvino")

import small_models as small
from dhead_trt.build import build
from dhead_trt.errors import BuildError
from dhead_trt.spec import HeadSpec

SPEC = HeadSpec(num_classes=small.CLASSES, strides=(8, 16, 32), bins=17)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        small.picture(small.SIZE, i).save(folder / f"{i}.png")
    return folder


def _int8(pictures: Path, output: Path) -> dict[str, Any]:
    artifact = build(
        small.onnx_bytes("detector"), "openvino", output=output, precision="int8", calibration=pictures,
        min_agreement=0.5,
    )  # fmt: skip
    found: dict[str, Any] = artifact.report["verification"]
    return found


def _planted(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, np.ndarray], np.ndarray], None]) -> None:
    """Changes what the plan is compared with: `change` gets the maps, and which anchors of level 0 are not the best."""
    module = sys.modules["dhead_trt.plan_check"]
    real = module.run_reference

    def altered(*a: Any) -> dict[str, np.ndarray]:
        maps = {k: v.copy() for k, v in real(*a).items()}
        scores = np.concatenate([maps[f"cls_{i}"].max(1).ravel() for i in range(3)])
        worst = maps["cls_0"].max(1) < np.sort(scores)[-module._BEST]
        change(maps, worst)
        return maps

    monkeypatch.setattr(module, "run_reference", altered)
    monkeypatch.setattr(module, "_BEST", 20)  # of 126 anchors


def test_figures_of_the_best_anchors(pictures: Path, tmp_path: Path) -> None:
    found = _int8(pictures, tmp_path / "e")
    assert set(found["best_anchors"]) == {"box", "cls"}
    assert all(0 < value < 0.05 for value in found["best_anchors"].values())
    assert set(found["outputs"]) == set(SPEC.input_names)


def test_what_differs_at_no_object_is_told_but_not_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(maps: dict[str, np.ndarray], worst: np.ndarray) -> None:
        box = maps["box_0"]
        part = np.where(worst[:, None], box, 0)
        box += part * (0.3 * np.linalg.norm(box) / np.linalg.norm(part))

    _planted(monkeypatch, change)
    found = _int8(pictures, tmp_path / "e")
    assert 0.2 < found["outputs"]["box_0"]["relative"] < 0.4
    assert found["best_anchors"]["box"] < 0.05


def test_what_differs_at_objects_is_refused(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(maps: dict[str, np.ndarray], worst: np.ndarray) -> None:
        for level in range(3):
            maps[f"box_{level}"] *= 1.2

    _planted(monkeypatch, change)
    message = "does not compute what the graph does at the box maps' best anchors.*0.17, expected at most 0.1 for int8"
    with pytest.raises(BuildError, match=message):
        _int8(pictures, tmp_path / "e")
    assert not list(tmp_path.glob("e*"))


def test_another_function_is_refused(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(maps: dict[str, np.ndarray], worst: np.ndarray) -> None:
        maps["cls_1"] = maps["cls_1"][:, ::-1] * -1

    _planted(monkeypatch, change)
    with pytest.raises(BuildError, match="does not compute what the graph does at output 'cls_1'"):
        _int8(pictures, tmp_path / "e")
