"""Pi-DUAL: three networks and the gated loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .gated_cross_entropy import gated_cross_entropy, gated_cross_entropy_scores
from .results import NoiseScores

__all__ = ["PiDUAL"]


class PiDUAL(nn.Module):
    r"""Training with privileged information that explains label noise (arXiv 2310.06600).

    Three networks are trained together on :math:`\mathrm{CE}((1-\gamma) f(x) + \gamma
    \varepsilon(a), \tilde y)` with :math:`\gamma = \sigma(s(a))`: whatever the privileged
    information :math:`a` (annotator, time, agreement, a random vector per example) explains better
    than the input goes to the noise network. At test time :math:`a` is not needed: calling the
    module runs the backbone alone.

    Args:
        backbone: Maps inputs to class logits ``(N, C)``.
        noise_network: Maps privileged information to class logits ``(N, C)``.
        gate_network: Maps privileged information to gate logits ``(N,)`` or ``(N, 1)``.

    Example:
        >>> import torch
        >>> from robustcore.losses import PiDUAL
        >>> model = PiDUAL(
        ...     torch.nn.Linear(8, 3), torch.nn.Linear(4, 3), torch.nn.Linear(4, 1)
        ... )
        >>> x, privileged, target = torch.randn(5, 8), torch.randn(5, 4), torch.arange(5) % 3
        >>> model.loss(x, privileged, target).backward()
        >>> model(x).shape
        torch.Size([5, 3])
        >>> model.noise_scores(x, privileged, target).gate.shape
        torch.Size([5])
    """

    def __init__(
        self, backbone: nn.Module, noise_network: nn.Module, gate_network: nn.Module
    ) -> None:
        super().__init__()
        for name, module in (
            ("backbone", backbone),
            ("noise_network", noise_network),
            ("gate_network", gate_network),
        ):
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"PiDUAL: {name} must be a torch.nn.Module, got {type(module).__name__}"
                )
        self.backbone = backbone
        self.noise_network = noise_network
        self.gate_network = gate_network

    def forward(self, x: Any) -> Tensor:
        """Class logits of the backbone: what is used at test time."""
        return self.backbone(x)

    def loss(self, x: Any, privileged: Any, target: Tensor, **options: Any) -> Tensor:
        """The training loss; ``options`` as of :func:`robustcore.losses.gated_cross_entropy`."""
        return gated_cross_entropy(
            self.backbone(x),
            self.noise_network(privileged),
            self.gate_network(privileged),
            target,
            **options,
        )

    @torch.no_grad()
    def noise_scores(self, x: Any, privileged: Any, target: Tensor) -> NoiseScores:
        """Scores of wrong labels, one per example; see :class:`robustcore.losses.NoiseScores`.

        The networks run in the mode they are in: call ``eval()`` first where dropout or batch
        statistics should not take part.
        """
        scores = gated_cross_entropy_scores(
            self.backbone(x),
            self.noise_network(privileged),
            self.gate_network(privileged),
            target,
            reduction="none",
        )
        return NoiseScores(scores.log_probability, scores.predicted, scores.gate)
