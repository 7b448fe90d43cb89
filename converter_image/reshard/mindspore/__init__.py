"""MindSpore's function names and signatures (2.10), without MindSpore. Change the import and keep the script.

Each function documents its differences from MindSpore. No difference loses data. A path may also be a URL such as
s3://bucket/prefix, with the settings of the AWS CLI. Errors are `ReshardError` objects, and also have the built-in types that
MindSpore documents.
"""

from reshard.mindspore.conversion import ckpt_to_safetensors, safetensors_to_ckpt
from reshard.mindspore.groups import get_ckpt_path_with_strategy, restore_group_info_list
from reshard.mindspore.loading import load_checkpoint, load_segmented_checkpoints
from reshard.mindspore.pipeline import merge_pipeline_strategys
from reshard.mindspore.slices import build_searched_strategy, merge_sliced_parameter
from reshard.mindspore.transforms import (
    convert_checkpoint_by_rank,
    convert_checkpoints,
    rank_list_for_convert,
    rank_list_for_transform,
    transform_checkpoint_by_rank,
    transform_checkpoints,
)
from reshard.mindspore.unified import load_distributed_checkpoint, unified_safetensors

__all__ = [
    "build_searched_strategy",
    "ckpt_to_safetensors",
    "convert_checkpoint_by_rank",
    "convert_checkpoints",
    "get_ckpt_path_with_strategy",
    "load_checkpoint",
    "load_distributed_checkpoint",
    "load_segmented_checkpoints",
    "merge_pipeline_strategys",
    "merge_sliced_parameter",
    "rank_list_for_convert",
    "rank_list_for_transform",
    "restore_group_info_list",
    "safetensors_to_ckpt",
    "transform_checkpoint_by_rank",
    "transform_checkpoints",
    "unified_safetensors",
]
