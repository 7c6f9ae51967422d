"""TALL-masks: which parameters of a merged model belong to which task."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice
from ._operators import implementation
from .packed_masks import PackedMasks
from .state_dict import FlatLayout, Model, matching_tensors, named_models, read_layout
from .task_vectors import widened

__all__ = ["TallMasks", "checked_lambdas", "tall_masks"]

_MAXIMUM_LAMBDAS = 63
_MAXIMUM_CUDA_TASKS = 256


def tall_masks(
    base: Model,
    finetuned: Sequence[Model] | Mapping[str, Model],
    *,
    lambdas: Sequence[float] = (0.2, 0.3, 0.4, 0.5, 0.6),
    merged: Model | None = None,
    comparison: str = "strict",
) -> TallMasks:
    r"""Masks of all tasks for several λ in one pass over the weights (TALL-masks).

    .. math::
        m_t^\lambda = \mathbf 1\{\, |\theta_0 - \theta_t| > |(\theta_0 + \tau_M) - \theta_t|
        \cdot \lambda \,\}, \qquad \tau_M = ((\tau_1 + \tau_2) + \tau_3) + \dots, \qquad
        \tau_t = \theta_t - \theta_0

    evaluated in weight space, in this order of operations and without fused multiply-add, as the
    authors' code does: the bits are part of the contract and the same on every device. Then
    :math:`\theta_0 + m_t \odot \tau_M` reconstructs task t; see :meth:`PackedMasks.apply`.

    A larger λ never keeps what a smaller one drops, so the number of λ that a parameter passes says
    all of it: 3 bits per parameter and task for up to 7 λ.

    Args:
        base: :math:`\theta_0`: a tensor, or a state dict whose floating-point tensors (float32,
            float64, bfloat16, float16, mixed as one likes, all on one device) are P parameters.
            Integer and boolean buffers take no part; they are listed in ``layout.skipped``.
        finetuned: :math:`\theta_t`: a sequence of T models (named "0", "1", ...) or a mapping from
            task names to models, each with the names, shapes, dtypes and device of ``base``.
            On CUDA at most 256.
        lambdas: 1 to 63 distinct values, finite and positive (in float32).
        merged: :math:`\tau_M`, a model of task vector tensors in the dtype of the base or in that
            of computation; by default the sum above (:func:`multi_task_vector`). Whoever needs
            the bits of another order of summation, or TIES, gives it here.
        comparison: ``"strict"`` is the authors' code (>); ``"paper"`` (≥) differs where both sides
            are equal, that is for frozen parameters: strict drops them, paper keeps them.

    Returns:
        A :class:`TallMasks`. It is a constant for autograd: masks have no derivative.

    Raises:
        TypeError: An argument is not a model, or not a sequence or mapping of models.
        ValueError: Models differ from the base (one message lists all differences), there is no
            model, or an option is out of range.

    Numerics: 16-bit weights are converted to float32 before subtracting, float64 is computed in
    float64. A NaN on either side drops the parameter for every λ. The result does not depend on the
    number of threads. The bits are those above unless the processor is told to flush denormal
    numbers to zero (:func:`torch.set_flush_denormal`): differences that small then count as 0.

    Cost: reads (T + 1) P weights once and writes ceil(log2(L + 1)) bits per parameter and task;
    nothing else of size P is allocated, except copies of tensors that are not contiguous.

    Source: Wang et al., Localizing Task Information for Improved Model Merging and Compression,
    arXiv 2405.07813.

    Example:
        >>> import torch
        >>> from robustcore.merging import tall_masks
        >>> base = torch.zeros(4)
        >>> tasks = {"a": torch.tensor([1.0, 0, 1, 0]), "b": torch.tensor([0, 0, 1.0, 1])}
        >>> masks = tall_masks(base, tasks, lambdas=(0.5, 1.5))
        >>> masks.densities
        tensor([[0.5000, 0.2500],
                [0.5000, 0.2500]], dtype=torch.float64)
        >>> masks.select(0.5).unpack("a")
        tensor([ True, False,  True, False])
    """
    op = "tall_masks"
    values = checked_lambdas(op, lambdas)
    check_choice(op, "comparison", comparison, ("strict", "paper"))
    layout, device = read_layout(op, base)
    models = named_models(op, finetuned)
    tensors = _all_tensors(op, layout, device, models, base, merged)
    if device.type == "cuda" and len(models) > _MAXIMUM_CUDA_TASKS:
        raise ValueError(
            f"{op}: finetuned must hold at most {_MAXIMUM_CUDA_TASKS} models on CUDA, "
            f"got {len(models)}"
        )
    origin, vector = tensors.pop("base"), tensors.pop("merged", [])
    rows = [row for model in tensors.values() for row in model]
    ascending = sorted(values)
    if origin:
        codes, counts = implementation(origin[0]).tall_mask_codes(
            origin, rows, vector, len(models), ascending, comparison == "strict"
        )
    else:
        planes = len(values).bit_length()
        codes = torch.zeros((len(models), planes, 0), dtype=torch.int64, device=device)
        counts = torch.zeros((len(models), len(values)), dtype=torch.int64, device=device)
    return TallMasks(codes, counts, values, tuple(models), layout, comparison)


class TallMasks:
    """Masks of T tasks for L values of λ, as :func:`tall_masks` makes them.

    Attributes:
        codes: int64 [T, B, words]: bit ``i`` of word ``w`` of plane ``b`` is bit ``b`` of the
            number of λ that parameter ``64 w + i`` of the flat order passes, B = ceil(log2(L + 1)).
        lambdas: The values of λ, in the order in which they were given.
        tasks: The names of the tasks.
        layout: Keys, shapes and dtypes of the flat order, and the skipped buffers.
        comparison: ``"strict"`` or ``"paper"``.

    Example:
        >>> import torch
        >>> from robustcore.merging import tall_masks
        >>> tasks = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, -1.0, 2.0])]
        >>> masks = tall_masks(torch.zeros(3), tasks, lambdas=(0.5, 0.9))
        >>> [[round(density, 2) for density in task] for task in masks.densities.tolist()]
        [[0.67, 0.67], [0.67, 0.67]]
        >>> masks.select([0.9, 0.5]).unpack(1).tolist()
        [False, True, True]
    """

    def __init__(
        self,
        codes: Tensor,
        counts: Tensor,
        lambdas: tuple[float, ...],
        tasks: tuple[str, ...],
        layout: FlatLayout,
        comparison: str,
    ) -> None:
        self.codes = codes
        self.lambdas = lambdas
        self.tasks = tasks
        self.layout = layout
        self.comparison = comparison
        self._counts = counts  # [T, L], for ascending λ

    def __repr__(self) -> str:
        return (
            f"TallMasks(tasks={len(self.tasks)}, num_parameters={self.num_parameters}, "
            f"lambdas={self.lambdas}, comparison={self.comparison!r}, device={self.codes.device})"
        )

    @property
    def num_parameters(self) -> int:
        """P, the number of parameters of a model."""
        return self.layout.num_parameters

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes."""
        return self.codes.numel() * self.codes.element_size()

    @property
    def densities(self) -> Tensor:
        """The share of parameters that each mask keeps, float64 [T, L]; 0 for an empty model."""
        ranks = [self._rank(value) - 1 for value in self.lambdas]
        counts = self._counts[:, torch.tensor(ranks, device=self._counts.device)]
        return counts.double() / max(1, self.num_parameters)

    def select(self, lambdas: float | Sequence[float] | Mapping[str, float]) -> PackedMasks:
        """The masks of one λ for all tasks, or of one λ per task.

        Args:
            lambdas: A number, a sequence of T numbers, or a mapping from every task name to a
                number. Each must be one of :attr:`lambdas`.

        Raises:
            TypeError: It is none of these.
            ValueError: A λ was not computed, or tasks are missing, unknown or too many.
        """
        op = "TallMasks.select"
        if isinstance(lambdas, Mapping):
            missing = [name for name in self.tasks if name not in lambdas]
            unknown = [name for name in lambdas if name not in self.tasks]
            if missing or unknown:
                raise ValueError(
                    f"{op}: lambdas must name the tasks {list(self.tasks)}, "
                    f"missing {missing}, unknown {unknown}"
                )
            chosen: list[Any] = [lambdas[name] for name in self.tasks]
        elif _is_number(lambdas):
            chosen = [lambdas] * len(self.tasks)
        elif isinstance(lambdas, (Sequence, Tensor)) and not isinstance(lambdas, (str, bytes)):
            chosen = lambdas.tolist() if isinstance(lambdas, Tensor) else list(lambdas)
            if not isinstance(chosen, list) or len(chosen) != len(self.tasks):
                raise ValueError(
                    f"{op}: lambdas must hold one value per task ({len(self.tasks)}), got {lambdas}"
                )
        else:
            raise TypeError(
                f"{op}: lambdas must be a number, a sequence or a mapping, got "
                f"{type(lambdas).__name__}"
            )
        for value in chosen:
            if not _is_number(value):
                raise TypeError(f"{op}: a lambda must be a number, got {type(value).__name__}")
            if _as_float(value) not in self.lambdas:
                raise ValueError(f"{op}: lambda must be one of {self.lambdas}, got {_shown(value)}")
        values = tuple(float(value) for value in chosen)
        words = implementation(self.codes).mask_select(
            self.codes, [self._rank(value) for value in values]
        )
        return PackedMasks(
            words, self.layout, self.tasks, lambdas=values, comparison=self.comparison
        )

    def _rank(self, value: float) -> int:
        """How many λ are at most ``value``: a parameter passes it if its code is that or more."""
        return sum(other <= value for other in self.lambdas)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer or a fraction beyond float64
        return math.inf if value > 0 else -math.inf


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    return str(value)


def checked_lambdas(op: str, lambdas: Sequence[float]) -> tuple[float, ...]:
    if isinstance(lambdas, (str, bytes)) or not isinstance(lambdas, (Sequence, Tensor)):
        raise TypeError(
            f"{op}: lambdas must be a sequence of numbers, got {type(lambdas).__name__}"
        )
    given = lambdas.tolist() if isinstance(lambdas, Tensor) else list(lambdas)
    if not isinstance(given, list) or not 1 <= len(given) <= _MAXIMUM_LAMBDAS:
        raise ValueError(f"{op}: lambdas must hold 1 to {_MAXIMUM_LAMBDAS} values, got {lambdas}")
    largest = torch.finfo(torch.float32).max
    for value in given:
        if not _is_number(value):
            raise TypeError(f"{op}: a lambda must be a number, got {type(value).__name__}")
        # In float32 it must stay what it is: rounded to 0 or inf, masks would not be nested.
        if not 1e-45 <= _as_float(value) <= largest:
            raise ValueError(
                f"{op}: a lambda must be finite and positive (in float32), got {_shown(value)}"
            )
    values = tuple(float(value) for value in given)
    if len(set(values)) != len(values):
        raise ValueError(f"{op}: lambdas must be distinct, got {values}")
    return values


def _all_tensors(
    op: str,
    layout: FlatLayout,
    device: torch.device,
    models: Mapping[str, Model],
    base: Model,
    merged: Model | None,
) -> dict[str, list[Tensor]]:
    """Tensors of base, of every task and of the multi-task vector, checked in one go."""
    named: dict[str, Model] = {"base": base}
    named |= {f"finetuned[{name!r}]": model for name, model in models.items()}
    if merged is None:
        return matching_tensors(op, layout, device, named)
    named["merged"] = merged
    tensors = matching_tensors(op, layout, device, named, vectors=frozenset({"merged"}))
    tensors["merged"] = widened(tensors["merged"], tensors["base"])
    return tensors
