"""TaskSwitcher: weights of tasks in place, the base back bit for bit, changes noticed."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
import threading
from typing import Any

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import robustcore
from robustcore.merging import PackedMasks, TaskSwitcher, multi_task_vector, tall_masks
from robustcore.testing import check_sample, operators
from robustcore.testing.samples_merging import random_models, tall_masks_samples

State = dict[str, Tensor]
(CASE,) = operators("merging", "task_switcher")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def snapshot(model: Any) -> State:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    return {key: tensor.detach().clone() for key, tensor in state.items()}


def same(first: State, second: State) -> bool:
    def bits(tensor: Tensor) -> Tensor:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

    assert first.keys() == second.keys()
    return all(torch.equal(bits(first[key]), bits(second[key])) for key in first)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def tasks_of(base: State, names: tuple[str, ...] = ("a", "b", "c")) -> dict[str, State]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: {
            key: (t + torch.randn(t.shape, generator=generator).to(t.dtype))
            if t.is_floating_point()
            else t.clone()
            for key, t in base.items()
        }
        for name in names
    }


def prepared(base: State, tasks: dict[str, State] | None = None) -> tuple[PackedMasks, State]:
    tasks = tasks or tasks_of(base)
    vector = multi_task_vector(base, tasks)
    assert isinstance(vector, dict)
    return tall_masks(base, tasks).select(0.4), vector


def switcher_of(model: nn.Module, **options: Any) -> tuple[TaskSwitcher, dict[str | None, State]]:
    """A switcher, and the state dicts that it should make."""
    base = snapshot(model)
    masks, vector = prepared(base)
    states: dict[str | None, State] = {None: base}
    states |= {name: masks.apply(name, base, vector) for name in masks.tasks}
    return TaskSwitcher(model, masks, vector, **options), states


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sample", [s for s in tall_masks_samples() if "merged" in s.kwargs], ids=lambda s: s.name
)
def test_samples(sample: Any, dtype: torch.dtype) -> None:
    for finding in check_sample(CASE, sample, "cpu", dtype):
        assert finding.comparison.passed, (finding.quantity, str(finding.comparison))


def test_a_module_walks_over_its_tasks() -> None:
    model = network()
    switcher, states = switcher_of(model)
    parameters = dict(model.named_parameters())
    for task in ("a", "c", 1, None, "b", "b", "a", None):
        assert switcher.to(task) is switcher
        name = switcher.tasks[task] if isinstance(task, int) else task
        assert switcher.current == name
        assert same(snapshot(model), states[name])
    assert all(parameters[key] is tensor for key, tensor in model.named_parameters())
    assert same(snapshot(model), states[None])


@given(
    st.lists(st.sampled_from(strategies.EDGE_SIZES), min_size=1, max_size=4),
    st.lists(strategies.floating_dtypes, min_size=4, max_size=4),
    st.lists(st.sampled_from([0, 1, 2, None]), max_size=5),
)
def test_state_dicts_of_mixed_dtypes(
    sizes: list[int], dtypes: list[torch.dtype], walk: list[int | None]
) -> None:
    base, finetuned = random_models(tuple(sizes), 3)
    base = {key: t.to(dtype) for (key, t), dtype in zip(base.items(), dtypes, strict=False)}
    tasks = {n: {k: t.to(base[k].dtype) for k, t in m.items()} for n, m in finetuned.items()}
    first = base["layer0"]
    first[:2] = torch.tensor([-0.0, torch.nan])[: first.numel()].to(first.dtype)
    masks, vector = prepared(base, tasks)
    weights = snapshot(base)
    switcher = TaskSwitcher(weights, masks, vector)
    for task in walk:
        switcher.to(task)
        expected = base if task is None else masks.apply(task, base, vector)
        assert same(weights, expected)
    switcher.restore()
    assert same(weights, base)


def test_one_tensor() -> None:
    base = torch.randn(70)
    tasks = [base + torch.randn(70) for _ in range(2)]
    masks, vector = tall_masks(base, tasks).select(0.4), multi_task_vector(base, tasks)
    weights = base.clone()
    switcher = TaskSwitcher(weights, masks, vector)
    assert torch.equal(switcher.to(1)._weights.tensors[0], masks.apply(1, base, vector))
    assert switcher._weights.tensors[0] is weights
    switcher.restore()
    assert torch.equal(weights, base)


def test_integer_buffers_and_unknown_buffers_stay() -> None:
    model = network()
    switcher, states = switcher_of(model)
    counter = model[1].num_batches_tracked
    model[1].register_buffer("extra", torch.full((3,), 5.0))
    counter.fill_(9)
    switcher.to("a")
    assert counter.item() == 9
    assert model[1].extra.tolist() == [5.0] * 3
    base = {key: t for key, t in states[None].items() if t.is_floating_point()}
    base = {key: t for key, t in base.items() if not key.startswith("1.running")}
    model.load_state_dict(states[None], strict=False)
    masks, vector = prepared(base)
    other = TaskSwitcher(model, masks, vector)
    means = model[1].running_mean.clone()
    other.to("a")
    assert torch.equal(model[1].running_mean, means)
    assert not torch.equal(model[3].weight, states[None]["3.weight"])


def test_contexts_restore() -> None:
    model = network()
    switcher, states = switcher_of(model)
    with switcher.using("a") as same_switcher:
        assert same_switcher is switcher
        assert same(snapshot(model), states["a"])
        with switcher.using("b"):
            assert same(snapshot(model), states["b"])
        assert same(snapshot(model), states["a"])
    assert same(snapshot(model), states[None])
    with pytest.raises(KeyError), switcher.using("c"):
        raise KeyError
    assert same(snapshot(model), states[None])

    def spoil() -> None:
        with torch.no_grad():
            model[3].weight.fill_(2.0)
        raise KeyError

    with pytest.raises(KeyError), switcher.using("c"):
        spoil()
    assert same(snapshot(model), states[None])
    assert switcher.current is None


def test_training_inside_a_context_is_not_thrown_away() -> None:
    model = network()
    switcher, states = switcher_of(model)
    changed = pytest.raises(RuntimeError, match="weights were changed")
    with changed, torch.no_grad(), switcher.using("a"):
        model[3].weight.fill_(2.0)
    assert (model[3].weight == 2).all()
    switcher.restore(force=True)
    assert same(snapshot(model), states[None])


def test_changes_are_noticed() -> None:
    model = network()
    switcher, states = switcher_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    optimizer.step()
    changed = snapshot(model)
    with pytest.raises(RuntimeError, match=r"TaskSwitcher.to: weights were changed .* force=True"):
        switcher.to("a")
    assert same(snapshot(model), changed)
    assert switcher.to("a", force=True).current == "a"
    state = snapshot(model)
    state["1.num_batches_tracked"] = states["a"]["1.num_batches_tracked"]
    assert same(state, states["a"])
    switcher.to("b")
    model.load_state_dict(states["c"])
    with pytest.raises(RuntimeError, match="and 3 more"):
        switcher.to("a")
    switcher.to("b", force=True)
    model[3].weight.data = torch.zeros(3, 16)
    with pytest.raises(RuntimeError, match=r"'3\.weight'"):
        switcher.restore()
    switcher.to(None, force=True)
    model[3].weight = nn.Parameter(torch.zeros(3, 16))
    with pytest.raises(RuntimeError, match=r"'3\.weight'"):
        switcher.restore()
    switcher.to("c", force=True)
    assert torch.equal(model[3].weight, states["c"]["3.weight"])
    model[3].weight = nn.Parameter(torch.zeros(3, 17))
    with pytest.raises(RuntimeError, match="replaced by something else"):
        switcher.to("a", force=True)


def test_moving_the_model_needs_a_new_switcher() -> None:
    model = network()
    switcher, _ = switcher_of(model)
    model.double()
    with pytest.raises(RuntimeError, match="make a new TaskSwitcher after moving"):
        switcher.to("a", force=True)


def test_an_interrupted_switch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    switcher, states = switcher_of(model)

    def fails(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(switcher, "_pass", fails)
        with pytest.raises(MemoryError):
            switcher.to("a")
    with pytest.raises(RuntimeError, match="the last switch was interrupted"):
        switcher.to("b")
    switcher.to("b", force=True)
    assert same(snapshot(model), states["b"])


def test_backward_through_other_weights_is_an_error() -> None:
    model = network()
    switcher, _ = switcher_of(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    loss = model.eval()(torch.randn(2, 2, 4, 4, requires_grad=True)).sum()
    switcher.to("a")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    model(torch.randn(2, 2, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_inference_mode() -> None:
    model = network()
    switcher, states = switcher_of(model)
    with torch.inference_mode():
        switcher.to("a")
        model.eval()(torch.randn(2, 2, 4, 4))
    assert same(snapshot(model), states["a"])
    switcher.to("b")
    assert same(snapshot(model), states["b"])


def test_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    base = snapshot(model)
    tasks = tasks_of(base)
    with pytest.raises(ValueError, match="tied weights must have one value") as caught:
        TaskSwitcher(model, *prepared(base, tasks))
    assert "'0.weight' and '1.weight' are tied, but merged" in str(caught.value)
    assert "the masks of 'a' differ" in str(caught.value)
    assert same(snapshot(model), base)
    for task in tasks.values():
        task["1.weight"] = task["0.weight"]
    masks, vector = prepared(base, tasks)
    switcher = TaskSwitcher(model, masks, vector)
    for name in (*masks.tasks, masks.tasks[0]):
        switcher.to(name)
        assert same(snapshot(model), masks.apply(name, base, vector))
    switcher.restore()
    assert same(snapshot(model), base)
    assert model[1].weight is model[0].weight


def test_channels_last_and_interleaved_weights() -> None:
    model = network().to(memory_format=torch.channels_last)
    switcher, states = switcher_of(model)
    strides = model[0].weight.stride()
    for task in ("a", "b", None):
        switcher.to(task)
        assert same(snapshot(model), states[task])
    assert model[0].weight.stride() == strides
    store = torch.randn(10, 6)
    weights = {"q": store[:, :3], "k": store[:, 3:]}
    base = snapshot(weights)
    masks, vector = prepared(base)
    TaskSwitcher(weights, masks, vector).to("a")
    assert same(weights, masks.apply("a", base, vector))


@pytest.mark.parametrize(
    "weights",
    [
        lambda store: {"q": store[:6], "k": store[4:]},
        lambda store: {"q": store[:1].expand(6, 6), "k": store[4:]},
    ],
    ids=["overlapping", "expanded"],
)
def test_weights_that_overlap_are_refused(weights: Any) -> None:
    model = weights(torch.randn(10, 6))
    base = snapshot(model)
    with pytest.raises(ValueError, match=r"must not overlap .* got \[.*'q'.*\]"):
        TaskSwitcher(model, *prepared(base))


def test_base_given() -> None:
    model, other = network(), network()
    base = snapshot(other)
    masks, vector = prepared(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    switcher = TaskSwitcher(model, masks, vector, base)
    assert same(snapshot(model), base)
    assert switcher._base[0] is base["0.bias"] or switcher._base[0].data_ptr() == (
        base["0.bias"].data_ptr()
    )
    switcher.to("a")
    assert same(snapshot(model), masks.apply("a", base, vector))
    # A state dict shares its memory with the model: it has to be copied.
    switcher.restore()
    sharing = TaskSwitcher(model, masks, vector, model.state_dict())
    sharing.to("b")
    sharing.restore()
    assert same(snapshot(model), base)


def test_bytes() -> None:
    model = nn.Linear(100, 100)
    switcher, _ = switcher_of(model)
    words = (10100 + 63) // 64 * 8
    assert switcher.nbytes == 2 * 4 * 10100 + 4 * words
    assert repr(switcher) == (
        f"TaskSwitcher(tasks=['a', 'b', 'c'], current=None, nbytes={switcher.nbytes}, device=cpu)"
    )


def test_one_report_of_all_differences() -> None:
    base = snapshot(network())
    masks, vector = prepared(base)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3, bias=False).half()
    )
    model.extra = nn.Parameter(torch.zeros(1))
    short = {key: tensor for key, tensor in vector.items() if key != "3.bias"}
    before = snapshot(model)
    with pytest.raises(ValueError, match="TaskSwitcher: the models must match") as caught:
        TaskSwitcher(model, masks, short, {**base, "0.bias": torch.zeros(5)})
    lines = str(caught.value).splitlines()[1:]
    expected = [
        "model['0.weight'] must have shape (4, 2, 3, 3), got (4, 2, 1, 1)",
        "model['3.bias'] is missing",
        "model['3.weight'] must be float32, got float16",
        "model['extra'] is not in base",
        "merged['3.bias'] is missing",
        "base['0.bias'] must have shape (4,), got (5,)",
    ]
    assert [line.strip() for line in lines] == expected
    assert same(snapshot(model), before)


def test_errors() -> None:
    model = network()
    masks, vector = prepared(snapshot(model))
    with pytest.raises(TypeError, match="masks must be PackedMasks, got str"):
        TaskSwitcher(model, "masks", vector)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a tensor or a state dict, got int"):
        TaskSwitcher(3, masks, vector)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="merged must be a tensor or a state dict, got Sequential"):
        TaskSwitcher(model, masks, model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="merged must be a state dict"):
        TaskSwitcher(model, masks, torch.zeros(3))
    with pytest.raises(ValueError, match="meta tensors"):
        TaskSwitcher(network().to("meta"), masks, vector)
    with torch.inference_mode():
        frozen = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="inference tensors"):
        TaskSwitcher(frozen, masks, vector)
    switcher = TaskSwitcher(model, masks, vector)
    with pytest.raises(IndexError, match=r"TaskSwitcher.to: task must be one of \['a', 'b', 'c'\]"):
        switcher.to("d")
    with pytest.raises(IndexError, match=r"TaskSwitcher\.using: task must be from 0 to 2, got 3"):
        switcher.using(3).__enter__()
    with pytest.raises(TypeError, match=r"TaskSwitcher\.to: task must be an index or a name"):
        switcher.to(1.0)  # type: ignore[arg-type]
    for function in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            function(switcher)
    assert switcher.current is None


def test_threads_take_turns() -> None:
    model = network().eval()
    switcher, states = switcher_of(model)
    failures = []

    def work(task: str) -> None:
        for _ in range(20):
            with switcher.using(task):
                first = snapshot(model)
                model(torch.randn(4, 2, 4, 4))
                if not (same(first, states[task]) and same(snapshot(model), states[task])):
                    failures.append(task)

    workers = [threading.Thread(target=work, args=(task,)) for task in switcher.tasks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert switcher.current is None


def test_use_reference() -> None:
    model = network()
    switcher, states = switcher_of(model)
    with robustcore.use_reference():
        for task in ("a", "b", None):
            switcher.to(task)
            assert same(snapshot(model), states[task])


def test_nothing_to_switch() -> None:
    model = nn.ReLU()
    base: State = {}
    masks = tall_masks(base, {"a": {}}).select(0.4)
    switcher = TaskSwitcher(model, masks, {})
    assert switcher.to("a").current == "a"
    switcher.restore()


@pytest.mark.cuda
def test_cuda() -> None:
    model = network()
    base = snapshot(model)
    masks, vector = prepared(base)
    on_device = network().cuda()
    switcher = TaskSwitcher(on_device, masks, vector)  # masks and vector come from the CPU
    for task in ("a", "b", None):
        switcher.to(task)
        expected = base if task is None else masks.apply(task, base, vector)
        assert same({k: t.cpu() for k, t in snapshot(on_device).items()}, expected)


def test_examples() -> None:
    found = doctest.testmod(importlib.import_module("robustcore.merging.task_switcher"))
    assert found.attempted > 0
    assert found.failed == 0
