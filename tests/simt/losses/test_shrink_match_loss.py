"""The CUDA kernels of shrink_match_loss, on the host, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simt.harness import Executor

from robustcore.reference import losses as reference
from robustcore.testing import Sample, assert_matches, operators

(OPERATOR,) = [case for case in operators() if case.name == "shrink_match_loss"]
SAMPLES = {sample.name: sample for sample in OPERATOR.samples()}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
# Statistics and gradients of rows, relative to the largest magnitude in the tensor.
PRECISION = {
    torch.float32: 5e-6,
    torch.float64: 1e-13,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-10,
}


def given(sample: Sample, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of all cases, as the operator passes them on: contiguous matrices."""
    weak, strong = (x.to(dtype).contiguous() for x in sample.args)
    return {
        "weak": weak,
        "strong": strong,
        "rows": weak.shape[0],
        "classes": weak.shape[1],
        "reduction": REDUCTIONS[sample.kwargs.get("reduction", "mean")],
    }


def results(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    rows, weak = arguments["rows"], arguments["weak"]
    compute = torch.float64 if weak.dtype == torch.float64 else torch.float32
    values = ("row_loss", "row_lse", "row_weight", "row_cut", "row_confidence")
    return {
        "loss": torch.empty(rows if arguments["reduction"] == 0 else 1, dtype=compute),
        **{name: torch.empty(rows, dtype=compute) for name in values},
        **{
            name: torch.empty(rows, dtype=torch.int64)
            for name in ("row_top", "row_tie", "row_removed")
        },
    }


def expected_results(
    arguments: dict[str, Any], threshold: float, grad_loss: torch.Tensor
) -> dict[str, torch.Tensor]:
    strong = arguments["strong"].double().requires_grad_()
    scores = reference.shrink_match_scores(
        arguments["weak"].double(),
        strong,
        threshold=threshold,
        reduction={number: name for name, number in REDUCTIONS.items()}[arguments["reduction"]],
    )
    (grad,) = torch.autograd.grad(scores.loss, strong, grad_loss.double().reshape_as(scores.loss))
    return {
        "loss": scores.loss.detach().reshape(-1),
        "row_confidence": scores.confidence,
        "row_top": scores.predicted,
        "row_removed": scores.removed,
        "grad": grad,
    }


def check(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(actual[name], value), name
            continue
        scale = value.abs().nan_to_num().max().item() if value.numel() else 0.0
        precision = PRECISION[dtype if name == "grad" else actual[name].dtype]
        assert_matches(
            actual[name], value, rtol=precision, atol=precision * max(scale, 1.0), name=name
        )


# The executor takes every schedule: rows that span a block several times are checked in one dtype.
CASES = [
    (name, dtype)
    for name in SAMPLES
    for dtype in DTYPES
    if dtype is torch.float32 or SAMPLES[name].args[0].shape[-1] < 1000
]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_forward_and_backward(simt: Executor, name: str, dtype: torch.dtype) -> None:
    sample = SAMPLES[name]
    arguments, threshold = given(sample, dtype), sample.kwargs.get("threshold", 0.95)
    actual, grad = results(arguments), torch.empty_like(arguments["strong"])
    simt.run("shrink_match_loss", **arguments, **actual, threshold=threshold)
    count = actual["loss"].numel()
    grad_loss = torch.linspace(0.5, 1.5, count, dtype=actual["loss"].dtype)
    saved = {key: actual[key] for key in ("row_lse", "row_weight", "row_cut", "row_top", "row_tie")}
    simt.run("shrink_match_loss_backward", **arguments, **saved, grad_loss=grad_loss, grad=grad)
    expected = expected_results(arguments, threshold, grad_loss)
    check({**actual, "grad": grad}, expected, dtype)

    if arguments["reduction"] != 0:
        again, grad = results(arguments), torch.empty_like(grad)
        simt.run(
            "shrink_match_loss_with_gradients",
            **arguments,
            **again,
            threshold=threshold,
            grad=grad,
        )
        check({**again, "grad": grad}, expected_results(arguments, threshold, torch.ones(1)), dtype)
        # Both ways have the same statistics, bit for bit.
        for key, value in again.items():
            assert torch.equal(value.nan_to_num(), actual[key].nan_to_num()), key


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_do_not_leak(simt: Executor, value: float) -> None:
    """NaN and infinities in one row change no bit of the others."""
    arguments = given(SAMPLES["reduction none"], torch.float32)
    clean, dirty = results(arguments), results(arguments)
    simt.run("shrink_match_loss", **arguments, **clean, threshold=0.95)
    arguments["weak"][1, 3] = value
    simt.run("shrink_match_loss", **arguments, **dirty, threshold=0.95)
    others = torch.arange(arguments["rows"]) != 1
    assert torch.equal(dirty["loss"][others], clean["loss"][others])
    assert dirty["loss"][1].isnan()
    assert (dirty["row_removed"][1], dirty["row_top"][1]) == (-1, 3)
