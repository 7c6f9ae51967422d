"""Whatever a user names a model by, as a checkpoint."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ._tensors import state_dict_in
from .checkpoint import Checkpoint, StateDictCheckpoint
from .folder import ADAPTER_CONFIG, weights_in
from .lora import LoraAdapter
from .pytorch_file import open_pytorch_file
from .safetensors_file import SafetensorsFile
from .sharded import ShardedCheckpoint

__all__ = ["open_checkpoint"]

# What files begin with: of torch.save, of its old format and plain pickles, of other programs.
_PYTORCH = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OTHER = {b"GGUF": "GGUF", b"\x89HDF": "HDF5 (Keras, TensorFlow)"}


def open_checkpoint(source: Any, name: str = "source") -> Checkpoint:
    """Opens a model for reading in parts.

    Args:
        source: One of

            - a path of a safetensors file, of a file that ``torch.save`` wrote, or of a
              ``*.index.json``; the contents decide, a name that ends in ``.safetensors`` comes
              first,
            - a path of a folder that holds ``model.safetensors``, ``pytorch_model.bin``, one of
              them with an index, or a LoRA adapter,
            - a state dict, also as ``{"state_dict": ...}``,
            - a tensor, whose key is ``""``,
            - a :class:`Checkpoint`, which is returned.
        name: What messages call a model in memory: the name of an argument.

    Returns:
        The checkpoint. Call ``close()`` when done.

    Raises:
        OSError: A file is missing or cannot be read.
        TypeError: ``source`` is none of these, or holds other things than dense tensors.
        ValueError: A file is damaged or not of a kind that is known; a folder holds more than one
            checkpoint; an adapter is more than updates of the kind ``scaling * B @ A``.

    Example:
        >>> import torch
        >>> from robustcore.merging.checkpoints import open_checkpoint
        >>> model = open_checkpoint(torch.nn.Linear(2, 3).state_dict(), "base")
        >>> sorted(model.tensors), model.tensors["weight"].shape
        (['bias', 'weight'], (3, 2))
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source))
    if isinstance(source, torch.nn.Module):
        raise TypeError(
            f"{name} must be a path or a state dict, got {type(source).__name__}; pass "
            "module.state_dict()"
        )
    if isinstance(source, Tensor):
        return StateDictCheckpoint(name, state_dict_in(name, {"": source}))
    if isinstance(source, Mapping):
        return StateDictCheckpoint(name, state_dict_in(name, source))
    raise TypeError(f"{name} must be a path or a state dict, got {type(source).__name__}")


def _open_path(path: str) -> Checkpoint:
    if os.path.isdir(path):
        path = weights_in(path)
    elif not os.path.lexists(path):
        raise FileNotFoundError(errno.ENOENT, "no such checkpoint", path)
    base = os.path.basename(path)
    if base.endswith(".json"):
        return ShardedCheckpoint(path)
    if base.startswith("adapter_model.") or (
        base.startswith("adapter") and os.path.isfile(_beside(path, ADAPTER_CONFIG))
    ):
        return LoraAdapter(path)
    if base.endswith(".safetensors"):
        return SafetensorsFile(path)
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(_PYTORCH):
        return open_pytorch_file(path)
    for magic, kind in _OTHER.items():
        if start.startswith(magic):
            raise ValueError(f"{path}: must be a safetensors or PyTorch file, got {kind}")
    return SafetensorsFile(path)


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name)
