"""combine_task_vectors and TaskCoefficients: values, derivatives, determinism, errors."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

import robustcore
from robustcore.merging import TaskCoefficients, combine_task_vectors, task_vector
from robustcore.reference import merging as reference
from robustcore.testing import check_sample, operators
from robustcore.testing.samples_merging import combine_task_vectors_samples, random_models

(CASE,) = operators("merging", "combine_task_vectors")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def example(
    sizes: tuple[int, ...] = (5, 3), tasks: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], Tensor]:
    base, models = random_models(sizes, tasks)
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(tasks, len(sizes), generator=generator, dtype=dtype)
    base = {key: tensor.to(dtype) for key, tensor in base.items()}
    vectors = [
        {key: t.to(dtype) - base[key] for key, t in model.items()} for model in models.values()
    ]
    return base, vectors, coefficients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", list(combine_task_vectors_samples()), ids=lambda s: s.name)
def test_samples(sample: Any, dtype: torch.dtype) -> None:
    for finding in check_sample(CASE, sample, "cpu", dtype):
        assert finding.comparison.passed, (finding.quantity, str(finding.comparison))


@given(
    st.lists(st.sampled_from(strategies.EDGE_SIZES), min_size=1, max_size=3),
    st.lists(strategies.floating_dtypes, min_size=3, max_size=3),
    st.integers(1, 5),
    st.booleans(),
)
def test_the_bits_are_those_of_the_reference(
    sizes: list[int], dtypes: list[torch.dtype], tasks: int, narrow: bool
) -> None:
    base, models = random_models(tuple(sizes), tasks)
    base = {k: t.to(dtype) for (k, t), dtype in zip(base.items(), dtypes, strict=False)}
    vectors = []
    for model in models.values():
        finetuned = {key: tensor.to(base[key].dtype) for key, tensor in model.items()}
        vector = task_vector(base, finetuned)
        assert isinstance(vector, dict)
        vectors.append({k: t.to(base[k].dtype) if narrow else t for k, t in vector.items()})
    coefficients = torch.randn(tasks, len(sizes))
    ours = combine_task_vectors(base, vectors, coefficients)
    theirs = reference.combine_task_vectors(base, vectors, coefficients)
    for key, tensor in base.items():
        assert ours[key].dtype == tensor.dtype
        assert torch.equal(ours[key], theirs[key])


def test_tasks_in_different_dtypes() -> None:
    base = torch.randn(70).bfloat16()
    vectors = [torch.randn(70), torch.randn(70).bfloat16()]
    c = torch.tensor([0.5, 2.0])
    expected = (base.float() + (0.5 * vectors[0] + 2.0 * vectors[1].float())).bfloat16()
    assert torch.equal(combine_task_vectors(base, vectors, c), expected)


def test_special_values_stay_where_they_are() -> None:
    base = torch.zeros(300)
    base[7] = torch.nan
    vector = torch.ones(300)
    vector[100], vector[200] = torch.inf, torch.nan
    c = torch.tensor([2.0], requires_grad=True)
    result = combine_task_vectors(base, [vector], c)
    bad = [i for i, value in enumerate(result.tolist()) if value not in (2.0,)]
    assert bad == [7, 100, 200]
    (grad,) = torch.autograd.grad(result[:100].nansum(), c)
    assert grad.isnan().all()  # 0 * inf: the whole vector has one coefficient
    two = torch.ones(2, 2, requires_grad=True)
    model = combine_task_vectors(
        {"a": base, "b": base[:5]}, [{"a": vector, "b": vector[:5]}] * 2, two
    )
    (grad,) = torch.autograd.grad(model["a"].sum() + model["b"].sum(), two)
    assert grad[:, 0].isnan().all()
    assert grad[:, 1].tolist() == [5.0, 5.0]


def test_gradients() -> None:
    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        base, rows = {"a": tensors[0], "b": tensors[1]}, tensors[3:]
        vectors = [{"a": rows[0], "b": rows[1]}, {"a": rows[2], "b": rows[3]}]
        return tuple(combine_task_vectors(base, vectors, tensors[2]).values())

    base, vectors, c = example()
    inputs = [*base.values(), c, *(t for vector in vectors for t in vector.values())]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_gradients_of_shared_blocks() -> None:
    base, vectors, _ = example((5, 3, 0, 2))
    c = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def function(c: Tensor) -> tuple[Tensor, ...]:
        return tuple(combine_task_vectors(base, vectors, c, blocks=(2, 0, 1, 2)).values())

    assert torch.autograd.gradcheck(function, (c,))
    assert torch.autograd.gradgradcheck(function, (c,))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    base, vectors, c = example()
    vectors[1]["layer0"].requires_grad_()
    result = combine_task_vectors(base, vectors, c)
    sum(tensor.sum() for tensor in result.values()).backward()
    expected = c[1, 0] * torch.ones_like(vectors[1]["layer0"])
    assert torch.equal(vectors[1]["layer0"].grad, expected)
    assert c.grad is None
    assert vectors[0]["layer0"].grad is None
    assert vectors[1]["layer1"].grad is None


def test_products_are_summed_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1_000_003, generator=generator)
    grad = torch.randn(1_000_003, generator=generator)
    c = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    combine_task_vectors(torch.zeros_like(vector), [vector], c).backward(grad)
    exact = (vector.double() * grad.double()).sum()
    assert abs(c.grad.item() - exact.item()) <= 1e-12 * (vector * grad).abs().sum().item()


def test_the_same_bits_for_any_number_of_threads(threads: Any) -> None:
    base, vectors, _ = example((100_003, 5000, 4097), 3, torch.float32)
    grads = [torch.randn_like(tensor) for tensor in base.values()]
    found = []
    for count in (1, 2, 2):
        c = torch.full((3, 3), 0.3, requires_grad=True)
        with threads(count):
            result = list(combine_task_vectors(base, vectors, c).values())
            (gradient,) = torch.autograd.grad(result, c, grads)
        found.append([*(tensor.detach() for tensor in result), gradient])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_torch_func() -> None:
    base, vectors, c = example()
    jacobian = torch.func.jacrev(lambda c: combine_task_vectors(base, vectors, c)["layer1"])(c)
    expected = torch.zeros(3, 2, 2, dtype=torch.float64)
    expected[:, :, 1] = torch.stack([vector["layer1"] for vector in vectors], 1)
    assert torch.equal(jacobian, expected)

    def loss(c: Tensor) -> Tensor:
        return combine_task_vectors(base, vectors, c)["layer0"].square().sum()

    hessian = torch.func.jacrev(torch.func.grad(loss))(c)
    gram = torch.stack([v["layer0"] for v in vectors])
    torch.testing.assert_close(hessian[:, 0, :, 0], 2 * gram @ gram.T)


def test_compile_is_one_graph() -> None:
    torch._dynamo.reset()
    base, vectors, c = example((70, 30), 2, torch.float32)

    def loss(c: Tensor) -> Tensor:
        result = combine_task_vectors(base, vectors, c)
        return sum(tensor.square().sum() for tensor in result.values())

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        leaf = c.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_no_memory_of_the_size_of_all_vectors() -> None:
    """Forward and backward allocate no more than the result, whatever the number of tasks."""
    size, tasks = 200_000, 16
    base, vectors = torch.randn(size), [torch.randn(size) for _ in range(tasks)]
    c = torch.zeros(tasks, requires_grad=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        combine_task_vectors(base, vectors, c).backward(base)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert 4 * size <= allocated <= 4 * size + 200_000


def test_state_dicts_with_buffers() -> None:
    model = torch.nn.BatchNorm1d(3)
    base = model.state_dict()
    vectors = [{key: t + 1 for key, t in base.items() if t.is_floating_point()}]
    blocks = dict.fromkeys(vectors[0], 0)
    result = combine_task_vectors(base, vectors, torch.tensor([[1.0]]), blocks=blocks)
    assert list(result) == list(base)
    assert torch.equal(result["num_batches_tracked"], base["num_batches_tracked"])
    assert result["num_batches_tracked"] is not base["num_batches_tracked"]
    assert torch.equal(result["weight"], torch.full((3,), 3.0))


def test_a_changed_vector_is_noticed_by_backward() -> None:
    base, vectors, c = example()
    result = combine_task_vectors(base, vectors, c.requires_grad_())
    vectors[0]["layer0"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result["layer0"].sum().backward()


def test_forward_mode_is_refused() -> None:
    base, vectors, c = example()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        combine_task_vectors(base, vectors, forward_ad.make_dual(c, torch.ones_like(c)))


def test_meta_tensors() -> None:
    base, vectors, c = example()
    result = combine_task_vectors(
        {key: tensor.to("meta") for key, tensor in base.items()},
        [{key: tensor.to("meta") for key, tensor in vector.items()} for vector in vectors],
        c.to("meta"),
    )
    assert {key: tensor.shape for key, tensor in result.items()} == {
        key: tensor.shape for key, tensor in base.items()
    }


def test_use_reference() -> None:
    base, vectors, c = example()
    with robustcore.use_reference():
        expected = combine_task_vectors(base, vectors, c)
    assert all(torch.equal(combine_task_vectors(base, vectors, c)[k], expected[k]) for k in base)


BASE = {"a": torch.zeros(2), "b": torch.zeros(3)}
C = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((BASE, [], C), {}, ValueError, "vectors must hold at least one"),
        ((BASE, BASE["a"], C), {}, TypeError, "vectors must be a sequence or a mapping"),
        ((3, [BASE], C), {}, TypeError, "base must be a tensor or a state dict, got int"),
        ((BASE, [BASE], 3.0), {}, TypeError, "coefficients must be a torch.Tensor, got float"),
        ((BASE, [BASE], C.long()), {}, TypeError, "coefficients must be float32"),
        ((BASE, [BASE], C.to("meta")), {}, ValueError, "coefficients must be on cpu"),
        ((BASE, [BASE], torch.zeros(2, 2)), {}, ValueError, r"shape \(1, 2\), got \(2, 2\)"),
        ((BASE, [BASE], torch.zeros(2)), {}, ValueError, r"shape \(1,\), got \(2,\)"),
        ((BASE, [BASE], torch.zeros(1, 1)), {"blocks": [0, 1]}, ValueError, r"shape \(1, 2\)"),
        ((BASE, [BASE], torch.zeros(1)), {"blocks": [0, 0]}, ValueError, "blocks must be None"),
        ((BASE, [BASE], C), {"blocks": [0]}, ValueError, r"one number per tensor \(2\), got 1"),
        ((BASE, [BASE], C), {"blocks": {"a": 0, "c": 1}}, ValueError, r"missing \['b'\], unknown"),
        ((BASE, [BASE], C), {"blocks": [0, -1]}, ValueError, "must not be negative, got -1"),
        ((BASE, [BASE], C), {"blocks": [0, True]}, TypeError, "must be an int, got bool"),
        ((BASE, [BASE], C), {"blocks": "ab"}, TypeError, "blocks must be a mapping"),
        ((BASE, [{"a": torch.zeros(3)}], C), {}, ValueError, "2 differences"),
    ],
)
def test_errors(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        combine_task_vectors(*arguments, **options)
    assert str(caught.value).startswith("combine_task_vectors: ")


def test_task_coefficients_learn() -> None:
    base, vectors, wanted = example((5, 3), 2, torch.float32)
    target = combine_task_vectors(base, vectors, wanted)
    learned = TaskCoefficients(base, dict(zip("xy", vectors, strict=True)))
    assert [name for name, _ in learned.named_parameters()] == ["coefficients"]
    assert all(torch.equal(tensor, base[key]) for key, tensor in learned().items())
    optimizer = torch.optim.LBFGS(learned.parameters(), max_iter=100, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((tensor - target[key]).square().sum() for key, tensor in learned().items())
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(learned.coefficients.detach(), wanted, rtol=1e-3, atol=1e-3)
    assert repr(learned) == "TaskCoefficients(tasks=2, blocks=2)"
    other = TaskCoefficients(base, vectors)
    other.load_state_dict(learned.state_dict())
    assert torch.equal(other.coefficients, learned.coefficients)


def test_task_coefficients_check_at_once() -> None:
    with pytest.raises(ValueError, match="TaskCoefficients: the models must match"):
        TaskCoefficients(BASE, [{"a": torch.zeros(2)}])


def test_examples() -> None:
    module = importlib.import_module("robustcore.merging.combine_task_vectors")
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
