"""3×3 convolutions as Winograd's F(2×2, 3×3), in plain ONNX operators.

CPU libraries compute fp32 convolutions directly, close to the machine's peak: only fewer multiplications make them
faster (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308). Each 2×2 block of
outputs takes 16 products per channel pair instead of 36. The transforms have coefficients 0, ±1 and ±½ only, so fp32
results stay as near to the exact ones as those of direct convolution. In bf16 the error grows by about half.

    Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

__all__ = ["use_winograd"]

# Below these the transforms cost more than the products they save (measured on OpenVINO, see bench/engine.py).
MIN_CHANNELS = 192
MIN_BLOCKS = 36

_BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64)
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float64)
_BIASED = 5  # the product whose coefficient is +1 in all four outputs


@dataclass(frozen=True)
class _Conv:
    node: onnx.NodeProto
    weight: NDArray[np.float32]  # [O, C, 3, 3]
    has_bias: bool


def use_winograd(
    model: onnx.ModelProto, *, min_channels: int = MIN_CHANNELS, min_blocks: int = MIN_BLOCKS
) -> tuple[onnx.ModelProto, int]:
    """Replaces the 3×3 convolutions that gain by it.

    These have fp32 constant weights, stride 1, padding 1, one group, at least `min_channels` channels in and out, and a
    map of known, even height and width of at least `min_blocks` 2×2 blocks.

    Args:
        model: with inferred shapes. Not changed.

    Returns:
        The graph, same names and same outputs within fp32 rounding, and how many convolutions were replaced. Their
        weights take 16/9 of the room.
    """
    import onnx

    result = copy.deepcopy(model)
    graph = result.graph
    if not any(i.domain in ("", "ai.onnx") and i.version >= 11 for i in result.opset_import):
        return result, 0  # DepthToSpace had one order only
    weights = {i.name: i for i in graph.initializer}
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*graph.input, *graph.value_info, *graph.output]
    }
    nodes: list[Any] = []
    fresh: dict[str, Any] = {}
    count = 0
    for node in graph.node:
        conv = _matching(node, weights, shapes, min_channels, min_blocks)
        if conv is None:
            nodes.append(node)
        else:
            nodes.extend(_blocks(conv, fresh))
            count += 1
    if not count:
        return result, 0
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for n in graph.node for name in n.input} | {o.name for o in graph.output}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *fresh.values()])
    onnx.checker.check_model(result)
    return result, count


def _matching(
    node: onnx.NodeProto, weights: dict[str, Any], shapes: dict[str, list[int]], min_channels: int, min_blocks: int
) -> _Conv | None:
    import onnx

    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or node.input[1] not in weights:
        return None
    a = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
    tensor = weights[node.input[1]]
    if (
        tensor.data_type != onnx.TensorProto.FLOAT
        or list(tensor.dims)[2:] != [3, 3]
        or min(tensor.dims[:2]) < min_channels
    ):
        return None
    if a.get("auto_pad", b"NOTSET") != b"NOTSET" or a.get("group", 1) != 1 or list(a.get("pads", [])) != [1, 1, 1, 1]:
        return None
    if list(a.get("strides", [1, 1])) != [1, 1] or list(a.get("dilations", [1, 1])) != [1, 1]:
        return None
    shape = shapes.get(node.input[0], [])
    if len(shape) != 4 or shape[2] % 2 or shape[3] % 2 or shape[2] * shape[3] // 4 < min_blocks:
        return None
    return _Conv(node, onnx.numpy_helper.to_array(tensor), len(node.input) > 2 and bool(node.input[2]))


def _blocks(conv: _Conv, fresh: dict[str, Any]) -> list[Any]:
    """The nodes that stand for one convolution: 16 transforms, 16 products, the sums, and 2×2 blocks to pixels."""
    import onnx

    node, (outs, channels) = conv.node, conv.weight.shape[:2]
    base = f"{node.name or node.output[0]}/winograd"
    products = np.einsum("ia,ocab,jb->ijoc", _G, conv.weight.astype(np.float64), _G).reshape(16, outs, channels, 1, 1)
    kernels = np.einsum("ia,jb->ijab", _BT, _BT).reshape(16, 1, 1, 4, 4)
    nodes = []

    def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(name: str, value: NDArray[Any]) -> str:
        if name not in fresh:
            fresh[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
        return name

    m = []
    for k in range(16):
        kernel = constant(f"winograd/{channels}/B{k}", np.repeat(kernels[k], channels, axis=0))
        d = add("Conv", [node.input[0], kernel], f"{base}/d{k}", group=channels, strides=[2, 2], pads=[1, 1, 1, 1])
        bias = [node.input[2]] if k == _BIASED and conv.has_bias else []
        m.append(add("Conv", [d, constant(f"{base}/U{k}", products[k]), *bias], f"{base}/m{k}"))

    def reduced(x: list[str], name: str) -> tuple[str, str]:
        """Aᵀ x: (x0 + x1 + x2, x1 - x2 - x3)."""
        plus = add("Add", [add("Add", [x[0], x[1]], f"{name}/s"), x[2]], f"{name}/0")
        minus = add("Sub", [add("Sub", [x[1], x[2]], f"{name}/t"), x[3]], f"{name}/1")
        return plus, minus

    columns = [reduced([m[4 * i + j] for i in range(4)], f"{base}/r{j}") for j in range(4)]
    outputs = [y for row in range(2) for y in reduced([c[row] for c in columns], f"{base}/y{row}")]
    stacked = add("Concat", outputs, f"{base}/y", axis=1)
    nodes.append(
        onnx.helper.make_node("DepthToSpace", [stacked], [node.output[0]], name=f"{base}/out", blocksize=2, mode="DCR")
    )
    return nodes
