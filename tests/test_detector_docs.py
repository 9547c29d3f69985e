"""The snippets of docs/detector.md run, one after the other, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import small_models
from conftest import ROOT

pytest.importorskip("openvino", reason="OpenVINO is not installed")


def test_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    monkeypatch.chdir(tmp_path)
    small_models.openvino_plan("engine", image_size=(96, 128))
    writer = cv2.VideoWriter("drive.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for i, name in enumerate(("street.jpg", "crossing.png")):
        picture = small_models.picture((96, 128), i, (4, 5))
        picture.save(name)
        writer.write(np.asarray(picture)[:, :, ::-1].copy())
    writer.release()
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "detector.md").read_text(encoding="utf-8"), re.S)
    assert len(snippets) == 6
    space: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/detector.md", "exec"), space)
    out = capsys.readouterr().out
    assert "'InputError'" in out
    assert len(space["found"]) > 3  # type: ignore[arg-type]
    assert {"street-boxes.png", "street.json"} <= {p.name for p in tmp_path.iterdir()}
    space["detector"].close()  # type: ignore[attr-defined]
