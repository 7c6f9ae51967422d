"""The CUDA kernels of gated_cross_entropy, on the host, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simt.harness import Executor

from robustcore.reference import losses as reference
from robustcore.testing import Sample, assert_matches, operators

(OPERATOR,) = [case for case in operators() if case.name == "gated_cross_entropy"]
SAMPLES = list(OPERATOR.samples())
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
    """The arguments of all cases, as the operator passes them on: contiguous, widened."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    prediction, noise, gate, target = sample.args
    dim = sample.kwargs.get("dim", -1)
    prediction, noise = (x.movedim(dim, -1).flatten(0, -2) for x in (prediction, noise))
    weight, sample_weight = sample.kwargs.get("weight"), sample.kwargs.get("sample_weight")
    weight = None if weight is None else weight.to(compute)
    smoothing = sample.kwargs.get("label_smoothing", 0.0)
    return {
        "prediction": prediction.to(dtype).contiguous(),
        "noise": noise.to(dtype).contiguous(),
        "gate": gate.to(compute).flatten().contiguous(),
        "target": target.flatten().contiguous(),
        "weight": weight,
        "weight_sum": weight.sum().reshape(1) if weight is not None and smoothing else None,
        "sample_weight": None if sample_weight is None else sample_weight.to(compute).flatten(),
        "classes": prediction.shape[-1],
        "ignore_index": sample.kwargs.get("ignore_index", -100),
        "label_smoothing": float(smoothing),
        "reduction": REDUCTIONS[sample.kwargs.get("reduction", "mean")],
    }


def results(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    gate = arguments["gate"]
    rows = {name: torch.empty_like(gate) for name in ("row_loss", "row_lse", "row_gate_gradient")}
    loss = torch.empty(gate.numel() if arguments["reduction"] == 0 else 1, dtype=gate.dtype)
    return {**rows, "loss": loss, "denominator": torch.empty(1, dtype=gate.dtype)}


def gradients(arguments: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    weight = arguments["sample_weight"]
    return {
        "grad_prediction": torch.empty_like(arguments["prediction"]),
        "grad_noise": torch.empty_like(arguments["noise"]),
        "grad_gate": torch.empty_like(arguments["gate"]),
        "grad_sample_weight": None if weight is None else torch.empty_like(weight),
    }


def expected_results(arguments: dict[str, Any], grad_loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss and gradients of the float64 reference, from the values that the kernels see."""
    names = ("prediction", "noise", "gate", "sample_weight")
    leaves = {
        name: arguments[name].double().requires_grad_()
        for name in names
        if arguments[name] is not None
    }
    loss = reference.gated_cross_entropy(
        leaves["prediction"],
        leaves["noise"],
        leaves["gate"],
        arguments["target"],
        weight=None if arguments["weight"] is None else arguments["weight"].double(),
        sample_weight=leaves.get("sample_weight"),
        ignore_index=arguments["ignore_index"],
        label_smoothing=arguments["label_smoothing"],
        reduction={number: name for name, number in REDUCTIONS.items()}[arguments["reduction"]],
    )
    grads = torch.autograd.grad(
        loss, tuple(leaves.values()), grad_loss.double().reshape(loss.shape)
    )
    return {"loss": loss.detach(), **{f"grad_{name}": grad for name, grad in zip(leaves, grads)}}


def check(actual: dict[str, Any], expected: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for name, value in expected.items():
        precision = PRECISION[dtype if actual[name].dtype == dtype else torch.float32]
        finite = value[value.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        assert_matches(
            actual[name].reshape(value.shape),
            value,
            rtol=precision,
            atol=precision * max(scale, 1.0),
        )


def loss_gradient(arguments: dict[str, Any]) -> torch.Tensor:
    count = arguments["gate"].numel() if arguments["reduction"] == 0 else 1
    return torch.linspace(0.5, 1.5, count, dtype=arguments["gate"].dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_forward_and_backward(simt: Executor, sample: Sample, dtype: torch.dtype) -> None:
    arguments = given(sample, dtype)
    saved, grads = results(arguments), gradients(arguments)
    simt.run("gated_cross_entropy", **arguments, **saved)
    loss = saved.pop("loss")
    grad_loss = loss_gradient(arguments)
    simt.run("gated_cross_entropy_backward", **arguments, **saved, **grads, grad_loss=grad_loss)
    check({"loss": loss, **grads}, expected_results(arguments, grad_loss), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sample",
    [sample for sample in SAMPLES if sample.kwargs.get("reduction") != "none"],
    ids=lambda sample: sample.name,
)
def test_gradients_in_forward(simt: Executor, sample: Sample, dtype: torch.dtype) -> None:
    arguments = given(sample, dtype)
    actual, grads = results(arguments), gradients(arguments)
    simt.run("gated_cross_entropy_with_gradients", **arguments, **actual, **grads)
    expected = expected_results(arguments, torch.ones(1))
    check({**actual, **grads}, expected, dtype)
    # Both ways have the same statistics, bit for bit.
    again = results(arguments)
    simt.run("gated_cross_entropy", **arguments, **again)
    for name, value in again.items():
        assert torch.equal(value.nan_to_num(), actual[name].nan_to_num()), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_scores(simt: Executor, sample: Sample, dtype: torch.dtype) -> None:
    arguments = given(sample, dtype)
    actual = results(arguments)
    actual["log_probability"] = torch.empty_like(arguments["gate"])
    actual["predicted"] = torch.empty_like(arguments["target"])
    actual["gate_probability"] = torch.empty_like(arguments["gate"])
    simt.run("gated_cross_entropy_scores", **arguments, **actual)
    expected = reference.gated_cross_entropy_scores(
        arguments["prediction"].double(),
        arguments["noise"].double(),
        arguments["gate"].double(),
        arguments["target"],
        ignore_index=arguments["ignore_index"],
    )
    assert torch.equal(actual["predicted"], expected.predicted)
    check(
        actual,
        {
            "log_probability": expected.log_probability,
            "gate_probability": expected.gate,
        },
        dtype,
    )


def test_wanted_gradients_only(simt: Executor) -> None:
    arguments = given(SAMPLES[3], torch.float32)
    actual = results(arguments)
    everything = gradients(arguments)
    simt.run("gated_cross_entropy_with_gradients", **arguments, **actual, **everything)
    for unwanted in ("grad_prediction", "grad_noise"):
        some = {**gradients(arguments), unwanted: None}
        simt.run("gated_cross_entropy_with_gradients", **arguments, **actual, **some)
        for name, value in some.items():
            if value is not None:
                assert torch.equal(value, everything[name]), name


def test_rows_do_not_leak(simt: Executor) -> None:
    """NaN and infinities in one row change no bit of the others."""
    arguments = given(SAMPLES[3], torch.float32)
    arguments["reduction"] = REDUCTIONS["none"]
    clean, dirty = results(arguments), results(arguments)
    simt.run("gated_cross_entropy", **arguments, **clean)
    for value in (torch.nan, torch.inf, -torch.inf):
        spoiled = {name: arguments[name].clone() for name in ("prediction", "noise", "gate")}
        spoiled["prediction"][1] = value
        simt.run("gated_cross_entropy", **{**arguments, **spoiled}, **dirty)
        for row in (0, 2):
            assert dirty["loss"][row] == clean["loss"][row]
        assert dirty["loss"][1] != clean["loss"][1]


@pytest.mark.parametrize("target", [-1, 7, 2**40])
def test_target_out_of_range(simt: Executor, target: int) -> None:
    arguments = given(SAMPLES[3], torch.float32)
    arguments["target"] = arguments["target"].clone()
    arguments["target"][2] = target
    with pytest.raises(simt.module.SimtError, match=r"^device assertion: .*target"):
        simt.run("gated_cross_entropy", **arguments, **results(arguments))
