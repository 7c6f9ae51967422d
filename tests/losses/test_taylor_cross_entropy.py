"""What taylor_cross_entropy alone promises; tests/losses/test_row_losses.py has the rest."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robustcore.losses import TaylorCrossEntropyLoss, comp_sum_loss, taylor_cross_entropy

LOGITS = 2 * torch.randn(16, 10, generator=torch.Generator().manual_seed(0)).double()
TARGET = torch.arange(16) % 10


def test_one_term_is_the_mean_absolute_error_and_many_are_cross_entropy() -> None:
    mean_absolute_error = comp_sum_loss(LOGITS, TARGET, 2.0)
    torch.testing.assert_close(taylor_cross_entropy(LOGITS, TARGET, 1), mean_absolute_error)
    many = taylor_cross_entropy(LOGITS / 4, TARGET, 2000)
    torch.testing.assert_close(many, F.cross_entropy(LOGITS / 4, TARGET))


@pytest.mark.parametrize("terms", [1, 2, 6])
def test_the_loss_is_bounded(terms: int) -> None:
    logits = torch.tensor([[0.0, 1e4], [0.0, -1e4]], requires_grad=True)
    loss = taylor_cross_entropy(logits, torch.tensor([0, 0]), terms, reduction="none")
    expected = sum(1 / k for k in range(1, terms + 1))
    torch.testing.assert_close(loss, torch.tensor([expected, 0.0]))
    loss.sum().backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        (0, ValueError, r"terms must be in \[1, 10000\], got 0"),
        (2.0, TypeError, "terms must be an int, got float"),
        (True, TypeError, "terms must be an int, got bool"),
    ],
)
def test_bad_terms(terms, error, message) -> None:
    with pytest.raises(error, match="taylor_cross_entropy: " + message):
        taylor_cross_entropy(LOGITS, TARGET, terms)
    with pytest.raises(error, match="TaylorCrossEntropyLoss: " + message):
        TaylorCrossEntropyLoss(terms)


def test_the_module_keeps_its_options() -> None:
    criterion = TaylorCrossEntropyLoss(3, torch.rand(10), label_smoothing=0.1, reduction="sum")
    expected = taylor_cross_entropy(
        LOGITS, TARGET, 3, weight=criterion.weight, label_smoothing=0.1, reduction="sum"
    )
    assert torch.equal(criterion(LOGITS, TARGET), expected)
    assert "terms=3" in repr(criterion)
