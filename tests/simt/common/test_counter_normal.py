"""The CUDA kernel of counter_normal, on the host: the same bits as the CPU and the reference."""

import pytest
import torch
from simt.harness import Executor

from robustcore._random import counter_normal_operator
from robustcore.reference import random as reference


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 257])
@pytest.mark.parametrize("on_device", [False, True])
def test_counter_normal(simt: Executor, count: int, on_device: bool) -> None:
    first = torch.tensor([0, 1, 2**40 + 3, -1, 2**63 - 1])
    second = torch.tensor([0, 1, 2**32 - 1, 7, 0])
    seed = torch.tensor([-987654321987654321])
    values = torch.empty(5, count)
    given = {"device_seed": seed} if on_device else {"seed": seed.item()}
    simt.run(
        "counter_normal",
        first=first,
        second=second,
        count=count,
        seed_on_device=on_device,
        values=values,
        **given,
    )
    assert torch.equal(values, counter_normal_operator(first, second, seed, count))
    assert torch.equal(values, reference.counter_normal(first, second, seed, count))
