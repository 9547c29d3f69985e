"""TensorRT builder and engine for TensorRT 11 and TensorRT for RTX: the names of `_trt10`."""

from ._trt10 import HAS_KERNELS as HAS_KERNELS
from ._trt10 import HEADER_VERSION as HEADER_VERSION
from ._trt10 import STATIC_CUDART as STATIC_CUDART
from ._trt10 import DeviceArray as DeviceArray
from ._trt10 import Engine as Engine
from ._trt10 import Library as Library
from ._trt10 import build as build
