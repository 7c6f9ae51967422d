"""Model merging: named methods from state dicts or files, task vectors, masks of all tasks."""

from .combine_task_vectors import TaskCoefficients, combine_task_vectors
from .compare import BufferDifference, Comparison, Difference, compare
from .emr import EMRMerge, emr_merge
from .mask_file import MaskFile, read_mask_file
from .mask_stream import tall_masks_from_files
from .merge import MergeReport, merge
from .methods import METHODS
from .packed_masks import PackedMasks
from .pipeline import TaskVectors
from .search import SearchResult, search, select_lambdas
from .state_dict import FlatLayout, TensorInfo
from .steps import elect_sign, scale_by_depth, trim
from .tall_masks import TallMasks, tall_masks
from .tangent import LinearizedModule, linearize
from .task_switcher import TaskSwitcher
from .task_vectors import multi_task_vector, task_vector
from .weight_signature import WeightSignature, robust_weight_signature

__all__ = [
    "METHODS",
    "BufferDifference",
    "Comparison",
    "Difference",
    "EMRMerge",
    "FlatLayout",
    "LinearizedModule",
    "MaskFile",
    "MergeReport",
    "PackedMasks",
    "SearchResult",
    "TallMasks",
    "TaskCoefficients",
    "TaskSwitcher",
    "TaskVectors",
    "TensorInfo",
    "WeightSignature",
    "combine_task_vectors",
    "compare",
    "elect_sign",
    "emr_merge",
    "linearize",
    "merge",
    "multi_task_vector",
    "read_mask_file",
    "robust_weight_signature",
    "scale_by_depth",
    "search",
    "select_lambdas",
    "tall_masks",
    "tall_masks_from_files",
    "task_vector",
    "trim",
]
