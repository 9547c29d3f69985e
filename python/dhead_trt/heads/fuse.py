"""Conv + BatchNorm → Conv."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import InputError

__all__ = ["fuse_conv_bn"]

_PAIRS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
_NORMS = tuple(_PAIRS.values())


def fuse_conv_bn(module: nn.Module) -> nn.Module:
    """A copy of `module` in which every BatchNorm that follows a convolution is folded into it.

    Pairs are found in the data flow of each submodule's own forward (torch.fx), never by name or order: a convolution
    is folded where its output goes to the norm and nowhere else, and neither is shared. The norm's place is taken by
    nn.Identity, so that names and indices stay. GroupNorm and other norms, and norms without running statistics, are
    left as they are. A submodule whose forward cannot be traced keeps its norms, with a warning that names it.

    Args:
        module: any module in eval mode; it is not changed.

    Returns:
        The copy. Its outputs equal the module's but for rounding (about 1e-6 relative in float32).

    Raises:
        InputError: the module, or a norm in it, is in training mode, where its output depends on the batch.
    """
    training = [n or "the module" for n, m in module.named_modules() if m.training and (not n or isinstance(m, _NORMS))]
    if training:
        raise InputError(
            "Only a module in eval mode can be fused",
            received=f"{training[0]} in training mode",
            expected="eval mode",
            fix="Call module.eval() first",
        )
    fused = copy.deepcopy(module)
    uses = Counter(id(m) for _, m in fused.named_modules(remove_duplicate=False))
    for name, parent in list(fused.named_modules()):
        if any(isinstance(child, _NORMS) for child in parent.children()):
            _fuse_children(name, parent, uses)
    return fused


class _ChildrenAreLeaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _fuse_children(name: str, parent: nn.Module, uses: Counter[int]) -> None:
    try:
        graph = _ChildrenAreLeaves().trace(parent)
    except Exception as e:  # whatever the forward does that a trace cannot follow
        warnings.warn(
            f"fuse_conv_bn: the norms of {name or 'the module'} ({type(parent).__name__}) are left in place, "
            f"because its forward cannot be traced: {e}",
            stacklevel=3,
        )
        return
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}  # weights used directly
    for node in graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        if source.op != "call_module" or len(source.users) != 1:
            continue
        conv, norm = (parent.get_submodule(str(n.target)) for n in (source, node))
        plain = all(
            calls[str(n.target)] == 1 and uses[id(m)] == 1 and not any(r.startswith(f"{n.target}.") for r in read)
            for n, m in ((source, conv), (node, norm))
        )
        if plain and _foldable(conv, norm):
            _fold(conv, norm)
            holder, _, attribute = str(node.target).rpartition(".")
            setattr(parent.get_submodule(holder), attribute, nn.Identity())


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    hooks = any(len(h) for m in (conv, norm) for h in (m._forward_hooks, m._forward_pre_hooks))
    return (
        type(norm) is _PAIRS.get(type(conv))
        and not hooks
        and norm.running_mean is not None
        and norm.running_var is not None
        and not nn.utils.parametrize.is_parametrized(conv)
        and conv.out_channels == norm.num_features
    )


@torch.no_grad()
def _fold(conv: Any, norm: Any) -> None:
    """w' = w·γ/√(σ²+ε), b' = (b - μ)·γ/√(σ²+ε) + β, in float64."""
    variance: Tensor = norm.running_var.double()

    def wide(x: Tensor | None, default: float) -> Tensor:
        return torch.full_like(variance, default) if x is None else x.double()

    scale = wide(norm.weight, 1.0) / torch.sqrt(variance + norm.eps)
    bias = (wide(conv.bias, 0.0) - wide(norm.running_mean, 0.0)) * scale + wide(norm.bias, 0.0)
    weight: Tensor = conv.weight
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    conv.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=weight.requires_grad)
    conv.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
