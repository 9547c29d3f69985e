"""Device arrays of any library, as address, shape and type; and streams as integers."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendUnavailable, InputError

__all__ = [
    "DeviceView",
    "availability",
    "cuda_module",
    "empty",
    "has_allocator",
    "on_gpu",
    "stream_handle",
    "to_host",
    "view",
]

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_DLPACK_TYPES = {0: "i", 1: "u", 2: "f", 6: "b"}
_FIX = "Run on a machine with an NVIDIA GPU and its driver, or use the CPU: dhead_trt.decode, dhead_trt.detect"


def availability() -> tuple[bool, str]:
    """Whether the CUDA kernels run here, and if not, why."""
    try:
        module: Any = importlib.import_module("dhead_trt._cuda")
    except ImportError as e:
        return False, f"built without the CUDA kernels ({e})"
    count, reason = module.status()
    return count > 0, reason


def cuda_module() -> Any:
    """The extension module `_cuda`.

    Raises:
        BackendUnavailable: it was not built, or there is no GPU or driver.
    """
    available, reason = availability()
    if not available:
        built = "built without" not in reason
        fix = _FIX if built else "Install with nvcc on PATH: pip install . -C cmake.define.DHEAD_CUDA=ON"
        raise BackendUnavailable("The CUDA kernels cannot run here", received=reason, expected="an NVIDIA GPU", fix=fix)
    return importlib.import_module("dhead_trt._cuda")


def on_gpu(array: Any, stream: Any = None) -> bool:
    """Whether `array` says that it lies in a GPU's memory.

    Raises:
        InputError: it does not, and yet there is a `stream`.
    """
    if isinstance(array, np.ndarray):
        where = None
    else:
        try:
            if getattr(array, "__cuda_array_interface__", None) is not None:
                return True
        except Exception:
            return True  # torch's word for a tensor on a GPU that needs grad; `view` says so
        try:
            where = array.__dlpack_device__()
        except (AttributeError, BufferError, TypeError, ValueError, RuntimeError):
            where = None
    if where is not None and int(where[0]) in _DLPACK_CUDA:
        return True
    if stream is not None:
        raise InputError(
            "A stream is of no use to arrays on the CPU", received=type(array).__name__, expected="arrays on a GPU"
        )
    return False


@dataclass(frozen=True)
class DeviceView:
    """A C-contiguous array in device memory.

    Attributes:
        address: of the first element.
        shape: elements per axis.
        typestr: numpy's, little-endian: "<f4", "<f2", "<i4", "|u1".
        strides: bytes per axis.
        device: which GPU.
        producer: stream on which the array is being written, or None.
        owner: keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    typestr: str
    strides: tuple[int, ...]
    device: int
    producer: int | None
    owner: Any

    @property
    def contiguous(self) -> bool:
        """True where rows follow each other without a gap."""
        return math.prod(self.shape) == 0 or all(
            n == 1 or s == want
            for n, s, want in zip(self.shape, self.strides, _contiguous(self.shape, self.typestr), strict=True)
        )


def view(array: Any, name: str, module: Any) -> DeviceView:
    """What `array` is, through `__cuda_array_interface__` or DLPack.

    Raises:
        InputError: it is neither, or not in device memory.
    """
    kind = type(array).__module__.split(".")[0] + "." + type(array).__name__
    try:
        interface = getattr(array, "__cuda_array_interface__", None)
    except Exception as e:  # torch raises where a tensor needs grad, or is not on a GPU
        raise InputError(f"{name} cannot be read as a device array", received=f"{kind}: {e}") from e
    if interface is not None:
        shape, typestr = tuple(int(n) for n in interface["shape"]), str(interface["typestr"])
        strides = interface.get("strides")
        address = int(interface["data"][0])
        found = DeviceView(
            address=address,
            shape=shape,
            typestr=typestr,
            strides=_contiguous(shape, typestr) if strides is None else tuple(int(s) for s in strides),
            device=module.device_of(address) if address else 0,
            producer=interface.get("stream"),
            owner=array,
        )
        if found.device < 0:
            raise InputError(f"{name} is not in device memory", received=kind, expected="memory of a GPU")
        return found
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        device_type, _ = array.__dlpack_device__()
        if int(device_type) not in _DLPACK_CUDA:
            raise InputError(f"{name} is not in device memory", received=kind, expected="memory of a GPU")
        # The producer puts its work before the legacy default stream's, for which the caller waits (`producer`). Asked
        # for by number: where there is none, torch orders nothing.
        capsule = array.__dlpack__(stream=1)
        address, shape, steps, code, bits, lanes, _, device = module.read_dlpack(capsule)
        if code not in _DLPACK_TYPES or lanes != 1:
            raise InputError(f"{name} has an unknown type", received=f"DLPack type {code}, {bits} bits")
        typestr = ("|" if bits == 8 else "<") + _DLPACK_TYPES[code] + str(bits // 8)
        strides = _contiguous(shape, typestr) if steps is None else tuple(s * bits // 8 for s in steps)
        return DeviceView(address, tuple(shape), typestr, strides, device, 0, (array, capsule))
    raise InputError(
        f"{name} is not a device array", received=kind, expected="__cuda_array_interface__ or DLPack on a GPU",
        fix="For numpy arrays use dhead_trt.decode and dhead_trt.detect",
    )  # fmt: skip


def _contiguous(shape: tuple[int, ...], typestr: str) -> tuple[int, ...]:
    strides, step = [], int(typestr[2:])
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def stream_handle(stream: Any, example: Any = None) -> int:
    """A stream as an integer.

    Args:
        stream: an integer, an object of torch (`cuda_stream`), CuPy (`ptr`) or PyCUDA (`handle`), one with
            `__cuda_stream__`, or None: torch's current stream where `example` is a torch tensor, else the legacy
            default stream.
        example: one of the inputs.

    Raises:
        InputError: it is none of these.
    """
    if stream is None:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(example, torch.Tensor):
            return int(torch.cuda.current_stream(example.device).cuda_stream)
        return 0
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        value = protocol() if callable(protocol) else protocol
        return int(value[1])
    for attribute in ("cuda_stream", "ptr", "handle"):
        value = getattr(stream, attribute, None)
        if isinstance(value, int):
            return value
    raise InputError(
        "The stream is not of a known kind",
        received=type(stream).__name__,
        expected="an integer, or a stream of torch, CuPy or PyCUDA",
    )


def to_host(array: Any) -> npt.NDArray[Any]:
    """A device array copied to the host, as numpy; waits for the work on it where its library does.

    Raises:
        InputError: its library is not known to have a copy.
    """
    for name in ("to_host", "get", "numpy", "copy_to_host"):  # ours, CuPy and PyCUDA, TensorRT's, Numba
        if name != "numpy" or not hasattr(array, "cpu"):
            copy = getattr(array, name, None)
            if callable(copy):
                return np.asarray(copy())
    if hasattr(array, "detach") and hasattr(array, "cpu"):
        return np.asarray(array.detach().cpu().numpy())
    raise InputError(
        "The array lies on a GPU, and how to copy it is not known",
        received=type(array).__name__,
        expected="an array of torch, CuPy, PyCUDA or Numba",
        fix="Copy it to the host first",
    )


def has_allocator(example: Any) -> bool:
    """Whether `empty` takes memory from a library's own cache, which is quick and in the stream's order."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    return (torch is not None and isinstance(example, torch.Tensor)) or (
        cupy is not None and isinstance(example, cupy.ndarray)
    )


def empty(shape: tuple[int, ...], typestr: str, device: int, stream: int, example: Any, module: Any) -> Any:
    """An uninitialised device array: of torch or CuPy where `example` is, else a DeviceArray."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(example, torch.Tensor):
        dtype = {"<f4": torch.float32, "<f2": torch.float16, "<i4": torch.int32, "|u1": torch.uint8}[typestr]
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=f"cuda:{device}")):
            return torch.empty(shape, dtype=dtype, device=f"cuda:{device}")
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(example, cupy.ndarray):
        with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device):
            return cupy.empty(shape, dtype=typestr)
    return module.DeviceArray(list(shape), typestr, device)
