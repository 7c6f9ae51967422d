"""One class per method: the loss it trains with and what it predicts with at test time.

Every method trains a classifier that ``setup.classifier`` makes, with the same optimiser, batches
and number of epochs. What differs is the loss, and what the method knows about a label: nothing
(``ce``, ``gce``, ``sce``, ``ldr``, ``het``), which example it belongs to (``elr``, ``sop``,
``aldr``), or privileged information about it (``tram``, ``afm``, ``pi-dual``); ``tram+sop`` both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcore.losses import (
    AFM,
    TRAM,
    ALDRKLLoss,
    EarlyLearningLoss,
    HeteroscedasticHead,
    OverParameterizedLoss,
    PiDUAL,
    PrivilegedHead,
    comp_sum_loss,
    ldr_kl_loss,
    symmetric_cross_entropy,
)

from .networks import Classifier, perceptron


@dataclass(frozen=True)
class Setup:
    """What a method is built from."""

    classifier: Callable[[], Classifier]
    count: int  # of training examples; indices are below it
    classes: int
    agreement: Tensor  # float [N, 4], how many annotators gave this label, one-hot
    random: Tensor  # float [N, R], a fixed random vector per example


class Method(nn.Module):
    """A classifier and the loss it is trained with."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.classifier = setup.classifier()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (or log-probabilities) used at test time; nothing but x is known there."""
        return self.classifier(x)

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        raise NotImplementedError

    def network_parameters(self) -> Iterable[nn.Parameter]:
        """Trained by the optimiser that all methods share."""
        return self.parameters()

    def own_optimizers(self) -> list[torch.optim.Optimizer]:
        """For parameters that are not network weights."""
        return []


class CrossEntropy(Method):
    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return F.cross_entropy(self(x), target)


class GeneralisedCrossEntropy(Method):
    """Comp-sum loss; q of generalised cross-entropy is tau − 1."""

    def __init__(self, setup: Setup, tau: float) -> None:
        super().__init__(setup)
        self.tau = tau

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return comp_sum_loss(self(x), target, tau=self.tau)


class SymmetricCrossEntropy(Method):
    def __init__(self, setup: Setup, alpha: float, beta: float) -> None:
        super().__init__(setup)
        self.alpha, self.beta = alpha, beta

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return symmetric_cross_entropy(self(x), target, alpha=self.alpha, beta=self.beta)


class EarlyLearning(Method):
    def __init__(self, setup: Setup, beta: float, weight: float) -> None:
        super().__init__(setup)
        self.criterion = EarlyLearningLoss(setup.count, setup.classes, beta=beta, strength=weight)

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.criterion(self(x), target, index)


class OverParameterized(Method):
    """SOP: u and v are learned by plain SGD at rates of their own."""

    def __init__(self, setup: Setup, rate_u: float, rate_v: float) -> None:
        super().__init__(setup)
        self.criterion = OverParameterizedLoss(setup.count, setup.classes)
        self.rates = rate_u, rate_v

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.criterion(self(x), target, index)

    def network_parameters(self) -> Iterable[nn.Parameter]:
        return self.classifier.parameters()

    def own_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.criterion.parameter_groups(*self.rates))]


class LabelDistributionRobust(Method):
    def __init__(self, setup: Setup, lambda_: float) -> None:
        super().__init__(setup)
        self.lambda_ = lambda_

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return ldr_kl_loss(self(x), target, self.lambda_)


class AdaptiveLabelDistributionRobust(Method):
    def __init__(self, setup: Setup, lambda0: float) -> None:
        super().__init__(setup)
        self.criterion = ALDRKLLoss(setup.count, lambda0=lambda0)

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.criterion(self(x), target, index)


class Heteroscedastic(Method):
    """HET: the head predicts a distribution of logits, wide where the label is uncertain."""

    def __init__(self, setup: Setup, rank: int, temperature: float, samples: int) -> None:
        super().__init__(setup)
        self.classifier.head = HeteroscedasticHead(
            self.classifier.width, setup.classes, rank, temperature, samples
        )

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.classifier.head.loss(self.classifier.body(x), target)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.head(self.classifier.body(x), seed=0)


def privileged_information(setup: Setup, agreement: bool, random: bool) -> Tensor:
    return torch.cat([setup.agreement] * agreement + [setup.random] * random, 1)


class GatedPrivileged(Method):
    """Pi-DUAL: a second network and a gate explain what the input does not."""

    def __init__(self, setup: Setup, agreement: bool, random: bool, width: int) -> None:
        super().__init__(setup)
        privileged = privileged_information(setup, agreement, random)
        # The seed makes it again: no place in a checkpoint.
        self.register_buffer("privileged", privileged, persistent=False)
        inputs = self.privileged.shape[1]
        self.model = PiDUAL(
            self.classifier,
            perceptron(inputs, width, setup.classes),
            perceptron(inputs, width, 1),
        )

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.model.loss(x, self.privileged[index], target)


class Transferred(Method):
    """TRAM: only the head with privileged information trains the body.

    ``criterion`` is the loss of the other head, the one that predicts.
    """

    def __init__(
        self,
        setup: Setup,
        agreement: bool,
        random: bool,
        width: int,
        criterion: nn.Module | None = None,
    ) -> None:
        super().__init__(setup)
        privileged = privileged_information(setup, agreement, random)
        # The seed makes it again: no place in a checkpoint.
        self.register_buffer("privileged", privileged, persistent=False)
        head = PrivilegedHead(self.classifier.width, privileged.shape[1], setup.classes, width)
        self.model = TRAM(self.classifier.body, self.classifier.head, head, loss=criterion)

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.model.loss(x, self.privileged[index], target)


class TransferredOverParameterized(Transferred):
    """TRAM + SOP: what misleads the head that predicts goes into parameters of the example."""

    def __init__(
        self,
        setup: Setup,
        agreement: bool,
        random: bool,
        width: int,
        rate_u: float,
        rate_v: float,
    ) -> None:
        criterion = OverParameterizedLoss(setup.count, setup.classes)
        super().__init__(setup, agreement, random, width, criterion)
        self.criterion = criterion
        self.rates = rate_u, rate_v

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.model.loss(x, self.privileged[index], target, index=index)

    def network_parameters(self) -> Iterable[nn.Parameter]:
        yield from self.classifier.parameters()
        yield from self.model.privileged_head.parameters()

    def own_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.criterion.parameter_groups(*self.rates))]


class Marginalised(Method):
    """AFM: the head with privileged information predicts, averaged over that of other examples."""

    def __init__(self, setup: Setup, agreement: bool, random: bool, width: int) -> None:
        super().__init__(setup)
        privileged = privileged_information(setup, agreement, random)
        head = PrivilegedHead(self.classifier.width, privileged.shape[1], setup.classes, width)
        self.model = AFM(self.classifier.body, head, draws=16)
        self.model.remember(privileged)

    def loss(self, x: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return self.model.loss(x, self.model.stored[index], target)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Spec:
    """A method as the command line knows it.

    The values are the paper's where it names them, else those that ``--tune`` chose on ``worst``
    labels in the CPU setting (see docs/examples.md); ``grid`` is what it chose from.
    """

    title: str
    build: Callable[..., Method]
    values: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    privileged: str = ""  # what it knows about a label beyond the label

    def candidates(self) -> list[dict[str, Any]]:
        combinations = itertools.product(*self.grid.values())
        return [{**self.values, **dict(zip(self.grid, values))} for values in combinations]


METHODS: dict[str, Spec] = {
    "ce": Spec("cross-entropy", CrossEntropy),
    "gce": Spec(
        "generalised cross-entropy",
        GeneralisedCrossEntropy,
        {"tau": 1.9},
        {"tau": (1.3, 1.5, 1.7, 1.9)},
    ),
    "sce": Spec(
        "symmetric cross-entropy",
        SymmetricCrossEntropy,
        {"alpha": 0.01, "beta": 1.0},
        {"alpha": (0.01, 0.03, 0.1, 0.3)},
    ),
    "elr": Spec(
        "early-learning regularisation",
        EarlyLearning,
        {"beta": 0.7, "weight": 7.0},
        {"beta": (0.7, 0.9), "weight": (1.0, 3.0, 7.0)},
    ),
    "sop": Spec(
        "sparse over-parameterisation",
        OverParameterized,
        {"rate_u": 100.0, "rate_v": 1000.0},
        # The published rates are for ten times as many epochs; this many need higher ones.
        {"rate_u": (1.0, 10.0, 100.0), "rate_v": (10.0, 100.0, 1000.0)},
    ),
    "ldr": Spec(
        "LDR-KL",
        LabelDistributionRobust,
        {"lambda_": 10.0},
        {"lambda_": (0.1, 1.0, 10.0)},
    ),
    "aldr": Spec(
        "ALDR-KL",
        AdaptiveLabelDistributionRobust,
        {"lambda0": 10.0},
        {"lambda0": (1.0, 3.0, 10.0)},
    ),
    "het": Spec(
        "heteroscedastic",
        Heteroscedastic,
        {"rank": 6, "temperature": 3.0, "samples": 1000},
        {"temperature": (0.5, 1.3, 3.0)},
    ),
    "tram": Spec(
        "TRAM",
        partial(Transferred, agreement=True, random=False),
        {"width": 512},
        {"width": (128, 512)},
        privileged="agreement",
    ),
    "tram++": Spec(
        "TRAM++",
        partial(Transferred, agreement=True, random=True),
        {"width": 128},
        {"width": (128, 512)},
        privileged="agreement, random",
    ),
    "tram+sop": Spec(
        "TRAM + SOP",
        partial(TransferredOverParameterized, agreement=True, random=False),
        {"width": 512, "rate_u": 100.0, "rate_v": 1000.0},
        {"rate_u": (1.0, 10.0, 100.0), "rate_v": (10.0, 100.0, 1000.0)},
        privileged="agreement",
    ),
    "afm": Spec(
        "AFM",
        partial(Marginalised, agreement=True, random=False),
        {"width": 512},
        {"width": (128, 512)},
        privileged="agreement",
    ),
    "pi-dual": Spec(
        "Pi-DUAL",
        partial(GatedPrivileged, agreement=True, random=True),
        {"width": 512},
        {"width": (128, 512)},
        privileged="agreement, random",
    ),
    "pi-dual-random": Spec(
        "Pi-DUAL, random PI only",
        partial(GatedPrivileged, agreement=False, random=True),
        {"width": 512},
        {"width": (128, 512)},
        privileged="random",
    ),
}
