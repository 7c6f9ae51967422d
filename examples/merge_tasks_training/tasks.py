"""The networks that are merged: a base, and one fine-tuned network per task of the demo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcore.demo.data import CLASSES, SIDE, Digits, Split
from robustcore.demo.task_vectors import TASKS, Task
from robustcore.demo.training import accuracy, batches, step

from .network import VisionTransformer

State = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths of training."""

    width: int = 64
    blocks: int = 6
    base_epochs: int = 40
    head_epochs: int = 30
    fine_tuning_epochs: int = 8
    batch_size: int = 64
    base_rate: float = 2e-3
    head_rate: float = 1e-2
    fine_tuning_rate: float = 1e-3

    @property
    def epochs(self) -> int:
        """Epochs of the whole network, the unit of progress."""
        return self.base_epochs + len(TASKS) * self.fine_tuning_epochs


@dataclass
class Models:
    """What training leaves: the parts to merge, and the head of each task, which is not merged."""

    network: VisionTransformer
    base: State
    finetuned: dict[str, State]
    heads: dict[str, nn.Linear]

    def saved(self) -> dict[str, Any]:
        """For :func:`torch.save`; :meth:`restored` makes the models of it again."""
        heads = {name: head.state_dict() for name, head in self.heads.items()}
        return {"base": self.base, "finetuned": self.finetuned, "heads": heads}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], settings: Settings) -> Models:
        heads = {}
        for name, state in saved["heads"].items():
            heads[name] = nn.Linear(settings.width, TASKS[name].classes)
            heads[name].load_state_dict(state)
        return cls(_network(settings), saved["base"], saved["finetuned"], heads)

    @torch.no_grad()
    def accuracies(
        self, state: Mapping[str, Tensor], split: Split, tasks: Iterable[str] = TASKS
    ) -> dict[str, float]:
        """Accuracy by task; those that differ only in their question share an image's features."""
        self.network.load_state_dict(state)
        features: dict[Callable[[Tensor], Tensor], Tensor] = {}
        found = {}
        for name in tasks:
            task = TASKS[name]
            inputs, target = task.data(split)
            if task.image not in features:
                features[task.image] = self.network(inputs)
            found[name] = accuracy(self.heads[name](features[task.image]), target)
        return found


def _network(settings: Settings) -> VisionTransformer:
    return VisionTransformer(SIDE, settings.width, settings.blocks)


def _train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    epochs: int,
    rate: float,
    settings: Settings,
    generator: torch.Generator,
    parameters: Iterable[nn.Parameter],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Adam with a short warm-up and a cosine decay of its rate."""
    inputs, target = data
    optimizer = torch.optim.Adam(parameters, lr=rate, fused=True)
    per_epoch = -(-len(target) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, epochs=epochs, steps_per_epoch=per_epoch, pct_start=0.2
    )
    for _ in range(epochs):
        for rows in batches(len(target), settings.batch_size, generator):
            step(optimizer, F.cross_entropy(model(inputs[rows]), target[rows]))
            schedule.step()
        advance()


def _copy(network: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def train(digits: Digits, settings: Settings, seed: int, advance: Callable[[], None]) -> Models:
    """A base on upright digits; per task a head on the frozen base, then the network below it."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = _network(settings)
    model = nn.Sequential(network, nn.Linear(settings.width, CLASSES))
    data = Task("upright digits", CLASSES).data(digits.train)
    _train(
        model, data, settings.base_epochs, settings.base_rate, settings, generator,
        model.parameters(), advance,
    )  # fmt: skip
    models = Models(network, _copy(network), {}, {})
    for name, task in TASKS.items():
        network.load_state_dict(models.base)
        inputs, target = task.data(digits.train)
        with torch.no_grad():
            features = network(inputs)
        head = models.heads[name] = nn.Linear(settings.width, task.classes)
        _train(
            head, (features, target), settings.head_epochs, settings.head_rate, settings,
            generator, head.parameters(),
        )  # fmt: skip
        _train(
            nn.Sequential(network, head), (inputs, target), settings.fine_tuning_epochs,
            settings.fine_tuning_rate, settings, generator, network.parameters(), advance,
        )  # fmt: skip
        models.finetuned[name] = _copy(network)
    return models
