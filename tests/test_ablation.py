"""The ablation: which runs there are, a run that is killed and goes on, the statistics, the report."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("faster_coco_eval")
pytest.importorskip("safetensors")

import torch_fixtures  # noqa: E402
from dhead_trt.errors import InputError  # noqa: E402
from dhead_trt.training.ablation import (  # noqa: E402
    CONFIGURATIONS,
    EXTRAS,
    Run,
    Study,
    load_results,
    macs_of,
    plan,
    run_one,
)
from dhead_trt.training.ablation_report import Gain, Report, Spread, plot_domains, plot_study, steps_to  # noqa: E402
from dhead_trt.training.model import build_detector  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TINY = Study(
    size=64,
    backbone="8-8-16-16-16/16-16-16",
    train_images=48,
    val_images=16,
    curve_images=8,
    epochs=2,
    batch=8,
    points=2,
)
OPTIONS = [
    "--size=64",
    f"--backbone={TINY.backbone}",
    "--train-images=48",
    "--val-images=16",
    "--epochs=2",
    "--batch=8",
]


# ---- the runs --------------------------------------------------------------------------------------------------------


def test_the_six_configurations():
    assert list(CONFIGURATIONS) == ["coupled", "decoupled", "focal", "iou", "focal_iou", "full"]
    losses = {n: c.loss(TINY) for n, c in CONFIGURATIONS.items()}
    assert [(x.classification, x.box) for x in losses.values()] == [
        ("bce", "l1"),
        ("bce", "l1"),
        ("focal", "l1"),
        ("bce", "ciou"),
        ("focal", "ciou"),
        ("focal", "ciou"),
    ]
    assert [c.head for c in CONFIGURATIONS.values()] == ["coupled"] + ["decoupled"] * 5
    assert [bool(TINY.train_config(Run(c, "mixed", 0)).ema_decay) for c in CONFIGURATIONS.values()] == [False] * 5 + [
        True
    ]
    assert losses["focal"].weights["cls"] == TINY.focal_weight
    assert losses["iou"].weights["cls"] == 0.5
    assert (losses["iou"].weights["box"], losses["focal"].weights["box"]) == (7.5, TINY.l1_weight)


def test_plan():
    runs = plan(3, ["mixed", "dense", "small"])
    names = [r.name for r in runs]
    assert len(names) == len(set(names)) == 3 * 6 + 2 * 3 * 2
    assert names[:6] == [f"{n}-mixed-0" for n in CONFIGURATIONS]
    assert set(names[18:]) == {
        f"{c}-{d}-{s}" for c in ("coupled", "decoupled") for d in ("dense", "small") for s in range(3)
    }
    assert len(plan(2, ["mixed"], extras=True)) == 2 * (6 + len(EXTRAS))
    with pytest.raises(InputError, match="no such domain: received sunny"):
        plan(1, ["mixed", "sunny"])
    for seeds, domains in ((0, ["mixed"]), (1, [])):
        with pytest.raises(InputError, match="nothing to run"):
            plan(seeds, domains)


def test_macs():
    """The stem's first convolution, by hand; a decoupled head has more than the coupled one."""
    model = build_detector("p", "decoupled", 8)
    hooked = []
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    total = macs_of(model, (64, 96))
    hooked.append(64 // 2 * 96 // 2 * first.out_channels * 3 * 9)
    assert total > hooked[0]
    head = macs_of(model, (64, 96), head=True)
    by_hand = 0
    for stride, c in zip(model.spec.strides, model.head.in_channels, strict=True):
        cells = (64 // stride) * (96 // stride)
        by_hand += cells * (4 * 9 * c * c + c * 8 + c * 68)
    assert head == by_hand
    assert macs_of(model, (64, 96)) == total  # no hook stays behind
    assert macs_of(model, (128, 96)) == 2 * total
    assert macs_of(build_detector("p", "coupled", 8), (64, 96), head=True) < head / 1.8


# ---- runs for real ---------------------------------------------------------------------------------------------------


one_thread = torch_fixtures.one_thread_per_file


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A study of the smallest size, two runs of it finished."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("coupled", "full"):
        run_one(Run(CONFIGURATIONS[name], "mixed", 0), TINY, folder)
    return folder


def test_a_run(study):
    results = {r["configuration"]: r for r in load_results(study)}
    assert set(results) == {"coupled", "full"}
    for r in results.values():
        assert r["steps"] == 12
        assert [step for step, _ in r["curve"]] == [6, 12]
        assert 0 <= r["map50_95"] <= r["map50"] <= 1
        assert r["head_parameters"] < r["parameters"]
        assert r["head_macs"] < r["macs"]
    assert results["full"]["head_parameters"] > 1.5 * results["coupled"]["head_parameters"]
    assert (study / "work" / "full-mixed-0" / "weights.safetensors").is_file()


def test_a_finished_run_is_not_repeated(study):
    path = study / "runs" / "coupled-mixed-0.json"
    before = path.stat().st_mtime_ns
    assert run_one(Run(CONFIGURATIONS["coupled"], "mixed", 0), TINY, study) == json.loads(path.read_text())
    assert path.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"other settings.*epochs"):
        run_one(Run(CONFIGURATIONS["coupled"], "mixed", 0), Study(**{**TINY.__dict__, "epochs": 3}), study)


def test_a_killed_run_goes_on(study, tmp_path):
    """kill -9 in the middle: the same command goes on from the checkpoint, and ends with the same figures."""
    run = Run(CONFIGURATIONS["full"], "mixed", 0)
    code = (
        "import time\n"
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "from dhead_trt.training import ablation\n"
        "from dhead_trt.training.ablation import *\n"
        "from dhead_trt.training.trainer import Trainer\n"
        f"study = Study(**{TINY.__dict__!r})\n"
        "original = Trainer.fit\n"
        "def fit(self, **_):\n"
        "    original(self, stop_after=5)\n"  # leaves a checkpoint, as the clock would
        "    print('saved', flush=True)\n"
        "    time.sleep(60)\n"
        "Trainer.fit = fit\n"
        f"run_one(Run(CONFIGURATIONS['full'], 'mixed', 0), study, {str(tmp_path)!r})\n"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "saved\n"
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stdout.close()
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "work" / run.name / "checkpoint.safetensors").is_file()
    result = run_one(run, TINY, tmp_path)
    known = json.loads((study / "runs" / f"{run.name}.json").read_text())
    for key in ("map50_95", "map50", "steps", "curve"):
        assert result[key] == known[key]


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "ablation.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_script(tmp_path):
    """A study of two domains and one seed by the script, two runs at a time; then again: nothing is left to do."""
    command = [
        "--out",
        tmp_path,
        "--seeds",
        1,
        "--domains",
        "mixed,small",
        "--jobs",
        2,
        "--only",
        "coupled,light",
        *OPTIONS,
    ]
    done = script(*command)
    assert done.returncode == 0, done.stderr
    assert "3 runs, 0 of them finished" in done.stdout
    assert "[3/3]" in done.stdout
    names = ["coupled-mixed-0", "coupled-small-0", "light-mixed-0"]
    assert sorted(p.stem for p in (tmp_path / "runs").iterdir()) == names
    again = script(*command)
    assert script("--out", tmp_path, "--only", "cat").returncode == 2
    assert again.stdout == "3 runs, 3 of them finished\n"


def test_time_and_report(study, tmp_path):
    timed = script("--out", study, "--time", "--rounds", 2)
    assert timed.returncode == 0, timed.stderr
    timings = json.loads((study / "timings.json").read_text())
    assert list(timings) == ["coupled", "decoupled"]
    assert all(0 < t["low"] <= t["ms"] <= t["high"] < 1000 for t in timings.values())
    page = tmp_path / "page.md"
    page.write_text("# Top\n<!-- main -->\nold\n<!-- end -->\nbetween\n<!-- settings -->\n<!-- end -->\nlast\n")
    found = script("--out", study, "--report", tmp_path, "--page", page)
    assert found.returncode == 0, found.stderr
    assert "everything" in found.stdout
    assert "one run: no telling" in found.stdout
    lines = page.read_text().splitlines()
    assert lines[:3] == ["# Top", "<!-- main -->", "```text"]
    assert "old" not in lines
    assert lines[-1] == "last"
    assert any(line.startswith("2 runs: 48 scenes of 64 × 64 px with 4 classes, 2 epochs") for line in lines)
    data = json.loads((tmp_path / "ablation.json").read_text())
    assert len(data["runs"]) == 2
    assert Report.from_dict(data).spread("full", "map50").mean == pytest.approx(
        load_results(study)[1]["map50"], abs=1e-5
    )


def test_script_without_runs(tmp_path):
    found = script("--out", tmp_path, "--report", tmp_path)
    assert found.returncode == 2
    assert found.stderr.startswith("error: No run is finished")


# ---- statistics ------------------------------------------------------------------------------------------------------


def result(name: str, seed: int, value: float, domain: str = "mixed", curve=((50, 0.2), (100, 0.4))) -> dict:
    big = 1 if name.startswith("coupled") else 2
    return {
        "configuration": name,
        "domain": domain,
        "seed": seed,
        "study": TINY.__dict__,
        "map50_95": value,
        "map50": value + 0.2,
        "map75": value + 0.1,
        "curve": [list(p) for p in curve],
        "steps": 100,
        "skipped": 0,
        "seconds": 1.0,
        "finished": "",
        "parameters": 1000 * (big + 3),
        "head_parameters": 1000 * big,
        "macs": 4000,
        "head_macs": 400,
    }


def made() -> Report:
    rows = [result("coupled", s, v) for s, v in enumerate((0.40, 0.42, 0.44))]
    rows += [result("decoupled", s, v, curve=((50, 0.4), (100, 0.5))) for s, v in enumerate((0.45, 0.47, 0.49))]
    rows += [result("focal", s, v) for s, v in enumerate((0.40, 0.50, 0.52))]
    rows += [result("iou", s, v) for s, v in enumerate((0.40, 0.41, 0.44))]
    rows += [result(n, s, 0.3 + s / 10, "dense") for n in ("coupled", "decoupled") for s in range(2)]
    return Report(rows, {"coupled": {"ms": 2.0}, "decoupled": {"ms": 2.34}})


def test_spread():
    s = Spread.of([1.0, 2.0, 3.0])
    assert (s.mean, s.deviation, s.runs) == (2.0, 1.0, 3)
    assert s.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert s.text(1) == "2.0 ± 1.0"
    one = Spread.of([0.5])
    assert math.isinf(one.half_width)
    assert one.text() == "0.500"
    many = Spread.of([0.0, 1.0] * 6)
    assert many.half_width == pytest.approx(2.228 * many.deviation / math.sqrt(12))  # never narrower than Student's
    # against samples: the interval holds the true mean 19 times of 20
    rng = np.random.default_rng(0)
    hits = [abs(x.mean - 5) < x.half_width for x in (Spread.of(rng.normal(5, 2, 3)) for _ in range(2000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_gains_by_seed():
    gains = {g.part: g for g in made().gains()}
    assert gains["decoupling"].points.mean == pytest.approx(5.0)
    assert gains["decoupling"].points.deviation == pytest.approx(0, abs=1e-9)  # seed by seed, not set by set
    assert gains["decoupling"].verdict == "helps"
    assert gains["focal loss"].verdict == "no difference that these runs can show"
    assert gains["IoU loss"].points.mean == pytest.approx(-16 / 3)
    assert gains["IoU loss"].verdict == "harms"
    assert set(gains) == {"decoupling", "focal loss", "IoU loss"}  # what was not measured is not told
    assert Gain("x", "y", Spread.of([3.0])).verdict == "one run: no telling"


def test_steps_to():
    curve = [(10, 0.1), (20, 0.3), (30, 0.2), (40, 0.5)]
    assert steps_to(curve, 0.05) == pytest.approx(5)
    assert steps_to(curve, 0.2) == pytest.approx(15)
    assert steps_to(curve, 0.5) == pytest.approx(40)
    assert steps_to(curve, 0.6) == math.inf


def test_claims():
    claims = {c[0]: c for c in made().claims()}
    assert claims["mAP"][3] == "no: more"
    assert claims["convergence"][2].startswith("+100 ")  # 0.4 after 50 of 100 steps
    assert claims["convergence"][3] == "no: more"
    assert claims["inference cost"][2] == "+17 % (2.00 → 2.34 ms)"
    assert claims["inference cost"][3] == "yes"
    noisy = {"coupled": {"ms": 2.0, "low": 1.9, "high": 2.5}, "decoupled": {"ms": 2.1, "low": 1.9, "high": 2.6}}
    claims = {c[0]: c for c in Report(made().results, noisy).claims()}
    assert claims["inference cost"][2:] == ("+5 % (2.00 → 2.10 ms)", "cannot be told")
    assert claims["parameters of the head"][2:] == ("+100 %", "yes")
    assert claims["parameters in all"][2:] == ("+25 %", "no: less")


def test_render():
    text = made().render()
    row = next(line for line in text.splitlines() if line.startswith("decoupled + focal"))
    assert "0.473 ± 0.064" in row
    assert "2.34" in row
    assert any(line.startswith("dense") and "0.350 ± 0.071" in line for line in text.splitlines())
    assert "- Helped: decoupling over coupled (+5.0).\n- Harmed: IoU loss over decoupled (-5.3).\n- Not told" in text


def test_plots(tmp_path):
    from PIL import Image

    for plot, name in ((plot_study, "ablation_study.png"), (plot_domains, "multi_dataset_benchmark.png")):
        path = plot(made(), tmp_path / name)
        assert path.stat().st_size < 300_000
        assert Image.open(path).width > 1000


def test_results_of_two_studies(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.json").write_text(json.dumps(result("coupled", 0, 0.5)))
    (tmp_path / "runs" / "b.json").write_text(json.dumps({**result("full", 0, 0.5), "study": {"epochs": 9}}))
    with pytest.raises(InputError, match="of another study"):
        load_results(tmp_path)
