"""The command line: every subcommand end to end, its errors in one line, its exit status."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dhead_trt
from dhead_trt import cli
from dhead_trt.artifact import Artifact
from dhead_trt.cli import common

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "dhead_trt")

HEAD = """
import torch
from dhead_trt.heads import YOLOv8DecoupledHead

def make():
    torch.manual_seed(1)
    head = YOLOv8DecoupledHead(num_classes=3, in_channels=(8, 8, 8))
    with torch.no_grad():
        for pred in head.cls_preds:
            pred.weight.mul_(6)
            pred.bias.fill_(-1.0)
    return head

instance = make()
number = 3
"""


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a module that makes a small head."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_heads.py").write_text(HEAD)
    sys.modules.pop("my_heads", None)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line of an error; the status is 2, nothing goes to standard output."""
    assert cli.main([str(a) for a in args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("  ")]  # progress is indented
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


# -- frame ------------------------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dhead-trt {dhead_trt.__version__}\n"


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_explains_and_gives_examples(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*([command] if command else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:\n  dhead-trt " in text
    if command is None:
        for name, summary in cli.COMMANDS.items():
            assert name in text
            assert summary in " ".join(text.split())
    else:
        assert f"usage: dhead-trt {command}" in text
        assert f"\n  dhead-trt {command} " in text


def test_examples_parse() -> None:
    """What the help shows is accepted by the parser."""
    import importlib

    parser = cli.build_parser()
    for name in cli.COMMANDS:
        module = importlib.import_module(f"dhead_trt.cli.{name.replace('-', '_')}")
        shown = []
        for line in module.EXAMPLES.splitlines():
            if line.startswith("  dhead-trt "):
                words = re.split(r"\s{2,}", line.strip())[0].split()
                shown.append(parser.parse_args(words[1:]).command)
        assert shown.count(name) >= (1 if name == "doctor" else 2), (name, shown)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["build"], "MODEL"),
        (["build", "a.onnx", "--batch", "4,2,1"], "'4,2,1' is no batch"),
        (["build", "a.onnx", "--batch", "0"], "'0' is no batch"),
        (["build", "a.onnx", "--batch", "1,2"], "'1,2' is no batch"),
        (["build", "a.onnx", "--image-size", "640x"], "'640x' is no image size"),
        (["build", "a.onnx", "--image-size", "1,2"], "'1,2' is no image size or range"),
        (["build", "a.onnx", "--fp16", "--bf16"], "not allowed with"),
        (["build", "a.onnx", "--backend", "cuda"], "invalid choice: 'cuda'"),
        (["export", "decoupled", "--size", "q"], "invalid choice: 'q'"),
    ],
)
def test_usage_errors_are_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *words)
    assert part in line
    assert line.endswith("--help)")


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys; from dhead_trt import cli; cli.main(['build', '--help']);"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'onnx', 'openvino', 'PIL', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_interrupt_ends_with_130(inside: Path) -> None:
    (inside / "slow.py").write_text("import time\n\ndef make():\n    print('ready', flush=True)\n    time.sleep(60)\n")
    process = subprocess.Popen(
        [*COMMAND, "export", "slow:make", "-o", "a.onnx"],
        cwd=inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert not (inside / "a.onnx").exists()


def test_a_closed_pipe_is_no_error() -> None:
    """As `dhead-trt doctor | head -1` leaves it."""
    process = subprocess.Popen([*COMMAND, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert err == b""
    assert process.returncode == 141


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dhead_trt import doctor

    monkeypatch.setattr(doctor, "collect", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])
    assert "bug in dhead_trt" in capsys.readouterr().err


def test_traceback_on_request(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "absent.onnx", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("error: There is no such file")


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["version"] == dhead_trt.__version__
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for backend in data["backends"]:
        assert backend["name"] in text


# -- export and inspect -----------------------------------------------------------------------------------------------


def test_export_inspect_round_trip(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "my_heads:make", "-o", "made/head.onnx", "--image-size", "96x128", "--json", "-"]
    assert cli.main(words) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["graph"] == "made/head.onnx"
    assert (made["form"], made["classes"], made["bins"]) == ("native", 3, 17)
    assert cli.main(["inspect", "made/head.onnx", "--json", "-"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["kind"] == "onnx"
    assert seen["form"] == "native"
    assert seen["spec"]["strides"] == [8, 16, 32]
    assert [i["name"] for i in seen["inputs"]] == ["p3", "p4", "p5"]
    assert cli.main(["inspect", "made/head.onnx"]) == 0
    text = capsys.readouterr().out
    assert "17, distances in strides" in text
    assert "p3 float32" in text
    assert cli.main(["export", "made/head.onnx", "--form", "detections"]) == 0
    assert "detections (was native)" in capsys.readouterr().out
    assert cli.main(["inspect", "head-detections.onnx", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["form"] == "detections"


def test_export_fp16_computes_in_half(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    assert cli.main(["export", "my_heads:instance", "--image-size", "64", "--fp16", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    model = onnx.load("my_heads-native-fp16.onnx")
    types = {t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert {i.type.tensor_type.elem_type for i in model.graph.input} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(("step", "words"), [("to_fp16", ["--fp16"]), ("convert", ["--form", "decoded"])])
def test_export_leaves_nothing_of_a_graph_that_fails_a_later_step(
    inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, step: str, words: list[str]
) -> None:
    from dhead_trt import precision, surgery
    from dhead_trt.errors import GraphError

    def fails(*_: object, **__: object) -> None:
        raise GraphError("It does not verify")

    monkeypatch.setattr(precision if step == "to_fp16" else surgery, step, fails)
    before = sorted(inside.iterdir())
    line = refused(capsys, "export", "my_heads:make", "--image-size", "64", "-o", "new/head.onnx", *words)
    assert line == "error: It does not verify."
    assert [p for p in sorted(inside.iterdir()) if p.name != "__pycache__"] == before
    Path("head.onnx").write_bytes(b"an older graph")
    refused(capsys, "export", "my_heads:make", "--image-size", "64", "-o", "head.onnx", *words)
    assert Path("head.onnx").read_bytes() == b"an older graph"


@pytest.mark.parametrize("head", common.HEADS)
def test_own_heads_can_be_named(head: str) -> None:
    args = cli.build_parser().parse_args(["export", head, "--num-classes", "2"])
    source = common.resolve(args)
    assert source.name == head
    assert source.model is not None
    assert source.model.spec.num_classes == 2
    assert not source.model.training


def test_weights_are_loaded(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from dhead_trt.heads import YOLOv8DecoupledHead

    torch.manual_seed(9)
    other = YOLOv8DecoupledHead(num_classes=3, in_channels=(8, 8, 8))
    torch.save(other.state_dict(), "best.pt")
    args = cli.build_parser().parse_args(["export", "my_heads:make", "--weights", "best.pt"])
    loaded = common.resolve(args).model
    assert loaded is not None
    assert torch.equal(loaded.cls_preds[0].weight, other.cls_preds[0].weight)
    torch.save({"a": torch.zeros(1)}, "wrong.pt")
    line = refused(capsys, "export", "my_heads:make", "--weights", "wrong.pt")
    assert "wrong.pt does not hold the weights of this network" in line
    # the file as the model, with its network named
    args = cli.build_parser().parse_args(["export", "best.pt", "--head", "my_heads:make"])
    source = common.resolve(args)
    assert source.name == "best"
    assert source.model is not None
    assert torch.equal(source.model.cls_preds[0].weight, other.cls_preds[0].weight)
    assert not source.model.training
    assert "wrong.pt does not hold" in refused(capsys, "export", "wrong.pt", "--head", "decoupled")
    assert "--head names no network" in refused(capsys, "export", "best.pt", "--head", "yolo")
    assert "Two files of weights" in refused(
        capsys, "export", "best.pt", "--head", "my_heads:make", "--weights", "best.pt"
    )


def test_weights_run_no_code(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle that would run something is refused before it does."""
    import torch

    class Evil:
        def __reduce__(self) -> object:
            return Path.touch, (Path("ran"),)

    torch.save({"cls_preds.0.weight": Evil()}, "evil.pt")
    assert "evil.pt does not hold the weights" in refused(capsys, "parity", "evil.pt", "--head", "my_heads:make")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("absent.onnx", "There is no such model"),
        ("no_such_module:make", "Cannot import 'no_such_module:make'"),
        ("my_heads:absent", "Cannot import 'my_heads:absent'"),
        ("my_heads:number", "gives no PyTorch module"),
        ("best.pt", "does not say which network"),
        ("empty.onnx", "empty"),
        ("text.onnx", "text"),
    ],
)
def test_bad_models(model: str, part: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "best.pt").write_bytes(b"x")
    (inside / "empty.onnx").touch()
    (inside / "text.onnx").write_text("hello, this is text\n")
    for command in ("export", "build", "parity"):
        assert part in refused(capsys, command, model, *(["-o", "out/made"] if command != "parity" else []))
    assert not any(p.is_file() for p in (inside / "out").glob("**/*"))


def test_bad_options(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--size does not apply" in refused(capsys, "export", "stable", "--size", "n")
    assert "--num-classes is out of range" in refused(capsys, "export", "decoupled", "--num-classes", "-1")
    (inside / "a.onnx").write_bytes(b"x")
    line = refused(capsys, "export", "a.onnx", "--opset", 18, "--static-batch", "--weights", "w.pt")
    assert "for PyTorch heads: received --opset, --static-batch, --weights. dhead-trt build" in line
    assert "for PyTorch heads: received --size, --num-classes." in refused(
        capsys, "build", "a.onnx", "--size", "n", "--num-classes", 3
    )
    assert "--io-fp16 goes with --fp16" in refused(capsys, "export", "decoupled", "--io-fp16")
    assert "The output is a folder" in refused(capsys, "export", "my_heads:make", "-o", ".")


def test_parity_refuses_what_says_nothing_of_a_graph(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "m.onnx").write_bytes(b"not looked at")
    for words in (["--size", "n"], ["--num-classes", "3"], ["--weights", "w.pt"]):
        assert f"for PyTorch heads: received {words[0]}." in refused(capsys, "parity", "m.onnx", *words)


# -- build, infer, parity ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small head as an OpenVINO engine for batches of 1 to 3, in a folder of its own."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "my_heads.py").write_text(HEAD)
    words = ["build", "my_heads:make", "--backend", "openvino", "--batch", "1,2,3", "--image-size", "96x128"]
    done = subprocess.run(
        [*COMMAND, *words, "-o", "engines/head"], cwd=folder, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "engines/head.xml" in done.stdout
    assert "openvino" in done.stdout
    assert done.stderr.startswith("  openvino: ")
    return folder / "engines"


@pytest.fixture
def built(built_once: Path, inside: Path) -> Path:
    """A copy of that engine in the test's own folder."""
    return Path(shutil.copytree(built_once, inside / "engines")) / "head.xml"


def test_build_makes_what_it_says(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = Artifact.load(built)
    assert (artifact.backend, artifact.precision, artifact.form) == ("openvino", "fp32", "raw")
    assert artifact.inputs[0].shape[1:] == (8, 12, 16)
    assert sorted(p.name for p in built.parent.iterdir()) == ["head.bin", "head.json", "head.xml"]
    assert cli.main(["inspect", str(built)]) == 0
    text = capsys.readouterr().out
    assert "checksums match" in text
    assert "[1..3, 8, 12, 16]" in text
    assert cli.main(["inspect", str(built.with_suffix(".json")), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["backend"] == "openvino"


def test_inspect_sees_a_damaged_engine(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = built.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "head.bin is truncated" in refused(capsys, "inspect", built)
    assert "head.bin is truncated" in refused(capsys, "infer", built, built)
    assert cli.main(["inspect", str(built), "--no-verify"]) == 0


def test_build_for_all_passes_over_what_cannot(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dhead_trt.backends import available_backends

    words = ["build", "my_heads:make", "--backend", "all", "--image-size", "64", "-o", "head", "--json", "s.json", "-q"]
    assert cli.main(words) == 0
    assert capsys.readouterr() == ("", "")
    summary = {row["backend"]: row for row in json.loads((inside / "s.json").read_text())}
    for name, state in available_backends().items():
        if state.can_build:
            plan = Path(summary[name]["plan"])
            assert plan.stem == f"head-{name}"
            assert Artifact.load(plan).backend == name
        else:
            assert summary[name]["plan"] is None
            assert summary[name]["reason"] == state.reason


def test_a_backend_asked_for_by_name_must_build(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "build", "my_heads:make", "--backend", "tensorrt", "--image-size", "64")
    assert "tensorrt cannot build here" in line
    assert "stands alone" in refused(capsys, "build", "my_heads:make", "--backend", "all", "--backend", "openvino")


def test_infer_features(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch of two feature sets gives two results, equal to the oracle's on the torch head's maps."""
    import torch

    from dhead_trt import reference

    sys.path.insert(0, str(inside))
    import my_heads

    rng = np.random.default_rng(0)
    shapes = ((2, 8, 12, 16), (2, 8, 6, 8), (2, 8, 3, 4))
    features = {f"p{i + 3}": rng.standard_normal(s).astype("f4") for i, s in enumerate(shapes)}
    np.savez("features.npz", **features)
    assert cli.main(["infer", str(built), "features.npz", "--json", "-", "--conf", "0.6", "--output", "found"]) == 0
    found = json.loads(capsys.readouterr().out)
    head = my_heads.make().eval()
    with torch.inference_mode():
        maps = {k: v.numpy() for k, v in head.raw([torch.from_numpy(v) for v in features.values()]).items()}
    want = reference.detect(maps, head.spec, conf=0.6)
    assert [len(image["detections"]) for image in found] == want.num_dets.reshape(-1).tolist()
    assert sum(want.num_dets.reshape(-1)) > 3
    for image, data in enumerate(found):
        assert data["image_size"] == [96, 128]
        for row, detection in enumerate(data["detections"]):
            assert detection["class_id"] == want.classes[image, row]
            assert np.abs(np.subtract(detection["xyxy"], want.boxes[image, row])).max() < 0.05
            assert abs(detection["confidence"] - want.scores[image, row]) < 1e-4
    assert sorted(p.name for p in Path("found").iterdir()) == ["features-0.json", "features-1.json"]


def test_infer_refuses(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no such input" in refused(capsys, "infer", built, "absent.png")
    (inside / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    assert "Not a readable .npz file" in refused(capsys, "infer", built, "bad.npz")
    np.savez("other.npz", x=np.zeros((1, 2)))
    assert "input names do not match" in refused(capsys, "infer", built, "other.npz")
    assert "cannot be mixed" in refused(capsys, "infer", built, "other.npz", "my_heads.py")
    assert "There is no engine here" in refused(capsys, "infer", "absent.xml", "other.npz")
    assert "The output is a file" in refused(capsys, "infer", built, "other.npz", "-o", "other.npz")


def test_infer_writes_over_nothing_that_it_reads(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Annotated copies do not replace their pictures, nor a picture's JSON the sidecar of the engine."""
    sidecar = built.with_suffix(".json").read_bytes()
    (inside / "pages").mkdir()
    pictures = [inside / "pages" / "a.png", inside / f"{built.stem}.bmp"]
    for picture in pictures:
        picture.write_bytes(b"a picture")
    assert "a folder without a.png" in refused(capsys, "infer", built, "pages", "-o", "pages")
    line = refused(capsys, "infer", built, pictures[1], "-o", built.parent)
    assert f"would replace a file that is read: received --output {built.parent}" in line
    assert built.with_suffix(".json").read_bytes() == sidecar
    assert [p.read_bytes() for p in pictures] == [b"a picture"] * 2


def test_infer_pictures(doclaynet: Path, sample_page: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real model: build, detect on two pictures in a folder, draw, and write JSON that reads back."""
    from PIL import Image

    from dhead_trt.detections import Detections

    (inside / "pages").mkdir()
    page = Image.open(sample_page)
    page.save("pages/a.png")
    page_bytes = Path("pages/a.png").read_bytes()
    page.resize((620, 877)).save("pages/b.jpg")
    assert cli.main(["build", str(doclaynet), "--backend", "openvino", "-o", "doc", "-q"]) == 0
    assert cli.main(["infer", "doc.xml", "pages", "--output", "results"]) == 0
    text = capsys.readouterr().out
    assert "Section-header" in text
    assert "detections in 2 files" in text
    assert sorted(p.name for p in Path("results").iterdir()) == ["a.json", "a.png", "b.json", "b.png"]
    found = Detections.from_json(Path("results/a.json"))
    assert len(found.counts()) == 11
    assert found.image_size == (1754, 1240)
    drawn = np.asarray(Image.open("results/a.png").convert("RGB"))
    assert drawn.shape == (1754, 1240, 3)
    assert (drawn != np.asarray(page.convert("RGB"))).any(axis=2).sum() > 10_000
    words = ["infer", "doc.xml", "pages/a.png", "--class", "Table", "--class", "10", "--json", "-", "-q"]
    assert cli.main(words) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert {d["name"] for d in one["detections"]} == {"Table", "Title"}
    assert "'Tisch'" in refused(capsys, *words[:4], "Tisch")
    # a picture that cannot be read does not keep the others from being detected on
    Path("pages/aa.png").write_bytes(page_bytes[: len(page_bytes) // 2])
    assert cli.main(["infer", "doc.xml", "pages", "-o", "again", "-q", "--json", "all.json"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: The image file is damaged")
    assert err.count("\n") == 1
    assert sorted(p.name for p in Path("again").iterdir()) == ["a.json", "a.png", "b.json", "b.png"]
    assert [Path(d["source"]).name for d in json.loads(Path("all.json").read_text())] == ["a.png", "b.jpg"]
    assert "damaged" in refused(capsys, "infer", "doc.xml", "pages/aa.png")


def test_parity_of_an_engine(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parity", str(built), "--against", "my_heads:make", "--json", "p.json", "--plot", "p.png"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "openvino fp32" in text
    assert text.rstrip().endswith("not run here")
    data = json.loads(Path("p.json").read_text())
    assert data["passed"] is True
    assert data["model"] == "my_heads:make"
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG"


def test_parity_of_an_engine_against_weights(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    state = common.resolve(cli.build_parser().parse_args(["export", "my_heads:make"])).model.state_dict()  # type: ignore[union-attr]
    torch.save(state, "head.pt")
    words = ["parity", str(built), "--against", "head.pt", "--head", "my_heads:make", "-q"]
    assert cli.main(words) == 0
    state["cls_preds.1.weight"] += 0.1
    torch.save(state, "head.pt")
    assert cli.main(words) == 1
    assert "openvino fp32" in capsys.readouterr().out.split("Failed:")[1]


def test_parity_layer_by_layer(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parity", str(built), "--against", "my_heads:make", "--layers", "-q"]
    assert cli.main([*words, "--json", "l.json", "--plot", "l.png"]) == 0
    text = capsys.readouterr().out
    data = json.loads(Path("l.json").read_text())
    assert (data["backend"], data["precision"], data["passed"], data["first"]) == ("openvino", "fp32", True, None)
    assert f"All {len(data['layers'])} tensors are within 0.001" in text
    assert {"box_0", "cls_2"} < {x["tensor"] for x in data["layers"]}
    assert Path("l.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main([*words, "--layer-tolerance", "1e-12"]) == 1
    assert "the first:" in capsys.readouterr().out
    assert "--layers looks at one engine" in refused(capsys, *words, "--fp16")
    assert "--layer-tolerance goes with --layers" in refused(capsys, "parity", "my_heads:make", "--layer-tolerance", 1)
    assert "tolerance is out of range" in refused(capsys, *words, "--layer-tolerance", "0")


def test_parity_fails_with_1(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inside / "other_heads.py").write_text(HEAD.replace("manual_seed(1)", "manual_seed(2)"))
    assert cli.main(["parity", str(built), "--against", "other_heads:make"]) == 1
    out, err = capsys.readouterr()
    assert "Failed:" in out
    assert "error:" not in err


def test_parity_refuses(built: Path, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "parity", built)
    assert "Name the original: --against" in line
    np.savez("x.npz", x=np.zeros((1, 2)))
    assert "other names" in refused(capsys, "parity", "my_heads:make", "--input", "x.npz")
    assert "There is no such input" in refused(capsys, "parity", "my_heads:make", "--input", "y.npz")
    assert "neither a picture nor .npz" in refused(capsys, "parity", "my_heads:make", "--input", "my_heads.py")
    assert "no known format" in refused(capsys, "parity", "my_heads:make", "--plot", "x.foo")
    assert "The model is a folder" in refused(capsys, "parity", inside)
    (inside / "w.pt").write_bytes(b"")
    assert "YOLO('x.pt').export" in refused(capsys, "parity", "w.pt")
