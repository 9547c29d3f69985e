"""float32 → explicit int8: Q/DQ pairs where engines gain, scales from calibrated ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import GraphError, InputError
from .analysis import drop_unused
from .layers import Inspection, Layer, import_onnx, inspect
from .names import Names
from .opset import upgrade
from .placement import Placement, place

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..calibration import Ranges

__all__ = ["Int8Conversion", "to_int8"]

LEVELS = 127  # signed and symmetric: -127 … 127, zero point 0
_OPSET = {"float32": 13, "float16": 19}  # per-channel scales; scales in float16
_HALF_TINY = 2.0**-24  # the smallest float16


@dataclass(frozen=True)
class Int8Conversion:
    """What `to_int8` made.

    Attributes:
        model: the graph with its Q/DQ pairs.
        quantized: layers that compute in int8, by their names in the float32 graph.
        kept: layers that could, and do not: asked for, last layers, or never active in calibration.
        int8_macs: share of the multiply-accumulates of all learned layers that is done in int8, 0 to 1.
        notes: sentences for people: why layers were kept.
        high: what the rest computes in: "float32" or "float16".
        pairs: Q/DQ pairs on activations.
    """

    model: ModelProto
    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    int8_macs: float
    notes: tuple[str, ...]
    high: str
    pairs: int


def to_int8(
    model: ModelProto,
    ranges: Ranges,
    *,
    keep: Collection[str] = (),
    high: Literal["float32", "float16"] = "float32",
    last_layers: Literal["high", "int8"] = "high",
    io_dtype: str = "float32",
    weight_scales: Mapping[str, npt.ArrayLike] | None = None,
    chain: bool = True,
) -> Int8Conversion:
    """Makes convolutions compute in int8, by explicit Q/DQ: for TensorRT, TensorRT for RTX, OpenVINO, ONNX Runtime.

    Activations are signed and symmetric with one scale per tensor, weights int8 initializers with one scale per output
    channel, biases stay as they are. Which tensors get a pair, and which share a scale, is told in
    `dhead_trt.precision.placement`. Sums, activations, the last layers and the decode stay in high precision.

    Args:
        model: float32 graph of any form; it is not changed.
        ranges: of its activations, from `dhead_trt.calibration.calibrate`.
        keep: names of layers (nodes of this graph) that stay in high precision.
        high: what the rest computes in: "float32" for CPUs, "float16" for GPUs (then as `convert_fp16` would have it:
            last layers and decode in float32).
        last_layers: "int8" to quantize the layers that make the raw maps too.
        io_dtype: of the graph's inputs and raw maps; "float16" with high="float16" only.
        weight_scales: weight initializer → scales of its output channels, where they were trained.
        chain: False: pairs on the inputs of convolutions only.

    Returns:
        The graph, with opset 13 (19 with float16) or later, and what was done.

    Raises:
        InputError: keep names no layer, a scale does not fit, or ranges are of another graph.
        GraphError: the graph holds no convolution, cannot be brought to the opset, or is not valid.
        BackendUnavailable: the onnx package is not installed.
    """
    onnx = import_onnx()
    if high not in _OPSET:
        raise InputError("high is not a type", received=repr(high), expected="'float32' or 'float16'")
    if last_layers not in ("high", "int8"):
        raise InputError("last_layers is not known", received=repr(last_layers), expected="'high' or 'int8'")
    if io_dtype != "float32" and high != "float16":
        raise InputError("Float16 inputs and outputs need high='float16'", received=f"io_dtype={io_dtype!r}")
    before = inspect(model)
    names = [layer.name for layer in before.layers]
    if not names:
        raise GraphError("The graph has nothing to quantize", expected="a Conv of constant float32 weights")
    unknown = sorted(set(keep) - set(names))
    if unknown:
        raise InputError("keep names no layer of this graph", received=", ".join(unknown[:5]), expected=_some(names))
    newer = upgrade(model, _OPSET[high])
    found = before if newer is model else inspect(newer)
    chosen, notes = _choose(found.layers, set(keep), last_layers, ranges)
    amax = {name: max(abs(low), abs(top)) for name, (low, top) in ranges.tensors.items()}
    amax = {name: value for name, value in amax.items() if value > 0}
    plan = place(found, chosen, amax, chain=chain)
    work = _Insert(onnx, found, chosen, plan, high == "float16", weight_scales or {})
    work.run()
    made = work.model
    if high == "float16":
        from .fp16 import convert_fp16

        made = convert_fp16(made, io_dtype=io_dtype).model
    _finish(onnx, made)
    quantized = tuple(layer.name for layer in chosen)
    share = sum(layer.macs for layer in chosen) / max(found.total_macs, 1)
    kept = tuple(name for name in names if name not in set(quantized))
    return Int8Conversion(made, quantized, kept, share, tuple(notes), high, len(plan.amax))


def _choose(
    layers: Collection[Layer], keep: set[str], last_layers: str, ranges: Ranges
) -> tuple[list[Layer], list[str]]:
    """The layers to quantize, and why others are not."""
    missing = [layer for layer in layers if layer.input not in ranges.tensors and layer.name not in keep]
    missing = [layer for layer in missing if not (layer.last and last_layers == "high")]
    if missing:
        raise InputError(
            "The ranges are not of this graph",
            received=f"no range for {missing[0].input!r}, which {missing[0].name!r} reads",
            expected="ranges from calibrate() on this model",
            fix="Calibrate this model",
        )
    chosen, silent = [], []
    for layer in layers:
        if layer.name in keep or (layer.last and last_layers == "high"):
            continue
        if max(map(abs, ranges.tensors[layer.input])) == 0:
            silent.append(layer.name)
        else:
            chosen.append(layer)
    notes = []
    if silent:
        notes.append(
            f"{len(silent)} of {len(layers)} layers saw only zeros in calibration and stay in high precision: "
            f"{_some(silent)}"
        )
    return chosen, notes


class _Insert:
    """Adds the pairs of a plan to a graph."""

    def __init__(
        self,
        onnx: Any,
        found: Inspection,
        layers: Collection[Layer],
        plan: Placement,
        half: bool,
        weight_scales: Mapping[str, npt.ArrayLike],
    ) -> None:
        self.onnx, self.model, self.view, self.plan, self.half = onnx, found.model, found.view, plan, half
        self.layers = {layer.output: layer for layer in layers}
        self.given = weight_scales
        self.new: list[Any] = []
        self.initializers: list[Any] = []
        self.pair_of: dict[str, str] = {}  # key → name of the dequantized tensor
        self.weight_of: dict[str, str] = {}
        self.names = Names(self.view, self.model.graph)

    def run(self) -> None:
        """Nodes in order, each pair where it is first read."""
        for i, node in enumerate(self.view.nodes):
            made = self.onnx.NodeProto()
            made.CopyFrom(node)
            for k in range(len(node.input)):
                if (i, k) in self.plan.edges:
                    made.input[k] = self._pair(self.plan.edges[i, k])
            layer = self.layers.get(node.output[0]) if node.op_type == "Conv" else None
            if layer is not None:
                made.input[1] = self._weight(layer.weight)
            self.new.append(made)
        graph = self.model.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.new)
        graph.initializer.extend(self.initializers)
        drop_unused(graph)

    def _pair(self, key: str) -> str:
        if key not in self.pair_of:
            source, stem = self.plan.source[key], key.replace("@", "_for_")
            scale = self._constant(f"{stem}_scale", self._scale(self.plan.amax[key]))
            zero = self._constant(f"{stem}_zero", np.int8(0))
            q, dq = self.names.unique(f"{stem}_int8"), self.names.unique(f"{stem}_dq")
            make = self.onnx.helper.make_node
            self.new.append(make("QuantizeLinear", [source, scale, zero], [q], name=self.names.unique(f"{stem}_Q")))
            self.new.append(make("DequantizeLinear", [q, scale, zero], [dq], name=self.names.unique(f"{stem}_DQ")))
            self.pair_of[key] = dq
        return self.pair_of[key]

    def _weight(self, name: str) -> str:
        if name not in self.weight_of:
            values = self.onnx.numpy_helper.to_array(self.view.initializers[name]).astype(np.float32)
            if not np.isfinite(values).all():
                raise GraphError("A weight is not finite", received=name, fix="Train or export the model again")
            scales = self._weight_scales(name, values)
            per = scales.reshape(-1, *[1] * (values.ndim - 1))
            grid = np.clip(np.rint(values / per), -LEVELS, LEVELS).astype(np.int8)
            out = self.names.unique(f"{name}_dq")
            inputs = [
                self._constant(f"{name}_int8", grid),
                self._constant(f"{name}_scale", scales),
                self._constant(f"{name}_zero", np.zeros(len(scales), np.int8)),
            ]
            self.new.append(
                self.onnx.helper.make_node(
                    "DequantizeLinear", inputs, [out], name=self.names.unique(f"{name}_DQ"), axis=0
                )
            )
            self.weight_of[name] = out
        return self.weight_of[name]

    def _weight_scales(self, name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if name not in self.given:
            return self._scale(np.abs(values).reshape(len(values), -1).max(axis=1))
        scales = np.asarray(self.given[name], np.float32).reshape(-1)
        if scales.shape != (len(values),) or not (np.isfinite(scales) & (scales > 0)).all():
            raise InputError(
                f"The scales of {name!r} do not fit",
                received=f"{scales.size} values, from {scales.min(initial=np.inf):g}",
                expected=f"{len(values)} finite positive ones, one per output channel",
            )
        return self._scale(scales.astype(np.float64) * LEVELS)  # exact, so that a trained scale comes back

    def _scale(self, amax: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """amax / 127, on float16's grid where it must be; never 0."""
        scale = np.asarray(amax, np.float64) / LEVELS
        scale = np.where(scale > 0, scale, 1.0)  # a channel of zeros: any scale holds it
        if not self.half:
            return np.asarray(np.maximum(scale, np.finfo(np.float32).tiny), np.float32)
        half = np.maximum(scale, _HALF_TINY).astype(np.float16)
        short = half.astype(np.float64) < scale  # round up, so that amax itself is not clipped
        up = np.nextafter(half, np.float16(np.inf))
        return np.asarray(np.where(short, up, half), np.float32)

    def _constant(self, name: str, value: Any) -> str:
        name = self.names.unique(name)
        self.initializers.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name


def _finish(onnx: Any, model: Any) -> None:
    """Marks and checks the graph."""
    entry = next((p for p in model.metadata_props if p.key == "dhead_precision"), None)
    entry = entry or model.metadata_props.add(key="dhead_precision")
    entry.value = "int8"
    try:
        model.CopyFrom(onnx.shape_inference.infer_shapes(model))
        onnx.checker.check_model(model, full_check=True)
    except Exception as e:  # a bug of this pass, or a graph that was not valid before
        raise GraphError(
            "The graph in int8 is not valid ONNX",
            received=" ".join(str(e).split())[:300],
            fix="Check the original with onnx.checker",
        ) from e


def _some(names: Collection[str]) -> str:
    shown = list(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
