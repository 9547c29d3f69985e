"""Fixtures for tests of torch: `one_thread = torch_fixtures.one_thread` gives a test file its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def _one_thread() -> Iterator[None]:
    """Tiny networks: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


one_thread = pytest.fixture(autouse=True)(_one_thread)
one_thread_per_file = pytest.fixture(autouse=True, scope="module")(_one_thread)
