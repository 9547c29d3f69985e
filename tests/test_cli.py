"""The command line: every subcommand end to end, its errors in one line, its exit status."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cli_calls
import dhead_trt
from cli_calls import COMMAND, refused
from dhead_trt import cli
from dhead_trt.cli import common

ROOT = Path(__file__).resolve().parent.parent

inside = cli_calls.inside


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
