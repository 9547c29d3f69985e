"""Triton's config.pbtxt, as text of a few dataclasses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import InputError

__all__ = ["Batching", "Instances", "ModelConfig", "Step", "Tensor", "WarmUp", "triton_type"]

_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
    "bytes": "TYPE_STRING",
}


def triton_type(dtype: str) -> str:
    """Triton's name of an element type, from numpy's ("bytes" for encoded files)."""
    try:
        return _TYPES[dtype]
    except KeyError:
        raise InputError("Triton has no such element type", received=dtype, expected=", ".join(_TYPES)) from None


@dataclass(frozen=True)
class Tensor:
    """An input or output: dims without the batch, -1 where they vary; `labels`: a file of class names."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    labels: str | None = None


@dataclass(frozen=True)
class Instances:
    """How many copies of the model run, and where: KIND_CPU, or KIND_GPU on `gpus` (all where empty)."""

    count: int = 1
    kind: str = "KIND_CPU"
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batching:
    """Triton's dynamic batcher: how long a request may wait for others, and how many may wait at all (0: no bound)."""

    delay_us: int
    max_queue: int
    timeout_us: int = 0


@dataclass(frozen=True)
class WarmUp:
    """One request before the model counts as ready: `file` of the folder warmup/, or zeros where None."""

    tensors: Mapping[str, tuple[str, tuple[int, ...], str | None]]  # name → dtype, dims, file


@dataclass(frozen=True)
class Step:
    """A model of an ensemble; its tensor names → the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """What a config.pbtxt holds; `backend` or `platform` as Triton has them."""

    name: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    max_batch: int
    backend: str | None = None
    platform: str | None = None
    plan: str | None = None
    instances: Instances | None = None
    batching: Batching | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    warm_up: WarmUp | None = None
    steps: Sequence[Step] = ()

    def render(self) -> str:
        """The file's text."""
        lines = [f"name: {_quoted(self.name)}"]
        lines += [
            f"{key}: {_quoted(value)}"
            for key, value in (
                ("backend", self.backend),
                ("platform", self.platform),
                ("default_model_filename", self.plan),
            )
            if value is not None
        ]
        lines.append(f"max_batch_size: {self.max_batch}")
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            lines.append(f"{kind} [")
            lines.append(",\n".join(_tensor(t) for t in tensors))
            lines.append("]")
        if self.instances is not None:
            gpus = f" gpus: {list(self.instances.gpus)}" if self.instances.gpus else ""
            lines.append(f"instance_group [ {{ count: {self.instances.count} kind: {self.instances.kind}{gpus} }} ]")
        if self.batching is not None:
            lines += _batching(self.batching, self.max_batch)
        for key, value in self.parameters.items():
            lines.append(f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}")
        if self.warm_up is not None:
            lines += _warm_up(self.warm_up)
        if self.steps:
            lines += _ensemble(self.steps)
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # the escapes of protobuf's text format include JSON's


def _dims(dims: Sequence[int]) -> str:
    return "[ " + ", ".join(map(str, dims)) + " ]"


def _tensor(tensor: Tensor) -> str:
    labels = "" if tensor.labels is None else f" label_filename: {_quoted(tensor.labels)}"
    kind = triton_type(tensor.dtype)
    return f"  {{ name: {_quoted(tensor.name)} data_type: {kind} dims: {_dims(tensor.dims)}{labels} }}"


def _batching(batching: Batching, max_batch: int) -> list[str]:
    policy = [f"    max_queue_size: {batching.max_queue}"] if batching.max_queue else []
    if batching.timeout_us:
        policy += [f"    default_timeout_microseconds: {batching.timeout_us}", "    timeout_action: REJECT"]
    if policy:
        policy = ["  default_queue_policy {", *policy, "  }"]
    delay = batching.delay_us if max_batch > 1 else 0
    return ["dynamic_batching {", f"  max_queue_delay_microseconds: {delay}", *policy, "}"]


def _warm_up(warm_up: WarmUp) -> list[str]:
    lines = ["model_warmup [", "  {", '    name: "one image"', "    batch_size: 1"]
    for name, (dtype, dims, file) in warm_up.tensors.items():
        data = "zero_data: true" if file is None else f"input_data_file: {_quoted(file)}"
        value = f"data_type: {triton_type(dtype)} dims: {_dims(dims)} {data}"
        lines.append(f"    inputs {{ key: {_quoted(name)} value: {{ {value} }} }}")
    return [*lines, "  }", "]"]


def _ensemble(steps: Sequence[Step]) -> list[str]:
    lines = ["ensemble_scheduling {", "  step ["]
    for i, step in enumerate(steps):
        lines += ["    {", f"      model_name: {_quoted(step.model)}", "      model_version: -1"]
        for kind, names in (("input_map", step.inputs), ("output_map", step.outputs)):
            for own, ensemble in names.items():
                lines.append(f"      {kind} {{ key: {_quoted(own)} value: {_quoted(ensemble)} }}")
        lines.append("    }" + ("," if i < len(steps) - 1 else ""))
    return [*lines, "  ]", "}"]
