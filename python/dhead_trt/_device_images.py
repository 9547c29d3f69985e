"""Images in a GPU's memory: what they are, and how they lie there, for the letterbox kernel."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ._device import DeviceView, cuda_module, on_gpu, stream_handle, view
from .cuda import Nv12
from .errors import InputError

__all__ = ["DeviceImage", "device_image", "is_device_image"]

_EXPECTED = "uint8 [height, width, 3] (also [H, W], [H, W, 1], [H, W, 4]; torch also [3, H, W]), or Nv12"


@dataclass(frozen=True)
class DeviceImage:
    """An image as `letterbox_cuda` takes it.

    Attributes:
        pixels: Nv12, or an object with `__cuda_array_interface__` of shape [H, W, 3].
        shape: (height, width).
        bgr: its channels are B, G, R.
        stream: the caller's, on which the image may still be being written.
        device: number of the GPU.
    """

    pixels: Any
    shape: tuple[int, int]
    bgr: bool
    stream: int
    device: int


class _Arranged:
    """Another view of device memory: the same bytes in another shape, by strides alone.

    It keeps the producer's stream as the caller's thread was told it: CuPy tells other threads another one.
    """

    def __init__(self, v: DeviceView, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self._owner = v.owner
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": v.typestr, "data": (v.address, True), "strides": strides, "stream": v.producer,
            "version": 3,
        }  # fmt: skip


def is_device_image(source: Any) -> bool:
    """True of Nv12, and of arrays in a GPU's memory."""
    return isinstance(source, Nv12) or on_gpu(source)


def device_image(source: Any, *, bgr: bool) -> DeviceImage:
    """Looks at an image without touching its pixels (floating-point ones excepted: they become bytes).

    Must run in the caller's thread: the stream is the one that is current there.

    Raises:
        InputError: it is not an image, or of a type that images don't have.
        BackendUnavailable: no GPU, or built without CUDA.
    """
    module = cuda_module()
    if isinstance(source, Nv12):
        luma, chroma = view(source.luma, "luma", module), view(source.chroma, "chroma", module)
        if len(luma.shape) != 2 or len(chroma.shape) != 2 or 0 in luma.shape:
            raise InputError(
                "The frame is not NV12",
                received=f"luma {list(luma.shape)}, chroma {list(chroma.shape)}",
                expected="uint8 [H, W] and [ceil(H/2), W]",
            )
        height, width = luma.shape
        planes = Nv12(*(_Arranged(v, v.shape, v.strides) for v in (luma, chroma)))
        return DeviceImage(planes, (height, width), False, stream_handle(None, source.luma), luma.device)
    stream = stream_handle(None, source)
    planar = False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        source = source.detach()
        planar = source.ndim == 3 and source.shape[0] in (1, 3, 4)  # torch's habit, and wins where both would do
    v = view(_bytes(source), "The image", module)
    if len(v.shape) == 4:
        raise InputError(
            "This is a batch of images", received=f"{v.typestr} {list(v.shape)}", expected="one image",
            fix="Pass a list of images: list(batch)",
        )  # fmt: skip
    shape, strides = v.shape, v.strides
    if planar:
        shape, strides = (*shape[1:], shape[0]), (*strides[1:], strides[0])
    elif len(shape) == 2:
        shape, strides = (*shape, 1), (*strides, 0)
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or v.typestr != "|u1":
        turned = len(shape) == 3 and shape[0] in (1, 3, 4) and v.typestr == "|u1"
        raise InputError(
            "The device array is not an image",
            received=f"{v.typestr} {list(v.shape)}",
            expected=_EXPECTED,
            fix="Channels come last: array.transpose(1, 2, 0)" if turned else None,
        )
    if 0 in shape:
        raise InputError("The image has no pixels", received=list(v.shape), expected="at least 1 × 1")
    if shape[2] == 1:  # grey is repeated without a copy
        strides = (*strides[:2], 0)
    height, width = shape[:2]
    pixels = _Arranged(v, (height, width, 3), strides)
    return DeviceImage(pixels, (height, width), bgr, stream, v.device)


def _bytes(source: Any) -> Any:
    """torch's and CuPy's floating-point images (0 … 1) as bytes, on the GPU; anything else as it is.

    Raises:
        InputError: samples outside of 0 … 1, or NaN.
    """
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    library = torch if torch is not None and isinstance(source, torch.Tensor) else None
    if cupy is not None and isinstance(source, cupy.ndarray):
        library = cupy
    if library is None or not str(source.dtype).removeprefix("torch.").startswith(("float", "bfloat")):
        return source
    if 0 in source.shape:
        raise InputError("The image has no pixels", received=list(source.shape), expected="at least 1 × 1")
    low, high = float(source.min()), float(source.max())  # waits for the GPU
    if not (low >= 0 and high <= 1):
        raise InputError(
            "The floating-point image is out of range, or holds NaN",
            received=f"values from {low:g} to {high:g}",
            expected="0 to 1",
            fix="Divide by the largest value there can be (255 for 8-bit data), or pass uint8",
        )
    if library is torch:
        return (source.float() * 255).round().to(library.uint8)
    return library.rint(source.astype(library.float32) * 255).astype(library.uint8)
