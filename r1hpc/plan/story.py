"""A plan as the story that is printed, the most important first."""

from __future__ import annotations

from r1hpc.plan.array_stages import StageTime
from r1hpc.plan.assumptions import ARRAY_WORKER_BYTES, SLURM_SIGNAL_SLACK_S
from r1hpc.plan.gpu_memory import Phase
from r1hpc.plan.memory import MemoryPart
from r1hpc.plan.outline import Bullet, Gauge, Line, Section, Table
from r1hpc.plan.plan import Plan
from r1hpc.plan.topology import fold_ranks
from r1hpc.plan.units import show_bytes, show_count, show_range, show_seconds
from r1hpc.plan.whole_run import WholeRun


def headline(plan: Plan) -> str:
    """The first line: what is planned, and that it fits."""
    kind = "GPUs" if plan.device == "cuda" else "logical slots"
    return (
        f"{plan.name}: fits. {show_count(plan.parameters.total)} parameters on {plan.num_nodes} nodes,"
        f" {plan.world_size:,} {kind}; {plan.batches.rollouts:,} rollouts of {plan.batches.samples:,} samples."
    )


def tell(plan: Plan) -> tuple[Section, ...]:
    """The sections of the story, the most important first; empty ones are left out."""
    sections = (
        Section("One rollout", _rollout(plan)),
        Section(f"GPU memory, of {show_bytes(plan.phases[0].worst.limit_bytes)}", _gpu_memory(plan)),
        Section(f"Host memory, of {show_bytes(plan.fullest_host.use.limit_bytes)} a node", _host_memory(plan)),
        Section("Time", _time(plan)),
        Section("Warnings", tuple(Bullet(text) for text in plan.warnings)),
        Section("Layout", _layout(plan)),
        Section("Engines", _engines(plan)),
        Section("Disk", _disk(plan)),
    )
    return tuple(section for section in sections if section.items)


def _rollout(plan: Plan) -> tuple[Line, ...]:
    batches = plan.batches
    group = batches.samples // batches.prompts
    sampling = (
        f"{batches.prompts} prompts x {group} = {batches.samples:,} samples of up to {batches.longest_sample:,} tokens;"
        f" asked for in waves of {batches.prompts_fetched} prompts, {batches.concurrency:,} requests in flight"
    )
    update = (
        f"{batches.steps} steps of {batches.samples_per_step} samples, {batches.total_steps:,} in all;"
        f" micro-batches of up to {batches.micro_batch_tokens:,} tokens"
    )
    lines = [Line("sampling", sampling), Line("update", update)]
    if batches.rollouts_per_epoch and batches.epochs:
        least, most = ("at least ", "at most ") if batches.prompts_returned else ("", "")
        text = f"{least}{batches.rollouts_per_epoch:.0f} rollouts an epoch, {most}{batches.epochs:.0f} epochs in all"
        lines.append(Line("data", text))
    return tuple(lines)


def _layout(plan: Plan) -> tuple[Line | Table, ...]:
    grid = plan.topology
    dense = f"TP {grid.tp} x CP {grid.cp} x DP {grid.dp} x PP {grid.pp}"
    experts = f"experts ETP {grid.etp} x EP {grid.ep} x DP {grid.edp} x PP {grid.pp}"
    rows = tuple(
        (
            str(stage.index),
            _span(grid.stage_nodes(stage.index)),
            f"{stage.first_layer}-{stage.first_layer + stage.num_layers - 1} ({stage.num_layers})",
            show_count(stage.parameters),
            show_bytes(plan.phases[0].stages[stage.index].total_bytes),
            show_bytes(plan.host_bytes_per_node[stage.index]),
        )
        for stage in plan.stages
    )
    # Host memory is that of the fullest node which carries the stage.
    headers = ("stage", "nodes", "layers", "parameters a GPU", "training a GPU", "host a node")
    groups = ", ".join(f"{kind} {fold_ranks(grid.groups(kind)[0])}" for kind in ("tp", "cp", "pp", "ep"))
    return (
        Line("train", f"{dense}; {experts}"),
        Line("groups", f"of rank 0: {groups}"),
        Table(headers, rows),
        *_dispatch(plan),
    )


def _dispatch(plan: Plan) -> tuple[Line, ...]:
    dispatch = plan.dispatch
    if dispatch.nodes == 1:
        return ()
    return (
        Line(
            "dispatch",
            f"{show_bytes(dispatch.bytes_per_gpu)} a layer out of a GPU, {dispatch.remote_share:.0%} to other nodes:"
            f" {dispatch.remote_copies:g} copies of a token, at most {dispatch.deduplicated_copies} with DeepEP",
        ),
    )


def _gpu_memory(plan: Plan) -> tuple[Gauge | Line, ...]:
    gauges = tuple(Gauge(phase.name, phase.worst, _phase_text(phase)) for phase in plan.phases)
    rebuilt, kept = plan.trainer_asleep
    if rebuilt == kept:
        return gauges
    (here, how), (there, otherwise) = (rebuilt, "destroyed"), (kept, "kept (perf.process_groups keep)")
    if not plan.groups_rebuilt:
        (here, how), (there, otherwise) = (kept, "kept"), (rebuilt, "destroyed (perf.process_groups rebuild)")
    other = plan.phase("rollout").worst.total_bytes - here + there
    text = (
        f"the trainer keeps {show_bytes(here)} with its process groups {how}; with them {otherwise}"
        f" {show_bytes(there)}, and a rollout would need {show_bytes(other)}"
    )
    return *gauges, Line("asleep", text)


def _phase_text(phase: Phase) -> str:
    alike = len({use.total_bytes for use in phase.stages}) == 1
    return ("" if alike else f"stage {phase.worst_stage}: ") + _list(phase.worst.largest(5))


def _host_memory(plan: Plan) -> tuple[Gauge | Line, ...]:
    fullest = plan.fullest_host
    emptiest = min(plan.hosts, key=lambda host: host.use.total_bytes)
    gauges = [Gauge(_nodes(fullest.nodes), fullest.use, _list(fullest.use.largest(5)))]
    if emptiest.use.total_bytes < fullest.use.total_bytes:
        gauges.append(Gauge(_nodes(emptiest.nodes), emptiest.use, "the emptiest nodes"))
    if not fullest.avoided:
        return tuple(gauges)
    return *gauges, Line("avoided", _list(fullest.avoided))


def _nodes(folded: str) -> str:
    return f"node {folded}" if folded.isdigit() else f"nodes {folded}"


def _engines(plan: Plan) -> tuple[Line, ...]:
    engine, sync = plan.engine, plan.sync
    grid, per_node = engine.grid, plan.topology.gpus_per_node
    spread = f"{grid.gpus / per_node:g} node" + ("" if grid.gpus <= per_node else "s")
    where = (
        f"{engine.num_engines}, each of {_plural(grid.gpus, 'GPU')} ({spread}) with"
        f" {_plural(grid.dp_size, 'attention rank')} of {_plural(grid.attention, 'GPU')}"
    )
    if 1 < engine.num_engines <= 4:
        numbers = range(engine.num_engines)
        where += "; " + ", ".join(
            f"engine {number} with stages {_span(plan.engine_stages(number))}" for number in numbers
        )
    weights = f"{show_bytes(engine.weight_bytes)} a GPU in {engine.form.name}: {_list(engine.weights[:4])}"
    cache = (
        f"{show_count(engine.kv_tokens_per_rank)} tokens a rank, {show_count(engine.kv_tokens_per_engine)} an engine"
        f" ({engine.kv_bytes_per_token:,} B each); {engine.requests_per_rank} requests a rank ="
        f" {engine.tokens_per_request:,} tokens each, {engine.longest_requests_that_fit} of full length fit"
    )
    sent = (sync.fp8_bytes or sync.bf16_bytes) + sync.scale_bytes
    moved = (
        f"{show_bytes(sent)}; into each GPU {show_bytes(sync.expert_bytes_per_gpu)} of experts and"
        f" {show_bytes(sync.dense_bytes_per_gpu)} of the rest, in {_plural(sync.payloads, 'payload')}"
    )
    if sync.time is not None:
        moved += f": about {show_seconds(sync.time.seconds)} (an estimate: docs/planning.md)"
    others = tuple(
        Line("", f"with {other.settings}: {show_count(other.tokens_per_engine)} an engine")
        for other in (plan.alternatives if engine.retracts else ())
    )
    return Line("engines", where), Line("weights", weights), Line("KV cache", cache), *others, Line("sync", moved)


def _time(plan: Plan) -> tuple[Line, ...]:
    times = plan.times
    lines = [
        Line(
            "commit",
            f"{show_bytes(plan.storage.commit_bytes)} in {show_seconds(times.save_s)}, written during the next rollout",
        ),
        Line("every", _interval_text(plan)),
        Line(
            "signal",
            f"{show_seconds(times.signal_lead_s)} before the time limit of"
            f" {show_seconds(60 * plan.time_limit_minutes)}; needed {times.needed_lead_s} s: save, its spread, the step"
            f" under way, Slurm's {SLURM_SIGNAL_SLACK_S} s",
        ),
        Line(
            "preempted",
            f"{times.lost_gpu_hours:.3g} GPU-hours lost on average: half an interval, and"
            f" {show_seconds(times.restart_s)} to restart",
        ),
    ]
    if times.iteration and times.days:
        source = "measured" if times.iteration.measured else "an estimate; set run.expected_rollout_minutes"
        minutes = show_range(times.iteration.low_minutes, times.iteration.high_minutes)
        lines.insert(0, Line("iteration", f"{minutes} min ({source}); {show_range(*times.days)} days for the run"))
    if times.host_adam is not None and times.host_adam.seconds is not None:
        lines.insert(1, Line("host Adam", _adam_text(times.host_adam.traffic_bytes, *times.host_adam.seconds)))
    if times.whole_run:
        lines.insert(1, Line("whole run", _whole_run_text(plan, times.whole_run)))
    return tuple(lines)


def _adam_text(traffic: int, fast: float, slow: float) -> str:
    return (
        f"{show_bytes(traffic)} through the memory of the fullest node a step:"
        f" {show_range(fast, slow, '.1f')} s, by its cores and memory channels"
    )


def _whole_run_text(plan: Plan, whole: WholeRun) -> str:
    least, most = (f"{hours:,.3g}" if hours < 1000 else f"{round(hours, -2):,.0f}" for hours in whole.gpu_hours)
    hours = least if least == most else f"{least} to {most}"
    attempts = show_range(*whole.attempts, "d")
    return (
        f"{hours} GPU-hours, in {attempts} attempts of {show_seconds(60 * plan.time_limit_minutes)} one after another;"
        " preemptions left out"
    )


def _interval_text(plan: Plan) -> str:
    times = plan.times
    text = f"{times.save_minutes} min"
    if times.save_iterations:
        text += f" ({show_range(*times.save_iterations, 'd')} iterations)"
    if times.save_minutes != times.advised_save_minutes:
        text += f", advised {times.advised_save_minutes}"
    return f"{text}; saving and repeated work cost {times.overhead:.0%} at most"


def _disk(plan: Plan) -> tuple[Line, ...]:
    storage, stages = plan.storage, plan.times.stages
    lines = [Line("space", f"{show_bytes(storage.total_bytes)}: {_list(storage.disk)}")]
    if stages.cast:
        lines.append(Line("cast", _stage_text(stages.cast)))
    if stages.convert:
        again = (
            f"; {show_seconds(stages.recheck.seconds)} more to read it again, if one node reads that fast"
            if stages.recheck
            else ""
        )
        lines += [Line("convert", _stage_text(stages.convert) + again), Line("slices", _slices_text(plan))]
    return tuple(lines)


def _stage_text(stage: StageTime) -> str:
    moved = f"{show_bytes(stage.read_bytes)} in, {show_bytes(stage.written_bytes)} out"
    workers = _plural(stage.workers, "worker")
    if stage.bound == "workers":
        limit = f"by its {workers}; the file system would allow {show_seconds(stage.file_system_s)}"
    else:
        limit = f"by run.file_system_gbps; {workers} could in {show_seconds(stage.workers_s)}"
    return f"{show_seconds(stage.seconds)} for {moved}, bound {limit}"


def _slices_text(plan: Plan) -> str:
    conversion = plan.storage.conversion
    least, most = show_bytes(min(conversion.slice_bytes)), show_bytes(max(conversion.slice_bytes))
    sizes = least if least == most else f"{least} to {most}"
    held = show_bytes(max(conversion.recipe_rank_bytes))
    return (
        f"{conversion.slices} of {sizes} on disk; in memory a worker takes {show_bytes(ARRAY_WORKER_BYTES)},"
        f" where a rank of the recipe's converter would hold up to {held}"
    )


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _list(parts: tuple[MemoryPart, ...]) -> str:
    return ", ".join(f"{part.name} {show_bytes(part.bytes)}" for part in parts)


def _span(nodes: range) -> str:
    return f"{nodes[0]}-{nodes[-1]}" if len(nodes) > 1 else str(nodes[0])
