"""What a run will take, and how to make it fit: time, memory and disk before the start."""

from hesse.influence.plan.proposal import Budget, Proposal, propose_plan
from hesse.influence.plan.rates import LayerCost, MeasuredRates, Rates, StatedRates
from hesse.influence.plan.stages import plan_stages, rates_here
from hesse.influence.plan.workload import Plan, StagePlan, Workload

__all__ = [
    "Budget",
    "LayerCost",
    "MeasuredRates",
    "Plan",
    "Proposal",
    "Rates",
    "StagePlan",
    "StatedRates",
    "Workload",
    "plan_stages",
    "propose_plan",
    "rates_here",
]
