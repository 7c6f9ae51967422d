"""The pieces that every kernel is made of: the exponential and the 16-bit conversions."""

from __future__ import annotations

import numpy as np
import torch

from robustcore._library import core

testing = core.testing
# Every 1009th float32 there is: all exponents, both signs, subnormals, infinities and NaNs.
SAMPLED = np.arange(0, 2**32, 1009, dtype=np.uint64).astype(np.uint32).view(np.float32)
SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 88.72283, 88.72284, 89, 1e4, -87.3, -103.9, -104, -1e4],
    np.float32,
)
EVERY_16_BIT = np.arange(2**16, dtype=np.uint16)


def test_exponential_has_a_relative_error_below_1e_7() -> None:
    x = np.concatenate([SAMPLED, SPECIAL])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = np.exp(x.astype(np.float64))
    y = testing.exponential(x)
    normal = (expected >= np.finfo(np.float32).smallest_normal) & (expected < 3.4e38)
    error = np.abs(y[normal] - expected[normal]) / expected[normal]
    assert error.max() < 1e-7


def test_exponential_treats_special_values_as_libm_does() -> None:
    x = np.concatenate([SAMPLED, SPECIAL])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = np.exp(x.astype(np.float64)).astype(np.float32)
    y = testing.exponential(x)
    assert np.array_equal(np.isnan(y), np.isnan(x))
    assert np.array_equal(y == np.inf, expected == np.inf)
    # Below the normal range: off by at most one subnormal step.
    small = (expected < np.finfo(np.float32).smallest_normal) & ~np.isnan(x)
    assert np.abs(y[small].astype(np.float64) - expected[small]).max() <= 1.5e-45
    assert testing.exponential(-np.inf) == 0
    assert testing.exponential(np.float32(0)) == 1


def test_softplus_has_a_relative_error_below_4e_7() -> None:
    x = np.concatenate([SAMPLED, SPECIAL])
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore", under="ignore"):
        wide = x.astype(np.float64)
        expected = np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))
    y = testing.softplus(x)
    normal = (expected >= np.finfo(np.float32).smallest_normal) & (expected < 3.4e38)
    error = np.abs(y[normal] - expected[normal]) / expected[normal]
    assert error.max() < 4e-7
    # Half of the smallest subnormal: what is below rounds to 0.
    assert (y[expected < 7e-46] == 0).all()


def test_softplus_treats_special_values_as_libm_does() -> None:
    assert testing.softplus(np.float32(np.inf)) == np.inf
    assert testing.softplus(np.float32(-np.inf)) == 0
    assert np.isnan(testing.softplus(np.float32(np.nan)))


def test_logarithm_of_normal_has_a_relative_error_below_3e_7() -> None:
    near_one = np.linspace(0.5, 2, 100001, dtype=np.float32)
    x = np.concatenate([SAMPLED, near_one])
    x = x[(x >= np.finfo(np.float32).smallest_normal) & (x < np.inf) & (x != 1)]
    expected = np.log(x.astype(np.float64))
    error = np.abs(testing.logarithm_of_normal(x) - expected) / np.abs(expected)
    assert error.max() < 3e-7
    assert testing.logarithm_of_normal(np.float32(1)) == 0
    assert testing.logarithm_of_normal(np.float32(np.inf)) == np.inf
    assert np.isnan(testing.logarithm_of_normal(np.float32(np.nan)))


def test_16_bit_values_widen_exactly() -> None:
    for convert, dtype in (
        (testing.float16_to_float, torch.float16),
        (testing.bfloat16_to_float, torch.bfloat16),
    ):
        expected = torch.from_numpy(EVERY_16_BIT.view(np.int16)).view(dtype).float().numpy()
        assert np.array_equal(convert(EVERY_16_BIT), expected, equal_nan=True)


def test_narrowing_rounds_as_torch_does() -> None:
    halves = np.concatenate([SAMPLED, SPECIAL])
    # Values half-way between two neighbours, where the tie goes to the even one.
    ties = torch.from_numpy(EVERY_16_BIT.view(np.int16)).view(torch.bfloat16).float().numpy()
    ties = (ties.view(np.uint32) | np.uint32(0x8000)).view(np.float32)
    values = np.concatenate([halves, ties])
    for convert, dtype in (
        (testing.float_to_float16, torch.float16),
        (testing.float_to_bfloat16, torch.bfloat16),
    ):
        narrowed = torch.from_numpy(convert(values).view(np.int16)).view(dtype)
        expected = torch.from_numpy(values).to(dtype)
        assert torch.equal(narrowed.isnan(), expected.isnan())
        keep = ~expected.isnan()
        assert torch.equal(narrowed[keep].view(torch.int16), expected[keep].view(torch.int16))
