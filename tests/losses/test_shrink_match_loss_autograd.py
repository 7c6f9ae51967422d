"""Derivatives of shrink_match_loss, the systems that trace it, its module, and bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from robustcore import reference
from robustcore.losses import ShrinkMatchLoss, shrink_match_loss, shrink_match_scores

OPS = torch.ops.robustcore


def problem(rows: int = 4, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Three uncertain rows and a certain one, in float64."""
    spread = torch.linspace(4, -8, classes, dtype=torch.float64)
    weak = torch.stack([spread[torch.randperm(classes)] for _ in range(rows)])
    weak[1] = torch.arange(classes) * 9.0
    return weak, torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_numerical_derivatives(check, reduction: str) -> None:
    weak, strong = problem()
    assert shrink_match_scores(weak, strong).removed.tolist()[1] == 0
    assert (shrink_match_loss(weak, strong, reduction="none") > 0).sum() == 3
    assert check(lambda z: shrink_match_loss(weak, z, reduction=reduction), strong)


def test_the_weak_logits_are_a_constant() -> None:
    weak, strong = problem()
    weak.requires_grad_()
    loss = shrink_match_loss(weak, strong)
    assert torch.autograd.grad(loss, weak, allow_unused=True) == (None,)
    assert not shrink_match_loss(weak, strong.detach()).requires_grad
    raw = OPS.shrink_match_loss(weak, strong, 0.95, 1)[0]
    assert torch.autograd.grad(raw, (weak, strong), allow_unused=True)[0] is None


@pytest.mark.parametrize("factor", [1.0, 0.0, -2.0, 65536.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_scaling_and_two_backward_passes(factor: float, reduction: str) -> None:
    weak, strong = problem()
    loss = shrink_match_loss(weak, strong, reduction=reduction)
    exact = reference.losses.shrink_match_loss(weak, strong, reduction=reduction)
    (expected,) = torch.autograd.grad(exact * factor, strong)
    cotangent = torch.tensor(factor).double()
    (once,) = torch.autograd.grad(loss, strong, cotangent, retain_graph=True)
    kept = once.clone()
    (twice,) = torch.autograd.grad(loss, strong, cotangent)
    torch.testing.assert_close(once, expected)
    assert torch.equal(once, twice)
    assert torch.equal(once, kept), "a later backward pass changed gradients handed out before"


def test_gradients_of_both_ways_agree() -> None:
    weak, strong = (x.float().detach() for x in problem(50, 300))
    strong.requires_grad_()
    (inside,) = torch.autograd.grad(shrink_match_loss(weak, strong, reduction="sum"), strong)
    rows = shrink_match_loss(weak, strong, reduction="none")
    (apart,) = torch.autograd.grad(rows.sum(), strong)
    torch.testing.assert_close(inside, apart, rtol=1e-6, atol=1e-8)


class TestTransforms:
    def test_func_grad_and_vmap(self) -> None:
        weak, strong = (torch.stack([x.detach()] * 3) for x in problem())
        strong = strong + torch.arange(3.0).reshape(3, 1, 1).double().sin()

        def gradients(function):
            return torch.func.vmap(torch.func.grad(function, argnums=1))(weak, strong)

        torch.testing.assert_close(
            gradients(shrink_match_loss), gradients(reference.losses.shrink_match_loss)
        )

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_batched_cotangents(self, reduction: str) -> None:
        weak, strong = problem()
        results = []
        for function in (shrink_match_loss, reference.losses.shrink_match_loss):
            loss = function(weak, strong, reduction=reduction)
            cotangents = torch.ones(3, *loss.shape, dtype=loss.dtype)
            results += torch.autograd.grad(loss, strong, cotangents, is_grads_batched=True)
        torch.testing.assert_close(*results)

    def test_forward_mode_is_refused(self) -> None:
        weak, strong = (x.detach() for x in problem())
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(strong, torch.ones_like(strong))
            with pytest.raises(NotImplementedError, match="forward-mode"):
                shrink_match_loss(weak, dual)

    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_compile_in_one_graph(self, reduction: str) -> None:
        weak, strong = (x.detach().float() for x in problem())
        strong.requires_grad_()

        def loss(weak, strong):
            return 2 * shrink_match_loss(weak, strong, reduction=reduction).sum()

        a, b = loss(weak, strong), torch.compile(loss, fullgraph=True)(weak, strong)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(torch.autograd.grad(a, strong), torch.autograd.grad(b, strong))

    def test_compile_the_module_with_its_state(self) -> None:
        eager = ShrinkMatchLoss(0.7)
        compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
        for seed in range(3):
            torch.manual_seed(seed)
            weak, strong = 3 * torch.randn(16, 5), torch.randn(16, 5)
            torch.testing.assert_close(compiled(weak, strong), eager(weak, strong))
        torch.testing.assert_close(compiled.certain_ratio, eager.certain_ratio)
        assert compiled.num_batches == 3

    def test_autocast_takes_16_bit_logits_and_returns_float32(self) -> None:
        layer = torch.nn.Linear(6, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            strong = layer(torch.randn(4, 6))
            loss = shrink_match_loss(torch.randn(4, 5), strong)
        assert strong.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        loss.backward()
        assert layer.weight.grad is not None

    def test_meta_tensors(self) -> None:
        logits = torch.empty(4, 5, device="meta", requires_grad=True)
        loss = shrink_match_loss(logits.detach(), logits)
        assert (loss.shape, loss.device.type) == ((), "meta")
        loss.backward()


class TestRawOperators:
    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("layout", ["contiguous", "strided"])
    @pytest.mark.parametrize("reduction", [0, 1])
    def test_opcheck(self, reduction: int, layout: str, grad: bool) -> None:
        weak, strong = (x.detach().float() for x in problem())
        if layout == "strided":
            weak, strong = weak.t().contiguous().t(), torch.cat([strong, strong], 1)[:, ::2]
        # opcheck takes an infinite difference of equal infinities for one: certain rows' cuts.
        keep = torch.tensor([0, 2, 3])
        forward = (weak[keep], strong.detach()[keep].requires_grad_(grad), 0.95, reduction)
        torch.library.opcheck(OPS.shrink_match_loss.default, forward)
        with torch.no_grad():
            _, values, places = OPS.shrink_match_loss(*forward)
        cotangent = torch.rand(3 if reduction == 0 else (), requires_grad=grad)
        backward = (cotangent, *forward[:2], values, places, reduction)
        torch.library.opcheck(OPS.shrink_match_loss_backward.default, backward)
        if reduction and not grad:
            torch.library.opcheck(OPS.shrink_match_loss_with_gradients.default, forward)

    def test_the_operator_that_returns_gradients_has_none(self) -> None:
        weak, strong = problem()
        loss = OPS.shrink_match_loss_with_gradients(weak, strong, 0.95, 1)[0]
        with pytest.raises(RuntimeError, match="returns gradients and has none itself"):
            loss.backward()

    @pytest.mark.parametrize(
        ("position", "bad", "message"),
        [
            (0, torch.zeros(4, 3), "weak_logits must have the shape"),
            (0, torch.zeros(4, 6, dtype=torch.float64), "weak_logits has the wrong dtype"),
            (1, torch.zeros(4), "strong_logits must have 2 dimensions"),
            (2, 1.0, r"threshold must be in \(0, 1\)"),
            (3, 7, "reduction must be 0, 1 or 2"),
        ],
    )
    def test_wrong_raw_arguments_are_refused(self, position: int, bad, message: str) -> None:
        arguments: list = [torch.zeros(4, 6), torch.zeros(4, 6), 0.95, 1]
        arguments[position] = bad
        with pytest.raises(RuntimeError, match=message):
            OPS.shrink_match_loss(*arguments)


class TestModule:
    def batches(self, count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(4 * torch.randn(32, 5), torch.randn(32, 5)) for _ in range(count)]

    def test_moving_average(self) -> None:
        criterion = ShrinkMatchLoss(0.8, momentum=0.9, reduction="sum")
        ratio = None
        for weak, strong in self.batches():
            own = (weak.softmax(1).amax(1) >= 0.8).float().mean()
            ratio = own if ratio is None else 0.9 * ratio + 0.1 * own
            expected = ratio * shrink_match_loss(weak, strong, threshold=0.8, reduction="sum")
            torch.testing.assert_close(criterion(weak, strong), expected)
            torch.testing.assert_close(criterion.certain_ratio, ratio)
        assert 0 < criterion.certain_ratio < 1

    def test_evaluation_and_empty_batches_leave_the_state_alone(self) -> None:
        criterion = ShrinkMatchLoss(0.8)
        first, second, _ = self.batches()
        criterion.eval()
        own = (first[0].softmax(1).amax(1) >= 0.8).float().mean()
        torch.testing.assert_close(
            criterion(*first), own * shrink_match_loss(*first, threshold=0.8)
        )
        assert criterion.num_batches == 0
        criterion.train()(*first)
        before = copy.deepcopy(criterion.state_dict())
        criterion.eval()(*second)
        criterion.train()(second[0][:0], second[1][:0])
        for key, value in criterion.state_dict().items():
            assert torch.equal(value, before[key]), key

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_recomputation_does_not_update_twice(self, use_reentrant: bool) -> None:
        plain, again = ShrinkMatchLoss(0.8, momentum=0.5), ShrinkMatchLoss(0.8, momentum=0.5)
        for weak, strong in self.batches():
            a, b = strong.clone().requires_grad_(), strong.clone().requires_grad_()
            loss = plain(weak, a)
            loss.backward()
            repeated = checkpoint(again, weak, b, use_reentrant=use_reentrant)
            repeated.backward()
            assert torch.equal(repeated, loss)
            assert torch.equal(a.grad, b.grad)
            assert torch.equal(again.certain_ratio, plain.certain_ratio)
            assert again.num_batches == plain.num_batches

    def test_state_is_saved_restored_and_stays_float32(self) -> None:
        criterion = ShrinkMatchLoss(0.8)
        for batch in self.batches():
            criterion(*batch)
        other = ShrinkMatchLoss(0.8)
        other.load_state_dict(criterion.state_dict())
        batch = self.batches(1)[0]
        assert torch.equal(other(*batch), criterion(*batch))
        ratio = criterion.certain_ratio.clone()
        assert torch.equal(criterion.bfloat16().double().certain_ratio, ratio)
        assert criterion.to("meta").certain_ratio.device.type == "meta"

    def test_gradients_survive_later_batches(self) -> None:
        """The factor of a loss is a number of its own, not the buffer that goes on changing."""
        criterion = ShrinkMatchLoss(0.8)
        first, second, _ = self.batches()
        strong = first[1].clone().requires_grad_()
        loss = criterion(first[0], strong)
        ratio = criterion.certain_ratio.clone()
        criterion(*second)
        loss.backward()
        leaf = first[1].clone().requires_grad_()
        shrink_match_loss(first[0], leaf, threshold=0.8).backward()
        torch.testing.assert_close(strong.grad, ratio * leaf.grad)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"threshold": 1.0}, ValueError),
            ({"threshold": "0.9"}, TypeError),
            ({"momentum": 1.1}, ValueError),
            ({"momentum": None}, TypeError),
            ({"reduction": "avg"}, ValueError),
            ({"dim": 0.5}, TypeError),
        ],
    )
    def test_options_are_checked_at_once(self, options, error) -> None:
        with pytest.raises(error, match="ShrinkMatchLoss: "):
            ShrinkMatchLoss(**options)

    def test_repr(self) -> None:
        assert "threshold=0.7, momentum=0.9" in repr(ShrinkMatchLoss(0.7, momentum=0.9))


Z = torch.randn(8, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weak_logits": [1.0]}, TypeError, "weak_logits must be a torch.Tensor, got list"),
        ({"strong_logits": None}, TypeError, "strong_logits must be a torch.Tensor, got NoneType"),
        ({"strong_logits": Z.to_sparse()}, TypeError, "strong_logits must be a dense"),
        ({"dim": True}, TypeError, "dim must be an int, got bool"),
        ({"threshold": None}, TypeError, "threshold must be a float, got NoneType"),
        ({"threshold": True}, TypeError, "threshold must be a float, got bool"),
        ({"reduction": 1}, TypeError, "reduction must be a str, got int"),
        ({"weak_logits": Z.to("meta")}, ValueError, "weak_logits must be on cpu, got meta"),
        ({"weak_logits": Z.long()}, TypeError, "weak_logits must be float32, .* got int64"),
        (
            {"weak_logits": Z.double()},
            TypeError,
            r"weak_logits must have the dtype of strong_logits \(float32\), got float64",
        ),
        ({"weak_logits": Z[:7]}, ValueError, r"weak_logits must have shape \(8, 5\), got \(7, 5\)"),
        (
            {"weak_logits": Z[:, :0], "strong_logits": Z[:, :0]},
            ValueError,
            r"at least one class, got shape \(8, 0\)",
        ),
        ({"dim": 2}, ValueError, r"dim must be in \[-2, 2\) .*, got 2"),
        ({"threshold": 0.0}, ValueError, r"threshold must be in \(0, 1\), got 0.0"),
        ({"threshold": 1.0}, ValueError, r"threshold must be in \(0, 1\), got 1.0"),
        ({"threshold": math.nan}, ValueError, r"threshold must be in \(0, 1\), got nan"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean', 'sum'"),
    ],
)
@pytest.mark.parametrize("function", [shrink_match_loss, shrink_match_scores])
def test_bad_arguments(function, change, error, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        function(**({"weak_logits": Z, "strong_logits": Z} | change))
    assert str(caught.value).startswith(function.__name__)
