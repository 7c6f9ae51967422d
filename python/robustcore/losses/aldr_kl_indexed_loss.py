"""ALDR-KL with a temperature per training example: the training step and its module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._arguments import check_switch, row_loss_arguments
from ._indexed import ExampleRange, example_range
from ._module import RowLossModule
from ._row_loss import reference_options
from ._state_loss import IndexedState, StateRowLoss, checked_state
from .aldr_kl_loss import ABSENT, check_aldr, reference_of
from .ldr_kl_loss import check_margin

__all__ = ["ALDRKLLoss", "aldr_kl_indexed_loss"]

_NAME = "aldr_kl_indexed_loss"


def _reference_with_rows(*raw: Any) -> Tensor:
    """With the temperatures that the rows are to use."""
    *arguments, used = raw
    arguments[2] = used[:, 0]
    return reference_of(*arguments)


def _reference_with_state(*raw: Any, state: IndexedState, update: bool) -> Tensor:
    from ..reference.losses import aldr_kl_indexed_loss as reference

    _, margin, alpha, lambda0 = raw[8]
    return reference(
        raw[0],
        raw[5],
        state.index,
        state.state.squeeze(1),
        margin=margin,
        alpha=alpha,
        lambda0=lambda0,
        update=update,
        start=state.first_example,
        **reference_options(raw, ABSENT),
    )


_loss = StateRowLoss(_NAME, _reference_with_rows, _reference_with_state)


def aldr_kl_indexed_loss(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    lam: Tensor,
    *,
    margin: float = 0.1,
    alpha: float = 2.0,
    lambda0: float = 10.0,
    update: bool = True,
    start: int = 0,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    dim: int = -1,
    inplace_gradients: bool = False,
) -> Tensor:
    r"""A training step of ALDR-KL: new temperatures in ``lam``, then the loss, in one operator.

    .. math::
        \lambda_i \leftarrow \lambda_0 \left(1 - \frac{\mathrm{KL}(q \Vert \mathrm{uniform})}
        {\alpha \log C}\right), \qquad
        \ell(z, y) = \lambda_i \log \frac1C \sum_k
        \exp\frac{c [k \ne y] + \tilde z_k - \tilde z_y}{\lambda_i}
        - \frac{\alpha \log C}{2 \lambda_0} (\lambda_i - \lambda_0)^2

    The same as :func:`aldr_kl_temperature` and then :func:`aldr_kl_loss`, where these functions are
    described; for a :math:`\lambda` per training example, found by its index.

    Where an example comes more than once in a batch, its last row that is not ignored decides the
    update, and all its rows take that temperature. Recomputation during a backward pass (activation
    checkpointing) updates nothing and finds the temperatures of the first pass.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities, floating, shape of ``logits``, a constant.
        index: Which training example each row is, int64, shape ``(...)``.
        lam: :math:`\lambda` of every training example, positive, shape ``(M,)``, contiguous,
            float32 (float64 for float64 logits), updated in place. A constant for gradients. Start
            with ``lambda0``.
        margin: :math:`c`, finite and not negative.
        alpha, lambda0: :math:`\alpha > 1` and :math:`\lambda_0 > 0`.
        update: Whether to update ``lam``; not in evaluation.
        start: The example that ``lam[0]`` belongs to, for a shard of the training set; not
            negative.
        weight: Class weights, shape ``(C,)``, floating; a constant.
        sample_weight: Weights of the rows, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing and update nothing; their index may
            be anything.
        label_smoothing: In ``[0, 1]``.
        reduction: ``"none"`` (shape ``(...)``), ``"sum"``, or ``"mean"``, as of
            :func:`aldr_kl_loss`.
        dim: Where the classes are. Other than last costs a copy.
        inplace_gradients: Allows the gradient to overwrite ``logits``; see :func:`aldr_kl_loss`.

    Returns:
        The loss, in the dtype of ``logits`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range.
        IndexError: A target or an index is out of range (CPU, before anything is written; under
            ``torch.compile`` a RuntimeError). On CUDA this is a device-side assertion.
        NotImplementedError: Forward-mode derivatives; ``update=True`` inside ``torch.func``
            transforms.

    Numerics: as of the two functions. A row that is not finite leaves the temperature as it is.
    Same inputs give the same bits for any number of threads.

    Cost: one pass over the logits, which writes the gradient too for scalar reductions of float32,
    float64 and bfloat16 in eager mode; two exponentials and one logarithm per class. A second
    derivative, and a second backward pass through a graph that was not kept by
    ``retain_graph=True``, need ``lam`` unchanged since the forward pass; autograd raises otherwise.

    Source: arXiv 2112.14869.

    Example:
        >>> import torch
        >>> from robustcore.losses import aldr_kl_indexed_loss
        >>> lam = torch.full((100,), 10.0)
        >>> logits = torch.tensor([[9.0, 0.1, 0.1, -0.1], [1.0, 1.0, 1.0, 1.0]])
        >>> loss = aldr_kl_indexed_loss(logits, torch.tensor([0, 3]), torch.tensor([7, 8]), lam)
        >>> round(loss.item(), 3), [round(value, 2) for value in lam[6:10].tolist()]
        (-1.301, [10.0, 9.94, 10.0, 10.0])
    """
    check_margin(_NAME, margin)
    check_aldr(_NAME, alpha, lambda0)
    check_switch(_NAME, "update", update)
    arguments = row_loss_arguments(
        _NAME,
        ("logits", logits),
        target,
        parameters=(0.0, float(margin), float(alpha), float(lambda0)),
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        dim=dim,
        inplace_gradients=inplace_gradients,
    )
    state = checked_state(_NAME, lam, index, start, arguments, name="lam", scalar=True)
    return _loss(arguments, state, update)


class ALDRKLLoss(ExampleRange, RowLossModule):
    r"""ALDR-KL with a temperature per training example, kept as the buffer ``lam``.

    A call is :func:`aldr_kl_indexed_loss`: in training mode it first updates the temperatures of
    its examples, and then takes the loss with the updated ones; in evaluation mode the temperatures
    stay as they are. Where an example is in the batch twice, its last row decides the update, and
    both rows take that temperature. Rows with ``ignore_index`` write nothing. Recomputation during
    a backward pass (activation checkpointing) updates nothing and finds the temperatures of the
    first pass.

    Args:
        num_examples: Size of the training set.
        alpha, lambda0, margin: As of :func:`aldr_kl_loss`. All temperatures begin at ``lambda0``.
        start, stop: Keep temperatures only for the examples ``[start, stop)``, all by default: a
            shard of the training set. Indices stay those of the whole set.
        weight: Class weights, kept as a buffer.
        options: As of :func:`aldr_kl_loss`.

    In training mode the temperatures are updated under :func:`torch.no_grad` and
    :func:`torch.inference_mode` too: call ``eval()`` to measure a loss.

    The buffer is in ``state_dict``, follows the module between devices, and stays float32 when the
    module is cast. ``state_dict()`` names the range of examples, and loading the temperatures of
    another range is an error.

    Example:
        >>> import torch
        >>> from robustcore.losses import ALDRKLLoss
        >>> criterion = ALDRKLLoss(num_examples=50000)
        >>> logits = torch.randn(8, 10, requires_grad=True)
        >>> loss = criterion(logits, torch.arange(8), index=torch.arange(100, 108))
        >>> loss.backward()
        >>> bool((criterion.lam[100:108] < 10).all())
        True
    """

    absent = ABSENT
    lam: Tensor

    def __init__(
        self,
        num_examples: int,
        alpha: float = 2.0,
        lambda0: float = 10.0,
        margin: float = 0.1,
        *,
        start: int = 0,
        stop: int | None = None,
        weight: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(weight, **options)
        self.start, self.stop = example_range("ALDRKLLoss", num_examples, 1, start, stop)
        self.num_examples = num_examples
        check_aldr("ALDRKLLoss", alpha, lambda0)
        check_margin("ALDRKLLoss", margin)
        self.alpha = alpha
        self.lambda0 = lambda0
        self.margin = margin
        self.register_buffer("lam", torch.full((self.stop - self.start,), float(lambda0)))

    def _apply(self, fn: Any, recurse: bool = True) -> ALDRKLLoss:
        before = self.lam
        super()._apply(fn, recurse)
        if self.lam.dtype != torch.float32:
            self.lam = before.to(self.lam.device)
        return self

    def forward(
        self, logits: Tensor, target: Tensor, index: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            index: Which training example each row is, int64, shape ``(...)``.
        """
        # Temperatures stay float32, which float64 logits want converted.
        wide = isinstance(logits, Tensor) and logits.dtype is torch.float64
        lam = self.lam.double() if wide else self.lam
        loss = aldr_kl_indexed_loss(
            logits,
            target,
            index,
            lam,
            margin=self.margin,
            alpha=self.alpha,
            lambda0=self.lambda0,
            update=self.training,
            start=self.start,
            sample_weight=sample_weight,
            **self.options(),
        )
        if wide and self.training:
            self.lam.copy_(lam)
        return loss

    def shard(self, start: int, stop: int) -> ALDRKLLoss:
        """A module with a copy of the temperatures of the examples ``[start, stop)`` alone."""
        rows = self.check_shard(start, stop)
        part = type(self)(
            self.num_examples,
            self.alpha,
            self.lambda0,
            self.margin,
            start=start,
            stop=stop,
            **self.options(),
        )
        part.lam = self.lam[rows].clone()
        return part.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"num_examples={self.num_examples}, alpha={self.alpha}, lambda0={self.lambda0}, "
            f"margin={self.margin}, start={self.start}, stop={self.stop}, {super().extra_repr()}"
        )
