"""Loads the compiled core and gives each of its operators a shape function and a derivative.

A family's modules describe an operator once, with :class:`Operator`; that serves eager mode,
``torch.compile``, ``torch.export``, ``torch.func`` and calls through ``torch.ops.robustcore``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _C as core
from ._errors import translated

__all__ = ["Operator", "core", "direct_apply", "functorch_active"]

functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
# Straight to the kernel: the Autograd key would only find out again what is known already.
_below_autograd = torch._C._AutoDispatchBelowAutograd


class Operator:
    """One operator of ``torch.ops.robustcore``.

    Args:
        name: The operator's name in the schema.
        fake: Same arguments, returns empty tensors of the right shapes (for tracing).
        setup_context: ``(ctx, inputs, output)``, as for :class:`torch.autograd.Function`.
        backward: ``(ctx, *grad_outputs)``, one gradient per argument. It must itself be made of
            differentiable operations, so that second derivatives exist or raise.
        fold: For ``torch.func.vmap``: ``(batch_size, in_dims, *args)`` returns the arguments of one
            call that computes the whole batch, and the batch dimensions of its results.

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
        if fold is not None:
            torch.library.register_vmap(qualified, self._vmap)
        self._function: Any = None
        if backward is None:
            return
        assert setup_context is not None, f"{name}: backward needs setup_context"
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
        self._function = _autograd_function(
            name, self.raw, setup_context, backward, None if fold is None else self._vmap
        )
        self._apply = direct_apply(self._function)

    def _vmap(self, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        assert self._fold is not None
        folded, out_dims = self._fold(info.batch_size, in_dims, *args)
        return self(*folded), out_dims

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.raw(*args)
        with translated:
            if functorch_active():
                return self._function.apply(*args) if self._function else self.raw(*args)
            if self._function and torch.is_grad_enabled() and _any_requires_grad(args):
                return self._apply(*args)
            with _below_autograd():
                return self.raw(*args)


def direct_apply(function: Any) -> Callable[..., Any]:
    """``function.apply`` for eager mode.

    What :meth:`torch.autograd.Function.apply` does beside this serves functorch, and costs 30 µs:
    it binds the arguments to the signature of ``forward`` by inspection, at every call.
    """
    return super(torch.autograd.Function, function).apply


def _any_requires_grad(args: tuple[Any, ...]) -> bool:
    return any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)


def _autograd_function(
    name: str,
    raw: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    vmap: Callable[..., tuple[Any, Any]] | None,
) -> Any:
    def forward(*args: Any) -> Any:
        if functorch_active():
            return raw(*args)
        with _below_autograd():
            return raw(*args)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
    }
    if vmap is not None:
        members["vmap"] = staticmethod(vmap)
    return type(name, (torch.autograd.Function,), members)
