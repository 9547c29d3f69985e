#!/usr/bin/env python3
"""Render the real document pages that the int8 tests and examples run on, and print their folder.

The pages come from PDFs in documentation packages of Debian 12 (papers, manuals and reference cards with pictures,
tables, formulas, lists and footnotes, in English, German and Japanese): 25 to calibrate with and 25 held out, from
different packages. `apt-get download` fetches the packages by name and version; each is checked against its sha256
and read here, nothing is installed. pypdfium2 (PyPI) renders the pages, 1400 pixels on the long side. All of it is
cached in $DHEAD_CACHE (default: ~/.cache/dhead_trt); a package put there by hand is used too. The documents are under
their own free licences (/usr/share/doc/*/copyright in each package) and are not part of this repository.

    python scripts/make_test_pages.py [--cache DIR]

Standard output is the folder, which holds `calibration/` and `heldout/`; everything else goes to standard error. Exit
code 2 if the pages cannot be had.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LONG_SIDE = 1400  # pixels
_STAMP = "recipe.json"


@dataclass(frozen=True)
class Package:
    """A Debian package of Architecture: all, and the pages wanted of its PDFs.

    Attributes:
        name, version: of the package.
        sha256: of the .deb file.
        pages: path inside the package → numbers of the pages, from 1.
    """

    name: str
    version: str
    sha256: str
    pages: dict[str, tuple[int, ...]]

    @property
    def file_name(self) -> str:
        """As apt-get names the file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"


_R = "usr/lib/R/site-library"
_DOC = "usr/share/doc"
HELD_OUT = (
    Package(
        "asymptote-doc",
        "2.85+ds-1",
        "b2ae6e97c64ede66c1e41cc913f790b01188d198557203a2b3c500ba3495e6ca",
        {f"{_DOC}/asymptote/CAD.pdf": (1, 6), f"{_DOC}/asymptote/asymptote.pdf": (16, 76, 166)},
    ),
    Package(
        "debian-policy",
        "4.6.2.0",
        "ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39",
        {f"{_DOC}/debian-policy/fhs/fhs-3.0.pdf.gz": (23, 34), f"{_DOC}/debian-policy/policy.pdf.gz": (89,)},
    ),
    Package(
        "debmake-doc",
        "1.17-7",
        "f562cf744d906b9255c60d659873609ed5f40d657d99c4a6f3f5c194c24507cf",
        {f"{_DOC}/debmake-doc/debmake-doc.de.pdf": (67,), f"{_DOC}/debmake-doc/debmake-doc.ja.pdf": (44,)},
    ),
    Package(
        "r-cran-effects",
        "4.2.2-1",
        "2735e1b0ed99fd3db4af8dd812ad97213845a5a3f581d2f8cf1d6efda0fecbe4",
        {
            f"{_R}/effects/doc/functions-supported-by-effects.pdf": (3,),
            f"{_R}/effects/doc/predictor-effects-gallery.pdf": (10, 14, 34, 40),
        },
    ),
    Package(
        "r-cran-spacetime",
        "1.2-8+dfsg-1",
        "8334d95e0866e39646667bdb54c25359251764b64ee9dfe03c1fc9c515784490",
        {f"{_R}/spacetime/doc/jss816.pdf": (1, 3, 8), f"{_R}/spacetime/doc/sto.pdf": (4, 6, 9)},
    ),
    Package(
        "speex-doc",
        "1.2.1-2",
        "1e6d8aed480390e7d4ff49b5120bc21ed6ec7e5ab14419cda47dc863a5017bf1",
        {f"{_DOC}/speex/manual.pdf.gz": (10, 25, 30)},
    ),
    Package(
        "yorick-doc",
        "2.2.04+dfsg1-12",
        "dc45c2b3da84449791f7f183281eac68e043a3fcda553f529466b4ae02f830ad",
        {f"{_DOC}/yorick-doc/refs.pdf.gz": (1,)},
    ),
)
CALIBRATION = (
    Package(
        "dblatex-doc",
        "0.3.12py3-2",
        "d5071654a04581ea023604cb2705ef71d13677a054023616ae9a8172a67f92f4",
        {f"{_DOC}/dblatex/manual.pdf.gz": (44,), f"{_DOC}/dblatex/release-notes.pdf.gz": (6,)},
    ),
    Package(
        "evolver-doc",
        "2.70+ds-8",
        "984a35359bdd3fe4f5545bc023ac47e63e3b4fc9365d73a80ff4a4a36fe19f7f",
        {f"{_DOC}/evolver/manual270.pdf": (23, 45)},
    ),
    Package(
        "form-doc",
        "4.3.0+git20230104+ds-1",
        "56a95b57c823648856bc00151fb12ab11e89fcf39dd7bce4b6203cd38078ffd5",
        {f"{_DOC}/form-doc/manual.pdf": (22, 108)},
    ),
    Package(
        "gnuplot-doc",
        "5.4.4+dfsg1-2",
        "73fe1816a296594cf6a1d38528f8d740fd650f57a2cb62e029f7920fcd5b31f0",
        {f"{_DOC}/gnuplot/gnuplot.pdf": (120, 239)},
    ),
    Package(
        "ifeffit-doc",
        "2:1.2.11d-12.5",
        "3c9d7101295368e82f1eb342222b28d21b2208610a784ce52ca25f948ca9de91",
        {f"{_DOC}/ifeffit/pdf/autobk.pdf": (18,), f"{_DOC}/ifeffit/pdf/diffkk.pdf": (13,)},
    ),
    Package(
        "mrbayes-doc",
        "3.2.7a-6",
        "a2be3335a6936f4b2c31edb757dc0f585423f0e39909184e1e15adcaac45a999",
        {f"{_DOC}/mrbayes/Manual_MrBayes_v3.2.pdf": (40,)},
    ),
    Package(
        "ngspice-doc",
        "39.3+ds-1",
        "65153e2a2974781507c2331e59ab1f9333b0cffc72388188eb2c0e0ffba2767a",
        {f"{_DOC}/ngspice-doc/manual.pdf.gz": (55, 165, 550)},
    ),
    Package(
        "quilt",
        "0.67+really0.66-1",
        "a540ed782849c6f175eabc8551a5c365bfda1b7a52d836b7f0c7ef05ecccc4eb",
        {f"{_DOC}/quilt/quilt.pdf": (4, 5)},
    ),
    Package(
        "r-cran-vcd",
        "1:1.4-11-1",
        "959639853b06a9056b4494e145bf84394a329805645e80c4384091323b6c6ae4",
        {f"{_R}/vcd/doc/residual-shadings.pdf": (2, 5), f"{_R}/vcd/doc/strucplot.pdf": (4, 11, 19, 37)},
    ),
    Package(
        "sketch-doc",
        "1:0.3.7-12",
        "6d14e09b549992c2ea390a1bd1157fedbc119e9dabb4257691310f77c2492012",
        {f"{_DOC}/sketch-doc/sketch.pdf.gz": (8, 23, 45)},
    ),
)
SETS = {"calibration": CALIBRATION, "heldout": HELD_OUT}


class PagesError(Exception):
    """The pages cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Pages:
    """Folders of PNG files.

    Attributes:
        calibration: to calibrate with.
        heldout: to measure on; of other documents.
    """

    calibration: Path
    heldout: Path


def cache_dir() -> Path:
    """$DHEAD_CACHE, or ~/.cache/dhead_trt."""
    chosen = os.environ.get("DHEAD_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dhead_trt"


def fetch(cache: Path | None = None) -> Pages:
    """The rendered pages, made on first use.

    Args:
        cache: folder to keep packages and pages in; None: `cache_dir()`.

    Raises:
        PagesError: pypdfium2 or apt-get is missing, a package cannot be downloaded, or a sha256 does not match.
    """
    cache = cache or cache_dir()
    folder = cache / "pages"
    pages = Pages(folder / "calibration", folder / "heldout")
    if _whole(folder):
        return pages
    try:
        import pypdfium2
    except ImportError as e:
        raise PagesError(
            "rendering PDF pages needs pypdfium2, which is not installed. Run: pip install pypdfium2"
        ) from e
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pages-", dir=cache) as work:
            made = Path(work) / "pages"
            for kind, packages in SETS.items():
                (made / kind).mkdir(parents=True)
                for package in packages:
                    _render(pypdfium2, package, _deb(package, cache / "debs", Path(work)), made / kind)
            (made / _STAMP).write_text(_recipe(), "utf-8")
            if folder.exists() and not _whole(folder):
                os.replace(folder, Path(work) / "old")
            os.replace(made, folder)  # same file system, so a reader sees all the pages or none
    except OSError as e:
        if _whole(folder):  # another process was faster
            return pages
        raise PagesError(f"cannot write to the cache {cache}: {e}. Set DHEAD_CACHE to a writable folder.") from e
    return pages


def _whole(folder: Path) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text("utf-8") == _recipe() and all(p.is_file() for p in _files(folder))


def _recipe() -> str:
    """What the pages are made of: another recipe makes them anew."""
    sets = {kind: [asdict(p) for p in packages] for kind, packages in SETS.items()}
    return json.dumps({"long_side": LONG_SIDE, **sets}, indent=1)


def _files(folder: Path) -> Iterator[Path]:
    for kind, packages in SETS.items():
        for package in packages:
            for member, numbers in package.pages.items():
                yield from (folder / kind / _page_name(package, member, n) for n in numbers)


def _page_name(package: Package, member: str, number: int) -> str:
    return f"{package.name}_{Path(member).name.split('.pdf')[0]}_{number:03d}.png"


def _deb(package: Package, folder: Path, work: Path) -> Path:
    """The checked package, from the cache or from Debian."""
    kept = folder / package.file_name
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == package.sha256:
        return kept
    apt = shutil.which("apt-get")
    by_hand = f"put {package.file_name} (https://packages.debian.org) into {folder} by hand"
    if apt is None:
        raise PagesError(
            f"there is no apt-get here to download {package.name} with: run this on Debian 12, or {by_hand}."
        )
    print(f"Downloading {package.name} {package.version} with apt-get …", file=sys.stderr, flush=True)
    command = [apt, "download", "--quiet", f"{package.name}={package.version}"]
    done = subprocess.run(
        command, cwd=work, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    got = work / package.file_name
    if done.returncode != 0 or not got.is_file():
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no message"]
        raise PagesError(
            f"apt-get could not download {package.name}={package.version}: {errors[0].removeprefix('E: ')}. "
            f"It is in Debian 12 (bookworm, main): run apt-get update there, or {by_hand}."
        )
    received = hashlib.sha256(got.read_bytes()).hexdigest()
    if received != package.sha256:
        raise PagesError(f"{package.file_name} has sha256 {received}, expected {package.sha256}: not used.")
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(got, kept)
    return kept


def _render(pdfium: Any, package: Package, deb: Path, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(_data_archive(deb)), mode="r:*") as archive:
        for member, numbers in package.pages.items():
            file = archive.extractfile(f"./{member}")
            if file is None:
                raise PagesError(f"{deb.name} does not hold {member}. Delete it from the cache and run again.")
            content = file.read()
            document = pdfium.PdfDocument(gzip.decompress(content) if member.endswith(".gz") else content)
            for number in numbers:
                page = document[number - 1]
                image = page.render(scale=LONG_SIDE / max(page.get_size())).to_pil()
                image.convert("RGB").save(folder / _page_name(package, member, number))


def _data_archive(deb: Path) -> bytes:
    """The member data.tar.* of a package, which is an ar archive: 60-byte headers, members at even offsets."""
    content, at = deb.read_bytes(), 8
    while content.startswith(b"!<arch>\n") and at + 60 <= len(content):
        name, length = content[at : at + 16].rstrip(), int(content[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            return content[at + 60 : at + 60 + length]
        at += 60 + length + length % 2
    raise PagesError(f"{deb.name} is no Debian package. Delete it from the cache and run again.")


def main(argv: list[str] | None = None) -> int:
    """Command line: prints the folder; 2 if the pages cannot be had."""
    parser = argparse.ArgumentParser(description="Render the document pages of the int8 tests and print their folder.")
    parser.add_argument(
        "--cache", type=Path, help="folder to keep them in (default: $DHEAD_CACHE or ~/.cache/dhead_trt)"
    )
    arguments = parser.parse_args(argv)
    try:
        pages = fetch(arguments.cache)
    except PagesError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{len(list(p.glob('*.png')))} in {p.name}" for p in (pages.calibration, pages.heldout))
    print(f"{counts}, {LONG_SIDE} px on the long side", file=sys.stderr)
    print(pages.calibration.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
