"""Losses for noisy labels in plain PyTorch; :mod:`robustcore.losses` documents the arguments."""

from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores

__all__ = ["gated_cross_entropy", "gated_cross_entropy_scores"]
