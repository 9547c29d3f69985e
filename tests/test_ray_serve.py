"""examples/ray_serve on a real Ray: two replicas give what the Detector gives, refuse what is too much, and survive the
death of one. `make test-serving` runs it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serving_env
import small_models
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytestmark = pytest.mark.serving

RAY = "ray[serve]==2.60.0"
JOB = {
    "replicas": 2,
    "ongoing": 8,
    "queued": 4,
    "max_batch": 4,
    "calm": 80,
    "flood": 300,
    "flood_clients": 48,
    "kill_s": 8,
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = serving_env.scratch("dhead-ray-")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def plan(folder: Path) -> Path:
    return small_models.openvino_plan(folder / "small", image_size=(256, 320), batch=(1, 2, 4))


@pytest.fixture(scope="module")
def images(folder: Path) -> list[Path]:
    paths = []
    for seed in range(8):
        paths.append(folder / f"{seed}.png")
        small_models.picture((90 + 31 * seed, 333 - 17 * seed), seed).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def expected(plan: Path, images: list[Path]) -> list[Detections]:
    with Detector(plan, threads=1) as detector:
        return [detector(path) for path in images]


@pytest.fixture(scope="module")
def record(folder: Path, plan: Path, images: list[Path]) -> dict[str, Any]:
    """One run of the whole story; the tests look at its parts."""
    python = serving_env.environment("ray", RAY)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    job = JOB | {
        "app": str(serving_env.ROOT / "examples" / "ray_serve"), "plan": str(plan), "images": [str(p) for p in images],
        "port": port, "temporary": str(folder / "r"),
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    env = serving_env.plain(
        PYTHONPATH=os.pathsep.join([str(serving_env.package_under_test(folder / "package")), job["app"]]),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_MODE="disabled",
        OMP_NUM_THREADS="1",
    )
    driver = Path(__file__).with_name("ray_driver.py")
    done = subprocess.run(
        [str(python), str(driver), str(folder / "job.json")], env=env, capture_output=True, text=True, timeout=400,
        cwd=folder,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RECORD ")]
    assert lines, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RECORD "))
    return found


def right(row: dict[str, Any], expected: list[Detections]) -> None:
    """An answer of 200 is the Detector's own."""
    answer = Detections.from_dict(row["answer"])
    wanted = expected[row["image"]]
    assert len(answer) == len(wanted)
    np.testing.assert_allclose(answer.xyxy, wanted.xyxy, atol=0.01)
    np.testing.assert_allclose(answer.confidence, wanted.confidence, atol=1e-4)
    assert np.array_equal(answer.class_id, wanted.class_id)


def test_two_replicas_share_the_work(record: dict[str, Any], expected: list[Detections]) -> None:
    rows = record["calm"]
    assert [r["status"] for r in rows] == [200] * JOB["calm"]
    for row in rows:
        right(row, expected)
    assert len({r["answer"]["replica"] for r in rows}) == 2
    assert max(r["answer"]["batch"] for r in rows) > 1
    assert sum(len(e) for e in expected) > 20


def test_bad_requests_are_explained(record: dict[str, Any]) -> None:
    for row, problem in zip(record["bad"], ("not an image", "empty", "conf is out of range", "float"), strict=True):
        assert row["status"] == 422
        assert problem in row["answer"]["error"]


def test_too_much_is_refused_and_the_rest_answered(record: dict[str, Any], expected: list[Detections]) -> None:
    rows = record["flood"]
    assert {r["status"] for r in rows} == {200, 503}
    for row in rows:
        if row["status"] == 200:
            right(row, expected)


def test_a_killed_replica_loses_no_request_silently(record: dict[str, Any], expected: list[Detections]) -> None:
    """Every request sent while a replica died ends in the right answer or in an error; then two replicas run again."""
    (victim,) = record["victims"]
    rows = record["killed"]
    assert len(rows) >= 80
    good = [r for r in rows if r["status"] == 200]
    for row in good:
        right(row, expected)
    assert all(r["status"] >= 500 or r["status"] == 0 for r in rows if r["status"] != 200)
    assert any(r["answer"]["replica"] == victim for r in good)
    assert record["states"] == {"RUNNING": 2}
    after = record["after"]
    assert [r["status"] for r in after] == [200] * JOB["calm"]
    pids = {r["answer"]["replica"] for r in after}
    assert len(pids) == 2
    assert victim not in pids
