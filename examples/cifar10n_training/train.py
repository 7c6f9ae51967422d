"""One run: one method, one seed. Resumes from its checkpoint with the same numbers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcore.losses.noise_detection import DetectionReport, detect

from .files import load_tensors, save_tensors
from .methods import METHODS, Method, Setup
from .networks import augment
from .settings import Settings
from .task import Task

CHECKPOINT_SECONDS = 20.0
EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Outcome:
    numbers: dict[str, Any]
    detection: DetectionReport | None


def run(
    task: Task,
    name: str,
    values: dict[str, Any],
    seed: int,
    settings: Settings,
    checkpoint: Path,
    advance: Callable[[int], None],
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Outcome:
    """Trains, then measures. ``advance`` is told how many epochs are done."""
    device = task.inputs.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        training = _Training(task, name, values, seed, settings)
        training.restore(checkpoint)
        saved = time.monotonic()
        advance(training.epoch)
        while training.epoch < settings.epochs:
            training.run_epoch()
            advance(training.epoch)
            if time.monotonic() - saved >= checkpoint_seconds:
                training.save(checkpoint)
                saved = time.monotonic()
        outcome = _measure(training.method, task, name)
    outcome.numbers["milliseconds_per_step"] = 1e3 * statistics.median(training.step_seconds)
    return outcome


class _Training:
    """Everything that changes while a run goes on, and nothing else, is in a checkpoint."""

    def __init__(
        self, task: Task, name: str, values: dict[str, Any], seed: int, settings: Settings
    ) -> None:
        self.task, self.settings = task, settings
        device = task.inputs.device
        self.generator = torch.Generator().manual_seed(seed)
        random = torch.randn(len(task.given), settings.random_size, generator=self.generator)
        setup = Setup(
            task.classifier,
            len(task.given),
            len(task.classes),
            task.agreement,
            random.to(device),
        )
        self.method: Method = METHODS[name].build(setup, **values).to(device)
        if task.images:
            self.method.to(memory_format=torch.channels_last)
        self.optimizers = [
            _network_optimizer(self.method, settings),
            *self.method.own_optimizers(),
        ]
        self.epoch = 0
        self.step_seconds: list[float] = []

    def run_epoch(self) -> None:
        task, size = self.task, self.settings.batch_size
        device = task.inputs.device
        self.method.train()
        order = torch.randperm(len(task.given), generator=self.generator).to(device)
        batches = order.split(size)
        if task.images and len(batches) > 1 and len(batches[-1]) == 1:
            batches = batches[:-1]  # one row has no batch statistics
        start = _now(device)
        for number, index in enumerate(batches):
            self._set_rate((self.epoch + number / len(batches)) / self.settings.epochs)
            self._step(index)
            if device.type == "cpu":
                now = _now(device)
                self.step_seconds.append(now - start)
                start = now
        if device.type != "cpu":
            torch.accelerator.synchronize()
            self.step_seconds.append((_now(device) - start) / len(batches))
        self.epoch += 1

    def _step(self, index: Tensor) -> None:
        task = self.task
        x = task.inputs[index]
        if task.images:
            x = augment(x, self.generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            loss = self.method.loss(x, task.given[index], index)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def _set_rate(self, progress: float) -> None:
        rate = 0.5 * self.settings.learning_rate * (1 + math.cos(math.pi * progress))
        for group in self.optimizers[0].param_groups:
            group["lr"] = rate

    def save(self, path: Path) -> None:
        device = self.task.inputs.device
        save_tensors(
            path,
            {
                "epoch": self.epoch,
                "step_seconds": self.step_seconds,
                "method": self.method.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "generator": self.generator.get_state(),
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            },
        )

    def restore(self, path: Path) -> None:
        state = load_tensors(path)
        if state is None:
            return
        self.epoch, self.step_seconds = state["epoch"], state["step_seconds"]
        self.method.load_state_dict(state["method"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.task.inputs.device)


def _now(device: torch.device) -> float:
    """On the CPU the processor's time: other work on the machine does not count."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _network_optimizer(method: Method, settings: Settings) -> torch.optim.Optimizer:
    parameters = list(method.network_parameters())
    if settings.network == "features":
        return torch.optim.Adam(parameters, settings.learning_rate, fused=True)
    return torch.optim.SGD(
        parameters, settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


@torch.no_grad()
def _log_probabilities(method: Method, inputs: Tensor) -> Tensor:
    method.eval()
    return torch.cat(
        [method(batch).float().log_softmax(-1) for batch in inputs.split(EVALUATION_BATCH)]
    )


def _measure(method: Method, task: Task, name: str) -> Outcome:
    test = _log_probabilities(method, task.test_inputs).argmax(-1)
    train = _log_probabilities(method, task.inputs)
    repeats = train.argmax(-1) == task.given
    wrong = task.wrong
    numbers: dict[str, Any] = {
        "test_accuracy": _mean(test == task.test_labels),
        "memorised_wrong_labels": _mean(repeats[wrong]),
        "kept_right_labels": _mean(repeats[~wrong]),
    }
    if not bool(torch.isfinite(train).all()):
        return Outcome({**numbers, "detection_auc": None}, None)
    score = -train.gather(1, task.given[:, None])[:, 0]
    title = f"{METHODS[name].title}: −log p(given label)"
    report = detect(score, wrong, name=title)
    numbers["detection_auc"] = report.auc
    numbers["detection"] = report.to_dict()
    return Outcome(numbers, report)


def _mean(rows: Tensor) -> float | None:
    return rows.double().mean().item() if len(rows) else None
