"""The CUDA sources for real GPUs: they compile for every architecture, without spills and without fused arithmetic.

Needs nvcc, no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, load_script
from dhead_trt import BackendUnavailable, HeadSpec, cuda

NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc") or ""
ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "100", "120")
needs_nvcc = pytest.mark.skipif(not NVCC, reason="no nvcc on PATH: the CUDA sources are NOT compiled by this run")


@needs_nvcc
def test_every_architecture_compiles_without_spills() -> None:
    run = subprocess.run(
        [ROOT / "scripts/kernels.sh"], env={**os.environ, "NVCC": NVCC}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    rows = [line.split() for line in run.stdout.splitlines() if " sm_" in line]
    names = {r[0].split("<")[0] for r in rows}
    assert names == {"decode_kernel", "filter_kernel", "select_kernel", "letterbox_kernel"}
    assert {r[1] for r in rows} == {f"sm_{a}" for a in ARCHITECTURES}
    assert all(r[3:5] == ["0", "0"] for r in rows)
    assert "no spills" in run.stdout


@needs_nvcc
def test_a_spill_is_found(tmp_path: Path) -> None:
    """The check above can fail: a compiler that reports a spill is refused."""
    compiler = tmp_path / "nvcc"
    compiler.write_text(
        f'#!/bin/sh\n"{shutil.which(NVCC)}" "$@" 2>&1 | sed "s/0 bytes spill loads/4 bytes spill loads/"\n'
    )
    compiler.chmod(0o755)
    run = subprocess.run(
        [ROOT / "scripts/kernels.sh", "86"], env={**os.environ, "NVCC": str(compiler)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert "spills" in run.stderr


@needs_nvcc
@pytest.mark.parametrize("source", ["decode_cuda.cu", "filter_cuda.cu", "nms_cuda.cu", "letterbox_cuda.cu"])
def test_nothing_is_fused_and_loads_are_wide(tmp_path: Path, source: str) -> None:
    """decode.h promises the CPU's bits: no float multiply-add in what the GPU runs. And the maps are read in packs."""
    ptx = tmp_path / "kernel.ptx"
    command = [NVCC, "-std=c++17", "-O3", "-arch=compute_90", "-ptx", "-Icsrc/include", "-Icsrc", f"csrc/{source}"]
    subprocess.run([*command, "-o", str(ptx)], cwd=ROOT, check=True, capture_output=True)
    text = ptx.read_text()
    assert not re.findall(r"fma\.[a-z.]*f32", text)
    assert not re.findall(r"(?:ex2|lg2|rcp|sqrt)\.approx[a-z.]*f32", text)
    if source in ("decode_cuda.cu", "filter_cuda.cu"):
        assert "ld.global.v4.u16" in text
        assert "ld.global.v4.f32" in text
    assert "st.global.v4.f32" in text


def test_header_fetch_refuses_another_file(tmp_path: Path) -> None:
    script = load_script("fetch_tensorrt_headers")
    try:
        folder = script.fetch()
    except RuntimeError as e:
        pytest.skip(f"the TensorRT headers cannot be fetched: {e}")
    assert "NV_TENSORRT_MAJOR" in (folder / "NvInferVersion.h").read_text()
    wheel = script.find_wheel(script.cache_folder())
    (tmp_path / wheel.name).write_bytes(wheel.read_bytes()[:-1])
    assert script.sha256(tmp_path / wheel.name) != script.SHA256


def test_without_a_gpu() -> None:
    available, reason = cuda.availability()
    if available:
        pytest.skip("this machine has an NVIDIA GPU")
    assert reason
    with pytest.raises(BackendUnavailable, match=r"CUDA kernels cannot run here.*dhead_trt\.decode|DHEAD_CUDA"):
        cuda.decode_cuda({}, HeadSpec(num_classes=1, strides=(8,), bins=1))
    with pytest.raises(BackendUnavailable):
        cuda.letterbox_cuda([], (64, 64))
