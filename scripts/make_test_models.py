"""Exports the ONNX models that the surgery tests meet: Ultralytics heads of several versions, and what is refused.

    python scripts/make_test_models.py            # prints the folder; reuses what is complete

Ultralytics (AGPL-3.0) is a test tool here, never a dependency: it is installed without its dependencies into folders
of its own under the cache ($DHEAD_CACHE or ~/.cache/dhead_trt), beside a stand-in for torchvision, and runs in child
processes. The models have random weights (seeded, with perturbed norms and scaled last layers, so that their outputs
are not flat) from Ultralytics' own YAML files; nothing of it is committed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NEW = "8.4.190"
OLD = ("8.0.196", "8.1.0", "8.2.0", "8.3.0")  # their tail: Concat(box, cls) per level → Concat → Split
DEPENDENCIES = (
    "pyyaml", "opencv-python-headless", "psutil", "tqdm", "requests", "urllib3", "idna", "certifi",
    "charset-normalizer", "onnxslim==0.1.98", "colorama",
    "pandas", "python-dateutil", "six", "pytz", "tzdata", "py-cpuinfo",
)  # fmt: skip
STANDIN = """
class _Anything:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self
    def __call__(self, *args, **options):
        return self
    def __mro_entries__(self, bases):
        return (object,)
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything()
"""
STANDINS = ("torchvision", "torchvision/transforms", "torchvision/ops", "seaborn", "thop", "hub_sdk", "hub_sdk/config")
# Some version imports them at its start; none is used in an export. (PyPI's torchvision needs CUDA libraries.)
PROCESSES = 2
CHILD = "# ---- in the child process, which alone imports ultralytics ----"


class MakeError(Exception):
    """The models cannot be made here (no network, no torch, …)."""


def jobs() -> dict[str, dict[str, Any]]:
    """Every model by name: version, YAML, export arguments, and how the model differs from the YAML."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, model: str, *, version: str = NEW, **options: Any) -> None:
        found[name] = {"version": version, "model": model, "width": 0.125, "imgsz": 64} | options

    families = {"v8": "yolov8n", "v9": "yolov9t", "v10": "yolov10n", "v11": "yolo11n", "v12": "yolo12n"}
    for short, model in families.items():
        raw: dict[str, Any] = {"nms": None} if short == "v10" else {}
        narrow = None if short == "v12" else 0.125  # its attention needs the width
        for suffix, opset, slim, dynamic in (
            ("op12", 12, False, False),
            ("op12-slim", 12, True, False),
            ("op17-slim", 17, True, False),
            ("dynamic-op17", 17, False, True),
            ("dynamic-op12-slim", 12, True, True),
            ("batch-op17-slim", 17, True, True),
        ):
            args = {"opset": opset, "simplify": slim, "dynamic": dynamic} | raw
            add(f"{short}-{suffix}", model, width=narrow, args=args, only_batch=suffix.startswith("batch"))
        add(f"{short}-op17", model, width=None, args={"opset": 17, "simplify": False} | raw)
    for classes in (1, 2, 64, 68, 147):  # 64 = 4·16 box channels; 64 + 4 = 68 output rows
        add(f"v8-classes{classes}", "yolov8n", nc=classes, args={"opset": 17, "simplify": False})
    add("v8-half", "yolov8n", args={"opset": 17, "simplify": True, "half": True})
    add("v11-half-dynamic", "yolo11n", args={"opset": 17, "simplify": False, "half": True, "dynamic": True})
    add("v8-rect-batch2", "yolov8n", imgsz=[64, 160], args={"opset": 17, "simplify": True, "batch": 2})
    add("v8-p2", "yolov8n-p2", args={"opset": 17, "simplify": True})
    add("v8-p6", "yolov8n-p6", args={"opset": 17, "simplify": True}, imgsz=128)
    add("v8-p6-dynamic", "yolov8n-p6", args={"opset": 17, "simplify": False, "dynamic": True}, imgsz=128)
    add("v8-reg8", "yolov8n", reg_max=8, args={"opset": 17, "simplify": True})
    for name, model, args in (
        ("refuse-26", "yolo26n", {"nms": None}),
        ("refuse-26-end2end", "yolo26n", {"nms": False}),
        ("refuse-v10-end2end", "yolov10n", {"nms": False}),
        ("refuse-obb", "yolov8n-obb", {}),
        ("refuse-11-obb", "yolo11n-obb", {}),
        ("refuse-pose", "yolov8n-pose", {}),
        ("refuse-seg", "yolov8n-seg", {}),
        ("refuse-cls", "yolov8n-cls", {}),
    ):
        add(name, model, args={"opset": 17, "simplify": False} | args)
    for version in OLD:
        for suffix, args in (
            ("op12", {"opset": 12}),
            ("op17", {"opset": 17}),
            ("dynamic-op17", {"opset": 17, "dynamic": True}),
        ):
            add(f"v8-{version}-{suffix}", "yolov8n", version=version, args={"simplify": False} | args, optional=True)
    return found


def cache_folder() -> Path:
    """Where everything goes."""
    return Path(os.environ.get("DHEAD_CACHE") or Path.home() / ".cache" / "dhead_trt") / "ultralytics"


def recipe(job: dict[str, Any]) -> str:
    """Changes whenever a model would: the job, the child's half of this file, and the exporters' versions."""
    from importlib.metadata import PackageNotFoundError, version

    parts = [json.dumps(job, sort_keys=True), Path(__file__).read_text().rpartition(CHILD)[2]]
    if job.get("optional") or job["args"].get("simplify"):
        parts += [*DEPENDENCIES, STANDIN, *STANDINS]
    for package in ("torch", "onnx"):
        with contextlib.suppress(PackageNotFoundError):
            parts.append(f"{package} {version(package)}")
    return hashlib.sha256("; ".join(parts).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Those entries of the manifest that are of the present recipe, and whose model is there and whole."""
    try:
        entries: dict[str, Any] = json.loads((folder / "models" / "manifest.json").read_text())["models"]
    except (OSError, ValueError, KeyError):
        return {}
    good = {}
    for name, job in jobs().items():
        entry = entries.get(name)
        if entry is None or entry.get("recipe") != recipe(job):
            continue
        path = folder / "models" / entry.get("file", "")
        if "error" in entry or (path.is_file() and _sha256(path) == entry["sha256"]):
            good[name] = entry
    return good


def make(*, log: Any = None) -> dict[str, Any]:
    """Makes the models, or reuses them.

    Returns:
        name → {"path", "sha256", "bytes", …}, or {"error": reason} for an optional one that this machine cannot export.

    Raises:
        MakeError: they cannot be made.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        done = read_manifest(folder)
        missing = {name: job for name, job in jobs().items() if name not in done}
        if missing:
            done |= _make(folder, missing, log or (lambda text: None))
            _write(folder / "models" / "manifest.json", json.dumps({"models": done}, indent=1, sort_keys=True))
    failed = {n: e["error"] for n, e in done.items() if "error" in e and not e.get("optional")}
    if failed:
        raise MakeError("; ".join(f"{n}: {e}" for n, e in failed.items()))
    return {
        name: entry if "error" in entry else entry | {"path": folder / "models" / entry["file"]}
        for name, entry in done.items()
    }


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text)
    os.replace(temporary, path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        try:
            import fcntl
        except ImportError:  # Windows: tests there run in one process
            yield
            return
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make(folder: Path, todo: dict[str, dict[str, Any]], log: Any) -> dict[str, Any]:
    """Exports the models of `todo` in PROCESSES lanes; name → manifest entry."""
    started = time.monotonic()
    _install(folder, log)
    (folder / "models").mkdir(exist_ok=True)
    queues: list[dict[str, dict[str, Any]]] = [{} for _ in range(PROCESSES)]
    for i, name in enumerate(sorted(todo)):
        queues[i % PROCESSES][name] = todo[name]
    running = []
    for i, queue in enumerate(queues):
        for version in (NEW, *OLD):
            batch = {n: j for n, j in queue.items() if j["version"] == version}
            if batch:
                running.append((i, version, batch))
    results: dict[str, Any] = {}
    lanes: list[list[tuple[int, str, dict[str, Any]]]] = [[r for r in running if r[0] == i] for i in range(PROCESSES)]
    children: dict[int, tuple[subprocess.Popen[str], str, dict[str, Any], Path]] = {}
    while any(lanes) or children:
        for i, lane in enumerate(lanes):
            if i not in children and lane:
                _, version, batch = lane.pop(0)
                children[i] = _start(folder, version, batch)
        for i, (child, version, batch, out) in list(children.items()):
            if child.poll() is None:
                continue
            del children[i]
            log(f"{version}: {len(batch)} models, {time.monotonic() - started:.0f} s")
            results |= _collect(folder, batch, out, child)
        time.sleep(0.05)
    return results


def _install(folder: Path, log: Any) -> None:
    """Installs each version into its own folder, without dependencies."""
    wanted = {"dependencies": DEPENDENCIES} | {v: (f"ultralytics=={v}",) for v in (NEW, *OLD)}
    for name, packages in wanted.items():
        target = folder / "sites" / name
        marker = target / ".packages"
        if marker.is_file() and marker.read_text() == " ".join(packages):
            continue
        shutil.rmtree(target, ignore_errors=True)
        log(f"installing {' '.join(packages)}")
        part = Path(tempfile.mkdtemp(dir=folder))
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-input"]
        command = [*pip, "--target", str(part), *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(part, ignore_errors=True)
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
            raise MakeError(f"pip could not install {' '.join(packages)}: {reason[:300]}")
        (part / ".packages").write_text(" ".join(packages))
        target.parent.mkdir(exist_ok=True)
        os.replace(part, target)
    standins = folder / "sites" / "standins"
    for name in STANDINS:
        package = standins / name
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text('__version__ = "0.28.0"\n' + STANDIN)
    info = standins / "torchvision-0.28.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")


def _start(
    folder: Path, version: str, batch: dict[str, Any]
) -> tuple[subprocess.Popen[str], str, dict[str, Any], Path]:
    out = Path(tempfile.mkdtemp(dir=folder))
    (out / "jobs.json").write_text(json.dumps(batch))
    sites = folder / "sites"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(sites / s) for s in (version, "dependencies", "standins")),
        "YOLO_CONFIG_DIR": str(out),
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "0",
        "YOLO_VERBOSE": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
    log = (out / "log").open("w")
    child = subprocess.Popen(command, cwd=out, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
    log.close()
    return child, version, batch, out


def _collect(folder: Path, batch: dict[str, Any], out: Path, child: subprocess.Popen[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, job in batch.items():
        path = out / f"{name}.onnx"
        if path.is_file():
            results[name] = {"file": path.name, "sha256": _sha256(path), "bytes": path.stat().st_size}
            os.replace(path, folder / "models" / path.name)
        else:
            error = out / f"{name}.error"
            lines = (error if error.is_file() else out / "log").read_text().strip().splitlines()
            results[name] = {"error": f"rc {child.returncode}: {lines[-1][:300] if lines else 'no output'}"}
        seconds = out / f"{name}.seconds"
        results[name] |= {"recipe": recipe(job), "seconds": float(seconds.read_text()) if seconds.is_file() else None}
        results[name] |= job
    shutil.rmtree(out, ignore_errors=True)
    return results


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- in the child process, which alone imports ultralytics ----


def worker() -> None:
    """Exports the jobs of jobs.json into the current folder."""
    import torch

    torch.set_num_threads(1)
    original = torch.onnx.export
    only_batch = False

    def export(*args: Any, **options: Any) -> Any:
        options.setdefault("dynamo", False)
        if only_batch and options.get("dynamic_axes"):
            options["dynamic_axes"] = {k: {0: "batch"} for k in options["dynamic_axes"]}
        return original(*args, **options)

    torch.onnx.export = export
    for name, job in json.loads(Path("jobs.json").read_text()).items():
        only_batch = bool(job.get("only_batch"))
        started = time.monotonic()
        try:
            _export(name, job)
        except Exception as e:  # reported by the parent, which knows what is optional
            Path(f"{name}.error").write_text(f"{type(e).__name__}: {e}".replace("\n", " "))
        Path(f"{name}.seconds").write_text(f"{time.monotonic() - started:.1f}")


def _export(name: str, job: dict[str, Any]) -> None:
    import importlib

    import torch

    ultralytics, yaml = importlib.import_module("ultralytics"), importlib.import_module("yaml")
    stem: str = job["model"]
    yamls = Path(str(ultralytics.__file__)).parent.rglob("*.yaml")
    source = next(p for p in sorted(yamls) if p.stem in (stem, re.sub(r"n(?=$|-)", "", stem, count=1)))
    config = yaml.safe_load(source.read_text())
    config["nc"] = job.get("nc", config.get("nc", 80))
    if "reg_max" in job:
        config["reg_max"] = job["reg_max"]
    if job["width"] and "scales" in config:
        config["scales"]["n"][1] = job["width"]
    path = Path(f"{stem}.yaml")  # the scale "n" and the task are read from the file's name
    path.write_text(yaml.safe_dump(config))
    torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    model = ultralytics.YOLO(str(path))
    _liven(model.model)
    written = model.export(format="onnx", imgsz=job["imgsz"], **job["args"])
    os.replace(str(written), f"{name}.onnx")


def _liven(model: Any) -> None:
    """Random norms, and last layers scaled to outputs of spread 2: an untrained detector gives flat maps."""
    import torch
    from torch import nn

    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.normal_(0, 0.2)
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.7, 1.3)
    head = model.model[-1]

    def scale(module: Any, inputs: Any, output: Any) -> Any:
        factor = 2.0 / max(float(output.std()), 1e-6)
        module.weight.data.mul_(factor)
        module.bias.data.normal_(-0.5, 0.5)
        return module._conv_forward(inputs[0], module.weight, module.bias)

    plain = [(n, m) for n, m in head.named_modules() if type(m) is nn.Conv2d and m.bias is not None]
    last = [m for n, m in plain if n.split(".")[-1].isdigit()]
    hooks = [m.register_forward_hook(scale) for m in last]
    with torch.no_grad():
        model(torch.rand(1, 3, 128, 128))
    for hook in hooks:
        hook.remove()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().worker:
        worker()
        return 0
    try:
        models = make(log=lambda text: print(text, file=sys.stderr))
    except MakeError as e:
        print(f"make_test_models: {e}", file=sys.stderr)
        return 1
    for name, entry in models.items():
        print(entry.get("path") or f"{name}: not made, {entry['error']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
