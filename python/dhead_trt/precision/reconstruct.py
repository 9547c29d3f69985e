"""Weights fitted to rounded activations, layer after layer: int8 that stays closer to float32, without labels.

A layer behind rounded inputs should still make what the float32 layer makes of exact ones. For each convolution, in the
graph's order, two things are done on calibration images:

1. weights and bias are fitted by least squares (ridge, towards the original) to the float32 outputs, from the inputs
   that the int8 graph has at this place, with all errors of the layers before;
2. the weights are rounded one input after the other, and each one's error is made up for by those not yet rounded
   (GPTQ, Frantar et al. 2022: https://arxiv.org/abs/2210.17323).

Positions are drawn where the float32 model sees objects, and some anywhere. The last layers keep their weights: a least
squares fit of logits would care most for the background, where they do not matter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import GraphError, InputError
from ..progress import ProgressCallback
from ..spec import HeadSpec
from ..tables import table
from .analysis import drop_unused
from .fit_data import fit_data, importance
from .int8 import to_int8
from .layer_fit import Fit, Window, draw_positions, nearest, patches, weight_scale
from .layers import Inspection, import_onnx, inspect
from .lockstep import Lockstep
from .raw_run import MapRunner, raw_graph, spec_of

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..calibration import Ranges

__all__ = ["IMAGES", "LayerFit", "Reconstruction", "reconstruct"]

IMAGES = 48
POSITIONS = 2048  # of each image and layer
RIDGE = 1e-2  # of the mean square of the inputs

Floats = npt.NDArray[np.float64]


class LayerFit(NamedTuple):
    """One layer behind rounded inputs, against float32; the root mean square of the difference of its outputs.

    Attributes:
        name: of its node.
        plain: with the weights it had (rounded to nearest, where the layer is in int8).
        fitted: with those it has now.
        size: root mean square of the float32 outputs themselves.
    """

    name: str
    plain: float
    fitted: float
    size: float


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` made.

    Attributes:
        model: the graph with the new weights, float32. Those of the int8 layers that were fitted lie on their grids.
        weight_scales: weight → scales of its output channels, for `to_int8`. With high="float16" the scales, and with
            them the weights, move by up to 1/1000, as float16 has them.
        layers: what it did to each that was fitted.
        images: how many it looked at.
    """

    model: ModelProto
    weight_scales: Mapping[str, npt.NDArray[np.float32]]
    layers: tuple[LayerFit, ...]
    images: int

    def render(self, number: int | None = 20) -> str:
        """As a table, in the graph's order; the first `number` layers, or all."""
        rows = [(f.name, f"{f.size:.3f}", f"{f.plain:.4f}", f"{f.fitted:.4f}") for f in self.layers[:number]]
        text = table(["layer", "output", "error before", "fitted"], rows, right=[1, 2, 3])
        left = len(self.layers) - len(rows)
        return text + (f"\n… and {left} more." if left else "")


def reconstruct(
    model: ModelProto,
    ranges: Ranges,
    batches: Iterable[Any],
    spec: HeadSpec | None = None,
    *,
    keep: Collection[str] = (),
    images: int = IMAGES,
    positions: int = POSITIONS,
    ridge: float = RIDGE,
    crop: bool = True,
    seed: int = 0,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Reconstruction:
    """Fits the weights of a graph to its int8 activations.

    `to_int8(made.model, ranges, keep=keep, weight_scales=made.weight_scales)` makes the int8 graph.

    Grouped convolutions and the last layers keep their weights. Nothing is trained: the result depends on the data and
    the seed alone. A layer has inputs times kernel size free weights for each output: where the images together have
    fewer distinct places than that, it fits these images better than others.

    Args:
        model: float32 graph of any form, calibrated; it is not changed.
        ranges: of its activations.
        batches: calibration inputs; those used are held in memory.
        spec: of its head; None: what the graph's metadata say.
        keep: layers that stay in high precision, as for `to_int8`. They are fitted too.
        images: how many to use at most, from the first on. Rows that fill up the last batch of a fixed size are left
            out where the batches tell (`CalibrationBatches.count`).
        positions: of each image and layer that count.
        ridge: how strongly weights are held to the original: the penalty, relative to the mean square of the inputs.
        crop: of fully convolutional networks, look at a random part of each image, of half its height and width (if
            both are 512 pixels or more): four times as many images need no more memory.
        seed: of the positions and crops.
        threads: of ONNX Runtime.
        progress: called with ("fitting weights", part done).

    Raises:
        InputError: there are no images, they hold NaN or do not fit, an argument is out of range, or keep names no
            layer.
        GraphError: not a supported detector, or the network does not give numbers.
        BackendUnavailable: onnx or onnxruntime is not installed.
    """
    for name, value, good in (
        ("images", images, images >= 1),
        ("positions", positions, positions >= 1),
        ("ridge", ridge, 0 < ridge < np.inf),
        ("seed", seed, seed >= 0),
    ):
        if not good:
            expected = "0 or more" if name == "seed" else "above 0, finite"
            raise InputError(f"{name} is out of range", received=value, expected=expected)
    onnx = import_onnx()
    spec = spec_of(model, spec)
    raw = raw_graph(model, spec)
    found = inspect(raw)
    rng = np.random.default_rng(seed)
    data = fit_data(found, batches, images, max(spec.strides) if crop else None, rng)
    feeds = [feed.inputs for feed in data]
    runner = MapRunner(_of_any_size(onnx, found.model), threads=threads)
    where = [importance(runner.run(feed.inputs), spec, feed.rows) for feed in data]
    int8 = to_int8(raw, ranges, keep=keep)
    rounded = _activations_only(onnx, int8.model, found)
    layers = {layer.output: layer for layer in found.layers}
    exact = Lockstep(found.model, layers, feeds, threads=threads)
    student = Lockstep(rounded, layers, feeds, threads=threads)
    nodes = {node.output[0]: node for node in rounded.graph.node}
    in_int8 = set(int8.quantized)
    fits: list[LayerFit] = []
    weights: dict[str, tuple[Floats, Floats]] = {}
    scales: dict[str, Floats] = {}
    for number, (stop, other) in enumerate(zip(exact, student, strict=True)):
        if stop != other:
            raise GraphError("The int8 graph has another order of layers", received=f"{stop!r}, {other!r}")
        if progress is not None:
            progress("fitting weights", number / len(layers))
        layer, node = layers[stop], nodes[stop]
        weight, quantized = student.constant(node.input[1]).astype(np.float64), layer.name in in_int8
        plain = nearest(weight, weight_scale(weight)) if quantized else weight
        window = _window(node, weight)
        if layer.last or layer.group != 1 or window is None:
            student.set(node.input[1], plain.astype(np.float32))
            continue
        bias = student.constant(node.input[2]).astype(np.float64)
        fit = _gather(student, exact, node, window, where, positions, rng)
        before = fit.error(plain, bias)
        fitted, new_bias = fit.solve(weight, bias, ridge)
        scale = weight_scale(fitted)
        if quantized:
            fitted, new_bias = fit.round(fitted, new_bias, scale)
        after = fit.error(fitted, new_bias)
        if after > before:  # GPTQ promises nothing: such a layer stays as it was
            fitted, new_bias, scale, after = plain, bias, weight_scale(weight), before
        if quantized:
            scales[stop] = scale
        fits.append(LayerFit(layer.name, before, after, fit.size))
        weights[stop] = fitted, new_bias
        student.set(node.input[1], fitted.astype(np.float32))
        student.set(node.input[2], new_bias.astype(np.float32))
    made = _rewritten(onnx, model, weights, scales)
    return Reconstruction(*made, tuple(fits), sum(map(len, where)))


def _window(node: Any, weight: Floats) -> Window | None:
    """None where the padding is left to the engine, or there is no bias to fit."""
    attributes = {a.name: a for a in node.attribute}
    if not node.input[-1].endswith(_BIAS) or (
        "auto_pad" in attributes and attributes["auto_pad"].s not in (b"", b"NOTSET")
    ):
        return None

    def ints(name: str, default: tuple[int, ...]) -> Any:
        return tuple(attributes[name].ints) if name in attributes else default

    return Window(
        (weight.shape[2], weight.shape[3]), ints("strides", (1, 1)), ints("dilations", (1, 1)), ints("pads", (0,) * 4)
    )


def _gather(
    student: Lockstep,
    exact: Lockstep,
    node: Any,
    window: Window,
    where: Sequence[npt.NDArray[np.float32]],
    count: int,
    rng: np.random.Generator,
) -> Fit:
    """The student's inputs and the exact outputs of a layer, at random positions of every image."""
    fit: Fit | None = None
    for tensors, y, chances in zip(student.live, exact.peek(node.output[0]), where, strict=True):
        for row, chance in enumerate(chances):
            rows, columns = draw_positions(y.shape[2:], chance, count, rng)
            inputs = patches(tensors[node.input[0]][row], window, rows, columns)
            outputs = y[row][:, rows, columns].T
            fit = fit or Fit(inputs.shape[1], outputs.shape[1])
            fit.add(inputs, outputs)
    assert fit is not None
    if not fit.finite:
        raise GraphError("The network does not give numbers", received=f"NaN or infinity at {node.output[0]!r}")
    return fit


def _of_any_size(onnx: Any, model: ModelProto) -> ModelProto:
    """The graph without the shapes written into it, which parts of images do not have."""
    free: ModelProto = onnx.ModelProto()
    free.CopyFrom(model)
    del free.graph.value_info[:]
    for value in (*free.graph.input, *free.graph.output):
        value.type.tensor_type.ClearField("shape")
    return free


def _activations_only(onnx: Any, quantized: ModelProto, found: Inspection) -> ModelProto:
    """The int8 graph with float32 weights: each layer has a weight and a bias initializer of its own."""
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    array, pack = onnx.numpy_helper.to_array, onnx.numpy_helper.from_array
    known = {t.name: t for t in model.graph.initializer}
    weights = {layer.output: layer.weight for layer in found.layers}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.output[0] not in weights:
            continue
        weight = array(found.view.initializers[weights[node.output[0]]]).astype(np.float32)
        node.input[1] = f"{node.output[0]}{_WEIGHT}"
        model.graph.initializer.append(pack(weight, node.input[1]))
        given = node.input[2] if len(node.input) > 2 else ""
        if not given or given in known:
            bias = array(known[given]).astype(np.float32) if given else np.zeros(len(weight), np.float32)
            del node.input[2:]
            node.input.append(f"{node.output[0]}{_BIAS}")
            model.graph.initializer.append(pack(bias, node.input[2]))
    return model


_WEIGHT, _BIAS = "/fitted_weight", "/fitted_bias"


def _rewritten(
    onnx: Any, model: ModelProto, fitted: Mapping[str, tuple[Floats, Floats]], scales: Mapping[str, Floats]
) -> tuple[ModelProto, dict[str, npt.NDArray[np.float32]]]:
    """The original graph, in its own form, with the new weights; and the scales by these weights' names."""
    made: ModelProto = inspect(model).model
    named: dict[str, npt.NDArray[np.float32]] = {}
    lost = sorted(fitted.keys() - {n.output[0] for n in made.graph.node if n.op_type == "Conv"})
    if lost:
        raise GraphError("A fitted layer is not in the graph under its name", received=lost[0])
    known = {t.name: t for t in made.graph.initializer}  # a second fit writes over the first's weights
    for node in made.graph.node:
        if node.op_type != "Conv" or node.output[0] not in fitted:
            continue
        stop = node.output[0]
        del node.input[1:]
        for value, ending in zip(fitted[stop], (_WEIGHT, _BIAS), strict=True):
            node.input.append(f"{stop}{ending}")
            tensor = onnx.numpy_helper.from_array(value.astype(np.float32), node.input[-1])
            (known.get(tensor.name) or made.graph.initializer.add()).CopyFrom(tensor)
        if stop in scales:
            named[node.input[1]] = scales[stop].astype(np.float32)
    drop_unused(made.graph)
    return made, named
