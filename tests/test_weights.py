"""The detector in weights/: what its file says, and that it keeps its promises on scenes it has never seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dhead_trt.heads import YOLOv8DecoupledHead
from dhead_trt.training import load_weights
from dhead_trt.training.data import SHAPE_NAMES
from dhead_trt.training.model import read_info

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights" / "scenes.safetensors"


def test_the_file_is_small_and_says_what_it_is() -> None:
    assert WEIGHTS.stat().st_size < 2e6
    model = load_weights(WEIGHTS)
    assert isinstance(model.head, YOLOv8DecoupledHead)
    assert (model.spec.bins, model.spec.distance_unit, model.spec.strides) == (17, "stride", (8, 16, 32))
    assert model.spec.names == SHAPE_NAMES
    assert model.spec.image_size == (192, 192)
    assert sum(p.numel() for p in model.parameters()) < 0.95e6
    config = read_info(WEIGHTS)["config"]
    assert (config["seed"], config["minutes"] <= 90, config["ema_decay"] > 0) == (0, True, True)
    head = WEIGHTS.read_bytes()[:2]
    assert head not in (b"PK", b"\x80\x02")  # neither a zip nor a pickle


@pytest.mark.slow
def test_map_of_500_held_out_scenes_in_three_precisions(tmp_path: Path) -> None:
    """mAP50 0.90, mAP50-95 0.65; fp16 within 0.002 and INT8 within 0.01 of fp32: through OpenVINO engines."""
    report = tmp_path / "accuracy.json"
    command = [sys.executable, ROOT / "scripts" / "scenes_accuracy.py", "--images", "500", "--quiet", "--threads", "2"]
    subprocess.run(
        [*map(str, command), "--output", str(tmp_path), "--json", str(report)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    fp32, fp16, int8 = json.loads(report.read_text("utf-8"))["rows"]
    assert fp32["images"] == 500
    assert fp32["map50"] >= 0.90
    assert fp32["map50_95"] >= 0.65
    for key in ("map50_95", "map50"):
        assert abs(fp16[key] - fp32[key]) <= 0.002
        assert abs(int8[key] - fp32[key]) <= 0.01
