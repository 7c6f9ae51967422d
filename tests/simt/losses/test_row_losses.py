"""The CUDA kernels of every row loss, on the host, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.row_loss_cases import CASES, STATELESS, named, raw_arguments, samples_of
from simt.harness import Executor

from robustcore.losses._row_loss import ROW_LOSSES
from robustcore.testing import OperatorCase, assert_matches

# Gradients are compared relative to the largest magnitude in the tensor.
PRECISION = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-10,
}
ROW_VALUES = ("row_value", "row_value2", "row_value3")
# Widths of a warp's row and of a block's, with all options, and the corners.
CHOSEN = (
    "0 rows",
    "1 rows of 1 classes",
    "33 rows of 129 classes",
    "5 rows of 1025 classes",
    "everything at once, reduction none",
    "everything at once, reduction mean",
    "class probabilities, everything at once",
    "logits up to 10000",
    "classes masked with -inf",
    "another ignore_index",
)

every_loss = pytest.mark.parametrize("case", STATELESS.values(), ids=STATELESS.keys())


def given(raw: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of all cases, as the operator passes them on: contiguous."""
    tensors = [t if t is None else t.contiguous() for t in raw[:8]]
    soft = tensors[5].is_floating_point()
    names = ("ignore_index", "label_smoothing", "temperature", "softcap", "lse_square", "reduction")
    parameters = [*raw[8], 0.0, 0.0, 0.0, 0.0][:4]
    return {
        "logits": tensors[0],
        "second": tensors[1],
        **dict(zip(ROW_VALUES, tensors[2:5])),
        "target": None if soft else tensors[5],
        "soft_target": tensors[5] if soft else None,
        "weight": tensors[6],
        "sample_weight": tensors[7],
        "rows": tensors[0].shape[0],
        "classes": tensors[0].shape[1],
        **{f"parameter{k}": float(value) for k, value in enumerate(parameters)},
        **{k: float(v) if isinstance(v, float) else v for k, v in zip(names, raw[9:])},
    }


def empty_results(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    logits = arguments["logits"]
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows = arguments["rows"]
    by_row = arguments["reduction"] == 0
    results = {"loss": torch.empty(rows if by_row else 1, dtype=compute)}
    if not by_row:
        results["row_loss"] = torch.empty(rows, dtype=compute)
    gradients = {
        f"grad_{name}": None if arguments[name] is None else torch.empty_like(arguments[name])
        for name in ("logits", "second", *ROW_VALUES, "sample_weight")
    }
    return results, gradients


def expected(case: OperatorCase, raw: tuple[Any, ...], grad_loss: torch.Tensor) -> dict[str, Any]:
    """Loss and gradients of the reference in float64, from the values that the kernels see."""
    wide = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in raw]
    loss_of = ROW_LOSSES[case.name]
    places = {
        name: place
        for name, place in zip(
            ("logits", "second", *ROW_VALUES, "sample_weight"), (0, 1, 2, 3, 4, 7)
        )
        if wide[place] is not None
        and (not 2 <= place <= 4 or place - 2 < loss_of.row_value_gradients)
    }
    for place in places.values():
        wide[place].requires_grad_()
    loss = loss_of.reference(*wide)
    leaves = [wide[place] for place in places.values()]
    gradients = torch.autograd.grad(
        loss, leaves, grad_loss.double().reshape(loss.shape), allow_unused=True
    )
    return {
        "loss": loss.detach(),
        **{
            f"grad_{name}": torch.zeros_like(leaf) if gradient is None else gradient
            for name, leaf, gradient in zip(places, leaves, gradients)
        },
    }


def written(case: OperatorCase, gradients: dict[str, Any]) -> dict[str, Any]:
    """Row values without a derivative get none."""
    without = ROW_VALUES[ROW_LOSSES[case.name].row_value_gradients :]
    return {k: None if k.removeprefix("grad_") in without else v for k, v in gradients.items()}


def check(actual: dict[str, Any], right: dict[str, Any], dtype: torch.dtype) -> None:
    for name, value in right.items():
        precision = PRECISION[dtype if actual[name].dtype == dtype else torch.float32]
        finite = value[value.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        assert_matches(
            actual[name].reshape(value.shape),
            value,
            rtol=precision,
            atol=precision * max(scale, 1.0),
            name=name,
        )


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@every_loss
def test_all_passes(
    simt: Executor, case: OperatorCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in CHOSEN:
        raw = raw_arguments(case, named(case, text).to(dtype=dtype), monkeypatch)
        arguments = given(raw)
        results, gradients = empty_results(arguments)
        gradients = written(case, gradients)
        compute = results["loss"].dtype
        denominator = {"denominator": torch.empty(1, dtype=compute)}
        grad_loss = torch.linspace(0.5, 1.5, results["loss"].numel(), dtype=compute)
        right = expected(case, raw, grad_loss)
        simt.run(case.name, **arguments, **denominator, **results)
        check(results, {"loss": right["loss"]}, dtype)
        simt.run(
            case.name + "_backward", **arguments, **denominator, **gradients, grad_loss=grad_loss
        )
        check(gradients, {k: v for k, v in right.items() if k != "loss"}, dtype)
        if arguments["reduction"] != 0:
            _, made = empty_results(arguments)
            made = written(case, made)
            simt.run(case.name + "_with_gradients", **arguments, **denominator, **results, **made)
            right = expected(case, raw, torch.ones(1, dtype=compute))
            check({**results, **made}, right, dtype)


@every_loss
def test_wanted_gradients_only(
    simt: Executor, case: OperatorCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_arguments(case, named(case, "3 rows of 7 classes"), monkeypatch)
    arguments = given(raw)
    results, gradients = empty_results(arguments)
    everything = written(case, gradients)
    denominator = torch.empty(1)
    name = case.name + "_with_gradients"
    simt.run(name, **arguments, **results, **everything, denominator=denominator)
    for unwanted in ("grad_logits", "grad_second"):
        some = {**{k: v if v is None else torch.empty_like(v) for k, v in everything.items()}}
        some[unwanted] = None
        simt.run(name, **arguments, **results, **some, denominator=denominator)
        for key, value in some.items():
            if value is not None:
                assert torch.equal(value, everything[key]), key


@pytest.mark.parametrize("target", [-1, 7, 2**40])
@every_loss
def test_target_out_of_range(
    simt: Executor, case: OperatorCase, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = given(raw_arguments(case, named(case, "3 rows of 7 classes"), monkeypatch))
    arguments["target"] = torch.tensor([0, 1, target])
    results, _ = empty_results(arguments)
    with pytest.raises(simt.module.SimtError, match=r"^device assertion: .*target"):
        simt.run(case.name, **arguments, **results, denominator=torch.empty(1))


def test_scores_of_gated_cross_entropy(simt: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["gated_cross_entropy"]
    for sample in samples_of(case.name):
        if "probabilities" in sample.name:
            continue
        raw = raw_arguments(case, sample, monkeypatch)
        arguments = given(raw)
        results, _ = empty_results(arguments)
        scores = {
            "log_probability": torch.empty(arguments["rows"]),
            "predicted": torch.empty(arguments["rows"], dtype=torch.int64),
        }
        simt.run(
            case.name + "_scores", **arguments, **results, **scores, denominator=torch.empty(1)
        )
        assert torch.equal(scores["predicted"], raw[0].argmax(1))
        ignored = raw[5] == raw[9]
        right = raw[0].double().log_softmax(1)
        right = right.gather(1, raw[5].masked_fill(ignored, 0)[:, None])[:, 0]
        check(scores, {"log_probability": right.masked_fill(ignored, torch.nan)}, torch.float32)
