"""Pi-DUAL's gated cross-entropy of two linear heads, without their logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import (
    accumulate_dtype,
    autocast_enabled,
    check_device,
    check_dtype_of,
    check_floating,
    check_int64,
    check_shape,
    check_tensor,
)
from .._library import functorch_active, runs_eagerly
from .._reference import wants_reference
from ._arguments import (
    REDUCTIONS,
    check_class_options,
    check_class_weight,
    check_soft_target,
)
from ._linear_gated_cross_entropy_op import (
    DIFFERENTIABLE,
    forward_operator,
    forward_without_a_graph,
    gradient_in_forward,
    with_gradients_operator,
)

__all__ = ["LinearGatedCrossEntropyLoss", "linear_gated_cross_entropy"]

_OP = "linear_gated_cross_entropy"
# Features, weight and bias of the prediction head, then of the noise head.
_Heads = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]


class _Arguments(NamedTuple):
    """Validated arguments: matrices and vectors."""

    heads: _Heads
    gate: Tensor
    target: Tensor
    class_weight: Tensor | None
    sample_weight: Tensor | None
    shape: torch.Size  # of the batch, before it was flattened
    result_dtype: torch.dtype


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
    check_class_options(_OP, label_smoothing, reduction, temperature, softcap, lse_square_scale)
    a = _validated(
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


def _validated(
    heads: _Heads,
    gate: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    chunk_rows: int | None,
) -> _Arguments:
    features, weight, bias, noise_features, noise_weight, noise_bias = heads
    check_tensor(_OP, "features", features)
    device, dtype = features.device, features.dtype
    autocast = autocast_enabled(device)
    if (
        autocast
        or dtype not in (torch.float32, torch.float64)
        or chunk_rows is not None
        or type(ignore_index) is not int
        or not _are(dtype, device, (weight, noise_features, noise_weight, gate))
        or not _are(dtype, device, (bias, noise_bias, class_weight, sample_weight), optional=True)
        or not _are(torch.int64, device, (target,))
    ):
        # Not the commonest case, or an error: look at one argument after another.
        _check_one_by_one(
            heads, gate, target, class_weight, sample_weight, ignore_index, chunk_rows, autocast
        )
        if autocast and dtype is not torch.float64:  # a linear layer too leaves float64 alone
            dtype = torch.get_autocast_dtype(device.type)

    soft = target.is_floating_point()
    shape = features.shape[:-1] if soft and features.dim() else target.shape
    _check_shapes(heads, shape)
    if soft:
        check_shape(_OP, "target", target, (*shape, weight.shape[0]))
    if gate.shape != shape:
        if gate.shape != (*shape, 1):
            check_shape(_OP, "gate", gate, shape)
        gate = gate.squeeze(-1)
    if sample_weight is not None:
        check_shape(_OP, "sample_weight", sample_weight, shape)
    if class_weight is not None:
        check_class_weight(_OP, "class_weight", class_weight, device, weight.shape[0])

    compute = accumulate_dtype(dtype)
    gate = _as(compute, gate)
    class_weight = None if class_weight is None else _as(compute, class_weight)
    sample_weight = None if sample_weight is None else _as(compute, sample_weight)
    features, noise_features = _as(dtype, features), _as(dtype, noise_features)
    if len(shape) != 1:
        rows = gate.numel()
        features = features.reshape(rows, weight.shape[1])
        noise_features = noise_features.reshape(rows, noise_weight.shape[1])
        gate = gate.reshape(-1)
        target = target.reshape(rows, weight.shape[0]) if soft else target.reshape(-1)
        sample_weight = None if sample_weight is None else sample_weight.reshape(-1)
    return _Arguments(
        (
            features,
            _as(dtype, weight),
            None if bias is None else _as(dtype, bias),
            noise_features,
            _as(dtype, noise_weight),
            None if noise_bias is None else _as(dtype, noise_bias),
        ),
        gate,
        target,
        class_weight,
        sample_weight,
        shape,
        compute if autocast else dtype,
    )


def _are(
    dtype: torch.dtype, device: torch.device, tensors: tuple[Any, ...], optional: bool = False
) -> bool:
    """Whether these are dense tensors of this dtype on this device."""
    for tensor in tensors:
        if tensor is None and optional:
            continue
        if (
            not isinstance(tensor, Tensor)
            or tensor.dtype is not dtype
            or tensor.layout is not torch.strided
            or tensor.device != device
        ):
            return False
    return True


def _check_one_by_one(
    heads: _Heads,
    gate: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    chunk_rows: int | None,
    autocast: bool,
) -> None:
    """Types, devices and dtypes, in this order."""
    names = ("features", "weight", "bias", "noise_features", "noise_weight", "noise_bias")
    named = [
        *(pair for pair in zip(names, heads) if pair[1] is not None or "bias" not in pair[0]),
        ("gate", gate),
        *((("class_weight", class_weight),) if class_weight is not None else ()),
        *((("sample_weight", sample_weight),) if sample_weight is not None else ()),
    ]
    for name, tensor in (*named, ("target", target)):
        check_tensor(_OP, name, tensor)
    check_int64(_OP, "ignore_index", ignore_index)
    if chunk_rows is not None:
        check_int64(_OP, "chunk_rows", chunk_rows)
        if chunk_rows < 1:
            raise ValueError(f"{_OP}: chunk_rows must be positive or None, got {chunk_rows}")
    features = heads[0]
    for name, tensor in (*named, ("target", target)):
        check_device(_OP, name, tensor, features.device)
    for name, tensor in named:
        check_floating(_OP, name, tensor)
    if target.dtype is not torch.int64:
        check_soft_target(_OP, target)
    for name, head in zip(names, heads):
        if head is not None and not autocast:
            check_dtype_of(_OP, name, head, "features", features.dtype)


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _check_shapes(heads: _Heads, shape: torch.Size) -> None:
    features, weight, bias, noise_features, noise_weight, noise_bias = heads
    _check_head("", features, weight, shape)
    classes = weight.shape[0]
    if classes == 0:
        raise ValueError(
            f"{_OP}: weight must have at least one class, got shape {tuple(weight.shape)}"
        )
    if bias is not None:
        check_shape(_OP, "bias", bias, (classes,))
    _check_head("noise_", noise_features, noise_weight, shape)
    if noise_weight.shape[0] != classes:
        check_shape(_OP, "noise_weight", noise_weight, (classes, noise_weight.shape[1]))
    if noise_bias is not None:
        check_shape(_OP, "noise_bias", noise_bias, (classes,))


def _check_head(prefix: str, features: Tensor, weight: Tensor, shape: torch.Size) -> None:
    if features.dim() == 0 or features.shape[:-1] != shape:
        raise ValueError(
            f"{_OP}: {prefix}features must have shape ({', '.join((*map(str, shape), 'D'))}) for "
            f"rows of shape {tuple(shape)}, got {tuple(features.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != features.shape[-1]:
        raise ValueError(
            f"{_OP}: {prefix}weight must have shape (C, {features.shape[-1]}), got "
            f"{tuple(weight.shape)}"
        )


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
