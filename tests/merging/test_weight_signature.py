"""Robust weight signatures and their quantised storage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustcore.merging import WeightSignature, merge, robust_weight_signature
from robustcore.merging.quantization import SCHEMES, quantize


def models() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"stem.w": (20, 9), "stem.b": (9,), "head.w": (4, 30)}
    return [{k: torch.randn(s, generator=generator) for k, s in shapes.items()} for _ in range(3)]


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(data=st.data())
def test_entries_are_the_nearest_level(bits: int, scheme: str, data: st.DataObject) -> None:
    numbers = st.floats(-1e3, 1e3, width=32)
    values = torch.tensor(data.draw(st.lists(numbers, max_size=40)), dtype=torch.float32)
    stored = quantize(values, bits, scheme)
    back = stored.dequantize()
    assert back.shape == values.shape
    assert stored.codes.numel() == -(-values.numel() * bits // 8)
    if not values.numel():
        return
    bend = SCHEMES[scheme][0]
    bent, found = bend(values.double() / stored.unit), bend(back.double() / stored.unit)
    step = (stored.high - stored.low) / (2**bits - 1)
    # Half a step, and the rounding of what comes back to float32.
    slack = 1e-6 * (1 + max(abs(stored.low), abs(stored.high)))
    assert float((bent - found).abs().max()) <= step / 2 + slack


def test_more_bits_come_closer() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for scheme in SCHEMES:
        errors = [
            float((quantize(values, bits, scheme).dequantize() - values).norm())
            for bits in (1, 2, 4, 8)
        ]
        assert errors == sorted(errors, reverse=True)


def test_a_signature_adds_what_clean_training_does_not() -> None:
    base, robust, clean = models()
    signature = robust_weight_signature(base, robust, clean, bits=8)
    expected = merge(base, [robust, clean], method="rws", scale=0.5)
    actual = signature.apply(base, scale=0.5)
    for key in base:
        span = float((expected[key] - base[key]).max() - (expected[key] - base[key]).min())
        assert float((actual[key] - expected[key]).abs().max()) <= span / 255 / 2 * 1.001 + 1e-6


def test_shallow_layers_only(tmp_path: Path) -> None:
    base, robust, clean = models()
    signature = robust_weight_signature(base, robust, clean, keys=r"^stem\.", bits=4, scheme="log")
    assert list(signature.tensors) == ["stem.b", "stem.w"]
    assert signature.nbytes == 5 + 90 + 2 * 24
    path = tmp_path / "signature.safetensors"
    signature.save(path)
    loaded = WeightSignature.load(path)
    first, second = signature.apply(clean), loaded.apply(clean)
    assert all(torch.equal(first[key], second[key]) for key in clean)
    assert torch.equal(first["head.w"], clean["head.w"])


def test_errors(tmp_path: Path) -> None:
    base, robust, clean = models()
    with pytest.raises(ValueError, match="bits"):
        robust_weight_signature(base, robust, clean, bits=3)
    with pytest.raises(ValueError, match="scheme"):
        robust_weight_signature(base, robust, clean, scheme="cubic")
    with pytest.raises(ValueError, match="at least one"):
        robust_weight_signature(base, robust, clean, keys="nothing")
    with pytest.raises(ValueError, match="must name tensors"):
        robust_weight_signature(base, robust, clean, keys=["nothing"])
    signature = robust_weight_signature(base, robust, clean)
    with pytest.raises(ValueError, match=r"'stem\.w'\] is missing"):
        signature.apply({"head.w": base["head.w"], "stem.b": base["stem.b"]})
    path = tmp_path / "broken.safetensors"
    signature.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no complete signature"):
        WeightSignature.load(path)
    with pytest.raises(FileNotFoundError):
        WeightSignature.load(tmp_path / "absent")
