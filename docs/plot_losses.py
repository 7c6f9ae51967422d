"""Draws docs/images/losses.png: loss and gradient of the one-tensor losses against p_y.

    python docs/plot_losses.py

Ten classes; the label's logit varies, the nine others are 0, so that p_y runs from 0 to 1. The
right panel shows the derivative for the label's logit: how much an example with this p_y counts.
The spherical Z-loss is left out: it depends on the ranks of the other logits, not on p_y.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from robustcore import losses

CLASSES = 10
CURVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy (τ = 1)": lambda z, y: losses.comp_sum_loss(z, y, 1.0, reduction="none"),
    "generalised CE (τ = 1.7)": lambda z, y: losses.comp_sum_loss(z, y, 1.7, reduction="none"),
    "mean absolute error (τ = 2)": lambda z, y: losses.comp_sum_loss(z, y, 2.0, reduction="none"),
    "sum-exponential (τ = 0)": lambda z, y: losses.comp_sum_loss(z, y, 0.0, reduction="none"),
    "Taylor CE (2 terms)": lambda z, y: losses.taylor_cross_entropy(z, y, 2, reduction="none"),
    "symmetric CE": lambda z, y: losses.symmetric_cross_entropy(z, y, reduction="none"),
    "normalised CE": lambda z, y: losses.normalized_cross_entropy(z, y, reduction="none"),
    "LDR-KL (λ = 1)": lambda z, y: losses.ldr_kl_loss(z, y, 1.0, reduction="none"),
}


def curves(points: int = 400) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """p_y, and for each loss its values and its derivatives for the label's logit."""
    label_logit = torch.linspace(-6.0, 10.0, points, dtype=torch.float64)
    target = torch.zeros(points, dtype=torch.int64)
    others = torch.zeros(points, CLASSES - 1, dtype=torch.float64)
    results = {}
    for name, loss in CURVES.items():
        logit = label_logit.clone().requires_grad_()
        value = loss(torch.cat([logit[:, None], others], 1), target)
        (slope,) = torch.autograd.grad(value.sum(), logit)
        results[name] = (value.detach(), slope)
    probability = torch.cat([label_logit[:, None], others], 1).softmax(1)[:, 0]
    return probability, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parent / "images" / "losses.png"
    parser.add_argument("--output", type=Path, default=default)
    output = parser.parse_args().output
    matplotlib.use("Agg")
    from matplotlib import pyplot

    probability, results = curves()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name, (value, slope) in results.items():
        left.plot(probability, value, label=name)
        right.plot(probability, -slope, label=name)
    left.set(title="loss", xlabel="p of the label", ylim=(-0.1, 6))
    right.set(title="− derivative for the label's logit", xlabel="p of the label", ylim=(-0.05, 2))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
