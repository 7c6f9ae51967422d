"""What the three experiments share: networks, batches, accuracy, seeds and threads."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Advance = Callable[[], None]
"""Called once per finished unit of work; moves a progress bar."""


def multilayer_perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers of the given sizes with a ReLU between each two of them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of one epoch in random order, ``size`` at a time."""
    yield from torch.randperm(count, generator=generator).split(size)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step on ``loss``."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of rows whose largest logit is at the target."""
    return (logits.argmax(-1) == target).double().mean().item()


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for a single value) and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "per_seed": list(values),
    }


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """One thread and a private random state; both as they were before on leaving.

    The networks here are so small that a second thread costs more than it brings, most of all on
    a busy machine, and sums taken by one thread are the same on every number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
