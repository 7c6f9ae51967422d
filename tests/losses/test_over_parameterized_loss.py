"""over_parameterized_loss: what tests/losses/test_row_losses.py does not check for every loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustcore.losses import OverParameterizedLoss, over_parameterized_loss
from robustcore.reference import losses as reference
from robustcore.testing import assert_matches


def published(logits: Tensor, label: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The formulas of the paper and its code, with one-hot labels; the mean over the batch."""
    eps = 1e-4
    gain = torch.clamp(u.square() * label, 0, 1)
    loss = torch.clamp(v.square() * (1 - label), 0, 1)
    prediction = torch.clamp(F.softmax(logits, dim=1) + gain - loss.detach(), min=eps)
    prediction = F.normalize(prediction, p=1, eps=eps)
    prediction = torch.clamp(prediction, min=eps, max=1.0)
    chosen = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    squares = F.mse_loss(chosen + gain - loss, label, reduction="sum") / len(label)
    return -(label * prediction.log()).sum(-1).mean() + squares


def batch(
    rows: int = 9, classes: int = 12, seed: int = 0, scale: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    logits = 3 * torch.randn(rows, classes, **options)
    target = torch.randint(classes, (rows,), generator=generator)
    u, v = torch.randn(rows, 1, **options), torch.randn(rows, classes, **options)
    return logits, target, scale * u, scale * v


@pytest.mark.parametrize("scale", [1e-8, 0.1, 0.5, 2.0])
def test_published_formulas(scale: float) -> None:
    for seed in range(4):
        logits, target, u, v = batch(seed=seed, scale=scale)
        label = F.one_hot(target, 12).double()
        ours = [t.clone().requires_grad_() for t in (logits, u, v)]
        theirs = [t.clone().requires_grad_() for t in (logits, u, v)]
        actual = over_parameterized_loss(ours[0], target, ours[1], ours[2])
        expected = published(theirs[0], label, theirs[1], theirs[2])
        assert_matches(actual, expected, rtol=1e-12)
        for a, b in zip(torch.autograd.grad(actual, ours), torch.autograd.grad(expected, theirs)):
            assert_matches(a, b, rtol=1e-9, atol=1e-13)


def test_gradients_at_the_bounds_pass() -> None:
    """torch.clamp passes the gradient of a value on a bound: u^2 = 1 and v^2 = 1."""
    logits, target, u, v = batch(rows=3, classes=4)
    u = torch.tensor([[1.0], [-1.0], [1.0 + 1e-9]], dtype=torch.float64)
    v = torch.ones(3, 4, dtype=torch.float64)
    gradients = []
    for function in (over_parameterized_loss, reference.over_parameterized_loss):
        leaves = [t.clone().requires_grad_() for t in (logits, u, v)]
        loss = function(leaves[0], target, leaves[1], leaves[2], reduction="sum")
        gradients.append(torch.autograd.grad(loss, leaves))
    for a, b in zip(*gradients):
        assert_matches(a, b, rtol=1e-10, atol=1e-13)
    assert gradients[0][1][0] != 0
    assert gradients[0][1][2] == 0


def test_first_of_equal_maxima() -> None:
    logits = torch.zeros(1, 40)
    logits[0, [17, 20, 39]] = 1.0
    v = torch.full((1, 40), 0.1, requires_grad=True)
    over_parameterized_loss(logits, torch.tensor([3]), torch.zeros(1), v).backward()
    assert v.grad is not None
    chosen = v.grad < -0.3
    assert chosen.nonzero().tolist() == [[0, 17]]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_numerical_derivatives_of_logits_and_u(label_smoothing: float) -> None:
    """With v fixed; for v itself the first term is a constant, which a difference does not see."""
    logits, target, u, v = batch(rows=4, classes=5)

    def loss(logits: Tensor, u: Tensor) -> Tensor:
        return over_parameterized_loss(
            logits, target, u, v, reduction="none", label_smoothing=label_smoothing
        )

    leaves = (logits.requires_grad_(), u.requires_grad_())
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_who_learns_from_what() -> None:
    """The logits do not learn from the second term, v not from the first."""
    logits, target, u, v = batch(scale=0.1)
    leaves = [t.requires_grad_() for t in (logits, u, v)]
    label = F.one_hot(target, 12).double()
    loss = over_parameterized_loss(leaves[0], target, leaves[1], leaves[2], reduction="sum")
    _, _, for_v = torch.autograd.grad(loss, leaves)
    chosen = F.one_hot(logits.argmax(1), 12)
    expected = -4 * v * (chosen - v.square()) * (1 - label)
    assert_matches(for_v, expected.detach(), rtol=1e-10, atol=1e-14)


class TestModule:
    def test_initial_values(self) -> None:
        torch.manual_seed(0)
        criterion = OverParameterizedLoss(1000, 10)
        for parameter in (criterion.u, criterion.v):
            assert abs(float(parameter.detach().double().std()) / 1e-8 - 1) < 0.1
        assert criterion.u.shape == (1000, 1)
        assert criterion.v.shape == (1000, 10)

    def test_sparse_gradients_add_up(self) -> None:
        torch.manual_seed(1)
        criterion = OverParameterizedLoss(50, 12)
        with torch.no_grad():
            criterion.u.normal_(std=0.3)
            criterion.v.normal_(std=0.3)
        logits, target, _, _ = batch()
        logits = logits.float()
        index = torch.tensor([4, 9, 4, 30, 9, 4, 0, 1, 2])
        target[8] = -100
        criterion(logits, target, index).backward()
        dense = [p.detach().clone().requires_grad_() for p in (criterion.u, criterion.v)]
        over_parameterized_loss(logits, target, dense[0][index], dense[1][index]).backward()
        for parameter, plain in zip((criterion.u, criterion.v), dense):
            assert parameter.grad is not None
            assert parameter.grad.is_sparse
            assert parameter.grad._nnz() <= 9
            assert_matches(parameter.grad.to_dense(), plain.grad, rtol=1e-6, atol=1e-9)
        groups = criterion.parameter_groups(lr_u=1.0, lr_v=10.0)
        assert [group["lr"] for group in groups] == [1.0, 10.0]
        before = criterion.v.detach().clone()
        torch.optim.SGD(groups, lr=0.1).step()
        assert_matches(criterion.v.detach(), before - 10 * dense[1].grad, rtol=1e-5, atol=1e-7)

    def test_learns_the_noise_of_a_wrong_label(self) -> None:
        """A confident model that disagrees with the label: v takes up the difference."""
        torch.manual_seed(2)
        criterion = OverParameterizedLoss(1, 3)
        with torch.no_grad():
            criterion.v.fill_(1e-3)
        logits = torch.tensor([[8.0, 0.0, 0.0]])
        optimizer = torch.optim.SGD(criterion.parameter_groups(lr_u=1.0, lr_v=1.0))
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = criterion(logits, torch.tensor([1]), torch.tensor([0]))
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        assert losses[-1] < losses[0]
        assert criterion.v[0, 0].square() > 100 * criterion.v[0, 2].square()

    def test_shard_and_range(self) -> None:
        criterion = OverParameterizedLoss(50, 12, start=20, stop=30)
        assert criterion.u.shape == (10, 1)
        logits, target, _, _ = batch()
        criterion(logits, target, torch.arange(21, 30)).backward()
        for wrong in (19, 30):
            index = torch.arange(21, 30)
            index[3] = wrong
            with pytest.raises(IndexError, match=rf"index must be in \[20, 30\), got {wrong}"):
                criterion(logits, target, index)
        target[3] = -100
        criterion(logits, target, index)
        with pytest.raises(ValueError, match="start and stop must be ascending"):
            OverParameterizedLoss(50, 12, start=3, stop=60)
        with pytest.raises(ValueError, match="weight is not offered"):
            OverParameterizedLoss(50, 12, weight=torch.ones(12))

    def test_errors_of_the_module(self) -> None:
        criterion = OverParameterizedLoss(50, 12)
        logits, target, _, _ = batch()
        for change, error, message in (
            # An index of one element would broadcast: all rows the same example.
            ({"index": torch.tensor([3])}, ValueError, r"index must have shape \(9,\), got \(1,\)"),
            ({"index": torch.tensor(3)}, ValueError, r"index must have shape \(9,\), got \(\)"),
            ({"index": torch.arange(9).int()}, TypeError, "index must be int64, got int32"),
            ({"index": torch.arange(9, device="meta")}, ValueError, "index must be on cpu"),
            ({"target": [0] * 9}, TypeError, "target must be a torch.Tensor, got list"),
            ({"logits": None}, TypeError, "logits must be a torch.Tensor, got NoneType"),
        ):
            given = {"logits": logits, "target": target, "index": torch.arange(9), **change}
            with pytest.raises(error, match=r"^OverParameterizedLoss: " + message):
                criterion(**given)

    def test_compile_in_one_graph(self) -> None:
        torch.manual_seed(3)
        criterion = OverParameterizedLoss(50, 12)
        logits, target, _, _ = batch()
        leaf, index = logits.float().requires_grad_(), torch.arange(9)
        compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
        actual = compiled(leaf, target, index)
        expected = criterion(leaf, target, index)
        assert_matches(actual, expected, rtol=1e-6)
        (gradient,) = torch.autograd.grad(actual, leaf)
        assert_matches(gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-5, atol=1e-7)

    def test_bfloat16_logits_with_float32_parameters(self) -> None:
        criterion = OverParameterizedLoss(50, 12)
        logits, target, _, _ = batch()
        leaf = logits.bfloat16().requires_grad_()
        criterion(leaf, target, torch.arange(9)).backward()
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.bfloat16
        assert criterion.v.grad is not None
        assert criterion.v.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.zeros(8)}, ValueError, r"u must have shape \(9,\), got \(8,\)"),
        ({"v": torch.zeros(9, 11)}, ValueError, r"v must have shape \(9, 12\), got \(9, 11\)"),
        ({"v": torch.zeros(9, 12).long()}, TypeError, "v must be float32"),
        ({"u": None}, TypeError, "u must be a torch.Tensor, got NoneType"),
        ({"target": torch.full((9,), 12)}, IndexError, r"target must be in \[0, 12\)"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    logits, target, u, v = (t.float() if t.is_floating_point() else t for t in batch())
    given = {"logits": logits, "target": target, "u": u[:, 0], "v": v}
    with pytest.raises(error, match="over_parameterized_loss: .*" + message):
        over_parameterized_loss(**{**given, **change})
