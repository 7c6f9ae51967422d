"""Sample inputs of linear_gated_cross_entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..sample import OperatorCase, Sample

__all__ = ["case", "samples"]


def case() -> OperatorCase:
    """The operator with its reference."""
    from ... import losses
    from ...reference import losses as reference

    return OperatorCase(
        name="linear_gated_cross_entropy",
        family="losses",
        function=losses.linear_gated_cross_entropy,
        reference=reference.linear_gated_cross_entropy,
        samples=samples,
        differentiable=(0, 1, 2, 3, 4, 5, 6, "sample_weight"),
        rtol={
            torch.float32: 4e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 2**-7,
            torch.float16: 2**-10,
        },
        # Logits of up to 8 are rounded to 16 bits, as those of a linear layer: by 8 * 2^-9 in
        # bfloat16 and 8 * 2^-12 in float16, for two classes at a time.
        atol={
            torch.float32: 4e-6,
            torch.float64: 1e-13,
            torch.bfloat16: 2**-5,
            torch.float16: 2**-8,
        },
        # Sums over rows and classes of products with those logits' probabilities.
        gradient_atol={
            torch.float32: 2e-5,
            torch.float64: 1e-13,
            torch.bfloat16: 2**-4,
            torch.float16: 2**-7,
        },
    )


def samples() -> Iterator[Sample]:
    """Sizes, chunks, options, missing biases, shared features, layouts."""
    for rows, classes, width in ((0, 5, 3), (1, 1, 1), (1, 2, 4), (31, 10, 16), (33, 129, 7)):
        yield _linear(f"{rows} rows of {classes} classes", rows, classes, width)
    for reduction in ("none", "sum", "mean"):
        for chunk_rows in (1, 5, 100):
            yield _linear(
                f"reduction {reduction} in chunks of {chunk_rows}",
                17,
                11,
                6,
                reduction=reduction,
                chunk_rows=chunk_rows,
                label_smoothing=0.1,
                weighted=True,
                ignored=(0, 6, 16),
            )
    everything: dict[str, Any] = {
        "label_smoothing": 0.1,
        "temperature": 1.5,
        "softcap": 8.0,
        "lse_square_scale": 0.01,
        "weighted": True,
    }
    for reduction in ("none", "sum", "mean"):
        for chunk_rows in (5, 100):
            options = everything | {"reduction": reduction, "chunk_rows": chunk_rows}
            name = f"everything at once, reduction {reduction} in chunks of {chunk_rows}"
            yield _linear(name, 17, 11, 6, ignored=(0, 6, 16), **options)
            yield _linear(f"class probabilities, {name}", 17, 11, 6, soft=True, **options)
    for chunk_rows in (3, 100):
        where = f"in chunks of {chunk_rows}"
        yield _linear(f"temperature {where}", 9, 12, 4, temperature=0.5, chunk_rows=chunk_rows)
        yield _linear(f"soft-cap {where}", 9, 12, 4, softcap=2.0, chunk_rows=chunk_rows)
        yield _linear(
            f"squared logsumexp {where}", 9, 12, 4, lse_square_scale=0.1, chunk_rows=chunk_rows
        )
        yield _linear(f"class probabilities {where}", 9, 12, 4, soft=True, chunk_rows=chunk_rows)
    yield _linear("no biases", 9, 12, 4, biases=False)
    yield _linear("every row ignored", 4, 6, 3, ignored=(0, 1, 2, 3), chunk_rows=2)
    yield _linear("another ignore_index", 9, 12, 4, ignored=(2,), ignore_index=-1, chunk_rows=4)
    yield _shared_features()
    yield _strided()
    yield _sequences()


def _linear(
    name: str,
    rows: int,
    classes: int,
    width: int,
    *,
    biases: bool = True,
    weighted: bool = False,
    soft: bool = False,
    ignored: tuple[int, ...] = (),
    **options: Any,
) -> Sample:
    generator = torch.Generator().manual_seed(1000 * rows + classes)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    target = torch.randint(classes, (rows,), generator=generator)
    target[list(ignored)] = options.get("ignore_index", -100)
    if soft:
        target = normal(rows, classes).softmax(1)
    noise_width = width + 2
    args = (
        normal(rows, width),
        normal(classes, width, scale=width**-0.5),
        normal(classes) if biases else None,
        normal(rows, noise_width),
        normal(classes, noise_width, scale=noise_width**-0.5),
        normal(classes) if biases else None,
        normal(rows),
        target,
    )
    if weighted:
        options["class_weight"] = torch.rand(classes, generator=generator) + 0.1
        options["sample_weight"] = torch.rand(rows, generator=generator) * 2
    return Sample(name, args, options)


def _shared_features() -> Sample:
    """One backbone for both heads."""
    sample = _linear("noise features are the features", 9, 12, 4)
    features, weight, bias, _, noise_weight, *rest = sample.args
    return Sample(
        sample.name,
        (features, weight, bias, features, noise_weight[:, :4].contiguous(), *rest),
        {"chunk_rows": 4},
    )


def _strided() -> Sample:
    """Transposed weights, every other column of the features, an expanded gate."""
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(6, 10, generator=generator)[:, ::2]
    weight = torch.randn(5, 11, generator=generator).t()
    noise_features = torch.randn(3, 6, generator=generator).t()
    noise_weight = torch.randn(22, 3, generator=generator)[::2]
    bias = torch.randn(22, generator=generator)[::2]
    target = torch.randint(11, (12,), generator=generator)[::2]
    gate = torch.tensor(0.3).expand(6)
    return Sample(
        "strided inputs",
        (features, weight, bias, noise_features, noise_weight, None, gate, target),
        {"chunk_rows": 4},
    )


def _sequences() -> Sample:
    """Rows in two dimensions, the gate with a class dimension of one."""
    sample = _linear("a batch of sequences", 12, 7, 5, reduction="none", chunk_rows=5)
    features, weight, bias, noise_features, noise_weight, noise_bias, gate, target = sample.args
    return Sample(
        sample.name,
        (
            features.reshape(3, 4, 5),
            weight,
            bias,
            noise_features.reshape(3, 4, 7),
            noise_weight,
            noise_bias,
            gate.reshape(3, 4, 1),
            target.reshape(3, 4),
        ),
        sample.kwargs,
    )
