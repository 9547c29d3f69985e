"""The C++ builder run for real: TensorRT for RTX builds engines without a GPU, with the ABI of TensorRT 11's headers.

Needs those headers (DHEAD_TENSORRT_HEADERS) and the pip package tensorrt-rtx-cu13 1.5 or later; skipped elsewhere. Each
plan is compared with the one that the library's own Python bindings build of the same graph.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dhead_trt.errors import ArtifactError, BackendUnavailable, BuildError, InputError
from trt_standin import build, headers_of, interrupt_a_build, load_module

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: E402

from dhead_trt.export import export_onnx  # noqa: E402
from dhead_trt.heads import YOLOv8DecoupledHead  # noqa: E402
from dhead_trt.precision import to_fp16  # noqa: E402
from dhead_trt.surgery import convert, load_model  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trt")]


@pytest.fixture(scope="module")
def module() -> Any:
    headers_of(11)
    return load_module(build(11, python=True), 11)


@pytest.fixture(scope="module")
def library(module: Any) -> Any:
    import tensorrt_rtx_libs

    return module.Library(package_dirs=[os.path.dirname(tensorrt_rtx_libs.__file__)], rtx=True)


def fixed(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """The model with its batch fixed."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*model.graph.input, *model.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        if dim.dim_param:
            dim.dim_value = batch
    return model


class _Random(CalibrationDataReader):
    def __init__(self, model: onnx.ModelProto) -> None:
        rng = np.random.default_rng(0)
        shapes = {i.name: [d.dim_value or 1 for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
        self._feeds = iter([{n: rng.standard_normal(s, np.float32) for n, s in shapes.items()} for _ in range(2)])

    def get_next(self) -> Any:
        return next(self._feeds, None)


def int8(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Explicit Q/DQ as TensorRT wants it: signed, symmetric, per channel, no quantised bias, only convolutions."""
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(model, source)
    quantize_static(
        source,
        target,
        _Random(model),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return onnx.load(target)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, doclaynet: Path) -> dict[str, onnx.ModelProto]:
    folder = tmp_path_factory.mktemp("graphs")
    head = YOLOv8DecoupledHead(num_classes=80, in_channels=(64, 128, 256)).eval()
    exported = export_onnx(head, folder / "head.onnx", image_size=(640, 640), form="raw", verify=False)
    sources = {"head": load_model(exported.path), "doclaynet": convert(doclaynet, "raw", verify=False).model}
    made = {}
    for name, model in sources.items():
        made[f"{name}-fp32"] = model
        made[f"{name}-fp16"] = to_fp16(model)
        quantised = folder / name
        quantised.mkdir()
        made[f"{name}-int8"] = int8(model, quantised)
    return made


def profiles_of(model: onnx.ModelProto, dynamic: bool) -> list[dict[str, Any]]:
    profile = {}
    for value in model.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        profile[value.name] = tuple((n, *shape[1:]) for n in ((1, 2, 4) if dynamic else (1, 1, 1)))
    return [profile] if dynamic else []


class _Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[tuple[int, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self.lines.append((int(severity), message))


def build_in_python(model: bytes, profiles: list[dict[str, Any]]) -> tuple[bytes, list[tuple[int, str]]]:
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model)
    config = builder.create_builder_config()
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, ranges in shapes.items():
            profile.set_shape(name, *ranges)
        config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config)), log.lines


def story(lines: list[tuple[int, str]]) -> list[str]:
    """The log without what differs from run to run: times, memory, and which lines came first."""
    kept = []
    for level, text in lines:
        words = text.lower()
        if level > 3 or any(w in words for w in ("second", " ms", "memusage", "memory usage", "took ")):
            continue
        kept.append(f"{level} {text}")
    return sorted(kept)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["head", "doclaynet"])
def test_the_same_plan_as_the_python_bindings(
    module: Any, library: Any, graphs: dict[str, onnx.ModelProto], name: str, precision: str, dynamic: bool
) -> None:
    model = graphs[f"{name}-{precision}"]
    symbolic = any(v.type.tensor_type.shape.dim[0].dim_param for v in model.graph.input)
    if dynamic and not symbolic:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del model.graph.value_info[:]
    elif not dynamic:
        model = fixed(model, 1)
    data, profiles = model.SerializeToString(), profiles_of(model, dynamic)
    lines: list[tuple[int, str]] = []
    events: list[Any] = []
    ours = module.build(
        library, data, profiles=profiles, log=lambda *line: lines.append(line), progress=lambda *e: events.append(e)
    )
    theirs, their_lines = build_in_python(data, profiles)
    print(f"{name} {precision} {'dynamic' if dynamic else 'static'}: {ours['size']} bytes, Python {len(theirs)}")
    assert abs(ours["size"] - len(theirs)) <= 64  # plans are not the same to the byte
    assert ours["plan"][:16] == theirs[:16]
    assert ours["plan"][24:32] == theirs[24:32]
    assert story(lines) == story(their_lines)
    assert [o["name"] for o in ours["outputs"]] == [o.name for o in model.graph.output]
    assert ours["inputs"][0]["shape"][0] == (-1 if dynamic else 1)
    assert ours["rtx"]
    assert ours["version"] == ".".join(trt.__version__.split(".")[:3])
    assert events[0][2] == 0
    assert len(events) > 10


def test_errors_of_the_real_parser(module: Any, library: Any, graphs: dict[str, onnx.ModelProto]) -> None:
    raw = graphs["head-fp32"]
    detect = convert(raw, "detections", verify=False).model
    with pytest.raises(BuildError, match=r"node '.*' \(DHeadDetect, number \d+\).*[Pp]lugin not found"):
        module.build(library, detect.SerializeToString())
    with pytest.raises(BuildError, match="cannot parse"):
        module.build(library, raw.SerializeToString()[:1000])
    with pytest.raises(InputError, match="dynamic dimensions and no profile"):
        module.build(library, raw.SerializeToString())
    with pytest.raises(BuildError, match="no custom plugins"):
        module.build(library, raw.SerializeToString(), plugins=["x.so"])
    with pytest.raises(BuildError, match="does not offer that DLA core"):
        module.build(library, fixed(raw, 1).SerializeToString(), dla_core=0)
    for option in ("refit", "strip_plan", "version_compatible"):
        with pytest.raises(BuildError, match="has no such plans"):
            module.build(library, fixed(raw, 1).SerializeToString(), **{option: True})


def test_options_on_the_real_builder(
    module: Any, library: Any, graphs: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    model = fixed(graphs["head-fp16"], 1)
    cache = tmp_path / "timing.cache"
    result = module.build(
        library,
        model.SerializeToString(),
        workspace=64 << 20,
        optimization_level=2,
        verbosity="detailed",
        timing_cache=str(cache),
        output=str(tmp_path / "x.plan"),
    )
    assert result["plan"] is None
    assert (tmp_path / "x.plan").stat().st_size == result["size"]
    inner = next(n.output[0] for n in model.graph.node if n.op_type == "Conv")
    marked = module.build(library, model.SerializeToString(), mark_outputs=[inner])
    assert [o["name"] for o in marked["outputs"]][-1] == inner


def test_external_data(module: Any, library: Any, graphs: dict[str, onnx.ModelProto], tmp_path: Path) -> None:
    model = fixed(graphs["head-fp32"], 1)
    inside = module.build(library, model.SerializeToString())["size"]
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    assert path.stat().st_size < 200_000
    outside = module.build(library, path.read_bytes(), model_path=str(path))
    assert abs(outside["size"] - inside) <= 64
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BuildError, match="cannot parse"):
        module.build(library, path.read_bytes(), model_path=str(path))


def test_ctrl_c_stops_a_real_build(graphs: dict[str, onnx.ModelProto], tmp_path: Path) -> None:
    headers_of(11)  # skips here, with its reason: the script that does it runs in a process of its own
    interrupt_a_build("rtx", fixed(graphs["doclaynet-fp32"], 1).SerializeToString(), tmp_path)


def test_running_needs_a_gpu(module: Any, library: Any, graphs: dict[str, onnx.ModelProto]) -> None:
    """Bad plans are told apart from good ones before the driver is asked; good ones need a GPU."""
    try:
        library.devices()
    except BackendUnavailable:
        pass
    else:
        pytest.skip("this machine has a GPU")
    plan = module.build(library, fixed(graphs["head-fp32"], 1).SerializeToString())["plan"]
    with pytest.raises(BackendUnavailable, match="No NVIDIA GPU"):
        module.Engine(library, plan)
    with pytest.raises(ArtifactError, match="truncated"):
        module.Engine(library, plan[:-100])
    with pytest.raises(ArtifactError, match="not a TensorRT plan"):
        module.Engine(library, b"x" * 100)
