"""Task vectors: what fine-tuning changed, and their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .._checks import accumulate_dtype
from .state_dict import Model, matching_tensors, named_models, read_layout

__all__ = ["multi_task_vector", "task_vector"]


def task_vector(base: Model, finetuned: Model) -> Tensor | dict[str, Tensor]:
    r"""The change that fine-tuning made: :math:`\tau = \theta_t - \theta_0`.

    Args:
        base: :math:`\theta_0`, a tensor or a state dict of float32, float64, bfloat16 or float16.
        finetuned: :math:`\theta_t`, a model of the same names, shapes, dtypes and device.

    Returns:
        A tensor or a dict of tensors without the integer and boolean buffers, in float32 (float64
        for float64): both are converted before subtracting, because the difference of two close
        bfloat16 numbers taken in bfloat16 loses most of what it has. Differentiable.

    Raises:
        TypeError: An argument is neither a tensor nor a state dict.
        ValueError: The models differ; one message lists all differences.

    Example:
        >>> import torch
        >>> from robustcore.merging import task_vector
        >>> task_vector(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]))
        tensor([0.5000, 0.0000])
    """
    return multi_task_vector(base, [finetuned])


def multi_task_vector(
    base: Model, finetuned: Sequence[Model] | Mapping[str, Model]
) -> Tensor | dict[str, Tensor]:
    r"""The sum of task vectors in the given order: :math:`((\tau_1 + \tau_2) + \tau_3) + \dots`

    This is the multi-task vector :math:`\tau_M` that :func:`robustcore.merging.tall_masks` uses
    where none is given, bit for bit; ``torch.stack(...).sum(0)`` adds in another order.

    Args:
        base: :math:`\theta_0`, a tensor or a state dict of float32, float64, bfloat16 or float16.
        finetuned: The models :math:`\theta_t`, a sequence or a mapping from names to models.

    Returns:
        A tensor or a dict of tensors without the integer and boolean buffers, in float32 (float64
        for float64). Differentiable.

    Raises:
        TypeError: An argument is not a model, or not a sequence or mapping of models.
        ValueError: There is no model, or models differ; one message lists all differences.

    Cost: reads every model once; allocates the result and one temporary of a tensor's size.

    Example:
        >>> import torch
        >>> from robustcore.merging import multi_task_vector
        >>> base = {"w": torch.zeros(2)}
        >>> multi_task_vector(base, [{"w": torch.ones(2)}, {"w": torch.ones(2)}])
        {'w': tensor([2., 2.])}
    """
    op = "multi_task_vector"
    layout, device = read_layout(op, base)
    models = {f"finetuned[{name!r}]": model for name, model in named_models(op, finetuned).items()}
    tensors = matching_tensors(op, layout, device, {"base": base, **models})
    origin = tensors.pop("base")
    totals = []
    for index, start in enumerate(origin):
        compute = accumulate_dtype(start.dtype)
        start = start.to(compute)
        total: Tensor | None = None
        for rows in tensors.values():
            change = rows[index].to(compute) - start
            if total is None:
                total = change
            elif total.requires_grad or change.requires_grad:
                total = total + change
            else:
                total += change
        assert total is not None
        totals.append(total)
    if layout.is_tensor:
        return totals[0]
    return dict(zip(layout.keys, totals, strict=True))


def widened(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Task vector tensors in the dtype in which ``like`` is computed with."""
    return [
        tensor.to(accumulate_dtype(base.dtype)) for tensor, base in zip(tensors, like, strict=True)
    ]
