"""TensorRT builder and engine, compiled. `_trt11` is the same for TensorRT 11 and TensorRT for RTX."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

HEADER_VERSION: str
HAS_KERNELS: bool
STATIC_CUDART: bool

_Shape = Sequence[int]
_Range = tuple[_Shape, _Shape, _Shape]

class _Tensor(TypedDict):
    name: str
    dtype: str
    shape: tuple[int, ...]
    profiles: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]

class _Built(TypedDict):
    plan: bytes | None
    size: int
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    version: str
    rtx: bool
    layers: int
    timing_cache_used: bool
    warnings: list[str]

class Library:
    def __init__(
        self, path: str = "", *, package_dirs: Sequence[str] = ..., rtx: bool = False, cudart: str = ""
    ) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def rtx(self) -> bool: ...
    @property
    def product(self) -> str: ...
    def devices(self) -> list[tuple[str, tuple[int, int]]]: ...
    def dla_cores(self) -> int: ...

def build(
    library: Library,
    model: bytes,
    *,
    model_path: str = "",
    profiles: Sequence[Mapping[str, _Range]] = ...,
    workspace: int | None = None,
    tactic_dram: int | None = None,
    tactic_shared_memory: int | None = None,
    dla_sram: int | None = None,
    dla_local_dram: int | None = None,
    dla_global_dram: int | None = None,
    timing_cache: str = "",
    optimization_level: int | None = None,
    avg_timing_iterations: int | None = None,
    max_aux_streams: int | None = None,
    hardware: str = "none",
    version_compatible: bool = False,
    exclude_lean_runtime: bool = False,
    refit: bool = False,
    strip_plan: bool = False,
    sparse_weights: bool = False,
    tf32: bool = True,
    verbosity: str = "layer_names",
    dla_core: int = -1,
    gpu_fallback: bool = True,
    mark_outputs: Sequence[str] = ...,
    mark_all_outputs: bool = False,
    plugins: Sequence[str] = ...,
    device: int = 0,
    output: str = "",
    progress: Callable[[str, str, int, int], bool | None] | None = None,
    log: Callable[[int, str], None] | None = None,
) -> _Built: ...

class DeviceArray:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def ptr(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack__(self, stream: int | None = None, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def numpy(self) -> NDArray[Any]: ...

class Engine:
    def __init__(
        self,
        library: Library,
        plan: str | PathLike[str] | bytes | bytearray | memoryview | NDArray[np.uint8],
        *,
        device: int = 0,
        max_contexts: int = 8,
        cuda_graphs: bool = False,
        host_code: bool = False,
        plugins: Sequence[str] = ...,
        expected_version: str = "",
        expected_compute: Sequence[str] = ...,
        version_compatible: bool = False,
    ) -> None: ...
    @property
    def inputs(self) -> list[_Tensor]: ...
    @property
    def outputs(self) -> list[_Tensor]: ...
    @property
    def device(self) -> int: ...
    @property
    def num_profiles(self) -> int: ...
    @property
    def device_memory(self) -> int: ...
    @property
    def last_shapes(self) -> list[list[int]]: ...
    def infer(
        self,
        inputs: Mapping[str, Any] | Sequence[Any],
        out: Mapping[str, Any] | Sequence[Any] | None = None,
        stream: Any = None,
        device_outputs: bool = False,
    ) -> dict[str, Any]: ...
    def output_shapes(self, shapes: Sequence[_Shape]) -> list[tuple[int, ...]]: ...
    def profile_layers(self, shapes: Sequence[_Shape]) -> list[tuple[str, float]]: ...
    def describe_layers(self) -> str: ...
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...
