"""What every loss owes to 16-bit logits: sure rows, huge logits, masked classes.

At p_y = 0.999 the gradient of a cross-entropy for its true class is p_y - 1 = -0.001. Formed in
bfloat16 it has no correct digit: it must be formed in float32 and rounded once. So every loss is
held against its float64 reference on the same rounded logits, to 0.5 % (one rounding is 0.2 to
0.4 %). The same losses must be finite and right for logits up to 10000 and masked classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import strategies
import torch
from torch import Tensor

from robustcore import losses, reference
from robustcore.testing import assert_matches, operators

PROBABILITY, ERROR = 0.999, 0.005
ROWS, CLASSES = 3, (2, 10, 1000)

# Functions of the family whose results no label enters.
WITHOUT_A_LABEL = {"aldr_kl_temperature", "crossmax", "dro_weights", "energy_weights"}


def sure(classes: int) -> tuple[Tensor, Tensor]:
    """Logits of p_y = 0.999, the label first, in the middle and last; the others are random."""
    z = torch.randn(ROWS, classes, generator=strategies.seeded(0), dtype=torch.float64)
    y = torch.tensor([0, classes // 2, classes - 1])
    rest = z.scatter(1, y[:, None], -math.inf).logsumexp(1, keepdim=True)
    odds = math.log(PROBABILITY / (1 - PROBABILITY))
    return z.scatter(1, y[:, None], rest + odds).bfloat16(), y


def unsure(z: Tensor) -> Tensor:
    """Other logits of the same shape and dtype, with the same values in every dtype."""
    other = torch.randn(z.shape, generator=strategies.seeded(9)).bfloat16().to(z.dtype)
    return other.masked_fill(z.detach() == -math.inf, -math.inf)


def surer(z: Tensor, y: Tensor) -> Tensor:
    """The same logits with more for the label."""
    more = torch.full_like(y[:, None], 4, dtype=torch.float64)
    return z.detach().double().scatter_add(1, y[:, None], more).bfloat16().to(z.dtype)


def per_row(z: Tensor, value: float) -> Tensor:
    return torch.full(z.shape[:1], value, dtype=z.dtype)


def with_state(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Early learning: what the model said before; float32 is the state's type for bfloat16."""
    state = 0.9 * torch.randn(z.shape, generator=strategies.seeded(9)).softmax(1)
    wide = torch.float64 if z.dtype is torch.float64 else torch.float32
    return z, y, torch.arange(len(y)), state.to(wide)


def with_temperatures(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """ALDR-KL with a temperature per example, in its state's type."""
    wide = torch.float64 if z.dtype is torch.float64 else torch.float32
    return z, y, torch.arange(len(y)), torch.full((len(y),), 10.0, dtype=wide)


def over_parameterized(scale: float) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """``scale``, a power of two, is what u and v have come to."""

    def arguments(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        v = torch.randn(z.shape, generator=strategies.seeded(9)).bfloat16().to(z.dtype)
        return z, y, per_row(z, scale), scale * v

    return arguments


def two_candidates(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """ShrinkMatch: the weak view hesitates between the label and the next class."""
    weak = torch.full_like(z.detach(), -6.0 - math.log(z.shape[1]))
    weak = weak.scatter(1, y[:, None], 2.0).scatter(1, (y[:, None] + 1) % z.shape[1], 1.5)
    return weak.masked_fill(z.detach() == -math.inf, -math.inf), z


def linear_heads(z: Tensor, y: Tensor) -> tuple[Any, ...]:
    """Heads that hand the features on as logits; masked classes have a bias of -inf."""
    same = torch.eye(z.shape[1], dtype=z.dtype)
    bias = torch.zeros_like(same[0]).masked_fill(z.detach()[0] == -math.inf, -math.inf)
    features = z.masked_fill(z.detach() == -math.inf, 0.0)
    return features, same, bias, unsure(features), same, bias, per_row(z, -1.0), y


def plain(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return z, y


@dataclass(frozen=True)
class Probe:
    """One loss with one setting of its parameters.

    Args:
        loss: The function in ``robustcore.losses`` and ``robustcore.reference.losses``.
        setting: A name for it.
        arguments: The positional arguments from the sure logits and their labels.
        options: The other ones.
        vanishes: Numbers of classes for which the loss by its definition has next to no gradient
            for the true class; a relative error would compare roundings. There the error may be
            0.5 % of the gradient of cross-entropy, 1 - p_y.
        reductions: Those of the loss; none if it returns log-probabilities.
        bounded: Whether the loss of logits up to 10000 has a value that float32 can hold.
    """

    loss: str
    setting: str = ""
    arguments: Callable[[Tensor, Tensor], tuple[Any, ...]] = plain
    options: dict[str, Any] = field(default_factory=dict)
    vanishes: tuple[int, ...] = ()
    reductions: tuple[str, ...] = ("none", "sum", "mean")
    bounded: bool = True

    def __str__(self) -> str:
        return f"{self.loss}, {self.setting}" if self.setting else self.loss

    def results(self, module: Any, z: Tensor, y: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        """The loss and its gradient for the logits."""
        leaf = z.clone().requires_grad_()
        function, arguments = getattr(module, self.loss), self.arguments(leaf, y)
        if self.reductions:
            result = function(*arguments, reduction=reduction, **self.options)
        else:
            result = -function(*arguments, **self.options).gather(1, y[:, None])
        return result.detach(), torch.autograd.grad(result.sum(), leaf)[0]


PROBES = [
    # 1 / p_y - 1
    Probe("comp_sum_loss", "tau 0", options={"tau": 0.0}, bounded=False),
    *(Probe("comp_sum_loss", f"tau {t}", options={"tau": t}) for t in (1.0, 1.7, 2.0)),
    Probe("taylor_cross_entropy"),
    Probe("normalized_cross_entropy"),
    Probe("symmetric_cross_entropy"),
    # Of two classes the normalised logits are 1 and -1, whatever the logits.
    Probe("spherical_z_loss", vanishes=(2,)),
    Probe("ldr_kl_loss"),
    Probe("ldr_kl_loss", "lam 10", options={"lam": 10.0}),
    # Likewise: they are divided by their mean size, and here have different signs.
    Probe("aldr_kl_loss", vanishes=(2,)),
    Probe("aldr_kl_loss", "lam 1", options={"lam": 1.0}, vanishes=(2,)),
    Probe(
        "aldr_kl_indexed_loss",
        arguments=with_temperatures,
        options={"update": False},
        vanishes=(2,),
    ),
    Probe("early_learning_loss", arguments=with_state, options={"update": False}),
    Probe("over_parameterized_loss", "u, v as they start", over_parameterized(2.0**-27)),
    # u has learnt the label: p + U leaves it next to nothing to gain.
    Probe("over_parameterized_loss", "u, v learnt", over_parameterized(0.25), vanishes=(2, 10)),
    Probe("gated_cross_entropy", "alone", lambda z, y: (z, unsure(z), per_row(z, -50.0), y)),
    Probe("gated_cross_entropy", "half", lambda z, y: (z, z.detach(), per_row(z, 0.5), y)),
    Probe("gated_cross_entropy", "noise head", lambda z, y: (z.detach(), z, per_row(z, 0.5), y)),
    Probe("linear_gated_cross_entropy", arguments=linear_heads),
    Probe("linear_gated_cross_entropy", "chunks", linear_heads, {"chunk_rows": 2}),
    Probe("mixture_cross_entropy", "first", lambda z, y: (z, unsure(z), per_row(z, -1.0), y)),
    Probe("mixture_cross_entropy", "second", lambda z, y: (unsure(z), z, per_row(z, 1.0), y)),
    Probe(
        "mixture_log_softmax",
        "first",
        lambda z, y: (z, unsure(z), per_row(z, -1.0)),
        reductions=(),
    ),
    Probe(
        "mixture_log_softmax",
        "second",
        lambda z, y: (unsure(z), z, per_row(z, 1.0)),
        reductions=(),
    ),
    Probe("pair_kl_divergence", "natural", lambda z, y: (z, unsure(z))),
    Probe("pair_kl_divergence", "adversarial", lambda z, y: (unsure(z), z)),
    Probe("pair_kl_divergence", "both sure", lambda z, y: (surer(z, y), z)),
    Probe("smooth_adversarial_loss", "natural", lambda z, y: (z, unsure(z), y)),
    Probe("smooth_adversarial_loss", "adversarial", lambda z, y: (unsure(z), z, y)),
    Probe(
        "smooth_adversarial_loss",
        "comp-sum term alone",
        lambda z, y: (z, unsure(z), y),
        {"nu": 0.0},
    ),
    *(
        Probe("energy_weighted_loss", f"{variant}, {name}", arguments, {"variant": variant})
        for variant in ("adversarial", "natural")
        for name, arguments in (
            ("natural logits", lambda z, y: (z, unsure(z), y)),
            ("adversarial logits", lambda z, y: (unsure(z), z, y)),
        )
    ),
    Probe(
        "heteroscedastic_cross_entropy",
        arguments=lambda z, y: (z, None, torch.full_like(z, 0.125).detach(), y),
        options={"samples": 100, "seed": 4},
    ),
    # Of two classes only the label stays, with probability 1.
    Probe("shrink_match_loss", "", two_candidates, vanishes=(2,)),
]

every_probe = pytest.mark.parametrize("probe", PROBES, ids=str)


def test_every_loss_of_labels_is_probed() -> None:
    names = {case.name for case in operators("losses")}
    assert {probe.loss for probe in PROBES} == names - WITHOUT_A_LABEL


@pytest.mark.parametrize("classes", CLASSES)
@every_probe
def test_bfloat16_gradient_of_the_true_class(probe: Probe, classes: int) -> None:
    z, y = sure(classes)
    own = y[:, None]
    probability = z.double().softmax(1).gather(1, own)
    # As near as bfloat16 logits can be.
    assert ((probability - PROBABILITY).abs() <= 5e-5).all()
    for reduction in probe.reductions or ("none",):
        gradient = probe.results(losses, z, y, reduction)[1].double().gather(1, own)
        exact = probe.results(reference.losses, z.double(), y, reduction)[1].gather(1, own)
        if classes in probe.vanishes:
            assert (exact.abs() <= 0.1 * (1 - probability)).all()
            assert ((gradient - exact).abs() <= ERROR * (1 - probability)).all()
        else:
            assert (exact != 0).all()
            worst = float((gradient / exact - 1).abs().max())
            assert worst <= ERROR, f"{reduction}: relative error {worst:.2%}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all classes", "some masked"])
@every_probe
def test_logits_up_to_10000(probe: Probe, masked: bool, dtype: torch.dtype) -> None:
    """Finite, and equal to the reference."""
    z = (20000 * torch.rand(6, 40, generator=strategies.seeded(3)) - 10000).to(dtype)
    # From rows of small to rows of the largest logits.
    z *= torch.tensor([1e-4, 1e-3, 1e-2, 0.1, 1.0, 1.0], dtype=dtype)[:, None]
    z[5, 8], z[5, 9] = 10000.0, -10000.0
    y = torch.tensor([0, 39, 5, 3, 9, 8])
    if masked:
        z[:, 1::3] = -math.inf
    loss, gradient = probe.results(losses, z, y, "none")
    exact, exact_gradient = probe.results(reference.losses, z.double(), y, "none")
    if not probe.bounded:
        held = exact < 1e6
        assert held.any()
        assert (loss[~held] > 0.99e6).all()
        loss, gradient, exact, exact_gradient = (
            t[held] for t in (loss, gradient, exact, exact_gradient)
        )
    assert exact.isfinite().all()
    assert exact_gradient.isfinite().all()
    rtol, atol = (2**-8, 4e-6) if dtype is torch.bfloat16 else (4e-6, 4e-6)
    assert_matches(loss, exact, rtol=rtol, atol=atol)
    assert_matches(gradient, exact_gradient, rtol=rtol, atol=atol)
