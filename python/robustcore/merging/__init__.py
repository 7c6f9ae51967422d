"""Model merging on whole state dicts: task vectors, masks of all tasks, packed masks."""

from .mask_file import MaskFile, read_mask_file
from .packed_masks import PackedMasks
from .state_dict import FlatLayout, TensorInfo
from .tall_masks import TallMasks, tall_masks
from .task_vectors import multi_task_vector, task_vector

__all__ = [
    "FlatLayout",
    "MaskFile",
    "PackedMasks",
    "TallMasks",
    "TensorInfo",
    "multi_task_vector",
    "read_mask_file",
    "tall_masks",
    "task_vector",
]
