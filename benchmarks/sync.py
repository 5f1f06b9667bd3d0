"""Seconds of a weight sync into a real engine on the same GPU, beside the bus that the weights come over.

    python -m benchmarks.sync [--rounds 5] [--bucket-mib 512 1024 2048]

A trainer's host copy of three of DeepSeek-R1's layers, one dense and two of 64 experts each (6.8 billion parameters,
13.6 GB in bf16: what a GPU of 128 brings is 10.5), goes quantized into an SGLang server as it does in a run: pinned
memory, GPU, block fp8, CUDA IPC, the engine's weights, checked. The limit is a copy of the same weights from pinned
memory, measured in the same process. About 2 minutes on an H200, half of it the server's start; without a GPU the tiny
model, to see that it works. Trainer, driver and benchmark share a process here, which a run does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.host_copy import best_seconds
from benchmarks.random_trainer import on_gpu, randomize, synchronize, world
from r1hpc.actors.process_setup import trainer_environment
from r1hpc.checkpoint.fp8_format import QUANTIZATION
from r1hpc.cluster.ports import PortBand
from r1hpc.config import Config, load_config
from r1hpc.model import compat
from r1hpc.model.build import build_model
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from r1hpc.plan.model_shape import model_shape
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config
from r1hpc.rehearsal.tiny_tokenizer import tokenizer_config_json, tokenizer_json
from r1hpc.rollout.placement import EngineHost, place_engines
from r1hpc.rollout.server import EngineServer
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncOutcome, SyncOutline, SyncTarget
from r1hpc.sync.publish import EngineEndpoint, SyncReport, publish
from r1hpc.sync.publisher import WeightPublisher
from r1hpc.train.checkpoint.pieces import HeldModel, held_model
from r1hpc.train.host_weights import HostWeights

HOME = Path(__file__).resolve().parents[1]
START_S = 300.0
PORT = 24500
LAYERS_OF_R1 = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 64,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "moe_intermediate_size": 2048,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 8192,
}
ON_GPU = ("sglang.mem_fraction_static=0.3", "sglang.max_total_tokens=65536")
ON_CPU = (
    "hosts.num_nodes=1",
    "perf.tensor_model_parallel_size=1",
    "perf.sequence_parallel=false",
    "perf.pipeline_model_parallel_size=1",
    "perf.expert_model_parallel_size=1",
    "perf.decoder_last_pipeline_num_layers=null",
    "sglang.rollout_num_gpus_per_engine=1",
)


Done = TypeVar("Done")


@dataclass(frozen=True)
class Here:
    """The only trainer rank, in this process."""

    publisher: WeightPublisher
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    """What is asked before the last answer has come is done after it."""

    async def begin_sync(self, targets: Sequence[SyncTarget], full_check: bool = False) -> SyncOutline:
        return await self._do(self.publisher.begin, targets, full_check)

    async def offer(self, bucket: int) -> list[str | None]:
        return [await self._do(self.publisher.offer, bucket)]

    async def end_sync(self) -> list[SyncOutcome]:
        return [await self._do(self.publisher.end)]

    async def _do(self, work: Callable[..., Done], *arguments: Any) -> Done:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *arguments)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket-mib", type=int, nargs="+", default=[512, 1024, 2048])
    options = parser.parse_args()
    environment = dict(os.environ)
    with world() as scratch:
        config, values = configured(scratch)
        server = engine_server(config, scratch, environment)
        starting = threading.Thread(target=server.start)
        starting.start()
        try:
            figures = measure(config, values, server, starting, options.bucket_mib, options.rounds)
        finally:
            starting.join()
            asyncio.run(server.stop())
    print(json.dumps(figures))
    return 0


def configured(scratch: Path) -> tuple[Config, dict[str, Any]]:
    """Configuration and config.json of a model whose engine starts without a checkpoint."""
    sizes = LAYERS_OF_R1 if on_gpu() else {}
    values = tiny_config(TINY_R1, sizes, mtp=False, fp8=on_gpu())
    if on_gpu():
        values["quantization_config"] = QUANTIZATION
    directory = scratch / ("engine" if on_gpu() else "arithmetic-r1-bf16")
    directory.mkdir()
    files = {"config.json": values, "tokenizer.json": tokenizer_json(values)}
    files["tokenizer_config.json"] = tokenizer_config_json(values)
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    overrides = [f"vars.WORK={scratch}", "sglang.load_format=dummy", *(ON_GPU if on_gpu() else ON_CPU)]
    source = HOME / ("tests/gpu/cycle.yaml" if on_gpu() else "configs/rehearsal.yaml")
    return load_config(source, overrides=overrides).config, values


def engine_server(config: Config, scratch: Path, environment: Mapping[str, str]) -> EngineServer:
    """One engine on one GPU, without what the trainer's environment has for itself."""
    ((process,),) = place_engines([EngineHost("127.0.0.1", PortBand(PORT, 400))], 1, 1)
    own = trainer_environment("cuda" if on_gpu() else "cpu", "lo")
    kept = {name: value for name, value in environment.items() if name not in own}
    return EngineServer(config, process, scratch / "logs", environment=kept, secret="key-of-this-benchmark")


def measure(
    config: Config,
    values: dict[str, Any],
    server: EngineServer,
    starting: threading.Thread,
    buckets_mib: Sequence[int],
    rounds: int,
) -> dict[str, float]:
    """A table by size of bucket, and the figures of the fastest."""
    host, held = host_copy(config, values)
    device = torch.device("cuda", 0) if on_gpu() else torch.device("cpu")
    size = sum(tensor.numel() * tensor.itemsize for tensor in host.tensors("actor").values())
    limit = size / 1e9 / best_seconds(lambda: restored(host), 3)
    print(f"{size / 1e9:.1f} GB of weights; a copy of them from host memory: {limit:.1f} GB/s")
    starting.join()
    asyncio.run(server.wait_until_healthy(START_S))
    figures: dict[str, float] = {"weights_gb": size / 1e9, "limit_gb_s": limit}
    shape = model_shape(values, TINY_R1)
    print("| bucket, MiB | payloads | GB sent | seconds | GB/s of the weights | of the limit | parts, ms |")
    print("|---|---|---|---|---|---|---|")
    for mib in buckets_mib:
        publisher = WeightPublisher(
            lambda: host.tensors("actor"),
            held,
            shape,
            SyncForm.FP8 if on_gpu() else SyncForm.PLAIN,
            device=device,
            bucket_bytes=mib << 20,
        )
        report = asyncio.run(usual(publisher, server, rounds))
        rate = size / 1e9 / report.seconds["total"]
        parts = ", ".join(f"{part} {1e3 * spent:.0f}" for part, spent in report.seconds.items())
        print(
            f"| {mib} | {report.buckets} | {report.bytes_per_gpu / 1e9:.2f} | {report.seconds['total']:.3f} |"
            f" {rate:.1f} | {rate / limit:.2f} | {parts} |",
            flush=True,
        )
        figures |= {f"{mib}_s": report.seconds["total"], f"{mib}_share": rate / limit}
    return {name: round(value, 4) for name, value in figures.items()}


def host_copy(config: Config, values: dict[str, Any]) -> tuple[HostWeights, HeldModel]:
    """The copy "actor" of a model with random weights, of which the GPU keeps nothing; and what it holds of it."""
    compat.prepare(config.hosts.device)
    Layout.of(config.perf).initialize()
    settings = TrainSettings.of(config.perf, config.megatron, config.hosts.device)
    model = build_model(values, Layout.of(config.perf), settings)
    randomize(model)
    host = HostWeights(model)
    host.save("actor")
    return host, held_model(model)


def restored(host: HostWeights) -> None:
    """A plain copy of all weights to the GPU, one after another."""
    host.restore("actor")
    synchronize()


async def usual(publisher: WeightPublisher, server: EngineServer, rounds: int) -> SyncReport:
    """The sync of the median time; the first is not counted."""
    engine = EngineEndpoint("engine0", server.control, server.capabilities, (0,))
    reports, here = [], Here(publisher)
    for version in range(rounds + 1):
        report = await publish(here, [engine], version, timeout_s=START_S)
        assert not report.failed, report.failed
        reports.append(report)
    return sorted(reports[1:], key=lambda report: report.seconds["total"])[rounds // 2]


if __name__ == "__main__":
    raise SystemExit(main())
