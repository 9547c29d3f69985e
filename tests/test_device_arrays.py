"""`decode` and `detect` on arrays in a GPU's memory: they go to `dhead_trt.cuda`, which says why it cannot run here.

What it does where it can is in test_cuda_kernels.py (on the host stand-in) and tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dhead_trt
from cases import BY_NAME
from dhead_trt import BackendUnavailable, DheadError, InputError, cuda
from dhead_trt._device import on_gpu

CASE = BY_NAME["two_levels"]
CALLS = [dhead_trt.decode, dhead_trt.detect]
no_gpu = pytest.mark.skipif(cuda.availability()[0], reason="there is a GPU: tests/gpu runs these calls on it")


class Interface:
    """What CuPy, Numba and PyCUDA arrays are to others; the address is nobody's."""

    def __init__(self, array: np.ndarray) -> None:
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (0x1000, False), "version": 3,
        }  # fmt: skip


class Dlpack:
    """A DLPack array of a GPU."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape = array.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("read where there is no GPU")


class NeedsGrad:
    """A torch tensor on a GPU that needs grad: it has the interface, and refuses to be read by it."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")


@no_gpu
@pytest.mark.parametrize("kind", [Interface, Dlpack])
@pytest.mark.parametrize("call", CALLS)
def test_without_a_gpu_they_say_so(call: Callable[..., Any], kind: type) -> None:
    maps = {n: kind(x) for n, x in CASE.maps().items()}
    for options in ({}, {"stream": 0}, {"threads": 1}):
        with pytest.raises(BackendUnavailable, match="CUDA kernels cannot run here") as e:
            call(maps, CASE.spec, **options)
        assert "dhead_trt.decode" in str(e.value) or "DHEAD_CUDA=ON" in str(e.value)


@pytest.mark.parametrize("call", CALLS)
def test_a_mixture_is_refused(call: Callable[..., Any]) -> None:
    for name, x in CASE.maps().items():
        with pytest.raises(DheadError) as e:
            call({**CASE.maps(), name: Interface(x)}, CASE.spec)
        assert isinstance(e.value, InputError if name != "cls_0" else (BackendUnavailable, InputError))
        assert name in str(e.value) or name == "cls_0"


@pytest.mark.parametrize("call", CALLS)
def test_a_stream_is_refused_with_arrays_of_the_cpu(call: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="stream"):
        call(CASE.maps(), CASE.spec, stream=0)


@pytest.mark.parametrize("call", CALLS)
def test_other_arrays_of_the_cpu_stay_refused_and_subclasses_accepted(call: Callable[..., Any]) -> None:
    torch = pytest.importorskip("torch")
    for make in (torch.from_numpy, lambda x: torch.from_numpy(x).requires_grad_(), np.ndarray.tolist):
        with pytest.raises(InputError, match="not a numpy array"):
            call({n: make(x) for n, x in CASE.maps().items()}, CASE.spec)
    subclass = {n: x.view(np.memmap) for n, x in CASE.maps().items()}
    for got, want in zip(call(subclass, CASE.spec), call(CASE.maps(), CASE.spec), strict=True):
        np.testing.assert_array_equal(got, want)


def test_where_an_array_lies() -> None:
    x = np.zeros((1, 2), np.float32)
    assert on_gpu(Interface(x))
    assert on_gpu(Dlpack(x))
    assert on_gpu(NeedsGrad())
    assert not on_gpu(x)
    assert not on_gpu(None)
    assert not on_gpu(memoryview(x))
