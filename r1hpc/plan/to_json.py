"""A plan as plain JSON values."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from r1hpc.plan.gpu_memory import Phase
from r1hpc.plan.memory import MemoryUse
from r1hpc.plan.plan import Plan
from r1hpc.plan.topology import GROUP_AXES, Topology, fold_ranks


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The plan as a dictionary of JSON values; bytes, seconds and minutes are plain numbers.

    Groups of ranks are strings in ClusterShell's RangeSet notation ("0-7", "0-24/8").
    """
    summary = {
        name: getattr(plan, name)
        for name in (
            "world_size",
            "num_nodes",
            "gpu_bytes_needed",
            "host_bytes_needed",
            "host_bytes_per_node",
            "disk_bytes_needed",
            "save_s",
            "advised_save_minutes",
            "signal_lead_s",
        )
    }
    special = {
        "topology": _topology(plan.topology),
        "phases": [_phase(phase) for phase in plan.phases],
        "hosts": [{**asdict(host), "use": _use(host.use)} for host in plan.hosts],
        "engine": {
            **asdict(plan.engine),
            "ranks": [fold_ranks(list(plan.engine_ranks(index))) for index in range(plan.engine.num_engines)],
            "weight_bytes": plan.engine.weight_bytes,
            "kv_tokens_per_engine": plan.engine.kv_tokens_per_engine,
            "tokens_per_request": plan.engine.tokens_per_request,
            "longest_requests_that_fit": plan.engine.longest_requests_that_fit,
            "retracts": plan.engine.retracts,
        },
    }
    own = {field.name: _plain(getattr(plan, field.name)) for field in fields(plan) if field.name not in special}
    return {**summary, **own, **special}


def _plain(value: object) -> Any:
    """Dataclasses and tuples as dictionaries and lists."""
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)  # type: ignore[call-overload]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _topology(topology: Topology) -> dict[str, Any]:
    return {
        **asdict(topology),
        "dp": topology.dp,
        "edp": topology.edp,
        "rank": "tp + TP * (cp + CP * (dp + DP * pp)) = etp + ETP * (ep + EP * (edp + EDP * pp))",
        "groups": {kind: [fold_ranks(group) for group in topology.groups(kind)] for kind in GROUP_AXES},
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {"name": phase.name, "worst_stage": phase.worst_stage, "stages": [_use(use) for use in phase.stages]}


def _use(use: MemoryUse) -> dict[str, Any]:
    return {**asdict(use), "total_bytes": use.total_bytes}
