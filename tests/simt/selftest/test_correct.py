"""Correct kernels pass under every schedule, from Python as from C++."""

import pytest
import torch

from simt.harness import Executor


@pytest.mark.parametrize("columns", [0, 1, 31, 32, 33, 127, 128, 129, 1023, 1024, 1025])
def test_block_reduce(simt: Executor, columns: int) -> None:
    values = torch.randn(5, columns)
    sums = torch.empty(5)
    simt.run("row_sum", values=values, sums=sums, columns=columns, seeds=3)
    torch.testing.assert_close(sums, values.double().sum(1).float(), rtol=1e-5, atol=1e-5)
