"""Inference with device arrays: the plan and what decodes its maps run on the same stream, and nothing is copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._device import on_gpu
from .errors import InputError
from .spec import HeadSpec

__all__ = ["infer_on_device", "on_device"]


def on_device(inputs: Any) -> bool:
    """True where one of the arrays lies on a GPU."""
    arrays = (
        inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (list, tuple)) else (inputs,)
    )
    return any(map(on_gpu, arrays))


def infer_on_device(
    runner: Any,
    inputs: Mapping[str, Any],
    route: str,
    spec: HeadSpec | None,
    *,
    out: Mapping[str, Any] | None,
    stream: Any,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Runs once; results are device arrays.

    Args:
        runner: has `infer_device`.
        inputs: arrays by name.
        route: "copy": the plan's outputs; "decode" or "detect": our kernels on its raw maps.
        spec: the head, where the route decodes.
        out: arrays to write into, by name.
        stream: the caller's CUDA stream, or None: the default stream, and a result that is there on return.
        options: of `detect_cuda`.

    Raises:
        InputError: an array does not fit; there is no such route on a GPU.
        BackendUnavailable: the route needs the CUDA kernels, which were not built.
    """
    if route == "copy":
        result: dict[str, Any] = runner.infer_device(inputs, out=out, stream=stream)
        return result
    if route not in ("decode", "detect"):
        raise InputError(
            "NMS of decoded outputs runs on the CPU", received="device arrays", fix="Build the engine in form 'raw'"
        )
    from ._device import cuda_module
    from .cuda import DeviceDetections, decode_cuda, detect_cuda

    cuda_module()  # before the engine runs, not after
    names = ("boxes", "scores") if route == "decode" else DeviceDetections._fields
    if out is not None and set(out) != set(names):
        raise InputError("out does not name the outputs", received=sorted(map(str, out)), expected=list(names))
    into = None if out is None else tuple(out[name] for name in names)
    assert spec is not None
    maps = runner.infer_device(inputs, stream=stream)
    if route == "decode":
        boxes, scores = decode_cuda(maps, spec, out=into, stream=stream)
        return {"boxes": boxes, "scores": scores}
    return detect_cuda(maps, spec, out=into, stream=stream, **options)._asdict()
