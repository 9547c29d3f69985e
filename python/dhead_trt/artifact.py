"""A built engine on disk: the backend's own plan, untouched, and a JSON sidecar that describes it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from .baked import Baked
from .errors import ArtifactError, InputError
from .files import atomic_path, sha256_of
from .spec import HeadSpec

__all__ = ["SCHEMA", "Artifact", "FileRecord", "TensorInfo"]

SCHEMA = 2  # 2 added `detection`
FORMS = ("native", "raw", "decoded", "detections")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")
_REBUILD = "Build the engine again (dhead-trt build)"
_SHA = re.compile(r"[0-9a-f]{64}")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine.

    Attributes:
        name: its name in the graph.
        dtype: numpy's name of the element type ("float32", "float16", …).
        shape: dimensions; -1 where it may vary.
        profile: (min, opt, max) shapes where some dimension may vary and the engine has bounds, else None. A -1 inside
            a bound means that this dimension has none.
    """

    name: str
    dtype: str
    shape: Shape
    profile: tuple[Shape, Shape, Shape] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError("A tensor has no name", received=repr(self.name), expected="a string")
        if self.dtype not in DTYPES:
            raise InputError(f"Tensor {self.name!r} has an unknown dtype", received=repr(self.dtype), expected=DTYPES)
        object.__setattr__(self, "shape", _shape(self.name, self.shape))
        if self.profile is not None:
            shapes = tuple(_shape(self.name, s) for s in self.profile)
            if len(shapes) != 3 or any(len(s) != len(self.shape) for s in shapes):
                raise InputError(
                    f"Tensor {self.name!r} has a malformed profile",
                    received=self.profile,
                    expected="three shapes (min, opt, max) of the tensor's rank",
                )
            object.__setattr__(self, "profile", shapes)

    def accepts(self, shape: Shape) -> bool:
        """True where an array of `shape` fits this tensor and its profile."""
        if len(shape) != len(self.shape) or any(s not in (-1, d) for s, d in zip(self.shape, shape, strict=True)):
            return False
        if self.profile is None:
            return all(d >= 1 for d in shape)
        low, _, high = self.profile
        return all(max(a, 1) <= d and (b == -1 or d <= b) for a, d, b in zip(low, shape, high, strict=True))

    def describe(self) -> str:
        """The accepted shapes, for people: "[1..4, 3, 640, 640]"."""
        dims = [str(d) if d != -1 else "any" for d in self.shape]
        if self.profile is not None:
            low, _, high = self.profile
            for i, d in enumerate(self.shape):
                if d == -1 and not (low[i] <= 1 and high[i] == -1):
                    dims[i] = f"{max(low[i], 1)}..{high[i] if high[i] != -1 else ''}"
        return f"[{', '.join(dims)}]"


@dataclass(frozen=True)
class FileRecord:
    """A file of the plan: its name (without a folder), size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or self.name != os.path.basename(self.name):
            raise InputError("A plan file's name is not a bare file name", received=repr(self.name))
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 0:
            raise InputError(f"The size of {self.name!r} is not a number of bytes", received=repr(self.size))
        if not isinstance(self.sha256, str) or not _SHA.fullmatch(self.sha256):
            raise InputError(f"The sha256 of {self.name!r} is not 64 hex digits", received=repr(self.sha256))

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Measures a file."""
        return cls(path.name, path.stat().st_size, sha256_of(path))


@dataclass(frozen=True)
class Artifact:
    """A plan and what its sidecar `<stem>.json` says of it.

    Attributes:
        plan: path of the plan.
        backend: name of the backend that built it and can load it.
        backend_version: the backend's version at build time.
        form: "native", "raw", "decoded" or "detections" (what the plan's outputs are).
        precision: "fp32", "fp16", "bf16" or "int8".
        spec: the head; None only for a native graph that carries no HeadSpec.
        inputs, outputs: the plan's tensors in order.
        files: the plan and the files that belong to it, the plan first.
        gpu: name of the GPU it was built on, or None where it was built without one.
        compute_capabilities: what it runs on ("8.6", …); empty where that does not apply.
        source_sha256: of the ONNX it came from, before surgery.
        dhead_trt: version of this package that built it.
        options: build options that matter for a rebuild.
        report: figures of surgery and verification.
        notes: sentences a person should read: fall-backs, choices made for them.
        detection: conf, iou and the rest that a plan of form "detections" holds; None for other forms.
        schema: version of the sidecar's layout.
    """

    plan: Path
    backend: str
    backend_version: str
    form: str
    precision: str
    spec: HeadSpec | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    files: tuple[FileRecord, ...]
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    source_sha256: str
    dhead_trt: str
    options: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    detection: Baked | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "plan", Path(self.plan))
        for name in ("inputs", "outputs", "files", "compute_capabilities", "notes"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, (tuple, list)):
                raise InputError(f"Artifact.{name} is not a list", received=type(value).__name__)
            set_(self, name, tuple(value))
        for name in ("backend", "backend_version", "dhead_trt", "source_sha256"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"Artifact.{name} is not a string", received=repr(getattr(self, name)))
        if self.gpu is not None and not isinstance(self.gpu, str):
            raise InputError("Artifact.gpu is not a string", received=repr(self.gpu))
        for name in ("compute_capabilities", "notes"):
            if not all(isinstance(v, str) for v in getattr(self, name)):
                raise InputError(f"Artifact.{name} is not a list of strings", received=repr(getattr(self, name)))
        if self.form not in FORMS:
            raise InputError("Artifact.form is not known", received=repr(self.form), expected=FORMS)
        if self.precision not in PRECISIONS:
            raise InputError("Artifact.precision is not known", received=repr(self.precision), expected=PRECISIONS)
        if self.form != "native" and self.spec is None:
            raise InputError(f"An artifact of form {self.form!r} needs a HeadSpec", received="none")
        if not self.inputs or not self.outputs or not self.files:
            raise InputError("An artifact needs inputs, outputs and files", received="an empty list")
        if self.files[0].name != self.plan.name:
            raise InputError(
                "The sidecar describes another plan", received=self.plan.name, expected=self.files[0].name, fix=_REBUILD
            )
        if self.detection is not None and (self.form != "detections" or not isinstance(self.detection, Baked)):
            raise InputError("Artifact.detection is for plans of form 'detections'", received=repr(self.detection))
        if self.form == "raw" and self.spec is not None:
            names = tuple(t.name for t in self.outputs)
            if names != self.spec.input_names:
                raise InputError(
                    "A raw plan's outputs are not the raw maps", received=names, expected=self.spec.input_names
                )

    @property
    def sidecar(self) -> Path:
        """Path of the JSON sidecar: the plan's, with the suffix .json."""
        return self.plan.with_suffix(".json")

    def to_dict(self) -> dict[str, Any]:
        """The sidecar's content, plain JSON types."""
        data = asdict(self)
        del data["plan"]
        data["spec"] = None if self.spec is None else self.spec.to_dict()
        return cast("dict[str, Any]", json.loads(json.dumps(data, default=_plain)))

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Writes the sidecar, atomically; returns its path.

        Args:
            path: where; by default beside the plan.
        """
        target = self.sidecar if path is None else Path(path)
        with atomic_path(target) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Artifact:
        """Reads the sidecar of a plan, and checks that the two belong together.

        Args:
            path: the plan, or its sidecar.
            verify: also read the plan's files and compare size and SHA-256.

        Raises:
            ArtifactError: plan or sidecar is missing, damaged, from a newer dhead_trt, or not of the other.
        """
        given = Path(path)
        if given.is_dir():
            raise ArtifactError(
                "This is a folder", received=given, expected="the plan of an engine, or its .json sidecar"
            )
        sidecar = given.with_suffix(".json")
        if not given.exists() and not sidecar.exists():
            raise ArtifactError("There is no engine here", received=given, expected="a plan with its .json sidecar")
        if not sidecar.exists():
            raise ArtifactError(
                "The plan has no sidecar, so its head and its tensors are not known",
                received=f"{given.name} alone",
                expected=f"{sidecar.name} beside it",
                fix="Copy the sidecar along with the plan, or build the engine again (dhead-trt build)",
            )
        artifact = cls._parse(sidecar)
        if given != sidecar and given.name not in {f.name for f in artifact.files}:
            raise ArtifactError(
                "The sidecar belongs to another plan", received=given.name, expected=artifact.plan.name, fix=_REBUILD
            )
        if verify:
            artifact.verify()
        return artifact

    @classmethod
    def _parse(cls, sidecar: Path) -> Artifact:
        def bad(why: str) -> ArtifactError:
            return ArtifactError("The sidecar is not readable", received=f"{sidecar.name}: {why}", fix=_REBUILD)

        try:
            data = json.loads(sidecar.read_text(encoding="utf-8"))
        except json.JSONDecodeError as e:
            raise bad(f"not JSON ({e})") from e
        except (OSError, UnicodeDecodeError, RecursionError) as e:
            raise bad(str(e)) from e
        if not isinstance(data, dict):
            raise bad(f"a JSON {type(data).__name__}, not an object")
        schema = data.get("schema")
        if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
            raise bad(f"no schema version (found {schema!r})")
        if schema > SCHEMA:
            raise ArtifactError(
                f"The sidecar {sidecar.name} was written by a newer dhead_trt",
                received=f"schema {schema} (dhead_trt {data.get('dhead_trt', 'unknown')})",
                expected=f"schema {SCHEMA} at most",
                fix="Upgrade dhead_trt here, or build the engine with the version installed here",
            )
        if schema == 1:
            data |= {"detection": _of_schema_1(data), "schema": SCHEMA}
        known = {f.name for f in fields(cls)} - {"plan"}
        unknown, missing = sorted(set(data) - known), sorted(known - set(data))
        if unknown or missing:
            raise bad(f"unknown fields {unknown}, missing fields {missing}")
        try:
            data["spec"] = None if data["spec"] is None else HeadSpec.from_dict(data["spec"])
            for key in ("inputs", "outputs"):
                data[key] = [TensorInfo(**t) for t in data[key]]
            data["files"] = [FileRecord(**f) for f in data["files"]]
            if data["detection"] is not None:
                data["detection"] = Baked(**data["detection"])
            if not data["files"]:
                raise bad("it lists no files")
            for key in ("options", "report"):
                if not isinstance(data[key], dict):
                    raise bad(f"{key} is not an object")
            return cls(plan=sidecar.parent / data["files"][0].name, **data)
        except (InputError, TypeError) as e:
            raise bad(str(e)) from e

    def verify(self) -> None:
        """Reads the plan's files and compares size and SHA-256 with the sidecar.

        Raises:
            ArtifactError: a file is missing, truncated, or has other content.
        """
        for record in self.files:
            path = self.plan.parent / record.name
            try:
                size = path.stat().st_size
            except OSError as e:
                raise ArtifactError(
                    "A file of the engine is missing",
                    received=f"no {record.name} in {self.plan.parent}",
                    expected=", ".join(f.name for f in self.files),
                    fix="Copy all its files together, or build the engine again",
                ) from e
            if size < record.size:
                raise ArtifactError(
                    f"{record.name} is truncated",
                    received=f"{size} bytes",
                    expected=f"{record.size} bytes",
                    fix=_REBUILD,
                )
            if size != record.size or sha256_of(path) != record.sha256:
                raise ArtifactError(
                    f"{record.name} is damaged, or of another build than {self.sidecar.name}",
                    received=f"{size} bytes with another sha256" if size == record.size else f"{size} bytes",
                    expected=f"{record.size} bytes, sha256 {record.sha256[:12]}…",
                    fix=_REBUILD,
                )


def _of_schema_1(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The detection options of a plan whose sidecar does not say: in those days a build took the defaults."""
    return Baked().to_dict() if data.get("form") == "detections" else None


def _shape(name: str, shape: object) -> Shape:
    if not isinstance(shape, (tuple, list)) or any(
        isinstance(d, bool) or not isinstance(d, int) or d < -1 for d in shape
    ):
        raise InputError(
            f"Tensor {name!r} has a malformed shape", received=repr(shape), expected="integers, -1 = varies"
        )
    return tuple(shape)


def _plain(value: object) -> object:
    """JSON for what reports may hold: numpy numbers, paths (their names), sets."""
    if isinstance(value, os.PathLike):
        return os.path.basename(os.fspath(value))
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
