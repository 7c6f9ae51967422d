"""The classifier that every method trains, and the small networks that see privileged information.

A classifier is a body, whose output is the representation, and a linear head. On a GPU the body is
a ResNet-18 for small images (3×3 stem, no pooling after it), on a CPU one hidden layer over fixed
features, wide enough to memorise every wrong label.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """``forward`` gives logits; ``body`` and ``head`` are there for methods that need a part."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, classes)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def hidden_layer(inputs: int, classes: int, width: int = 512) -> Classifier:
    return Classifier(nn.Sequential(nn.Linear(inputs, width), nn.ReLU()), width, classes)


def resnet18(classes: int, width: int = 64) -> Classifier:
    """ResNet-18 (arXiv 1512.03385) as it is used for 32×32 images."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    inputs = width
    for stage in range(4):
        outputs = width << stage
        layers += [_Block(inputs, outputs, 1 if stage == 0 else 2), _Block(outputs, outputs, 1)]
        inputs = outputs
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, inputs, classes)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer: the noise and gate networks of Pi-DUAL."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def augment(images: Tensor, generator: torch.Generator, margin: int = 4) -> Tensor:
    """Random crop after padding, random horizontal flip: one draw per image, on its device."""
    count, _, high, wide = images.shape
    device = images.device

    def draw(limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=generator).to(device)

    padded = F.pad(images, (margin,) * 4)
    rows = draw(2 * margin + 1)[:, None] + torch.arange(high, device=device)
    columns = draw(2 * margin + 1)[:, None] + torch.arange(wide, device=device)
    columns = torch.where(draw(2).bool()[:, None], columns.flip(1), columns)
    image = torch.arange(count, device=device)[:, None, None]
    # Advanced indices around a slice put the channels last; they go back to their place.
    return padded[image, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
