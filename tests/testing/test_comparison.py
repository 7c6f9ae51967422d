"""A comparison that lets a wrong result pass would make every other test worthless."""

import math

import pytest
import torch

from robustcore.testing import assert_matches, compare, error_against

NAN, INF = math.nan, math.inf


def tensor(*values):
    return torch.tensor(values)


def test_equal_values_pass_with_everything_special_in_place():
    values = tensor(1.0, -0.0, NAN, INF, -INF, 1e-45)
    assert_matches(values, values.double())
    assert compare(values, values.double()).used == 0


@pytest.mark.parametrize(
    ("actual", "expected", "says"),
    [
        (tensor(1.0, 2.0), tensor(1.0, NAN), "NaN"),
        (tensor(1.0, NAN), tensor(1.0, 2.0), "NaN"),
        (tensor(NAN, 1.0), tensor(1.0, NAN), "2 of 2 values NaN"),
        (tensor(0.0, INF), tensor(0.0, -INF), "inf in the wrong place"),
        (tensor(0.0, INF), tensor(0.0, 3e38), "inf in the wrong place"),
        (tensor(0.0, 3e38), tensor(0.0, INF), "inf in the wrong place"),
    ],
)
def test_special_values_in_the_wrong_place_fail_whatever_the_tolerance(actual, expected, says):
    with pytest.raises(AssertionError, match=says):
        assert_matches(actual, expected, rtol=1e9, atol=1e9)


def test_the_message_names_the_worst_index_with_both_values():
    expected = torch.zeros(3, 4)
    actual = expected.clone()
    actual[0, 1], actual[2, 3] = 0.5, -2.0
    message = r"^loss: 2 of 12 values differ, worst at index \(2, 3\): got -2, expected 0,"
    with pytest.raises(AssertionError, match=message):
        assert_matches(actual, expected, atol=0.25, name="loss")


def test_nan_is_named_by_its_place():
    with pytest.raises(AssertionError, match=r"index \(1,\): got nan, expected 2"):
        assert_matches(tensor(1.0, NAN), tensor(1.0, 2.0), rtol=1.0)


def test_the_tolerance_is_the_sum_of_both_parts_and_inclusive():
    expected = torch.tensor([8.0], dtype=torch.float64)
    actual = expected + 2.5
    assert compare(actual, expected, rtol=0.25, atol=0.5).used == 1.0
    assert compare(actual, expected, rtol=0.25, atol=0.5).passed
    assert not compare(actual, expected, rtol=0.25, atol=0.4999).passed
    assert not compare(actual, expected, rtol=0.2499, atol=0.5).passed


def test_no_tolerance_means_equality():
    assert not compare(tensor(1.0), torch.nextafter(tensor(1.0), tensor(2.0))).passed
    assert not compare(tensor(1e-45), tensor(0.0)).passed


def test_shapes_must_agree():
    with pytest.raises(AssertionError, match=r"shape \(2,\) where \(1, 2\) was expected"):
        assert_matches(torch.zeros(2), torch.zeros(1, 2))


def test_integers_are_compared_exactly_and_by_type():
    big = torch.tensor([2**53, 2**53 + 1])
    assert_matches(big, big.clone())
    with pytest.raises(AssertionError, match=r"index \(1,\): got 9007199254740993"):
        assert_matches(big, torch.tensor([2**53, 2**53]), rtol=1.0, atol=1.0)
    with pytest.raises(AssertionError, match="type"):
        assert_matches(torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.bool))


def test_empty_tensors_agree():
    assert_matches(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.float64))


def test_complex_values_are_compared_by_part():
    expected = torch.tensor([1 + 2j, complex(NAN, 0.0)])
    assert_matches(expected, expected.clone())
    with pytest.raises(AssertionError, match=r"index \(0, 1\)"):
        assert_matches(torch.tensor([1 + 3j, complex(NAN, 0.0)]), expected)


def test_error_against_is_the_error_by_norm():
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert error_against(torch.tensor([3.0, 4.5]), reference) == pytest.approx(0.1)
    assert error_against(reference.float(), reference) == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_error_against_neither_overflows_nor_vanishes(scale):
    reference = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
    assert error_against(reference * 1.5, reference) == pytest.approx(0.5)


def test_error_against_is_infinite_where_special_values_differ():
    reference = torch.tensor([1.0, INF], dtype=torch.float64)
    assert error_against(torch.tensor([1.0, INF]), reference) == 0.0
    assert error_against(torch.tensor([1.0, -INF]), reference) == INF
    assert error_against(torch.tensor([NAN, INF]), reference) == INF
    assert error_against(torch.tensor([1.0]), torch.zeros(1, dtype=torch.float64)) == INF


def test_error_against_rejects_other_shapes():
    with pytest.raises(ValueError, match=r"must have shape \(2,\), got \(1,\)"):
        error_against(torch.zeros(1), torch.zeros(2))
