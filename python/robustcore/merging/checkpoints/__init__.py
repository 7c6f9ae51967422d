"""Checkpoints of every kind, read in parts."""

from .checkpoint import Checkpoint, StateDictCheckpoint, StoredTensor
from .safetensors_file import SafetensorsFile

__all__ = ["Checkpoint", "SafetensorsFile", "StateDictCheckpoint", "StoredTensor"]
