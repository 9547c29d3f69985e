"""The Detector finds what Ultralytics' own predict found with the same model on the same pages.

The numbers come from scripts/make_ultralytics_reference.py. That version scales each axis back by its own gain, as the
Detector does by default. Run with `-s` to see the largest differences.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ROOT, load_script
from dhead_trt.build import build
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector

pytest.importorskip("openvino", reason="OpenVINO is not installed")

BOX_TOL, SCORE_TOL = 0.1, 1e-3  # pixels of the page
REFERENCE: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "ultralytics_doclaynet.json").read_text())
PAGES = REFERENCE["pages"]


@pytest.fixture(scope="module")
def plan(doclaynet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert hashlib.sha256(doclaynet.read_bytes()).hexdigest() == REFERENCE["model_sha256"]
    return build(doclaynet, "openvino", output=tmp_path_factory.mktemp("plan") / "doclaynet", verify=False).plan


def want(page: dict[str, Any]) -> np.ndarray:
    return np.array(page["detections"], dtype=np.float64)


def compare(found: Detections, rows: np.ndarray, conf: float) -> tuple[float, float, int]:
    """(largest box difference in pixels, largest score difference, pairs); every row has its partner, both ways.

    Only a row whose score is within SCORE_TOL of the threshold may have none.
    """
    free = np.ones(len(found), dtype=bool)
    worst_box = worst_score = 0.0
    pairs = 0
    for row in rows:
        gaps = np.abs(found.xyxy - row[:4]).max(axis=1) + 1e9 * ~(free & (found.class_id == row[5]))
        best = int(np.argmin(gaps)) if len(found) else -1
        if best < 0 or gaps[best] > BOX_TOL:
            assert row[4] <= conf + SCORE_TOL, f"not found: {row.tolist()}; the nearest is {gaps.min():.3f} px away"
            continue
        free[best] = False
        pairs += 1
        worst_box = max(worst_box, float(gaps[best]))
        worst_score = max(worst_score, abs(float(found.confidence[best]) - float(row[4])))
    extra = found[free]
    assert (extra.confidence <= conf + SCORE_TOL).all(), f"not in the reference: {list(extra)}"
    return worst_box, worst_score, pairs


@pytest.mark.parametrize("index", range(len(PAGES)), ids=[p["name"] for p in PAGES])
def test_same_detections_as_ultralytics(plan: Path, sample_pages: list[Path], index: int, record_property: Any) -> None:
    page, path = PAGES[index], sample_pages[index]
    assert path.name == page["name"]
    if load_script("make_ultralytics_reference").digest(path) != page["pixels_sha256"]:
        assert index > 0, "the committed page is not the one that the reference was made of"
        pytest.skip("this machine's Pillow draws another page than the one that the reference was made of")
    options = REFERENCE["options"]
    with Detector(plan, threads=2, conf=options["conf"], iou=options["iou"]) as detector:
        box, score, pairs = compare(detector(path), want(page), options["conf"])
    print(f"{page['name']}: {pairs} of {len(page['detections'])}: box ≤ {box:.4f} px, score ≤ {score:.1e}")
    record_property("worst_box_px", box)
    assert pairs >= 15
    assert score <= SCORE_TOL


def test_the_comparison_can_fail() -> None:
    rows = want(PAGES[0])
    found = Detections(rows[:, :4], rows[:, 4], rows[:, 5], (), (1754, 1240))
    assert compare(found, rows, 0.25)[2] == len(rows)
    with pytest.raises(AssertionError, match="not found"):
        compare(found[1:], rows, 0.25)
    with pytest.raises(AssertionError, match="not in the reference"):
        compare(found, rows[1:], 0.25)
    moved = rows.copy()
    moved[3, 0] += 0.2
    with pytest.raises(AssertionError, match="not found"):
        compare(found, moved, 0.25)
    other = Detections(rows[:, :4], rows[:, 4], (rows[:, 5] + 1) % 11, (), (1754, 1240))
    with pytest.raises(AssertionError, match="not found"):
        compare(other, rows, 0.25)
