"""Checkpoints of every kind, read in parts."""

from .checkpoint import Checkpoint, StateDictCheckpoint, StoredTensor

__all__ = ["Checkpoint", "StateDictCheckpoint", "StoredTensor"]
