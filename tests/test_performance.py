"""scripts/performance.py: stages that resume, and a page that says what was measured, how, and what was not."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, load_script
from dhead_trt.bench import bench, plot_bench

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
MACHINE = {"cpu": "Test CPU", "cpus": 2, "cpus_online": 4, "extensions": [], "system": "Linux", "load_average": 0.5}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return load_script("performance")


def stage(script: Any, name: str, code: str, seconds: float = 1.0) -> Any:
    """A stage that is a line of Python; J is its JSON file."""
    words = ("-c", f"J = __import__('pathlib').Path(r'{{json}}'); {code}")
    return script.Stage(name, words, words, seconds)


def test_stages_run_once_until_something_changes(script: Any, tmp_path: Path, capsys: Any) -> None:
    good = stage(script, "decode", "J.write_text('1'); print('said')")
    none = stage(script, "gpu", "print('NOT RUN: no GPU'); raise SystemExit(3)")
    bad = stage(script, "engine", "raise ValueError('broken')")
    silent = stage(script, "detector", "pass")
    run = {"quick": False, "fresh": False, "named": False, "budget": None}
    assert script.run_all([good, none, bad, silent], tmp_path, **run) == (2, 0)
    records = {s.name: script._record(s, tmp_path) for s in (good, none, bad, silent)}
    assert {n: r["status"] for n, r in records.items()} == {
        "decode": "done", "gpu": "not run", "engine": "failed", "detector": "failed",
    }  # fmt: skip
    assert records["decode"]["output"] == "said\n"
    assert records["gpu"]["reason"] == "no GPU"
    assert records["engine"]["reason"] == "ValueError: broken"
    capsys.readouterr()
    assert script.run_all([good, none, bad, silent], tmp_path, **run) == (2, 0)  # the failed ones are tried again
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "kept" in line] == ["decode", "gpu"]
    other = stage(script, "decode", "J.write_text('2')")
    assert script.run_all([other], tmp_path, **run) == (0, 0)
    assert (tmp_path / "decode.json").read_text() == "2"
    (tmp_path / "decode.json").unlink()
    assert script.run_all([other], tmp_path, **run) == (0, 0)
    assert (tmp_path / "decode.json").read_text() == "2"


def test_a_failed_stage_does_not_leave_an_old_result(script: Any, tmp_path: Path) -> None:
    (tmp_path / "decode.json").write_text("old")
    bad = stage(script, "decode", "raise SystemExit(1)")
    assert script.run_stage(bad, tmp_path, False)["status"] == "failed"
    assert not (tmp_path / "decode.json").exists()


def test_the_budget_leaves_stages_for_the_next_run(script: Any, tmp_path: Path) -> None:
    chosen = [
        stage(script, n, "J.write_text('1')", seconds) for n, seconds in (("decode", 5), ("engine", 500), ("gpu", 5))
    ]
    run = {"quick": False, "fresh": False, "named": False}
    assert script.run_all(chosen, tmp_path, budget=60, **run) == (0, 1)
    assert sorted(p.name for p in tmp_path.glob("*.json") if "stage" not in p.name) == ["decode.json", "gpu.json"]
    assert script.run_all(chosen, tmp_path, budget=None, **run) == (0, 0)
    assert (tmp_path / "engine.json").exists()


def test_the_commands_are_real(script: Any) -> None:
    """Every stage names a file that is there; --quick is not the same; nothing leaves the repository."""
    for one in script.stages():
        words = one.command(script.RESULTS, False)
        assert (ROOT / words[0]).is_file() or words[:3] == ["-m", "dhead_trt", "bench"]
        assert one.name in {"models", "gpu"} or words != one.command(script.RESULTS, True)
        assert not any(w.startswith("/") for w in words)
    assert {s.name for s in script.stages()} >= set(script.performance_page.SECTIONS)
    assert sum(s.seconds for s in script.stages()) <= 480  # the page within eight minutes


def results(folder: Path) -> dict[str, Any]:
    """Two stages with made figures, one that could not run, one that never ran."""
    target = {"ours": "ours dense", "of": "torch dense", "target": 3.0, "median": 2.5, "min": 2.0, "met": False}
    floor = {"ours": "ours detect", "of": "read class maps", "most": 2.5, "median": 1.6, "met": True}
    times = {"median_ms": 1.5, "min_ms": 1.25, "calls": 7}
    decode = {"machine": MACHINE, "versions": {"numpy": "2.0"}, "simd": "avx2", "anchors": 8400, "threads": 2,
              "results": [{"batch": 1, "times": {"ours dense": times}, "targets": [target, floor]}]}  # fmt: skip
    stages = {"pre": 5.0, "engine": 80.0, "post": 9.0}
    total = {"p50": 94.0, "p90": None, "p99": None}
    once = {"value": 1.0, "low": 1.0, "high": 1.0}
    peer = {"machine": MACHINE | {"cpu": "Other CPU"}, "versions": {"ultralytics": "8.4.190"}, "threads": 2,
            "boxes": {"theirs": [3], "ours": [3]},
            "results": {"theirs": {"total_ms": total, "stages_ms": stages, "times_as_fast": once},
                        "ours": {"total_ms": total | {"p50": 47.0}, "stages_ms": {},
                                 "times_as_fast": {"value": 2.0, "low": 1.9, "high": 2.1}}}}  # fmt: skip
    for name, data in (("decode", decode), ("ultralytics", peer)):
        (folder / f"{name}.json").write_text(json.dumps(data))
    record = {"command": ["bench/x.py", "--y"], "seconds": 12.0, "finished": "2026-01-02T03:04:05+00:00",
              "commit": "abc", "quick": False, "others_busy": 1.5, "status": "done"}  # fmt: skip
    gpu = record | {"status": "not run", "reason": "no GPU here"}
    return {"decode": record, "ultralytics": record, "gpu": gpu, "engine": None}


def test_the_page_has_the_figures_and_where_they_come_from(script: Any, tmp_path: Path) -> None:
    records = results(tmp_path)
    (path,) = script.performance_page.make(records, tmp_path, tmp_path / "docs")
    text = path.read_text()
    assert "Machine: Test CPU, 2 of 4 cores, Linux" in text
    assert "2026-01-02 (UTC), commit abc" in text
    assert "numpy 2.0, ultralytics 8.4.190" in text
    assert "| ours dense | 1.50, 1.25 |" in text
    assert "batch 1: ours dense against torch dense: 2.50×, target 3×: **not met**" in text
    assert "batch 1: ours detect takes 1.60× the time to read class maps, target at most 2.5×: met" in text
    assert "| ours | 47.0 | – | – | – | – | 2.00 | 1.90 – 2.10 |" in text
    assert text.count("`python bench/x.py --y`, 03:04 UTC, 12 s, load 0.5, others kept 1.5 processors busy") == 2
    assert "**on another machine: Other CPU" in text
    assert "(bench/gpu.py): not run on this machine: no GPU here" in text
    assert "engine: this stage was not run" in text
    assert "--quick" not in text


def test_scaling_says_whether_the_target_is_met(script: Any, tmp_path: Path) -> None:
    from PIL import Image

    def gain(value: float) -> dict[str, Any]:
        ends = {"one": {"median_ms": 2.0}, "more": {"median_ms": 1.2}}
        return {**ends, "ratio": value, "low": value - 0.1, "high": value + 0.1, "by_minima": value}

    kinds = {"decode": gain(1.8), "detect": gain(1.5), "read all maps": gain(1.6), "read class maps": gain(1.3)}
    sweep = {"counts": [84], "median_ms": {"decode": [1.0]}, "exponent": {"decode": 1.0}, "exponent_from": 84}
    data = {"threads": {"1": kinds, "16": kinds}, "anchors": sweep, "survivors": sweep}
    Image.new("RGB", (9, 9)).save(tmp_path / "decode_scaling.png")
    (tmp_path / "images").mkdir()
    text, _ = script.performance_page.SECTIONS["decode_scaling"](data, tmp_path, tmp_path / "images")
    assert "1.80× (1.70 – 1.90), target 1.7×: met; “read all maps” gains 1.60×" in text
    assert "1.50× (1.40 – 1.60), target 1.7×: **not met**; “read class maps” gains 1.30×" in text
    assert text.count("target 1.7") == 2  # of batch 16 alone


def test_gpu_figures_are_shown_where_there_are_some(script: Any, tmp_path: Path) -> None:
    row = {"batch": 1, "dtype": "float16"}
    for name, us in (("detect", 8.25), ("decode", 11.5)):
        row |= {f"{name}_us": us, f"{name}_share_of_copy_bandwidth": 0.5, f"torch_eager_{name}_us": 300.0,
                f"torch_compile_{name}_us": None}  # fmt: skip
    data = {"machine": MACHINE, "versions": {}, "gpu": "Test GPU", "copy_bandwidth_GB_s": 900.0, "results": [row],
            "targets": {"fast": True, "faster": False, "fastest": None}}  # fmt: skip
    text, plots = script.performance_page.SECTIONS["gpu"](data, tmp_path, tmp_path)
    assert "Test GPU, copy 900 GB/s" in text
    assert "| 1, float16 | 8.2 | 50% | 300 | – | 11.5 | 50% | 300 | – |" in text
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- fast: met", "- faster: **not met**", "- fastest: not measured",
    ]  # fmt: skip
    assert plots == []


def test_a_real_bench_is_shown(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    import small_models
    from dhead_trt.build import build

    plan = build(small_models.onnx_bytes("detector"), "openvino", output=tmp_path / "m", batch=1, verify=False).plan
    report = bench([plan, plan], threads=[1], rounds=8, warmup=0.0, memory=False, energy=False)
    (tmp_path / "bench.json").write_text(json.dumps(report.to_dict()))
    plot_bench(report, tmp_path / "bench.png")
    record = {"command": ["-m", "dhead_trt", "bench", "m.xml"], "seconds": 1.0, "finished": "2026-01-02T03:04:05+00:00",
              "commit": "abc", "quick": True, "others_busy": None, "status": "done"}  # fmt: skip
    picture, page = script.performance_page.make({"bench": record}, tmp_path, tmp_path / "docs")
    text = page.read_text()
    p50 = report.cells[0].clocks["images"].latency.p50
    row = next(line for line in text.splitlines() if line.startswith("| m.xml |"))
    assert float(re.split(r" *\| *", row)[6]) == pytest.approx(p50, rel=0.01)
    assert "`dhead-trt bench m.xml`" in text
    assert "few rounds, figures that mean little" in text
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert f"(images/{picture.name})" in text
    assert picture.stat().st_size < 0.6 * (tmp_path / "bench.png").stat().st_size
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "bench.png")
    with pytest.raises(ValueError, match=r"performance-bench.png has \d+ bytes, more than 200000"):
        script.performance_page.make({"bench": record}, tmp_path, tmp_path / "docs")


def test_the_command_line_writes_the_page_alone(script: Any, tmp_path: Path, capsys: Any) -> None:
    assert script.main(["--page", "--results", str(tmp_path), "--docs", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "No result is there yet." in text
    assert text.count("this stage was not run") == len(script.stages())
    assert sys.executable not in text
