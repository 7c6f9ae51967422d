"""Makes the two files that ``cifar10n.py`` reads from what is published.

1. Images: "CIFAR-10 python version", ``cifar-10-python.tar.gz``, from the CIFAR-10 home page
   (https://www.cs.toronto.edu/~kriz/cifar.html). Unpack it: a folder ``cifar-10-batches-py``.
2. Human labels: ``CIFAR-10_human.pt`` from the repository of CIFAR-10N
   (https://github.com/UCSC-REAL/cifar-10-100n, folder ``data``; licence CC BY-NC 4.0).
3. ``python examples/cifar10n_convert.py cifar-10-batches-py CIFAR-10_human.pt FOLDER``

The files hold the images as JPEG, which is lossy. Layout: ``cifar10n_training/data.py``.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import torch
import typer
from cifar10n_training.data import TEST_FILE, TRAIN_FILE
from cifar10n_training.files import write_bytes
from rich.progress import track

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
HUMAN_LABELS = {
    "annotations": ("random_label1", "random_label2", "random_label3"),
    "aggregate": ("aggre_label",),
    "worst": ("worse_label",),
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class _ArraysOnly(pickle.Unpickler):
    """Pickled files can run any code when they are read; these need to build arrays, no more."""

    allowed = frozenset({"_reconstruct", "ndarray", "dtype", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self.allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(2)


@app.command()
def convert(
    batches: Annotated[Path, typer.Argument(help="Folder cifar-10-batches-py.")],
    labels: Annotated[Path, typer.Argument(help="CIFAR-10_human.pt.")],
    folder: Annotated[Path, typer.Argument(help="Where the two .npz files go.")],
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEG images.")] = 95,
) -> None:
    """Make cifar10n_train.npz and cifar10_test.npz."""
    try:
        names = [name.decode() for name in _unpickle(batches / "batches.meta")[b"label_names"]]
        pixels, clean = _images([batches / name for name in TRAIN_BATCHES])
        test_pixels, test_clean = _images([batches / "test_batch"])
        human = _human_labels(labels, clean)
        common = {"classes": np.asarray(names)}
        train = {**_encode(pixels, quality, "training images"), "clean": clean, **human, **common}
        test = {**_encode(test_pixels, quality, "test images"), "clean": test_clean, **common}
        for name, arrays in ((TRAIN_FILE, train), (TEST_FILE, test)):
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            write_bytes(folder / name, buffer.getvalue())
            print(f"written: {folder / name}")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror or error}")


def _unpickle(path: Path) -> dict[bytes, Any]:
    with open(path, "rb") as file:
        try:
            return _ArraysOnly(file, encoding="bytes").load()
        except (pickle.UnpicklingError, EOFError, ValueError, ImportError) as error:
            fail(f"{path} is no batch of CIFAR-10: {error}")


def _images(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    parts = [_unpickle(path) for path in paths]
    pixels = np.concatenate([part[b"data"] for part in parts])
    labels = np.concatenate([np.asarray(part[b"labels"], np.uint8) for part in parts])
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _human_labels(path: Path, clean: np.ndarray) -> dict[str, np.ndarray]:
    found = _read_labels(path)
    wanted = ["clean_label", *(name for names in HUMAN_LABELS.values() for name in names)]
    for name in wanted:
        if name not in found:
            fail(f"{path}: {name!r} is missing, it holds {sorted(map(str, found))}")
        if np.shape(found[name]) != clean.shape:
            fail(f"{path}: {name} must have shape {clean.shape}, got {np.shape(found[name])}")
    if (np.asarray(found["clean_label"]) != clean).any():
        fail(f"{path}: clean_label differs from the labels of the images: another order?")
    arrays = {
        key: np.stack([np.asarray(found[name], np.uint8) for name in names], 1)
        for key, names in HUMAN_LABELS.items()
    }
    return {key: array if key == "annotations" else array[:, 0] for key, array in arrays.items()}


def _read_labels(path: Path) -> dict[str, Any]:
    """torch.save of a dictionary of arrays, read without running code from the file."""
    reconstruct = np.zeros(1).__reduce__()[0]
    # Under the name that NumPy 1 wrote and under that of NumPy 2.
    allowed: list[Any] = [
        (reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")
    ]
    allowed += [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("u1", "i4", "i8", "f8"))]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        fail(f"{path} cannot be read as labels: {str(error).splitlines()[0]}")
    if not isinstance(found, dict):
        fail(f"{path} must hold a dictionary of labels, got {type(found).__name__}")
    return found


def _encode(pixels: np.ndarray, quality: int, what: str) -> dict[str, np.ndarray]:
    try:
        from PIL import Image
    except ImportError:
        fail("writing JPEG needs Pillow: pip install 'robustcore[examples]'")
    parts: list[bytes] = []
    for image in track(pixels, description=what):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        parts.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return {"jpeg": np.frombuffer(b"".join(parts), np.uint8), "offsets": offsets}


if __name__ == "__main__":
    app()
