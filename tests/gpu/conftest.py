"""Everything in this folder needs an NVIDIA GPU; without one it is skipped, and says so."""

from __future__ import annotations

import os
from typing import Any

import pytest

from dhead_trt import cuda


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def real_gpu() -> Any:
    """The extension module `_cuda` on a machine with a GPU."""
    available, reason = cuda.availability()
    if not available:
        if os.environ.get("DHEAD_REQUIRE_GPU"):  # scripts/gpu_check.sh: PyTorch finds one
            pytest.fail(f"no GPU: {reason}")
        pytest.skip(f"NOT RUN, no GPU: {reason}")
    return cuda.cuda_module()


@pytest.fixture(scope="session")
def torch(real_gpu: Any) -> Any:
    """PyTorch with CUDA."""
    module = pytest.importorskip("torch", reason="NOT RUN, no PyTorch")
    if not module.cuda.is_available():
        pytest.skip("NOT RUN, this PyTorch has no CUDA")
    return module
