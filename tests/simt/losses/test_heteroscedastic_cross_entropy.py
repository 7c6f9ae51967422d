"""The CUDA kernels of heteroscedastic_cross_entropy, on the host, against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from simt.harness import Executor

from robustcore.reference import losses as reference
from robustcore.testing import Sample, assert_matches, operators

(OPERATOR,) = [case for case in operators() if case.name == "heteroscedastic_cross_entropy"]
SAMPLES = {sample.name: sample for sample in OPERATOR.samples()}
# The executor runs every thread under several schedules: a few samples, so that a tail is left.
for sample in SAMPLES.values():
    sample.kwargs["samples"] = min(sample.kwargs["samples"], 9)
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
# float64 has one kernel only: fewer of its samples, since its threads are many.
CASES = [(name, torch.float32) for name in SAMPLES] + [
    (name, torch.float64)
    for name in (
        "0 rows of 5 classes, rank 3, 10 samples",
        "1 rows of 1 classes, rank 0, 1 samples",
        "2 rows of 33 classes, rank 4, 65 samples",
        "1 rows of 300 classes, rank 12, 9 samples",
        "reduction mean, everything at once",
        "no minimum",
        "classes masked with -inf",
    )
]
GRADIENTS = ("grad_mean", "grad_low_rank", "grad_diagonal")
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-13}


def parameters(sample: Sample, dtype: torch.dtype) -> dict[str, Any]:
    """What all cases are given, as the operator passes it on: contiguous."""
    mean, low_rank, diagonal, _ = (x.contiguous() for x in sample.args)
    return {
        "mean": mean.to(dtype),
        "low_rank": low_rank.to(dtype),
        "diagonal": diagonal.to(dtype),
        "classes": mean.shape[1],
        "rank": low_rank.shape[2],
        "samples": sample.kwargs["samples"],
        "temperature": float(sample.kwargs.get("temperature", 1.0)),
        "seed": torch.tensor([sample.kwargs["seed"]]),
        "double": dtype == torch.float64,
    }


def loss_arguments(sample: Sample, dtype: torch.dtype) -> dict[str, Any]:
    options = sample.kwargs
    minimum = options.get("minimum_probability", 1e-7)
    reduction = options.get("reduction", "mean")
    rows = sample.args[0].shape[0]
    return {
        **parameters(sample, dtype),
        "target": sample.args[3].contiguous(),
        **{
            name: options[name].to(dtype) if name in options else None
            for name in ("weight", "sample_weight")
        },
        "ignore_index": options.get("ignore_index", -100),
        "maximum_loss": -math.log(minimum) if minimum > 0 else math.inf,
        "reduction": REDUCTIONS[reduction],
        "loss": torch.empty(rows if reduction == "none" else 1, dtype=dtype),
        "row_loss": torch.empty(rows, dtype=dtype),
        "row_slope": torch.empty(rows, dtype=dtype),
        "denominator": torch.empty(1, dtype=dtype),
    }


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_loss_and_gradients(simt: Executor, name: str, dtype: torch.dtype) -> None:
    sample = SAMPLES[name]
    arguments = loss_arguments(sample, dtype)
    leaves = [arguments[key].double().requires_grad_() for key in ("mean", "low_rank", "diagonal")]
    options = dict(sample.to(dtype=dtype).float64().kwargs)
    if "sample_weight" in options:
        leaves.append(options["sample_weight"].requires_grad_())
    exact = reference.heteroscedastic_cross_entropy(*leaves[:3], arguments["target"], **options)
    expected = torch.autograd.grad(exact.sum(), leaves)
    gradients = {key: torch.empty_like(arguments[key.removeprefix("grad_")]) for key in GRADIENTS}
    precision = PRECISION[dtype]
    simt.run("heteroscedastic_cross_entropy", **arguments, **gradients)
    assert_matches(
        arguments["loss"].reshape(exact.shape), exact, rtol=precision, atol=precision, name="loss"
    )
    for key, right in zip((*GRADIENTS, "row_slope"), expected):
        actual = gradients[key] if key in gradients else arguments[key]
        # A label that holds most of the probability has the difference of numbers near 1.
        assert_matches(actual, right, rtol=precision, atol=precision, name=key)

    # Without gradients: the same bits.
    again = loss_arguments(sample, dtype)
    simt.run("heteroscedastic_cross_entropy", **again, **dict.fromkeys(GRADIENTS))
    for key in ("loss", "row_loss", "row_slope"):
        assert torch.equal(again[key].nan_to_num(), arguments[key].nan_to_num()), key


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_log_probabilities(simt: Executor, name: str, dtype: torch.dtype) -> None:
    sample = SAMPLES[name]
    arguments = parameters(sample, dtype)
    actual = torch.empty_like(arguments["mean"])
    simt.run("heteroscedastic_log_probabilities", **arguments, log_probability=actual)
    expected = reference.heteroscedastic_log_probabilities(
        *(arguments[key].double() for key in ("mean", "low_rank", "diagonal")),
        temperature=arguments["temperature"],
        samples=arguments["samples"],
        seed=arguments["seed"],
    )
    assert_matches(actual, expected, rtol=PRECISION[dtype], atol=PRECISION[dtype])


def test_rows_do_not_leak(simt: Executor) -> None:
    """NaN and infinities in one row change no bit of the others."""
    sample = SAMPLES["reduction none"]
    clean = loss_arguments(sample, torch.float32)
    simt.run("heteroscedastic_cross_entropy", **clean, **dict.fromkeys(GRADIENTS))
    for value in (torch.nan, torch.inf):
        for spoiled in ("mean", "low_rank", "diagonal"):
            dirty = loss_arguments(sample, torch.float32)
            dirty[spoiled] = dirty[spoiled].clone()
            dirty[spoiled][1] = value
            simt.run("heteroscedastic_cross_entropy", **dirty, **dict.fromkeys(GRADIENTS))
            assert dirty["loss"][1].isnan()
            for row in (0, 2, 3, 4):
                assert dirty["loss"][row] == clean["loss"][row]


@pytest.mark.parametrize("target", [-1, 9, 2**40])
def test_target_out_of_range(simt: Executor, target: int) -> None:
    arguments = loss_arguments(SAMPLES["reduction none"], torch.float32)
    arguments["target"] = arguments["target"].clone()
    arguments["target"][2] = target
    with pytest.raises(simt.module.SimtError, match=r"^device assertion: .*target"):
        simt.run("heteroscedastic_cross_entropy", **arguments, **dict.fromkeys(GRADIENTS))
