"""The counter-based random numbers of ``csrc/common/random.h`` in plain PyTorch, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PHILOX_ROUNDS", "counter_normal", "normal_quads", "philox"]

PHILOX_ROUNDS = 7
_WORD = 0xFFFFFFFF


def philox(
    key: tuple[Tensor, Tensor], counter: tuple[Tensor, ...], rounds: int = PHILOX_ROUNDS
) -> tuple[Tensor, ...]:
    """Philox4x32: four words for each counter of four words; words are int64 in [0, 2³²).

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    x, y, z, w = counter
    low, high = key
    for _ in range(rounds):
        # Products wrap around modulo 2^64; the shift's sign extension is masked off.
        first, second = 0xD2511F53 * x, 0xCD9E8D57 * z
        x, y, z, w = (
            ((second >> 32) & _WORD) ^ y ^ low,
            second & _WORD,
            ((first >> 32) & _WORD) ^ w ^ high,
            first & _WORD,
        )
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return x, y, z, w


def normal_quads(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """Four standard normal float32 numbers per counter, in a new last dimension.

    Args:
        seed: int64, one element.
        c0, c1, c2, c3: The words of the counters, int64 in [0, 2³²), broadcast together.
    """
    seed = seed.reshape(()).to(c0.device)
    key = (seed & _WORD, (seed >> 32) & _WORD)
    x, y, z, w = philox(key, tuple(torch.broadcast_tensors(c0, c1, c2, c3)))
    return torch.stack((*_normal_pair(x, y), *_normal_pair(z, w)), -1)


def counter_normal(first: Tensor, second: Tensor, seed: Tensor, count: int) -> Tensor:
    """``count`` standard normal numbers for each pair of indices: the operator of that name."""
    first, second = first.reshape(-1, 1), second.reshape(-1, 1)
    quads = torch.arange((count + 3) // 4, device=first.device)
    numbers = normal_quads(seed, quads, second & _WORD, first & _WORD, (first >> 32) & _WORD)
    return numbers.flatten(1)[:, :count]


def _normal_pair(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Box and Muller: sqrt(-2 log v) times cosine and sine of an angle."""
    n = ((radius_word >> 1) | 1).to(torch.float32)
    bits = n.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    m = (bits - (exponent << 23)).view(torch.float32)
    t = m - 1.0
    p = _polynomial(
        t,
        -0.17444707453250885,
        0.28733694553375244,
        -0.2990453839302063,
        0.33124786615371704,
        -0.39913666248321533,
        0.5000414848327637,
        -0.6666837334632874,
        0.9999997615814209,
        -2.0,
    )
    twice_log_two = torch.tensor(1.3862943611198906, dtype=torch.float32)
    squared = _fused_multiply_add((31 - exponent).to(torch.float32), twice_log_two, t * p)
    # PyTorch's float32 square root may be off by an ulp; rounding one of float64 is exact.
    radius = squared.double().sqrt().float()

    signed = torch.where(angle_word >= 2**31, angle_word - 2**32, angle_word)
    w = (signed >> 2).to(torch.float32) * 2.0**-29
    s = w * w
    sine = w * _polynomial(
        s, -3.59504520019982e-05, 0.00249000103212893, -0.08074543625116348, 0.7853981852531433
    )
    cosine = _polynomial(
        s, -0.00031872783438302577, 0.015849683433771133, -0.308424174785614, 0.9999999403953552
    )
    cosine = torch.where((angle_word & 1) != 0, -cosine, cosine)
    exchanged = (angle_word & 2) != 0
    return radius * torch.where(exchanged, sine, cosine), radius * torch.where(
        exchanged, cosine, sine
    )


def _polynomial(x: Tensor, leading: float, *others: float) -> Tensor:
    value = torch.full_like(x, leading)
    for coefficient in others:
        value = _fused_multiply_add(value, x, torch.full_like(x, coefficient))
    return value


def _fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32 tensors with one rounding.

    The product is exact in float64. Its sum with ``c`` is rounded to odd there, so that the second
    rounding, to float32, sees on which side of a tie the exact value lies.
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    bits = total.view(torch.int64)
    towards = torch.where((error > 0) == (total > 0), 1, -1)
    odd = torch.where((error != 0) & (bits & 1 == 0), bits + towards, bits)
    return odd.view(torch.float64).float()
