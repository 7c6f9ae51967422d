"""The CUDA kernels of crossmax, on the host, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simt.harness import Executor

from robustcore.reference import losses as reference
from robustcore.testing import Sample, assert_matches, operators

(OPERATOR,) = [case for case in operators() if case.name == "crossmax"]
SAMPLES = {sample.name: sample for sample in OPERATOR.samples()}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def logits_of(sample: Sample, dtype: torch.dtype) -> torch.Tensor:
    """As the operator passes them on: [samples, members, classes], contiguous."""
    (logits,) = sample.args
    dims = (sample.kwargs.get("ensemble_dim", -2), sample.kwargs.get("dim", -1))
    logits = logits.movedim(dims, (-2, -1))
    return logits.reshape(-1, *logits.shape[-2:]).to(dtype).contiguous()


def outputs(logits: torch.Tensor) -> dict[str, Any]:
    samples, members, classes = logits.shape
    return {
        "result": torch.empty(samples, classes, dtype=logits.dtype),
        "kth": torch.empty(samples, classes, dtype=torch.int16),
        "largest": torch.empty(samples, classes, dtype=torch.int16),
        "tops": torch.empty(samples, members, dtype=torch.int64),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_forward_and_backward(simt: Executor, name: str, dtype: torch.dtype) -> None:
    sample = SAMPLES[name]
    logits, k = logits_of(sample, dtype), sample.kwargs["k"]
    sizes = dict(zip(("samples", "members", "classes"), logits.shape))
    actual = outputs(logits)
    simt.run("crossmax", logits=logits, k=k, **sizes, **actual)
    exact = logits.double().requires_grad_()
    expected = reference.crossmax(exact, k)
    rtol, atol = OPERATOR.tolerance(dtype)
    assert_matches(actual["result"], expected, rtol=rtol, atol=atol)

    grad_result = (torch.arange(expected.numel()).reshape_as(expected) % 9 - 4).to(dtype) / 8
    grad = torch.empty_like(logits)
    saved = {key: actual[key] for key in ("kth", "largest", "tops")}
    simt.run("crossmax_backward", grad_result=grad_result, grad=grad, **sizes, **saved)
    (wanted,) = torch.autograd.grad(expected, exact, grad_result.double())
    rtol, atol = OPERATOR.tolerance(dtype, gradient=True)
    assert_matches(grad, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_samples_do_not_leak(simt: Executor, value: float) -> None:
    logits = logits_of(SAMPLES["k = 2 of 7"], torch.float32)
    sizes = dict(zip(("samples", "members", "classes"), logits.shape))
    clean, dirty = outputs(logits), outputs(logits)
    simt.run("crossmax", logits=logits, k=2, **sizes, **clean)
    logits[1, 4, 9] = value
    simt.run("crossmax", logits=logits, k=2, **sizes, **dirty)
    others = torch.arange(len(logits)) != 1
    assert torch.equal(dirty["result"][others], clean["result"][others])
    assert dirty["result"][1].isnan().sum() == (20 if value != value else 1)
    assert dirty["tops"][1, 4] == 9
