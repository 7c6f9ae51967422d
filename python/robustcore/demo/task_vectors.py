"""Eight tasks from one network: separate models, task arithmetic, and TALL-masks.

A network trained on the upright digits is fine-tuned on eight tasks: four change the image
(rotated, mirrored, negative), four ask another question about it (odd, at least five, number of
loops, remainder of three). The task vectors are summed; a TALL-mask per task (arXiv 2405.07813),
one bit per parameter, then picks from the sum what belongs to that task.

As in the paper, each task's classifying head stays outside the merged vector. It is trained first,
on the frozen base network, and then kept fixed while the network itself is fine-tuned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..merging import PackedMasks, multi_task_vector, tall_masks
from .data import CLASSES, PIXELS, Digits, Split
from .training import Advance, accuracy, batches, multilayer_perceptron, step

StateDict = Mapping[str, Tensor]

LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
COEFFICIENTS = tuple(round(0.05 * k, 2) for k in range(1, 21))
# Closed loops in the printed form of each digit.
LOOPS = torch.tensor([1, 0, 0, 0, 0, 0, 1, 0, 2, 1])


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths of training."""

    base_epochs: int = 15
    head_epochs: int = 5
    fine_tuning_epochs: int = 12
    batch_size: int = 64
    width: int = 512
    learning_rate: float = 1e-3
    fine_tuning_rate: float = 3e-4
    seed: int = 0

    @property
    def steps(self) -> int:
        """Units of progress: training epochs, and one selection of λ per task."""
        return self.base_epochs + len(TASKS) * (self.head_epochs + self.fine_tuning_epochs + 1)


def _same(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class Task:
    """How the images and the digits become the inputs and the targets of a task."""

    title: str
    classes: int
    image: Callable[[Tensor], Tensor] = _same
    target: Callable[[Tensor], Tensor] = _same

    def data(self, split: Split) -> tuple[Tensor, Tensor]:
        """Inputs [N, 64] in [-1, 1] and targets [N]."""
        images = self.image(2.0 * split.images - 1.0)
        return images.flatten(1), self.target(split.digits)


TASKS = {
    "rotated_90": Task("rotated by 90°", CLASSES, image=lambda x: x.rot90(1, (1, 2))),
    "rotated_180": Task("rotated by 180°", CLASSES, image=lambda x: x.rot90(2, (1, 2))),
    "mirrored": Task("mirrored", CLASSES, image=lambda x: x.flip(2)),
    "negative": Task("negative image", CLASSES, image=lambda x: -x),
    "odd": Task("odd or even", 2, target=lambda digit: digit % 2),
    "five_or_more": Task("five or more", 2, target=lambda digit: (digit >= 5).long()),
    "loops": Task("number of loops", 3, target=lambda digit: LOOPS[digit]),
    "remainder": Task("remainder of 3", 3, target=lambda digit: digit % 3),
}


def _network(settings: Settings) -> nn.Sequential:
    """The part that is merged: everything below the head."""
    width = settings.width
    return nn.Sequential(multilayer_perceptron(PIXELS, width, width, width), nn.ReLU())


def _copy(state: StateDict) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


class _Experiment:
    def __init__(self, digits: Digits, settings: Settings, advance: Advance) -> None:
        self.settings, self.digits, self.advance = settings, digits, advance
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.network = _network(settings)
        self.heads: dict[str, nn.Linear] = {}

    def train(
        self,
        parts: tuple[nn.Module, nn.Module],
        trained: nn.Module,
        data: tuple[Tensor, Tensor],
        epochs: int,
        rate: float,
    ) -> None:
        """Train ``trained``, one of the two ``parts`` or both, by cross-entropy with Adam."""
        network, head = parts
        inputs, target = data
        optimizer = torch.optim.Adam(trained.parameters(), lr=rate)
        for _ in range(epochs):
            for rows in batches(len(target), self.settings.batch_size, self.generator):
                step(optimizer, F.cross_entropy(head(network(inputs[rows])), target[rows]))
            self.advance()

    def train_base(self) -> dict[str, Tensor]:
        settings = self.settings
        head = nn.Linear(settings.width, CLASSES)
        both = nn.ModuleList([self.network, head])
        data = Task("upright digits", CLASSES).data(self.digits.train)
        self.train((self.network, head), both, data, settings.base_epochs, settings.learning_rate)
        return _copy(self.network.state_dict())

    def fine_tune(self, name: str, base: StateDict) -> dict[str, Tensor]:
        settings, task = self.settings, TASKS[name]
        data = task.data(self.digits.train)
        self.network.load_state_dict(base)
        head = self.heads[name] = nn.Linear(settings.width, task.classes)
        parts = (self.network, head)
        self.train(parts, head, data, settings.head_epochs, settings.learning_rate)
        self.train(
            parts, self.network, data, settings.fine_tuning_epochs, settings.fine_tuning_rate
        )
        return _copy(self.network.state_dict())

    @torch.no_grad()
    def score(self, state: StateDict, name: str, split: Split) -> float:
        self.network.load_state_dict(state)
        inputs, target = TASKS[name].data(split)
        return accuracy(self.heads[name](self.network(inputs)), target)

    def choose_coefficient(self, base: StateDict, summed: StateDict) -> float:
        """The α of θ0 + α Στ with the best mean validation accuracy, the smallest of equals."""

        def mean_accuracy(coefficient: float) -> float:
            merged = add(base, summed, coefficient)
            return sum(self.score(merged, name, self.digits.validation) for name in TASKS)

        return max(COEFFICIENTS, key=mean_accuracy)


def add(base: StateDict, vector: StateDict, coefficient: float) -> dict[str, Tensor]:
    """base + coefficient · vector, tensor by tensor."""
    return {name: base[name] + coefficient * vector[name] for name in base}


def _stored_bytes(
    base: StateDict,
    fine_tuned: Mapping[str, StateDict],
    summed: StateDict,
    masks: PackedMasks,
    heads: Mapping[str, nn.Module],
) -> dict[str, int]:
    """Sizes of real files, written to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="robustcore-demo-") as folder:

        def stored(state: StateDict) -> int:
            path = Path(folder, "weights.safetensors")
            save_file(dict(state), path)
            return path.stat().st_size

        mask_file = Path(folder, "masks.safetensors")
        masks.save(mask_file, base=base, merged=summed)
        mask_bytes = mask_file.stat().st_size
        base_bytes, merged_bytes = stored(base), stored(summed)
        return {
            "separate_models": sum(stored(state) for state in fine_tuned.values()),
            "task_arithmetic": base_bytes,
            "base": base_bytes,
            "merged_vector": merged_bytes,
            "masks": mask_bytes,
            "masked": base_bytes + merged_bytes + mask_bytes,
            "heads": sum(stored(head.state_dict()) for head in heads.values()),
        }


def run(digits: Digits, settings: Settings, advance: Advance) -> dict[str, Any]:
    """Fine-tune, merge, mask; accuracies on the test images and bytes stored."""
    torch.manual_seed(settings.seed)
    experiment = _Experiment(digits, settings, advance)
    base = experiment.train_base()
    fine_tuned = {name: experiment.fine_tune(name, base) for name in TASKS}

    summed = cast(StateDict, multi_task_vector(base, fine_tuned))
    coefficient = experiment.choose_coefficient(base, summed)
    arithmetic = add(base, summed, coefficient)

    candidates = tall_masks(base, fine_tuned, lambdas=LAMBDAS)
    selections = {threshold: candidates.select(threshold) for threshold in LAMBDAS}

    def masked(masks: PackedMasks, name: str) -> StateDict:
        return cast(StateDict, masks.apply(name, base, summed))

    chosen = {}
    for name in TASKS:

        def validation_accuracy(threshold: float, name: str = name) -> float:
            state = masked(selections[threshold], name)
            return experiment.score(state, name, digits.validation)

        # max keeps the first of equals, so ties go to the smallest λ.
        chosen[name] = max(LAMBDAS, key=validation_accuracy)
        advance()
    masks = candidates.select(chosen)

    states = {
        "base": lambda name: base,
        "single": lambda name: fine_tuned[name],
        "task_arithmetic": lambda name: arithmetic,
        "masked": lambda name: masked(masks, name),
    }
    parameters = sum(tensor.numel() for tensor in base.values())
    tasks: list[dict[str, Any]] = []
    for index, (name, task) in enumerate(TASKS.items()):
        scores = {
            kind: experiment.score(state(name), name, digits.test) for kind, state in states.items()
        }
        kept = candidates.densities[index][LAMBDAS.index(chosen[name])]
        tasks.append(
            {
                "name": name,
                "title": task.title,
                "classes": task.classes,
                "lambda": chosen[name],
                "kept": float(kept),
                "test_accuracy": scores,
            }
        )
    mean = {
        kind: sum(task["test_accuracy"][kind] for task in tasks) / len(tasks) for kind in states
    }
    return {
        "images": {
            "train": len(digits.train),
            "validation": len(digits.validation),
            "test": len(digits.test),
        },
        "parameters": parameters,
        "tasks": tasks,
        "mean_test_accuracy": mean,
        "coefficient": coefficient,
        "kept_by_tasks": [int(count) for count in masks.histogram()],
        "bytes": _stored_bytes(base, fine_tuned, summed, masks, experiment.heads),
    }
