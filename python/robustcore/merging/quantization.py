"""Tensors in a few bits per entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SCHEMES", "QuantizedTensor", "quantize"]

# Entries are divided by a unit first: where "log" and "tanh" bend.
SCHEMES: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda x: x, lambda y: y),
    # log of 0 is not taken: log1p is 0 there and odd.
    "log": (lambda x: x.sign() * x.abs().log1p(), lambda y: y.sign() * y.abs().expm1()),
    "tanh": (torch.tanh, torch.atanh),
}


@dataclass(frozen=True)
class QuantizedTensor:
    r"""A tensor whose entries are codes of a few bits.

    Entry x has the code round((g(x / u) - low) / (high - low) * (2^bits - 1)), low and high being
    the smallest and largest g(x / u). g is the identity (``linear``), sign(x) log(1 + |x|)
    (``log``, u a hundredth of the largest entry) or tanh (u twice the root of the mean square).

    Attributes:
        codes: uint8, ``8 / bits`` entries in a byte, the first in the lowest bits.
        shape: Of the tensor.
    """

    codes: Tensor
    shape: tuple[int, ...]
    bits: int
    scheme: str
    low: float
    high: float
    unit: float

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of three numbers."""
        return self.codes.numel() + 3 * 8

    def dequantize(self) -> Tensor:
        """The tensor, float32."""
        count, per_byte = math.prod(self.shape), 8 // self.bits
        shifts = torch.arange(per_byte, dtype=torch.uint8) * self.bits
        codes = (self.codes.unsqueeze(1) >> shifts) & (2**self.bits - 1)
        levels = codes.flatten()[:count].double() / (2**self.bits - 1)
        bent = self.low + levels * (self.high - self.low)
        return (SCHEMES[self.scheme][1](bent) * self.unit).float().view(self.shape)

    def description(self) -> dict[str, Any]:
        """All but the codes, for JSON."""
        fields = {name: getattr(self, name) for name in ("bits", "scheme", "low", "high", "unit")}
        return fields | {"shape": list(self.shape)}

    @staticmethod
    def described(codes: Tensor, fields: Mapping[str, Any]) -> QuantizedTensor:
        """From codes and :meth:`description`.

        Raises:
            ValueError: They do not fit each other.
        """
        shape = tuple(int(size) for size in fields["shape"])
        bits, scheme = fields["bits"], fields["scheme"]
        numbers = [float(fields[name]) for name in ("low", "high", "unit")]
        if (
            bits not in (1, 2, 4, 8)
            or scheme not in SCHEMES
            or not all(map(math.isfinite, numbers))
        ):
            raise ValueError(f"the description of a quantised tensor is not valid: {dict(fields)}")
        expected = -(-math.prod(shape) * bits // 8)
        if codes.dtype != torch.uint8 or codes.numel() != expected or min(shape, default=0) < 0:
            raise ValueError(f"codes of {shape} must be {expected} bytes, got {codes.numel()}")
        return QuantizedTensor(codes, shape, bits, scheme, *numbers)


def quantize(tensor: Tensor, bits: int, scheme: str) -> QuantizedTensor:
    """A finite tensor in ``bits`` (1, 2, 4, 8) bits per entry."""
    values = tensor.detach().cpu().double().reshape(-1)
    unit = 1.0
    if values.numel() and scheme == "log":
        unit = float(values.abs().max()) / 100
    elif values.numel() and scheme == "tanh":
        unit = 2 * float(values.square().mean().sqrt())
    unit = unit if unit > 0 else 1.0
    bent = SCHEMES[scheme][0](values / unit)
    low, high = (float(bent.min()), float(bent.max())) if values.numel() else (0.0, 0.0)
    if scheme == "tanh":  # atanh is finite within
        limit = 1 - 1e-12
        low, high = max(low, -limit), min(high, limit)
    span = high - low
    levels = (bent - low) / span * (2**bits - 1) if span > 0 else torch.zeros_like(bent)
    codes = levels.round().clamp(0, 2**bits - 1).to(torch.uint8)
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.numel() % per_byte)).view(-1, per_byte)
    packed = padded[:, 0].clone()
    for place in range(1, per_byte):
        packed |= padded[:, place] << (place * bits)
    return QuantizedTensor(packed, tuple(tensor.shape), bits, scheme, low, high, unit)
