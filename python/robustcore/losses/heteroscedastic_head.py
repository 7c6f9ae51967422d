"""A classification head whose logits have input-dependent noise."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_int64
from ._heteroscedastic_arguments import check_minimum_probability, check_sampling_options
from .heteroscedastic_cross_entropy import (
    heteroscedastic_cross_entropy,
    heteroscedastic_log_probabilities,
)

__all__ = ["HeteroscedasticHead", "HeteroscedasticLogits"]


class HeteroscedasticLogits(NamedTuple):
    """The distribution of logits that :class:`HeteroscedasticHead` predicts.

    Attributes:
        mean: μ, shape ``(..., C)``.
        low_rank: V, shape ``(..., C, R)``.
        diagonal: d, shape ``(..., C)``, at least 1e-3.
    """

    mean: Tensor
    low_rank: Tensor
    diagonal: Tensor


class HeteroscedasticHead(nn.Module):
    r"""Replaces the last linear layer of a classifier by one with Gaussian noise (HET).

    Three linear layers map features to :math:`\mu`, :math:`V` and :math:`d = \mathrm{softplus}(
    \cdot) + 10^{-3}` of :func:`robustcore.losses.heteroscedastic_cross_entropy`, so that examples
    whose labels are noisy may say so instead of being memorised. Calling the module gives
    log-probabilities (the mean softmax over the samples); ``loss`` trains it.

    Args:
        in_features: Size of the features.
        num_classes: Number of classes C.
        rank: Rank R of the covariance's low-rank part; 6 is published for CIFAR, 15 for ImageNet.
        temperature: τ; 1.3 is published for CIFAR, 1.5 for ImageNet.
        samples: Monte Carlo samples per example, in training and prediction.
        minimum_probability: See :func:`robustcore.losses.heteroscedastic_cross_entropy`.
        bias: Whether the linear layers have biases.
        device, dtype: Of the parameters.

    Source: Collier et al., arXiv 2105.10305.

    Example:
        >>> import torch
        >>> from robustcore.losses import HeteroscedasticHead
        >>> head = HeteroscedasticHead(16, 10, samples=100)
        >>> features, target = torch.randn(8, 16), torch.arange(8)
        >>> head.loss(features, target).backward()
        >>> head(features).exp().sum(-1).allclose(torch.ones(8), atol=1e-4)
        True
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        rank: int = 6,
        temperature: float = 1.3,
        samples: int = 1000,
        *,
        minimum_probability: float = 1e-7,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_sampling_options(name, temperature, samples)
        check_minimum_probability(name, minimum_probability)
        for option, value, least in (
            ("in_features", in_features, 1),
            ("num_classes", num_classes, 1),
            ("rank", rank, 0),
        ):
            check_int64(name, option, value)
            if value < least:
                raise ValueError(f"{name}: {option} must be at least {least}, got {value}")
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.mean = nn.Linear(in_features, num_classes, **options)
        # A linear layer of no outputs cannot be initialised.
        self.low_rank = nn.Linear(in_features, num_classes * rank, **options) if rank else None
        self.diagonal = nn.Linear(in_features, num_classes, **options)
        self.num_classes = num_classes
        self.rank = rank
        self.temperature = temperature
        self.samples = samples
        self.minimum_probability = minimum_probability

    def logits(self, features: Tensor) -> HeteroscedasticLogits:
        """The distribution of the logits, from features of shape ``(..., in_features)``."""
        mean = self.mean(features)
        if self.low_rank is None:
            low_rank = mean.new_empty((*mean.shape, 0))
        else:
            low_rank = self.low_rank(features).reshape(*mean.shape, self.rank)
        return HeteroscedasticLogits(mean, low_rank, F.softplus(self.diagonal(features)) + 1e-3)

    def forward(self, features: Tensor, *, seed: int | Tensor | None = None) -> Tensor:
        """Log-probabilities, shape ``(..., C)``; see
        :func:`robustcore.losses.heteroscedastic_log_probabilities`."""
        return heteroscedastic_log_probabilities(
            *self.logits(features), temperature=self.temperature, samples=self.samples, seed=seed
        )

    def loss(self, features: Tensor, target: Tensor, **options: Any) -> Tensor:
        """The training loss; ``options`` (weights, reduction, seed, ...) as of
        :func:`robustcore.losses.heteroscedastic_cross_entropy`."""
        given = {
            "temperature": self.temperature,
            "samples": self.samples,
            "minimum_probability": self.minimum_probability,
        }
        return heteroscedastic_cross_entropy(*self.logits(features), target, **{**given, **options})

    def extra_repr(self) -> str:
        return (
            f"rank={self.rank}, temperature={self.temperature}, samples={self.samples}, "
            f"minimum_probability={self.minimum_probability}"
        )
