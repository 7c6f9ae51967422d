"""Privileged information: random vectors per example, and the head that reads it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_device, check_int64, check_shape, check_tensor
from .._library import functorch_active
from .._random import counter_normal_operator, seed_tensor
from .._reference import wants_reference

__all__ = ["PrivilegedHead", "random_privileged_information"]

# Keeps these numbers apart from those that other operators make of the same seed.
_STREAM = 0x50726976496E666F
# Their ids are one word of the counter.
_ANNOTATORS = 2**32


def random_privileged_information(
    index: Tensor,
    annotators: int | Tensor | None = None,
    *,
    features: int = 8,
    seed: int | Tensor = 0,
) -> Tensor:
    r"""A fixed vector from :math:`\mathcal N(0, I)` for each (example, annotator): TRAM++.

    Appended to the privileged information, it gives the privileged head something to memorise
    wrong labels with. Nothing is stored: each number is a function of the seed, the example, the
    annotator and the column alone, so the vectors are the same in every epoch, in every process and
    for any batch an example is in, on CPU and CUDA.

    Args:
        index: Which examples, int64, shape ``(...)``: their positions in the training set.
        annotators: None for one vector per example; a number ``A`` for those of the annotators 0 to
            A − 1; or their ids, int64 in ``[0, 2³²)``, shape ``(..., A)``. One vector per example
            is that of annotator 0. Ids are checked in eager mode on CPU; elsewhere their lower 32
            bits count.
        features: Length ``F`` of a vector.
        seed: An int or an int64 tensor of one element.

    Returns:
        float32 of shape ``(..., F)``, or ``(..., A, F)`` with annotators; a constant.

    Raises:
        TypeError: An argument has an unsupported type or dtype.
        ValueError: A shape or device is wrong, a number is negative, or an annotator's id is out
            of range.

    Numerics: Philox4x32 with 7 rounds and the Box-Muller transform in float32, the same bits
    everywhere.

    Cost: O(features) per vector, one pass that writes the result.

    Source: Ortiz-Jimenez et al., When does privileged information explain away label noise?,
    arXiv 2303.01806.

    Example:
        >>> import torch
        >>> from robustcore.losses import random_privileged_information
        >>> vectors = random_privileged_information(torch.tensor([7, 3, 7]), features=4, seed=1)
        >>> vectors.shape, torch.equal(vectors[0], vectors[2])
        (torch.Size([3, 4]), True)
    """
    op = "random_privileged_information"
    check_tensor(op, "index", index)
    if isinstance(annotators, Tensor):
        check_tensor(op, "annotators", annotators)
    elif annotators is not None:
        check_int64(op, "annotators", annotators)
        if not 0 <= annotators <= _ANNOTATORS:
            raise ValueError(f"{op}: annotators must be in [0, {_ANNOTATORS}], got {annotators}")
    check_int64(op, "features", features)
    if seed is None:
        raise TypeError(f"{op}: seed must be an int or a tensor, got None: the vectors are fixed")
    seed = seed_tensor(op, seed, index.device) ^ _STREAM
    if isinstance(annotators, Tensor):
        check_device(op, "annotators", annotators, index.device)
    for name, tensor in (("index", index), ("annotators", annotators)):
        if isinstance(tensor, Tensor) and tensor.dtype is not torch.int64:
            raise TypeError(
                f"{op}: {name} must be of dtype int64, got "
                f"{str(tensor.dtype).removeprefix('torch.')}"
            )
    if features < 0:
        raise ValueError(f"{op}: features must not be negative, got {features}")

    shape = index.shape
    if annotators is None:
        first, second = index, torch.zeros_like(index)
    else:
        if isinstance(annotators, Tensor):
            check_shape(op, "annotators", annotators[..., :0], (*shape, 0))
            _check_ids(op, annotators)
            second = annotators
        else:
            second = torch.arange(annotators, device=index.device).expand(*shape, annotators)
        shape = second.shape
        first = index.unsqueeze(-1).expand(shape)
    first, second = first.reshape(-1), second.reshape(-1)
    if wants_reference(index):
        from ..reference.random import counter_normal

        values = counter_normal(first, second, seed, features)
    else:
        values = counter_normal_operator(first, second, seed, features)
    return values.reshape(*shape, features)


def _check_ids(op: str, annotators: Tensor) -> None:
    """Where it takes no synchronisation."""
    if not annotators.is_cpu or torch.compiler.is_compiling() or functorch_active():
        return
    if annotators.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(annotators))
    if low < 0 or high >= _ANNOTATORS:
        raise ValueError(
            f"{op}: annotators must be in [0, {_ANNOTATORS}), got {low if low < 0 else high}"
        )


class PrivilegedHead(nn.Module):
    r"""The head of TRAM and AFM that sees the privileged information :math:`a`.

    .. math::
        r = \mathrm{relu}(A a), \qquad j = \mathrm{relu}(B [\varphi; r]) + r, \qquad
        \mathrm{logits} = D [\varphi; j]

    Args:
        in_features: Size of the features :math:`\varphi`.
        privileged_features: Size of :math:`a`.
        num_classes: Number of classes.
        width: Of :math:`r` and :math:`j`; 128 is published for CIFAR, 1024 for ImageNet.
        device, dtype: Of the parameters.

    Batch dimensions of features and privileged information broadcast, and what depends on one of
    them is computed once: features ``(B, 1, F)`` and privileged information ``(B, A, P)`` (several
    annotators) or ``(1, M, P)`` (marginalising) give logits ``(B, A, C)`` or ``(B, M, C)``.

    Source: arXiv 2303.01806, appendix.

    Example:
        >>> import torch
        >>> from robustcore.losses import PrivilegedHead
        >>> head = PrivilegedHead(16, 4, 10)
        >>> head(torch.randn(8, 16), torch.randn(8, 4)).shape
        torch.Size([8, 10])
    """

    broadcasts = True  # what TRAM and AFM look for: other heads are given expanded tensors

    def __init__(
        self,
        in_features: int,
        privileged_features: int,
        num_classes: int,
        width: int = 128,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.privileged = nn.Linear(privileged_features, width, **options)
        self.joint = nn.Linear(in_features + width, width, **options)
        self.output = nn.Linear(in_features + width, num_classes, **options)

    def forward(self, features: Tensor, privileged: Tensor) -> Tensor:
        """Logits ``(..., C)`` from features ``(..., F)`` and ``(..., P)``."""
        r = F.relu(self.privileged(privileged))
        j = F.relu(_of_both(self.joint, features, r)) + r
        return _of_both(self.output, features, j)


def _of_both(layer: nn.Linear, left: Tensor, right: Tensor) -> Tensor:
    """The layer of [left; right] without concatenating: their batch dimensions may differ."""
    size = left.shape[-1]
    return F.linear(left, layer.weight[:, :size]) + F.linear(
        right, layer.weight[:, size:], layer.bias
    )
