"""Plan and sidecar on disk: what is written is read back, and everything else is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhead_trt import ArtifactError, HeadSpec, InputError
from dhead_trt.artifact import SCHEMA, Artifact, FileRecord, TensorInfo
from dhead_trt.files import atomic_files, atomic_path, sha256_of

SPEC = HeadSpec(num_classes=2, strides=(8, 16), bins=4, names=("cat", "Hündchen"), image_size=(64, 32))


def make(
    folder: Path, stem: str = "engine", content: bytes = b"plan" * 100, weights: bytes | None = b"w" * 999
) -> Artifact:
    plan = folder / f"{stem}.xml"
    plan.write_bytes(content)
    files = [FileRecord.of(plan)]
    if weights is not None:
        (folder / f"{stem}.bin").write_bytes(weights)
        files.append(FileRecord.of(folder / f"{stem}.bin"))
    shapes = {"box_0": (-1, 16, 8, 4), "cls_0": (-1, 2, 8, 4), "box_1": (-1, 16, 4, 2), "cls_1": (-1, 2, 4, 2)}
    artifact = Artifact(
        plan=plan,
        backend="openvino",
        backend_version="1.2.3",
        form="raw",
        precision="fp32",
        spec=SPEC,
        inputs=(TensorInfo("images", "float32", (-1, 3, 64, 32), ((1, 3, 64, 32), (2, 3, 64, 32), (4, 3, 64, 32))),),
        outputs=tuple(TensorInfo(n, "float32", s) for n, s in shapes.items()),
        files=tuple(files),
        gpu=None,
        compute_capabilities=("8.6", "8.9"),
        source_sha256="0" * 64,
        dhead_trt="0.1.0",
        options={"compress_to_fp16": False},
        report={"surgery": {"max_box_error_px": 1.5e-4}},
        notes=("chosen because",),
    )
    artifact.save()
    return artifact


def edit(artifact: Artifact, **changes: Any) -> None:
    """Overwrites fields of the sidecar; a value of ... removes the field."""
    data = json.loads(artifact.sidecar.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is ...:
            del data[key]
        else:
            data[key] = value
    artifact.sidecar.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize("name", ["engine.xml", "engine.bin", "engine.json"])
def test_reads_back_what_it_wrote(tmp_path: Path, name: str) -> None:
    artifact = make(tmp_path)
    assert Artifact.load(tmp_path / name) == artifact
    assert artifact.sidecar == tmp_path / "engine.json"
    assert json.loads(artifact.sidecar.read_text(encoding="utf-8"))["schema"] == SCHEMA
    assert str(tmp_path) not in artifact.sidecar.read_text(encoding="utf-8"), "the sidecar names this machine's folders"


def test_sidecars_of_the_first_schema_are_read(tmp_path: Path) -> None:
    artifact = make(tmp_path)
    edit(artifact, schema=1, detection=...)
    assert Artifact.load(artifact.plan) == artifact
    edit(artifact, schema=SCHEMA)
    with pytest.raises(ArtifactError, match=r"missing fields \['detection'\]"):
        Artifact.load(artifact.plan)


def test_a_moved_engine_still_loads(tmp_path: Path) -> None:
    make(tmp_path)
    there = tmp_path / "elsewhere"
    there.mkdir()
    for name in ("engine.xml", "engine.bin", "engine.json"):
        (tmp_path / name).rename(there / name)
    assert Artifact.load(there / "engine.xml").plan == there / "engine.xml"


def test_frozen(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(tmp_path).form = "native"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "engine.json").unlink(), ["no sidecar", "engine.json", "Copy the sidecar"]),
        (lambda f: (f / "engine.xml").unlink(), ["missing", "engine.xml"]),
        (lambda f: (f / "engine.bin").unlink(), ["missing", "engine.bin"]),
        (lambda f: os.truncate(f / "engine.xml", 399), ["engine.xml is truncated", "399 bytes", "400 bytes"]),
        (lambda f: os.truncate(f / "engine.bin", 0), ["engine.bin is truncated", "0 bytes", "999 bytes"]),
        (lambda f: (f / "engine.xml").write_bytes(b"plan" * 99 + b"plbn"), ["engine.xml is damaged", "another sha256"]),
        (lambda f: (f / "engine.bin").write_bytes(b"w" * 1000), ["engine.bin is damaged", "1000 bytes", "999 bytes"]),
        (lambda f: (f / "engine.json").write_text('{"schema": 1,'), ["not readable", "not JSON"]),
        (lambda f: (f / "engine.json").write_bytes(b""), ["not readable", "not JSON"]),
        (lambda f: (f / "engine.json").write_bytes(b"\xff\xfe\x00"), ["not readable"]),
        (lambda f: (f / "engine.json").write_text("[" * 100_000), ["not readable"]),
        (lambda f: (f / "engine.json").write_text("[1]"), ["not readable", "list"]),
        (lambda f: (f / "engine.json").write_text("{}"), ["no schema version"]),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, spoil: Any, words: list[str]) -> None:
    make(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ArtifactError) as e:
        Artifact.load(tmp_path / "engine.xml")
    for word in words:
        assert word in str(e.value)


def test_sidecar_of_another_plan(tmp_path: Path) -> None:
    """Another plan under the same name, and a sidecar renamed to sit beside another plan."""
    make(tmp_path, "a", b"plan a..", None)
    make(tmp_path, "b", b"plan b..", None)
    os.replace(tmp_path / "b.xml", tmp_path / "a.xml")
    with pytest.raises(ArtifactError, match=r"a\.xml is damaged, or of another build than a\.json"):
        Artifact.load(tmp_path / "a.xml")
    make(tmp_path, "b", b"plan b..", None)
    os.replace(tmp_path / "b.json", tmp_path / "a.json")
    with pytest.raises(ArtifactError, match=r"belongs to another plan: received a\.xml, expected b\.xml"):
        Artifact.load(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": SCHEMA + 1}, ["newer dhead_trt", f"schema {SCHEMA + 1}", "Upgrade"]),
        ({"schema": True}, ["no schema version"]),
        ({"schema": "1"}, ["no schema version"]),
        ({"surprise": 1}, ["unknown fields ['surprise']"]),
        ({"form": ...}, ["missing fields ['form']"]),
        ({"form": "cooked"}, ["Artifact.form", "cooked"]),
        ({"precision": "fp12"}, ["Artifact.precision", "fp12"]),
        ({"backend": 3}, ["Artifact.backend"]),
        ({"spec": None}, ["needs a HeadSpec"]),
        ({"spec": {"num_classes": 2}}, ["HeadSpec"]),
        ({"inputs": []}, ["inputs"]),
        ({"inputs": "images"}, ["not readable"]),
        ({"inputs": [{"name": "images", "dtype": "float32", "shape": [-2, 3], "profile": None}]}, ["malformed shape"]),
        ({"inputs": [{"name": "images", "dtype": "float33", "shape": [1, 3], "profile": None}]}, ["unknown dtype"]),
        (
            {"inputs": [{"name": "images", "dtype": "float32", "shape": [1], "profile": [[1], [1, 2], [1]]}]},
            ["profile"],
        ),
        ({"inputs": [{"name": "images", "colour": 1}]}, ["not readable"]),
        ({"outputs": [{"name": "box_0", "dtype": "float32", "shape": [1], "profile": None}]}, ["raw maps"]),
        ({"files": []}, ["lists no files"]),
        ({"files": [{"name": "../engine.xml", "size": 1, "sha256": "0" * 64}]}, ["bare file name"]),
        ({"files": [{"name": "engine.xml", "size": -1, "sha256": "0" * 64}]}, ["number of bytes"]),
        ({"files": [{"name": "engine.xml", "size": 1, "sha256": "xyz"}]}, ["64 hex digits"]),
        ({"options": []}, ["options is not an object"]),
        ({"notes": "one"}, ["Artifact.notes"]),
        ({"compute_capabilities": [8.6]}, ["Artifact.compute_capabilities"]),
    ],
)
def test_malformed_sidecars_are_refused(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    artifact = make(tmp_path)
    edit(artifact, **changes)
    with pytest.raises(ArtifactError) as e:
        Artifact.load(artifact.plan)
    for word in words:
        assert word in str(e.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(field=st.sampled_from([f.name for f in dataclasses.fields(Artifact) if f.name != "plan"]), value=_JSON)
def test_any_value_in_any_field_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    artifact = make(tmp_path_factory.mktemp("any"))
    edit(artifact, **{field: value})
    try:
        loaded = Artifact.load(artifact.plan)
    except ArtifactError:
        pass
    else:
        assert loaded.to_dict().keys() == artifact.to_dict().keys()


@pytest.mark.parametrize("path", [".", "/", ""])
def test_a_folder_is_no_engine(path: str) -> None:
    with pytest.raises(ArtifactError, match="This is a folder"):
        Artifact.load(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There is no engine here"):
        Artifact.load(tmp_path / "no.plan")
    with pytest.raises(ArtifactError, match="folder"):
        Artifact.load(tmp_path)


@pytest.mark.parametrize(
    ("shape", "accepted"),
    [
        ((1, 3, 64, 32), True),
        ((4, 3, 64, 32), True),
        ((0, 3, 64, 32), False),
        ((5, 3, 64, 32), False),
        ((1, 3, 64, 33), False),
        ((3, 64, 32), False),
    ],
)
def test_tensor_accepts(shape: tuple[int, ...], accepted: bool) -> None:
    t = TensorInfo("x", "float32", (-1, 3, 64, 32), ((1, 3, 64, 32), (1, 3, 64, 32), (4, 3, 64, 32)))
    assert t.accepts(shape) is accepted
    assert t.describe() == "[1..4, 3, 64, 32]"
    free = TensorInfo("x", "float32", (-1, 3, -1, -1), ((1, 3, -1, -1), (1, 3, -1, -1), (4, 3, -1, -1)))
    assert free.accepts((4, 3, 1, 999))
    assert not free.accepts((5, 3, 1, 999))
    assert not free.accepts((1, 3, 0, 1))
    assert free.describe() == "[1..4, 3, any, any]"


class Boom(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


def test_atomic_path(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "x.bin"
    with atomic_path(target) as p:
        assert p.name == "x.bin"
        assert p.parent.parent == target.parent
        p.write_bytes(b"1")
    assert target.read_bytes() == b"1"
    with pytest.raises(Boom), atomic_path(target) as p:  # noqa: PT012
        p.write_bytes(b"2")
        raise Boom
    assert target.read_bytes() == b"1"
    assert os.listdir(target.parent) == ["x.bin"]
    assert oct(target.stat().st_mode)[-3:] == oct(0o666 & ~_umask())[-3:], "a file only its maker can read"
    with pytest.raises(InputError, match="not written"), atomic_path(target):
        pass
    with pytest.raises(Boom), atomic_path(tmp_path / "other" / "y"):
        raise Boom
    assert os.listdir(tmp_path) == ["new"], "a folder made for nothing stays"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("fail_at", range(6))
def test_atomic_files_are_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, fail_at: int
) -> None:
    """Every rename in turn fails once, as on a full or failing disk; the folder is as it was."""
    names = ["a.bin", "a.xml", "a.json"]
    if existing:
        for n in names:
            (tmp_path / n).write_text("old " + n)
    before = {n: (tmp_path / n).read_text() for n in os.listdir(tmp_path)}
    calls, real = 0, os.replace

    def replace(src: Any, dst: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at + 1:
            raise Boom
        real(src, dst)

    monkeypatch.setattr(os, "replace", replace)
    failed = False
    try:
        with atomic_files(tmp_path, names) as staging:
            for n in names:
                (staging / n).write_text("new " + n)
    except Boom:
        failed = True
    assert failed == (fail_at < (6 if existing else 3))
    after = {n: (tmp_path / n).read_text() for n in os.listdir(tmp_path)}
    assert after == (before if failed else {n: "new " + n for n in names})


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write there"), atomic_path(tmp_path / "file" / "x"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder"), atomic_path(tmp_path / "folder") as p:
        p.write_text("")


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
