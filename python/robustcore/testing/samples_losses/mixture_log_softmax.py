"""Sample inputs of mixture_log_softmax."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case("mixture_log_softmax", samples, (0, 1, 2, "scale1", "scale2"))


def samples() -> Iterator[Sample]:
    """Sizes, scales, layouts, masked classes and extreme values."""
    for rows, classes in ((0, 5), (1, 1), (1, 2), (3, 7), (31, 10), (33, 129), (5, 1025)):
        yield _sample(f"{rows} rows of {classes} classes", rows, classes)
    yield _sample("small", 3, 4, scale1=1.2, scale2=0.5)
    yield _sample("two scales", 9, 21, scale1=1.2, scale2=0.5)
    yield _sample("scales to learn", 9, 21, scale1=torch.tensor(1.2), scale2=torch.tensor(0.5))
    scale1, scale2 = 0.5 + torch.rand(2, 9, generator=torch.Generator().manual_seed(1))
    yield _sample("scales per row", 9, 21, scale1=scale1, scale2=scale2)
    yield _sample("small, one scale per row", 3, 4, scale1=torch.tensor([0.7, 1.0, 2.0]))
    yield _sample("logits up to 10000", 8, 20, size=1e4)
    yield _sample("tiny logits", 8, 20, size=1e-30)
    sample = _sample("gates that are almost 0 and 1", 8, 10)
    gate = torch.tensor([-100.0, -30.0, -10.0, 0.0, 10.0, 17.0, 30.0, 100.0])
    yield Sample(sample.name, (*sample.args[:2], gate), {})
    logits1, logits2, gate = _sample("", 6, 9).args
    logits1[:, ::4] = -torch.inf
    logits2[:, 1::4] = -torch.inf
    yield Sample("classes masked in one head", (logits1, logits2, gate), {})
    logits1, logits2, gate = _sample("", 2, 15).args
    yield Sample(
        "strided, classes first",
        (logits1.reshape(2, 5, 3), logits2.reshape(2, 3, 5).mT, gate[:1].expand(2, 3)),
        {"dim": 1},
    )


def _sample(name: str, rows: int, classes: int, size: float = 3.0, **kwargs: object) -> Sample:
    generator = torch.Generator().manual_seed(1000 * rows + classes)
    logits1, logits2 = size * torch.randn(2, rows, classes, generator=generator)
    return Sample(name, (logits1, logits2, 2 * torch.randn(rows, generator=generator)), kwargs)
