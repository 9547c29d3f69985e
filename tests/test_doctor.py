"""doctor: it reports whatever is there or missing or broken, and never fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dhead_trt
from dhead_trt import doctor
from dhead_trt.backends import BACKENDS


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.collect()


def test_report_agrees_with_the_machine(report: doctor.Report) -> None:
    assert report.version == dhead_trt.__version__
    assert report.python.startswith("{}.{}.{} ".format(*sys.version_info[:3]))
    assert report.cores >= 1
    assert report.simd[0] == "scalar"
    assert report.core == f"compiled, uses {report.simd[-1]} (has {', '.join(report.simd)})"
    assert tuple(b.name for b in report.backends) == BACKENDS
    by_name = {b.name: b for b in report.backends}
    for name, state in by_name.items():
        there = dhead_trt.backends.get_backend(name).availability()
        assert (state.can_build, state.can_run) == (there.can_build, there.can_run)
        assert state.reason


def test_versions_are_those_of_the_installed_packages(report: doctor.Report) -> None:
    versions = {p.name: p.version for p in report.packages}
    import onnx
    import torch

    assert versions["onnx"] == onnx.__version__
    assert versions["torch"] == torch.__version__
    extras = {p.extra for p in report.packages}
    assert extras == {"onnx", "export", "cpu", "rtx", "trt", "image", "plot", "nvml"}


def test_json_is_plain(report: doctor.Report) -> None:
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["backends"][0]["name"] == "tensorrt"
    assert {"name", "module", "extra", "adds", "version", "problem"} == set(data["packages"][0])


def test_render_names_each_part(report: doctor.Report) -> None:
    text = doctor.render(report)
    for name in (*BACKENDS, *(p.name for p in report.packages), "Decode on the GPU", report.cpu):
        assert name in text
    missing = [p for p in report.packages if p.version is None]
    for p in missing:
        assert f'pip install "dhead-trt[{p.extra}]"' in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_broken_package_is_named_and_not_fatal(tmp_path: Path) -> None:
    """A package that raises while it is imported, as one built for another numpy does."""
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('compiled for another numpy\\nsecond line')")
    (tmp_path / "matplotlib.py").write_text("import no_such_module")
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]);"
        "from dhead_trt import doctor; r = doctor.collect(); doctor.render(r); print(json.dumps(r.to_dict()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], text=True, capture_output=True, check=True)
    packages = {p["name"]: p for p in json.loads(done.stdout)["packages"]}
    assert packages["onnxruntime"]["problem"] == "RuntimeError: compiled for another numpy"
    assert packages["matplotlib"]["problem"].startswith("ModuleNotFoundError: No module named 'no_such_module'")
    assert packages["onnx"]["problem"] is None


def test_missing_packages_are_listed_with_what_they_add() -> None:
    """With every optional package hidden, the report still comes, and offers each extra once."""
    code = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'onnx', 'onnxruntime', 'torch', 'openvino', 'tensorrt_rtx', 'PIL',\n"
        "                                      'onnx_graphsurgeon', 'matplotlib', 'tensorrt'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from dhead_trt import doctor\n"
        "print(doctor.render(doctor.collect()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    for extra in ("onnx", "export", "cpu", "rtx", "trt", "image", "plot"):
        assert done.stdout.count(f'pip install "dhead-trt[{extra}]"') >= 1, extra
    assert done.stdout.count("not installed") >= 9


def test_gpu_query_survives_a_broken_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver'\nexit 9\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gpus, note = doctor.find_gpus()
    assert gpus == ()
    assert note.startswith("nvidia-smi: NVIDIA-SMI has failed")
    smi.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 8.9, 580.65.06, 24564 MiB'\n")
    assert doctor.find_gpus()[0] == ("NVIDIA GeForce RTX 4090, compute capability 8.9, driver 580.65.06, 24564 MiB",)
