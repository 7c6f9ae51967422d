"""Early-learning regularisation: a loss that remembers what the model thought of each example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._arguments import check_real, check_switch, row_loss_arguments
from ._indexed import ExampleRange, example_range
from ._module import RowLossModule
from ._row_loss import reference_options
from ._state_loss import IndexedState, StateRowLoss, checked_state

__all__ = ["EarlyLearningLoss", "early_learning_loss"]

_NAME = "early_learning_loss"


def _reference(*raw: Any) -> Tensor:
    """With the rows of the state that the loss is to use."""
    from ..reference.losses.early_learning_loss import loss_of_state

    _beta, strength = raw[8]
    return loss_of_state(raw[0], raw[5], raw[15], strength=strength, **reference_options(raw[:15]))


def _reference_with_state(*raw: Any, state: IndexedState, update: bool) -> Tensor:
    from ..reference.losses import early_learning_loss as reference

    beta, strength = raw[8]
    return reference(
        raw[0],
        raw[5],
        state.index,
        state.state,
        beta=beta,
        strength=strength,
        update=update,
        start=state.first_example,
        **reference_options(raw),
    )


_loss = StateRowLoss(_NAME, _reference, _reference_with_state)


def early_learning_loss(
    logits: Tensor,
    target: Tensor,
    index: Tensor,
    state: Tensor,
    *,
    beta: float = 0.7,
    strength: float = 3.0,
    update: bool = True,
    start: int = 0,
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
    r"""Cross-entropy with early-learning regularisation (ELR); updates ``state`` in the same pass.

    .. math::
        t_i \leftarrow \beta t_i + (1 - \beta) \frac{\tilde p}{\sum_c \tilde p_c}, \qquad
        \ell = v \left( \mathrm{CE}(z, y) + \lambda \log(1 - \langle t_i, \tilde p \rangle) \right)

    with :math:`\tilde p = \mathrm{clamp}(\mathrm{softmax}(z), 10^{-4}, 1 - 10^{-4})` and
    :math:`t_i`, the running mean of the model's predictions for the example that the row is. The
    update comes first and is a constant for gradients: :math:`\partial z = p - e + p \odot (a -
    \langle p, a
    \rangle)` with :math:`a = -\lambda t / (1 - \langle t, \tilde p \rangle)` where :math:`p` is not
    clamped, else 0. The regularisation holds the model to what it predicted before it began to
    memorise wrong labels.

    An example that occurs in several rows of a batch is updated once, by its last row that is not
    ignored, and every row of it uses the result; so the outcome is the same in every run and on
    every device. Ignored rows write nothing, nor do rows whose probabilities are not finite.
    Inside a backward pass (activation checkpointing that computes the forward pass again) nothing
    is updated, so a training step updates once.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities, floating, shape of ``logits``, a constant. The label enters the
            cross-entropy only.
        index: Which example each row is, int64, shape ``(...)``, in ``[start, start + E)``; of
            ignored rows anything.
        state: :math:`t`, shape ``(E, C)``, contiguous, zero before training; float32, or float64
            for float64 logits. Changed in place.
        beta: :math:`\beta` in ``[0, 1]``. Published: 0.7 (CIFAR-10, symmetric noise), 0.9
            (CIFAR-10 asymmetric, CIFAR-100).
        strength: :math:`\lambda`, not negative. Published: 3 (CIFAR-10, symmetric), 1
            (asymmetric), 7 (CIFAR-100).
        update: Whether to update ``state``; False for evaluation: the loss then uses it as it is.
        start: Number of the example in the first row of ``state``, for a state that is a part
            of the data set's.
        weight: Class weights of the cross-entropy, shape ``(C,)``, floating; a constant.
        sample_weight: Weights :math:`v` of the rows, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0.
        label_smoothing: Of the cross-entropy, in ``[0, 1]``.
        temperature: Divides the logits, for both terms; positive.
        softcap: Bends them before that, :math:`c \tanh(z / c)`; positive, or None.
        lse_square_scale: Adds this times :math:`\mathrm{logsumexp}(z)^2` to the loss of each row.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``, which divides as
            :func:`torch.nn.functional.cross_entropy` does (with ``weight``: by the sum of
            ``weight[target]``, the regularisation too).
        dim: Where the classes are. Other than last costs a copy.
        inplace_gradients: Allows the gradient to overwrite ``logits``; see
            :func:`robustcore.losses.comp_sum_loss`.

    Returns:
        The loss, in the dtype of ``logits`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, or an option is out of range.
        IndexError: A target or an index is out of range (CPU, before anything is written; under
            ``torch.compile`` a RuntimeError). On CUDA this is a device-side assertion.
        NotImplementedError: Forward-mode derivatives; ``update=True`` inside ``torch.func``
            transforms.

    Numerics: 16-bit logits are computed in float32. :math:`1 - \langle t, \tilde p \rangle` is at
    least about 1e-4 and has the absolute error of a float32 sum near 1, about 1e-7. Same inputs
    give the same bits for any number of threads.

    Cost: reads the logits and the rows of the state, writes those rows and, for scalar reductions
    of float32, float64 and bfloat16 in eager mode, the gradient, all in one pass. Otherwise (no
    reduction, float16, ``torch.compile``) the state rows that were used are kept for the backward
    pass, one matrix of N·C. A second derivative, and a second backward pass through a graph that
    was not kept by ``retain_graph=True``, need the state unchanged since the forward pass;
    autograd raises otherwise.

    Source: Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels,
    arXiv 2007.00151.

    Example:
        >>> import torch
        >>> from robustcore.losses import early_learning_loss
        >>> state = torch.zeros(100, 4)
        >>> logits = torch.zeros(2, 4, requires_grad=True)
        >>> loss = early_learning_loss(logits, torch.tensor([0, 3]), torch.tensor([7, 8]), state)
        >>> loss.backward()
        >>> round(loss.item(), 4), [round(value, 3) for value in state[7].tolist()]
        (1.1524, [0.075, 0.075, 0.075, 0.075])
    """
    _check_options(_NAME, beta, strength)
    check_switch(_NAME, "update", update)
    arguments = row_loss_arguments(
        _NAME,
        ("logits", logits),
        target,
        parameters=(float(beta), float(strength)),
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
    return _loss(arguments, checked_state(_NAME, state, index, start, arguments), update)


def _check_options(op: str, beta: float, strength: float) -> None:
    check_real(op, "beta", beta)
    check_real(op, "strength", strength)
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"{op}: beta must be in [0, 1], got {beta}")
    if not 0.0 <= strength < float("inf"):
        raise ValueError(f"{op}: strength must be finite and not negative, got {strength}")


class EarlyLearningLoss(ExampleRange, RowLossModule):
    """:func:`early_learning_loss` as a module that keeps the state of a data set.

    ``state`` is a buffer: it goes into ``state_dict()`` and moves with the module. It stays in
    float32 where the module is converted to a 16-bit type. In ``eval()`` mode it is not updated; in
    training mode it is, also under :func:`torch.no_grad` and :func:`torch.inference_mode`: call
    ``eval()`` to measure a loss. ``state_dict()`` names the range of examples, and loading the
    state of another range is an error.

    Args:
        num_examples: Examples of the data set.
        num_classes: Classes.
        beta, strength: See :func:`early_learning_loss`.
        start, stop: Range of the examples that this module holds, all of them by default: a data
            set that is split between processes needs only its own part in each. Indices stay those
            of the whole data set; one outside the range is an IndexError.
        weight: Class weights, kept as a buffer.
        options: As of :func:`early_learning_loss`.

    Example:
        >>> import torch
        >>> from robustcore.losses import EarlyLearningLoss
        >>> criterion = EarlyLearningLoss(num_examples=50000, num_classes=10)
        >>> logits = torch.randn(8, 10, requires_grad=True)
        >>> loss = criterion(logits, torch.arange(8), index=torch.arange(100, 108))
        >>> loss.backward()
        >>> int((criterion.state.sum(1) > 0).sum())
        8
        >>> second_half = criterion.shard(25000, 50000)
        >>> tuple(second_half.state.shape)
        (25000, 10)
    """

    state: Tensor

    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        beta: float = 0.7,
        strength: float = 3.0,
        weight: Tensor | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(weight, **options)
        name = type(self).__name__
        _check_options(name, beta, strength)
        self.start, self.stop = example_range(name, num_examples, num_classes, start, stop)
        self.num_examples = num_examples
        self.num_classes = num_classes
        self.beta = beta
        self.strength = strength
        shape = (self.stop - self.start, num_classes)
        self.register_buffer("state", torch.zeros(shape, dtype=torch.float32, device=device))

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return early_learning_loss(
            logits,
            target,
            index,
            self.state,
            beta=self.beta,
            strength=self.strength,
            update=self.training,
            start=self.start,
            sample_weight=sample_weight,
            **self.options(),
        )

    def shard(self, start: int, stop: int) -> EarlyLearningLoss:
        """A module with a copy of the state of the examples ``[start, stop)`` alone."""
        rows = self.check_shard(start, stop)
        part = type(self)(
            self.num_examples,
            self.num_classes,
            self.beta,
            self.strength,
            start=start,
            stop=stop,
            device=self.state.device,
            **self.options(),
        )
        part.state = self.state[rows].clone()
        return part.train(self.training)

    def _apply(self, function: Any, recurse: bool = True) -> EarlyLearningLoss:
        before = self.state
        super()._apply(function, recurse)
        if self.state.dtype not in (torch.float32, torch.float64):
            # Moments of probabilities need float32; the conversion was meant for the network.
            self.state = before.to(self.state.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"num_examples={self.num_examples}, num_classes={self.num_classes}, beta={self.beta}, "
            f"strength={self.strength}, start={self.start}, stop={self.stop}, "
            f"{super().extra_repr()}"
        )
