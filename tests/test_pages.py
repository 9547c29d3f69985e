"""The real document pages: fetched by name and checked, or a message that says what is missing."""

from __future__ import annotations

import dataclasses
import os
import shutil
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


def test_table_keeps_the_sets_apart() -> None:
    script = load_script("make_test_pages")
    names = {kind: {p.name for p in packages} for kind, packages in script.SETS.items()}
    pages = {
        kind: [(p.name, member, n) for p in packages for member, numbers in p.pages.items() for n in numbers]
        for kind, packages in script.SETS.items()
    }
    assert {kind: len(rows) for kind, rows in pages.items()} == {
        "calibration": 25,
        "heldout": 25,
        "training": 206,
        "unseen": 105,
    }
    rows = [row for kind in pages for row in pages[kind]]
    assert len(set(rows)) == len(rows) == 361
    assert names["calibration"] < names["training"]  # more of the same documents, and others
    assert not names["heldout"] & (names["calibration"] | names["training"])
    assert not names["unseen"] & (names["calibration"] | names["training"] | names["heldout"])
    for kind, packages in script.SETS.items():  # documents of one name in a package are not told apart by their files
        assert len(set(script._files(Path(), packages))) == len(pages[kind])


def test_sets_are_rendered_one_by_one(
    document_pages: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("make_test_pages")
    quilt = next(p for p in script.SETS["calibration"] if p.name == "quilt")
    debs = document_pages[0].parents[1] / "debs"
    if not (debs / quilt.file_name).is_file():
        pytest.skip(f"{quilt.file_name} is not in the cache")
    (tmp_path / "debs").mkdir()
    shutil.copy(debs / quilt.file_name, tmp_path / "debs")
    (member,) = quilt.pages

    def sets(training_page: int) -> dict[str, tuple[object, ...]]:
        other = dataclasses.replace(quilt, pages={member: (training_page,)})
        return {**script.SETS, "calibration": (quilt,), "training": (other,)}

    monkeypatch.setattr(script, "SETS", sets(2))
    pages = script.fetch(tmp_path, sets=("calibration",))
    assert sorted(p.name for p in pages.calibration.glob("*.png")) == ["quilt_quilt_004.png", "quilt_quilt_005.png"]
    assert not pages.training.exists()
    assert not pages.heldout.exists()
    first = pages.calibration / "quilt_quilt_004.png"
    assert first.read_bytes() == (document_pages[0] / first.name).read_bytes()
    made = first.stat().st_mtime_ns

    for number in (2, 3):  # another recipe of one set makes that set anew, and no other
        monkeypatch.setattr(script, "SETS", sets(number))
        assert script.fetch(tmp_path, sets=("calibration", "training")) == pages
        assert [p.name for p in pages.training.glob("*.png")] == [f"quilt_quilt_{number:03d}.png"]
        assert first.stat().st_mtime_ns == made


def test_unknown_set_names_the_known_ones(tmp_path: Path) -> None:
    script = load_script("make_test_pages")
    with pytest.raises(script.PagesError, match=r"no set test: the sets are calibration, heldout, training, unseen"):
        script.fetch(tmp_path, sets=("calibration", "test"))
    assert not list(tmp_path.iterdir())


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
