"""Triton model repositories: their files, checked against Triton's own schema, and a real server that serves them.

The server is the one inside the PyPI package nvidia-pytriton (2.51, Python backend only): what runs is the pipeline,
and an ensemble whose network is our EngineModel in the place of Triton's TensorRT backend. `make test-serving` runs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import serving_env
import small_models
from dhead_trt import cli, postprocess
from dhead_trt.artifact import Artifact, FileRecord, TensorInfo
from dhead_trt.build import build
from dhead_trt.detections import Detections
from dhead_trt.detector import Detector
from dhead_trt.engine import Engine
from dhead_trt.errors import InputError
from dhead_trt.letterbox import letterbox
from dhead_trt.serving import Repository, triton_models, write_repository

pytest.importorskip("openvino", reason="OpenVINO is not installed")

CONF = 0.6
NAMES = ("car", "bus", 'a "quoted" name', "vélo", "dog")
PYTRITON = "nvidia-pytriton==0.7.0"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = serving_env.scratch("dhead-triton-")
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def plan(folder: Path) -> Path:
    made = Artifact.load(small_models.openvino_plan(folder / "plans" / "small", image_size=(256, 320), batch=(1, 4, 8)))
    assert made.spec is not None
    replace(made, spec=replace(made.spec, names=NAMES)).save()
    return made.plan


@pytest.fixture(scope="module")
def images(folder: Path) -> list[Path]:
    (folder / "images").mkdir()
    paths = []
    for seed in range(12):
        size = (240, 320) if seed % 2 else (90 + 31 * seed, 333 - 17 * seed)
        paths.append(folder / "images" / f"{seed}.png")
        small_models.picture(size, seed).save(paths[-1])
    return paths


def tensorrt_artifact(plan: Path, folder: Path, **changes: Any) -> Artifact:
    """A sidecar as the TensorRT backend writes it, beside a file that is no plan."""
    source = Artifact.load(plan)
    path = folder / "street.engine"
    path.write_bytes(b"a TensorRT plan")
    record = FileRecord(path.name, 15, hashlib.sha256(b"a TensorRT plan").hexdigest())
    made = replace(source, plan=path, backend="tensorrt", files=(record,), gpu="GPU", **changes)
    made.save()
    return made


# -- files -------------------------------------------------------------------------------------------------------------


def listing(path: Path) -> set[str]:
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def test_files_of_a_pipeline(plan: Path, tmp_path: Path) -> None:
    made = write_repository(plan, tmp_path / "models", name="street", instances=3, threads=2, gpus=(), max_queue=7)
    assert made.models == ("street",)
    assert listing(made.path) == {
        "street/config.pbtxt", "street/README.md", "street/labels.txt", "street/warmup/image", "street/1/model.py",
        "street/1/small.xml", "street/1/small.bin", "street/1/small.json",
    }  # fmt: skip
    text = (made.path / "street" / "config.pbtxt").read_text()
    for part in ('backend: "python"', "max_batch_size: 8", "count: 3 kind: KIND_CPU", "max_queue_size: 7"):
        assert part in text
    assert (made.path / "street" / "labels.txt").read_text(encoding="utf-8").split("\n")[:-1] == list(NAMES)
    copied = Artifact.load(made.path / "street" / "1" / "small.xml")
    assert copied.spec is not None
    assert copied.spec.names == NAMES


def test_one_instance_has_no_bound_on_its_queue_unless_asked(plan: Path, tmp_path: Path) -> None:
    """Triton's batcher stalls with both; see docs/serving.md."""
    made = write_repository(plan, tmp_path, name="a", instances=1)
    assert "queue_policy" not in (made.path / "a" / "config.pbtxt").read_text()
    assert not any("half a second" in n for n in made.notes)
    made = write_repository(plan, tmp_path, name="b", instances=1, max_queue=9)
    assert "max_queue_size: 9" in (made.path / "b" / "config.pbtxt").read_text()
    assert any("half a second" in n for n in made.notes)
    made = write_repository(plan, tmp_path, name="c")
    assert "max_queue_size: 64" in (made.path / "c" / "config.pbtxt").read_text()


def test_files_of_a_tensorrt_ensemble(plan: Path, tmp_path: Path) -> None:
    artifact = tensorrt_artifact(plan, tmp_path)
    made = write_repository(artifact, tmp_path / "models", instances=2, gpus=(0, 1), image="pixels")
    assert made.models == ("street", "street_letterbox", "street_network", "street_detect")
    network = (made.path / "street_network" / "config.pbtxt").read_text()
    for part in (
        'platform: "tensorrt_plan"', 'default_model_filename: "street.engine"', "count: 2 kind: KIND_GPU gpus: [0, 1]",
        "dynamic_batching", "model_warmup",
    ):  # fmt: skip
        assert part in network
    assert (made.path / "street_network" / "1" / "street.engine").read_bytes() == b"a TensorRT plan"
    assert not (made.path / "street_network" / "1" / "model.py").exists()
    assert not any("plugin" in note for note in made.notes)
    before = (made.path / "street_letterbox" / "config.pbtxt").read_text()
    assert "count: 2 kind: KIND_CPU" in before
    assert "dims: [ -1, -1, 3 ]" in before


def test_plans_with_our_operators_say_how_to_load_them(plan: Path, tmp_path: Path) -> None:
    source = Artifact.load(plan)
    boxes = replace(source.outputs[0], name="boxes", shape=(-1, 1680, 4))
    scores = replace(boxes, name="scores", shape=(-1, 1680, small_models.CLASSES))
    artifact = tensorrt_artifact(plan, tmp_path, form="decoded", outputs=(boxes, scores))
    made = write_repository(artifact, tmp_path / "models")
    assert any("libdhead_trt_plugins.so" in note for note in made.notes)
    assert "LD_PRELOAD" in (made.path / "street" / "README.md").read_text()


def test_two_models_share_a_repository_and_none_is_replaced(plan: Path, tmp_path: Path) -> None:
    write_repository(plan, tmp_path, name="a")
    write_repository(plan, tmp_path, name="b", layout="ensemble")
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"models of these names.*b_network"):
        write_repository(plan, tmp_path, name="b", layout="ensemble")
    with pytest.raises(InputError, match="models of these names"):
        write_repository(plan, tmp_path, name="a")
    assert listing(tmp_path) == before


def test_refusals(plan: Path, tmp_path: Path) -> None:
    source = Artifact.load(plan)
    for options, message in (
        ({"name": "a b"}, "name does not do"),
        ({"name": "../x"}, "name does not do"),
        ({"layout": "tower"}, "no such layout"),
        ({"max_batch": 0.5}, "max_batch is out of range"),
        ({"instances": 0}, "instances is out of range"),
        ({"threads": -1}, "threads is out of range"),
        ({"delay_us": -1}, "delay_us is out of range"),
        ({"max_queue": -1}, "max_queue is out of range"),
        ({"max_det": 0}, "max_det is out of range"),
        ({"conf": float("nan")}, "conf is out of range"),
        ({"iou": 1.5}, "iou is out of range"),
    ):
        with pytest.raises(InputError, match=message):
            write_repository(plan, tmp_path / "models", **options)
    artifact = tensorrt_artifact(plan, tmp_path)
    with pytest.raises(InputError, match="batches do not fit"):
        write_repository(artifact, tmp_path / "models", max_batch=16)
    with pytest.raises(InputError, match="no backend for TensorRT for RTX"):
        write_repository(replace(artifact, backend="tensorrt_rtx"), tmp_path / "models")
    features = replace(source.inputs[0], shape=(-1, 16, 32, 40), profile=None)
    with pytest.raises(InputError, match="does not take images"):
        write_repository(replace(source, inputs=(features,)), tmp_path / "models")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_repository(plan, tmp_path / "file")
    assert not (tmp_path / "models").exists()


def test_command(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["triton-repo", str(plan), "-o", str(tmp_path / "models"), "--name", "cam", "--instances", "2"]
    assert cli.main([*arguments, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["models"] == ["cam"]
    assert "tritonserver --model-repository=" in err
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: The repository has models of these names: received cam.")


class Utilities(ModuleType):
    """What the models use of Triton's own module, which exists only inside its server."""

    class TritonError(Exception):
        """With a code."""

        INVALID_ARG = 3

        def __init__(self, message: str, code: int | None = None) -> None:
            super().__init__(message)
            self.code = code

    class Tensor:
        """A named array."""

        def __init__(self, name: str, array: np.ndarray) -> None:
            self.name, self.array = name, array

        def as_numpy(self) -> np.ndarray:
            return self.array

    class InferenceResponse:
        """Tensors or an error."""

        def __init__(self, tensors: Any = (), error: Any = None) -> None:
            self.arrays, self.error = {t.name: t.array for t in tensors}, error

    class Request:
        """Arrays by name, and parameters."""

        def __init__(self, parameters: str = "", **arrays: np.ndarray) -> None:
            self.arrays, self.text = arrays, parameters

        def parameters(self) -> str:
            return self.text

    @classmethod
    def get_input_tensor_by_name(cls, request: Any, name: str) -> Any:
        return cls.Tensor(name, request.arrays[name])


@pytest.mark.parametrize("form", ["raw", "decoded", "detections"])
def test_last_step_for_every_form_of_plan(
    plan: Path, folder: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """What a TensorRT plan gives, in each form, becomes what the Detector gives; here without a server and a GPU."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Utilities("triton_python_backend_utils"))
    source = Artifact.load(plan)
    with Image.open(images[1]) as image:
        pixels = np.asarray(image.convert("RGB"))
    canvas, _ = letterbox(pixels, (256, 320))
    batch = np.stack([canvas, canvas[:, ::-1].copy()])
    spec = source.spec
    assert spec is not None
    with Engine(plan, output="raw") as engine:
        maps = engine.infer(batch)
    outputs = source.outputs
    if form == "decoded":
        boxes, scores = postprocess.decode(maps, spec)
        maps = {"boxes": boxes, "scores": scores}
    elif form == "detections":
        found = postprocess.detect(maps, spec, conf=CONF)._asdict()
        maps = {n: found[n] for n in ("num_dets", "det_boxes", "det_scores", "det_classes")}
    if form != "raw":
        outputs = tuple(TensorInfo(n, a.dtype.name, (-1, *a.shape[1:])) for n, a in maps.items())
    artifact = tensorrt_artifact(plan, tmp_path, form=form, outputs=outputs)
    made = write_repository(artifact, tmp_path / "models", conf=CONF, image="pixels")
    home = made.path / "street_detect"
    text = (home / "config.pbtxt").read_text()
    parameters = dict(re.findall(r'parameters \{ key: "(\w+)" value: \{ string_value: "([^"]*)" \} \}', text))
    config = {
        "parameters": {k: {"string_value": v} for k, v in parameters.items()},
        "input": [{"name": n} for n in (*maps, "source_size")],
        "output": [{"name": n} for n in ("num_dets", "det_boxes", "det_scores", "det_classes")],
    }
    model = triton_models.DetectModel()
    model.initialize({"model_config": json.dumps(config), "model_repository": str(home), "model_version": "1"})
    sizes = np.array([pixels.shape[:2]] * 2, np.int32)
    assert ('parameters={"conf"' in (made.path / "street" / "README.md").read_text()) == (form != "detections")
    assert any("holds conf, iou and its 300 rows" in note for note in made.notes) == (form == "detections")
    good = Utilities.Request('{"camera": "7"}', source_size=sizes, **maps)
    wrong = Utilities.Request('{"conf": 7}', source_size=sizes, **maps)
    other = Utilities.Request('{"conf": 0.8}', source_size=sizes, **maps)
    answers = model.execute([good, wrong, other])
    with Detector(plan, conf=CONF) as detector:
        same(answers[0].arrays, 0, detector(pixels), pixels=0.02)
        assert int(answers[0].arrays["num_dets"][1, 0]) > 0
        if form == "detections":
            assert "holds its thresholds" in str(answers[2].error)
        else:
            same(answers[2].arrays, 0, detector(pixels, conf=0.8), pixels=0.02)
    assert answers[1].error.code == Utilities.TritonError.INVALID_ARG
    model.finalize()


# -- a real server -----------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running tritonserver, and the Python of its environment."""

    python: Path
    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    log: Path

    def ready(self) -> bool:
        """Whether all models are loaded."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def send(
        self, requests: list[dict[str, Any]], folder: Path, threads: int = 1
    ) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
        """The record, and each request's arrays."""
        job = {
            "http": f"127.0.0.1:{self.http}", "grpc": f"127.0.0.1:{self.grpc}", "threads": threads, "requests": requests
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))
        client = Path(__file__).with_name("triton_client.py")
        serving_env.run(self.python, client, folder / "job.json", folder / "out.npz", seconds=300)
        with np.load(folder / "out.npz") as data:
            record = json.loads(str(data["record"]))
            answers: list[dict[str, np.ndarray]] = [{} for _ in requests]
            for key in data.files:
                index, _, name = key.partition("/")
                if name:
                    answers[int(index)][name] = data[key]
        return record, answers


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def triton() -> Path:
    """The Python of an environment with the server."""
    if sys.platform != "linux":
        pytest.skip("nvidia-pytriton is for Linux")
    python = serving_env.environment("triton", PYTRITON, "tritonclient[http,grpc]")
    library = Path(sysconfig.get_config_var("LIBDIR") or "") / (sysconfig.get_config_var("INSTSONAME") or "none")
    if ".so" not in library.name or not library.exists():
        pytest.skip(f"Triton's Python backend needs this Python's libpython, and there is no {library.name}")
    stub = site_packages(python) / "pytriton/tritonserver/python_backend_stubs" / "{}.{}".format(*sys.version_info[:2])
    if not stub.exists():
        pytest.skip(f"Triton's Python backend has no stub for Python {stub.name}")
    return python


def site_packages(python: Path) -> Path:
    return python.parent.parent / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"


def start(python: Path, repository: Path, work: Path) -> Server:
    """A server of the repository.

    The Python backend's stub embeds Python: it takes libpython from the loader's path, the environment from the
    `python3` of PATH, and ignores PYTHONPATH. If the two are of different builds, imports fail in odd ways. The folder
    of the backend itself is on its path, so the package under test is put there.
    """
    site = site_packages(python)
    dist = site / "pytriton" / "tritonserver"
    backend = work / "backends" / "python"
    if not backend.exists():
        shutil.copytree(dist / "backends" / "python", backend)
        stub = dist / "python_backend_stubs" / "{}.{}".format(*sys.version_info[:2]) / "triton_python_backend_stub"
        shutil.copy(stub, backend / stub.name)
        (backend / stub.name).chmod(0o755)
        serving_env.package_under_test(backend)
    http, grpc = free_port(), free_port()
    env = serving_env.plain(
        PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        LD_LIBRARY_PATH=f"{sysconfig.get_config_var('LIBDIR')}:{site / 'nvidia_pytriton.libs'}",
        OMP_NUM_THREADS="2",
    )
    command = [
        dist / "bin" / "tritonserver", f"--model-repository={repository}", f"--backend-directory={work / 'backends'}",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", f"--http-port={http}", f"--grpc-port={grpc}",
        "--allow-metrics=false",
    ]  # fmt: skip
    log = work / "triton.log"
    with log.open("wb") as out:
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT, env=env)
    server = Server(python, process, http, grpc, log)
    for _ in range(600):
        if process.poll() is not None:
            break
        if server.ready():
            return server
        time.sleep(0.2)
    process.kill()
    raise AssertionError(f"tritonserver did not start:\n{log.read_text(errors='replace')[-6000:]}")


@pytest.fixture(scope="module")
def repository(plan: Path, folder: Path, doclaynet: Path) -> Repository:
    """Four models in one repository: pipelines of two engines, an ensemble, and one with a queue of two."""
    models = folder / "models"
    page = build(doclaynet, "openvino", output=folder / "plans" / "page", verify=False).plan
    write_repository(page, models, threads=2)
    write_repository(plan, models, name="narrow", instances=2, threads=1, max_queue=2, max_batch=1, delay_us=0)
    write_repository(plan, models, name="steps", layout="ensemble", image="pixels", threads=1, conf=CONF)
    return write_repository(plan, models, name="whole", instances=2, threads=1, delay_us=20_000, conf=CONF)


@pytest.fixture(scope="module")
def server(triton: Path, repository: Repository, folder: Path) -> Iterator[Server]:
    running = start(triton, repository.path, folder)
    yield running
    running.process.send_signal(signal.SIGINT)
    try:
        running.process.wait(60)
    finally:
        running.process.kill()


@pytest.fixture(scope="module")
def detector(plan: Path) -> Iterator[Detector]:
    with Detector(plan, threads=1, conf=CONF) as d:
        yield d


def request(model: str, image: Path | list[Path], protocol: str = "http", **parameters: Any) -> dict[str, Any]:
    paths = image if isinstance(image, list) else [image]
    kind = "pixels" if model == "steps" else "encoded"
    return {
        "protocol": protocol, "model": model, "kind": kind, "images": [str(p) for p in paths], "parameters": parameters
    }  # fmt: skip


def same(answer: dict[str, np.ndarray], slot: int, expected: Detections, pixels: float = 0.01) -> None:
    """An answer's row is the Detector's result; batches of other sizes may differ in the last bits."""
    count = int(answer["num_dets"][slot, 0])
    assert count == len(expected)
    np.testing.assert_allclose(answer["det_boxes"][slot, :count], expected.xyxy, atol=pixels)
    np.testing.assert_allclose(answer["det_scores"][slot, :count], expected.confidence, atol=1e-4)
    assert np.array_equal(answer["det_classes"][slot, :count], expected.class_id)
    assert not answer["det_boxes"][slot, count:].any()
    assert not answer["det_scores"][slot, count:].any()
    assert (answer["det_classes"][slot, count:] == -1).all()


serving = pytest.mark.serving


@serving
def test_configurations_fit_tritons_schema(triton: Path, plan: Path, tmp_path: Path) -> None:
    """Every field of every config.pbtxt is one that Triton knows, also of those that cannot run here."""
    models = tmp_path / "models"
    write_repository(plan, models, name="whole", timeout_us=5000)
    write_repository(plan, models, name="steps", layout="ensemble")
    write_repository(tensorrt_artifact(plan, tmp_path), models, gpus=(0,), image="pixels")
    code = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
print(json.dumps([json_format.MessageToDict(
    text_format.Parse(open(p).read(), model_config_pb2.ModelConfig()), preserving_proto_field_name=True)
    for p in sys.argv[1:]]))
"""
    files = sorted(models.glob("*/config.pbtxt"))
    assert len(files) == 9
    parsed = {c["name"]: c for c in json.loads(serving_env.run(triton, "-c", code, *files))}
    network = parsed["street_network"]
    assert network["platform"] == "tensorrt_plan"
    assert network["instance_group"] == [{"count": 2, "gpus": [0], "kind": "KIND_GPU"}]
    assert network["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 64
    assert parsed["whole"]["dynamic_batching"]["default_queue_policy"]["default_timeout_microseconds"] == "5000"
    made = {t for step in parsed["steps"]["ensemble_scheduling"]["step"] for t in step["output_map"].values()}
    used = {t for step in parsed["steps"]["ensemble_scheduling"]["step"] for t in step["input_map"].values()}
    assert used - made == {"image"}
    assert made - used == {o["name"] for o in parsed["steps"]["output"]}


@serving
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_real_model_gives_what_the_detector_gives(
    server: Server, folder: Path, sample_page: Path, tmp_path: Path, protocol: str
) -> None:
    requests = [request("page", sample_page, protocol), request("page", sample_page, protocol, conf=0.6, iou="0.5")]
    _, answers = server.send(requests, tmp_path)
    with Detector(folder / "plans" / "page.xml", threads=2) as detector:
        same(answers[0], 0, detector(sample_page), pixels=1e-3)
        same(answers[1], 0, detector(sample_page, conf=0.6, iou=0.5), pixels=1e-3)
        assert len(detector(sample_page)) > 25


@serving
@pytest.mark.parametrize("model", ["whole", "steps"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_under_load(
    server: Server, detector: Detector, images: list[Path], tmp_path: Path, model: str, protocol: str
) -> None:
    """Sixteen clients, images of many sizes, thresholds of their own: each gets its own answer."""
    requests = [request(model, images[i % 12], protocol, **({"conf": 0.8} if i % 3 == 0 else {})) for i in range(160)]
    before = statistics(server, tmp_path, model)
    record, answers = server.send(requests, tmp_path, threads=16)
    for i, (told, answer) in enumerate(zip(record["requests"], answers, strict=True)):
        assert told["error"] is None
        same(answer, 0, detector(images[i % 12], **({"conf": 0.8} if i % 3 == 0 else {})))
    counted = "steps_network" if model == "steps" else model
    after = statistics(server, tmp_path, counted)
    if model == "whole":
        images_run = after[0] - before[0]
        batches = after[1] - before[1]
        assert images_run == 160
        assert batches < 160  # Triton made batches
    assert sum(len(detector(p)) for p in images) > 30


def statistics(server: Server, folder: Path, model: str) -> tuple[int, int]:
    """(images, executions) of a model so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.http}/v2/models/{model}/stats", timeout=30) as answer:
        (stats,) = json.load(answer)["model_stats"]
    return int(stats["inference_count"]), int(stats["execution_count"])


@serving
def test_batches_of_a_client(server: Server, detector: Detector, images: list[Path], tmp_path: Path) -> None:
    alike = [p for i, p in enumerate(images) if i % 2][:5]  # of one size, as pixels must be
    for model in ("whole", "steps"):
        _, (answer,) = server.send([request(model, alike)], tmp_path)
        assert answer["det_boxes"].shape == (5, 300, 4)
        for slot, path in enumerate(alike):
            same(answer, slot, detector(path))


@serving
def test_errors_are_of_one_request(server: Server, detector: Detector, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.png").write_bytes(images[1].read_bytes()[:300])
    good = request("whole", images[1])
    bad = [
        (request("whole", tmp_path / "text.png"), "not an image"),
        (request("whole", tmp_path / "half.png"), "damaged"),
        (request("whole", [images[1], tmp_path / "text.png"]), "not an image"),
        (request("whole", images[1], conf=2), "conf is out of range"),
        (request("whole", images[1], iou="a lot"), "iou is not a number"),
        (request("steps", images[1], conf=-1), "conf is out of range"),
    ]
    requests = [r for wrong, _ in bad * 4 for r in (good, wrong)]
    record, answers = server.send(requests, tmp_path, threads=8)
    for i, told in enumerate(record["requests"]):
        if i % 2 == 0:
            assert told["error"] is None
            same(answers[i], 0, detector(images[1]))
        else:
            assert bad[i // 2 % len(bad)][1] in told["error"]
            assert str(tmp_path) not in told["error"]


@serving
def test_a_full_queue_refuses_at_once(server: Server, detector: Detector, images: list[Path], tmp_path: Path) -> None:
    """Back-pressure: of 200 requests on a queue of two some are refused, and the others answered rightly."""
    requests = [request("narrow", images[i % 12], conf=CONF) for i in range(200)]
    record, answers = server.send(requests, tmp_path, threads=32)
    refused = [t["error"] for t in record["requests"] if t["error"] is not None]
    assert 0 < len(refused) < 200
    assert all("Exceeds maximum queue size" in e for e in refused)
    for i, told in enumerate(record["requests"]):
        if told["error"] is None:
            same(answers[i], 0, detector(images[i % 12]))


@serving
def test_server_ends_cleanly(server: Server) -> None:
    """Last of this file: all models were loaded and warmed up, and Ctrl-C unloads them."""
    assert server.ready()
    log = server.log.read_text(errors="replace")
    for model in ("page", "narrow", "steps", "steps_letterbox", "steps_network", "steps_detect", "whole"):
        assert f"successfully loaded '{model}'" in log
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    assert "successfully unloaded 'whole'" in server.log.read_text(errors="replace")
