"""The diagonal linear recurrence."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import (
    accumulate_dtype,
    autocast_enabled,
    check_device,
    check_floating,
    check_tensor,
)
from .._reference import wants_reference
from ..reference import pcr as reference
from ._linear_recurrence_op import forward_operator

__all__ = ["linear_recurrence"]

_OP = "linear_recurrence"


def linear_recurrence(
    a: Tensor,
    x: Tensor,
    initial: Tensor | None = None,
    *,
    reverse: bool = False,
    time_dim: int = -2,
) -> Tensor:
    r"""All states of the recurrence :math:`h_t = a_t h_{t-1} + x_t`, element by element.

    .. math::
        h_t = a_t \odot h_{t-1} + x_t, \quad t = 1 \dots T, \qquad h_0 = \text{initial}

    Its gradients are the recurrence run backwards, with :math:`g_t` the gradient for :math:`h_t`:

    .. math::
        G_t = g_t + a_{t+1} G_{t+1}, \quad \partial x_t = G_t, \quad
        \partial a_t = G_t h_{t-1}, \quad \partial h_0 = a_1 G_1

    Args:
        a: Gates, float32, float64, bfloat16 or float16. Any values: nothing is divided by them.
            Differentiable.
        x: Inputs, in the dtype of ``a`` (under autocast the two are promoted, as in ``a * x``).
            ``a`` and ``x`` are broadcast against each other by PyTorch's rules, the time dimension
            included: gates of shape ``(C,)`` are the same at every step. Differentiable.
        initial: The state before the first step, on the same device; in the dtype of ``x``, or that
            of the carry (see Numerics); under autocast any but float64 beside narrower ones. Its
            shape must broadcast to that of the result without the time dimension. ``None`` means
            that the first state is ``x`` of the first step: its gate is then not used and gets a
            gradient of zero. Differentiable.
        reverse: Run from the last step to the first, :math:`h_t = a_t h_{t+1} + x_t`, with
            ``initial`` the state after the last step. No copy is made.
        time_dim: The dimension of time in the broadcast shape: by default ``(..., T, C)``; -1 for
            ``(..., T)``. T may be 0 and 1.

    Returns:
        The states, contiguous, of the broadcast shape and of the dtype of ``a`` and ``x`` (the
        promoted one under autocast); ``initial`` has no influence on the dtype.

    Raises:
        TypeError: An argument is not a dense tensor, a dtype is not supported, the dtypes differ,
            ``reverse`` is not a bool or ``time_dim`` not an int.
        ValueError: The devices differ, shapes do not broadcast, or ``time_dim`` is out of range.
        NotImplementedError: Forward-mode derivatives are asked for.

    Numerics: the carry is float32 for 16-bit inputs, float64 for float64; a 16-bit state is rounded
    when it is stored, not in the carry (its gradient for ``a`` uses the stored one). Steps are
    taken one after another, never regrouped, so that nothing overflows that the plain loop keeps
    finite, and the error is that of the loop; multiply and add are fused where the processor can,
    so the bits may differ from those of separate PyTorch operations. NaN and infinities reach later
    steps of their own channel, and nothing else. A gate of zero resets the state, unless that is
    not finite.

    Determinism: the same bits in every run and for any number of threads.

    Cost: O(T) for each channel, 3 words of memory traffic per element forward and 5 backward; the
    states are kept for the gradient of ``a``, and nothing else is allocated but the results. Read
    without a copy: expanded and sliced inputs, transposed layouts; dimensions before time (or after
    it) that cannot be merged into one cost a copy. On the CPU channels are vectorised and shared
    among threads; a single channel runs on one thread.

    It works with ``torch.compile(fullgraph=True)``, ``torch.export``, autocast, ``torch.func.grad``
    and ``torch.func.vmap``, and can be differentiated any number of times. Forward-mode derivatives
    (``torch.func.jvp``) are not offered: they raise NotImplementedError.

    Source: Danieli et al., DeepPCR, arXiv 2309.16318 (the recurrence as a bidiagonal system);
    Martin and Cundy, Parallelizing Linear Recurrent Neural Nets Over Sequence Length, arXiv
    1709.04057 (the gradient as the reverse recurrence).

    Example:
        >>> import torch
        >>> from robustcore.pcr import linear_recurrence
        >>> a = torch.full((1, 4, 1), 0.5)
        >>> x = torch.ones(1, 4, 1, requires_grad=True)
        >>> h = linear_recurrence(a, x)
        >>> h.flatten().tolist()
        [1.0, 1.5, 1.75, 1.875]
        >>> h.sum().backward()
        >>> x.grad.flatten().tolist()
        [1.875, 1.75, 1.5, 1.0]
    """
    check_tensor(_OP, "a", a)
    check_tensor(_OP, "x", x)
    if initial is not None:
        check_tensor(_OP, "initial", initial)
    if not isinstance(reverse, bool):
        raise TypeError(f"{_OP}: reverse must be a bool, got {type(reverse).__name__}")
    if not isinstance(time_dim, int) or isinstance(time_dim, bool):
        raise TypeError(f"{_OP}: time_dim must be an int, got {type(time_dim).__name__}")
    check_device(_OP, "x", x, a.device)
    if initial is not None:
        check_device(_OP, "initial", initial, a.device)
    check_floating(_OP, "a", a)
    check_floating(_OP, "x", x)

    dtype = a.dtype
    if x.dtype is not dtype:
        if not autocast_enabled(a.device):
            raise TypeError(
                f"{_OP}: x must have the dtype of a ({_name(dtype)}), got {_name(x.dtype)}"
            )
        dtype = torch.promote_types(dtype, x.dtype)
        a, x = a.to(dtype), x.to(dtype)
    if a.shape != x.shape:
        a, x = _broadcast(a, x)
    dimensions = x.dim()
    if not -dimensions <= time_dim < dimensions:
        raise ValueError(
            f"{_OP}: time_dim must be in [{-dimensions}, {dimensions}) for states of shape "
            f"{tuple(x.shape)}, got {time_dim}"
        )
    if time_dim >= 0:
        time_dim -= dimensions
    if initial is not None:
        initial = _initial(initial, x, time_dim)
    if wants_reference(x):
        return reference.linear_recurrence(a, x, initial, reverse=reverse, time_dim=time_dim)
    return forward_operator(a, x, initial, time_dim, reverse)


def _broadcast(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    try:
        shape = torch.broadcast_shapes(a.shape, x.shape)
    except RuntimeError:
        raise ValueError(
            f"{_OP}: a must have a shape that broadcasts with x {tuple(x.shape)}, got "
            f"{tuple(a.shape)}"
        ) from None
    return a.expand(shape), x.expand(shape)


def _initial(initial: Tensor, x: Tensor, time_dim: int) -> Tensor:
    """``initial`` with the shape of one step and the dtype of the carry."""
    check_floating(_OP, "initial", initial)
    carry = accumulate_dtype(x.dtype)
    if initial.dtype is not carry:
        # Autocast makes 16-bit tensors out of wider ones, so it promotes here as well.
        promoted = autocast_enabled(x.device) and initial.dtype is not torch.float64
        if initial.dtype is not x.dtype and not promoted:
            allowed = _name(carry) if x.dtype is carry else f"{_name(x.dtype)} or {_name(carry)}"
            raise TypeError(
                f"{_OP}: initial must be {allowed} for x of {_name(x.dtype)}, "
                f"got {_name(initial.dtype)}"
            )
        initial = initial.to(carry)
    at = x.dim() + time_dim
    step = x.shape[:at] + x.shape[at + 1 :]
    if initial.shape != step:
        try:
            initial = initial.expand(step)
        except RuntimeError:
            raise ValueError(
                f"{_OP}: initial must have a shape that broadcasts to {tuple(step)}, got "
                f"{tuple(initial.shape)}"
            ) from None
    return initial


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
