"""The CUDA kernels that map rows of logits to rows or numbers, on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simt.harness import Executor

from robustcore import reference
from robustcore.testing import Sample, assert_matches
from robustcore.testing.samples_losses import energy_weights, mixture_log_softmax

# Relative to the largest magnitude in the tensor.
PRECISION = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}
every_dtype = pytest.mark.parametrize("dtype", PRECISION, ids=str)


def check(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    precision = PRECISION[actual.dtype]
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    assert_matches(actual, expected, rtol=precision, atol=precision * max(scale, 1.0), name=name)


@every_dtype
def test_energy_weights(simt: Executor, dtype: torch.dtype) -> None:
    for sample in energy_weights.samples():
        logits = sample.args[0].movedim(sample.kwargs.get("dim", -1), -1).to(dtype)
        logits = logits.flatten(0, -2).contiguous()
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        weights = torch.empty(logits.shape[0], dtype=compute)
        simt.run("energy_weights", logits=logits, classes=logits.shape[1], weights=weights)
        right = reference.losses.energy_weights(logits.double())
        assert_matches(weights, right, rtol=1e-5 if compute == torch.float32 else 1e-12)


def given(sample: Sample, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments as the operator passes them on: contiguous, vectors widened."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    dim = sample.kwargs.get("dim", -1)
    first, second = (z.movedim(dim, -1).flatten(0, -2) for z in sample.args[:2])
    arguments: dict[str, Any] = {
        "logits1": first.to(dtype).contiguous(),
        "logits2": second.to(dtype).contiguous(),
        "gate": sample.args[2].to(compute).flatten().contiguous(),
        "classes": first.shape[1],
    }
    for index in ("1", "2"):
        scale = sample.kwargs.get("scale" + index, 1.0)
        per_row = isinstance(scale, torch.Tensor)
        arguments["number" + index] = 1.0 if per_row else float(scale)
        arguments["scale" + index] = (
            scale.to(compute).expand(first.shape[0]).contiguous() if per_row else None
        )
    return arguments


@every_dtype
def test_mixture_log_softmax(simt: Executor, dtype: torch.dtype) -> None:
    for sample in mixture_log_softmax.samples():
        arguments = given(sample, dtype)
        logits = arguments["logits1"]
        result = torch.empty_like(logits)
        simt.run("mixture_log_softmax", **arguments, result=result)
        names = ["logits1", "logits2", "gate", "scale1", "scale2"]
        names = [name for name in names if arguments[name] is not None]
        leaves = [arguments[name].double().requires_grad_() for name in names]
        wide = dict(zip(names, leaves))
        right = reference.losses.mixture_log_softmax(
            wide["logits1"],
            wide["logits2"],
            wide["gate"],
            wide.get("scale1", arguments["number1"]),
            wide.get("scale2", arguments["number2"]),
        )
        check(result, right.detach(), sample.name)
        grad = torch.linspace(-1.0, 1.0, logits.numel()).reshape(logits.shape).to(dtype)
        gradients = {
            "grad_" + k: None if arguments[k] is None else torch.empty_like(arguments[k])
            for k in ("logits1", "logits2", "gate", "scale1", "scale2")
        }
        simt.run("mixture_log_softmax_backward", **arguments, grad=grad, **gradients)
        for name, expected in zip(names, torch.autograd.grad(right, leaves, grad.double())):
            check(gradients["grad_" + name], expected, f"{sample.name}: {name}")
        partly = {**gradients, "grad_logits1": None, "grad_scale1": None, "grad_scale2": None}
        partly["grad_logits2"] = torch.empty_like(logits)
        partly["grad_gate"] = torch.empty_like(arguments["gate"])
        simt.run("mixture_log_softmax_backward", **arguments, grad=grad, **partly)
        assert torch.equal(
            partly["grad_logits2"].nan_to_num(), gradients["grad_logits2"].nan_to_num()
        )
