"""The one way in which the package draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from dhead_trt._figure import saved_figure
from dhead_trt.errors import BackendUnavailable, InputError

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", [*SIGNATURES, ".PNG"])
def test_the_suffix_chooses_the_format(tmp_path: Path, suffix: str) -> None:
    with saved_figure(tmp_path / f"a{suffix}", (3, 2), title="A title") as figure:
        figure.subplots().plot([1, 2])
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(SIGNATURES[suffix.lower()])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["a.foo", "a", ".png"])
def test_unknown_formats_are_refused_before_drawing(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="no known format"), saved_figure(tmp_path / name, (3, 2)):
        pytest.fail("drawn")
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_drawing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), saved_figure(path, (3, 2)):
        1 / 0  # noqa: B018
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_users_matplotlib_is_left_alone(tmp_path: Path) -> None:
    code = """
import sys
import matplotlib
def settings():  # but the backend: to ask for it chooses one
    return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if not k.startswith("backend")}
before = settings()
from dhead_trt._figure import saved_figure
with saved_figure(sys.argv[1], (3, 2)) as figure:
    figure.subplots().plot([1, 2])
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True, timeout=60)


def test_matplotlib_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"dhead-trt\[plot\]"), saved_figure(tmp_path / "a.png", (3, 2)):
        pytest.fail("drawn")
