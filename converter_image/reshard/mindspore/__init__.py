"""MindSpore's own function names and signatures (2.10), without MindSpore: change an import, keep the script.

What differs is written at each function; every difference is one that loses nothing. Wherever MindSpore takes a path, an address
like s3://bucket/prefix can stand too; it is reached as the AWS command line would.
"""

from reshard.mindspore.conversion import ckpt_to_safetensors, safetensors_to_ckpt
from reshard.mindspore.groups import restore_group_info_list
from reshard.mindspore.pipeline import merge_pipeline_strategys
from reshard.mindspore.segments import load_segmented_checkpoints
from reshard.mindspore.transforms import rank_list_for_transform, transform_checkpoint_by_rank, transform_checkpoints
from reshard.mindspore.unified import load_distributed_checkpoint, unified_safetensors

__all__ = [
    "ckpt_to_safetensors",
    "load_distributed_checkpoint",
    "load_segmented_checkpoints",
    "merge_pipeline_strategys",
    "rank_list_for_transform",
    "restore_group_info_list",
    "safetensors_to_ckpt",
    "transform_checkpoint_by_rank",
    "transform_checkpoints",
    "unified_safetensors",
]
