"""What a run is made with: everything that changes its numbers, beside method, seed and labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The same network, optimiser, batches and epochs for every method."""

    network: str  # "features" or "resnet18"
    train_images: int
    test_images: int
    epochs: int
    batch_size: int
    learning_rate: float
    random_size: int  # of the random vector per example
    held_out: float = 0.0  # share of the training images that tuning validates on

    def replace(self, **changes: object) -> Settings:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


# A hidden layer of 512 on fixed features, Adam. 10,000 of the 50,000 training images, so that the
# network memorises them within seconds; all test images.
FEATURES = Settings("features", 10_000, 10_000, 25, 128, 1e-3, 256)
# ResNet-18, SGD with momentum, random crops and flips, bfloat16 autocast.
RESNET18 = Settings("resnet18", 50_000, 10_000, 120, 128, 0.05, 256)

BY_NETWORK = {"features": FEATURES, "resnet18": RESNET18}
