"""Quantization-aware fine-tuning of torch heads, and their export with the trained scales.

    qat = prepare_qat(head.eval(), batches)      # a copy: norms folded, convolutions fake-quantized, scales from data
    …train qat: its scales are parameters like the weights…
    export_qat(qat, "head.onnx", image_size=640) # Q/DQ graph of to_int8's form, with just these scales

What is rounded in training is what engines round: the inputs of convolutions, one signed symmetric scale for each
tensor, and their weights, one scale for each output channel. The last convolutions, which make the raw maps, are left
alone, as `to_int8` does.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import GraphError, InputError
from ..files import atomic_path
from ..heads.fuse import fuse_conv_bn
from ..spec import HeadSpec
from .fake_quant import HIGH, FakeQuant, QatConv2d

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["FakeQuant", "QatConv2d", "QatExport", "export_qat", "is_fake_quantized", "plain_copy", "prepare_qat"]

# ‖ONNX - torch‖ / ‖torch‖ of a raw map: sums in another order move a value to the next step; scales lose digits
_TOLERANCE = {"float32": 0.01, "float16": 0.05}
Quantizer = Callable[[int | None], nn.Module]


@dataclass(frozen=True)
class QatExport:
    """What `export_qat` made.

    Attributes:
        path: the ONNX file.
        spec: of the head.
        input_scales: convolution (its name in the torch module) → scale of its input.
        weight_scales: convolution → scales of its output channels, float32 [C].
        int8_macs: share of the multiply-accumulates in int8, 0 to 1.
        parity: raw map → {"max", "relative"}: ONNX Runtime against the torch module on random input; empty without
            `verify`.
    """

    path: Path
    spec: HeadSpec
    input_scales: Mapping[str, float]
    weight_scales: Mapping[str, npt.NDArray[np.float32]]
    int8_macs: float
    parity: Mapping[str, Mapping[str, float]]


def prepare_qat(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    skip: Iterable[str] = (),
    last_layers: Literal["high", "int8"] = "high",
    activation: Quantizer | None = None,
    weight: Quantizer | None = None,
) -> nn.Module:
    """A copy of a head (or whole model) to fine-tune: norms folded, convolutions rounded to int8 in the forward pass.

    Convolutions that read the same tensor share the scale of it. Depthwise and grouped convolutions are rounded too;
    transposed and linear layers are not.

    Args:
        model: in eval mode, with `.spec` and `.raw`; not changed.
        batches: inputs for `.raw` (an image batch, or a list of feature maps), to set the first scales with.
        skip: names of convolutions (of `named_modules`) to leave alone.
        last_layers: "int8" to round those that make the raw maps too.
        activation, weight: make the quantizers: called with None, and with the number of output channels. Default:
            `FakeQuant`. torch.ao.quantization.FakeQuantize is understood where it is signed and symmetric.

    Returns:
        The copy, in eval mode. Its scales (`FakeQuant.raw_scale`) are parameters.

    Raises:
        InputError: the model is no head, is in training mode, has nothing to quantize, or there are no batches.
    """
    from ..export.inputs import raw_model

    data = list(batches)
    if not data:
        raise InputError("There are no batches to set the scales with", expected="inputs of the model")
    fused: Any = fuse_conv_bn(cast("nn.Module", raw_model(torch, model)))
    reads, last = _trace(fused, data[0])
    unwanted = set(skip)
    unknown = unwanted - {n for n, m in fused.named_modules() if isinstance(m, nn.Conv2d)}
    if unknown:
        raise InputError("skip names no convolution", received=sorted(unknown)[:5])
    unwanted |= last if last_layers == "high" else set()
    wanted = [n for n in reads if n not in unwanted]
    if not wanted:
        raise InputError("The model has no convolution to quantize", received=f"{len(reads)} in all, skip or last")
    groups = _groups({n: reads[n] for n in wanted})
    inputs = {group: (activation or FakeQuant)(None) for group in set(groups.values())}
    for name in wanted:
        conv = fused.get_submodule(name)
        made = QatConv2d.of(conv, inputs[groups[name]], (weight or FakeQuant)(conv.out_channels))
        holder, _, attribute = name.rpartition(".")
        setattr(fused.get_submodule(holder), attribute, made)
    _set_scales(fused, data)
    return cast("nn.Module", fused.eval())


def is_fake_quantized(model: object) -> bool:
    """Whether a module holds convolutions of `prepare_qat`."""
    return isinstance(model, nn.Module) and any(isinstance(m, QatConv2d) for m in model.modules())


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy without rounding, of the trained weights: the float32 model that the int8 one is compared with."""
    plain = copy.deepcopy(model)
    for name, m in list(plain.named_modules()):
        if isinstance(m, QatConv2d):
            holder, _, attribute = name.rpartition(".")
            setattr(plain.get_submodule(holder), attribute, m.plain())
    return plain


def export_qat(
    model: nn.Module,
    output: str | os.PathLike[str],
    *,
    example: Any = None,
    image_size: int | tuple[int, int] | None = None,
    opset: int = 17,
    form: str = "native",
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    high: Literal["float32", "float16"] = "float32",
    verify: bool = True,
) -> QatExport:
    """Writes a fake-quantized model as ONNX with int8 weights and Q/DQ pairs, of the form that `to_int8` makes.

    The scales are those of the quantizers, bit for bit (high="float16": rounded to float16, as engines need them then).

    Args:
        model: from `prepare_qat`, trained or not.
        output, example, image_size, opset, form, dynamic_batch, dynamic_size: as for `export_onnx`.
        high: what the rest computes in.
        verify: compare ONNX Runtime with torch on random input.

    Raises:
        InputError: the model is not fake-quantized, or a quantizer is not signed and symmetric.
        GraphError: two scales for one tensor, a convolution that is not in the graph, or the graph does not compute
            what the module does.
        BackendUnavailable: onnx or onnxruntime is not installed.
    """
    import onnx

    from ..calibration import Ranges
    from ..export import export_onnx
    from .int8 import to_int8
    from .layers import quantizable

    scales = {n: _scales(n, m) for n, m in model.named_modules() if isinstance(m, QatConv2d)}
    if not scales:
        raise InputError("The model is not fake-quantized", received=type(model).__name__, fix="Call prepare_qat first")
    with tempfile.TemporaryDirectory(prefix="dhead-") as folder:
        path = Path(folder) / "plain.onnx"
        exported = export_onnx(
            plain_copy(model), path, example=example, image_size=image_size, opset=opset, form=form,
            dynamic_batch=dynamic_batch, dynamic_size=dynamic_size, verify=False,
        )  # fmt: skip
        graph = onnx.load(str(path))
    layers = quantizable(graph)
    by_weight = {f"model.{n}.weight": n for n in scales}
    ranges: dict[str, tuple[float, float]] = {}
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for layer in layers:
        name = by_weight.get(layer.weight)
        if name is None:
            continue
        limit = scales[name][0] * HIGH  # exact in float64
        if ranges.setdefault(layer.input, (-limit, limit)) != (-limit, limit):
            raise GraphError(
                "Two convolutions read one tensor with different scales",
                received=f"{layer.input!r}: {limit / HIGH:g} in {name!r}, {ranges[layer.input][1] / HIGH:g} in another",
                fix="Let them share their input_quant, as prepare_qat does",
            )
        weights[layer.weight] = scales[name][1]
    missing = sorted(n for w, n in by_weight.items() if w not in weights)
    if missing:
        raise GraphError("A fake-quantized convolution is not one of the graph's int8 layers", received=missing[0])
    keep = [layer.name for layer in layers if layer.weight not in weights]
    made = to_int8(
        graph, Ranges(ranges, "trained"), keep=keep, high=high, last_layers="int8", weight_scales=weights, chain=False
    )
    parity = _verify(model, made.model, exported.spec, example, image_size, _TOLERANCE[high]) if verify else {}
    with atomic_path(output) as temporary:
        temporary.write_bytes(made.model.SerializeToString())
    return QatExport(
        Path(output), exported.spec, {n: s for n, (s, _) in scales.items()}, {n: w for n, (_, w) in scales.items()},
        made.int8_macs, parity,
    )  # fmt: skip


def _trace(model: Any, inputs: Any) -> tuple[dict[str, set[int]], set[str]]:
    """Convolution → the tensors it reads (as numbers), and the convolutions that no other follows."""
    probe = copy.deepcopy(model).requires_grad_(True)
    reads: dict[str, set[int]] = {}
    seen: list[Tensor] = []  # held, so that identities stay unique
    made: dict[Any, str] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            number = next((i for i, t in enumerate(seen) if t is args[0]), len(seen))
            if number == len(seen):
                seen.append(args[0])
            reads.setdefault(name, set()).add(number)
            made[out.grad_fn] = name

        return note

    for name, m in probe.named_modules():
        if type(m) is nn.Conv2d:
            m.register_forward_hook(hook(name))
    with torch.enable_grad():
        maps = probe.raw(inputs)
    last: set[str] = set()
    pending = [t.grad_fn for t in maps.values() if t.grad_fn is not None]
    done = set(pending)
    while pending:
        node = pending.pop()
        if node in made:
            last.add(made[node])
            continue
        new = {n for n, _ in node.next_functions if n is not None} - done
        done |= new
        pending += new
    return reads, last


def _groups(reads: Mapping[str, set[int]]) -> dict[str, str]:
    """Convolution → the first of those that it shares a tensor with."""
    groups = {name: name for name in reads}
    names = list(reads)
    for i, a in enumerate(names):
        for b in names[:i]:
            if reads[a] & reads[b] and groups[a] != groups[b]:
                old, new = groups[a], groups[b]
                groups = {n: new if g == old else g for n, g in groups.items()}
    return groups


def _set_scales(model: Any, batches: Sequence[Any]) -> None:
    """First scales: of the weights, and of the activations without any rounding."""
    plain = plain_copy(model)
    convs = {n: m for n, m in model.named_modules() if isinstance(m, QatConv2d)}
    handles = []
    for name, conv in convs.items():
        _observe(conv.weight_quant, conv.weight)

        def note(_: nn.Module, args: tuple[Any, ...], quant: nn.Module = conv.input_quant) -> None:
            _observe(quant, args[0])

        handles.append(plain.get_submodule(name).register_forward_pre_hook(note))
    with torch.no_grad():
        for batch in batches:
            cast("Any", plain).raw(batch)
    for name, conv in convs.items():
        quant = conv.input_quant
        if isinstance(quant, FakeQuant) and float(quant.raw_scale.detach().max()) == 0:
            raise InputError(
                "A convolution reads only zeros in the batches, so that it has no scale",
                received=name,
                fix="Give batches such as the model is for, or name it in skip=",
            )


def _observe(quant: nn.Module, x: Tensor) -> None:
    if isinstance(quant, FakeQuant):
        quant.observe(x)
    else:
        with torch.no_grad():
            quant(x)  # torch.ao's: its own observer


def _scales(name: str, conv: QatConv2d) -> tuple[float, npt.NDArray[np.float32]]:
    """Scales of the input and of the weights of each output channel."""
    one, many = _scale(f"{name}.input_quant", conv.input_quant), _scale(f"{name}.weight_quant", conv.weight_quant)
    if one.size != 1:
        raise InputError("An activation has more than one scale", received=f"{name}.input_quant: {one.size}")
    if many.size == 1:
        many = np.repeat(many, conv.out_channels)
    if many.size != conv.out_channels:
        raise InputError(
            "The weights have another number of scales than output channels", received=f"{name}: {many.size}"
        )
    return float(one[0]), many


def _scale(name: str, quant: nn.Module) -> npt.NDArray[np.float32]:
    scale = getattr(quant, "scale", None)
    zero, low, high = (getattr(quant, a, None) for a in ("zero_point", "quant_min", "quant_max"))
    if not isinstance(scale, Tensor):
        raise InputError("A quantizer has no scale", received=f"{name}: {type(quant).__name__}", expected="FakeQuant")
    values = scale.detach().float().cpu().numpy().reshape(-1)
    signed = low in (None, -128, -127) and high in (None, 127)
    if not signed or (isinstance(zero, Tensor) and bool((zero != 0).any())):
        raise InputError(
            "A quantizer is not signed and symmetric",
            received=f"{name}: {low} to {high}, zero point {zero.tolist() if isinstance(zero, Tensor) else zero}",
            expected="-128 or -127 to 127, zero point 0: what TensorRT takes",
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError("A scale is not a positive number", received=f"{name}: {values.min()} to {values.max()}")
    return values


def _verify(
    model: Any, made: ModelProto, spec: HeadSpec, example: Any, image_size: Any, tolerance: float
) -> dict[str, dict[str, float]]:
    from ..export.inputs import Inputs
    from .raw_run import MapRunner, raw_graph

    inputs = Inputs.of(torch, model, example, image_size, False)
    tensors = inputs.random(torch, int(inputs.example[0].shape[0]), 0, spec.strides, 0)
    device = inputs.example[0].device
    with _Evaluating(model), torch.no_grad():
        want = model.raw(inputs.wrap([t.to(device) for t in tensors]))
    got = MapRunner(raw_graph(made, spec)).run({n: t.numpy() for n, t in zip(inputs.names, tensors, strict=True)})
    parity = {}
    for name in spec.input_names:
        reference = want[name].float().cpu().numpy().astype(np.float64)
        error = np.abs(got[name] - reference)
        relative = float(np.linalg.norm(error) / max(float(np.linalg.norm(reference)), 1e-12))
        parity[name] = {"max": float(error.max()), "relative": relative}
        if not relative <= tolerance:
            raise GraphError(
                f"The int8 graph does not compute what the module does at {name}",
                received=f"relative error {relative:.2g}",
                expected=f"at most {tolerance:g}",
            )
    return parity


class _Evaluating:
    """Eval mode inside, each module's own mode again after it."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = {m: m.training for m in model.modules()}

    def __enter__(self) -> None:
        for m in self.modes:
            m.training = False

    def __exit__(self, *_: object) -> None:
        for m, training in self.modes.items():
            m.training = training
