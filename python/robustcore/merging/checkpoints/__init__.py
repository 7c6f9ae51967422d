"""Checkpoints of every kind, read in parts."""

from .checkpoint import Checkpoint, StateDictCheckpoint, StoredTensor
from .lora import LoraAdapter
from .open import open_checkpoint
from .pytorch_file import PyTorchFile, PyTorchFileInMemory
from .safetensors_file import SafetensorsFile
from .sharded import ShardedCheckpoint

__all__ = [
    "Checkpoint",
    "LoraAdapter",
    "PyTorchFile",
    "PyTorchFileInMemory",
    "SafetensorsFile",
    "ShardedCheckpoint",
    "StateDictCheckpoint",
    "StoredTensor",
    "open_checkpoint",
]
