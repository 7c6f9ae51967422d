"""Pi-DUAL's gated cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_tensor
from .._library import functorch_active
from .._reference import wants_reference
from ._classification import TwoLogitArguments, check_class_options, two_logit_arguments
from ._gated_cross_entropy_op import forward_operator, gradient_in_forward, scores_operator
from .results import GatedCrossEntropyScores

__all__ = ["GatedCrossEntropyLoss", "gated_cross_entropy", "gated_cross_entropy_scores"]

_NAMES = ("prediction", "noise")


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
    reduction: str = "mean",
    dim: int = -1,
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
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``.
        weight: Class weights, shape ``(C,)``, floating; a constant.
        sample_weight: Weights :math:`v`, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their logits are not finite.
        label_smoothing: In ``[0, 1]``, as in :func:`torch.nn.functional.cross_entropy`.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, which divides as
            :func:`torch.nn.functional.cross_entropy` does: by the sum of ``weight[target]`` over
            the rows that are not ignored. Sample weights do not enter the denominator.
        dim: Where the classes are. Other than last costs a copy.

    Returns:
        The loss, in the dtype of ``prediction`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range.
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
    a = two_logit_arguments(
        "gated_cross_entropy",
        _NAMES,
        prediction,
        noise,
        gate,
        target,
        weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        dim,
    )
    options = (ignore_index, label_smoothing, a.reduction)
    if wants_reference(prediction):
        return _reference(a, ignore_index, label_smoothing, reduction)
    if _pays_in_forward(a):
        loss = gradient_in_forward(*a[:6], *options)
    else:
        loss = forward_operator(*a[:6], *options)[0]
    return _finish(loss, a)


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
    reduction: str = "mean",
    dim: int = -1,
) -> GatedCrossEntropyScores:
    r"""The loss of :func:`gated_cross_entropy`, and scores of wrong labels from the same pass.

    Arguments, errors and numerics as there. The scores are constants for autograd, in float32
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
    a = two_logit_arguments(
        "gated_cross_entropy_scores",
        _NAMES,
        prediction,
        noise,
        gate,
        target,
        weight,
        sample_weight,
        ignore_index,
        label_smoothing,
        reduction,
        dim,
    )
    if wants_reference(prediction):
        from ..reference.losses import gated_cross_entropy_scores as reference

        results = reference(
            *a[:4],
            weight=a.weight,
            sample_weight=a.sample_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            reduction=reduction,
        )
        loss, *scores = results
    else:
        loss, _, _, *scores = scores_operator(*a[:6], ignore_index, label_smoothing, a.reduction)
    return GatedCrossEntropyScores(_finish(loss, a), *(s.reshape(a.shape) for s in scores))


def _pays_in_forward(a: TwoLogitArguments) -> bool:
    """Whether writing the gradients during the forward pass is possible and pays.

    Not for float16: a gradient that is divided by N before the loss scale reaches it underflows.
    """
    return (
        a.reduction != 0
        and (a.first.requires_grad or a.second.requires_grad)
        and a.first.dtype is not torch.float16
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not functorch_active()
        and a.first.device.type != "meta"
    )


def _finish(loss: Tensor, a: TwoLogitArguments) -> Tensor:
    if a.reduction == 0 and loss.shape != a.shape:
        loss = loss.reshape(a.shape)
    return loss if loss.dtype is a.result_dtype else loss.to(a.result_dtype)


def _reference(
    a: TwoLogitArguments, ignore_index: int, label_smoothing: float, reduction: str
) -> Tensor:
    from ..reference.losses import gated_cross_entropy as reference

    loss = reference(
        *a[:4],
        weight=a.weight,
        sample_weight=a.sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    return _finish(loss, a)


class GatedCrossEntropyLoss(nn.Module):
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

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        dim: int = -1,
    ) -> None:
        super().__init__()
        check_class_options("GatedCrossEntropyLoss", label_smoothing, reduction)
        if weight is not None:
            check_tensor("GatedCrossEntropyLoss", "weight", weight)
            if weight.requires_grad:
                raise ValueError("GatedCrossEntropyLoss: weight must not require grad, but does")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.dim = dim

    def forward(
        self,
        prediction: Tensor,
        noise: Tensor,
        gate: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return gated_cross_entropy(
            prediction, noise, gate, target, sample_weight=sample_weight, **self._options()
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
            prediction, noise, gate, target, sample_weight=sample_weight, **self._options()
        )

    def _options(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "reduction": self.reduction,
            "dim": self.dim,
        }

    def extra_repr(self) -> str:
        return (
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"reduction={self.reduction!r}, dim={self.dim}"
        )
