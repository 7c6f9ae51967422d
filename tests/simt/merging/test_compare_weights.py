"""The CUDA kernel that compares weights, in the host executor, bit for bit."""

from __future__ import annotations

import pytest
import torch
from simt.harness import Executor

from robustcore.reference import merging as reference
from robustcore.testing.merge_problems import BLOCK, random_problem, same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("dtypes", [(F32,), (F64,), (BF16, F16), (F64, F32)], ids=str)
@pytest.mark.parametrize("size", [1, 31, 257, BLOCK, 2 * BLOCK + 300])
def test_sums(simt: Executor, size: int, dtypes: tuple[torch.dtype, ...], extreme: bool) -> None:
    problem = random_problem([size], 2, seed=size + 1, dtypes=dtypes, extreme=extreme)
    first, second = problem.finetuned
    for other in (second, None):
        expected = reference.compare_weights([first], [] if other is None else [other])
        rows = torch.empty_like(expected)
        arguments = {} if other is None else {"second": other}
        simt.run(
            "compare_weights", has_second=other is not None, first=first, rows=rows, **arguments
        )
        assert same_bits(rows, expected)
