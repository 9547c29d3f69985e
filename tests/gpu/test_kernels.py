"""The kernels on a real GPU: the very tests that tests/test_cuda_kernels.py runs on the host stand-in.

Every result is compared with the CPU code's bits and with the oracle; outputs and workspaces come poisoned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dhead_trt import cuda
from test_cuda_kernels import (  # noqa: F401 (collected from here)
    test_any_number_of_candidates,
    test_bad_arguments,
    test_cases,
    test_decode_and_detect_take_device_arrays,
    test_equal_everything,
    test_letterbox,
    test_letterbox_nv12,
    test_more_detections_than_shared_memory_keeps,
    test_parity_climbs_the_cuda_rungs,
    test_random_cases_have_the_bits_of_the_cpu_code,
    test_thresholds_and_outputs_given,
)


@pytest.fixture(scope="module")
def gpu(real_gpu: Any) -> Iterator[Any]:
    cuda._class_mask.cache_clear()
    yield real_gpu
    cuda._class_mask.cache_clear()
