"""Sparse over-parameterisation: parameters per example that take up what labels got wrong."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_device, check_shape, check_tensor
from ._arguments import check_real, row_loss_arguments
from ._indexed import ExampleRange, example_range
from ._module import RowLossModule
from ._row_loss import RowLoss, reference_options

__all__ = ["OverParameterizedLoss", "over_parameterized_loss"]

_NAME = "over_parameterized_loss"


def _reference(*raw: Any) -> Tensor:
    from ..reference.losses import over_parameterized_loss as reference

    logits, v, u, _, _, target = raw[:6]
    options = reference_options(raw)
    del options["weight"]
    return reference(logits, target, u, v, **options)


_loss = RowLoss(_NAME, _reference, row_value_gradients=1)


def over_parameterized_loss(
    logits: Tensor,
    target: Tensor,
    u: Tensor,
    v: Tensor,
    *,
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
    r"""Sparse over-parameterisation (SOP): the model's prediction plus a learned label noise.

    .. math::
        U = \min(u^2 y, 1), \quad V = \min(v^2 (1 - y), 1), \quad m = \max(p + U - \mathrm{sg}(V),
        \varepsilon), \quad q = \max(m / \|m\|_1, \varepsilon)

    .. math::
        \ell = -\sum_c y_c \log q_c + \| \mathrm{onehot}(\arg\max z) + U - V - y \|^2

    with :math:`p = \mathrm{softmax}(z)`, the label :math:`y` (one-hot; smoothed; or class
    probabilities), :math:`\varepsilon = 10^{-4}` and parameters :math:`u` (a number) and :math:`v`
    (one per class) of the example that the row is. The logits learn from the first term alone,
    :math:`v` from the second alone, :math:`u` from both. As in :func:`torch.clamp`, a value on a
    bound has its gradient.

    Args:
        logits: Shape ``(..., C)`` (classes in ``dim``), float32, float64, bfloat16 or float16.
            Differentiable.
        target: Class indices in ``[0, C)`` or ``ignore_index``, int64, shape ``(...)``; or class
            probabilities, floating, shape of ``logits``, a constant.
        u: Shape ``(...)``, or with a class dimension of size one; floating. Differentiable.
        v: Shape of ``logits``, floating. Differentiable. Where its dtype is not that of the logits,
            both are converted to the wider one.
        sample_weight: Weights of the rows, shape ``(...)``, floating. Differentiable.
        ignore_index: Rows with this target contribute nothing: loss 0, gradients exactly 0.
        label_smoothing: In ``[0, 1]``; makes :math:`y` a mixture in both terms.
        temperature: Divides the logits; positive.
        softcap: Bends them before that, :math:`c \tanh(z / c)`; positive, or None.
        lse_square_scale: Adds this times :math:`\mathrm{logsumexp}(z)^2` to the loss of each row.
        reduction: ``"none"``, ``"sum"``, or ``"mean"``: divided by the number of rows that are not
            ignored. Sample weights do not enter the denominator.
        dim: Where the classes are. Other than last costs a copy.
        inplace_gradients: Allows the gradients to overwrite ``logits`` and ``v``; see
            :func:`robustcore.losses.gated_cross_entropy`.

    Class weights are not offered, as the label is a distribution here: use
    ``sample_weight=weight[target]``.

    Returns:
        The loss, in the wider dtype of ``logits`` and ``v`` (under autocast float32).

    Raises:
        TypeError: An argument is not a tensor or has an unsupported dtype.
        ValueError: Devices or shapes differ, there are no classes, or an option is out of range.
        IndexError: A target is out of range (CPU). On CUDA this is a device-side assertion.
        NotImplementedError: Forward-mode derivatives, which are not offered.

    Numerics: computed in float32 (float64 for float64). Of equal maxima, :math:`\arg\max` is the
    first. NaN stays in its row. Same inputs give the same bits for any number of threads.

    Cost: reads ``logits`` and ``v``, writes their gradients; for scalar reductions of float32,
    float64 and bfloat16 in eager mode in one pass. Second derivatives are computed by the plain
    PyTorch reference.

    Source: Liu et al., Robust Training under Label Noise by Over-parameterization, arXiv
    2202.14026.

    Example:
        >>> import torch
        >>> from robustcore.losses import over_parameterized_loss
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
        >>> u, v = torch.tensor([0.0, 0.7]), torch.zeros(2, 3)
        >>> target = torch.tensor([1, 1])
        >>> loss = over_parameterized_loss(logits, target, u, v, reduction="none")
        >>> [round(value, 3) for value in loss.tolist()]
        [4.24, 2.176]
    """
    for name, tensor in (("logits", logits), ("u", u), ("v", v)):
        check_tensor(_NAME, name, tensor)
    if logits.dtype is not v.dtype and logits.is_floating_point() and v.is_floating_point():
        dtype = torch.promote_types(logits.dtype, v.dtype)
        logits, v = logits.to(dtype), v.to(dtype)
    return _loss(
        row_loss_arguments(
            _NAME,
            ("logits", logits),
            target,
            second=("v", v),
            row_values=(("u", u),),
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


class OverParameterizedLoss(ExampleRange, RowLossModule):
    r""":func:`over_parameterized_loss` as a module that holds u and v of a data set.

    ``u`` [examples, 1] and ``v`` [examples, C] are parameters, drawn from a normal distribution of
    standard deviation 1e-8. Their gradients are sparse: a batch touches its own rows only, repeated
    examples add up. Give them to plain :class:`torch.optim.SGD` (no momentum, no weight decay),
    apart from the network's optimiser; :meth:`parameter_groups` makes the groups. ``state_dict()``
    names the range of examples, and loading the parameters of another range is an error.

    Args:
        num_examples: Examples of the data set.
        num_classes: Classes.
        start, stop: Range of the examples that this module holds, all of them by default. Indices
            stay those of the whole data set; one outside the range is an IndexError.
        options: As of :func:`over_parameterized_loss`.

    Example:
        >>> import torch
        >>> from robustcore.losses import OverParameterizedLoss
        >>> criterion = OverParameterizedLoss(num_examples=50000, num_classes=10)
        >>> optimizer = torch.optim.SGD(criterion.parameter_groups(lr_u=1.0, lr_v=10.0))
        >>> logits = torch.randn(8, 10, requires_grad=True)
        >>> criterion(logits, torch.arange(8), index=torch.arange(100, 108)).backward()
        >>> criterion.v.grad.is_sparse
        True
        >>> optimizer.step()
    """

    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        *,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        if options.get("weight") is not None:
            raise ValueError(
                "OverParameterizedLoss: weight is not offered; use sample_weight=weight[target]"
            )
        super().__init__(**options)
        name = type(self).__name__
        self.start, self.stop = example_range(name, num_examples, num_classes, start, stop)
        self.num_examples = num_examples
        self.num_classes = num_classes
        count = self.stop - self.start
        self.u = nn.Parameter(torch.empty(count, 1, dtype=torch.float32, device=device))
        self.v = nn.Parameter(torch.empty(count, num_classes, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws ``u`` and ``v`` anew."""
        for parameter in (self.u, self.v):
            nn.init.normal_(parameter, std=1e-8)

    def parameter_groups(self, lr_u: float, lr_v: float) -> list[dict[str, Any]]:
        """Groups for :class:`torch.optim.SGD`, with the learning rates of u and v.

        Published: 1 and 10 for symmetric noise, 0.1 and 100 for asymmetric noise.
        """
        groups = []
        for name, parameter, rate in (("lr_u", self.u, lr_u), ("lr_v", self.v, lr_v)):
            check_real("OverParameterizedLoss", name, rate)
            groups.append({"params": [parameter], "lr": rate, "momentum": 0.0, "weight_decay": 0.0})
        return groups

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        place = self._places(logits, target, index)
        u = F.embedding(place, _table(self.u), sparse=True)
        v = F.embedding(place, _table(self.v), sparse=True)
        if self.dim not in (-1, logits.dim() - 1):
            u, v = u.movedim(-1, self.dim), v.movedim(-1, self.dim)
        options = self.options()
        del options["weight"]
        return over_parameterized_loss(logits, target, u, v, sample_weight=sample_weight, **options)

    def _places(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Rows of u and v; ignored rows get the first one, as their index may be anything."""
        for name, tensor in (("logits", logits), ("target", target), ("index", index)):
            check_tensor("OverParameterizedLoss", name, tensor)
            check_device("OverParameterizedLoss", name, tensor, self.u.device)
        if index.dtype is not torch.int64:
            raise TypeError(
                f"OverParameterizedLoss: index must be int64, got {str(index.dtype)[6:]}"
            )
        if -logits.dim() <= self.dim < logits.dim():
            rows = logits.movedim(self.dim, -1).shape[:-1]
            check_shape("OverParameterizedLoss", "index", index, rows)
        if target.is_floating_point() or target.shape != index.shape:
            ignored = torch.zeros_like(index, dtype=torch.bool)
        else:
            ignored = target == self.ignore_index
        start, stop = self.start, self.stop
        place = index - start if start else index
        # Without examples only the row that stands in for them is valid.
        place = place.masked_fill(ignored, 0) if stop > start else (~ignored).to(torch.int64)
        if index.is_cpu and not torch.compiler.is_compiling() and index.numel():
            low, high = torch.aminmax(place)
            if low < 0 or high >= max(stop - start, 1):
                kept = index[~ignored]
                wrong = int(kept[(kept < start) | (kept >= stop)][0])
                raise IndexError(
                    f"OverParameterizedLoss: index must be in [{start}, {stop}), got {wrong}"
                )
        return place

    def shard(self, start: int, stop: int) -> OverParameterizedLoss:
        """A module with a copy of the parameters of the examples ``[start, stop)`` alone."""
        rows = self.check_shard(start, stop)
        part = type(self)(
            self.num_examples,
            self.num_classes,
            start=start,
            stop=stop,
            device=self.u.device,
            **self.options(),
        )
        for name in ("u", "v"):
            whole = getattr(self, name)
            copy = nn.Parameter(whole.detach()[rows].clone(), whole.requires_grad)
            setattr(part, name, copy)
        return part.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"num_examples={self.num_examples}, num_classes={self.num_classes}, "
            f"start={self.start}, stop={self.stop}, {super().extra_repr()}"
        )


def _table(parameter: Tensor) -> Tensor:
    """The parameter, or a row of zeros where it has none: then all rows of a batch are ignored."""
    return parameter if parameter.shape[0] else parameter.new_zeros(1, parameter.shape[1])
