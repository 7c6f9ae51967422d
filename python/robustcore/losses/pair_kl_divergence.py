"""Kullback-Leibler divergence between the predictions of two inputs, row by row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._arguments import row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options

__all__ = ["PairKLDivergence", "pair_kl_divergence"]

_ABSENT = ("weight", "label_smoothing", "softcap", "lse_square_scale")


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import pair_kl_divergence as reference

    natural_logits, adversarial_logits, target = raw[0], raw[1], raw[5]
    return reference(natural_logits, adversarial_logits, target, **reference_options(raw, _ABSENT))


_loss = RowLoss("pair_kl_divergence", _reference)


def pair_kl_divergence(
    natural_logits: Tensor,
    adversarial_logits: Tensor,
    target: Tensor | None = None,
    *,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""KL divergence of the predictions for perturbed inputs from those for natural ones.

    .. math::
        \ell_i = v_i \, \mathrm{KL}(p_i \,\|\, q_i) = v_i \sum_c p_{ic} \log \frac{p_{ic}}{q_{ic}},
        \qquad p = \mathrm{softmax}(z / T), \quad q = \mathrm{softmax}(z' / T)

    with natural logits :math:`z`, adversarial logits :math:`z'` and sample weights :math:`v`: the
    regulariser of TRADES, and with the weights of :func:`energy_weights` that of WEAT. Both sides
    get a gradient, :math:`\partial z' = (q - p) / T` and :math:`\partial z = p \odot (\log(p / q) -
    \mathrm{KL}) / T`; detach ``natural_logits`` for a fixed target distribution.

    Args:
        natural_logits: :math:`z`, shape ``(..., C)`` (classes in ``dim``), float32, float64,
            bfloat16 or float16. Differentiable.
        adversarial_logits: :math:`z'`, shape and dtype of ``natural_logits``. Differentiable.
        target: Class indices, int64, shape ``(...)``, or None. The divergence needs no labels:
            this only says which rows to ignore.
        sample_weight: Weights :math:`v`, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their logits are not finite.
        temperature: :math:`T`, positive. No factor :math:`T^2` is put in front.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, which divides by the
            number of rows that are not ignored (:func:`torch.nn.functional.kl_div` calls that
            ``"batchmean"``). Sample weights do not enter the denominator.
        dim: Where the classes are. Other than last costs a copy.
        inplace_gradients: Allows the gradients to overwrite the logits (those that require grad) in
            the forward pass, which saves their memory. Done for scalar reductions in eager mode
            where the logits are contiguous; their version counters move, so that autograd notices
            anyone who still needs the values.

    Returns:
        The loss, in the dtype of ``natural_logits`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range;
            ``inplace_gradients`` with a leaf that requires grad.
        IndexError: A target is out of range (CPU; under ``torch.compile`` a RuntimeError). On CUDA
            this is a device-side assertion, as in PyTorch, reported at the next synchronisation.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics: 16-bit inputs are computed in float32, float64 in float64. The terms are summed as
    :math:`p (d - 1) + q` with :math:`d = \log(p / q)`, which are never negative, so that close
    distributions do not cancel to a negative or wrong result. A class masked with ``-inf`` in both
    takes no part; one masked in :math:`z'` alone makes the divergence infinite, as it is. NaN stays
    in its row. Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits forward and two backward, or two in all where the gradients are
    written during the forward pass (scalar reductions of float32, float64 and bfloat16 in eager
    mode). No temporary of size N·C. Second derivatives are computed by the plain PyTorch reference.

    Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy,
    arXiv 1901.08573.

    Example:
        >>> import torch
        >>> from robustcore.losses import pair_kl_divergence
        >>> natural = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        >>> adversarial = torch.tensor([[1.0, 0.0], [0.0, 0.0]], requires_grad=True)
        >>> rows = pair_kl_divergence(natural, adversarial, reduction="none")
        >>> rows.sum().backward()
        >>> [round(v, 4) for v in rows.tolist()], round(adversarial.grad[1, 0].item(), 4)
        ([0.0, 0.5023], -0.4526)
    """
    return _loss(
        row_loss_arguments(
            "pair_kl_divergence",
            ("natural_logits", natural_logits),
            target,
            second=("adversarial_logits", adversarial_logits),
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            temperature=temperature,
            reduction=reduction,
            dim=dim,
            inplace_gradients=inplace_gradients,
            soft_labels=False,
            needs_target=False,
        )
    )


class PairKLDivergence(RowLossModule):
    """:func:`pair_kl_divergence` as a module.

    Args:
        temperature: Divides both logits.
        options: As of :func:`pair_kl_divergence`.

    Example:
        >>> import torch
        >>> from robustcore.losses import PairKLDivergence
        >>> criterion = PairKLDivergence(temperature=2.0)
        >>> loss = criterion(torch.randn(8, 10), torch.randn(8, 10))
    """

    absent = _ABSENT

    def __init__(self, temperature: float = 1.0, **options: Any) -> None:
        super().__init__(temperature=temperature, **options)

    def forward(
        self,
        natural_logits: Tensor,
        adversarial_logits: Tensor,
        target: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return pair_kl_divergence(
            natural_logits,
            adversarial_logits,
            target,
            sample_weight=sample_weight,
            **self.options(),
        )
