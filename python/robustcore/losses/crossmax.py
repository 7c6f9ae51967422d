"""CrossMax: aggregating the logits of an ensemble so that no member and no class can dominate."""

from __future__ import annotations

from torch import Tensor, nn

from .._checks import check_floating, check_int64, check_tensor
from .._reference import wants_reference
from ._crossmax_op import forward_operator

__all__ = ["CrossMax", "crossmax"]

_MOST_MEMBERS = 32767  # kMostMembers of csrc/losses/crossmax.h


def crossmax(logits: Tensor, k: int = 3, *, ensemble_dim: int = -2, dim: int = -1) -> Tensor:
    r"""Robust aggregation of an ensemble's logits: the k-th largest after two maxima are removed.

    .. math::
        a_{ic} = z_{ic} - \max_{c'} z_{ic'}, \qquad
        b_{ic} = a_{ic} - \max_{i'} a_{i'c}, \qquad
        y_c = \text{$k$-th largest over } i \text{ of } b_{ic}

    for members :math:`i` and classes :math:`c`. The order matters: first each member's maximum over
    the classes is removed, so that no member wins by the scale of its logits, then each class's
    maximum over the members, so that no class wins by one member's enthusiasm; what then decides is
    a class's :math:`k`-th best supporter. All :math:`y_c \le 0`; :math:`k = 1` gives zeros.

    Args:
        logits: Shape ``(..., n, C)``: n members (at most 32767) in ``ensemble_dim``, C classes in
            ``dim``; float32, float64, bfloat16 or float16. Differentiable.
        k: Which of the members decides, from 1 (the largest) to n. The paper takes 3.
        ensemble_dim: Where the members are.
        dim: Where the classes are. Other positions than the last two cost a copy.

    Returns:
        Aggregated logits, shape and dtype of ``logits`` without ``ensemble_dim``.

    Raises:
        TypeError: ``logits`` is not a tensor or has an unsupported dtype, or an option is no int.
        ValueError: A dimension is out of range or used twice, there are no classes, or too many
            members, or k is not in [1, n].
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Derivatives: gradients reach the chosen logit and both maxima that were subtracted from it. Of
    equal logits the first counts, for both maxima as for the k-th largest (as a stable descending
    sort has it): one of the subgradients. Where the k-th largest is the largest itself, the result
    is the constant 0 and the gradient exactly 0. All derivatives of higher order exist and are
    those of a piecewise linear function.

    Numerics: 16-bit inputs are computed in float32 and rounded once. A class that every member
    masks with ``-inf`` stays ``-inf`` (with gradient 0), and so do the logits of a member that
    masks all classes. NaN makes all of its own sample NaN, ``+inf`` its own class; no other
    sample's. Same inputs give the same bits for any number of threads.

    Cost: one read of the logits and O(n k) comparisons per class; saved for the backward pass are
    two 16-bit numbers per class and one index per member, no copy of the logits.

    Source: Fort and Lakshminarayanan, Ensemble everything everywhere: Multi-scale aggregation for
    adversarial robustness, arXiv 2408.05446. A defence must not be judged by gradients through it
    alone: they are sparse, and transferred attacks have been shown to succeed where those fail.

    Example:
        >>> import torch
        >>> from robustcore.losses import crossmax
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [9.0, 1.0, 9.0], [3.0, 4.0, 0.0]])
        >>> crossmax(logits, k=2)
        tensor([ 0., -2., -1.])
    """
    op = "crossmax"
    check_tensor(op, "logits", logits)
    check_int64(op, "k", k)
    check_int64(op, "ensemble_dim", ensemble_dim)
    check_int64(op, "dim", dim)
    check_floating(op, "logits", logits)
    dimensions = logits.dim()
    for name, value in (("ensemble_dim", ensemble_dim), ("dim", dim)):
        if not -dimensions <= value < dimensions:
            raise ValueError(
                f"{op}: {name} must be in [{-dimensions}, {dimensions}) for logits of shape "
                f"{tuple(logits.shape)}, got {value}"
            )
    member_dim, class_dim = ensemble_dim % dimensions, dim % dimensions
    if member_dim == class_dim:
        raise ValueError(
            f"{op}: ensemble_dim and dim must be different dimensions, got {ensemble_dim} and {dim}"
        )
    members, classes = logits.shape[member_dim], logits.shape[class_dim]
    if classes == 0:
        raise ValueError(
            f"{op}: logits must have at least one class, got shape {tuple(logits.shape)}"
        )
    if members > _MOST_MEMBERS:
        raise ValueError(f"{op}: logits must have at most {_MOST_MEMBERS} members, got {members}")
    if not 1 <= k <= members:
        raise ValueError(f"{op}: k must be in [1, {members}] for {members} members, got {k}")

    if wants_reference(logits):
        from ..reference.losses import crossmax as reference

        return reference(logits, k, ensemble_dim=ensemble_dim, dim=dim)
    if (member_dim, class_dim) != (dimensions - 2, dimensions - 1):
        logits = logits.movedim((member_dim, class_dim), (-2, -1))
    batch = logits.shape[:-2]
    result = forward_operator(logits.reshape(-1, members, classes), k)[0]
    if len(batch) != 1:
        result = result.reshape(*batch, classes)
    class_place = class_dim - (member_dim < class_dim)
    return result if class_place == len(batch) else result.movedim(-1, class_place)


class CrossMax(nn.Module):
    """:func:`crossmax` as the last layer of an ensemble.

    Args:
        k: See :func:`crossmax`; so are the others.

    Example:
        >>> import torch
        >>> from robustcore.losses import CrossMax
        >>> heads = [torch.nn.Linear(8, 10) for _ in range(5)]
        >>> aggregate, x = CrossMax(k=3), torch.randn(4, 8)
        >>> aggregate(torch.stack([head(x) for head in heads], dim=1)).shape
        torch.Size([4, 10])
    """

    def __init__(self, k: int = 3, *, ensemble_dim: int = -2, dim: int = -1) -> None:
        super().__init__()
        check_int64("CrossMax", "k", k)
        if k < 1:
            raise ValueError(f"CrossMax: k must be at least 1, got {k}")
        check_int64("CrossMax", "ensemble_dim", ensemble_dim)
        check_int64("CrossMax", "dim", dim)
        self.k = k
        self.ensemble_dim = ensemble_dim
        self.dim = dim

    def forward(self, logits: Tensor) -> Tensor:
        return crossmax(logits, self.k, ensemble_dim=self.ensemble_dim, dim=self.dim)

    def extra_repr(self) -> str:
        return f"k={self.k}, ensemble_dim={self.ensemble_dim}, dim={self.dim}"
