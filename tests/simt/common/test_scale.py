"""The CUDA kernel of scale_, on the host."""

import pytest
import torch
from simt.harness import Executor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [0, 1, 31, 33, 4095, 4096, 4097, 20001])
@pytest.mark.parametrize("factor", [1.0, -0.75, float("nan")])
def test_scale(simt: Executor, dtype: torch.dtype, count: int, factor: float) -> None:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    data = torch.randn(count).to(dtype)
    expected = (data.to(compute) * factor).to(dtype)
    simt.run("scale", data=data, factor=torch.tensor([factor], dtype=compute))
    torch.testing.assert_close(data, expected, rtol=0, atol=0, equal_nan=True)
