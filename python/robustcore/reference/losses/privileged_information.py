"""Random privileged information in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

__all__ = ["random_privileged_information"]


def random_privileged_information(
    index: Tensor,
    annotators: int | Tensor | None = None,
    *,
    features: int = 8,
    seed: int | Tensor = 0,
) -> Tensor:
    """Reference of :func:`robustcore.losses.random_privileged_information`, bit for bit."""
    from ..._reference import use_reference
    from ...losses.privileged_information import random_privileged_information as function

    with use_reference():
        return function(index, annotators, features=features, seed=seed)
