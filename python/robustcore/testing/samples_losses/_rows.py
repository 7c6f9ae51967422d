"""Sample inputs that suit every loss ``function(logits, target, *, options)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ..sample import OperatorCase, Sample

__all__ = ["row_case", "row_samples"]

_SIZES = ((0, 5), (1, 1), (1, 2), (3, 7), (31, 10), (33, 129), (5, 1025))


def row_case(
    name: str,
    samples: Callable[[], Iterable[Sample]],
    differentiable: tuple[int | str, ...],
    **changes: Any,
) -> OperatorCase:
    """The case of ``robustcore.losses.<name>``, with the tolerances of a loss in log space."""
    from ... import losses
    from ...reference import losses as reference

    fields: dict[str, Any] = {
        # The results of 16-bit inputs are rounded once, from float32.
        "rtol": {
            torch.float32: 2e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 2**-8,
            torch.float16: 2**-11,
        },
        # Log-probabilities near 0 come out of a difference of numbers near 10.
        "atol": {
            torch.float32: 2e-6,
            torch.float64: 1e-14,
            torch.bfloat16: 4e-6,
            torch.float16: 4e-6,
        },
    }
    return OperatorCase(
        name=name,
        family="losses",
        function=getattr(losses, name),
        reference=getattr(reference, name),
        samples=samples,
        differentiable=differentiable,
        **(fields | changes),
    )


def row_samples(
    prefix: str = "",
    *,
    sizes: tuple[tuple[int, int], ...] = _SIZES,
    brief: bool = False,
    extra: Callable[[int, int, torch.Generator], tuple[torch.Tensor, ...]] | None = None,
    without: tuple[str, ...] = (),
    **kwargs: Any,
) -> Iterator[Sample]:
    """Sizes, options, layouts and extreme logits.

    Args:
        prefix: Put before the name of each sample.
        sizes: Rows and classes.
        brief: Only the sizes, and all options at once.
        extra: Makes the positional arguments between logits and target from rows and classes.
        without: Options that the loss does not have; ``class probabilities`` is one of them.
        kwargs: Passed with every sample.
    """

    def make(
        name: str,
        rows: int,
        classes: int,
        *,
        scale: float = 3.0,
        soft: bool = False,
        **options: Any,
    ) -> Sample:
        generator = torch.Generator().manual_seed(1000 * rows + classes)
        logits = torch.randn(rows, classes, generator=generator) * scale
        others = extra(rows, classes, generator) if extra is not None else ()
        target = torch.randint(classes, (rows,), generator=generator)
        ignored = options.pop("ignored", ())
        target[list(ignored)] = options.get("ignore_index", -100)
        if soft and "class probabilities" not in without:
            target = torch.softmax(torch.randn(rows, classes, generator=generator), 1)
        if options.pop("weighted_classes", False):
            options["weight"] = torch.rand(classes, generator=generator) + 0.1
        if options.pop("weighted_samples", False):
            options["sample_weight"] = torch.rand(rows, generator=generator) * 2
        offered = {key: value for key, value in options.items() if key not in without}
        return Sample(prefix + name, (logits, *others, target), {**kwargs, **offered})

    everything: dict[str, Any] = {
        "label_smoothing": 0.1,
        "temperature": 1.5,
        "softcap": 8.0,
        "lse_square_scale": 0.01,
        "weighted_classes": True,
        "weighted_samples": True,
    }
    if not brief:
        # The small ones are differentiated numerically.
        yield make("small", 4, 5, ignored=(2,))
        yield make("small, everything at once", 4, 5, ignored=(1,), **everything)
        yield make("small, class probabilities", 3, 4, soft=True, reduction="none", **everything)
    for rows, classes in sizes:
        yield make(f"{rows} rows of {classes} classes", rows, classes)
    for reduction in ("none", "sum", "mean"):
        yield make(
            f"everything at once, reduction {reduction}",
            17,
            33,
            reduction=reduction,
            ignored=(0, 5, 16),
            **everything,
        )
    yield make("class probabilities, everything at once", 17, 33, soft=True, **everything)
    if brief:
        return
    for reduction in ("none", "sum"):
        yield make(f"reduction {reduction}", 17, 33, reduction=reduction)
    yield make("sample weights", 9, 12, weighted_samples=True)
    alone: dict[str, tuple[str, dict[str, Any]]] = {
        "weight": ("class weights", {"weighted_classes": True}),
        "label_smoothing": ("label smoothing", {"label_smoothing": 0.2}),
        "class probabilities": ("class probabilities", {"soft": True}),
        "temperature": ("temperature", {"temperature": 0.5}),
        "softcap": ("soft-cap", {"softcap": 2.0}),
        "lse_square_scale": ("squared logsumexp", {"lse_square_scale": 0.1}),
    }
    for option, (name, given) in alone.items():
        if option not in without:
            yield make(name, 9, 12, **given)
    yield make("ignored rows", 9, 12, ignored=(0, 3, 8))
    yield make("another ignore_index", 9, 12, ignored=(2,), ignore_index=-1)
    yield make("every row ignored", 4, 6, ignored=(0, 1, 2, 3))
    yield make("logits up to 10000", 16, 40, scale=1e4)
    yield make("tiny logits", 16, 40, scale=1e-30)
    yield _masked(make("classes masked with -inf", 8, 20, reduction="none"))
    yield _strided(make("strided inputs", 6, 11))


def _masked(sample: Sample) -> Sample:
    """Classes that cannot occur have -inf logits; no target is among them."""
    *logits, target = (t.clone() if t.dim() else t for t in sample.args)
    classes = logits[0].shape[1]
    masked = torch.arange(classes).remainder(3) == 1
    target[masked[target]] = 0
    for matrix in logits:
        if matrix.dim() == 2:
            matrix[:, masked] = -math.inf
    return Sample(sample.name, (*logits, target), sample.kwargs)


def _strided(sample: Sample) -> Sample:
    """The same values with other strides: columns of a wider matrix, a transposed one."""
    args = []
    for k, value in enumerate(sample.args):
        if value.dim() == 2 and k % 2 == 0:
            args.append(torch.stack([value, value], 2).flatten(1)[:, ::2])
        elif value.dim() == 2:
            args.append(value.t().contiguous().t())
        else:
            args.append(torch.stack([value, value], 1)[:, 1])
    return Sample(sample.name, tuple(args), sample.kwargs)
