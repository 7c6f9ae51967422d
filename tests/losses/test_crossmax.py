"""crossmax: values, derivatives, the systems that trace it, and bad input."""

from __future__ import annotations

import math

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import robustcore
from robustcore import reference
from robustcore.losses import CrossMax, crossmax
from robustcore.testing import assert_matches
from robustcore.testing.samples_losses.crossmax import case, samples

CASE = case()
SAMPLES = {sample.name: sample for sample in samples()}
OPS = torch.ops.robustcore


def plain(z: torch.Tensor, k: int) -> torch.Tensor:
    """As the paper writes it, for [batch, members, classes]."""
    z = z - z.amax(2, keepdim=True)
    z = z - z.amax(1, keepdim=True)
    return z.topk(k, dim=1).values[:, -1]


@pytest.mark.parametrize("dtype", strategies.FLOATING, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_match_the_float64_reference(name: str, dtype: torch.dtype) -> None:
    sample = SAMPLES[name].to(dtype=dtype).requires_grad((0,))
    wide = sample.float64().requires_grad((0,))
    actual = crossmax(*sample.args, **sample.kwargs)
    expected = reference.losses.crossmax(*wide.args, **wide.kwargs)
    assert actual.dtype == dtype
    rtol, atol = CASE.tolerance(dtype)
    assert_matches(actual, expected, rtol=rtol, atol=atol, name=name)
    cotangent = (torch.arange(actual.numel()).reshape(actual.shape) % 9 - 4).to(dtype) / 8
    (a,) = torch.autograd.grad(actual, sample.args, cotangent)
    (b,) = torch.autograd.grad(expected, wide.args, cotangent.double())
    rtol, atol = CASE.tolerance(dtype, gradient=True)
    assert_matches(a, b, rtol=rtol, atol=atol, name=name)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("function", [crossmax, reference.losses.crossmax])
def test_the_paper_in_three_lines(function, k: int) -> None:
    logits = torch.randn(4, 5, 13, dtype=torch.float64, requires_grad=True)
    actual, expected = function(logits, k), plain(logits, k)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, logits, cotangent),
        torch.autograd.grad(expected, logits, cotangent),
    ):
        torch.testing.assert_close(a, b)


def test_the_order_of_the_two_maxima_matters() -> None:
    logits = torch.tensor([[[5.0, 0.0], [0.0, 1.0]]])
    other = logits - logits.amax(1, keepdim=True)
    other = (other - other.amax(2, keepdim=True)).topk(2, dim=1).values[:, -1]
    assert not torch.equal(crossmax(logits, 2), other)


@given(
    st.data(),
    st.sampled_from([0, 1, 2, 5]),
    st.sampled_from([1, 2, 3, 4, 9, 33]),
    strategies.positive_edge_sizes(),
    strategies.floating_dtypes,
    st.booleans(),
)
def test_random_problems_match_the_reference_bit_for_bit(
    data: st.DataObject, batch: int, members: int, classes: int, dtype: torch.dtype, ties: bool
) -> None:
    generator = strategies.seeded(data.draw(st.integers(0, 2**20)))
    k = data.draw(st.integers(1, members))
    logits = 3 * torch.randn(batch, members, classes, generator=generator)
    logits = logits.round() if ties else logits
    mask = torch.rand(logits.shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.4]))
    logits = data.draw(strategies.strided(logits.masked_fill(mask, -math.inf).to(dtype)))
    ours, theirs = (logits.detach().requires_grad_() for _ in range(2))
    actual, expected = crossmax(ours, k), reference.losses.crossmax(theirs, k)
    # Two subtractions and comparisons in the type of computation: nothing may differ.
    assert torch.equal(actual, expected)
    cotangent = torch.randn(expected.shape, generator=generator).to(dtype)
    (a,) = torch.autograd.grad(actual, ours, cotangent)
    (b,) = torch.autograd.grad(expected, theirs, cotangent)
    # A sum over classes, and in the reference of 16-bit types one more rounding.
    eps = torch.finfo(dtype).eps
    assert_matches(a, b, rtol=4 * eps, atol=4 * eps * classes)


class TestCorners:
    def test_of_equal_logits_the_first_gets_the_gradient(self) -> None:
        logits = torch.zeros(1, 4, 3, requires_grad=True)
        crossmax(logits, 3)[0, 1].backward()
        # The third of four equals minus the first of them; each member's first class is its top.
        expected = torch.zeros(4, 3)
        expected[2] = torch.tensor([-1.0, 1.0, 0.0])
        expected[0] = torch.tensor([1.0, -1.0, 0.0])
        assert torch.equal(logits.grad[0], expected)

    def test_the_largest_itself_is_constant(self) -> None:
        logits = torch.randn(3, 4, 50, requires_grad=True)
        result = crossmax(logits, 1)
        assert (result == 0).all()
        result.sum().backward()
        assert (logits.grad == 0).all()

    def test_a_class_that_everybody_masks_stays_masked(self) -> None:
        logits = torch.randn(2, 3, 6)
        logits[..., 4] = -math.inf
        logits.requires_grad_()
        result = crossmax(logits, 2)
        assert result.isneginf().any(0).tolist() == [False] * 4 + [True, False]
        result.sum().backward()
        assert logits.grad.isfinite().all()
        assert (logits.grad[..., 4] == 0).all()
        without = [0, 1, 2, 3, 5]
        assert torch.equal(result[:, without], crossmax(logits[..., without], 2))

    def test_a_member_that_masks_everything_abstains(self) -> None:
        logits = torch.randn(1, 4, 6)
        logits[0, 1] = -math.inf
        others = crossmax(logits[:, [0, 2, 3]], 3)
        assert torch.equal(crossmax(logits, 3), others)
        assert crossmax(logits, 4).isneginf().all()

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_bad_sample_spoils_itself_only(self, bad: float) -> None:
        logits = torch.randn(3, 5, 40)
        clean = crossmax(logits, 3)
        logits[1, 2, 7] = bad
        logits.requires_grad_()
        for function in (crossmax, reference.losses.crossmax):
            dirty = function(logits, 3)
            assert torch.equal(dirty[[0, 2]], clean[[0, 2]])
            spoiled = dirty[1].isnan()
            assert spoiled.all() if bad != bad else spoiled.nonzero().flatten().tolist() == [7]
        (gradient,) = torch.autograd.grad(crossmax(logits, 3).sum(), logits)
        assert gradient[[0, 2]].isfinite().all()

    def test_empty_batch(self) -> None:
        logits = torch.empty(0, 4, 7, requires_grad=True)
        result = crossmax(logits)
        assert result.shape == (0, 7)
        result.sum().backward()
        assert logits.grad is not None

    def test_dimensions_anywhere(self) -> None:
        logits = torch.randn(2, 3, 5, 7)
        expected = crossmax(logits, 2)
        assert expected.shape == (2, 3, 7)
        for order in ((2, 0, 1, 3), (3, 2, 0, 1), (0, 3, 2, 1), (0, 2, 1, 3)):
            moved = logits.permute(order)
            e, d = order.index(2), order.index(3)
            batch_first = [order.index(i) for i in (0, 1)]
            result = crossmax(moved, 2, ensemble_dim=e, dim=d - 4)
            left = [i for i in range(4) if i != e]
            back = [left.index(i) for i in (*batch_first, d)]
            assert torch.equal(result.permute(back), expected)

    def test_the_module(self) -> None:
        logits = torch.randn(6, 2, 9)
        layer = CrossMax(2, ensemble_dim=0)
        assert torch.equal(layer(logits), crossmax(logits, 2, ensemble_dim=0))
        assert repr(layer) == "CrossMax(k=2, ensemble_dim=0, dim=-1)"
        with robustcore.use_reference():
            assert torch.equal(layer(logits), crossmax(logits, 2, ensemble_dim=0))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_numerical_derivatives(check, k: int) -> None:
    logits = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert check(lambda z: crossmax(z, k) ** 2, logits)


def test_bits_do_not_depend_on_the_number_of_threads(threads) -> None:
    logits = torch.randn(200, 7, 101)
    results = []
    for count in (1, 2, 2):
        with threads(count):
            leaf = logits.clone().requires_grad_()
            result = crossmax(leaf)
            results.append((result, *torch.autograd.grad(result.square().sum(), leaf)))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


class TestTransforms:
    def test_func_grad_and_vmap(self) -> None:
        logits = torch.randn(3, 2, 5, 6, dtype=torch.float64)

        def gradients(function):
            return torch.func.vmap(torch.func.grad(lambda z: function(z, 2).square().sum()))(logits)

        torch.testing.assert_close(gradients(crossmax), gradients(reference.losses.crossmax))

    def test_forward_mode_is_refused(self) -> None:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.randn(1, 3, 4), torch.ones(1, 3, 4))
            with pytest.raises(NotImplementedError, match="forward-mode"):
                crossmax(dual)

    def test_compile_in_one_graph(self) -> None:
        def total(z):
            return crossmax(2 * z, 2, ensemble_dim=0).square().sum()

        logits = torch.randn(4, 3, 9, requires_grad=True)
        a, b = total(logits), torch.compile(total, fullgraph=True, dynamic=True)(logits)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(torch.autograd.grad(a, logits), torch.autograd.grad(b, logits))

    def test_autocast_keeps_the_dtype(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert crossmax(torch.randn(2, 4, 5).bfloat16()).dtype == torch.bfloat16
            assert crossmax(torch.randn(2, 4, 5)).dtype == torch.float32

    def test_meta_tensors(self) -> None:
        logits = torch.empty(2, 4, 5, device="meta", requires_grad=True)
        result = crossmax(logits)
        assert (result.shape, result.device.type) == ((2, 5), "meta")
        result.sum().backward()


class TestRawOperators:
    @pytest.mark.parametrize("grad", [False, True])
    @pytest.mark.parametrize("layout", ["contiguous", "strided"])
    def test_opcheck(self, layout: str, grad: bool) -> None:
        logits = torch.randn(3, 4, 6)
        if layout == "strided":
            logits = torch.randn(6, 4, 6).transpose(0, 2)[:, :, ::2].transpose(0, 2)
        logits.requires_grad_(grad)
        torch.library.opcheck(OPS.crossmax.default, (logits, 2))
        with torch.no_grad():
            result, members, tops = OPS.crossmax(logits, 2)
        cotangent = torch.randn_like(result).requires_grad_(grad)
        torch.library.opcheck(OPS.crossmax_backward.default, (cotangent, members, tops))

    def test_wrong_raw_arguments_are_refused(self) -> None:
        logits = torch.randn(2, 3, 4)
        for bad, message in (
            ((logits[0], 1), "logits must have 3 dimensions"),
            ((logits, 4), r"k must be in \[1, 3\], got 4"),
            ((logits.long(), 1), "logits must be float32"),
        ):
            with pytest.raises(RuntimeError, match=message):
                OPS.crossmax(*bad)
        result, members, tops = OPS.crossmax(logits, 2)
        with pytest.raises(RuntimeError, match="members must have"):
            OPS.crossmax_backward(result, members[:1], tops)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0],), {}, TypeError, "logits must be a torch.Tensor, got list"),
        ((torch.zeros(2, 3, 4), 2.0), {}, TypeError, "k must be an int, got float"),
        ((torch.zeros(2, 3, 4),), {"dim": None}, TypeError, "dim must be an int, got NoneType"),
        ((torch.zeros(2, 3, 4).int(),), {}, TypeError, "logits must be float32, .* got int32"),
        ((torch.zeros(3),), {}, ValueError, r"ensemble_dim must be in \[-1, 1\) .*, got -2"),
        ((torch.zeros(2, 3, 4),), {"dim": 3}, ValueError, r"dim must be in \[-3, 3\) .*, got 3"),
        ((torch.zeros(2, 3, 4),), {"dim": 1}, ValueError, "must be different dimensions"),
        ((torch.zeros(2, 3, 0),), {}, ValueError, r"at least one class, got shape \(2, 3, 0\)"),
        ((torch.zeros(2, 2, 4),), {}, ValueError, r"k must be in \[1, 2\] for 2 members, got 3"),
        ((torch.zeros(2, 4, 4), 0), {}, ValueError, r"k must be in \[1, 4\]"),
        ((torch.zeros(1, 32768, 1),), {}, ValueError, "at most 32767 members, got 32768"),
    ],
)
def test_bad_arguments(arguments, options, error, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        crossmax(*arguments, **options)
    assert str(caught.value).startswith("crossmax: ")


@pytest.mark.parametrize(
    ("options", "error"),
    [({"k": 0}, ValueError), ({"k": 1.5}, TypeError), ({"dim": "1"}, TypeError)],
)
def test_the_module_checks_its_options_at_once(options, error) -> None:
    with pytest.raises(error, match="CrossMax: "):
        CrossMax(**options)
