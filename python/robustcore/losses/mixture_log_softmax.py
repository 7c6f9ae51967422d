"""Log-probabilities of a mixture of two softmaxes (adaptive smoothing)."""

from __future__ import annotations

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
from .._reference import wants_reference
from ._arguments import check_dim
from ._mixture_log_softmax_op import mixture_log_softmax as _operator
from ._scales import Scale, check_scale, scale_argument

__all__ = ["MixtureLogSoftmax", "mixture_log_softmax"]


def mixture_log_softmax(
    logits1: Tensor,
    logits2: Tensor,
    gate: Tensor,
    scale1: Scale = 1.0,
    scale2: Scale = 1.0,
    *,
    dim: int = -1,
) -> Tensor:
    r"""Log-probabilities of two classifiers whose probabilities a gate mixes (adaptive smoothing).

    .. math::
        \log m_i = \log\left((1 - \alpha_i)\,\mathrm{softmax}(s_1 z_{1,i}) +
        \alpha_i\,\mathrm{softmax}(s_2 z_{2,i})\right), \qquad \alpha_i = \sigma(g_i)

    The result is normalised: its exponentials sum to one. For training on labels,
    :func:`mixture_cross_entropy` gives the loss without writing all log-probabilities. With the
    share :math:`w = (1 - \alpha) p_1 / m` of the first classifier in each class and an incoming
    gradient :math:`G`: :math:`\partial z_1 = s_1 (G w - p_1 \langle G, w \rangle)`,
    :math:`\partial z_2 = s_2 (G (1-w) - p_2 \langle G, 1-w \rangle)` and :math:`\partial g =
    (1-\alpha) \langle G, 1-w \rangle - \alpha \langle G, w \rangle`.

    Args:
        logits1: :math:`z_1`, shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or
            float16. Differentiable.
        logits2: :math:`z_2`, shape and dtype of ``logits1``. Differentiable.
        gate: Gate **logits** :math:`g`, shape ``(...)``, or with a class dimension of size one; any
            floating dtype. Differentiable.
        scale1, scale2: :math:`s_1, s_2`, inverse temperatures: positive floats, or floating tensors
            of one number or of one per row, shape ``(...)``, which are differentiable. The values
            of tensors are not checked.
        dim: Where the classes are. Other than last costs copies.

    Returns:
        :math:`\log m`, shape and dtype of ``logits1`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or a scale is out of range.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics: 16-bit inputs are computed in float32 and the result is rounded once. A class that one
    head masks with ``-inf`` has what the other gives it, one that both mask is ``-inf`` and has no
    gradient. NaN stays in its row. Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits and one write; backward the logits and the incoming gradient are
    read and two gradients written. No temporary of size N·C. Second derivatives are computed by the
    plain PyTorch reference.

    Source: Bai, Anderson, Kim and Sojoudi, Improving the Accuracy-Robustness Trade-Off of
    Classifiers via Adaptive Smoothing, arXiv 2301.12554.

    Example:
        >>> import torch
        >>> from robustcore.losses import mixture_log_softmax
        >>> accurate, robust = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> mixed = mixture_log_softmax(accurate, robust, torch.tensor([2.0]), 1.2, 0.5)
        >>> [round(p, 3) for p in mixed.exp()[0].tolist()]
        [0.451, 0.549]
    """
    op = "mixture_log_softmax"
    of_rows1, number1 = scale_argument(op, "scale1", scale1, logits1, dim)
    of_rows2, number2 = scale_argument(op, "scale2", scale2, logits1, dim)
    vectors = {"gate": gate, "scale1": of_rows1, "scale2": of_rows2}
    given = {name: value for name, value in vectors.items() if value is not None}
    check_tensor(op, "logits1", logits1)
    check_tensor(op, "logits2", logits2)
    check_tensor(op, "gate", gate)
    for name, value in given.items():
        check_tensor(op, name, value)
    check_int64(op, "dim", dim)
    for name, value in {"logits2": logits2, **given}.items():
        check_device(op, name, value, logits1.device)
    check_floating(op, "logits1", logits1)
    check_floating(op, "logits2", logits2)
    for name, value in given.items():
        check_floating(op, name, value)
    if autocast_enabled(logits1.device):
        # As torch's log_softmax: float32, unless the inputs are wider.
        dtype = accumulate_dtype(torch.promote_types(logits1.dtype, logits2.dtype))
        logits1, logits2 = logits1.to(dtype), logits2.to(dtype)
    check_dtype_of(op, "logits2", logits2, "logits1", logits1.dtype)
    check_dim(op, dim, "logits1", logits1)
    check_shape(op, "logits2", logits2, logits1.shape)
    z1, z2 = logits1.movedim(dim, -1), logits2.movedim(dim, -1)
    shape, classes = z1.shape[:-1], z1.shape[-1]
    if classes == 0:
        raise ValueError(f"{op}: logits1 must have at least one class, got shape {(*shape, 0)}")
    compute = accumulate_dtype(z1.dtype)
    with_one_class = logits1.narrow(dim, 0, 1).shape
    for name, value in given.items():
        if value.shape != with_one_class:
            check_shape(op, name, value, shape)
        given[name] = value.reshape(-1).to(compute)
    arguments = (
        z1.reshape(-1, classes),
        z2.reshape(-1, classes),
        given["gate"],
        given.get("scale1"),
        given.get("scale2"),
    )
    if wants_reference(logits1):
        from ..reference.losses import mixture_log_softmax as reference

        scales = (
            number if t is None else t for t, number in zip(arguments[3:], (number1, number2))
        )
        mixed = reference(*arguments[:3], *scales)
    else:
        mixed = _operator(*arguments, (number1, number2))
    return mixed.reshape(z1.shape).movedim(-1, dim)


class MixtureLogSoftmax(nn.Module):
    """:func:`mixture_log_softmax` as a module.

    Args:
        scale1, scale2: Numbers, or tensors of one number; a :class:`torch.nn.Parameter` is learned.
        dim: Where the classes are.

    Example:
        >>> import torch
        >>> from robustcore.losses import MixtureLogSoftmax
        >>> mixed = MixtureLogSoftmax(1.2, 0.5)(
        ...     torch.randn(8, 10), torch.randn(8, 10), torch.randn(8)
        ... )
        >>> mixed.shape
        torch.Size([8, 10])
    """

    def __init__(self, scale1: Scale = 1.0, scale2: Scale = 1.0, *, dim: int = -1) -> None:
        super().__init__()
        check_scale("MixtureLogSoftmax", "scale1", scale1)
        check_scale("MixtureLogSoftmax", "scale2", scale2)
        check_int64("MixtureLogSoftmax", "dim", dim)
        self.scale1 = scale1
        self.scale2 = scale2
        self.dim = dim

    def forward(self, logits1: Tensor, logits2: Tensor, gate: Tensor) -> Tensor:
        return mixture_log_softmax(logits1, logits2, gate, self.scale1, self.scale2, dim=self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
