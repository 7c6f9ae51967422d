"""Sample inputs of mixture_cross_entropy."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples

__all__ = ["case", "mixture_arguments", "samples"]

_WITHOUT = ("temperature", "softcap", "lse_square_scale")


def case() -> OperatorCase:
    """The operator with its reference."""
    differentiable = (0, 1, 2, "scale1", "scale2", "sample_weight")
    return row_case("mixture_cross_entropy", samples, differentiable)


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on, with scales of all kinds and gates at their ends."""
    yield from row_samples(extra=mixture_arguments, without=_WITHOUT)
    numbers = {"scale1": 1.2, "scale2": 0.5}
    for sample in row_samples(
        "two scales: ", sizes=((9, 21),), brief=True, extra=mixture_arguments, without=_WITHOUT
    ):
        yield Sample(sample.name, sample.args, {**sample.kwargs, **numbers})
    generator = torch.Generator().manual_seed(5)
    for sample in row_samples(
        "scales per row: ", sizes=((9, 21),), brief=True, extra=mixture_arguments, without=_WITHOUT
    ):
        rows = sample.args[0].shape[0]
        scale1, scale2 = 0.5 + torch.rand(2, rows, generator=generator)
        scales = {"scale1": scale1, "scale2": scale2}
        yield Sample(sample.name, sample.args, {**sample.kwargs, **scales})
    logits1, logits2 = 3 * torch.randn(2, 3, 4, generator=generator)
    yield Sample(
        "small, a scale to learn",
        (logits1, logits2, torch.randn(3, generator=generator), torch.tensor([0, 3, 1])),
        {"scale1": torch.tensor(1.2), "scale2": 0.5},
    )
    yield from _extreme_gates()
    yield _masked_in_one(generator)


def mixture_arguments(
    rows: int, classes: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The second logits and the gate."""
    logits2 = 3 * torch.randn(rows, classes, generator=generator)
    return logits2, 2 * torch.randn(rows, generator=generator)


def _extreme_gates() -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(8)
    logits1, logits2 = 3 * torch.randn(2, 8, 10, generator=generator)
    gate = torch.tensor([-100.0, -30.0, -10.0, 0.0, 10.0, 17.0, 30.0, 100.0])
    target = torch.randint(10, (8,), generator=generator)
    yield Sample("gates that are almost 0 and 1", (logits1, logits2, gate, target), {})
    smooth = {"label_smoothing": 0.1}
    yield Sample("gates that are almost 0 and 1, smooth", (logits1, logits2, gate, target), smooth)


def _masked_in_one(generator: torch.Generator) -> Sample:
    """Each head masks other classes with -inf; targets among them."""
    logits1, logits2 = 3 * torch.randn(2, 6, 9, generator=generator)
    logits1[:, ::4] = -torch.inf
    logits2[:, 1::4] = -torch.inf
    gate = torch.randn(6, generator=generator)
    return Sample(
        "classes masked in one head",
        (logits1, logits2, gate, torch.tensor([0, 1, 2, 3, 4, 5])),
        {"label_smoothing": 0.1, "reduction": "none"},
    )
