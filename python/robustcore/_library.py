"""Loads the compiled core and gives each of its operators a shape function and a derivative.

A family's modules describe an operator once, with :class:`Operator`; that serves eager mode,
``torch.compile``, ``torch.export``, ``torch.func`` and calls through ``torch.ops.robustcore``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import forward_ad

from . import _C as core
from ._errors import translated

__all__ = [
    "Operator",
    "below_autograd",
    "core",
    "direct_apply",
    "functorch_active",
    "is_batch_of_cotangents",
    "refuse_tangents",
    "runs_eagerly",
]

functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
# A batch of cotangents (``torch.autograd.grad(..., is_grads_batched=True)``) is another mechanism.
is_batch_of_cotangents: Callable[[torch.Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
# Straight to the kernel: the Autograd key would only find out again what is known already.
below_autograd = torch._C._AutoDispatchBelowAutograd
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Operator:
    """One operator of ``torch.ops.robustcore``.

    Args:
        name: The operator's name in the schema.
        fake: Same arguments, returns empty tensors of the right shapes (for tracing).
        setup_context: ``(ctx, inputs, output)``, as for :class:`torch.autograd.Function`.
        backward: ``(ctx, *grad_outputs)``, one gradient per argument. It must itself be made of
            differentiable operations, so that second derivatives exist or raise.
        fold: For ``torch.func.vmap``: ``(batch_size, in_dims, *args)`` returns the arguments of one
            call that computes the whole batch, and the batch dimensions of its results. Without
            it the batch is computed one member after another.

    ``torch.library.register_autograd`` makes a raw call differentiable, but costs about 80 µs a
    call in eager mode; calls through this object take a plain :class:`torch.autograd.Function`
    with the same two functions where that is possible, and no node at all where no input needs
    a gradient.
    """

    def __init__(
        self,
        name: str,
        *,
        fake: Callable[..., Any],
        setup_context: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        fold: Callable[..., tuple[tuple[Any, ...], Any]] | None = None,
    ) -> None:
        qualified = f"robustcore::{name}"
        self.name = name
        self.raw = getattr(torch.ops.robustcore, name).default
        torch.library.register_fake(qualified, fake)
        self._fold = fold
        torch.library.register_vmap(qualified, self._vmap)
        self._function: Any = None
        if backward is None:
            return
        assert setup_context is not None, f"{name}: backward needs setup_context"
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
        self._function = _autograd_function(name, self.raw, setup_context, backward, self._vmap)
        self._apply = direct_apply(self._function)

    def _vmap(self, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        if self._fold is not None:
            folded, out_dims = self._fold(info.batch_size, in_dims, *args)
            return self(*folded), out_dims
        if info.batch_size == 0:
            raise ValueError(f"{self.name}: vmap needs a batch of at least one, got 0")
        members = [
            # The dimensions of a list of numbers are a list themselves: only tensors have members.
            self(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims)))
            for i in range(info.batch_size)
        ]
        if isinstance(members[0], torch.Tensor):
            return torch.stack(members), 0
        results = tuple(torch.stack(outputs) for outputs in zip(*members))
        return results, (0,) * len(results)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.raw(*args)
        with translated:
            if functorch_active():
                return self._function.apply(*args) if self._function else self.raw(*args)
            if forward_ad._current_level >= 0:
                refuse_tangents(self.name, args)
            if self._function and torch.is_grad_enabled() and _any_requires_grad(args):
                return self._apply(*args)
            with below_autograd():
                return self.raw(*args)


def direct_apply(function: Any) -> Callable[..., Any]:
    """``function.apply`` for eager mode.

    What :meth:`torch.autograd.Function.apply` does beside this serves functorch, and costs 30 µs:
    it binds the arguments to the signature of ``forward`` by inspection, at every call.
    """
    return super(torch.autograd.Function, function).apply


def runs_eagerly(tensor: torch.Tensor) -> bool:
    """Whether nobody watches or replaces operations: no mode, no subclass, no forward mode.

    An operator that is written in Python can then be called without the dispatcher, which takes as
    long as a small matrix product.
    """
    return (
        type(tensor) in _PLAIN
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
    )


def refuse_tangents(name: str, tensors: Iterable[Any]) -> None:
    """Raises where forward-mode differentiation would lose its tangents in an operator."""
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{name}: forward-mode derivatives are not offered")


def _any_requires_grad(args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


def _autograd_function(
    name: str,
    raw: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    vmap: Callable[..., tuple[Any, Any]],
) -> Any:
    def forward(*args: Any) -> Any:
        if functorch_active():
            return raw(*args)
        with below_autograd():
            return raw(*args)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
    }
    return type(name, (torch.autograd.Function,), members)
