"""bench/quantizers.py: one graph, one measure, and the names of what is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

pytest.importorskip("faster_coco_eval", reason="the gate needs faster-coco-eval")


def test_comparison(tmp_path: Path) -> None:
    """Ours and ONNX Runtime's, min-max on the trained head: about the same figures, since the scales are the same."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    out = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "bench" / "quantizers.py", "--subject", "scenes-head", "--images", "6", "--held"]
    command += ["12", "--quantizer", "ours", "onnxruntime", "nncf", "--threads", "1", "--output", str(out)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {r["quantizer"]: r for r in json.loads(out.read_text())["scenes-head"]}
    assert ("nncf mixed" in rows) is ("nncf: not installed" not in done.stderr)
    ours, theirs = rows["ours minmax"], rows["onnxruntime minmax"]
    for row in (ours, theirs):
        assert "error" not in row
        assert row["calibrated_on"] == 6
        assert 0 < row["box_rms"] < 0.3
        assert 0 < row["cls_rms"] < 1
        assert row["f1_50"] > 0.9
    assert ours["box_rms"] == pytest.approx(theirs["box_rms"], rel=0.3)
    assert rows["ours percentile"]["version"] == ""
    assert theirs["version"]
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + len(rows)
    assert f"| {ours['f1_50']:.3f} |" in next(line for line in table if line.startswith("| ours minmax |"))
