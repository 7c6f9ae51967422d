"""Pi-DUAL's gated cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._reference import wants_reference
from ._arguments import row_loss_arguments
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options
from .results import GatedCrossEntropyScores

__all__ = ["GatedCrossEntropyLoss", "gated_cross_entropy", "gated_cross_entropy_scores"]


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import gated_cross_entropy as reference

    prediction, noise, gate, _, _, target = raw[:6]
    return reference(prediction, noise, gate, target, **reference_options(raw))


_loss = RowLoss("gated_cross_entropy", _reference, row_value_gradients=1, scores=True)


def gated_cross_entropy(
    prediction: Tensor,
    noise: Tensor,
    gate: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""Cross-entropy of two logit tensors mixed by one gate per row (Pi-DUAL).

    .. math::
        h_i = (1 - \gamma_i) f_i + \gamma_i \varepsilon_i, \qquad \gamma_i = \sigma(s_i), \qquad
        \ell_i = v_i \, \mathrm{CE}(h_i, y_i)

    with logits :math:`f` of the prediction head, :math:`\varepsilon` of the noise head, gate logits
    :math:`s`, labels :math:`y` and sample weights :math:`v`. With :math:`d = \mathrm{softmax}(h) -
    \mathrm{onehot}(y)` the gradients are :math:`\partial f = (1-\gamma) d`, :math:`\partial
    \varepsilon = \gamma d` and :math:`\partial s = \gamma (1-\gamma) \langle d, \varepsilon - f
    \rangle`. At test time :math:`f` alone is used.

    Args:
        prediction: Logits :math:`f`, shape ``(..., C)`` (classes in ``dim``), float32, float64,
            bfloat16 or float16. Differentiable.
        noise: Logits :math:`\varepsilon`, shape and dtype of ``prediction``. Differentiable.
        gate: Gate **logits** :math:`s`, shape ``(...)``, or with a class dimension of size one;
            any floating dtype. Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities, floating, shape of ``prediction``, a constant.
        weight: Class weights, shape ``(C,)``, floating; a constant.
        sample_weight: Weights :math:`v`, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their logits are not finite.
        label_smoothing: In ``[0, 1]``, as in :func:`torch.nn.functional.cross_entropy`.
        temperature: Divides the mixed logits :math:`h`; positive.
        softcap: Bends them before that, :math:`c \tanh(h / c)`; positive, or None.
        lse_square_scale: Adds this times :math:`\mathrm{logsumexp}(h)^2` to the loss of each row
            (the "z-loss" of language models), before the sample weight.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, which divides as
            :func:`torch.nn.functional.cross_entropy` does: by the sum of ``weight[target]`` over
            the rows that are not ignored, or by the number of rows where ``target`` holds
            probabilities. Sample weights do not enter the denominator.
        dim: Where the classes are. Other than last costs a copy.
        inplace_gradients: Allows the gradients to overwrite ``prediction`` and ``noise`` (those
            that require grad) in the forward pass, which saves their memory. Done for scalar
            reductions in eager mode where the logits are contiguous; their version counters move,
            so that autograd notices anyone who still needs the values.

    Returns:
        The loss, in the dtype of ``prediction`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range;
            ``inplace_gradients`` with a leaf that requires grad.
        IndexError: A target is out of range (CPU; under ``torch.compile`` a RuntimeError). On CUDA
            this is a device-side assertion, as in PyTorch, reported at the next synchronisation.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics: 16-bit inputs are computed in float32, float64 in float64; :math:`1-\gamma` is formed
    as :math:`\sigma(-s)`. A class that one head masks with ``-inf`` is masked in the mixture,
    whatever the gate. NaN (a NaN gate, say) and ``+inf`` make the loss of their own row NaN and no
    other row's gradient. No valid row at all gives NaN for ``"mean"`` and 0 for ``"sum"``, as
    PyTorch. Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits forward and two backward, no temporary of size N·C. For scalar
    reductions of float32, float64 and bfloat16 in eager mode the gradients are written during the
    forward pass, which saves a third of the memory traffic; they live until the backward pass,
    also under activation checkpointing. Second derivatives are computed by the plain PyTorch
    reference, and ``torch.func.vmap`` takes the members of a batch one after another.

    Source: Wang et al., Pi-DUAL: Using Privileged Information to Distinguish Clean from Noisy
    Labels, arXiv 2310.06600.

    Example:
        >>> import torch
        >>> from robustcore.losses import gated_cross_entropy
        >>> f, e = torch.zeros(4, 10, requires_grad=True), torch.zeros(4, 10)
        >>> gate, target = torch.zeros(4), torch.tensor([1, 2, 3, -100])
        >>> loss = gated_cross_entropy(f, e, gate, target)
        >>> loss.backward()
        >>> round(loss.item(), 4), round(f.grad[0, 1].item(), 4)
        (2.3026, -0.15)
    """
    return _loss(
        row_loss_arguments(
            "gated_cross_entropy",
            ("prediction", prediction),
            target,
            second=("noise", noise),
            row_values=(("gate", gate),),
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            temperature=temperature,
            softcap=softcap,
            lse_square_scale=lse_square_scale,
            reduction=reduction,
            dim=dim,
            inplace_gradients=inplace_gradients,
        )
    )


def gated_cross_entropy_scores(
    prediction: Tensor,
    noise: Tensor,
    gate: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> GatedCrossEntropyScores:
    r"""The loss of :func:`gated_cross_entropy`, and scores of wrong labels from the same pass.

    Arguments, errors and numerics as there, except that ``target`` must hold class indices and
    ``inplace_gradients`` changes nothing. The scores are constants for autograd, in float32
    (float64 for float64 logits); ``predicted`` is the first of equal maxima, and the first NaN
    where there is one.

    Returns:
        A :class:`GatedCrossEntropyScores`: ``loss``; ``log_probability``
        (:math:`\log\mathrm{softmax}(f)_y`, NaN for ignored rows); ``predicted``
        (:math:`\arg\max f`); ``gate`` (:math:`\gamma`), the last three of shape ``(...)``.

    Example:
        >>> import torch
        >>> from robustcore.losses import gated_cross_entropy_scores
        >>> f = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> scores = gated_cross_entropy_scores(
        ...     f, torch.zeros(2, 2), torch.zeros(2), torch.tensor([0, 1])
        ... )
        >>> scores.predicted.tolist(), [round(v, 3) for v in scores.log_probability.tolist()]
        ([0, 0], [-0.127, -2.127])
    """
    a = row_loss_arguments(
        "gated_cross_entropy_scores",
        ("prediction", prediction),
        target,
        second=("noise", noise),
        row_values=(("gate", gate),),
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        lse_square_scale=lse_square_scale,
        reduction=reduction,
        dim=dim,
        inplace_gradients=inplace_gradients,
        soft_labels=False,
    )
    if wants_reference(prediction):
        from ..reference.losses import gated_cross_entropy_scores as reference

        loss, *scores = reference(
            a.raw[0], a.raw[1], a.raw[2], a.raw[5], **reference_options(a.raw)
        )
    else:
        loss, *scores = _loss.scores(*a.raw)
        scores.append(torch.sigmoid(a.raw[2].detach()))
    return GatedCrossEntropyScores(
        _loss.finished(loss, a), *(score.reshape(a.shape) for score in scores)
    )


class GatedCrossEntropyLoss(RowLossModule):
    """:func:`gated_cross_entropy` as a module, in the manner of :class:`torch.nn.CrossEntropyLoss`.

    Args:
        weight: Class weights, kept as a buffer.
        ignore_index: See :func:`gated_cross_entropy`; so are the others.

    Example:
        >>> import torch
        >>> from robustcore.losses import GatedCrossEntropyLoss
        >>> criterion = GatedCrossEntropyLoss(label_smoothing=0.1)
        >>> loss = criterion(
        ...     torch.randn(8, 10), torch.randn(8, 10), torch.randn(8), torch.arange(8)
        ... )
    """

    def forward(
        self,
        prediction: Tensor,
        noise: Tensor,
        gate: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return gated_cross_entropy(
            prediction, noise, gate, target, sample_weight=sample_weight, **self.options()
        )

    def scores(
        self,
        prediction: Tensor,
        noise: Tensor,
        gate: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> GatedCrossEntropyScores:
        """:func:`gated_cross_entropy_scores` with this module's options."""
        return gated_cross_entropy_scores(
            prediction, noise, gate, target, sample_weight=sample_weight, **self.options()
        )
