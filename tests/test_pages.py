"""The real document pages: fetched by name and checked, or a message that says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, load_script

SCRIPT = ROOT / "scripts" / "make_test_pages.py"


def test_pages_are_of_different_documents(document_pages: tuple[Path, Path]) -> None:
    from PIL import Image

    calibration, heldout = (sorted(p.glob("*.png")) for p in document_pages)
    assert len(calibration) == len(heldout) == 25
    assert not {p.name.split("_")[0] for p in calibration} & {p.name.split("_")[0] for p in heldout}
    images = [np.asarray(Image.open(p)) for p in (*calibration, *heldout)]
    assert {max(i.shape[:2]) for i in images} == {1400}
    assert all(i.shape[2] == 3 and i.std() > 5 for i in images)  # nothing is blank


def test_without_apt_says_what_to_do(tmp_path: Path) -> None:
    env = {**os.environ, "DHEAD_CACHE": str(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not done.stdout
    assert "no apt-get here" in done.stderr
    assert "dblatex-doc_0.3.12py3-2_all.deb" in done.stderr
    assert not (tmp_path / "pages").exists()


def test_package_with_another_sha256_is_not_used(tmp_path: Path) -> None:
    script = load_script("make_test_pages")
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text("#!/bin/sh\nprintf other > dblatex-doc_0.3.12py3-2_all.deb\n")
    apt.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(apt.parent), prepend=os.pathsep)
        with pytest.raises(script.PagesError, match=r"has sha256 .* not used"):
            script.fetch(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.deb"))
