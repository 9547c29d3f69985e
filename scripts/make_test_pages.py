#!/usr/bin/env python3
"""Render the real document pages that the int8 tests and examples run on, and print their folder.

The pages come from PDFs in documentation packages of Debian 12: papers, manuals, books, reference cards and slides with
pictures, tables, formulas, lists and footnotes, in a dozen languages. Two sets are what the tests run on, two more are
rendered only when asked for:

    calibration   25 pages to calibrate with
    heldout       25 pages to compare methods on, of other packages
    training     206 pages to train on: more of the packages of calibration, and of others
    unseen       105 pages to measure a finished method on, of packages in no other set; chosen at random with a fixed
                 seed among pages with at least 5 float32 detections, without looking at any int8 result

scripts/test_pages.json lists packages and pages. `apt-get download` fetches the packages by name and version; each is
checked against its sha256 and read here, nothing is installed. They are 36 MB for the first two sets, 49 MB more for
training and 97 MB for unseen. pypdfium2 (PyPI) renders the pages, 1400 pixels on the long side. All of it is cached in
$DHEAD_CACHE (default: ~/.cache/dhead_trt); a package put there by hand is used too. The documents are under their own
free licences (/usr/share/doc/*/copyright in each package) and are not part of this repository.

    python scripts/make_test_pages.py [--sets NAME …] [--cache DIR]

Standard output is the folder, which holds one folder for each set; everything else goes to standard error. Exit code 2
if the pages cannot be had.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LONG_SIDE = 1400  # pixels
TABLE = Path(__file__).with_name("test_pages.json")
DEFAULT_SETS = ("calibration", "heldout")
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


def _sets() -> dict[str, tuple[Package, ...]]:
    table = json.loads(TABLE.read_text("utf-8"))
    return {
        kind: tuple(
            Package(name, **table["packages"][name], pages={member: tuple(n) for member, n in pages.items()})
            for name, pages in wanted.items()
        )
        for kind, wanted in table["sets"].items()
    }


SETS: Mapping[str, tuple[Package, ...]] = _sets()


class PagesError(Exception):
    """The pages cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Pages:
    """Folders of PNG files, of which those exist that were asked for.

    Attributes:
        calibration: to calibrate with.
        heldout: to compare methods on; of other documents.
        training: to train on; more of the documents of `calibration`, and others.
        unseen: to measure a finished method on; of documents in no other set.
    """

    calibration: Path
    heldout: Path
    training: Path
    unseen: Path


def cache_dir() -> Path:
    """$DHEAD_CACHE, or ~/.cache/dhead_trt."""
    chosen = os.environ.get("DHEAD_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dhead_trt"


def fetch(cache: Path | None = None, sets: Sequence[str] = DEFAULT_SETS) -> Pages:
    """The rendered pages, made on first use.

    Args:
        cache: folder to keep packages and pages in; None: `cache_dir()`.
        sets: names from SETS; the others are left as they are.

    Raises:
        PagesError: there is no such set, pypdfium2 or apt-get is missing, a package cannot be downloaded, or a sha256
            does not match.
    """
    unknown = sorted(set(sets) - set(SETS))
    if unknown:
        raise PagesError(f"there is no set {', '.join(unknown)}: the sets are {', '.join(SETS)}.")
    cache = cache or cache_dir()
    folder = cache / "pages"
    for kind in sets:
        if not _whole(folder, kind):
            _make(kind, cache, folder)
    return Pages(**{kind: folder / kind for kind in SETS})


def _make(kind: str, cache: Path, folder: Path) -> None:
    """Renders one set beside the cache's folders and moves it in."""
    try:
        import pypdfium2
    except ImportError as e:
        raise PagesError(
            "rendering PDF pages needs pypdfium2, which is not installed. Run: pip install pypdfium2"
        ) from e
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pages-", dir=cache) as work:
            made = Path(work) / kind
            made.mkdir()
            for package in SETS[kind]:
                _render(pypdfium2, package, _deb(package, cache / "debs", Path(work)), made)
            (made / _STAMP).write_text(_recipe(kind), "utf-8")
            folder.mkdir(exist_ok=True)
            if (folder / kind).exists() and not _whole(folder, kind):
                os.replace(folder / kind, Path(work) / "old")
            os.replace(made, folder / kind)  # same file system, so a reader sees all the pages or none
    except OSError as e:
        if _whole(folder, kind):  # another process was faster
            return
        raise PagesError(f"cannot write to the cache {cache}: {e}. Set DHEAD_CACHE to a writable folder.") from e


def _whole(folder: Path, kind: str) -> bool:
    stamp = folder / kind / _STAMP
    return (
        stamp.is_file()
        and stamp.read_text("utf-8") == _recipe(kind)
        and all(p.is_file() for p in _files(folder / kind, SETS[kind]))
    )


def _recipe(kind: str) -> str:
    """What the pages of a set are made of: another recipe makes them anew."""
    return json.dumps({"long_side": LONG_SIDE, kind: [asdict(p) for p in SETS[kind]]}, indent=1)


def _files(folder: Path, packages: Sequence[Package]) -> Iterator[Path]:
    for package in packages:
        for member, numbers in package.pages.items():
            yield from (folder / _page_name(package, member, n) for n in numbers)


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
    parser.add_argument(
        "--sets", nargs="+", default=DEFAULT_SETS, choices=tuple(SETS), help="what to render (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        pages = fetch(arguments.cache, arguments.sets)
    except PagesError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    folder = pages.calibration.parent
    counts = ", ".join(f"{len(list((folder / kind).glob('*.png')))} in {kind}" for kind in arguments.sets)
    print(f"{counts}, {LONG_SIDE} px on the long side", file=sys.stderr)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
