"""A comparison of times means nothing unless all contestants compute the same."""

import inspect

import pytest
import torch

from robustcore import losses
from robustcore.benchmarks import all_benchmarks
from robustcore.benchmarks.contestants import bind, make_contestants
from robustcore.benchmarks.merging.tall_masks import eager, tuned
from robustcore.benchmarks.registry import Case
from robustcore.testing import assert_matches, named_tensors

# Public functions of robustcore.losses without a benchmark of their own.
_NOT_MEASURED_ALONE = {
    "aldr_kl_indexed_loss": "the operator of the training step that aldr_kl_loss measures",
    "aldr_kl_temperature": "part of the training step that aldr_kl_loss measures",
    "dro_weights": "one number per sample: nothing to measure",
    "gated_cross_entropy_scores": "for looking at data, outside of training",
    "heteroscedastic_log_probabilities": "for prediction, outside of training",
    "random_privileged_information": "drawn once per data set",
    "shrink_match_scores": "for looking at data, outside of training",
}


def test_every_loss_has_a_benchmark():
    benchmarks = {each.operator for each in all_benchmarks() if each.family == "losses"}
    functions = {name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))}
    assert functions - _NOT_MEASURED_ALONE.keys() == benchmarks


# Their contestants draw their own noise, or move a state that they share.
_NOT_COMPARABLE = {
    "losses.aldr_kl_loss",
    "losses.early_learning_loss",
    "losses.heteroscedastic_cross_entropy",
}


@pytest.mark.parametrize(
    "benchmark",
    [
        each
        for each in all_benchmarks()
        if each.family != "merging" and each.name not in _NOT_COMPARABLE
    ],
    ids=lambda benchmark: benchmark.name,
)
def test_contestants_agree_on_results_and_gradients(benchmark):
    case = Case(benchmark.sizes[0], benchmark.passes[-1], "cpu")
    inputs = benchmark.inputs(case, 0)
    contestants, _ = make_contestants(benchmark, case)
    results = {
        contestant.name: named_tensors(bind(contestant, case, [inputs])(0))
        for contestant in contestants
        if contestant.kind != "compiled" and "compiled" not in contestant.name
    }
    expected = results.pop("robustcore")
    assert "eager" in results
    for contestant, result in results.items():
        assert list(result) == list(expected)
        for quantity, value in result.items():
            message = f"{contestant}, {quantity}"
            assert_matches(value, expected[quantity], rtol=1e-4, atol=1e-5, name=message)


def test_all_masks_have_the_same_bits():
    from robustcore.merging import tall_masks

    lambdas = (0.2, 0.3, 0.4, 0.5, 0.6)
    base = torch.randn(1003)
    finetuned = [base + 0.1 * torch.randn(1003) for _ in range(3)]
    expected, other = eager(base, finetuned), tuned(base, finetuned)
    masks = tall_masks(base, finetuned)
    for j, value in enumerate(lambdas):
        packed = masks.select(value).packed
        for t in range(3):
            assert torch.equal(expected[t][j], other[t][j])
            assert torch.equal(expected[t][j], packed[t])


def test_input_sets_differ():
    for benchmark in all_benchmarks():
        case = Case(benchmark.sizes[0], "forward", "cpu")
        arguments = (benchmark.inputs(case, seed).arguments[0] for seed in (0, 1))
        first, second = (named_tensors(argument) for argument in arguments)
        assert first
        assert not any(torch.equal(first[name], second[name]) for name in first)
