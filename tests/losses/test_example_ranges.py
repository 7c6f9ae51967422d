"""Losses with numbers per example: parts of a data set, their checkpoints, modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcore.losses import ALDRKLLoss, EarlyLearningLoss, OverParameterizedLoss

EXAMPLES, CLASSES = 12, 5

MODULES: dict[str, Callable[..., Any]] = {
    "EarlyLearningLoss": lambda **options: EarlyLearningLoss(EXAMPLES, CLASSES, **options),
    "OverParameterizedLoss": lambda **options: OverParameterizedLoss(EXAMPLES, CLASSES, **options),
    "ALDRKLLoss": lambda **options: ALDRKLLoss(EXAMPLES, **options),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def numbers(criterion: nn.Module) -> dict[str, Tensor]:
    """What the module keeps per example."""
    kept = {**dict(criterion.named_parameters()), **dict(criterion.named_buffers())}
    return {name: value for name, value in kept.items() if name != "weight"}


def fill(criterion: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for value in numbers(criterion).values():
        with torch.no_grad():
            value.copy_(torch.rand(value.shape, generator=generator) / 8 + 0.1)


def batch(index: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(index), CLASSES, generator=generator)
    return logits, torch.arange(len(index)) % CLASSES, torch.tensor(index)


@every_module
def test_a_shard_is_a_copy_of_its_examples(make: Callable[..., Any]) -> None:
    whole = make(label_smoothing=0.1).eval()
    fill(whole)
    part = whole.shard(4, 9)
    assert (part.start, part.stop, part.num_examples) == (4, 9, EXAMPLES)
    assert not part.training
    given = batch([4, 8, 6])
    assert torch.equal(part(*given), whole(*given))
    for name, value in numbers(part).items():
        assert torch.equal(value, numbers(whole)[name][4:9])
        with torch.no_grad():
            value.zero_()
        assert (numbers(whole)[name] != 0).all()
    assert part.shard(5, 6).start == 5
    with pytest.raises(IndexError, match=r"index must be in \[4, 9\), got 9"):
        part(*batch([4, 9]))
    with pytest.raises(ValueError, match=r"shard: start and stop must be in \[4, 9\], got 3 and 5"):
        part.shard(3, 5)
    with pytest.raises(TypeError, match=r"shard: stop must be an int"):
        part.shard(4, 5.0)


def test_a_shard_of_parameters_keeps_their_requires_grad() -> None:
    whole = OverParameterizedLoss(EXAMPLES, CLASSES)
    whole.u.requires_grad_(False)
    part = whole.shard(0, 3)
    assert not part.u.requires_grad
    assert part.v.requires_grad
    assert part.v.is_leaf


@every_module
def test_a_state_dict_names_its_examples(make: Callable[..., Any]) -> None:
    """Other examples' numbers of the same shape are refused, and nothing of them is loaded."""
    first, same, second = make(stop=6), make(stop=6), make(start=6)
    fill(first)
    same.load_state_dict(first.state_dict())
    before = {name: value.clone() for name, value in numbers(second).items()}
    for strict in (True, False):
        with pytest.raises(
            RuntimeError, match=r"examples \[6, 12\) of 12 .* from that of \[0, 6\) of 12"
        ):
            second.load_state_dict(first.state_dict(), strict=strict)
    nested = nn.Sequential(second)
    with pytest.raises(RuntimeError, match=r"0\.state of the examples"):
        nested.load_state_dict(nn.Sequential(first).state_dict())
    for name, value in numbers(first).items():
        assert torch.equal(numbers(same)[name], value)
        assert torch.equal(numbers(second)[name], before[name])


@every_module
def test_a_shard_without_examples(make: Callable[..., Any]) -> None:
    empty = make(start=3, stop=3)
    logits, target, index = batch([5, -1])
    ignored = torch.full_like(target, -100)
    leaf = logits.requires_grad_()
    assert empty(leaf, ignored, index).isnan()
    empty.reduction = "sum"
    loss = empty(leaf, ignored, index)
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], torch.zeros_like(leaf))
    with pytest.raises(IndexError, match=r"index must be in \[3, 3\), got 5"):
        empty(leaf, target, index)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("make", [MODULES["EarlyLearningLoss"], MODULES["ALDRKLLoss"]])
def test_only_eval_stops_the_update(make: Callable[..., Any], mode: Any) -> None:
    criterion = make()
    (value,) = numbers(criterion).values()
    before = value.clone()
    with mode():
        criterion.eval()(*batch([1, 2]))
        assert torch.equal(value, before)
        criterion.train()(*batch([1, 2]))
        assert not torch.equal(value, before)
