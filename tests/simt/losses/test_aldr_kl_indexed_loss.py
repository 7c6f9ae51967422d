"""The CUDA kernels of aldr_kl_indexed_loss, on the host, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from simt.harness import Executor

from robustcore.reference import losses as reference
from robustcore.testing import Sample, assert_matches, operators

(OPERATOR,) = [case for case in operators() if case.name == "aldr_kl_indexed_loss"]
CHOSEN = (
    "33 rows of 129 classes",
    "everything at once, reduction mean",
    "classes masked with -inf",
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
STATE_ARGUMENTS = ("index", "keeper", "examples")


def keepers(sample: Sample) -> torch.Tensor | None:
    """The last row of each row's example that is not ignored; -1 for ignored rows."""
    if not sample.kwargs["update"]:
        return None
    _, target, index, _ = sample.args
    soft = target.is_floating_point()
    kept = [k for k in range(len(index)) if soft or int(target[k]) != -100]
    last = {int(index[k]): k for k in kept}
    return torch.tensor([last[int(i)] if k in kept else -1 for k, i in enumerate(index)])


def given(sample: Sample, dtype: torch.dtype) -> dict[str, Any]:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    logits, target, index, lam = sample.args
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
        "temperature": 1.0,
        "softcap": 0.0,
        "lse_square": 0.0,
        "parameter0": 0.0,
        "parameter1": 0.1,
        "parameter2": 2.0,
        "parameter3": 10.0,
        "reduction": REDUCTIONS[options.get("reduction", "mean")],
        "denominator": torch.empty(1, dtype=compute),
        "index": index,
        "keeper": keepers(sample),
        "examples": lam.shape[0],
    }


def results(arguments: dict[str, Any]) -> dict[str, Any]:
    compute = arguments["denominator"].dtype
    by_row = arguments["reduction"] == 0
    made = {"loss": torch.empty(arguments["rows"] if by_row else 1, dtype=compute)}
    if not by_row:
        made["row_loss"] = torch.empty(arguments["rows"], dtype=compute)
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
    expected_lam = before.to(compute).double()
    right = reference.aldr_kl_indexed_loss(logits, target, index, expected_lam, **sample.kwargs)
    grad_loss = torch.linspace(0.5, 1.5, right.numel(), dtype=compute)
    (right_gradient,) = torch.autograd.grad(
        right, logits, grad_loss.double().reshape(right.shape), retain_graph=True
    )
    precision = PRECISION[dtype]
    wide = min(precision, 1e-5)

    # Apart: the temperature that each row used, and its backward pass.
    made = results(arguments)
    used = torch.empty(arguments["rows"], dtype=compute)
    lam = before.to(compute, copy=True)
    simt.run("aldr_kl_indexed_loss", **arguments, **made, lam=lam, used=used)
    assert_matches(made["loss"].reshape(right.shape), right.detach(), rtol=wide, atol=wide)
    taken = torch.ones(arguments["rows"], dtype=torch.bool)
    if not target.is_floating_point():
        taken = target != arguments["ignore_index"]
    assert_matches(used[taken], expected_lam[index[taken]], rtol=wide, atol=wide)
    back = {k: v for k, v in arguments.items() if k not in STATE_ARGUMENTS}
    derived = gradients(arguments)
    simt.run("aldr_kl_indexed_loss_backward", **back, **derived, used=used, grad_loss=grad_loss)
    assert_matches(derived["grad_logits"], right_gradient, rtol=precision, atol=precision)
    if arguments["reduction"] == 0:
        return

    # In one pass.
    fused, derived = results(arguments), gradients(arguments)
    simt.run("aldr_kl_indexed_loss_with_gradients", **arguments, **fused, **derived, lam=lam)
    assert torch.equal(fused["loss"], made["loss"])
    assert_matches(lam, expected_lam, rtol=wide, atol=wide)
    (right_gradient,) = torch.autograd.grad(right, logits)
    assert_matches(derived["grad_logits"], right_gradient, rtol=precision, atol=precision)
