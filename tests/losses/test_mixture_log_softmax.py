"""mixture_log_softmax: values, derivatives, the systems that trace it, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import robustcore
from robustcore import reference
from robustcore.losses import MixtureLogSoftmax, mixture_log_softmax
from robustcore.testing import assert_matches, check_sample
from robustcore.testing.samples_losses.mixture_log_softmax import case, samples

CASE = case()
OPS = torch.ops.robustcore


def leaves(rows: int = 4, classes: int = 5) -> tuple[torch.Tensor, ...]:
    make: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    z1, z2 = torch.randn(rows, classes, **make), torch.randn(rows, classes, **make)
    scales = ((torch.rand(rows, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(2))
    return z1, z2, torch.randn(rows, **make), *scales


@pytest.mark.parametrize("dtype", list(CASE.rtol), ids=str)
def test_samples_match_the_float64_reference(dtype: torch.dtype) -> None:
    """Results, their repetition bit for bit, and gradients."""
    for sample in samples():
        for finding in check_sample(CASE, sample, "cpu", dtype):
            assert finding.comparison.passed, f"{sample.name}: {finding}"


@given(
    st.data(),
    st.sampled_from([0, 1, 2, 5, 31]),
    strategies.positive_edge_sizes(),
    strategies.floating_dtypes,
    st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_random_problems_match_the_float64_reference(
    data: st.DataObject, rows: int, classes: int, dtype: torch.dtype, size: float
) -> None:
    generator = strategies.seeded(data.draw(st.integers(0, 2**20)))
    z1, z2 = size * torch.randn(2, rows, classes, generator=generator)
    gate = 5 * torch.randn(rows, generator=generator)
    z1, z2, gate = (data.draw(strategies.strided(t.to(dtype))) for t in (z1, z2, gate))
    actual = mixture_log_softmax(z1, z2, gate, 1.2, 0.5)
    expected = reference.losses.mixture_log_softmax(
        z1.double(), z2.double(), gate.double(), 1.2, 0.5
    )
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    atol = 16 * torch.finfo(compute).eps * (4 * size + 5)
    assert_matches(actual, expected, rtol=2 * torch.finfo(dtype).eps, atol=atol)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_numerical_derivatives(check: Any) -> None:
    z1, z2, gate, scale1, scale2 = leaves(3, 4)
    assert check(mixture_log_softmax, (z1, z2, gate, scale1, scale2))
    assert check(lambda z1, gate: mixture_log_softmax(z1, z2.detach(), gate, 1.2), (z1, gate))
    assert check(
        lambda z2, s: mixture_log_softmax(z1.detach(), z2, gate.detach(), 1.0, s),
        (
            z2,
            torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
        ),
    )


def test_probabilities_sum_to_one() -> None:
    z1, z2 = 10 * torch.randn(2, 50, 33)
    mixed = mixture_log_softmax(z1, z2, 3 * torch.randn(50), 1.2, 0.5)
    torch.testing.assert_close(mixed.exp().sum(1), torch.ones(50))


def test_a_class_masked_in_both_heads_has_no_gradient() -> None:
    z1, z2 = torch.randn(2, 3, 6)
    z1[:, 2] = z2[:, 2] = -math.inf
    inputs = [t.requires_grad_() for t in (z1, z2, torch.randn(3), torch.tensor(1.3))]
    mixed = mixture_log_softmax(*inputs)
    assert (mixed[:, 2] == -math.inf).all()
    gradients = torch.autograd.grad(mixed[:, [0, 1, 3]].sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][:, 2] == 0).all()
    assert (gradients[1][:, 2] == 0).all()


@pytest.mark.parametrize("place", ["logits1", "logits2", "gate"])
def test_nan_stays_in_its_row(place: str) -> None:
    z1, z2, gate = torch.randn(6, 7), torch.randn(6, 7), torch.randn(6)
    {"logits1": z1, "logits2": z2, "gate": gate}[place][2] = math.nan
    inputs = [t.requires_grad_() for t in (z1, z2, gate)]
    mixed = mixture_log_softmax(*inputs)
    others = [0, 1, 3, 4, 5]
    assert mixed[2].isnan().all()
    assert mixed[others].isfinite().all()
    for gradient in torch.autograd.grad(mixed.square().sum(), inputs):
        assert gradient[2].isnan().all()
        assert gradient[others].isfinite().all()


def test_same_bits_for_any_number_of_threads(threads: Any) -> None:
    z1, z2, gate = torch.randn(700, 130), torch.randn(700, 130), torch.randn(700)
    inputs = [t.requires_grad_() for t in (z1, z2, gate)]
    results = []
    for count in (1, 2, 3):
        with threads(count):
            mixed = mixture_log_softmax(*inputs)
            results.append([mixed, *torch.autograd.grad(mixed.square().sum(), inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


class TestTransforms:
    def test_compile_in_one_graph(self) -> None:
        inputs = [t.detach().float().requires_grad_() for t in leaves()]
        compiled = torch.compile(mixture_log_softmax, fullgraph=True, backend="aot_eager")
        a, b = mixture_log_softmax(*inputs), compiled(*inputs)
        torch.testing.assert_close(a, b)
        for x, y in zip(
            torch.autograd.grad(a.square().sum(), inputs),
            torch.autograd.grad(b.square().sum(), inputs),
        ):
            torch.testing.assert_close(x, y)

    def test_vmap_of_grad(self) -> None:
        z1, z2, gate, *_ = (t.detach() for t in leaves())
        batch = torch.stack([z1, 2 * z1])

        def total(function: Any) -> Any:
            return torch.func.vmap(torch.func.grad(lambda z: function(z, z2, gate).square().sum()))

        torch.testing.assert_close(
            total(mixture_log_softmax)(batch), total(reference.losses.mixture_log_softmax)(batch)
        )

    def test_forward_mode_is_refused(self) -> None:
        z1, z2, gate, *_ = (t.detach() for t in leaves())
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(z1, torch.ones_like(z1))
            with pytest.raises(NotImplementedError, match="forward-mode"):
                mixture_log_softmax(dual, z2, gate)

    def test_autocast_computes_in_float32(self) -> None:
        z1, z2 = torch.randn(2, 4, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = mixture_log_softmax(z1.bfloat16(), z2, torch.zeros(4))
        assert mixed.dtype == torch.float32
        expected = mixture_log_softmax(z1.bfloat16().float(), z2, torch.zeros(4))
        assert torch.equal(mixed, expected)

    def test_meta_tensors_and_use_reference(self) -> None:
        z1, z2, gate, *_ = (t.detach() for t in leaves())
        meta = [t.to("meta") for t in (z1, z2, gate)]
        assert mixture_log_softmax(*meta).shape == (4, 5)
        with robustcore.use_reference():
            forced = mixture_log_softmax(z1, z2, gate, 1.2)
        assert torch.equal(forced, reference.losses.mixture_log_softmax(z1, z2, gate, 1.2))

    @pytest.mark.parametrize("grad", [False, True])
    def test_opcheck(self, grad: bool) -> None:
        z1, z2, gate, scale1, _ = (t.detach().float() for t in leaves())
        z1 = torch.stack([z1] * 2, 2)[..., 0]
        inputs = [t.requires_grad_(grad) for t in (z1, z2, gate, scale1)]
        raw = (*inputs, None, [1.0, 0.5])
        torch.library.opcheck(OPS.mixture_log_softmax.default, raw)
        incoming = torch.randn(4, 5, requires_grad=grad)
        torch.library.opcheck(
            OPS.mixture_log_softmax_backward.default, (incoming, *raw, True, not grad)
        )

    def test_wrong_raw_arguments_are_refused(self) -> None:
        z1, z2, gate, *_ = (t.detach().float() for t in leaves())
        good = [z1, z2, gate, None, None, [1.0, 1.0]]
        for place, bad, message in (
            (0, z1.long(), "logits1 must be float32"),
            (1, z2.double(), "logits2 has the wrong dtype"),
            (1, z2[:, :3], "logits2 must have the shape of logits1"),
            (2, gate[:2], "gate must have 4 elements"),
            (3, gate[:2], "scale1 must have 4 elements"),
            (5, [1.0], "scales must be two numbers"),
        ):
            arguments = list(good)
            arguments[place] = bad
            with pytest.raises(RuntimeError, match=message):
                OPS.mixture_log_softmax(*arguments)


Z1, Z2, GATE = torch.randn(8, 5), torch.randn(8, 5), torch.randn(8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits1": [1.0]}, TypeError, "logits1 must be a torch.Tensor, got list"),
        ({"gate": 0.5}, TypeError, "gate must be a torch.Tensor, got float"),
        ({"gate": None}, TypeError, "gate must be a torch.Tensor, got NoneType"),
        ({"dim": 0.5}, TypeError, "dim must be an int, got float"),
        ({"logits2": Z2.to("meta")}, ValueError, "logits2 must be on cpu, got meta"),
        ({"logits1": Z1.long()}, TypeError, "logits1 must be float32, .*int64"),
        ({"logits2": Z2.double()}, TypeError, r"dtype of logits1 \(float32\), got float64"),
        ({"logits2": Z2[:, :4]}, ValueError, r"logits2 must have shape \(8, 5\), got \(8, 4\)"),
        ({"gate": GATE[:7]}, ValueError, r"gate must have shape \(8,\), got \(7,\)"),
        ({"scale1": 0}, ValueError, "scale1 must be positive and finite, got 0"),
        ({"scale2": torch.ones(7)}, ValueError, r"scale2 must have shape \(8,\), got \(7,\)"),
        ({"dim": 2}, ValueError, r"dim must be in \[-2, 2\) .*, got 2"),
        ({"logits1": Z1[:, :0], "logits2": Z2[:, :0]}, ValueError, "at least one class"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits1": Z1, "logits2": Z2, "gate": GATE} | change
    with pytest.raises(error, match="^mixture_log_softmax: .*" + message):
        mixture_log_softmax(**arguments)


def test_the_module() -> None:
    module = MixtureLogSoftmax(torch.nn.Parameter(torch.tensor(1.2)), 0.5, dim=0)
    assert list(module.state_dict()) == ["scale1"]
    expected = mixture_log_softmax(Z1, Z2, GATE[:5], 1.2, 0.5, dim=0)
    torch.testing.assert_close(module(Z1, Z2, GATE[:5]), expected)
