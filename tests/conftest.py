"""Shared set-up: reproducible hypothesis runs, a fixed seed, a switch for the thread count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch

# No deadlines: time is the benchmarks' business. The same examples in every run, so that a red test
# is red again.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "thorough", deadline=None, max_examples=2000, parent=hypothesis.settings.get_profile("default")
)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """``with threads(1): ...`` runs torch on that many threads."""

    @contextlib.contextmanager
    def limited(count: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return limited


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; none is available")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)
