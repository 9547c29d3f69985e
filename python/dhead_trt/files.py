"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

__all__ = ["atomic_files", "atomic_path", "sha256_of"]

_CHUNK = 1 << 20


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path of the same name on the same file system; on a clean exit it replaces `path`.

    On any exception, Ctrl-C included, `path` is left as it was and nothing of the temporary file stays behind.

    Raises:
        InputError: the folder cannot be made, or the file cannot be put in place.
    """
    target = Path(path)
    with atomic_files(target.parent, [target.name]) as staging:
        yield staging / target.name


@contextmanager
def atomic_files(folder: str | os.PathLike[str], names: Sequence[str]) -> Iterator[Path]:
    """Yields a staging folder inside `folder`; on a clean exit the files `names` in it replace those in `folder`.

    They are moved in the order given, so that the last one can vouch for the others; `names` is read at the exit, so a
    list may be filled inside the `with`. If a move fails, those already made are undone. On any exception, Ctrl-C
    included, `folder` is left as it was.

    Raises:
        InputError: `folder` cannot be made or written to, or one of `names` was not written.
    """
    folder = Path(folder)
    made = _make(folder)
    staging: Path | None = None
    try:
        try:
            staging = Path(tempfile.mkdtemp(prefix=".dhead-", dir=folder))
        except OSError as e:
            raise _cannot_write(folder, e) from e
        yield staging
        _publish(staging, folder, names)
        made = []
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):
            for parent in reversed(made):
                parent.rmdir()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _make(folder: Path) -> list[Path]:
    """Makes `folder` and its missing parents; returns those made, outermost first."""
    missing = []
    probe = folder
    while not probe.exists():
        missing.append(probe)
        probe = probe.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _cannot_write(folder, e) from e
    return missing[::-1]


def _publish(staging: Path, folder: Path, names: Sequence[str]) -> None:
    absent = [n for n in names if not (staging / n).is_file()]
    if absent:
        raise InputError("A file was not written", received=f"no {absent[0]!r}", expected=f"{list(names)}")
    backups = Path(tempfile.mkdtemp(prefix="old-", dir=staging))
    done: list[str] = []
    try:
        for name in names:
            target = folder / name
            if target.is_dir():
                raise IsADirectoryError(f"{target.name} is a folder")
            if target.exists():
                os.replace(target, backups / name)
            done.append(name)
            os.replace(staging / name, target)
    except BaseException as e:
        for name in reversed([*done, *(n for n in names if n not in done)]):
            if (backups / name).exists():
                os.replace(backups / name, folder / name)
            elif name in done and not (staging / name).exists():
                (folder / name).unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise _cannot_write(folder, e) from e
        raise


def _cannot_write(folder: Path, error: OSError) -> InputError:
    return InputError(
        "Cannot write there",
        received=f"{folder}: {error.strerror or error}",
        expected="a folder this user can write to, with room for the file",
    )
