"""Batch and image size of a graph: read from it, or set in it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import index
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .artifact import TensorInfo
from .errors import BackendUnavailable, BuildError, GraphError, InputError
from .spec import HeadSpec

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Range",
    "batch_range",
    "random_inputs",
    "run_reference",
    "set_shapes",
    "size_range",
    "takes_features",
    "tensor_infos",
]

Range = tuple[int, int, int]
Size = tuple[int, int]
_ONNX_INSTALL = 'pip install "dhead-trt[onnx]"'
_TOLERANCE = 1e-3  # of the largest value; the same graph at another batch size differs by rounding only


def batch_range(batch: int | Sequence[int]) -> Range:
    """(min, opt, max) from an int or three.

    Raises:
        InputError: not 1 <= min <= opt <= max.
    """
    values: tuple[int, ...] = ()
    with suppress(TypeError):
        values = _size(batch) if isinstance(batch, Sequence) else (index(batch),) * 3
    if len(values) != 3 or not 1 <= values[0] <= values[1] <= values[2]:
        raise InputError(
            "The batch is not a size or a range", received=batch, expected="n, or (min, opt, max) rising from 1"
        )
    return values


def size_range(image_size: Any) -> tuple[Size, Size, Size] | None:
    """(min, opt, max) image sizes from None, n, (height, width) or three of these.

    Raises:
        InputError: malformed, or not rising.
    """
    if image_size is None:
        return None
    sizes: list[tuple[int, ...]] = []
    with suppress(TypeError):
        single = hasattr(image_size, "__index__") or (
            len(image_size) == 2 and all(hasattr(v, "__index__") for v in image_size)
        )
        sizes = [_size(image_size)] * 3 if single else [_size(v) for v in image_size]
    ok = len(sizes) == 3 and all(len(s) == 2 for s in sizes)
    ok = ok and all(1 <= a <= b <= c for a, b, c in zip(*sizes, strict=True))
    if not ok:
        raise InputError(
            "The image size is not a size or a range",
            received=image_size,
            expected="n, (height, width), or three of these: min, opt, max",
        )
    return cast("tuple[Size, Size, Size]", tuple(sizes))


def _size(value: Any) -> tuple[int, ...]:
    return (index(value),) * 2 if hasattr(value, "__index__") else tuple(index(v) for v in value)


def tensor_infos(model: onnx.ModelProto, *, outputs: bool = False) -> tuple[TensorInfo, ...]:
    """The graph's inputs (without initializers) or outputs; -1 where a dimension is dynamic or unknown.

    Raises:
        GraphError: a tensor has no shape or a type no engine can pass.
    """
    import onnx

    initializers = {i.name for i in model.graph.initializer}
    values = model.graph.output if outputs else [v for v in model.graph.input if v.name not in initializers]
    infos = []
    for v in values:
        t = v.type.tensor_type
        if not v.type.HasField("tensor_type") or (not outputs and not t.HasField("shape")):
            raise GraphError(
                f"{v.name!r} is not a tensor of known rank", received=str(v.type)[:80], expected="a tensor"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(t.elem_type).name
        shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in t.shape.dim)
        try:
            infos.append(TensorInfo(v.name, dtype, shape))
        except InputError as e:
            raise GraphError(f"{v.name!r} cannot be passed to an engine", received=dtype) from e
    return tuple(infos)


def takes_features(inputs: Sequence[TensorInfo], spec: HeadSpec | None) -> bool:
    """True where features of each level go in, rather than images (one input of 1, 3 or 4 channels)."""
    if spec is None or len(inputs) != spec.num_levels:
        return False
    return len(inputs) > 1 or inputs[0].shape[1] not in (1, 3, 4)


def set_shapes(
    model: onnx.ModelProto, spec: HeadSpec | None, *, batch: int | Sequence[int], image_size: Any = None
) -> tuple[onnx.ModelProto, tuple[TensorInfo, ...]]:
    """Gives the graph the batch and image size to build for.

    Args:
        model: any form, images in (one input) or features in (one input per level of `spec`). Not changed.
        spec: the head.
        batch: size or (min, opt, max). A graph exported with one fixed batch gets another where every node allows it,
            which is proven with ONNX Runtime on random input.
        image_size: size or (min, opt, max) of the network input in pixels; None leaves it as the graph has it.

    Returns:
        The graph with static or dynamic input dimensions, and its inputs with their profiles.

    Raises:
        InputError: batch or image_size is malformed.
        BuildError: the graph is fixed to another batch or size.
        BackendUnavailable: ONNX Runtime is needed to prove a changed batch, and missing.
    """
    wanted, sizes = batch_range(batch), size_range(image_size)
    before = tensor_infos(model)
    if not before or any(len(t.shape) != 4 for t in before):
        raise BuildError(
            "The inputs are not image batches or feature maps",
            received=", ".join(f"{t.name} {t.describe()}" for t in before) or "no inputs",
            expected="[batch, channels, height, width] each",
        )
    levels = spec if takes_features(before, spec) else None
    inputs = tuple(_wanted(t, i, levels, wanted, sizes) for i, t in enumerate(before))
    fixed = {t.shape[0] for t in before} - {-1}
    result = copy.deepcopy(model)
    rebatched = any(old != new.shape[0] for old in fixed for new in inputs)
    if rebatched:
        _free_reshapes(result, fixed)
    _write_shapes(result, inputs)
    if rebatched:
        _prove_rebatch(model, result, before, inputs, max(fixed))
    return result, inputs


def random_inputs(
    inputs: Iterable[TensorInfo],
    *,
    batch: int | None = None,
    size: Size | None = None,
    spec: HeadSpec | None = None,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """Seeded random arrays that fit `inputs`: pixels in 0..1 for images, standard normal for features.

    Args:
        inputs: what to fill; dimensions that vary take the profile's opt, or `batch` and `size` where given.
        batch: number of images.
        size: (height, width) of the network input where the profile leaves it open.
        spec: tells features from images.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    inputs = tuple(inputs)
    features = takes_features(inputs, spec)
    arrays: dict[str, NDArray[Any]] = {}
    for i, t in enumerate(inputs):
        shape = list(t.shape if t.profile is None else t.profile[1])
        fallback = size or (spec.image_size if spec is not None else None) or (256, 256)
        if features and spec is not None:
            fallback = spec.level_shapes(fallback)[i]
        for axis in range(len(shape)):
            if t.shape[axis] == -1 and axis == 0 and batch is not None:
                shape[axis] = batch
            if t.shape[axis] == -1 and axis >= 2 and (shape[axis] == -1 or size is not None):
                shape[axis] = fallback[axis - 2]
            if shape[axis] == -1:
                shape[axis] = 1
        values = rng.standard_normal(shape) if features else rng.random(shape)
        arrays[t.name] = values.astype(t.dtype)
    return arrays


def run_reference(model: onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Runs a graph in ONNX Runtime on the CPU; outputs by name.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        GraphError: ONNX Runtime refuses the graph or these inputs.
    """
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise BackendUnavailable("ONNX Runtime is not installed", received=str(e), fix=_ONNX_INSTALL) from e
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # Q/DQ nodes as they are written
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(None, inputs)
    except Exception as e:  # ONNX Runtime's errors share no base class
        raise GraphError("ONNX Runtime cannot run this graph", received=str(e).splitlines()[0][:300]) from e
    return {o.name: np.asarray(v) for o, v in zip(session.get_outputs(), values, strict=True)}


def _wanted(
    t: TensorInfo, index: int, levels: HeadSpec | None, batch: Range, sizes: tuple[Size, Size, Size] | None
) -> TensorInfo:
    """The input's shape and profile for the batch and sizes asked for; `levels` where it is the features of one."""
    bounds = [[batch[k], t.shape[1], -1, -1] for k in range(3)]
    for k in range(3):
        size: Size | None = None
        if sizes is not None:
            size = sizes[k]
            if levels is not None:
                size = levels.level_shapes(size)[index]
        for axis in (2, 3):
            have = t.shape[axis]
            bounds[k][axis] = have if have != -1 else (size[axis - 2] if size else -1)
            if size is not None and have not in (-1, size[axis - 2]):
                raise BuildError(
                    f"The graph is fixed to another image size at input {t.name!r}",
                    received=f"{size[0]}x{size[1]} wanted",
                    expected=f"{t.shape[2]}x{t.shape[3]}",
                    fix="Export it with that size, or with a dynamic size",
                )
    shape = tuple(bounds[0][a] if bounds[0][a] == bounds[2][a] else -1 for a in range(4))
    if -1 not in shape:
        return TensorInfo(t.name, t.dtype, shape)
    low, opt, high = (tuple(b) for b in bounds)
    return TensorInfo(t.name, t.dtype, shape, (low, opt, high))


def _write_shapes(model: onnx.ModelProto, inputs: tuple[TensorInfo, ...]) -> None:
    """Sets the inputs' dimensions and infers all others anew."""
    import onnx

    names = {t.name: t for t in inputs}
    axes = ("batch", "channels", "height", "width")
    for value in model.graph.input:
        if value.name in names:
            for axis, d in enumerate(names[value.name].shape):
                dim = value.type.tensor_type.shape.dim[axis]
                dim.Clear()
                if d == -1:
                    dim.dim_param = axes[axis] if axis == 0 or len(inputs) == 1 else f"{value.name}_{axes[axis]}"
                else:
                    dim.dim_value = d
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as e:  # onnx raises its own and protobuf's errors
        raise BuildError("The graph does not allow these input shapes", received=str(e).splitlines()[0][:300]) from e
    model.CopyFrom(inferred)


def _free_reshapes(model: onnx.ModelProto, fixed: set[int]) -> None:
    """Makes Reshape targets that begin with the old batch copy it from their input instead (ONNX's 0)."""
    import onnx

    holders: dict[str, Any] = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            holders[node.output[0]] = next((a.t for a in node.attribute if a.name == "value"), None)
    fresh: list[Any] = []
    for node in model.graph.node:
        if node.op_type != "Reshape" or holders.get(node.input[1]) is None:
            continue
        if any(a.name == "allowzero" and a.i for a in node.attribute):
            continue
        target = onnx.numpy_helper.to_array(holders[node.input[1]])
        if target.ndim == 1 and target.size and int(target[0]) in fixed:
            name = f"{node.input[1]}_batch_{len(fresh)}"  # a copy: other nodes may share the constant
            fresh.append(onnx.numpy_helper.from_array(np.concatenate([[0], target[1:]]).astype(np.int64), name))
            node.input[1] = name
    model.graph.initializer.extend(fresh)


def _prove_rebatch(
    old: onnx.ModelProto,
    new: onnx.ModelProto,
    before: tuple[TensorInfo, ...],
    after: tuple[TensorInfo, ...],
    fixed: int,
) -> None:
    """Runs the changed graph on several different images at once and the original on each."""
    fix = "Export the model with a dynamic batch"
    size = after[0].shape[0] if after[0].shape[0] != -1 else 2 * fixed
    if size % fixed:
        raise BuildError(
            "The batch cannot be changed", received=f"{size} wanted", expected=f"a multiple of {fixed}", fix=fix
        )
    inputs = random_inputs(after, batch=size)
    try:
        got = run_reference(new, inputs)
    except GraphError as e:
        raise BuildError(f"The graph only works with its fixed batch of {fixed}", received=e.received, fix=fix) from e
    for start in range(0, size, fixed):
        part = {name: value[start : start + fixed] for name, value in inputs.items()}
        for name, want in run_reference(old, part).items():
            have = got[name][start : start + fixed]
            scale = float(np.max(np.abs(want), initial=1e-6))
            if have.shape != want.shape or not float(np.max(np.abs(have - want), initial=0.0)) <= _TOLERANCE * scale:
                raise BuildError(
                    f"With another batch than {fixed} the graph computes something else at output {name!r}", fix=fix
                )
