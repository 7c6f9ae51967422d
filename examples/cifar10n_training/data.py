"""CIFAR-10 with the human labels of CIFAR-10N: two .npz files, read into tensors.

``cifar10n_train.npz`` and ``cifar10_test.npz`` hold the images as JPEG bytes one after the other
(``jpeg`` uint8; image i is ``jpeg[offsets[i]:offsets[i + 1]]``), the true labels (``clean`` uint8),
and, for training, ``annotations`` uint8 [N, 3] (the labels of three people per image),
``aggregate`` (their majority) and ``worst`` (a wrong one wherever there is one).
``examples/cifar10n_convert.py`` makes these files from the published data.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LABELS = ("random1", "random2", "random3", "worst", "aggregate")
TRAIN_FILE, TEST_FILE = "cifar10n_train.npz", "cifar10_test.npz"
ANNOTATORS = 3


class DataError(Exception):
    """The data folder does not hold what this example reads."""


@dataclass(frozen=True)
class Examples:
    """Labelled images. ``given`` and ``annotations`` are those of test images: the true labels."""

    images: Tensor  # uint8 [N, 3, H, W]
    clean: Tensor  # int64 [N], never seen by a training method
    given: Tensor  # int64 [N], the labels to train on
    annotations: Tensor  # int64 [N, 3]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def wrong(self) -> Tensor:
        return self.given != self.clean

    def select(self, rows: Tensor) -> Examples:
        parts = (self.images, self.clean, self.given, self.annotations)
        return Examples(*(part[rows] for part in parts), self.classes)


def read_train(
    folder: Path, labels: str, count: int | None = None, advance: Callable[[], None] = lambda: None
) -> Examples:
    """``count`` training images (None: all), drawn once and for all with a fixed random state."""
    arrays = _read(folder / TRAIN_FILE, ("annotations", "aggregate", "worst"))
    rows = _draw(len(arrays["clean"]), count)
    annotations = torch.from_numpy(arrays["annotations"]).long()[rows]
    if labels.startswith("random"):
        given = annotations[:, int(labels.removeprefix("random")) - 1]
    else:
        given = torch.from_numpy(arrays[labels]).long()[rows]
    clean = torch.from_numpy(arrays["clean"]).long()[rows]
    images = _decode(arrays, rows, folder / TRAIN_FILE, advance)
    return Examples(images, clean, given, annotations, _names(arrays))


def read_test(
    folder: Path, count: int | None = None, advance: Callable[[], None] = lambda: None
) -> Examples:
    arrays = _read(folder / TEST_FILE, ())
    rows = _draw(len(arrays["clean"]), count)
    clean = torch.from_numpy(arrays["clean"]).long()[rows]
    images = _decode(arrays, rows, folder / TEST_FILE, advance)
    return Examples(images, clean, clean, clean[:, None].expand(-1, ANNOTATORS), _names(arrays))


def agreement(examples: Examples) -> Tensor:
    """How many of the three annotators gave the label that is trained on, one-hot [N, 4].

    With ``worst`` labels this is close to an oracle: wherever one annotator was wrong, so is that
    label.
    """
    same = (examples.annotations == examples.given[:, None]).sum(1)
    return torch.nn.functional.one_hot(same, ANNOTATORS + 1).float()


def _draw(available: int, count: int | None) -> Tensor:
    if count is None or count >= available:
        return torch.arange(available)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(available, generator=generator)[:count].sort().values


def _names(arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    return tuple(str(name) for name in arrays["classes"])


def _read(path: Path, labels: Sequence[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path} is missing; examples/cifar10n_convert.py makes it")
    names = ("jpeg", "offsets", "clean", "classes", *labels)
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise DataError(f"{path}: array {missing[0]!r} is missing")
            arrays = {name: file[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error
    count, classes = len(arrays["clean"]), len(arrays["classes"])
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(("clean", *labels), (count,))
    expected["offsets"] = (count + 1,)
    if "annotations" in labels:
        expected["annotations"] = (count, ANNOTATORS)
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise DataError(f"{path}: {name} must have shape {shape}, got {arrays[name].shape}")
        if name != "offsets" and count and int(arrays[name].max()) >= classes:
            raise DataError(f"{path}: {name} must be below {classes}, got {arrays[name].max()}")
    offsets = arrays["offsets"].astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(arrays["jpeg"]) or (np.diff(offsets) < 0).any():
        raise DataError(f"{path}: offsets must rise from 0 to {len(arrays['jpeg'])}")
    return arrays


def _decode(
    arrays: dict[str, np.ndarray], rows: Tensor, path: Path, advance: Callable[[], None]
) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            "reading the images needs Pillow: pip install 'robustcore[examples]'"
        ) from error
    jpeg, offsets = arrays["jpeg"], arrays["offsets"]
    images: list[np.ndarray] = []
    for row in rows.tolist():
        data = jpeg[offsets[row] : offsets[row + 1]].tobytes()
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        except OSError as error:  # also Pillow's own "cannot identify image file"
            raise DataError(f"{path}: image {row} is not a readable JPEG: {error}") from error
        images.append(np.asarray(image))
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{path}: image {row} has shape {images[-1].shape}, the others {images[0].shape}"
            )
        if len(images) % 1000 == 0:
            advance()
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).contiguous()
