"""What losses return beside a number."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["GatedCrossEntropyScores", "NoiseScores", "ShrinkMatchScores"]


class GatedCrossEntropyScores(NamedTuple):
    """The loss, and the scores that separate wrong labels from right ones.

    Attributes:
        loss: As :func:`robustcore.losses.gated_cross_entropy` returns it; differentiable.
        log_probability: ``log softmax(prediction)[target]`` per row, NaN for ignored rows; low
            values mean that the prediction head does not believe the label.
        predicted: ``argmax(prediction)`` per row, int64.
        gate: γ = sigmoid(gate logit) per row; high values mean that the noise head explains
            the label.
    """

    loss: Tensor
    log_probability: Tensor
    predicted: Tensor
    gate: Tensor


class NoiseScores(NamedTuple):
    """Scores of :meth:`robustcore.losses.PiDUAL.noise_scores`, one value per example.

    Attributes:
        log_probability: ``log softmax(prediction)[target]``; low means noisy.
        predicted: Class that the prediction network chooses.
        gate: γ; high means noisy.
    """

    log_probability: Tensor
    predicted: Tensor
    gate: Tensor


class ShrinkMatchScores(NamedTuple):
    """The loss, and what :func:`robustcore.losses.shrink_match_scores` knows about each row.

    Attributes:
        loss: As :func:`robustcore.losses.shrink_match_loss` returns it; differentiable.
        confidence: The largest weak probability, NaN where there is none.
        predicted: Its class, int64: the first of equals, the first NaN where there is one.
        removed: How many classes were removed, int64: 0 for a certain row, C - 1 where no rival
            may stay (the loss is 0 in both cases), -1 for a row of confidence NaN.
    """

    loss: Tensor
    confidence: Tensor
    predicted: Tensor
    removed: Tensor
