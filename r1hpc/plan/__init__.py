"""The planner: pure functions from a configuration to what a run needs, and whether it can fit. Loads no torch."""

from r1hpc.errors import PlanError
from r1hpc.plan.model_shape import ModelShape, ModelShapeError, read_model_shape
from r1hpc.plan.plan import Plan, make_plan, plan_problems
from r1hpc.plan.plan_for import plan_for
from r1hpc.plan.problems import Problem
from r1hpc.plan.render import render_plan
from r1hpc.plan.to_json import plan_to_json

__all__ = [
    "ModelShape",
    "ModelShapeError",
    "Plan",
    "PlanError",
    "Problem",
    "make_plan",
    "plan_for",
    "plan_problems",
    "plan_to_json",
    "read_model_shape",
    "render_plan",
]
