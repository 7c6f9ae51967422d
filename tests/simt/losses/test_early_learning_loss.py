"""The CUDA kernels of early_learning_loss and of the indexed state, on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simt.harness import Executor

from robustcore.reference import losses as reference
from robustcore.testing import Sample, assert_matches, operators

(OPERATOR,) = [case for case in operators() if case.name == "early_learning_loss"]
CHOSEN = (
    "33 rows of 129 classes",
    "5 rows of 1025 classes",
    "everything at once, reduction mean",
    "class probabilities, everything at once",
    "with update: 33 rows of 129 classes",
    "repeated, with update: 33 rows of 129 classes",
    "repeated, with update: 5 rows of 1025 classes",
    "repeated, with update: everything at once, reduction none",
    "repeated, with update: everything at once, reduction sum",
    "repeated, with update: class probabilities, everything at once",
)
SAMPLES = [sample for sample in OPERATOR.samples() if sample.name in CHOSEN]
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2**-8}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def given(sample: Sample, dtype: torch.dtype) -> dict[str, Any]:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    logits, target, index, state = sample.args
    soft = target.is_floating_point()
    options = sample.kwargs
    widened = {
        name: None if options.get(name) is None else options[name].to(compute)
        for name in ("weight", "sample_weight")
    }
    return {
        "logits": logits.to(dtype),
        "second": None,
        **dict.fromkeys(("row_value", "row_value2", "row_value3")),
        "target": None if soft else target,
        "soft_target": target.to(compute) if soft else None,
        **widened,
        "rows": logits.shape[0],
        "classes": logits.shape[1],
        "ignore_index": options.get("ignore_index", -100),
        "label_smoothing": float(options.get("label_smoothing", 0.0)),
        "temperature": float(options.get("temperature", 1.0)),
        "softcap": float(options.get("softcap") or 0.0),
        "lse_square": float(options.get("lse_square_scale", 0.0)),
        "parameter0": float(options.get("beta", 0.7)),
        "parameter1": float(options.get("strength", 3.0)),
        "parameter2": 0.0,
        "parameter3": 0.0,
        "reduction": REDUCTIONS[options.get("reduction", "mean")],
        "denominator": torch.empty(1, dtype=compute),
        "index": index,
        "first_example": 0,
        "examples": state.shape[0],
        "update": int(options["update"]),
    }


def results(arguments: dict[str, Any]) -> dict[str, Any]:
    compute = arguments["denominator"].dtype
    by_row = arguments["reduction"] == 0
    made = {"loss": torch.empty(arguments["rows"] if by_row else 1, dtype=compute)}
    if not by_row:
        made["row_loss"] = torch.empty(arguments["rows"], dtype=compute)
    if arguments["update"]:
        made["keeper"] = torch.empty(arguments["rows"], dtype=torch.int64)
    return made


def gradients(arguments: dict[str, Any]) -> dict[str, Any]:
    weight = arguments["sample_weight"]
    return {
        "grad_logits": torch.empty_like(arguments["logits"]),
        "grad_second": None,
        **dict.fromkeys(("grad_row_value", "grad_row_value2", "grad_row_value3")),
        "grad_sample_weight": None if weight is None else torch.empty_like(weight),
    }


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_all_passes(simt: Executor, sample: Sample, dtype: torch.dtype) -> None:
    arguments = given(sample, dtype)
    compute = arguments["denominator"].dtype
    logits = arguments["logits"].double().requires_grad_()
    _, target, index, before = sample.args
    expected_state = before.to(compute).double()
    right = reference.early_learning_loss(logits, target, index, expected_state, **sample.kwargs)
    grad_loss = torch.linspace(0.5, 1.5, right.numel(), dtype=compute)
    (right_gradient,) = torch.autograd.grad(
        right, logits, grad_loss.double().reshape(right.shape), retain_graph=True
    )
    precision = PRECISION[dtype]
    wide = min(precision, 1e-5)

    # Apart: the state that each row used, its backward pass, and the write of the state.
    made = results(arguments)
    used = torch.empty(arguments["rows"], arguments["classes"], dtype=compute)
    state = before.to(compute, copy=True)
    simt.run("early_learning_loss", **arguments, **made, state=state, used=used)
    assert_matches(made["loss"].reshape(right.shape), right.detach(), rtol=wide, atol=wide)
    back = {k: v for k, v in arguments.items() if k not in STATE_ARGUMENTS}
    derived = gradients(arguments)
    simt.run("early_learning_loss_backward", **back, **derived, used=used, grad_loss=grad_loss)
    assert_matches(derived["grad_logits"], right_gradient, rtol=precision, atol=precision)
    if arguments["update"] and compute == torch.float32:
        simt.run(
            "write_state_rows",
            state=state,
            used=used,
            **{k: arguments[k] for k in ("index", "first_example", "examples", "rows", "classes")},
            keeper=made["keeper"],
        )
        assert_matches(state, expected_state, rtol=wide, atol=wide)
    if arguments["reduction"] == 0:
        return

    # In one pass.
    fused, fused_state, derived = (
        results(arguments),
        before.to(compute, copy=True),
        gradients(arguments),
    )
    simt.run(
        "early_learning_loss_with_gradients", **arguments, **fused, **derived, state=fused_state
    )
    assert torch.equal(fused["loss"], made["loss"])
    assert_matches(fused_state, expected_state, rtol=wide, atol=wide)
    (right_gradient,) = torch.autograd.grad(right, logits)
    assert_matches(derived["grad_logits"], right_gradient, rtol=precision, atol=precision)


STATE_ARGUMENTS = ("index", "first_example", "examples", "update")


@pytest.mark.parametrize("index", [-1, 6, 2**40])
def test_index_out_of_range(simt: Executor, index: int) -> None:
    (sample,) = [s for s in OPERATOR.samples() if s.name == "3 rows of 7 classes"]
    logits, target, rows_of_state, state = sample.args
    wrong = rows_of_state.clone()
    wrong[1] = index
    arguments = given(Sample("", (logits, target, wrong, state), sample.kwargs), torch.float32)
    with pytest.raises(simt.module.SimtError, match=r"^device assertion: .*state"):
        simt.run(
            "early_learning_loss",
            **arguments,
            **results(arguments),
            state=state,
            used=torch.empty(3, 7),
        )
