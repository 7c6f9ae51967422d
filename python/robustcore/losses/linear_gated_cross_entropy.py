"""Pi-DUAL's gated cross-entropy of two linear heads, without their logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._library import functorch_active, runs_eagerly
from .._reference import wants_reference
from ._arguments import REDUCTIONS, check_class_options, check_class_weight
from ._linear_gated_cross_entropy_arguments import OP, validated
from ._linear_gated_cross_entropy_op import (
    DIFFERENTIABLE,
    forward_operator,
    forward_without_a_graph,
    gradient_in_forward,
    with_gradients_operator,
)

__all__ = ["LinearGatedCrossEntropyLoss", "linear_gated_cross_entropy"]


def linear_gated_cross_entropy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    noise_features: Tensor,
    noise_weight: Tensor,
    noise_bias: Tensor | None,
    gate: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    lse_square_scale: float = 0.0,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    r"""Cross-entropy of two linear heads mixed by one gate per row; no logits of the whole batch.

    .. math::
        \ell_i = v_i \, \mathrm{CE}\big((1 - \gamma_i)(W x_i + b) + \gamma_i (W' x'_i + b'),
        \; y_i\big), \qquad \gamma_i = \sigma(s_i)

    that is :func:`robustcore.losses.gated_cross_entropy` of two :func:`torch.nn.functional.linear`,
    with the same gradients. The rows are taken in chunks: a chunk's logits are computed, turned
    into gradients, and added to the gradients of features, weights and biases before the next
    chunk's overwrite them. For language-model heads, large label sets and dense prediction, where
    two logit tensors and their gradients are what fills the memory.

    Args:
        features: :math:`x`, shape ``(..., D)``, float32, float64, bfloat16 or float16.
            Differentiable, as are the next five.
        weight: :math:`W`, shape ``(C, D)``, dtype of ``features``.
        bias: :math:`b`, shape ``(C,)``, dtype of ``features``; or None.
        noise_features: :math:`x'`, shape ``(..., D')``; may be ``features``.
        noise_weight: :math:`W'`, shape ``(C, D')``.
        noise_bias: :math:`b'`, shape ``(C,)``; or None.
        gate: Gate **logits** :math:`s`, shape ``(...)`` or ``(..., 1)``, any floating dtype.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities, floating, shape ``(..., C)``, a constant.
        class_weight: Class weights, shape ``(C,)``, floating; a constant.
        sample_weight: Weights :math:`v`, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their features are not finite.
        label_smoothing: In ``[0, 1]``.
        temperature: Divides the mixed logits; positive.
        softcap: Bends them before that, :math:`c \tanh(h / c)`; positive, or None.
        lse_square_scale: Adds this times :math:`\mathrm{logsumexp}(h)^2` to the loss of each row,
            before the sample weight.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``, as of
            :func:`robustcore.losses.gated_cross_entropy`.
        chunk_rows: Rows whose logits live at a time. By default as many as fit into 48 MiB, or
            into half the size of the two weights where that is more, counting the logits of both
            heads; their gradients overwrite them. Fewer rows take less memory; below about a
            hundred the matrix products slow down.

    Returns:
        The loss, in the dtype of ``features`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range.
        IndexError: A target is out of range (on CUDA a device-side assertion).
        NotImplementedError: Second derivatives and forward-mode derivatives, which are not offered.

    Numerics: as :func:`robustcore.losses.gated_cross_entropy`. Logits have the dtype of the
    features, as those of a linear layer. For 16-bit inputs the gradients of weights and biases are
    summed over chunks in float32 and rounded once. NaN in a row stays in the results of that row;
    the gradients of weights and biases are sums over rows. Same inputs and ``chunk_rows`` give the
    same bits; so does another number of threads, wherever torch's matrix products do that.

    Under autocast features, weights and biases are cast as for a linear layer.

    Cost: the matrix products of two linear layers and their derivatives, six in all. For scalar
    reductions of float32, float64 and bfloat16 they run in the forward pass; the backward pass
    scales what is ready. ``"none"``, float16 and ``torch.func`` compute the logits again in the
    backward pass: eight products. Memory beside inputs and gradients: one chunk, O(N), and for
    16-bit weights that need a gradient its float32 sum; class probabilities are read where they
    are, a chunk at a time, and one of them is converted where they are not float32 (of float64
    features float64) already.

    Source: the loss is that of Wang et al., Pi-DUAL, arXiv 2310.06600; gradients in the forward
    pass, chunk by chunk, are common practice for heads with many classes (Hsu et al., Liger Kernel,
    arXiv 2410.10989).

    Example:
        >>> import torch
        >>> from robustcore.losses import linear_gated_cross_entropy
        >>> x, target = torch.randn(4, 8), torch.tensor([1, 2, 3, -100])
        >>> weight = torch.zeros(10, 8, requires_grad=True)
        >>> noise_weight = torch.zeros(10, 8, requires_grad=True)
        >>> loss = linear_gated_cross_entropy(
        ...     x, weight, None, x, noise_weight, None, torch.zeros(4), target
        ... )
        >>> loss.backward()
        >>> round(loss.item(), 4), weight.grad.shape
        (2.3026, torch.Size([10, 8]))
    """
    check_class_options(OP, label_smoothing, reduction, temperature, softcap, lse_square_scale)
    a = validated(
        (features, weight, bias, noise_features, noise_weight, noise_bias),
        gate,
        target,
        class_weight,
        sample_weight,
        ignore_index,
        chunk_rows,
    )
    if wants_reference(features):
        from ..reference.losses import linear_gated_cross_entropy as reference

        loss = reference(
            *a.heads,
            a.gate,
            a.target,
            class_weight=a.class_weight,
            sample_weight=a.sample_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            temperature=temperature,
            softcap=softcap,
            lse_square_scale=lse_square_scale,
            reduction=reduction,
        )
    else:
        loss = _loss(
            (
                *a.heads,
                *a[1:5],
                ignore_index,
                label_smoothing,
                temperature,
                0.0 if softcap is None else softcap,
                lse_square_scale,
                REDUCTIONS[reduction],
                chunk_rows or 0,
            ),
            reduction,
        )
    if reduction == "none" and loss.shape != a.shape:
        loss = loss.reshape(a.shape)
    return loss if loss.dtype is a.result_dtype else loss.to(a.result_dtype)


def _loss(arguments: tuple[Any, ...], reduction: str) -> Tensor:
    features = arguments[0]
    needs = [
        tensor is not None and tensor.requires_grad
        for tensor in [arguments[place] for place in DIFFERENTIABLE]
    ]
    builds_a_graph = True in needs and torch.is_grad_enabled()
    compiling = torch.compiler.is_compiling()
    transformed = functorch_active() or features.device.type == "meta"
    # float16 gradients that are divided by N before the loss scale reaches them underflow.
    if builds_a_graph and not (
        transformed or reduction == "none" or features.dtype is torch.float16
    ):
        if compiling:
            return with_gradients_operator(*arguments, needs)[0]
        return gradient_in_forward(*arguments)
    if builds_a_graph or compiling or transformed or not runs_eagerly(features):
        return forward_operator(*arguments)
    return forward_without_a_graph(*arguments)


class LinearGatedCrossEntropyLoss(nn.Module):
    """:func:`linear_gated_cross_entropy` of two :class:`torch.nn.Linear` heads that it takes over.

    Calling it gives the training loss; ``prediction_head(features)`` the logits at test time.

    Args:
        prediction_head: The linear layer whose logits are used at test time.
        noise_head: The linear layer of the noise branch; as many output features.
        class_weight: Class weights, kept as a buffer.
        ignore_index: See :func:`linear_gated_cross_entropy`; so are the others.

    Example:
        >>> import torch
        >>> from robustcore.losses import LinearGatedCrossEntropyLoss
        >>> loss = LinearGatedCrossEntropyLoss(torch.nn.Linear(16, 1000), torch.nn.Linear(8, 1000))
        >>> loss(
        ...     torch.randn(4, 16), torch.randn(4, 8), torch.randn(4), torch.arange(4)
        ... ).backward()
        >>> loss.prediction_head(torch.randn(2, 16)).shape
        torch.Size([2, 1000])
    """

    class_weight: Tensor | None

    def __init__(
        self,
        prediction_head: nn.Linear,
        noise_head: nn.Linear,
        class_weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        softcap: float | None = None,
        lse_square_scale: float = 0.0,
        reduction: str = "mean",
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, head in (("prediction_head", prediction_head), ("noise_head", noise_head)):
            if not isinstance(head, nn.Linear):
                raise TypeError(
                    f"{name}: {argument} must be a torch.nn.Linear, got {type(head).__name__}"
                )
        if noise_head.out_features != prediction_head.out_features:
            raise ValueError(
                f"{name}: noise_head must have {prediction_head.out_features} output features, "
                f"got {noise_head.out_features}"
            )
        check_class_options(
            name, label_smoothing, reduction, temperature, softcap, lse_square_scale
        )
        if class_weight is not None:
            check_class_weight(name, "class_weight", class_weight)
        self.prediction_head = prediction_head
        self.noise_head = noise_head
        self.register_buffer("class_weight", class_weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.temperature = temperature
        self.softcap = softcap
        self.lse_square_scale = lse_square_scale
        self.reduction = reduction
        self.chunk_rows = chunk_rows

    def forward(
        self,
        features: Tensor,
        noise_features: Tensor,
        gate: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return linear_gated_cross_entropy(
            features,
            self.prediction_head.weight,
            self.prediction_head.bias,
            noise_features,
            self.noise_head.weight,
            self.noise_head.bias,
            gate,
            target,
            class_weight=self.class_weight,
            sample_weight=sample_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            temperature=self.temperature,
            softcap=self.softcap,
            lse_square_scale=self.lse_square_scale,
            reduction=self.reduction,
            chunk_rows=self.chunk_rows,
        )

    def extra_repr(self) -> str:
        return (
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"temperature={self.temperature}, softcap={self.softcap}, "
            f"lse_square_scale={self.lse_square_scale}, "
            f"reduction={self.reduction!r}, chunk_rows={self.chunk_rows}"
        )
