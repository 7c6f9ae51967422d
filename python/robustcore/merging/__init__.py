"""Model merging: named methods from state dicts or files, task vectors, masks of all tasks."""

from .mask_file import MaskFile, read_mask_file
from .merge import MergeReport, merge
from .methods import METHODS
from .packed_masks import PackedMasks
from .pipeline import TaskVectors
from .state_dict import FlatLayout, TensorInfo
from .tall_masks import TallMasks, tall_masks
from .task_vectors import multi_task_vector, task_vector

__all__ = [
    "METHODS",
    "FlatLayout",
    "MaskFile",
    "MergeReport",
    "PackedMasks",
    "TallMasks",
    "TaskVectors",
    "TensorInfo",
    "merge",
    "multi_task_vector",
    "read_mask_file",
    "tall_masks",
    "task_vector",
]
