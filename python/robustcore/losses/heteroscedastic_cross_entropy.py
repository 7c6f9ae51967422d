"""Heteroscedastic classification: logits with input-dependent Gaussian noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_device, check_int64, check_shape, check_tensor, dtype_name
from .._library import functorch_active
from .._random import seed_tensor
from .._reference import wants_reference
from ._arguments import REDUCTIONS, check_class_options, check_class_weight, check_row_vector
from ._heteroscedastic_arguments import (
    check_minimum_probability,
    check_sampling_options,
    heteroscedastic_arguments,
)
from ._heteroscedastic_cross_entropy_op import log_probabilities_operator, loss_operator

__all__ = [
    "HeteroscedasticCrossEntropyLoss",
    "heteroscedastic_cross_entropy",
    "heteroscedastic_log_probabilities",
]


def heteroscedastic_cross_entropy(
    mean: Tensor,
    low_rank: Tensor | None,
    diagonal: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    samples: int = 1000,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    minimum_probability: float = 1e-7,
    ignore_index: int = -100,
    reduction: str = "mean",
    dim: int = -1,
    seed: int | Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of the mean softmax of logits with Gaussian noise (HET).

    .. math::
        u_s = \mu + V a_s + d \odot b_s, \qquad
        p = \frac{1}{S} \sum_{s=1}^{S} \mathrm{softmax}(u_s / \tau), \qquad
        \ell = -v\, w_y \log \max(p_y, p_{\min})

    with :math:`a_s \sim \mathcal N(0, I_R)` and :math:`b_s \sim \mathcal N(0, I_C)` per row, class
    weights :math:`w` and sample weights :math:`v`. With :math:`q_s = \mathrm{softmax}(u_s/\tau)`
    the derivative for the logits of a sample is :math:`\partial u_s = \frac{q_{s,y}}{\sum_t
    q_{t,y}} (q_s - \mathrm{onehot}(y)) / \tau`; :math:`\partial\mu`, :math:`\partial V` and
    :math:`\partial d` are its sums over the samples, plain, times :math:`a_s` and times
    :math:`b_s`. One pass over the samples yields the loss and all three.

    Args:
        mean: Logits :math:`\mu`, shape ``(..., C)`` (classes in ``dim``), float32, float64,
            bfloat16 or float16. Differentiable.
        low_rank: Factor :math:`V`, the shape of ``mean`` followed by the rank ``R`` (at most
            1024), floating; None stands for rank 0. Differentiable.
        diagonal: Scales :math:`d`, shape of ``mean``, floating; usually softplus of an output,
            plus 1e-3. Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``.
        temperature: :math:`\tau > 0`.
        samples: :math:`S`, from 1 to 2³⁰.
        weight: Class weights, shape ``(C,)``, floating; a constant.
        sample_weight: Weights :math:`v`, shape ``(...)``, floating. Differentiable.
        minimum_probability: :math:`p_{\min}` in ``[0, 1)``: rows whose label is less probable have
            the loss :math:`-\log p_{\min}` and no gradient, as published. With 0 the loss is
            computed in log space whatever the probability, and its gradient never vanishes.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0, even
            where their inputs are not finite.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, which divides as
            :func:`torch.nn.functional.cross_entropy` does: by the sum of ``weight[target]`` over
            the rows that are not ignored. Sample weights do not enter the denominator.
        dim: Where the classes are, in ``mean``, ``diagonal`` and ``low_rank`` (whose rank is last
            in any case). Other than last costs a copy.
        seed: Which random numbers: an int, an int64 tensor of one element (one on the device may
            change between replays of a CUDA graph), or None, which draws it from PyTorch's default
            CPU generator, so that :func:`torch.manual_seed` fixes it.

    Returns:
        The loss, in the dtype of ``mean`` and ``diagonal`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range.
        IndexError: A target is out of range (CPU; under ``torch.compile`` a RuntimeError). On CUDA
            this is a device-side assertion, as in PyTorch, reported at the next synchronisation.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Random numbers: those of sample ``s`` of row ``n`` (counted over all batch dimensions) are a
    function of the seed, ``n``, ``s`` and the class or column alone: Philox4x32 with 7 rounds, one
    counter per four samples, and the Box-Muller transform in float32. They have the same bits on
    CPU and CUDA, for any number of threads, in the forward and backward pass and for every dtype.

    Numerics: 16-bit inputs are computed in float32, float64 in float64. Probabilities of the label
    are summed relative to the largest, so that none underflows. A class masked with ``-inf`` in
    ``mean`` has probability 0. NaN and ``+inf`` make the loss of their own row NaN and no other
    row's gradient. No valid row at all gives NaN for ``"mean"`` and 0 for ``"sum"``. Same inputs
    and seed give the same bits for any number of threads.

    Cost: O(N·S·C·R) time in one pass, also for the gradients, which are kept from the forward pass
    for the backward pass. Memory O(N·C·R), the size of the inputs; nothing of size N·S·C. Second
    derivatives are computed by the plain PyTorch reference, which needs N·S·C.

    Source: Collier et al., Correlated Input-Dependent Label Noise in Large-Scale Image
    Classification, arXiv 2105.10305; as used in Ortiz-Jimenez et al., arXiv 2303.01806.

    Example:
        >>> import torch
        >>> from robustcore.losses import heteroscedastic_cross_entropy
        >>> mean, low_rank = torch.zeros(4, 10, requires_grad=True), torch.zeros(4, 10, 6)
        >>> diagonal, target = torch.full((4, 10), 1e-3), torch.tensor([1, 2, 3, -100])
        >>> loss = heteroscedastic_cross_entropy(mean, low_rank, diagonal, target, seed=0)
        >>> loss.backward()
        >>> round(loss.item(), 3), round(mean.grad[0, 1].item(), 2)
        (2.303, -0.3)
    """
    op = "heteroscedastic_cross_entropy"
    a = heteroscedastic_arguments(op, mean, low_rank, diagonal, temperature, samples, dim)
    shape = a.shape
    check_tensor(op, "target", target)
    check_int64(op, "ignore_index", ignore_index)
    check_class_options(op, reduction=reduction)
    check_device(op, "target", target, mean.device)
    if target.dtype is not torch.int64:
        raise TypeError(
            f"{op}: target must hold class indices of dtype int64, got {dtype_name(target.dtype)}"
        )
    check_shape(op, "target", target, shape)
    check_minimum_probability(op, minimum_probability)
    compute = a.mean.dtype
    if weight is not None:
        check_class_weight(op, "weight", weight, mean.device, a.mean.shape[-1])
        weight = weight.to(compute)
    if sample_weight is not None:
        check_row_vector(op, "sample_weight", sample_weight, mean.device, shape)
        sample_weight = sample_weight.to(compute)
    seed = seed_tensor(op, seed, mean.device)

    if wants_reference(mean):
        from ..reference.losses import heteroscedastic_cross_entropy as reference

        loss = reference(
            *a[:3],
            target.reshape(-1),
            temperature=temperature,
            samples=samples,
            weight=weight,
            sample_weight=None if sample_weight is None else sample_weight.reshape(-1),
            minimum_probability=minimum_probability,
            ignore_index=ignore_index,
            reduction=reduction,
            seed=seed,
        )
    else:
        tensors = (
            *a[:3],
            target.reshape(-1),
            weight,
            None if sample_weight is None else sample_weight.reshape(-1),
        )
        loss = loss_operator(
            *tensors,
            seed,
            float(temperature),
            samples,
            float(minimum_probability),
            ignore_index,
            REDUCTIONS[reduction],
            _differentiated(tensors),
        )[0]
    if reduction == "none":
        loss = loss.reshape(shape)
    return loss.to(a.result_dtype)


def heteroscedastic_log_probabilities(
    mean: Tensor,
    low_rank: Tensor | None,
    diagonal: Tensor,
    *,
    temperature: float = 1.0,
    samples: int = 1000,
    dim: int = -1,
    seed: int | Tensor | None = None,
) -> Tensor:
    r"""Predictions of a heteroscedastic model: :math:`\log \frac1S \sum_s \mathrm{softmax}(u_s /
    \tau)` of all classes.

    Arguments, random numbers, errors and numerics as :func:`heteroscedastic_cross_entropy`; the
    mean is taken in log space for each class, so that small probabilities keep their precision.

    Returns:
        Log-probabilities of the shape of ``mean``, in its dtype (under autocast float32).

    Cost: O(N·S·C·R) time, O(N·C·R) memory. Meant for test time: gradients exist, but the plain
    PyTorch reference computes them, with N·S·C numbers of memory. For training use
    :func:`heteroscedastic_cross_entropy`.

    Example:
        >>> import torch
        >>> from robustcore.losses import heteroscedastic_log_probabilities
        >>> mean = torch.tensor([[2.0, 0.0]])
        >>> log_p = heteroscedastic_log_probabilities(mean, None, torch.full((1, 2), 3.0), seed=0)
        >>> probability = log_p.exp()[0, 0].item()  # softmax(mean) would be 0.88
        >>> 0.6 < probability < 0.75
        True
    """
    op = "heteroscedastic_log_probabilities"
    a = heteroscedastic_arguments(op, mean, low_rank, diagonal, temperature, samples, dim)
    seed = seed_tensor(op, seed, mean.device)
    if wants_reference(mean):
        from ..reference.losses import heteroscedastic_log_probabilities as reference

        result = reference(*a[:3], temperature=temperature, samples=samples, seed=seed)
    else:
        result = log_probabilities_operator(*a[:3], seed, float(temperature), samples)
    result = result.reshape(*a.shape, a.mean.shape[-1]).movedim(-1, dim)
    return result.to(a.result_dtype)


def _differentiated(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the forward pass should keep gradients. A wrong no costs time, never the result."""
    if functorch_active():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class HeteroscedasticCrossEntropyLoss(nn.Module):
    """:func:`heteroscedastic_cross_entropy` as a module, with a new seed at every call.

    Args:
        weight: Class weights, kept as a buffer.
        temperature: See :func:`heteroscedastic_cross_entropy`; so are the others.

    Example:
        >>> import torch
        >>> from robustcore.losses import HeteroscedasticCrossEntropyLoss
        >>> criterion = HeteroscedasticCrossEntropyLoss(temperature=1.3, samples=100)
        >>> loss = criterion(
        ...     torch.randn(8, 10), torch.randn(8, 10, 6), torch.rand(8, 10), torch.arange(8)
        ... )
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        temperature: float = 1.0,
        samples: int = 1000,
        minimum_probability: float = 1e-7,
        ignore_index: int = -100,
        reduction: str = "mean",
        dim: int = -1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_sampling_options(name, temperature, samples)
        check_minimum_probability(name, minimum_probability)
        check_class_options(name, reduction=reduction)
        if weight is not None:
            check_class_weight(name, "weight", weight)
        self.register_buffer("weight", weight)
        self.temperature = temperature
        self.samples = samples
        self.minimum_probability = minimum_probability
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.dim = dim

    def forward(
        self,
        mean: Tensor,
        low_rank: Tensor | None,
        diagonal: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Tensor:
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "weight",
                "temperature",
                "samples",
                "minimum_probability",
                "ignore_index",
                "reduction",
                "dim",
            )
        }
        return heteroscedastic_cross_entropy(
            mean, low_rank, diagonal, target, sample_weight=sample_weight, seed=seed, **options
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, samples={self.samples}, "
            f"minimum_probability={self.minimum_probability}, ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, dim={self.dim}"
        )
