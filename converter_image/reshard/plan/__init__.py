"""Plan the copies of each target rank from an inventory and layouts.

The modules of this package perform no I/O, so a plan can be printed and tested without reading a checkpoint.
"""

from reshard.plan.balance import pack_full_tensors
from reshard.plan.distinct import Needed, bytes_needed
from reshard.plan.model import Kind, Model, Parameter, Role
from reshard.plan.parameters import build_model
from reshard.plan.passthrough import passthrough_model
from reshard.plan.planner import Planner
from reshard.plan.proof import prove
from reshard.plan.rank import RankPlan, TargetTensor
from reshard.plan.rules import rounded, unapplied, unapplied_casts, unmatched_patterns, with_casts
from reshard.plan.summary import Summary, summarize

__all__ = [
    "Kind",
    "Model",
    "Needed",
    "Parameter",
    "Planner",
    "RankPlan",
    "Role",
    "Summary",
    "TargetTensor",
    "build_model",
    "bytes_needed",
    "pack_full_tensors",
    "passthrough_model",
    "prove",
    "rounded",
    "summarize",
    "unapplied",
    "unapplied_casts",
    "unmatched_patterns",
    "with_casts",
]
