"""What tests of the command line share: a folder to work in, and how it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dhead_trt import cli

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
