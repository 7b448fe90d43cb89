"""Inventory and layouts -> the copies of each target rank. Pure: a plan can be printed and tested without a byte read."""

from reshard.plan.cuts import Cuts, cuts
from reshard.plan.model import Model, Parameter, Role
from reshard.plan.parameters import place
from reshard.plan.rank import Planner, RankPlan, TargetTensor, prove
from reshard.plan.rename import unmatched, unmatched_patterns
from reshard.plan.same import keep
from reshard.plan.summary import Summary, summarize
from reshard.plan.traffic import Traffic, traffic
from reshard.plan.unified import unify

__all__ = [
    "Cuts",
    "Model",
    "Parameter",
    "Planner",
    "RankPlan",
    "Role",
    "Summary",
    "TargetTensor",
    "Traffic",
    "cuts",
    "keep",
    "place",
    "prove",
    "summarize",
    "traffic",
    "unify",
    "unmatched",
    "unmatched_patterns",
]
