"""The handwritten digits that ship with scikit-learn, split once for all experiments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLASSES = 10
SIDE = 8
PIXELS = SIDE * SIDE


@dataclass(frozen=True)
class Split:
    """Images [N, 8, 8] as float32 in [0, 1] (0 is paper, 1 is ink) and their digits [N]."""

    images: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.digits)


@dataclass(frozen=True)
class Digits:
    """Three disjoint parts with the same share of every digit."""

    train: Split
    validation: Split
    test: Split


def load_digits(seed: int = 0) -> Digits:
    """All 1797 images: 60 % for training, 20 % for validation, 20 % for testing."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    source = datasets.load_digits()
    images = torch.tensor(source.images / 16.0, dtype=torch.float32)
    digits = torch.tensor(source.target, dtype=torch.int64)

    train, others = train_test_split(
        range(len(digits)), test_size=0.4, stratify=digits, random_state=seed
    )
    validation, test = train_test_split(
        others, test_size=0.5, stratify=digits[others], random_state=seed
    )
    return Digits(*(Split(images[rows], digits[rows]) for rows in (train, validation, test)))
