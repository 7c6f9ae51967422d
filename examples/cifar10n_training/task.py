"""Tensors on the device, ready for training: inputs, labels and privileged information."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import data
from .features import PatchFeatures
from .files import load_tensors, save_tensors
from .networks import Classifier, hidden_layer, resnet18
from .settings import Settings


@dataclass(frozen=True)
class Task:
    """Inputs are features or normalised images; row i of every training tensor is example i."""

    inputs: Tensor
    given: Tensor
    clean: Tensor
    agreement: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    images: bool  # whether inputs are images, to be augmented
    checksum: int  # of images and labels, as they were read

    @property
    def wrong(self) -> Tensor:
        return self.given != self.clean

    def classifier(self) -> Classifier:
        classes = len(self.classes)
        return resnet18(classes) if self.images else hidden_layer(self.inputs.shape[1], classes)

    def hold_out(self, share: float) -> Task:
        """For tuning: the last examples stand in for the test set, with their *given* labels."""
        first = len(self.inputs) - round(share * len(self.inputs))
        return Task(
            self.inputs[:first],
            self.given[:first],
            self.clean[:first],
            self.agreement[:first],
            self.inputs[first:],
            self.given[first:],
            self.classes,
            self.images,
            self.checksum,
        )


def prepare(
    folder: Path,
    labels: str,
    settings: Settings,
    device: torch.device,
    cache: Path,
    say: Callable[[str], None],
) -> Task:
    """Reads the images and turns them into inputs; features are computed once and kept."""
    say("reading training images")
    train = data.read_train(folder, labels, settings.train_images)
    say("reading test images")
    test = data.read_test(folder, settings.test_images)
    images = settings.network == "resnet18"
    if images:
        inputs, test_inputs = _normalised(train.images), _normalised(test.images)
    else:
        inputs, test_inputs = _features(train.images, test.images, cache, say)
    tensors = (inputs, train.given, train.clean, data.agreement(train), test_inputs, test.clean)
    checksum = _checksum(train.images, train.given, train.clean, test.images, test.clean)
    return Task(*(tensor.to(device) for tensor in tensors), train.classes, images, checksum)


def _normalised(images: Tensor) -> Tensor:
    pixels = images.float() / 255
    # Of CIFAR-10's training images, per channel.
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    deviation = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]
    return (pixels - mean) / deviation


def _features(
    train: Tensor, test: Tensor, cache: Path, say: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    kept = load_tensors(cache)
    images = _checksum(train, test)
    if kept is None or kept["images"] != images:
        say("computing features of the training images (no labels used)")
        features = PatchFeatures(train)
        say("computing features of the test images")
        kept = {"train": features.of_train, "test": features(test), "images": images}
        save_tensors(cache, kept)
    return kept["train"], kept["test"]


def _checksum(*tensors: Tensor) -> int:
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.numpy().tobytes(), value)
    return value
