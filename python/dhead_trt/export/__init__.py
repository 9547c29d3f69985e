"""torch → ONNX, with the proof that ONNX Runtime computes what torch computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import InputError
from ..files import atomic_path
from ..spec import HeadSpec
from .graph import check, describe_outputs, dynamic_axes, tidy, trace, wrapper_of, write_metadata
from .inputs import Inputs, level_shapes_of, raw_model, require
from .verify import TOLERANCES, verify_export

__all__ = ["TOLERANCES", "ExportResult", "export_onnx"]

OPSETS = range(17, 21)  # what the TorchScript exporter of torch 2.4 to 2.13 writes


@dataclass(frozen=True)
class ExportResult:
    """What `export_onnx` made.

    Attributes:
        path: the ONNX file.
        spec: of the head; with `image_size` where the size is fixed.
        form: "native" (boxes, scores) or "raw" (the raw maps).
        parity: output name → {"max", "mean"}: absolute differences between ONNX Runtime and torch on random input,
            over all `runs`; empty where `verify` was False.
        runs: the input shapes that were compared.
    """

    path: Path
    spec: HeadSpec
    form: str
    parity: Mapping[str, Mapping[str, float]]
    runs: tuple[Mapping[str, tuple[int, ...]], ...] = ()


def export_onnx(
    model: Any,
    output: str | os.PathLike[str],
    *,
    example: Any = None,
    image_size: int | tuple[int, int] | None = None,
    opset: int = 17,
    form: str = "native",
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    verify: bool = True,
) -> ExportResult:
    """Writes a head, or a whole model, as ONNX.

    Inputs are `images` [B, 3, H, W] for a whole model, and p3, p4, … [B, C_i, H_i, W_i] for a head. Outputs are boxes
    [B, A, 4] (xyxy px) and scores [B, A, C], or for `form="raw"` the maps of `HeadSpec.input_names`. The model is
    exported in eval mode and float32; its own mode is restored. Metadata: dhead_spec, and as Ultralytics writes them
    names, stride, imgsz, task.

    Args:
        model: a torch module with `.spec` and `.raw`: a head of dhead_trt.heads, a WholeModel, a DecodedHead, your own.
        output: the file to write; it appears whole or not at all.
        example: an input: an image batch, or a list of feature maps. Default: zeros of `image_size`.
        image_size: (height, width) or one number, pixels of the network input. Default: the spec's own, or 640.
        opset: 17 to 20.
        form: "native" or "raw".
        dynamic_batch: the graph takes any batch.
        dynamic_size: the graph takes any height and width.
        verify: compare ONNX Runtime with torch on random input, at several batches and sizes where they are dynamic.

    Raises:
        InputError: an argument does not fit, or the model is no head.
        GraphError: torch cannot export the model, or the graph does not compute what the model computes.
        BackendUnavailable: torch, onnx or (to verify) onnxruntime is not installed.
    """
    torch, onnx = require("torch", "export"), require("onnx", "onnx")
    if form not in ("native", "raw"):
        raise InputError("The form is not known", received=repr(form), expected="'native' or 'raw'")
    if opset not in OPSETS:
        raise InputError("The opset is not supported", received=opset, expected=f"{OPSETS[0]} to {OPSETS[-1]}")
    target = Path(output)
    if verify:
        require("onnxruntime", "onnx")
    head = raw_model(torch, model)
    inputs = Inputs.of(torch, head, example, image_size, dynamic_size)
    spec = cast("HeadSpec", head.spec).replace(image_size=inputs.image_size)
    modes = {m: m.training for m in head.modules()}
    head.eval()
    try:
        with torch.no_grad():
            shapes = level_shapes_of(head, spec, inputs.wrap(inputs.example))
            wrapper = wrapper_of(torch, head, spec, inputs, form, None if dynamic_size else shapes)
            names = ("boxes", "scores") if form == "native" else spec.input_names
            axes = dynamic_axes(spec, inputs.names, names, form, dynamic_batch, dynamic_size)
            proto = trace(torch, onnx, wrapper, inputs, names, axes, opset)
            tidy(onnx, proto)
            describe_outputs(proto, spec, form, None if dynamic_size else shapes, axes)
            write_metadata(proto, spec)
            check(onnx, proto)
            parity: dict[str, dict[str, float]] = {}
            runs: list[dict[str, tuple[int, ...]]] = []
            if verify:
                parity, runs = verify_export(torch, proto, wrapper, inputs, names, dynamic_batch, dynamic_size)
    finally:
        for m, training in modes.items():
            m.training = training
    with atomic_path(target) as temporary:
        temporary.write_bytes(proto.SerializeToString())
    return ExportResult(target, spec, form, parity, tuple(runs))
