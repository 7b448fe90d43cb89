"""Plan the copies of each target rank from an inventory and layouts.

The modules of this package perform no I/O, so a plan can be printed and tested without reading a checkpoint.
"""

from reshard.plan.cast import castable, rounded, with_casts
from reshard.plan.model import Model, Parameter, Role
from reshard.plan.parameters import place
from reshard.plan.rank import Planner, RankPlan, TargetTensor, prove
from reshard.plan.rename import unmatched, unmatched_patterns
from reshard.plan.same import keep
from reshard.plan.summary import Summary, summarize
from reshard.plan.unified import unify

__all__ = [
    "Model",
    "Parameter",
    "Planner",
    "RankPlan",
    "Role",
    "Summary",
    "TargetTensor",
    "castable",
    "keep",
    "place",
    "prove",
    "rounded",
    "summarize",
    "unify",
    "unmatched",
    "unmatched_patterns",
    "with_casts",
]
