"""aldr_kl_indexed_loss: what test_row_losses.py and test_aldr_kl_loss.py do not check."""

from __future__ import annotations

import pytest
import torch

import robustcore
from robustcore.losses import (
    ALDRKLLoss,
    aldr_kl_indexed_loss,
    aldr_kl_loss,
    aldr_kl_temperature,
)
from robustcore.testing import assert_matches


def batch(rows: int = 700, classes: int = 33, examples: int = 90) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    logits = 2 * torch.randn(rows, classes, generator=generator)
    target = torch.randint(classes, (rows,), generator=generator)
    target[::7] = -100
    index = torch.randint(examples, (rows,), generator=generator)
    return logits, target, index, torch.rand(examples, generator=generator) * 5 + 5


def test_the_two_steps_apart() -> None:
    logits, target, _, _ = batch(64)
    index = torch.randperm(90, generator=torch.Generator().manual_seed(1))[:64]
    lam = batch()[3]
    stepped = aldr_kl_temperature(logits, lam[index], alpha=1.5, lambda0=8.0)
    expected = lam.clone()
    kept = target != -100
    expected[index[kept]] = stepped[kept]
    results = []
    for fused in (True, False):
        leaf = logits.clone().requires_grad_()
        options = {"margin": 0.2, "alpha": 1.5, "lambda0": 8.0}
        if fused:
            loss = aldr_kl_indexed_loss(leaf, target, index, lam, **options)
        else:
            loss = aldr_kl_loss(leaf, target, stepped, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    assert torch.equal(lam, expected)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_every_path_updates_alike() -> None:
    logits, target, index, before = batch()
    states, losses = [], []
    for reduction, grad in (("sum", True), ("sum", False), ("none", True), ("none", False)):
        lam = before.clone()
        loss = aldr_kl_indexed_loss(
            logits.clone().requires_grad_(grad), target, index, lam, reduction=reduction
        )
        states.append(lam)
        losses.append(loss.detach().double().sum())
    with robustcore.use_reference():
        forced = before.clone()
        aldr_kl_indexed_loss(logits, target, index, forced)
    assert all(torch.equal(states[0], state) for state in states[1:])
    assert_matches(states[0], forced, rtol=1e-6)
    for loss in losses[1:]:
        assert_matches(loss, losses[0], rtol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_rows_that_are_not_finite_leave_the_temperature(value: float, reduction: str) -> None:
    logits, target, _, lam = batch(9)
    index, before = torch.arange(9), lam.clone()
    logits[3, 2] = value
    aldr_kl_indexed_loss(logits.requires_grad_(), target, index, lam, reduction=reduction)
    moved = lam != before
    assert not moved[3]
    assert not moved[9:].any()
    assert moved[[1, 2, 4, 5, 6, 8]].all()


def test_ignored_rows_whose_index_is_anything() -> None:
    logits, target, index, lam = batch(9)
    index[0] = -7
    leaf = logits.requires_grad_()
    aldr_kl_indexed_loss(leaf, target, index, lam).backward()
    assert leaf.grad is not None
    assert (leaf.grad[0] == 0).all()
    assert torch.isfinite(lam).all()


def test_a_kept_graph_does_not_see_later_updates() -> None:
    logits, target, index, lam = batch(50)
    leaf = logits.requires_grad_()
    loss = aldr_kl_indexed_loss(leaf, target, index, lam)
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    first = first.clone()
    aldr_kl_indexed_loss(leaf.detach() * 3, target, index, lam)
    (second,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(first, second)


def test_a_second_derivative_needs_the_state_unchanged() -> None:
    logits, target, index, lam = batch(5, 4, 6)
    leaf = logits.double().requires_grad_()
    lam = lam.double()
    for updates_again in (False, True):
        loss = aldr_kl_indexed_loss(leaf, target, index, lam)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=not updates_again)
        if not updates_again:
            (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
            assert torch.isfinite(second).all()
            assert second.abs().sum() > 0
            continue
        loss = aldr_kl_indexed_loss(leaf, target, index, lam)
        lam += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, leaf, create_graph=True)


def test_module_with_float64_logits() -> None:
    criterion, wide = ALDRKLLoss(90), ALDRKLLoss(90)
    logits, target, index, _ = batch(60)
    assert_matches(
        wide(logits.double(), target, index), criterion(logits, target, index).double(), rtol=1e-5
    )
    assert wide.lam.dtype == torch.float32
    assert_matches(wide.lam, criterion.lam, rtol=1e-6)
    assert (wide.lam != 10).any()


def test_errors() -> None:
    logits, target, index, lam = batch(6)
    op = "aldr_kl_indexed_loss"
    with pytest.raises(TypeError, match=rf"^{op}: lam must be float32 for logits of float32, got"):
        aldr_kl_indexed_loss(logits, target, index, lam.double())
    with pytest.raises(ValueError, match=rf"^{op}: lam must have shape \(examples,\), got \(90, 1"):
        aldr_kl_indexed_loss(logits, target, index, lam[:, None])
    with pytest.raises(ValueError, match=rf"^{op}: lam must be contiguous, got strides \(2,\)"):
        aldr_kl_indexed_loss(logits, target, index, lam[::2])
    with pytest.raises(ValueError, match=rf"^{op}: alpha must be above 1 and finite, got 1.0$"):
        aldr_kl_indexed_loss(logits, target, index, lam, alpha=1.0)
    before = lam.clone()
    with pytest.raises(IndexError, match=rf"^{op}: index must be in \[5, 95\), got 99 at row 1$"):
        aldr_kl_indexed_loss(logits, target, torch.full((6,), 99), lam, start=5)
    assert torch.equal(lam, before)
    with pytest.raises(NotImplementedError, match="the state is not updated inside"):
        torch.func.grad(lambda z: aldr_kl_indexed_loss(z, target, index, lam))(logits)
