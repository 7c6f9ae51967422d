"""A sequence model around a linear recurrence, with a Python loop and with one operator.

The digits are read as sequences of 64 pixels, row by row. Each pixel gives a gate a_t = sigmoid(…)
and a value v_t = tanh(…) in every channel; the state is h_t = a_t h_{t−1} + (1 − a_t) v_t, and a
small network reads the digit from the last state. The model is trained twice from the same weights
with the same batches; the two runs differ in nothing but the function that computes h.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..pcr import linear_recurrence
from .data import CLASSES, PIXELS, Digits, Split
from .training import Advance, accuracy, batches, multilayer_perceptron, step

Recurrence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths of training."""

    epochs: int = 40
    batch_size: int = 32
    channels: int = 64
    learning_rate: float = 5e-3
    repetitions: int = 50
    seed: int = 0

    @property
    def steps(self) -> int:
        """Units of progress: one epoch of one of the two runs."""
        return 2 * self.epochs


def python_loop(a: Tensor, x: Tensor) -> Tensor:
    """h_t = a_t h_{t−1} + x_t over the second dimension of [B, T, C], one step at a time."""
    state = torch.zeros_like(x[:, 0])
    states = []
    for gate, value in zip(a.unbind(1), x.unbind(1), strict=True):
        state = gate * state + value
        states.append(state)
    return torch.stack(states, 1)


RECURRENCES: dict[str, Recurrence] = {"loop": python_loop, "operator": linear_recurrence}


class SequenceModel(nn.Module):
    """Pixel sequences [N, 64] to logits [N, 10]: gates and values, recurrence, readout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(1, channels)
        self.value = nn.Linear(1, channels)
        # What a gate or a value adds for its place in the sequence. The channels start with
        # memories from about 2 to 150 pixels long.
        memory = torch.linspace(0.0, 5.0, channels)
        self.gate_position = nn.Parameter(0.5 * torch.randn(PIXELS, channels) + memory)
        self.value_position = nn.Parameter(0.5 * torch.randn(PIXELS, channels))
        self.readout = multilayer_perceptron(channels, channels, CLASSES)

    def forward(self, pixels: Tensor, recurrence: Recurrence) -> Tensor:
        pixels = pixels.unsqueeze(-1)
        a = torch.sigmoid(self.gate(pixels) + self.gate_position)
        x = (1.0 - a) * torch.tanh(self.value(pixels) + self.value_position)
        return self.readout(recurrence(a, x)[:, -1])


class _Run:
    """One of the two trainings: its own copy of the model, its own optimiser and batches."""

    def __init__(self, model: SequenceModel, recurrence: Recurrence, settings: Settings) -> None:
        self.model, self.recurrence, self.settings = model, recurrence, settings
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        self.order = torch.Generator().manual_seed(settings.seed)
        self.losses: list[float] = []
        self.test_accuracies: list[float] = []
        self.epoch_seconds: list[float] = []

    def epoch(self, train: Split, test: Split) -> None:
        pixels, target = train.images.flatten(1), train.digits
        start = time.perf_counter()
        for rows in batches(len(target), self.settings.batch_size, self.order):
            loss = F.cross_entropy(self.model(pixels[rows], self.recurrence), target[rows])
            step(self.optimizer, loss)
            self.losses.append(loss.item())
        self.epoch_seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            logits = self.model(test.images.flatten(1), self.recurrence)
        self.test_accuracies.append(accuracy(logits, test.digits))


def _time_recurrence(settings: Settings) -> dict[str, float]:
    """Median seconds of the recurrence alone, forward and backward, at the training's shape."""
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.batch_size, PIXELS, settings.channels)
    a = torch.rand(shape, generator=generator).requires_grad_()
    x = torch.randn(shape, generator=generator).requires_grad_()
    cotangent = torch.randn(shape, generator=generator)
    seconds: dict[str, list[float]] = {name: [] for name in RECURRENCES}
    # In turns, so that whatever else the machine does meets both; the first turn warms up.
    for _ in range(settings.repetitions + 1):
        for name, recurrence in RECURRENCES.items():
            start = time.perf_counter()
            torch.autograd.grad(recurrence(a, x), (a, x), cotangent)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def run(digits: Digits, settings: Settings, advance: Advance) -> dict[str, Any]:
    """Train with both recurrences in turns, epoch by epoch; loss curves and times."""
    alone = _time_recurrence(settings)
    torch.manual_seed(settings.seed)
    model = SequenceModel(settings.channels)
    runs = {
        name: _Run(copy.deepcopy(model), recurrence, settings)
        for name, recurrence in RECURRENCES.items()
    }
    for _ in range(settings.epochs):
        for one in runs.values():
            one.epoch(digits.train, digits.test)
            advance()

    seconds = {name: sum(one.epoch_seconds) for name, one in runs.items()}
    pairs = zip(runs["loop"].losses, runs["operator"].losses, strict=True)
    difference = [abs(loop - operator) for loop, operator in pairs]
    return {
        "images": {"train": len(digits.train), "test": len(digits.test)},
        "shape": [settings.batch_size, PIXELS, settings.channels],
        "epochs": settings.epochs,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "losses": {name: one.losses for name, one in runs.items()},
        "test_accuracy": {name: one.test_accuracies[-1] for name, one in runs.items()},
        "loss_difference": difference,
        "largest_loss_difference": max(difference),
        "training_seconds": seconds,
        "training_speedup": seconds["loop"] / seconds["operator"],
        "recurrence_seconds": alone,
        "recurrence_speedup": alone["loop"] / alone["operator"],
    }
