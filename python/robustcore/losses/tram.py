"""TRAM and TRAM++: transfer and marginalise with privileged information."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_int64, check_tensor
from ._arguments import check_real
from .privileged_information import random_privileged_information

__all__ = ["TRAM"]

Criterion = Callable[..., Tensor]


class TRAM(nn.Module):
    r"""Two heads on one backbone, of which only the one with privileged information trains it.

    .. math::
        L = w\, \ell(W\, \mathrm{sg}(\varphi(x)), \tilde y) + \ell'(h(\varphi(x), a), \tilde y)

    The head :math:`h` may explain wrong labels by the privileged information :math:`a` (annotator,
    time, agreement, ...), so the features need not memorise them. At test time :math:`a` is not
    needed: calling the module gives the logits of the other head. With ``random_features`` it is
    TRAM++: a fixed random vector per (example, annotator) is appended to :math:`a`.

    Args:
        backbone: Maps inputs to features ``(B, F)``.
        head: Maps features to logits ``(B, C)``.
        privileged_head: Maps features and privileged information to logits ``(..., C)``, for
            example :class:`robustcore.losses.PrivilegedHead`.
        weight: :math:`w`.
        loss: :math:`\ell`, any ``criterion(logits, target, ...)``: a function or a module, such as
            ``EarlyLearningLoss`` or ``OverParameterizedLoss``. Default: cross-entropy.
        privileged_loss: :math:`\ell'`, likewise. A criterion with a state per example serves one
            head: give each head its own (the same one, taking ``index``, for both is an error).
        random_features: Length of the random vectors of TRAM++; 0 for plain TRAM. The privileged
            head must expect that many more features.
        random_seed: Seed of the random vectors; keep it with the checkpoint.

    Criteria that are modules become submodules: their parameters and states are in ``parameters()``
    and ``state_dict()``.

    Source: TRAM: Collier et al., arXiv 2202.09244; TRAM++ and the combination with SOP:
    Ortiz-Jimenez et al., arXiv 2303.01806.

    Example:
        >>> import torch
        >>> from robustcore.losses import TRAM, PrivilegedHead
        >>> model = TRAM(
        ...     torch.nn.Linear(8, 16), torch.nn.Linear(16, 3), PrivilegedHead(16, 4 + 2, 3),
        ...     random_features=2,
        ... )
        >>> x, privileged = torch.randn(5, 8), torch.randn(5, 4)
        >>> index, target = torch.arange(5), torch.arange(5) % 3
        >>> model.loss(x, privileged, target, index=index).backward()
        >>> model(x).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        privileged_head: nn.Module,
        *,
        weight: float = 1.0,
        loss: Criterion | None = None,
        privileged_loss: Criterion | None = None,
        random_features: int = 0,
        random_seed: int = 0,
    ) -> None:
        super().__init__()
        for name, module in (
            ("backbone", backbone),
            ("head", head),
            ("privileged_head", privileged_head),
        ):
            check_module("TRAM", name, module)
        check_real("TRAM", "weight", weight)
        if not math.isfinite(weight):
            raise ValueError(f"TRAM: weight must be finite, got {weight}")
        check_int64("TRAM", "random_features", random_features)
        check_int64("TRAM", "random_seed", random_seed)
        if random_features < 0:
            raise ValueError(f"TRAM: random_features must not be negative, got {random_features}")
        self.backbone = backbone
        self.head = head
        self.privileged_head = privileged_head
        self.weight = weight
        if loss is not None and loss is privileged_loss and _takes(loss, "index", by_name=True):
            raise ValueError(
                "TRAM: loss and privileged_loss must be two criteria where they keep a state per "
                f"example, got the same {type(loss).__name__}: each head needs its own state"
            )
        self.head_criterion = check_criterion("TRAM", "loss", loss)
        self.privileged_criterion = check_criterion("TRAM", "privileged_loss", privileged_loss)
        self.random_features = random_features
        self.random_seed = random_seed

    def forward(self, x: Any) -> Tensor:
        """Logits of the head without privileged information: what is used at test time."""
        return self.head(self.backbone(x))

    def loss(
        self,
        x: Any,
        privileged: Tensor,
        target: Tensor,
        *,
        index: Tensor | None = None,
        annotators: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The training loss.

        Args:
            x: What the backbone takes, B examples.
            privileged: ``(B, P)``, or ``(B, A, P)`` for several annotators per example.
            target: Labels ``(B,)``, or ``(B, A)``; the pairs are flattened to B·A rows, and
                missing annotators have the criterion's ``ignore_index``.
            index: Positions of the examples in the training set, int64 ``(B,)``: for TRAM++, and
                for criteria that keep a state per example.
            annotators: Ids of the annotators ``(B, A)`` for the random vectors; 0 to A − 1 when
                not given.
            **options: For the criteria, with ``index``: each gets those that its signature names,
                so that it may take ``index`` or not. Tensors of shape ``(B,)`` are repeated for
                the annotators, those of shape ``(B, A)`` flattened.

        Raises:
            TypeError: An option that no criterion takes, or a missing index.
            ValueError: Shapes that do not belong together.
        """
        privileged = self._with_random_features(privileged, target, index, annotators)
        features = self.backbone(x)
        logits = self.head(features.detach())
        with_privileged = read_privileged(self.privileged_head, features, privileged)
        if target.dim() == 2:
            logits = logits.unsqueeze(1).expand(*target.shape, logits.shape[-1])
        if index is not None:
            options = {"index": index, **options}
        criteria = (self.head_criterion, self.privileged_criterion)
        refuse_unknown("TRAM.loss", options, criteria, {"index"} if self.random_features else set())
        plain, explained = (
            apply_criterion(criterion, rows, target, options)
            for criterion, rows in zip(criteria, (logits, with_privileged))
        )
        return self.weight * plain + explained

    def _with_random_features(
        self,
        privileged: Tensor,
        target: Tensor,
        index: Tensor | None,
        annotators: Tensor | None,
    ) -> Tensor:
        check_tensor("TRAM.loss", "privileged", privileged)
        check_tensor("TRAM.loss", "target", target)
        if privileged.shape[:-1] != target.shape:
            raise ValueError(
                f"TRAM.loss: privileged must have shape {(*target.shape, 'P')} for target of shape "
                f"{tuple(target.shape)}, got {tuple(privileged.shape)}"
            )
        if target.dim() not in (1, 2):
            raise ValueError(
                f"TRAM.loss: target must have shape (B,) or (B, A), got {tuple(target.shape)}"
            )
        if not self.random_features:
            return privileged
        if index is None:
            raise TypeError("TRAM.loss: index must be given for random_features, got None")
        given = annotators
        if given is None and target.dim() == 2:
            given = torch.arange(target.shape[1], device=index.device).expand(target.shape)
        vectors = random_privileged_information(
            index, given, features=self.random_features, seed=self.random_seed
        )
        return torch.cat([privileged, vectors.to(privileged)], -1)

    def extra_repr(self) -> str:
        text = f"weight={self.weight}"
        if self.random_features:
            text += f", random_features={self.random_features}, random_seed={self.random_seed}"
        return text


def read_privileged(head: nn.Module, features: Tensor, privileged: Tensor) -> Tensor:
    """The head's logits, with the features repeated where an example has several annotators."""
    if privileged.dim() == features.dim() + 1:
        features = features.unsqueeze(-2)
        if not getattr(head, "broadcasts", False):
            features = features.expand(*privileged.shape[:-1], features.shape[-1])
    return head(features, privileged)


def check_module(op: str, name: str, module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{op}: {name} must be a torch.nn.Module, got {type(module).__name__}")


def check_criterion(op: str, name: str, criterion: Any) -> Criterion:
    if criterion is None:
        return F.cross_entropy
    if not callable(criterion):
        raise TypeError(
            f"{op}: {name} must be a callable (logits, target, ...) -> loss, got "
            f"{type(criterion).__name__}"
        )
    return criterion


def apply_criterion(
    criterion: Criterion, logits: Tensor, target: Tensor, options: dict[str, Any]
) -> Tensor:
    """Calls a criterion with the options that it takes, one row per label."""
    taken = {name: value for name, value in options.items() if _takes(criterion, name)}
    if target.dim() == 2:
        taken = {name: _per_label(value, target.shape) for name, value in taken.items()}
        logits, target = logits.flatten(0, 1), target.flatten()
    return criterion(logits, target, **taken)


def refuse_unknown(
    op: str, options: dict[str, Any], criteria: tuple[Criterion, ...], known: set[str]
) -> None:
    for name in options:
        if name not in known and not any(_takes(criterion, name) for criterion in criteria):
            raise TypeError(f"{op}: no criterion takes an option {name!r}")


def _per_label(value: Any, shape: torch.Size) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape == shape:
        return value.flatten()
    return value.repeat_interleave(shape[1], 0) if value.shape == shape[:1] else value


def _takes(criterion: Criterion, name: str, by_name: bool = False) -> bool:
    function = criterion.forward if isinstance(criterion, nn.Module) else criterion
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin that does not say
        return False
    return name in parameters or any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD and not by_name
        for parameter in parameters.values()
    )
