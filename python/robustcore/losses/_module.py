"""The options that loss modules share, in the manner of :class:`torch.nn.CrossEntropyLoss`."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .._checks import check_int64
from ._arguments import check_class_options, check_class_weight, check_switch

__all__ = ["RowLossModule"]


_DEFAULTS = {
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "temperature": 1.0,
    "softcap": None,
    "lse_square_scale": 0.0,
    "dim": -1,
    "inplace_gradients": False,
}


class RowLossModule(nn.Module):
    """Keeps and checks the options of a loss over rows of logits; ``weight`` is a buffer."""

    weight: Tensor | None
    #: Options that the loss does not have.
    absent: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        softcap: float | None = None,
        lse_square_scale: float = 0.0,
        reduction: str = "mean",
        dim: int = -1,
        inplace_gradients: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_class_options(
            name, label_smoothing, reduction, temperature, softcap, lse_square_scale
        )
        check_int64(name, "ignore_index", ignore_index)
        check_int64(name, "dim", dim)
        check_switch(name, "inplace_gradients", inplace_gradients)
        if weight is not None:
            check_class_weight(name, "weight", weight)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.temperature = temperature
        self.softcap = softcap
        self.lse_square_scale = lse_square_scale
        self.reduction = reduction
        self.dim = dim
        self.inplace_gradients = inplace_gradients
        for option in self.absent:
            if getattr(self, option) != _DEFAULTS.get(option):
                raise TypeError(f"{name}: has no option {option}")

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the function."""
        options = {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "temperature": self.temperature,
            "softcap": self.softcap,
            "lse_square_scale": self.lse_square_scale,
            "reduction": self.reduction,
            "dim": self.dim,
            "inplace_gradients": self.inplace_gradients,
        }
        return {name: value for name, value in options.items() if name not in self.absent}

    def extra_repr(self) -> str:
        shown = [
            f"{name}={getattr(self, name)}"
            for name, default in _DEFAULTS.items()
            if getattr(self, name) != default
        ]
        return ", ".join([f"reduction={self.reduction!r}", *shown])
