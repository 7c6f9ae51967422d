"""EMR-Merging: one unified task vector, a mask and a rescaler per task (arXiv 2405.17461)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import accumulate_dtype
from .packed_masks import PackedMasks, pack_mask
from .pipeline import TaskVectors
from .state_dict import Model, matching_tensors, named_models, read_layout

__all__ = ["EMRMerge", "emr_merge"]


@dataclass(frozen=True)
class EMRMerge:
    r"""A unified task vector from which each task's own is approximated.

    Attributes:
        unified: :math:`\tau_F`: float32 (float64 for float64) tensors.
        masks: :math:`m_t = \mathbf 1\{\tau_t \odot \tau_F > 0\}`, one bit per parameter and task.
        rescalers: :math:`\gamma_t`, one number per task.
    """

    unified: Tensor | dict[str, Tensor]
    masks: PackedMasks
    rescalers: dict[str, float]

    def apply(self, task: str | int, base: Model) -> Any:
        r"""The model of a task: :math:`\theta_0 + \gamma_t\, m_t \odot \tau_F`."""
        name = task if isinstance(task, str) else self.masks.tasks[task]
        factor = self.rescalers[name]
        if isinstance(self.unified, Tensor):
            return self.masks.apply(task, base, factor * self.unified)
        scaled = {key: factor * value for key, value in self.unified.items()}
        return self.masks.apply(task, base, scaled)


def emr_merge(base: Model, finetuned: Sequence[Model] | Mapping[str, Model]) -> EMRMerge:
    r"""Elects a unified vector and keeps what it takes to go back to each task (EMR-Merging).

    .. math::
        \sigma = +1 \text{ where } \sum_t \tau_t > 0, \text{ else } -1, \qquad
        \tau_F = \sigma \max_{t:\, \operatorname{sign} \tau_t = \sigma} |\tau_t|, \qquad
        m_t = \mathbf 1\{\tau_t \odot \tau_F > 0\}, \qquad
        \gamma_t = \frac{\sum_n \operatorname{mean} |\tau_t^{(n)}|}
                        {\sum_n \operatorname{mean} |m_t^{(n)} \odot \tau_F^{(n)}|}

    over the tensors n of the model.

    Args:
        base: :math:`\theta_0`, a tensor or a state dict.
        finetuned: The models, a sequence or a mapping from task names.

    Returns:
        An :class:`EMRMerge`: the size of one model, and per task one bit per parameter and a
        number. A task that changed nothing gets the rescaler 0.

    Raises:
        TypeError: An argument is not a model, or not a sequence or mapping of models.
        ValueError: Models differ from the base (one message lists all differences).

    Numerics: in float32 (float64 for float64); means are summed in float64.

    Source: Huang et al., EMR-Merging: Tuning-Free High-Performance Model Merging, arXiv 2405.17461.

    Example:
        >>> import torch
        >>> from robustcore.merging import emr_merge
        >>> base = torch.zeros(3)
        >>> tasks = {"a": torch.tensor([2.0, 1, 0]), "b": torch.tensor([-1.0, 1, 4])}
        >>> merged = emr_merge(base, tasks)
        >>> merged.unified
        tensor([2., 1., 4.])
        >>> merged.apply("a", base)
        tensor([2., 1., 0.])
    """
    op = "emr_merge"
    layout, device = read_layout(op, base)
    models = named_models(op, finetuned)
    named = {"base": base} | {f"finetuned[{name!r}]": model for name, model in models.items()}
    tensors = matching_tensors(op, layout, device, named)
    origin = tensors.pop("base")
    vectors = TaskVectors(base, models).elect("sum", undecided="negative").reduce("max")
    unified = vectors.vector()
    whole = layout.tensors(unified)
    rows, rescalers = [], {}
    for name, rows_of in zip(models, tensors.values(), strict=True):
        kept, own, left = [], 0.0, 0.0
        for start, tuned, total in zip(origin, rows_of, whole, strict=True):
            wide = accumulate_dtype(start.dtype)
            change = tuned.to(wide) - start.to(wide)
            keep = change * total.sign() > 0
            kept.append(keep.reshape(-1))
            if change.numel():
                own += float(change.abs().mean(dtype=torch.float64))
                left += float(total.where(keep, 0).abs().mean(dtype=torch.float64))
        rows.append(pack_mask(torch.cat(kept) if kept else torch.empty(0, dtype=torch.bool)))
        rescalers[name] = own / left if left > 0 else 0.0
    return EMRMerge(unified, PackedMasks(torch.stack(rows), layout, tuple(models)), rescalers)
