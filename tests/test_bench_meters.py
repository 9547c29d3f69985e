"""What `dhead-trt bench` says of the machine: its meters on made counters, others at work, the command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dhead_trt.bench.machine import Bystanders, command, machine
from dhead_trt.bench.meters import NvmlEnergy, RaplEnergy, energy_meters, resident


def rapl_zone(folder: Path, energy: int, highest: int = 1_000_000) -> Path:
    zone = folder / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", energy), ("max_energy_range_uj", highest)):
        (zone / name).write_text(f"{text}\n")
    (folder / "intel-rapl:0:0").mkdir()  # a part of the package: not counted twice
    return zone


def test_rapl_counts_joules_and_wraps(tmp_path: Path) -> None:
    zone = rapl_zone(tmp_path, 900_000)
    meter = RaplEnergy(zone)
    meter.start()
    (zone / "energy_uj").write_text("950000\n")
    assert meter.joules() == pytest.approx(0.05)
    (zone / "energy_uj").write_text("100000\n")  # past 1 000 000, which is followed by 0
    assert meter.joules() == pytest.approx(0.200001)
    assert meter.name == "RAPL package-0"
    meters, missing = energy_meters(rapl=tmp_path)
    assert [m.name for m in meters][:1] == ["RAPL package-0"]
    assert not any("processor" in sentence for sentence in missing)


def test_what_cannot_be_metered_is_named(tmp_path: Path) -> None:
    _, missing = energy_meters(rapl=tmp_path / "none")
    assert missing[0] == "energy of the processor: this system shows no RAPL counters"
    (rapl_zone(tmp_path, 0) / "energy_uj").unlink()
    _, missing = energy_meters(rapl=tmp_path)
    assert missing[0].startswith("energy of the processor: intel-rapl:0 cannot be read (No such file")


def test_nvml_counts_millijoules() -> None:
    counter = [5000]
    nvml = SimpleNamespace(
        nvmlDeviceGetHandleByIndex=lambda index: ("gpu", index),
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: counter[0] if handle == ("gpu", 2) else 0,
    )
    meter = NvmlEnergy(nvml, 2)
    meter.start()
    counter[0] = 7500
    assert meter.joules() == 2.5
    assert meter.name == "NVML GPU 2"


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident()
    if before is None:
        pytest.skip("this system has no /proc")
    held = np.ones(8 << 20)  # 64 MiB, touched
    after = resident()
    assert after is not None
    assert 60 <= after["rss"] - before["rss"] <= 72
    assert after["peak"] >= after["rss"]
    assert held[-1] == 1


def test_others_on_the_machine_are_noticed() -> None:
    """A child that spins is not this process's own until it is waited for."""
    watch = Bystanders()
    if watch.busy() is None and not Path("/proc/stat").exists():
        pytest.skip("this system has no /proc/stat")
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        time.sleep(1.5)
        busy = watch.busy()
        child.kill()
    assert busy is not None
    assert 0.3 <= busy <= (os.cpu_count() or 1) + 0.5


def test_the_command_has_no_machine_paths(tmp_path: Path) -> None:
    assert command(["/usr/lib/x/dhead-trt", "bench", str(tmp_path / "a b.xml")]) == "dhead-trt bench 'a b.xml'"
    assert command(["/some/where/bench/decode.py", "--rounds", "3"]) == "python bench/decode.py --rounds 3"
    found = machine()
    assert found["cpus"] >= 1
    assert found["cpu"]
