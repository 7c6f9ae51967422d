"""check_sample must find what is wrong with an operator; here are operators that are wrong."""

import math

import pytest
import torch

from robustcore.testing import OperatorCase, Sample, check_sample


def reference(x, scale):
    return x * x * scale


def samples():
    yield Sample("plain", (torch.tensor([1.0, -2.0, 3.0]), 0.5))


def case_of(function, **options):
    return OperatorCase(
        "square",
        "fake",
        function,
        reference,
        samples,
        **{"differentiable": (0,), "rtol": {torch.float32: 1e-6, torch.bfloat16: 1e-2}, **options},
    )


def failures(case, dtype=torch.float32):
    (sample,) = samples()
    return [f for f in check_sample(case, sample, "cpu", dtype) if not f.comparison.passed]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_operator_passes(dtype):
    assert failures(case_of(lambda x, scale: scale * x**2), dtype) == []


def test_a_wrong_result_is_found():
    found = failures(case_of(lambda x, scale: x * x * (scale + 1e-5)))
    assert "output" in [f.quantity for f in found]


def test_nan_is_found():
    found = failures(case_of(lambda x, scale: reference(x, scale) * math.nan))
    assert "NaN" in found[0].comparison.problem


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        ctx.scale = scale
        return reference(x, scale)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x * ctx.scale, None


def test_a_wrong_gradient_is_found_and_only_that():
    found = failures(case_of(WrongGradient.apply))
    assert [(f.quantity, f.gradient) for f in found] == [("gradient of 0", True)]


def test_a_dropped_gradient_is_found():
    found = failures(case_of(lambda x, scale: reference(x.detach(), scale)))
    assert [f.quantity for f in found] == ["gradient of 0"]


def test_a_result_that_changes_from_call_to_call_is_found():
    calls = iter(range(10))
    found = failures(case_of(lambda x, scale: reference(x, scale) + next(calls) * 1e-7))
    assert "repeated output" in [f.quantity for f in found]


def test_exact_operators_must_agree_bit_for_bit():
    def off_by_a_bit(x, scale):
        return torch.nextafter(reference(x, scale), torch.tensor(math.inf))

    exact = {"exact": True, "differentiable": ()}
    assert failures(case_of(reference, **exact)) == []
    assert [f.quantity for f in failures(case_of(off_by_a_bit, **exact))] == ["output"]


def test_a_missing_output_is_an_error():
    def result(x, scale):
        return (reference(x, scale),)

    with pytest.raises(ValueError, match="the operator has"):
        failures(case_of(result))
