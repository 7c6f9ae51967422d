"""linearize: a network that is linear in its weights, with the names of the original."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcore.merging import (
    LinearizedModule,
    TaskSwitcher,
    linearize,
    multi_task_vector,
    tall_masks,
    task_vector,
)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    return nn.Sequential(*layers).to(dtype)


def moved(module: nn.Module, scale: float, seed: int) -> nn.Module:
    """A copy with other weights, as after training."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (scale * noise).to(parameter.dtype)
    return other


def test_exact_for_a_network_that_is_linear_in_its_weights() -> None:
    model = nn.Linear(4, 3).double()
    linear, x = linearize(model), torch.randn(5, 4, dtype=torch.float64)
    for scale in (0.0, 1.0, 100.0):
        there = moved(linear, scale, 1)
        model.load_state_dict(there.state_dict())
        torch.testing.assert_close(there(x), model(x), rtol=1e-13, atol=1e-13)


def test_the_formula() -> None:
    model = network().eval()
    linear, x = linearize(model), torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(linear(x), model(x))
    there = moved(linear, 0.3, 1)
    start = dict(model.named_parameters())

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (x,))

    jacobian = torch.func.jacrev(outputs)({key: t.detach() for key, t in start.items()})
    expected = model(x)
    for key, parameter in there.named_parameters():
        change = (parameter - start[key]).reshape(-1)
        expected = expected + jacobian[key].flatten(2) @ change
    torch.testing.assert_close(there(x), expected, rtol=1e-12, atol=1e-12)
    assert (there(x) - model(x)).abs().max() > 0.01


def test_gradients_are_those_of_the_start_wherever_the_weights_are() -> None:
    model = network().eval()
    linear, x = linearize(model), torch.randn(5, 4, dtype=torch.float64)
    cotangent = torch.randn(5, 3, dtype=torch.float64)
    model(x).backward(cotangent)
    for scale in (0.0, 2.0):
        there = moved(linear, scale, 1)
        there(x).backward(cotangent)
        for (name, ours), theirs in zip(there.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12, msg=name)


def test_gradcheck() -> None:
    linear = moved(linearize(network()), 0.3, 1)
    names = [name for name, _ in linear.named_parameters()]
    x = torch.randn(2, 4, dtype=torch.float64)

    def function(*weights: Tensor) -> Tensor:
        return torch.func.functional_call(linear, dict(zip(names, weights, strict=True)), (x,))

    leaves = [parameter.detach().clone().requires_grad_() for parameter in linear.parameters()]
    assert torch.autograd.gradcheck(function, leaves)


def test_task_vectors_add_up() -> None:
    """Merging is exact in the tangent space: what each task changes in the output is added."""
    linear, x = linearize(network()), torch.randn(5, 4, dtype=torch.float64)
    start = linear.initial_state_dict()
    tasks = [moved(linear, 0.5, seed) for seed in (1, 2)]
    vector = multi_task_vector(start, [task.state_dict() for task in tasks])
    merged = {key: start[key] + vector[key] if key in vector else t for key, t in start.items()}
    both = copy.deepcopy(linear)
    both.load_state_dict(merged)
    expected = tasks[0](x) + tasks[1](x) - linear(x)
    torch.testing.assert_close(both(x), expected, rtol=1e-12, atol=1e-12)
    plain = network().eval()
    plain.load_state_dict(merged)
    assert (plain(x) - expected).abs().max() > 0.01


def test_names_are_those_of_the_original() -> None:
    model = network()
    linear = linearize(model)
    assert list(linear.state_dict()) == list(model.state_dict())
    assert [n for n, _ in linear.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert linear.load_state_dict(model.state_dict()).missing_keys == []
    assert model.load_state_dict(linear.state_dict()).unexpected_keys == []
    start = linear.initial_state_dict()
    assert list(start) == list(model.state_dict())
    assert all(torch.equal(start[key], tensor) for key, tensor in model.state_dict().items())
    start["0.weight"].zero_()
    assert linear.initial_state_dict()["0.weight"].any()


def test_the_original_is_left_alone() -> None:
    model = network()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    linear = linearize(model)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.zero_()
    linear(torch.randn(5, 4, dtype=torch.float64)).sum().backward()
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(list(model.buffers())) == 3


def test_training_mode_changes_nothing() -> None:
    linear, x = linearize(network()), torch.randn(5, 4, dtype=torch.float64)
    expected = linear.eval()(x)
    assert linear.train() is linear
    assert linear.training
    assert torch.equal(linear(x), expected)  # no dropout, and the running statistics
    assert torch.equal(linear(x), expected)
    assert not linear.eval().training


def test_training_finds_the_one_minimum() -> None:
    linear, x = linearize(network()), torch.randn(5, 4, dtype=torch.float64)
    y = moved(linear, 0.5, 1)(x).detach()
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (linear(x) - y).square().mean()
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < 1e-8 * before


def test_works_with_the_rest() -> None:
    linear, x = linearize(network()), torch.randn(5, 4, dtype=torch.float64)
    start = linear.initial_state_dict()
    tasks = {f"task {seed}": moved(linear, 0.5, seed).state_dict() for seed in (1, 2)}
    masks = tall_masks(start, tasks).select(0.4)
    vector = multi_task_vector(start, tasks)
    expected = copy.deepcopy(linear)
    expected.load_state_dict(masks.apply("task 2", start, vector))
    base = linear(x)
    with TaskSwitcher(linear, masks, vector).using("task 2"):
        assert torch.equal(linear(x), expected(x))
    assert torch.equal(linear(x), base)
    assert set(task_vector(start, tasks["task 1"])) == set(vector)


def test_it_moves_copies_and_pickles() -> None:
    linear = moved(linearize(network()), 0.3, 1)
    x = torch.randn(5, 4, dtype=torch.float64)
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert torch.equal(other(x), linear(x))
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert not torch.equal(other(x), linear(x))
    narrow = copy.deepcopy(linear).float()
    assert {tensor.dtype for tensor in narrow._initial().values()} == {torch.float32}
    torch.testing.assert_close(narrow(x.float()), linear(x).float(), rtol=1e-4, atol=1e-4)


class Several(nn.Module):
    """Tied weights, keyword arguments, a structure of outputs, a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor, *, factor: float) -> dict[str, Any]:
        y = self.second(self.first(x).tanh())
        return {"scaled": self.scale * y * factor, "parts": (y, y.sum())}


def test_tied_weights_and_structures() -> None:
    model = Several()
    linear, x = linearize(model), torch.randn(2, 3)
    assert list(linear.state_dict()) == list(model.state_dict())
    assert linear.second.weight is linear.first.weight
    ours, theirs = linear(x, factor=3.0), model(x, factor=3.0)
    torch.testing.assert_close(ours, theirs)
    there = moved(linear, 1e-3, 1)
    near = copy.deepcopy(model)
    near.load_state_dict(there.state_dict())
    torch.testing.assert_close(there(x, factor=3.0), near(x, factor=3.0), rtol=1e-4, atol=1e-4)
    assert there.initial_state_dict()["second.weight"].equal(model.first.weight)
    assert there.initial_state_dict()["steps"].item() == 3


@pytest.mark.parametrize("grad", [False, True])
def test_attention(grad: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    linear, x = linearize(model), torch.randn(2, 3, 8)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(linear(x), model(x), rtol=1e-5, atol=1e-5)


def test_compile_is_one_graph() -> None:
    torch._dynamo.reset()
    linear = moved(linearize(network(torch.float32)), 0.3, 1)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 4)
    torch.testing.assert_close(compiled(x), linear(x))


def test_frozen_parameters_stay_frozen() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    linear = linearize(model)
    linear(torch.randn(5, 4, dtype=torch.float64)).sum().backward()
    assert linear.get_parameter("0.weight").grad is None
    assert linear.get_parameter("0.bias").grad is not None


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got dict"):
        linearize({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="linearize: model must have parameters"):
        linearize(nn.ReLU())
    with pytest.raises(ValueError, match="linearized already"):
        linearize(nn.Sequential(linearize(nn.Linear(2, 2))))
    complex_model = nn.Module()
    complex_model.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="linearize: weight must be float32"):
        linearize(complex_model)
    with pytest.raises(ValueError, match="mode must be a bool"):
        linearize(nn.Linear(2, 2)).train("yes")  # type: ignore[arg-type]
    assert isinstance(linearize(nn.Linear(2, 2)), LinearizedModule)


def test_examples() -> None:
    found = doctest.testmod(importlib.import_module("robustcore.merging.tangent"))
    assert found.attempted > 0
    assert found.failed == 0
