"""aldr_kl_loss, aldr_kl_temperature and the module with its state."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

import robustcore
from robustcore.losses import ALDRKLLoss, aldr_kl_loss, aldr_kl_temperature


def scores_of(logits: torch.Tensor) -> torch.Tensor:
    return logits.shape[1] * logits / logits.abs().sum(1, keepdim=True)


def by_definition(
    logits: torch.Tensor, target: torch.Tensor, lam: torch.Tensor, margin: float
) -> torch.Tensor:
    classes = logits.shape[1]
    scores = scores_of(logits)
    margins = margin * (1 - F.one_hot(target, classes).to(logits.dtype))
    violations = margins + scores - scores.gather(1, target[:, None])
    loss = lam * ((violations / lam[:, None]).logsumexp(1) - math.log(classes))
    return loss - 2.0 * math.log(classes) / 20 * (lam - 10).square()


@given(st.integers(2, 40), st.floats(0, 3), st.integers(0, 2**31))
def test_definition(classes: int, margin: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, classes, generator=generator, dtype=torch.float64) * 3
    lam = torch.rand(5, generator=generator, dtype=torch.float64) * 5 + 5
    target = torch.randint(classes, (5,), generator=generator)
    results = []
    for function in (
        lambda z: aldr_kl_loss(z, target, lam, margin=margin, reduction="none"),
        lambda z: by_definition(z, target, lam, margin),
    ):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)


@given(st.integers(2, 60), st.floats(1.1, 5), st.floats(0.5, 20), st.integers(0, 2**31))
def test_temperature_by_definition(classes: int, alpha: float, lambda0: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, classes, generator=generator, dtype=torch.float64) * 3
    lam = torch.rand(6, generator=generator, dtype=torch.float64) * 5 + 0.1
    actual = aldr_kl_temperature(logits, lam, alpha=alpha, lambda0=lambda0)
    q = (scores_of(logits) / lam[:, None]).softmax(1) + 1e-5
    q = q / q.sum(1, keepdim=True)
    divergence = (q * (q * classes).log()).sum(1)
    expected = lambda0 * (1 - divergence / (alpha * math.log(classes)))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert ((actual > lambda0 * (1 - 1 / alpha) - 1e-9) & (actual < lambda0 + 1e-9)).all()


def test_temperature_has_no_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    assert not aldr_kl_temperature(logits, torch.full((3,), 10.0)).requires_grad


def test_temperature_under_compile_and_by_reference() -> None:
    logits, lam = torch.randn(3, 2, 5), torch.rand(3, 2) * 5 + 5
    expected = aldr_kl_temperature(logits, lam)
    compiled = torch.compile(aldr_kl_temperature, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, lam), expected)
    with robustcore.use_reference():
        torch.testing.assert_close(aldr_kl_temperature(logits, lam), expected)


def test_rows_of_zeros_have_no_gradient() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    loss = aldr_kl_loss(logits, torch.tensor([0, 1]), 10.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert torch.equal(gradient, torch.zeros(2, 5))


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e30])
def test_gradients_scale_inversely(scale: float) -> None:
    base, target = torch.randn(8, 30), torch.arange(8)
    gradients = []
    for logits, unit in ((base.double(), 1.0), (base * scale, scale)):
        leaf = logits.clone().requires_grad_()
        aldr_kl_loss(leaf, target, 2.0, reduction="sum").backward()
        gradients.append(leaf.grad.double() * unit)  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=2e-6)


def test_bfloat16_gradient_of_a_dominating_label() -> None:
    logits = torch.full((1, 10), 0.1)
    logits[0, 3] = 9.0
    rounded = logits.bfloat16()
    gradients = []
    for values in (rounded, rounded.double()):
        leaf = values.clone().requires_grad_()
        aldr_kl_loss(leaf, torch.tensor([3]), 1.0, margin=0.0).backward()
        gradients.append(float(leaf.grad[0, 3]))  # type: ignore[index]
    assert gradients[0] == pytest.approx(gradients[1], rel=5e-3)


# --- the module


def batch(rows: int = 6, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def test_module_updates_first_and_uses_the_new_temperatures() -> None:
    criterion = ALDRKLLoss(20)
    logits, target = batch()
    index = torch.tensor([3, 9, 0, 19, 4, 5])
    loss = criterion(logits, target, index)
    new = aldr_kl_temperature(logits, torch.full((6,), 10.0))
    assert torch.equal(criterion.lam[index], new)
    assert int((criterion.lam != 10).sum()) == 6
    assert torch.equal(loss, aldr_kl_loss(logits, target, new))
    criterion.eval()
    before = criterion.lam.clone()
    again = criterion(logits, target, index)
    assert torch.equal(before, criterion.lam)
    assert torch.equal(again, loss)


def test_the_last_row_of_an_example_wins_and_ignored_rows_write_nothing() -> None:
    criterion = ALDRKLLoss(4, ignore_index=-1, reduction="none")
    logits, target = batch()
    index = torch.tensor([2, 1, 2, 0, 2, 0])
    target[4] = target[3] = target[5] = -1
    logits[4] = torch.nan
    loss = criterion(logits, target, index)
    new = aldr_kl_temperature(logits, torch.full((6,), 10.0))
    expected = torch.tensor([10.0, new[1], new[2], 10.0])
    assert torch.equal(criterion.lam, expected)
    # Both rows of example 2 take the temperature of the later one.
    rows = aldr_kl_loss(logits, target, expected[index], ignore_index=-1, reduction="none")
    assert torch.equal(loss, rows)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_updates_once(use_reentrant: bool) -> None:
    logits, target = batch()
    index = torch.tensor([0, 1, 2, 3, 1, 0])
    plain, recomputed = ALDRKLLoss(4), ALDRKLLoss(4)
    gradients = []
    for criterion in (plain, recomputed):
        leaf = logits.clone().requires_grad_()
        if criterion is plain:
            loss = criterion(leaf * 2, target, index)
        else:
            loss = checkpoint(
                lambda z, c=criterion: c(z * 2, target, index), leaf, use_reentrant=use_reentrant
            )
        loss.backward()
        gradients.append(leaf.grad)
    assert torch.equal(plain.lam, recomputed.lam)
    assert torch.equal(gradients[0], gradients[1])


def test_state_dict_copies_and_casts() -> None:
    criterion = ALDRKLLoss(4)
    logits, target = batch(4)
    criterion(logits, target, torch.arange(4))
    other = ALDRKLLoss(4)
    other.load_state_dict(criterion.state_dict())
    assert torch.equal(other.lam, criterion.lam)
    assert torch.equal(copy.deepcopy(criterion).bfloat16().lam, criterion.lam)
    assert criterion.to("meta").lam.device.type == "meta"


def test_shards_of_examples() -> None:
    whole, shard = ALDRKLLoss(10), ALDRKLLoss(10, start=6)
    logits, target = batch(3)
    index = torch.tensor([9, 6, 7])
    assert torch.equal(whole(logits, target, index), shard(logits, target, index))
    assert torch.equal(whole.lam[6:], shard.lam)
    with pytest.raises(
        IndexError, match=r"^aldr_kl_indexed_loss: index must be in \[6, 10\), got 5 at"
    ):
        shard(logits, target, torch.tensor([6, 5, 7]))


def test_module_under_compile() -> None:
    plain, traced = ALDRKLLoss(8), ALDRKLLoss(8)
    logits, target = batch()
    index = torch.tensor([1, 5, 1, 7, 0, 2])
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, target, index), plain(logits, target, index))
    assert torch.equal(plain.lam, traced.lam)


def test_several_dimensions_and_class_probabilities() -> None:
    criterion, flat = ALDRKLLoss(8, dim=1), ALDRKLLoss(8)
    logits = torch.randn(2, 5, 3)
    target = torch.rand(2, 5, 3).softmax(1)
    index = torch.tensor([[0, 1, 2], [3, 4, 4]])
    loss = criterion(logits, target, index)
    rows, labels = (t.movedim(1, -1).reshape(6, 5) for t in (logits, target))
    torch.testing.assert_close(loss, flat(rows, labels, index.flatten()))
    torch.testing.assert_close(criterion.lam, flat.lam)


def test_rows_that_are_not_finite_leave_their_temperatures() -> None:
    criterion = ALDRKLLoss(5)
    logits, target = batch()
    logits[1, 2], logits[2, 0], logits[5] = math.nan, math.inf, -math.inf
    # Example 3: its last row decides, as in ELR, and it is not finite.
    criterion(logits, target, torch.tensor([0, 1, 2, 3, 4, 3]))
    new = aldr_kl_temperature(logits, torch.full((6,), 10.0))
    kept = torch.tensor(10.0)
    expected = torch.stack([new[0], kept, kept, kept, new[4]])
    assert torch.equal(criterion.lam, expected)


def test_a_call_that_raises_changes_nothing() -> None:
    criterion = ALDRKLLoss(6)
    logits, target = batch()
    for change, error in (
        ({"target": torch.full((6,), 9)}, IndexError),
        ({"target": target.int()}, TypeError),
        ({"target": target[:5]}, ValueError),
        ({"sample_weight": torch.ones(3)}, ValueError),
        ({"target": [0] * 6}, TypeError),
    ):
        with pytest.raises(error):
            criterion(**{"logits": logits, "target": target, "index": torch.arange(6), **change})
    assert (criterion.lam == 10).all()


def test_the_index_of_an_ignored_row_may_be_anything() -> None:
    criterion = ALDRKLLoss(6)
    logits, target = batch()
    index = torch.arange(6)
    target[2], index[2] = -100, 99
    target[3], index[3] = -100, -1
    loss = criterion(logits, target, index)
    kept = torch.tensor([0, 1, 4, 5])
    other = ALDRKLLoss(6)
    torch.testing.assert_close(loss, other(logits[kept], target[kept], kept))
    assert torch.equal(criterion.lam, other.lam)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 1.0}, ValueError, "alpha must be above 1 and finite, got 1.0"),
        ({"lambda0": -1.0}, ValueError, "lambda0 must be positive and finite, got -1.0"),
        ({"margin": math.nan}, ValueError, "margin must be finite and not negative, got nan"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^aldr_kl_loss: {message}$"):
        aldr_kl_loss(*batch(), **options)
    with pytest.raises(error, match=rf"^ALDRKLLoss: {message}$"):
        ALDRKLLoss(3, **options)


def test_errors_of_the_module() -> None:
    with pytest.raises(ValueError, match=r"^ALDRKLLoss: num_examples must be positive, got 0$"):
        ALDRKLLoss(0)
    with pytest.raises(TypeError, match=r"^ALDRKLLoss: num_examples must be an int, got float$"):
        ALDRKLLoss(3.0)  # type: ignore[arg-type]
    criterion = ALDRKLLoss(4)
    with pytest.raises(
        TypeError, match=r"^aldr_kl_indexed_loss: index must be int64, got float32$"
    ):
        criterion(*batch(), torch.zeros(6))
    with pytest.raises(ValueError, match=r"^aldr_kl_indexed_loss: index must have shape \(6,\)"):
        criterion(*batch(), torch.arange(5) % 4)
    with pytest.raises(
        IndexError, match=r"^aldr_kl_indexed_loss: index must be in \[0, 4\), got 4 at"
    ):
        criterion(*batch(), torch.full((6,), 4))
    with pytest.raises(ValueError, match=r"^aldr_kl_temperature: lam must have shape"):
        aldr_kl_temperature(torch.zeros(3, 4), torch.ones(2))
