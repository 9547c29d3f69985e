"""The tensorrt backend end to end, build to Engine.infer, against the stand-ins of tests/cpp/trt."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cuda_stand_in
from conftest import load_script
from dhead_trt import _batches, _device, _device_images
from dhead_trt import cuda as cuda_front
from dhead_trt.artifact import Artifact
from dhead_trt.backends import get_backend, trt_library
from dhead_trt.backends.trt_runner import device_index
from dhead_trt.build import build
from dhead_trt.cuda import Nv12
from dhead_trt.detector import Detector
from dhead_trt.engine import Engine
from dhead_trt.errors import ArtifactError, BackendUnavailable, BuildError, DheadError, InputError
from trt_standin import StandIn, header_dirs, header_major

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
import small_models as small  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trt")]


@pytest.fixture(scope="module")
def standin() -> StandIn:
    return StandIn(header_major(header_dirs()[0]))


@pytest.fixture(autouse=True)
def here(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose TensorRT and CUDA runtime are the stand-ins."""
    standin.reset()
    monkeypatch.setattr(trt_library, "modules", lambda: {standin.major: standin.module})
    monkeypatch.setattr(trt_library, "plugin_library", lambda major: None)
    monkeypatch.setattr("dhead_trt.backends.tensorrt.plugin_library", lambda major: None)
    monkeypatch.setenv("DHEAD_TENSORRT_LIBRARY_DIR", str(standin.folder))
    monkeypatch.setenv("DHEAD_CUDART_LIBRARY", standin.cudart)
    yield
    standin.reset()
    gc.collect()
    assert {kind: standin.live(kind) for kind in ("device", "pinned", "stream", "event")} == {
        "device": 0, "pinned": 0, "stream": 0, "event": 0
    }  # fmt: skip
    assert standin.get("live") == 0


@pytest.fixture(scope="module")
def model() -> bytes:
    data: bytes = small.onnx_bytes("head")
    return data


def made(model: bytes, folder: Path, **arguments: Any) -> Artifact:
    # The stand-in does not compute the graph, so the plan cannot be verified against it.
    return build(model, "tensorrt", output=folder / "e", verify=False, form="raw", **arguments)


def features(engine: Engine, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    sizes = {t.name: tuple(batch if d == -1 else d for d in t.shape) for t in engine.inputs}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in sizes.items()}


def test_availability(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    found = get_backend("tensorrt").availability()
    assert found.can_build
    assert found.can_run
    assert found.version == standin.module.HEADER_VERSION
    assert "Stand-in GPU 1 (8.9)" in found.detail["GPUs"]
    standin.cuda.standin_cuda_devices(0)
    found = get_backend("tensorrt").availability()
    assert not found.can_build
    assert "No NVIDIA GPU" in found.reason
    monkeypatch.setattr(trt_library, "modules", dict)
    found = get_backend("tensorrt").availability()
    assert "built without TensorRT's headers" in found.reason


def test_build_load_infer(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    told: list[Any] = []
    standin.set("build_steps", 5)
    artifact = made(
        model, tmp_path, batch=(1, 2, 4), precision="fp16", options={"workspace_mib": 64, "optimization_level": 1},
        progress=lambda phase, fraction: told.append((phase, fraction)),
    )  # fmt: skip
    assert artifact.backend == "tensorrt"
    assert artifact.gpu == "Stand-in GPU 0"
    assert artifact.compute_capabilities == ("8.6",)
    assert artifact.backend_version == standin.module.HEADER_VERSION
    assert standin.get("config.pool0") == 64 << 20
    fractions = [f for phase, f in told if phase == "TensorRT: building"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any("stand-in" in note for note in artifact.notes)
    with Engine(artifact.plan, output="raw") as engine:
        assert engine.device == "cuda:0 (Stand-in GPU 0, 8.6)"
        for batch in (1, 4):
            x = features(engine, batch)
            out = engine.infer(x)
            assert list(out) == [t.name for t in engine.outputs]
            total = sum(v.reshape(batch, -1)[:, :1] for v in x.values())
            for k, value in enumerate(out.values()):
                np.testing.assert_allclose(value.reshape(batch, -1)[:, :1], total + k, rtol=1e-5)
    with Engine(artifact.plan) as engine:  # the maps decoded by the CPU core
        found = engine.infer(features(engine, 2), conf=0.9)
        assert found["num_dets"].shape == (2, 1)
        with engine.profile() as profile:
            engine.infer(features(engine, 2))
        assert profile.layers == [("conv", "", 0.25), ("decode", "", 0.5)]


class Gpu:
    """A device array: memory of the stand-in."""

    def __init__(self, standin: StandIn, array: np.ndarray) -> None:
        self._cuda, pointer = standin.cuda, ctypes.c_void_p()
        assert standin.cuda.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(array.nbytes)) == 0
        self.ptr, self.shape = pointer.value, array.shape
        ctypes.memmove(self.ptr, array.ctypes.data, array.nbytes)
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self.ptr, False), "version": 3
        }  # fmt: skip

    def free(self) -> None:
        self._cuda.cudaFree(ctypes.c_void_p(self.ptr))


def test_device_arrays(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    artifact = made(model, tmp_path)
    engine = Engine(artifact.plan, output="raw", cuda_graphs=True)
    x = features(engine)
    on_device = {name: Gpu(standin, value) for name, value in x.items()}
    expected = engine.infer(x)
    copies = standin.count("copy")
    for _ in range(4):
        out = engine.infer(on_device)
    assert standin.count("copy") == copies
    for name, value in expected.items():
        np.testing.assert_array_equal(out[name].numpy(), value)
    queued = engine.infer(list(on_device.values()), stream=0)
    np.testing.assert_array_equal(queued["box_0"].numpy(), expected["box_0"])
    for asked in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match="in place"):
            queued["box_0"].__dlpack__(**asked)
    queued["box_0"].__dlpack__(copy=False, dl_device=(2, 0), max_version=(1, 0))
    with pytest.raises(InputError, match="input names do not match"):
        engine.infer({"p3": on_device["p3"]}, stream=0)
    for array in on_device.values():
        array.free()
    with pytest.raises(InputError, match="not in device memory"):
        engine.infer(on_device)
    del out, queued
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.infer(x)


def test_host_overhead_of_infer(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    """dhead_trt.Engine.infer with device arrays: at most 15 µs of host time per call."""
    engine = Engine(made(model, tmp_path).plan, output="raw")
    standin.set("delay_us", -1)
    on_device = {name: Gpu(standin, value) for name, value in features(engine).items()}
    out = engine.infer(on_device)
    standin.cuda.standin_cuda_inline(1)
    best = float("inf")
    for _ in range(30):
        started = time.perf_counter()
        for _ in range(100):
            engine.infer(on_device, out=out, stream=0)
        best = min(best, (time.perf_counter() - started) / 100)
    print(f"Engine.infer, 3 inputs, 6 outputs: {best * 1e6:.1f} µs")
    for array in on_device.values():
        array.free()
    assert best < 15e-6


def test_build_errors(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], type[DheadError], str]] = [
        ({"options": {"workspace": 3}}, BuildError, "no build option 'workspace'"),
        ({"options": {"workspace_mib": 0}}, BuildError, "not a size"),
        ({"options": {"dla_core": 0}}, BuildError, "DLA"),
        ({"options": {"device": 7}}, BuildError, "no such GPU"),
        ({"options": {"hardware": "all"}}, InputError, "hardware compatibility"),
        ({"options": {"mark_outputs": ["nothing"]}}, InputError, "mark_outputs"),
        ({"options": {"library": "/nonexistent"}}, BackendUnavailable, "/nonexistent"),
        ({"compute_capabilities": "9.0"}, BuildError, "builds for the GPU it runs on"),
    ]
    for arguments, kind, text in cases:
        with pytest.raises(kind, match=text):
            made(model, tmp_path, **arguments)
    with pytest.raises(BuildError, match="no custom operators"):
        build(model, "tensorrt", output=tmp_path / "e", form="detections", verify=False)
    standin.set("fail_build", 1)
    with pytest.raises(BuildError, match="no tactic found"):
        made(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_inner_tensors_as_outputs(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    import onnx

    inner = next(n.output[0] for n in onnx.load_from_string(model).graph.node if n.op_type == "Conv")
    backend = get_backend("tensorrt")
    from dhead_trt.backends import BuildRequest
    from dhead_trt.shapes import set_shapes

    graph, inputs = set_shapes(onnx.load_from_string(model), None, batch=1)
    request = BuildRequest(graph, inputs, "fp32", tmp_path, "e.plan", None, {"mark_outputs": [inner]}, lambda *_: None)
    assert inner in [t.name for t in backend.build(request).outputs]


def test_the_script_builds_and_compares(
    standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """scripts/build_engine.py --fp16 --backend tensorrt: the plan is there, and the parity report tells that the
    stand-in does not compute the network."""
    monkeypatch.chdir(tmp_path)
    torch.save(small.head().state_dict(), "head.pt")
    (tmp_path / "trt_small_head.py").write_text("from small_models import head\n")
    script = load_script("build_engine")
    words = ["--fp16", "--backend", "tensorrt", "--model", "head.pt", "--head", "trt_small_head:head", "-q"]
    words += ["--image-size", "64x96", "--no-verify", "--json", "made.json"]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert script.run_command(script.parser().parse_args(words)) == 1
    artifact = Artifact.load(tmp_path / "out" / "head-fp16.plan")
    assert (artifact.backend, artifact.precision, artifact.form) == ("tensorrt", "fp16", "raw")
    rungs = {r["name"]: r for r in json.loads(Path("made.json").read_text())["parity"]["rungs"]}
    assert rungs["tensorrt fp16"]["status"] == "failed"
    assert "largest box error" in rungs["tensorrt fp16"]["reason"]
    assert rungs["onnxruntime fp16"]["status"] == "passed"
    assert "Failed:" in capsys.readouterr().out


def test_layer_by_layer(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    """Every tensor becomes an output of a plan; what the stand-in gives for them is off from the first on."""
    from dhead_trt.parity import compare_layers

    artifact = made(model, tmp_path, precision="fp16", options={"optimization_level": 1})
    report = compare_layers(model, engine=artifact.plan, budget=100_000)
    assert (report.backend, report.precision) == ("tensorrt", "fp16")
    assert report.builds > 1
    assert report.first == report.layers[0]
    assert {"box_0", "cls_0", "box_2"} < {x.tensor for x in report.layers}
    assert not report.passed


def test_an_engine_of_another_place_is_refused(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    artifact = made(model, tmp_path)
    with pytest.raises(ArtifactError, match=r"another GPU.*received Stand-in GPU 1 of compute capability 8\.9"):
        Engine(artifact.plan, "cuda:1")
    for device in ("cuda:9", "tpu"):
        with pytest.raises(InputError):
            Engine(artifact.plan, device)
    sidecar = artifact.sidecar.read_text()
    artifact.sidecar.write_text(sidecar.replace(f'"{artifact.backend_version}"', '"10.0.1"'))
    with pytest.raises(ArtifactError, match="built by another version of TensorRT"):
        Engine(artifact.plan)
    artifact.sidecar.write_text(sidecar)
    with pytest.raises(InputError, match="no such option"):
        Engine(artifact.plan, speed=3)
    damaged = bytearray(artifact.plan.read_bytes())
    damaged[-3] ^= 1
    artifact.plan.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="damaged"):
        Engine(artifact.plan)
    standin.cuda.standin_cuda_devices(0)
    shutil.copy(artifact.plan, tmp_path / "copy.plan")
    with pytest.raises(ArtifactError, match="no sidecar"):
        Engine(tmp_path / "copy.plan")


def test_no_gpu(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    artifact = made(model, tmp_path)
    standin.cuda.standin_cuda_devices(0)
    with pytest.raises(BackendUnavailable, match=r"e\.plan cannot run here.*--backend openvino"):
        Engine(artifact.plan)
    with pytest.raises(BackendUnavailable, match="No NVIDIA GPU"):
        made(model, tmp_path)


def test_arrays_that_refuse_and_streams_that_are_none(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    class WithGradients:
        """As a torch tensor on a GPU that requires gradients."""

        shape = (1,)

        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, stream: int | None = None) -> Any:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with Engine(made(model, tmp_path).plan, output="raw") as engine:
        with pytest.raises(InputError, match=r"cannot be read as an array.*require gradient.*detach"):
            engine.infer([WithGradients() for _ in engine.inputs])
        on_device = {name: Gpu(standin, value) for name, value in features(engine).items()}
        for stream in (-1, "side", 1.5):
            with pytest.raises(InputError, match="not a CUDA stream"):
                engine.infer(on_device, stream=stream)
        for array in on_device.values():
            array.free()


def test_an_interrupt_at_the_end_of_a_build_is_not_lost(standin: StandIn, model: bytes, tmp_path: Path) -> None:
    standin.set("build_steps", 1)

    def interrupt(phase: str, fraction: float | None) -> None:
        if fraction is not None:
            raise KeyboardInterrupt

    for _ in range(10):  # the build has often ended before the callback is called
        with pytest.raises(KeyboardInterrupt):
            made(model, tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_library_of_the_plans_own_major_version_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        STATIC_CUDART = True

        def __init__(self, major: int, here: bool) -> None:
            self.major, self.here = major, here

        def Library(self, path: str, **_: Any) -> int:
            if not self.here:
                raise BackendUnavailable("TensorRT cannot be loaded")
            return self.major

    both = {10: Module(10, True), 11: Module(11, True)}
    monkeypatch.setattr(trt_library, "modules", lambda: both)
    assert [trt_library.open_library(major=m)[1] for m in (None, 10, 11, 9)] == [11, 10, 11, 11]
    both[10].here = False
    assert trt_library.open_library(major=10)[1] == 11


def test_device_names() -> None:
    assert [device_index(d) for d in (None, "cuda", "cuda:2", "GPU:1", "3", 4)] == [0, 0, 2, 1, 3, 4]
    for name in ("cpu", "cuda:x", "-1", ""):
        with pytest.raises(InputError, match="CUDA device"):
            device_index(name)


@pytest.fixture(scope="module")
def built_kernels(standin: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cuda_stand_in.build(tmp_path_factory.mktemp("kernels"), standin.cudart)


@pytest.fixture
def kernels(built_kernels: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real letterbox and NMS kernels on the host, in the memory and on the streams of the engine's stand-in."""
    for module in (_batches, _device, _device_images, cuda_front):
        monkeypatch.setattr(module, "cuda_module", lambda: built_kernels)
    monkeypatch.setattr(_batches, "availability", lambda: (True, ""))
    return built_kernels


def put(kernels: Any, array: np.ndarray) -> Any:
    there = kernels.DeviceArray(list(array.shape), "|u1")
    there.copy_from_host(np.ascontiguousarray(array))
    return there


def test_detector_on_device_images(standin: StandIn, kernels: Any, tmp_path: Path) -> None:
    """Images on the "GPU" give what those on the host do, also where its work takes long after it was queued; and the
    memory of a call is used again."""
    artifact = made(small.onnx_bytes("detector"), tmp_path, batch=(1, 2, 3))
    images = [np.random.default_rng(i).integers(0, 256, (50 + i, 70, 3), dtype=np.uint8) for i in range(4)]
    with Detector(artifact.plan, conf=0.01, iou=1) as detector:
        assert detector.engine.takes_device_arrays
        want = [detector(image) for image in images]
        assert len({str(found) for found in want}) == 4
        there = [put(kernels, image) for image in images]
        for delay in (0, 20_000):
            standin.set("delay_us", delay)
            assert [detector(image) for image in there] == want
            assert detector(there) == want  # a batch of three, then one
            held = {kind: standin.count(kind) for kind in ("malloc", "copy")}
            assert detector(there[0]) == want[0]
            assert {kind: standin.count(kind) for kind in held} == held
            futures = [detector.submit(image) for image in there * 2]
            assert [future.result(60) for future in futures] == want * 2
    del detector, there


def test_device_images_that_are_still_being_written(standin: StandIn, kernels: Any, tmp_path: Path) -> None:
    """On a stream that only the thread knows which hands the image over, as with CuPy."""

    class Image:
        def __init__(self, content: np.ndarray) -> None:
            self.content, self.now = put(kernels, content), put(kernels, np.zeros_like(content))
            self.thread = threading.get_ident()

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            stream = handle.value if threading.get_ident() == self.thread else None
            return self.now.__cuda_array_interface__ | {"stream": stream}

        def write(self) -> None:
            to, source = (ctypes.c_void_p(a.__cuda_array_interface__["data"][0]) for a in (self.now, self.content))
            standin.cuda.cudaMemcpyAsync(to, source, ctypes.c_size_t(int(np.prod(self.now.shape))), 3, handle)

    rng, shapes = np.random.default_rng(5), ((50, 70, 3), (48, 64), (24, 64))
    picture, luma, chroma = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes)
    handle, kept = ctypes.c_void_p(), []  # until the end: freeing memory would wait for the stream
    assert standin.cuda.cudaStreamCreateWithFlags(ctypes.byref(handle), 1) == 0
    with Detector(made(small.onnx_bytes("detector"), tmp_path).plan, conf=0.01, iou=1) as detector:
        canvas = cuda_front.letterbox_cuda([put(kernels, picture)], (64, 96))[0]
        for contents in ((picture,), (luma, chroma)):
            still = [put(kernels, content) for content in contents]
            want = detector(Nv12(*still) if len(still) == 2 else still[0])
            assert len(want) > 0
            for submitted in (False, True):
                planes = [Image(content) for content in contents]
                standin.set("delay_us", 30_000)
                kept.append((planes, detector.engine.infer([canvas], stream=handle.value)))  # keeps the stream busy
                standin.set("delay_us", 0)
                for plane in planes:
                    plane.write()
                image = Nv12(*planes) if len(planes) == 2 else planes[0]
                assert (detector.submit(image).result(60) if submitted else detector(image)) == want
        kernels.synchronize(handle.value, 0)
    standin.cuda.cudaStreamDestroy(handle)
