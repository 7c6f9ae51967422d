"""Sample inputs of smooth_adversarial_loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..sample import OperatorCase, Sample
from ._rows import row_case, row_samples
from .pair_kl_divergence import adversarial_logits

__all__ = ["case", "samples"]

_WITHOUT = ("label_smoothing", "class probabilities", "softcap", "lse_square_scale")


def case() -> OperatorCase:
    """The operator with its reference."""
    return row_case("smooth_adversarial_loss", samples, (0, 1, "sample_weight"))


def samples() -> Iterator[Sample]:
    """What every loss over rows is tried on, members of the family, attacks of all sizes."""
    for sample in row_samples(extra=adversarial_logits, without=_WITHOUT):
        # Norms of the largest differences are beyond float16.
        far = {"nu": 0.1} if "10000" in sample.name else {}
        yield Sample(sample.name, sample.args, {**sample.kwargs, **far})
    for tau, nu in ((0.0, 1.0), (1.7, 0.5), (2.0, 0.0)):
        yield from row_samples(
            f"tau {tau}, nu {nu}: ",
            sizes=((9, 21),),
            brief=True,
            extra=adversarial_logits,
            without=_WITHOUT,
            tau=tau,
            nu=nu,
        )
    generator = torch.Generator().manual_seed(7)
    logits, other = 3 * torch.randn(2, 9, 21, generator=generator)
    target = torch.randint(21, (9,), generator=generator)
    tau_of_rows = 2 * torch.rand(9, generator=generator)
    yield Sample("tau per row", (logits, other, target), {"tau": tau_of_rows})
    yield Sample("an attack that moves nothing", (logits, logits.clone(), target), {})
    yield Sample("an attack that moves all alike", (logits, logits + 1, target), {}, False)
    distant = (1e3 * logits, -1e3 * other, target)
    yield Sample("an attack that moves by 10000", distant, {"reduction": "none"})
    near = (1e-30 * logits, 1e-30 * other, target)
    yield Sample("an attack that moves by 1e-30", near, {"reduction": "none"})
