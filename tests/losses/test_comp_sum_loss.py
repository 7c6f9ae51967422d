"""comp_sum_loss: what tests/losses/test_row_losses.py does not check for every loss."""

from __future__ import annotations

import pytest
import torch

from robustcore.losses import CompSumLoss, comp_sum_loss


@pytest.mark.parametrize("soft", [False, True])
def test_tau_in_a_tensor_of_one_number(soft: bool) -> None:
    """Wherever the classes are, it is the tau of every row."""
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    target = logits.flip(1).softmax(1) if soft else torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = comp_sum_loss(logits, target, 1.5, dim=1)
    actual = comp_sum_loss(logits, target, torch.tensor(1.5), dim=1)
    torch.testing.assert_close(actual, expected)


def test_errors() -> None:
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"^comp_sum_loss: logits must be a torch.Tensor, got list"):
        comp_sum_loss([0.0], target, torch.tensor(1.5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^comp_sum_loss: tau must have shape \(2,\), got \(3,\)"):
        comp_sum_loss(logits, target, torch.ones(3))
    with pytest.raises(TypeError, match=r"^CompSumLoss: weight must be float32, .* got int64"):
        CompSumLoss(weight=torch.ones(3, dtype=torch.int64))
