"""Weights of samples from the energy of their logits (WEAT)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype, check_floating, check_int64, check_tensor
from .._library import Operator
from .._reference import wants_reference
from ._arguments import check_dim

__all__ = ["energy_weights"]


def _fake(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=accumulate_dtype(logits.dtype))


_energy_weights = Operator("energy_weights", fake=_fake)


def energy_weights(logits: Tensor, *, dim: int = -1) -> Tensor:
    r"""Weights of samples from their energy, as energy-weighted adversarial training (WEAT) uses.

    .. math::
        w_i = \frac{1}{\log(1 + \exp |E_i|)}, \qquad E_i = -\mathrm{logsumexp}(z_i)

    Samples whose energy is far from zero (natural examples that the model knows well) get small
    weights, samples near zero the largest, :math:`1 / \log 2`. The weights are constants: no
    gradient flows back through them, whether or not the logits require grad.

    Args:
        logits: :math:`z`, of natural inputs, shape ``(..., C)`` (classes in ``dim``), float32,
            float64, bfloat16 or float16.
        dim: Where the classes are. Other than last costs a copy.

    Returns:
        :math:`w`, shape ``(...)``, in float32 (float64 for float64 logits); in
        :math:`(0, 1 / \log 2]` for finite energies.

    Raises:
        TypeError: ``logits`` is not a tensor or has an unsupported dtype.
        ValueError: There are no classes, or ``dim`` is out of range.

    Numerics: computed in float32 for 16-bit inputs. Written as in the formula the exponential
    overflows where the energy exceeds 88.7 and the weight becomes 0; here it is right at any size,
    about :math:`1 / |E|`. An infinite logsumexp gives 0, NaN stays in its row. Same inputs give the
    same bits for any number of threads.

    Cost: one pass over the logits.

    Source: energy-weighted adversarial training (WEAT); the energy of a classifier: Grathwohl et
    al., arXiv 1912.03263.

    Example:
        >>> import torch
        >>> from robustcore.losses import energy_weights
        >>> weights = energy_weights(torch.tensor([[0.0, -50.0], [10.0, 0.0], [1e4, 0.0]]))
        >>> [round(w, 4) for w in weights.tolist()]
        [1.4427, 0.1, 0.0001]
    """
    op = "energy_weights"
    check_tensor(op, "logits", logits)
    check_int64(op, "dim", dim)
    check_floating(op, "logits", logits)
    check_dim(op, dim, "logits", logits)
    rows = logits.detach().movedim(dim, -1)
    shape, classes = rows.shape[:-1], rows.shape[-1]
    if classes == 0:
        raise ValueError(f"{op}: logits must have at least one class, got shape {(*shape, 0)}")
    if wants_reference(logits):
        from ..reference.losses import energy_weights as reference

        return reference(rows)
    with torch.no_grad():
        return _energy_weights(rows.reshape(-1, classes)).reshape(shape)
