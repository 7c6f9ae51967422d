"""Random privileged information and the privileged head."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from robustcore import reference
from robustcore.losses import PrivilegedHead, random_privileged_information


def test_vectors_are_fixed_by_seed_example_and_annotator() -> None:
    index = torch.tensor([5, 2**40, 0, 5])
    vectors = random_privileged_information(index, 3, features=6, seed=9)
    assert vectors.shape == (4, 3, 6)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors[0], vectors[3])
    # Alone, in a shard, by id, and with fewer features: the same.
    assert torch.equal(random_privileged_information(index[1], 3, features=6, seed=9), vectors[1])
    ids = torch.tensor([[2, 0]]).expand(4, 2)
    assert torch.equal(
        random_privileged_information(index, ids, features=6, seed=9), vectors[:, [2, 0]]
    )
    assert torch.equal(random_privileged_information(index, features=4, seed=9), vectors[:, 0, :4])
    for other in (
        random_privileged_information(index, 3, features=6, seed=10),
        random_privileged_information(index + 1, 3, features=6, seed=9),
    ):
        assert (other != vectors).any(-1).all()


def test_the_reference_has_the_same_bits() -> None:
    index = torch.arange(20).reshape(4, 5)
    for annotators in (None, 2, torch.randint(2**32, (4, 5, 3))):
        given = (index, annotators)
        assert torch.equal(
            random_privileged_information(*given, features=7, seed=-3),
            reference.losses.random_privileged_information(*given, features=7, seed=-3),
        )


def test_they_are_standard_normal() -> None:
    vectors = random_privileged_information(torch.arange(20000), 2, features=5)
    assert stats.kstest(vectors.flatten().numpy(), "norm").pvalue > 1e-3
    between = (vectors[:, 0] * vectors[:, 1]).mean(0)
    assert (between.abs() < 5 / 20000**0.5).all()


def test_empty_and_compiled() -> None:
    assert random_privileged_information(torch.empty(0).long(), 2).shape == (0, 2, 8)
    index = torch.arange(6)
    assert random_privileged_information(index, 0).shape == (6, 0, 8)
    assert random_privileged_information(index, features=0).shape == (6, 0)
    compiled = torch.compile(lambda i: random_privileged_information(i, 2), fullgraph=True)
    assert torch.equal(compiled(index), random_privileged_information(index, 2))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1],), {}, TypeError, "index must be a torch.Tensor, got list"),
        ((torch.ones(2),), {}, TypeError, "index must be of dtype int64, got float32"),
        ((torch.arange(2), 1.5), {}, TypeError, "annotators must be an int, got float"),
        ((torch.arange(2), -1), {}, ValueError, r"annotators must be in \[0, 4294967296\], got -1"),
        ((torch.arange(0), 2**32 + 1), {}, ValueError, r"annotators must be in .*, got 4294967297"),
        (
            (torch.arange(2), torch.tensor([[0], [-1]])),
            {},
            ValueError,
            r"annotators must be in \[0, 4294967296\), got -1",
        ),
        (
            (torch.arange(2), torch.tensor([[0], [2**32]])),
            {},
            ValueError,
            r"annotators must be in \[0, 4294967296\), got 4294967296",
        ),
        ((torch.arange(2), torch.ones(2, 1)), {}, TypeError, "annotators must be of dtype int64"),
        ((torch.arange(2), torch.ones(3, 1).long()), {}, ValueError, "annotators must have shape"),
        ((torch.arange(2),), {"features": -1}, ValueError, "features must not be negative"),
        ((torch.arange(2),), {"seed": None}, TypeError, "seed must be an int or a tensor"),
    ],
)
def test_errors(arguments: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^random_privileged_information: {message}"):
        random_privileged_information(*arguments, **options)


def test_the_head_is_its_formula_and_broadcasts() -> None:
    head = PrivilegedHead(6, 4, 3, width=5)
    features, privileged = torch.randn(7, 6), torch.randn(7, 2, 4)
    r = head.privileged(privileged).relu()
    wide = features[:, None].expand(7, 2, 6)
    j = head.joint(torch.cat([wide, r], -1)).relu() + r
    expected = head.output(torch.cat([wide, j], -1))
    torch.testing.assert_close(head(features[:, None], privileged), expected)
    shared = privileged[:1].expand(7, 2, 4)
    torch.testing.assert_close(
        head(features[:, None], privileged[:1]), head(features[:, None], shared)
    )
