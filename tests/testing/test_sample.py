"""Samples are shared by tests, selftest and benchmarks: nobody may change them for the others."""

from collections import namedtuple

import pytest
import torch

from robustcore.testing import Sample, assert_matches, named_tensors, operators


@pytest.fixture
def sample():
    return Sample(
        "nested",
        (torch.ones(2, 3).t(), {"w": torch.ones(2), "steps": torch.tensor([1])}, [torch.zeros(1)]),
        {"weight": torch.ones(3), "reduction": "mean"},
    )


def test_dtype_reaches_nested_floating_point_tensors_only(sample):
    moved = sample.float64()
    assert moved.args[0].dtype == torch.float64
    assert moved.args[1]["w"].dtype == torch.float64
    assert moved.args[1]["steps"].dtype == torch.int64
    assert moved.args[2][0].dtype == torch.float64
    assert moved.kwargs["reduction"] == "mean"
    assert sample.args[0].dtype == torch.float32


def test_strides_survive(sample):
    assert sample.to(dtype=torch.bfloat16).args[0].stride() == sample.args[0].stride()
    assert sample.requires_grad().args[0].stride() == sample.args[0].stride()


def test_leaves_are_named_by_argument_and_the_sample_stays_as_it_was(sample):
    chosen = sample.requires_grad([0, "weight"])
    assert list(chosen.leaves()) == ["0", "weight"]
    assert list(sample.requires_grad().leaves()) == ["0", "1['w']", "2[0]", "weight"]
    assert sample.leaves() == {}


def test_results_are_flattened_with_names():
    pair = namedtuple("Pair", "loss gate")
    result = named_tensors(pair(torch.zeros(1), (torch.ones(1), torch.ones(2))))
    assert list(result) == ["output.loss", "output.gate[0]", "output.gate[1]"]
    assert named_tensors("no tensor") == {}


def test_unknown_families_and_operators_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="one of losses, merging, pcr, got 'loses'"):
        list(operators("loses"))
    with pytest.raises(ValueError, match=r"gated_cross_entropy.*got 'gated'"):
        list(operators("losses", "gated"))


@pytest.mark.parametrize("case", list(operators()), ids=lambda case: case.qualified_name)
def test_samples_have_unique_names_and_never_change(case):
    first, again = list(case.samples()), list(case.samples())
    names = [each.name for each in first]
    assert len(names) == len(set(names)) > 0
    for one, other in zip(first, again, strict=True):
        ours, theirs = (named_tensors((s.args, s.kwargs)) for s in (one, other))
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            assert_matches(value, theirs[name], name=name)
