"""The counter-based generator: known answers, distribution, and the same bits as its reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from robustcore._random import counter_normal_operator, seed_tensor
from robustcore.reference import random as reference

# (rounds, counter, key, result), from the known-answer test of the generator's authors.
KNOWN = [
    (7, "00000000 " * 4, "00000000 " * 2, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff " * 4, "ffffffff " * 2, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (
        7,
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "4dfccaba 190a87f0 c47362ba b6b5242a",
    ),
    (10, "00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        10,
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


def normals(rows: int, count: int, seed: int = 3) -> torch.Tensor:
    index = torch.arange(rows)
    return counter_normal_operator(index, torch.zeros_like(index), torch.tensor([seed]), count)


@pytest.mark.parametrize(("rounds", "counter", "key", "result"), KNOWN)
def test_known_answers(rounds: int, counter: str, key: str, result: str) -> None:
    assert reference.philox(words(key), words(counter), rounds) == words(result)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 63, 64, 65, 130])
def test_the_kernel_has_the_bits_of_the_reference(count: int) -> None:
    first = torch.tensor([0, 1, -1, 2**32, 2**63 - 1, 12345678901]).repeat(20)
    second = torch.arange(120) * 35791394
    for seed in (0, 1, -1, 2**62, -(2**63)):
        given = (first, second, torch.tensor([seed]), count)
        assert torch.equal(counter_normal_operator(*given), reference.counter_normal(*given))


def test_standard_normal_distribution() -> None:
    z = normals(1000, 1000).flatten().double()
    n = z.numel()
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    # Far tails, where a transform with too few bits shows.
    for bound in (3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * n
        assert abs((z.abs() > bound).sum() - expected) < 5 * expected**0.5


def test_numbers_that_share_a_counter_or_a_neighbour_are_independent() -> None:
    z = normals(200000, 8).double()
    for values in (z, z.square() - 1):
        correlation = np.corrcoef(values.numpy().T)
        np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() < 5 / 200000**0.5
    # The next row, and the same counters under the next seed.
    other = normals(200000, 8, seed=4).double()
    for left, right in ((z[1:], z[:-1]), (z, other)):
        assert abs((left * right).mean()) < 5 / left.numel() ** 0.5
    # The pair of a Box-Muller transform lies evenly around the circle.
    angle = torch.atan2(z[:, 1], z[:, 0]) / (2 * torch.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 1e-3


def test_rows_do_not_depend_on_their_company() -> None:
    everything = normals(100, 9)
    index = torch.tensor([17, 3, 99])
    some = counter_normal_operator(index, torch.zeros_like(index), torch.tensor([3]), 9)
    assert torch.equal(some, everything[index])
    assert torch.equal(normals(100, 5), everything[:, :5])


def test_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = normals(5000, 33)
        torch.set_num_threads(2)
        assert torch.equal(normals(5000, 33), alone)
    finally:
        torch.set_num_threads(threads)


def test_seeds() -> None:
    torch.manual_seed(5)
    first, second = (seed_tensor("op", None, torch.device("cpu")) for _ in range(2))
    torch.manual_seed(5)
    assert first == seed_tensor("op", None, torch.device("cpu"))
    assert first != second
    cpu = torch.device("cpu")
    assert seed_tensor("op", -7, cpu).tolist() == [-7]
    for bad, error, message in (
        (1.5, TypeError, "op: seed must be an int, got float"),
        (2**63, ValueError, "op: seed must fit into 64 bits"),
        (torch.tensor(1.0), TypeError, "op: seed must be of dtype int64, got float32"),
        (torch.tensor([1, 2]), ValueError, r"op: seed must have one element, got shape \(2,\)"),
        (torch.tensor(1, device="meta"), ValueError, "op: seed must be on the CPU or on cpu"),
    ):
        with pytest.raises(error, match=message):
            seed_tensor("op", bad, cpu)


def test_opcheck() -> None:
    index = torch.arange(10)
    for first in (index, index.flip(0).repeat(2)[::2]):
        torch.library.opcheck(
            torch.ops.robustcore.counter_normal.default, (first, index, torch.tensor([2]), 6)
        )
