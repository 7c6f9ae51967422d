"""What a family tells the tests, ``robustcore selftest`` and the benchmarks about its operators.

A family's module ``samples_<family>.py`` has a function ``operator_cases() -> list[OperatorCase]``.
A new operator adds one entry there; everything that walks over operators then finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

__all__ = ["OperatorCase", "Sample", "map_tensors", "named_tensors"]


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Applies ``function`` to every tensor inside nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_tensors(function, item) for item in value]
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Sample:
    """One call of an operator: ``function(*args, **kwargs)``.

    Args:
        name: Says what is special about this input; unique within an operator.
        args: Positional arguments: CPU tensors, nested containers of them, and plain values.
        kwargs: Keyword arguments, likewise.
        differentiable: Whether gradients are well defined for this input.

    Samples are immutable; every method returns a new one that shares no memory with it where it
    changes a tensor.

    Example:
        >>> import torch
        >>> from robustcore.testing import Sample
        >>> sample = Sample("two by three", (torch.ones(2, 3),), {"dim": -1})
        >>> sample.float64().args[0].dtype
        torch.float64
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    differentiable: bool = True

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Sample:
        """Moves all tensors to ``device`` and the floating-point ones to ``dtype``."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            floating = tensor.is_floating_point() or tensor.is_complex()
            return tensor.detach().to(device=device, dtype=dtype if floating else None)

        return self._mapped(move)

    def float64(self) -> Sample:
        """The same values in float64, which is what references are run in."""
        return self.to(dtype=torch.float64)

    def requires_grad(self, arguments: Iterable[int | str] | None = None) -> Sample:
        """Makes floating-point tensors leaves that require grad.

        Args:
            arguments: Positions or names of arguments; all of them when None.
        """
        wanted = None if arguments is None else set(arguments)

        def leaf(tensor: torch.Tensor) -> torch.Tensor:
            # detach() keeps strides: a strided sample stays strided.
            copy = tensor.detach()
            return copy.requires_grad_() if tensor.is_floating_point() else copy

        args = tuple(
            map_tensors(leaf, value) if wanted is None or position in wanted else value
            for position, value in enumerate(self.args)
        )
        kwargs = {
            key: map_tensors(leaf, value) if wanted is None or key in wanted else value
            for key, value in self.kwargs.items()
        }
        return replace(self, args=args, kwargs=kwargs)

    def leaves(self) -> dict[str, torch.Tensor]:
        """The tensors that require grad, by the name or position of their argument."""
        found: dict[str, torch.Tensor] = {}
        for position, value in enumerate(self.args):
            found.update(_requiring_grad(str(position), value))
        for key, value in self.kwargs.items():
            found.update(_requiring_grad(key, value))
        return found

    def _mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
        return replace(
            self, args=map_tensors(function, self.args), kwargs=map_tensors(function, self.kwargs)
        )


def named_tensors(value: Any, name: str = "output") -> dict[str, torch.Tensor]:
    """Flattens what an operator returned into ``{name: tensor}``, in a fixed order."""
    return dict(_walk(name, value))


def _walk(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key in value._fields:
            yield from _walk(f"{name}.{key}", getattr(value, key))
    elif isinstance(value, tuple | list):
        for position, item in enumerate(value):
            yield from _walk(f"{name}[{position}]", item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(f"{name}[{key!r}]", item)


def _requiring_grad(name: str, value: Any) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in _walk(name, value) if tensor.requires_grad}


@dataclass(frozen=True)
class OperatorCase:
    """An operator, its reference, its sample inputs and how exactly the two must agree.

    Args:
        name: The operator's public name, for example ``gated_cross_entropy``.
        family: ``losses``, ``merging`` or ``pcr``.
        function: The operator. Called as ``function(*sample.args, **sample.kwargs)``.
        reference: The plain PyTorch function of the same signature.
        samples: Makes the sample inputs (float32 on the CPU; the same at every call).
        differentiable: Positions or names of the arguments that get gradients; empty for an
            operator without gradients.
        rtol: Relative tolerance per dtype of the inputs; its keys are the dtypes that are tested.
        atol: Absolute tolerance per dtype; 0 where a dtype is missing.
        gradient_rtol, gradient_atol: The same for gradients; those above where None.
        exact: The results must equal the reference's bit for bit on inputs of the same dtype.
            Otherwise the reference runs on the same values in float64.
        outputs: Turns a result into ``{name: tensor}``.
        devices: Kinds of device that have a kernel.
    """

    name: str
    family: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    samples: Callable[[], Iterable[Sample]]
    differentiable: tuple[int | str, ...] = ()
    rtol: Mapping[torch.dtype, float] = field(default_factory=lambda: {torch.float32: 1e-5})
    atol: Mapping[torch.dtype, float] = field(default_factory=dict)
    gradient_rtol: Mapping[torch.dtype, float] | None = None
    gradient_atol: Mapping[torch.dtype, float] | None = None
    exact: bool = False
    outputs: Callable[[Any], Mapping[str, torch.Tensor]] = named_tensors
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def qualified_name(self) -> str:
        """``family.name``, for example ``losses.gated_cross_entropy``."""
        return f"{self.family}.{self.name}"

    def tolerance(self, dtype: torch.dtype, *, gradient: bool = False) -> tuple[float, float]:
        """``(rtol, atol)`` for inputs of ``dtype``."""
        rtol, atol = self.rtol, self.atol
        if gradient:
            rtol = self.gradient_rtol if self.gradient_rtol is not None else rtol
            atol = self.gradient_atol if self.gradient_atol is not None else atol
        return rtol[dtype], atol.get(dtype, 0.0)
