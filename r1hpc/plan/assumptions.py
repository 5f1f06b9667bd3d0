"""The numbers that a plan cannot derive: each with its source. Everything else in a plan is arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1hpc.plan.speeds import MEASURED_SPEEDS, Speeds

GB = 10**9
GIB = 2**30
SLURM_SIGNAL_SLACK_S = 60
"""Slurm may deliver --signal up to a minute early: sbatch(1)."""
MAX_SIGNAL_LEAD_S = 65535
"""The largest lead that --signal takes: sbatch(1)."""
SAVE_SPREAD = 0.25
"""How much slower than expected a save may be before the signal lead no longer covers it; our margin."""
ADAM_BYTES = 12
"""Of one parameter: fp32 master, first and second moment."""
ADAM_STAGING_BYTES = 2 * 64 * 2**20
"""Of host Adam on one GPU: for dense and for expert parameters two pieces of gradients and two of weights, each of 4 Mi
values of 4 B."""
ADAM_TRAFFIC_BYTES = 28
"""Moved by host Adam for a parameter and step: gradient, master, both moments read; the latter three written."""
LOGIT_COPIES = 4
"""fp32 arrays of a chunk of logits alive at once: logits, exponentials, gradient, one temporary. Counted from the
vocabulary-parallel log-softmax."""
EXPERT_IMBALANCE = 2.0
"""Tokens of the busiest GPU over the mean after a dispatch. Our margin: RL trains without a balancing loss."""
FRAGMENTATION = 0.03
"""Share of a GPU that the caching allocator cannot use. Our margin."""

R1_LAYERS = 61
R1_HIDDEN_SIZE = 7168
"""Of the model for which graphs and activations of an engine are known."""

STREAM_WORKER_BYTES_S = 3 * GB // 2
"""Read and written by one worker of a cast or a conversion whose files are in the page cache, dequantizing and hashing
included. Measured: 1.3 to 2.2 GB/s on one core (docs/performance.md)."""
RECHECK_WORKER_BYTES_S = 5 * GB
"""Read again and hashed by one worker, likewise. Measured: 5 to 12 GB/s."""
ARRAY_WORKER_BYTES = 4 * GB // 10
"""Of one worker of a cast or a conversion at R1's sizes: 0.38 GB, measured, most of it shared with its task."""
ARRAY_TASK_BYTES = 6 * GB // 10
"""Of the task itself: 0.53 GB while it publishes R1's 48 k chunks, measured."""


@dataclass(frozen=True)
class Growing:
    """Bytes on a GPU that grow with the GPUs that talk to each other: known for one and for many, a line between."""

    of_one: int
    of_many: int
    many: int
    """More cost no more."""

    def of(self, gpus: int) -> int:
        """Of a group of so many GPUs."""
        share = (min(gpus, self.many) - 1) / (self.many - 1)
        return int(self.of_one + share * (self.of_many - self.of_one))


NOTHING = Growing(0, 0, 2)


@dataclass(frozen=True)
class Assumptions:
    """What a device costs besides tensors."""

    usable_share: float
    """Of the memory as sold, what the driver gives: 79.1 of 80 GiB on an H100 (as torch reports its capacity)."""
    sleeps: bool
    """Whether a sleeping side gives its memory back (memory saver); a CPU rehearsal keeps both sides resident."""
    context_bytes: int
    """Of one process: CUDA context (0.645 GB on an H200) and the kernels of an update (0.45 GB), or a CPU process that
    has imported its libraries. Measured."""
    engine_process_bytes: int
    """The same for one engine rank."""
    engine_groups: Growing
    """NCCL buffers of an engine, opened before SGLang measures its free memory. One GPU: measured, an engine asleep has
    1.18 GB with its context; eight and more: our estimate."""
    deepep_bytes: int
    """DeepEP buffers of an engine; they survive its sleep. SGLang 0.5.21 reserves 2 GiB (reserve_for_deepep_a2a_mb)."""
    cuda_graph_bytes: int
    """Of R1: 6.2 GiB at batch 256 on 8 GPUs, SGLang pull request 5893. A model of fewer layers has so much less."""
    prefill_bytes: int
    """Activations of a prefill chunk of R1: SGLang 0.5.21 reserves 1.5 MiB a token, of at least 2048 tokens. A narrower
    model has so much less."""
    trainer_asleep: Growing
    """A sleeping trainer whose process groups were destroyed. One GPU: context and kernels, measured; 128: 3 to 5 GB,
    slime v0.1.0 release notes."""
    communicator_bytes: int
    """Of one process group of GPUs: 2.04 GB of five, measured on one GPU."""
    trainer_groups: Growing
    """NCCL buffers of a trainer. One GPU: seven communicators of 0.41 GB; 128: 15 to 18 GB asleep with groups kept,
    less the 3 to 5 above."""
    rebuild_groups_above: int
    """World size above which process groups are destroyed while the trainer sleeps."""
    host_process_bytes: int
    """Host memory of one trainer or engine process: libraries, pinned staging, Python. Our estimate."""
    host_services_bytes: int
    """Host memory of a node's raylet, its agents and our node agent. Our estimate."""
    host_io_bytes: int
    """Host memory of one GPU's checkpoint reader or writer while it streams. Our budget for it."""
    speeds: Speeds | None
    """null: no estimate of times."""
    step_margin_s: int
    """From the stop request until a save may begin: generation aborted or the step under way ended. Our budget."""
    peak_flops: float | None
    """bf16, dense, of one GPU (H100 SXM data sheet); null: no estimate of times."""
    model_flops_share: float
    """Of the peak, in training R1. Our guess; 0.41 was measured on one GPU for a 1.1 B model without parallelism."""
    decode_tokens_per_s: tuple[float, float]
    """Of one request: slow, fast. From published R1-like rollouts."""
    switch_s: int
    """Of an iteration: waking, sleeping, weight sync. Our guess."""
    requeue_delay_s: int
    """From a preemption to the next allocation at the earliest: Slurm's cred_expiration."""
    start_s: int
    """From the start of an allocation to its first iteration, reading the checkpoint left out: preflight, Ray, engines
    (91 s warm) and process groups. Our estimate."""


H100 = Assumptions(
    usable_share=79.1 / 80,
    sleeps=True,
    context_bytes=int(1.1 * GB),
    engine_process_bytes=int(0.6 * GB),
    engine_groups=Growing(int(0.55 * GB), 3 * GB, many=8),
    deepep_bytes=2 * GIB,
    cuda_graph_bytes=int(6.2 * GIB),
    prefill_bytes=3 * GIB,
    trainer_asleep=Growing(int(1.1 * GB), 5 * GB, many=128),
    communicator_bytes=int(0.41 * GB),
    trainer_groups=Growing(int(2.9 * GB), 13 * GB, many=128),
    rebuild_groups_above=16,
    host_process_bytes=4 * GB,
    host_services_bytes=int(0.3 * GB),
    host_io_bytes=2 * GB,
    speeds=MEASURED_SPEEDS,
    step_margin_s=120,
    peak_flops=989e12,
    model_flops_share=0.2,
    decode_tokens_per_s=(25.0, 60.0),
    switch_s=60,
    requeue_delay_s=120,
    start_s=480,
)
REHEARSAL = Assumptions(
    usable_share=1.0,
    sleeps=False,
    context_bytes=int(0.5 * GB),  # torch and megatron-core imported: 0.43 GB resident, measured
    engine_process_bytes=int(1.26 * GB),  # SGLang's CPU server, proportional set of its 4 processes, measured
    engine_groups=NOTHING,
    deepep_bytes=0,
    cuda_graph_bytes=0,
    prefill_bytes=0,
    trainer_asleep=NOTHING,
    communicator_bytes=0,
    trainer_groups=NOTHING,
    rebuild_groups_above=16,
    host_process_bytes=0,  # the logical slots already count them
    host_services_bytes=int(0.3 * GB),
    host_io_bytes=0,
    speeds=None,
    step_margin_s=30,
    peak_flops=None,
    model_flops_share=0.0,
    decode_tokens_per_s=(0.0, 0.0),
    switch_s=0,
    requeue_delay_s=120,
    start_s=60,
)


def assumptions_for(device: Literal["cuda", "cpu"]) -> Assumptions:
    """The assumptions of a device."""
    return H100 if device == "cuda" else REHEARSAL
