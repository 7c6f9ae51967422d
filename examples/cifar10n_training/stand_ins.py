"""Stand-ins in plain PyTorch for losses that robustcore.losses does not have in this version.

Same names, arguments and formulas as there, without options, checks or speed. A method that trains
with one is marked ``stand_in`` in the results.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def symmetric_cross_entropy(logits: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
    """α CE(y, p) + β CE(p, y) with log 0 = log 1e-4."""
    label_probability = logits.softmax(-1).gather(-1, target[:, None])
    reverse = -math.log(1e-4) * (1 - label_probability).mean()
    return alpha * F.cross_entropy(logits, target) + beta * reverse


class EarlyLearningLoss(nn.Module):
    """CE + λ log(1 − ⟨t, p⟩), t a running mean of past predictions per example."""

    def __init__(
        self, num_examples: int, num_classes: int, beta: float = 0.7, weight: float = 3.0
    ) -> None:
        super().__init__()
        self.register_buffer("targets", torch.zeros(num_examples, num_classes))
        self.beta, self.weight = beta, weight

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        p = logits.float().softmax(-1).clamp(1e-4, 1 - 1e-4)
        now = (p / p.sum(-1, keepdim=True)).detach()
        mean = self.beta * self.targets[index] + (1 - self.beta) * now
        self.targets[index] = mean
        return (
            F.cross_entropy(logits, target) + self.weight * torch.log1p(-(mean * p).sum(-1)).mean()
        )


class OverParameterizedLoss(nn.Module):
    """SOP: u² and v² of an example take up what is wrong with its label."""

    def __init__(self, num_examples: int, num_classes: int) -> None:
        super().__init__()
        self.u = nn.Parameter(1e-8 * torch.randn(num_examples, 1))
        self.v = nn.Parameter(1e-8 * torch.randn(num_examples, num_classes))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        p = logits.float().softmax(-1)
        label = F.one_hot(target, p.shape[-1]).to(p.dtype)
        u = (self.u[index].square() * label).clamp(0, 1)
        v = (self.v[index].square() * (1 - label)).clamp(0, 1)
        q = (p + u - v.detach()).clamp_min(1e-4)
        q = (q / q.sum(-1, keepdim=True).clamp_min(1e-4)).clamp(1e-4, 1)
        guess = F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)
        fit = -(label * q.log()).sum(-1)
        return (fit + (guess + u - v - label).square().sum(-1)).mean()


def ldr_kl(logits: Tensor, target: Tensor, lambda_: float, margin: float = 0.1) -> Tensor:
    """λ log mean exp((c(1 − e) + z̃ − z̃_y)/λ), z̃ = C softplus(z) / Σ softplus(z)."""
    classes = logits.shape[-1]
    positive = F.softplus(logits.float())
    scaled = classes * positive / positive.sum(-1, keepdim=True)
    exponents = _against_label(scaled, target, margin) / lambda_
    return lambda_ * (exponents.logsumexp(-1) - math.log(classes)).mean()


class AdaptiveLDRKL(nn.Module):
    """ALDR-KL: the same with a λ per example, large where the prediction is undecided."""

    def __init__(
        self, num_examples: int, lambda0: float = 10.0, alpha: float = 2.0, margin: float = 0.1
    ) -> None:
        super().__init__()
        self.register_buffer("lambdas", torch.full((num_examples,), float(lambda0)))
        self.lambda0, self.alpha, self.margin = lambda0, alpha, margin

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        classes = logits.shape[-1]
        scaled = classes * F.normalize(logits.float(), p=1.0, dim=-1)
        p = F.normalize((scaled / self.lambdas[index, None]).softmax(-1) + 1e-5, p=1.0, dim=-1)
        divergence = (p * (p * classes).log()).sum(-1)
        strength = self.alpha * math.log(classes)
        lambdas = (self.lambda0 * (1 - divergence / strength)).detach()
        self.lambdas[index] = lambdas
        exponents = _against_label(scaled, target, self.margin) / lambdas[:, None]
        loss = lambdas * (exponents.logsumexp(-1) - math.log(classes))
        return (loss - strength / (2 * self.lambda0) * (lambdas - self.lambda0).square()).mean()


def _against_label(scores: Tensor, target: Tensor, margin: float) -> Tensor:
    label = F.one_hot(target, scores.shape[-1]).to(scores.dtype)
    return margin * (1 - label) + scores - scores.gather(-1, target[:, None])
