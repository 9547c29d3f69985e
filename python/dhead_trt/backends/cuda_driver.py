"""Which NVIDIA GPUs are here, asked of the driver itself. Needs no CUDA package."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Device", "devices", "why_none"]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Device:
    """A GPU: its name and its compute capability ("8.6")."""

    name: str
    capability: str


def devices() -> tuple[Device, ...]:
    """The GPUs, in the driver's order; none where there is no driver."""
    return _query()[0]


def why_none() -> str:
    """Why `devices` is empty, in words."""
    return _query()[1]


@lru_cache(maxsize=1)
def _query() -> tuple[tuple[Device, ...], str]:
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return (), f"there is no NVIDIA driver here ({library} is not found)"
    status = int(cuda.cuInit(0))
    if status:
        return (), f"the NVIDIA driver does not start (cuInit gives {status})"
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return (), "the NVIDIA driver finds no GPU"
    found = []
    for i in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        major, minor = ctypes.c_int(), ctypes.c_int()
        failed = (
            cuda.cuDeviceGet(ctypes.byref(device), i)
            or cuda.cuDeviceGetName(name, len(name), device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        )
        if not failed:
            found.append(Device(name.value.decode(errors="replace"), f"{major.value}.{minor.value}"))
    return tuple(found), "" if found else "the NVIDIA driver does not describe its GPUs"
