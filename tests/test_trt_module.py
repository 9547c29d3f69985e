"""The Python module of the TensorRT builder and engine, against the stand-ins of tests/cpp/trt."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dhead_trt
from conftest import ROOT
from dhead_trt.errors import ArtifactError, BackendUnavailable, BuildError, DheadError, InputError
from threads import in_threads
from trt_standin import StandIn, header_dirs, header_major, interrupt_a_build

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trt")]


@pytest.fixture(scope="module")
def standin() -> StandIn:
    return StandIn(header_major(header_dirs()[0]))


@pytest.fixture(autouse=True)
def _nothing_left_behind(standin: StandIn) -> Any:
    standin.reset()
    yield
    standin.reset()
    gc.collect()
    left = {kind: standin.live(kind) for kind in ("device", "pinned", "stream", "event", "graph")}
    assert left == dict.fromkeys(left, 0)
    assert standin.get("live") == 0
    assert standin.get("unexpected") == 0


def model(batch: int | str = 1, op: str = "Identity") -> bytes:
    """images [B,3,4,4] → a [B,5], b [B,2]."""
    graph = helper.make_graph(
        [helper.make_node(op, ["images"], ["a"], name="/head/first"), helper.make_node("Identity", ["images"], ["b"])],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [batch, 5]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [batch, 2]),
        ],
    )
    data: bytes = helper.make_model(graph).SerializeToString()
    return data


def profile(low: int, opt: int, high: int) -> dict[str, Any]:
    return {"images": tuple((n, 3, 4, 4) for n in (low, opt, high))}


def expected(x: np.ndarray) -> dict[str, np.ndarray]:
    flat = x.reshape(len(x), -1)
    return {"a": flat[:, :5], "b": flat[:, :2] + 1}


def engine(standin: StandIn, batch: int | str = 1, **options: Any) -> Any:
    lib = standin.library()
    profiles = [profile(1, 4, 8)] if isinstance(batch, str) else []
    plan = standin.module.build(lib, model(batch), profiles=profiles)["plan"]
    return standin.module.Engine(lib, plan, **options)


def image(batch: int = 1, start: float = 0) -> np.ndarray:
    return (np.arange(batch * 48, dtype=np.float32) + np.float32(start)).reshape(batch, 3, 4, 4)


class Gpu:
    """A device array in the manner of CuPy: memory of the stand-in, behind __cuda_array_interface__."""

    def __init__(self, standin: StandIn, array: np.ndarray, **interface: Any) -> None:
        import ctypes

        self._cuda, pointer = standin.cuda, ctypes.c_void_p()
        assert standin.cuda.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(array.nbytes)) == 0
        self.ptr, self._shape, self._dtype = pointer.value, array.shape, array.dtype
        ctypes.memmove(self.ptr, array.ctypes.data, array.nbytes)
        self._interface = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (self.ptr, False), "version": 3, **interface
        }  # fmt: skip

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._interface

    def numpy(self) -> np.ndarray:
        import ctypes

        out = np.empty(self._shape, self._dtype)
        ctypes.memmove(out.ctypes.data, self.ptr, out.nbytes)
        return out

    def __del__(self) -> None:
        import ctypes

        self._cuda.cudaFree(ctypes.c_void_p(self.ptr))


# ---- builder


def test_build_reports_what_it_built(standin: StandIn) -> None:
    events: list[Any] = []
    lines: list[Any] = []
    standin.set("build_steps", 3)
    result = standin.module.build(
        standin.library(),
        model("batch"),
        profiles=[profile(1, 2, 4)],
        workspace=7 << 20,
        progress=lambda *event: events.append(event),
        log=lambda level, text: lines.append((level, text)),
    )
    assert result["inputs"] == [
        {"name": "images", "dtype": "float32", "shape": (-1, 3, 4, 4),
         "profiles": (((1, 3, 4, 4), (2, 3, 4, 4), (4, 3, 4, 4)),)}
    ]  # fmt: skip
    assert [o["name"] for o in result["outputs"]] == ["a", "b"]
    assert result["size"] == len(result["plan"])
    assert result["version"] == standin.module.HEADER_VERSION == standin.library().version
    assert events[0] == ("Building", "", 0, 3)
    assert events[-1] == ("Building", "", 3, 3)
    assert (2, "this is a stand-in") in lines
    assert standin.get("config.pool0") == 7 << 20


def test_build_errors_are_the_packages_own(standin: StandIn) -> None:
    lib, build = standin.library(), standin.module.build
    with pytest.raises(BuildError, match=r"node '/head/first' \(Unsupported, number 0\)") as e:
        build(lib, model(op="Unsupported"))
    assert "No importer" in str(e.value.received)
    with pytest.raises(BuildError, match="Failed to parse"):
        build(lib, b"nonsense")
    with pytest.raises(InputError, match="dynamic dimensions and no profile"):
        build(lib, model("batch"))
    with pytest.raises(InputError, match="not ordered"):
        build(lib, model("batch"), profiles=[profile(4, 2, 1)])
    with pytest.raises(InputError, match="There is no such hardware compatibility"):
        build(lib, model(), hardware="everything")
    with pytest.raises(BuildError, match="does not offer that DLA core"):
        build(lib, model(), dla_core=0)
    with pytest.raises(InputError, match="cannot be written"):
        build(lib, model(), output="/nonexistent/x.plan")


def test_callbacks_stop_a_build(standin: StandIn, tmp_path: Path) -> None:
    standin.set("build_steps", 1000)
    standin.set("step_ms", 2)
    lib, build = standin.library(), standin.module.build
    with pytest.raises(BuildError, match="cancelled"):
        build(lib, model(), progress=lambda *event: event[2] < 5)

    def broken(*event: object) -> None:
        raise ZeroDivisionError("from the callback")

    out = tmp_path / "x.plan"
    for kind in ("progress", "log"):
        with pytest.raises(ZeroDivisionError, match="from the callback"):
            build(lib, model(), output=str(out), **{kind: broken})
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_a_build(tmp_path: Path) -> None:
    """A real SIGINT: KeyboardInterrupt, and no file."""
    interrupt_a_build("standin", model(), tmp_path)


def test_other_threads_run_while_a_build_does(standin: StandIn) -> None:
    standin.set("build_steps", 50)
    standin.set("step_ms", 4)
    ticks = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.wait(0.005):
            ticks += 1

    thread = threading.Thread(target=count)
    thread.start()
    standin.module.build(standin.library(), model())
    stop.set()
    thread.join()
    assert ticks > 10


# ---- engine


def test_numpy_in_numpy_out(standin: StandIn) -> None:
    e = engine(standin, "batch")
    for batch in (1, 8, 3):
        x = image(batch, batch)
        for given in (x, {"images": x}, [x]):
            out = e.infer(given if not isinstance(given, np.ndarray) else [given])
            assert list(out) == ["a", "b"]
            for name, value in expected(x).items():
                assert isinstance(out[name], np.ndarray)
                np.testing.assert_array_equal(out[name], value)
    into = {"a": np.empty((1, 5), np.float32), "b": np.empty((1, 2), np.float32)}
    out = e.infer([image()], into)
    assert out["a"] is into["a"]
    np.testing.assert_array_equal(into["b"], expected(image())["b"])
    e.close()
    with pytest.raises(InputError, match="closed"):
        e.infer([image()])


def test_device_arrays_in_place(standin: StandIn) -> None:
    e = engine(standin)
    x = Gpu(standin, image())
    copies = standin.count("copy")
    out = e.infer([x])
    assert standin.count("copy") == copies
    assert out["a"].shape == (1, 5)
    assert out["a"].dtype == "float32"
    assert out["a"].__dlpack_device__() == (2, 0)
    assert out["a"].__cuda_array_interface__["data"] == (out["a"].ptr, False)
    assert out["a"].__cuda_array_interface__["stream"] is None  # finished: nothing to wait for
    np.testing.assert_array_equal(out["a"].numpy(), expected(image())["a"])
    again = e.infer([out["a"].__class__ and x], {"a": Gpu(standin, np.zeros((1, 5), np.float32)), "b": out["b"]})
    np.testing.assert_array_equal(again["a"].numpy(), expected(image())["a"])
    del e  # results keep the engine
    gc.collect()
    np.testing.assert_array_equal(out["b"].numpy(), expected(image())["b"])


def test_streams(standin: StandIn) -> None:
    import ctypes

    handle = ctypes.c_void_p()
    assert standin.cuda.cudaStreamCreateWithFlags(ctypes.byref(handle), 1) == 0
    e, x = engine(standin), Gpu(standin, image())
    e.infer([x])
    standin.set("delay_us", 60_000)

    class Torch:
        cuda_stream = handle.value

    class Cuda:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, handle.value or 0

    for stream in (handle.value, Torch(), Cuda()):
        started = time.perf_counter()
        out = e.infer([x], stream=stream)
        assert time.perf_counter() - started < 0.05  # queued, not waited for
        assert out["a"].__cuda_array_interface__["stream"] == handle.value
        np.testing.assert_array_equal(out["a"].numpy(), expected(image())["a"])
        assert time.perf_counter() - started >= 0.06
    with pytest.raises(InputError, match="not a CUDA stream"):
        e.infer([x], stream="main")
    del out
    standin.cuda.cudaStreamDestroy(handle)


def test_the_producers_stream_is_waited_for(standin: StandIn) -> None:
    import ctypes

    handle = ctypes.c_void_p()
    assert standin.cuda.cudaStreamCreateWithFlags(ctypes.byref(handle), 1) == 0
    e = engine(standin)
    source, x = Gpu(standin, image(start=5)), Gpu(standin, image(), stream=handle.value)
    slow = engine(standin)
    standin.set("delay_us", 30_000)
    slow.infer([Gpu(standin, image())], stream=handle.value)  # keeps the producer's stream busy
    standin.set("delay_us", 0)
    standin.cuda.cudaMemcpyAsync(ctypes.c_void_p(x.ptr), ctypes.c_void_p(source.ptr), ctypes.c_size_t(192), 3, handle)
    np.testing.assert_array_equal(e.infer([x])["a"].numpy(), expected(image(start=5))["a"])
    standin.cuda.cudaStreamSynchronize(handle)
    slow.close()
    gc.collect()
    standin.cuda.cudaStreamDestroy(handle)


def test_wrong_arrays(standin: StandIn) -> None:
    e = engine(standin, "batch")
    x, cases = image(), []
    cases += [
        ([x, x], "wrong number of arrays"),
        ({"image": x}, "lacks 'images'"),
        ({"images": x, "y": x}, "does not know"),
    ]
    cases += [(x, "neither a dict nor a sequence"), ([x[0]], "wrong shape"), ([image(9)], "No optimisation profile")]
    cases += [([x.astype(np.float64)], "wrong dtype"), ([x.astype(np.float16)], "float16, expected float32")]
    cases += [
        ([x.transpose(0, 1, 3, 2)], "not C-contiguous"),
        ([[1.0]], "is not an array"),
        ([None], "is not an array"),
    ]
    cases += [([Gpu(standin, x, strides=(192, 64, 4, 16))], "not C-contiguous")]
    cases += [([Gpu(standin, x, typestr="<f8")], "wrong dtype"), ([Gpu(standin, x, typestr="<c8")], "wrong dtype")]
    cases += [
        ([Gpu(standin, x, data=(4096, False))], "not in device memory"),
        ([Gpu(standin, x, data=(0, False))], "no data"),
    ]
    cases += [([Gpu(standin, x, data=None)], "malformed"), ([Gpu(standin, x, mask=1)], "malformed")]
    for given, text in cases:
        with pytest.raises(InputError, match=text):
            e.infer(given)
    read_only = np.zeros((1, 5), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(InputError, match="cannot be written"):
        e.infer([x], {"a": read_only, "b": np.zeros((1, 2), np.float32)})
    with pytest.raises(InputError, match="Output 'a' has the wrong shape"):
        e.infer([x], {"a": np.zeros((2, 5), np.float32), "b": np.zeros((1, 2), np.float32)})
    freed = Gpu(standin, x)
    interface = dict(freed.__cuda_array_interface__)
    del freed

    class Freed:
        __cuda_array_interface__ = interface

    with pytest.raises(InputError, match="freed"):
        e.infer([Freed()])
    np.testing.assert_array_equal(e.infer([x])["a"], expected(x)["a"])


def test_bad_plans(standin: StandIn, tmp_path: Path) -> None:
    lib, load = standin.library(), standin.module.Engine
    plan = bytearray(standin.module.build(lib, model())["plan"])
    for bad in (b"", plan[:20], plan[:-1], b"{}", bytes(plan[:40]) + b"?" + bytes(plan[41:])):
        with pytest.raises(ArtifactError):
            load(lib, bytes(bad))
    rtx = bytearray(plan)
    rtx[24] = 1
    with pytest.raises(ArtifactError, match="another backend") as e:
        load(lib, rtx)
    assert "tensorrt_rtx" in str(e.value.fix)
    with pytest.raises(ArtifactError, match="another GPU"):
        load(lib, plan, expected_compute=["9.0"])
    with pytest.raises(ArtifactError, match="another version"):
        load(lib, plan, expected_version="10.0.9")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(lib, tmp_path / "missing.plan")
    with pytest.raises(InputError, match="no such CUDA device"):
        load(lib, plan, device=9)
    (tmp_path / "x.plan").write_bytes(plan)
    assert load(lib, tmp_path / "x.plan").num_profiles == 1


def test_out_of_memory(standin: StandIn) -> None:
    e = engine(standin)
    for call in ("Malloc", "HostAlloc"):
        standin.fail(call)
        with pytest.raises(DheadError, match="Out of memory"):
            e.infer([image()])
    standin.fail("StreamSynchronize")
    with pytest.raises(DheadError, match="CUDA failed"):
        e.infer([image()])
    np.testing.assert_array_equal(e.infer([image()])["a"], expected(image())["a"])


def test_no_gpu(standin: StandIn) -> None:
    e = engine(standin)
    standin.cuda.standin_cuda_devices(0)
    with pytest.raises(BackendUnavailable, match="No NVIDIA GPU"):
        standin.library().devices()
    with pytest.raises(BackendUnavailable, match="No NVIDIA GPU"):
        engine(standin)
    standin.reset()
    assert standin.library().devices() == [("Stand-in GPU 0", (8, 6)), ("Stand-in GPU 1", (8, 9))]
    e.close()


def test_eight_threads(standin: StandIn) -> None:
    e = engine(standin, "batch", cuda_graphs=True, max_contexts=4)

    def work(seed: int) -> None:
        for i in range(60):
            x = image((seed + i) % 8 + 1, seed * 1000 + i)
            out = e.infer([x if i % 2 else Gpu(standin, x)])
            a = out["a"] if isinstance(out["a"], np.ndarray) else out["a"].numpy()
            np.testing.assert_array_equal(a, expected(x)["a"])

    assert in_threads(work, 8) == []
    assert e.stats()["contexts"] <= 4


def test_ten_thousand_calls_keep_memory_flat(standin: StandIn) -> None:
    e = engine(standin, cuda_graphs=True)
    x = Gpu(standin, image())
    standin.set("delay_us", -1)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for _ in range(500):
        e.infer([x])
    before = (standin.live("device"), standin.live("event"), e.stats()["pool_bytes"]), resident()
    for _ in range(10_000):
        e.infer([x])
    after = (standin.live("device"), standin.live("event"), e.stats()["pool_bytes"]), resident()
    assert after[0] == before[0]
    assert after[1] - before[1] < 2 << 20
    assert e.stats()["calls"] == 10_500


def test_host_overhead_per_call(standin: StandIn) -> None:
    """What a call costs the host with device arrays, everything but the kernels: 15 µs is the limit of the design."""
    e = engine(standin)
    standin.set("delay_us", -1)
    standin.cuda.standin_cuda_inline(1)
    x, out = Gpu(standin, image()), {"a": Gpu(standin, np.zeros((1, 5), np.float32)), "b": None}
    out["b"] = Gpu(standin, np.zeros((1, 2), np.float32))
    calls = {"out=": lambda: e.infer([x], out, 0), "own outputs": lambda: e.infer([x], None, 0)}
    best = {}
    for name, call in calls.items():
        times = []
        for _ in range(30):
            started = time.perf_counter()
            for _ in range(200):
                call()
            times.append((time.perf_counter() - started) / 200)
        best[name] = min(times)
        print(f"{name}: best {min(times) * 1e6:.1f} µs, median {statistics.median(times) * 1e6:.1f} µs")
    assert max(best.values()) < 15e-6


def test_layer_times(standin: StandIn) -> None:
    e = engine(standin)
    assert e.profile_layers([(1, 3, 4, 4)]) == [("conv", 0.25), ("decode", 0.5)]
    assert "conv" in e.describe_layers()


# ---- the module alone


def test_search_order(standin: StandIn, tmp_path: Path) -> None:
    """In a process of its own: what is loaded once is found by name ever after."""
    script = textwrap.dedent(f"""
        import importlib.util, sys
        sys.path.insert(0, {str(Path(dhead_trt.__file__).parents[1])!r})  # installed: the sources have no _core
        spec = importlib.util.spec_from_file_location({standin.module.__name__!r}, {standin.module.__file__!r})
        m = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(m)
        assert "tensorrt" not in sys.modules and "torch" not in sys.modules
        try:
            print(m.Library(*sys.argv[1:2]).path)
        except Exception as e:
            print(type(e).__name__, e)
    """)

    def ask(*arguments: str, **environment: str) -> str:
        env = {k: v for k, v in os.environ.items() if k not in ("DHEAD_TENSORRT_LIBRARY_DIR", "LD_LIBRARY_PATH")}
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.run(command, env=env | environment, capture_output=True, text=True, check=True).stdout

    name = f"libnvinfer.so.{standin.major}"
    nothing = ask()
    assert "BackendUnavailable TensorRT cannot be loaded" in nothing
    assert f"{name}: cannot open shared object file" in nothing
    assert "DHEAD_TENSORRT_LIBRARY_DIR" in nothing
    here = str(standin.folder / name) + "\n"
    assert ask(LD_LIBRARY_PATH=str(standin.folder)).endswith(f"{name}\n")
    assert ask(DHEAD_TENSORRT_LIBRARY_DIR=str(standin.folder)) == here
    assert ask(str(standin.folder), DHEAD_TENSORRT_LIBRARY_DIR=str(tmp_path)) == here
    refused = ask(DHEAD_TENSORRT_LIBRARY_DIR=str(tmp_path), LD_LIBRARY_PATH=str(standin.folder))
    assert str(tmp_path) in refused
    assert "Correct that path" in refused
    other = 11 if standin.major == 10 else 10
    mismatch = ask(str(standin.folder), DHEAD_STANDIN_VERSION=f"{other}0100")
    assert f"is version {other}.1.0, but this module needs TensorRT {standin.major}.x" in mismatch


def test_the_stubs_name_what_the_module_has(standin: StandIn) -> None:
    """Names, and arguments with their order, kind and default, as pybind11 writes them in its docstrings."""
    import ast

    tree = ast.parse((ROOT / "python" / "dhead_trt" / "_trt10.pyi").read_text())

    def functions(body: list[Any]) -> dict[str, Any]:
        return {n.name: n for n in body if isinstance(n, ast.FunctionDef)}

    def names(target: Any) -> set[str]:
        return {n for n in dir(target) if not n.startswith("_")}

    module = standin.module
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")}
    constants = {n.target.id for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert names(module) == set(classes) | set(functions(tree.body)) | constants
    checked = 0
    for owner, stub in [
        (module, functions(tree.body)),
        *((getattr(module, c), functions(n.body)) for c, n in classes.items()),
    ]:
        if owner is not module:
            assert names(owner) == {n for n in stub if not n.startswith("_")}
        for name, node in stub.items():
            if any(getattr(d, "id", "") == "property" for d in node.decorator_list):
                assert isinstance(getattr(owner, name), property)
                continue
            signature = (getattr(owner, name).__doc__ or "").splitlines()[0]
            given = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg != "self"]
            inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
            if given and "arg0" not in inside:
                positions = [inside.index(f"{a}:") for a in given]
                assert positions == sorted(positions), name
                assert inside.count(": ") >= len(given)
                assert ("*, " in inside) == bool(node.args.kwonlyargs), name
            checked += 1
    assert checked >= 14
