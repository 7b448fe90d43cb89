"""Inventory and layouts -> the copies of each target rank. Pure: a plan can be printed and tested without a byte read."""

from reshard.plan.parameters import Model, Parameter, Role, place
from reshard.plan.rank import Planner, RankPlan, TargetTensor, prove
from reshard.plan.rename import unmatched
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
    "keep",
    "place",
    "prove",
    "summarize",
    "unify",
    "unmatched",
]
