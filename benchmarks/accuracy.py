"""Errors against float64, of an operator and of the eager reference, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .registry import Inputs

__all__ = ["errors_with_gradients"]


def errors_with_gradients(
    operator: Callable[..., torch.Tensor],
    eager: Callable[..., torch.Tensor],
    reference: Callable[..., torch.Tensor],
    inputs: Inputs,
    names: Sequence[str],
) -> dict[str, tuple[float, float]]:
    """``{name: (error of operator, error of eager)}`` for the output, then each gradient.

    ``reference`` runs in float64 on the same values.
    """
    from robustcore.testing import error_against

    exact = _results(reference, inputs, torch.float64)
    ours, theirs = _results(operator, inputs), _results(eager, inputs)
    return {
        name: (error_against(our, true), error_against(their, true))
        for name, our, their, true in zip(names, ours, theirs, exact, strict=True)
    }


def _results(
    function: Callable[..., torch.Tensor], inputs: Inputs, dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    leaves: list[torch.Tensor] = []

    def fresh(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        copy = value.detach().to(dtype or value.dtype)
        if any(value is leaf for leaf in inputs.leaves):
            leaves.append(copy.requires_grad_())
        return copy

    arguments = [fresh(value) for value in inputs.arguments]
    output = function(*arguments)
    if not leaves:
        return [output]
    grad_output = inputs.grad_output
    if grad_output is not None:
        grad_output = grad_output.to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]
