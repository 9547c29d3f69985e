"""What is installed, what runs on this machine, and what each missing part would add.

`collect` looks, and changes nothing; `render` writes what it found as text. Nothing here fails because a part is
missing or broken: that is what the report is for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import __version__
from .errors import DheadError
from .tables import facts, table

__all__ = ["BackendState", "Package", "Report", "collect", "cpu_name", "find_gpus", "package_version", "render"]


@dataclass(frozen=True)
class Package:
    """An optional package: its name on PyPI, its module, the extra that installs it, and what it is for."""

    name: str
    module: str
    extra: str
    adds: str
    version: str | None = None
    problem: str | None = None


OPTIONAL = (
    Package("onnx", "onnx", "onnx", "reading, cutting and converting ONNX graphs"),
    Package("onnx-graphsurgeon", "onnx_graphsurgeon", "onnx", "cutting the tail of an ONNX graph"),
    Package("onnxruntime", "onnxruntime", "onnx", "the independent check of every graph"),
    Package("torch", "torch", "export", "the heads, and their export to ONNX"),
    Package("openvino", "openvino", "cpu", "building and running engines on any CPU"),
    Package(
        "tensorrt-rtx-cu13", "tensorrt_rtx", "rtx", "building engines for RTX GPUs (no GPU needed), and running them"
    ),
    Package("tensorrt", "tensorrt", "trt", "building and running engines on Jetson and data-centre GPUs"),
    Package("pillow", "PIL", "image", "reading and annotating pictures"),
    Package("matplotlib", "matplotlib", "plot", "the pictures of reports"),
    Package("nvidia-ml-py", "pynvml", "nvml", "GPU memory and energy in `bench`"),
)


@dataclass(frozen=True)
class BackendState:
    """Whether a backend can build and run here, and the reason where it cannot."""

    name: str
    can_build: bool
    can_run: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """What `collect` found. `to_dict` gives plain JSON types."""

    version: str
    python: str
    platform: str
    cpu: str
    cores: int
    core: str
    simd: tuple[str, ...]
    gpus: tuple[str, ...]
    gpu_note: str
    cuda_kernels: str
    packages: tuple[Package, ...] = ()
    backends: tuple[BackendState, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def collect() -> Report:
    """Looks at this installation and this machine. Takes a second or two where big packages are installed."""
    gpus, gpu_note = find_gpus()
    core, simd = _core()
    return Report(
        version=__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})",
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=_cores(),
        core=core,
        simd=simd,
        gpus=gpus,
        gpu_note=gpu_note,
        cuda_kernels=_cuda_kernels(),
        packages=tuple(_look(p) for p in OPTIONAL),
        backends=_backends(),
    )


def render(report: Report) -> str:
    """The report as text, for a terminal."""
    gpu = "\n".join(report.gpus) if report.gpus else f"none: {report.gpu_note}"
    parts = [
        f"dhead-trt {report.version}",
        facts(
            [
                ("Python", report.python),
                ("System", report.platform),
                ("CPU", f"{report.cpu}, {report.cores} core{'s' if report.cores != 1 else ''} for this process"),
                ("GPU", gpu),
                ("Decode on the CPU", report.core),
                ("Decode on the GPU", report.cuda_kernels),
            ],
            indent="  ",
        ),
        "",
        "Backends",
        table(
            ["backend", "builds here", "runs here", "because"],
            [[b.name, _yes(b.can_build), _yes(b.can_run), b.reason] for b in report.backends],
            wrap=True,
            indent="  ",
        ),
        "",
        "Optional packages",
        table(
            ["package", "version", "for"],
            [[p.name, _state(p), p.adds] for p in report.packages],
            wrap=True,
            indent="  ",
        ),
    ]
    missing = [p for p in report.packages if p.version is None or p.problem]
    if missing:
        extras: dict[str, list[str]] = {}
        for p in missing:
            extras.setdefault(p.extra, []).append(p.adds)
        parts += ["", "What the missing packages would add"]
        parts.append(
            facts([(f'pip install "dhead-trt[{e}]"', "\n".join(adds)) for e, adds in extras.items()], indent="  ")
        )
    return "\n".join(parts)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _state(p: Package) -> str:
    if p.problem:
        return f"{p.version or '?'} (broken: {p.problem})"
    return p.version or "not installed"


def _look(p: Package) -> Package:
    """Fills in the version of an optional package, and the problem if it is there but does not import."""
    try:
        found = importlib.util.find_spec(p.module) is not None
    except (ImportError, ValueError, AttributeError):
        found = False
    if not found:
        return p
    version = package_version(p.name) or package_version(p.module)
    try:
        module = importlib.import_module(p.module)
    except Exception as e:
        return Package(p.name, p.module, p.extra, p.adds, version, f"{type(e).__name__}: {_first_line(e)}")
    version = version or str(getattr(module, "__version__", "unknown version"))
    return Package(p.name, p.module, p.extra, p.adds, version)


def package_version(name: str) -> str | None:
    """The version of an installed distribution, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _core() -> tuple[str, tuple[str, ...]]:
    try:
        from .postprocess import simd_levels

        levels = tuple(simd_levels())
    except Exception as e:
        return f"broken: {type(e).__name__}: {_first_line(e)}", ()
    return f"compiled, uses {levels[-1]} (has {', '.join(levels)})", levels


def _cuda_kernels() -> str:
    try:
        if importlib.util.find_spec("dhead_trt._cuda") is None:
            return "not compiled into this installation"
        importlib.import_module("dhead_trt._cuda")
    except Exception as e:
        return f"compiled, does not load: {type(e).__name__}: {_first_line(e)}"
    return "compiled" if find_gpus()[0] else "compiled; there is no GPU to run it on"


def _backends() -> tuple[BackendState, ...]:
    from .backends import BACKENDS, get_backend

    def state(name: str) -> BackendState:
        try:
            a = get_backend(name).availability()
        except Exception as e:  # a broken installation of a third party's can raise anything
            why = str(e) if isinstance(e, DheadError) else f"broken: {type(e).__name__}: {_first_line(e)}"
            return BackendState(name, False, False, why)
        return BackendState(name, a.can_build, a.can_run, a.reason)

    return tuple(state(name) for name in BACKENDS)


def find_gpus() -> tuple[tuple[str, ...], str]:
    """One line for each NVIDIA GPU, or the reason why none is seen."""
    release = Path("/etc/nv_tegra_release")
    if release.is_file():
        return (f"Jetson: {_first_line(release.read_text(errors='replace'))}",), ""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return (), "no NVIDIA driver (nvidia-smi is not here)"
    query = [smi, "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        return (), f"nvidia-smi failed: {_first_line(e)}"
    lines = [line.split(", ") for line in out.stdout.splitlines() if line.count(", ") >= 3]
    if out.returncode or not lines:
        return (), f"nvidia-smi: {_first_line(out.stdout + out.stderr) or f'exit status {out.returncode}'}"
    return tuple(f"{n}, compute capability {cc}, driver {d}, {m}" for n, cc, d, m, *_ in lines), ""


def cpu_name() -> str:
    """The model of the CPU as its maker writes it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_line(problem: object) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else ""
