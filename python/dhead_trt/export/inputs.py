"""What goes into an exported graph: the model, checked, and its example inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import BackendUnavailable, InputError
from ..spec import HeadSpec

if TYPE_CHECKING:
    import torch

__all__ = ["Inputs", "level_shapes_of", "raw_model", "require"]

DEFAULT_SIZE = (640, 640)
MAX_BYTES = 2**31 - 2**20  # of weights: a protobuf file ends at 2 GiB


def require(package: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise BackendUnavailable(
            f"Export needs {package}", received=str(e), fix=f'pip install "dhead-trt[{extra}]"'
        ) from e


def raw_model(torch: Any, model: Any) -> Any:
    from ..heads import DecodedHead, RawModel

    if isinstance(model, DecodedHead):
        model = model.head
    if not isinstance(model, torch.nn.Module) or not isinstance(model, RawModel):
        raise InputError(
            "The model is no detection head",
            received=type(model).__name__,
            expected="a torch module with .spec (HeadSpec) and .raw(inputs)",
            fix="Use one of dhead_trt.heads, or give yours these two members",
        )
    module: Any = model  # which the check narrowed to the protocol
    tensors = [*module.parameters(), *module.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    if size > MAX_BYTES:
        raise InputError(
            "The model is too large for one ONNX file",
            received=f"{size / 2**30:.2f} GiB of weights",
            expected="less than 2 GiB, the limit of the format",
            fix="Export backbone and head separately",
        )
    wrong = {str(t.dtype) for t in tensors if t.is_floating_point() and t.dtype != torch.float32}
    if wrong:
        raise InputError(
            "The model is not in float32",
            received=sorted(wrong),
            expected="torch.float32",
            fix="Export model.float(), then apply dhead_trt.precision.to_fp16",
        )
    return model


@dataclass(frozen=True)
class Inputs:
    """The graph's inputs: one image batch, or the features of every level."""

    names: tuple[str, ...]
    example: tuple[torch.Tensor, ...]
    images: bool
    image_size: tuple[int, int] | None  # None where the size is dynamic or cannot be told

    def wrap(self, tensors: Sequence[torch.Tensor]) -> Any:
        """What `model.raw` takes."""
        return tensors[0] if self.images else list(tensors)

    def random(self, torch: Any, batch: int, grow: int, strides: Sequence[int], seed: int) -> list[torch.Tensor]:
        """Random inputs: uniform 0..1 for images, normal for features; `grow` cells of the coarsest level larger."""
        generator = torch.Generator().manual_seed(seed)
        make = torch.rand if self.images else torch.randn
        made = []
        for i, x in enumerate(self.example):
            step = grow * (max(strides) if self.images else max(1, max(strides) // strides[i]))
            shape = (batch, int(x.shape[1]), int(x.shape[2]) + step, int(x.shape[3]) + 2 * step)
            made.append(make(*shape, generator=generator))
        return made

    @classmethod
    def of(cls, torch: Any, model: Any, example: Any, image_size: Any, dynamic_size: bool) -> Inputs:
        spec: HeadSpec = model.spec
        size = _size(image_size)
        channels = getattr(model, "in_channels", None)
        images = channels is None if example is None else isinstance(example, torch.Tensor) and channels is None
        device = next((t.device for t in model.parameters()), torch.device("cpu"))
        if example is None:
            size = size or spec.image_size or DEFAULT_SIZE
            if images:
                tensors = (torch.zeros(1, 3, *size, device=device),)
            else:
                shapes = spec.level_shapes(size)
                tensors = tuple(
                    torch.zeros(1, c, *hw, device=device) for c, hw in zip(channels or (), shapes, strict=True)
                )
        else:
            given = [example] if isinstance(example, torch.Tensor) else list(example)
            if any(not isinstance(t, torch.Tensor) or t.dim() != 4 or 0 in t.shape for t in given) or not given:
                raise InputError(
                    "The example is not an input of the model",
                    received=[tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__ for t in given],
                    expected="an image batch [B, 3, H, W], or a list of feature maps [B, C_i, H_i, W_i]",
                )
            tensors = tuple(t.to(device=device, dtype=torch.float32) for t in given)
            size = _size_of(tensors, images, spec, size)
        names = ("images",) if images else tuple(f"p{3 + i}" for i in range(len(tensors)))
        return cls(names, tensors, images, None if dynamic_size else size)


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in pair):
        raise InputError("image_size is not a size", received=repr(value), expected="(height, width), or one number")
    return pair


def _size_of(
    tensors: Sequence[torch.Tensor], images: bool, spec: HeadSpec, size: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The image size that an example stands for; the features of a head tell it only up to rounding."""
    shapes = tuple((int(t.shape[2]), int(t.shape[3])) for t in tensors)
    if images:
        found: tuple[int, int] | None = shapes[0]
        fits = size in (None, found)
    else:
        whole = (shapes[0][0] * spec.strides[0], shapes[0][1] * spec.strides[0])
        found = size or spec.image_size or whole
        fits = size is None or spec.level_shapes(size) == shapes
        if spec.level_shapes(found) != shapes:
            found = whole if spec.level_shapes(whole) == shapes else None
    if not fits:
        raise InputError("The example does not have the image size", received=f"{shapes}", expected=f"{size}")
    return found


def level_shapes_of(model: Any, spec: HeadSpec, inputs: Any) -> list[tuple[int, int]]:
    """Runs the model once; (H, W) of every level."""
    maps = model.raw(inputs)
    for name in spec.input_names:
        shape = tuple(maps[name].shape) if name in maps else None
        level = tuple(maps[f"box_{name[4:]}"].shape[2:]) if f"box_{name[4:]}" in maps else None
        if shape is None or len(shape) != 4 or shape[1] != spec.channels(name) or shape[2:] != level:
            raise InputError(
                f"The model's raw maps do not fit its spec: {name}",
                received="no such map" if shape is None else f"shape {shape}",
                expected=f"[B, {spec.channels(name)}, H, W], H and W the same for all maps of a level",
            )
    return [tuple(maps[f"box_{i}"].shape[2:]) for i in range(spec.num_levels)]
