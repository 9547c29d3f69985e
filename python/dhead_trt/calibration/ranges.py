"""The result of a calibration, and the file it is kept in."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import atomic_path

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["SCHEMA", "Ranges", "model_sha256"]

SCHEMA = 1
_KIND = "dhead_trt calibration"


@dataclass(frozen=True)
class Ranges:
    """The range of each activation.

    Attributes:
        tensors: name of a tensor in the float32 graph → (low, high) to represent, low ≤ 0 ≤ high.
        method: "minmax", "percentile", "entropy" or "mse" (or "trained").
        model_sha256: of the network, from `model_sha256`.
        data_sha256: of the data it was fed.
        images: how many.
        options: of the method, such as {"percentile": 99.99}.
    """

    tensors: Mapping[str, tuple[float, float]]
    method: str
    model_sha256: str = ""
    data_sha256: str = ""
    images: int = 0
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        clean = {}
        for name, pair in self.tensors.items():
            try:
                low, high = (float(v) for v in pair)
            except (TypeError, ValueError) as e:
                raise InputError(f"The range of {name!r} is not a pair of numbers", received=repr(pair)) from e
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise InputError(f"The range of {name!r} is not one", received=(low, high), expected="low ≤ high")
            clean[str(name)] = (min(low, 0.0), max(high, 0.0))
        object.__setattr__(self, "tensors", clean)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes JSON, atomically; returns the path."""
        target = Path(path)
        with atomic_path(target) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return target

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "kind": _KIND,
            "schema": SCHEMA,
            "method": self.method,
            "options": dict(self.options),
            "model_sha256": self.model_sha256,
            "data_sha256": self.data_sha256,
            "images": self.images,
            "tensors": {name: list(pair) for name, pair in self.tensors.items()},
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ranges:
        """Reads what `save` wrote.

        Raises:
            InputError: it cannot be read, or is not a calibration.
        """
        what = "a file that Ranges.save wrote"
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise InputError("The calibration cannot be read", received=f"{path}: {e}", expected=what) from e
        if not isinstance(data, dict) or data.get("kind") != _KIND or not isinstance(data.get("tensors"), dict):
            raise InputError("This is not a calibration", received=path, expected=what)
        if data.get("schema") != SCHEMA:
            raise InputError(
                "The calibration was written by another version of dhead_trt",
                received=f"schema {data.get('schema')!r}",
                expected=f"schema {SCHEMA}",
                fix="Calibrate again",
            )
        try:
            return cls(
                tensors={name: tuple(pair) for name, pair in data["tensors"].items()},
                method=str(data["method"]),
                model_sha256=str(data["model_sha256"]),
                data_sha256=str(data["data_sha256"]),
                images=int(data["images"]),
                options=dict(data["options"]),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise InputError("The calibration is damaged", received=f"{path}: {e!r}", expected=what) from e


def model_sha256(model: ModelProto) -> str:
    """SHA-256 of a graph's network: its layers, what they depend on, and their weights.

    The same for every form of a graph (raw, decoded, …), whatever its batch and metadata, since its activations are.
    """
    from ..precision.layers import inspect

    view = inspect(model).view
    digest = hashlib.sha256()
    weights: set[str] = set()
    for i, node in enumerate(view.nodes):
        if i not in view.network:
            continue
        outputs = [] if i in view.last else list(node.output)  # the surgery renames those to box_0, cls_0, …
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        digest.update(repr((node.domain, node.op_type, list(node.input), outputs, attributes)).encode())
        weights.update(n for n in node.input if n in view.initializers)
    from onnx import numpy_helper

    for name in sorted(weights):
        array = numpy_helper.to_array(view.initializers[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
