"""The command line and the environment that each process of an engine is started with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from r1hpc.cluster.ports import PortBand
from r1hpc.config import Config, load_config
from r1hpc.config.libraries import sglang_arguments
from r1hpc.rollout.engine_args import EngineArgumentError, ServerArguments, boot_checkpoint, server_arguments
from r1hpc.rollout.engine_environment import CPU_SITE, GPU_SITE, engine_environment
from r1hpc.rollout.placement import EngineHost, EngineProcess, place_engines
from r1hpc.rollout.versions import capabilities

ROOT = Path(__file__).parents[2]
KNOWN = capabilities("0.5.21")

R1_COMMON = (
    "--tp-size 64 --ep-size 64 --dp-size 8 --enable-dp-attention --enable-dp-lm-head --moe-dense-tp-size 1"
    " --moe-a2a-backend deepep --deepep-mode auto --mem-fraction-static 0.5 --disable-radix-cache"
    " --device cuda --base-gpu-id 0 --enable-memory-saver --enable-draft-weights-cpu-backup --mm-feature-transport cpu"
    " --enforce-disable-flashinfer-allreduce-fusion"
)
FORCED = (
    "--skip-server-warmup --enable-metrics --incremental-streaming-output --log-level-http warning"
    " --disable-shared-experts-fusion --custom-weight-loader r1hpc.sync.engine_loader.load"
)


def r1(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "r1.yaml", overrides=overrides).config


def rehearsal(*overrides: str) -> Config:
    return load_config(ROOT / "tests" / "pipeline.yaml", overrides=["vars.WORK=/shared", *overrides]).config


def placed(config: Config, addresses: list[str]) -> list[EngineProcess]:
    hosts = [EngineHost(address, PortBand(26000, 400)) for address in addresses]
    engines = place_engines(hosts, config.hosts.gpus_per_node, config.sglang.rollout_num_gpus_per_engine)
    return [process for engine in engines for process in engine]


def one(config: Config) -> ServerArguments:
    """Arguments of the first process of the first engine."""
    addresses = [f"10.0.0.{number}" for number in range(1, config.hosts.num_nodes + 1)]
    return server_arguments(config, placed(config, addresses)[0], KNOWN)


@pytest.mark.parametrize("index", range(16))
def test_the_command_of_every_process_of_both_engines_of_r1(index: int) -> None:
    config = r1()
    process = placed(config, [f"10.0.0.{number}" for number in range(1, 17)])[index]
    engine, rank = divmod(index, 8)
    head, seed = {0: ("10.0.0.1", 1234), 1: ("10.0.0.9", 1235)}[engine]
    assert " ".join(server_arguments(config, process, KNOWN).argv("python")) == (
        f"python -m sglang.launch_server --model-path /data/r1/DeepSeek-R1 --host 10.0.0.{index + 1} --port 26200"
        f" --nccl-port 26201 --nnodes 8 --node-rank {rank} --dist-init-addr {head}:26202"
        f" {R1_COMMON} --random-seed {seed} {FORCED}"
    )


def test_the_command_of_the_second_engine_of_a_host_of_the_rehearsal() -> None:
    config = rehearsal()
    process = placed(config, ["127.0.0.2"])[1]
    assert " ".join(server_arguments(config, process, KNOWN).argv("python")) == (
        "python -m sglang.launch_server --model-path /shared/tiny-r1-bf16 --host 127.0.0.2 --port 26224"
        " --nccl-port 26225 --nnodes 1 --node-rank 0 --dist-init-addr 127.0.0.1:26226"
        " --tp-size 1 --mem-fraction-static 0.1"
        " --device cpu --dtype float32 --attention-backend torch_native --disable-overlap-schedule --sleep-on-idle"
        f" --random-seed 1235 {FORCED} --max-total-tokens 8192"
    )


def test_from_0_5_22_data_parallel_attention_is_one_argument() -> None:
    config = r1()
    process = placed(config, [f"10.0.0.{number}" for number in range(1, 17)])[0]
    values = server_arguments(config, process, capabilities("0.5.22")).values
    assert values["attn_dp_size"] == 8
    assert not {"dp_size", "enable_dp_attention"} & values.keys()


def test_the_installed_sglang_has_every_argument_that_r1hpc_gives() -> None:
    known = sglang_arguments()
    assert known is not None
    given = one(r1()).values.keys() | one(rehearsal()).values.keys() | {"kv_cache_dtype"}
    assert len(given) > 25
    assert given <= known


def test_the_engine_of_two_gpus_talks_through_nccl_alone() -> None:
    values = one(load_config(ROOT / "configs" / "gpu2.yaml").config).values
    assert (values["tp_size"], values["ep_size"]) == (2, 2)
    assert values["disable_custom_all_reduce"] is values["enforce_disable_flashinfer_allreduce_fusion"] is True
    assert not {"enable_nccl_nvls", "enable_symm_mem"} & values.keys()


def test_on_cpu_an_engine_starts_from_the_cast_copy_and_on_gpus_from_the_released_one() -> None:
    assert boot_checkpoint(rehearsal()) == "/shared/tiny-r1-bf16"
    assert boot_checkpoint(rehearsal("ckpt.bf16_checkpoint=null")) == "/shared/tiny-r1"
    assert boot_checkpoint(r1()) == "/data/r1/DeepSeek-R1"


def test_an_engine_of_one_gpu_reduces_nothing_and_so_has_no_word_on_fusing_it() -> None:
    config = r1()
    ((process,), *_) = place_engines([EngineHost("10.0.0.1", PortBand(26000, 400))], 8, 1)
    values = server_arguments(config, process, KNOWN).values
    assert "enforce_disable_flashinfer_allreduce_fusion" not in values
    assert values["enable_memory_saver"] is True


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("chunked_prefill_size", 4096, "--chunked-prefill-size 4096"),
        ("schedule_conservativeness", 0.5, "--schedule-conservativeness 0.5"),
        ("disable_cuda_graph", True, "--disable-cuda-graph"),
        ("disable_cuda_graph", False, ""),
        ("dllm_fdfo", False, "--no-dllm-fdfo"),
        ("max_running_requests", None, ""),
        ("cuda_graph_bs", [1, 2, 4], "--cuda-graph-bs 1 2 4"),
        ("preferred_sampling_params", {"top_k": 5}, '--preferred-sampling-params {"top_k": 5}'),
        ("attention_backend", "flashmla", "--attention-backend flashmla"),
        ("fp8_gemm_runner_backend", "triton", "--fp8-gemm-backend triton"),
    ],
)
def test_any_other_argument_passes_through_in_the_form_that_sglang_reads(name: str, value: object, words: str) -> None:
    assert " ".join(ServerArguments({name: value}).argv()[3:]) == words


def test_what_the_user_sets_replaces_a_default_of_r1hpc() -> None:
    assert one(r1("sglang.mm_feature_transport=auto")).values["mm_feature_transport"] == "auto"
    assert one(r1("sglang.attention_backend=flashmla")).values["attention_backend"] == "flashmla"


def test_a_switch_that_is_always_on_cannot_be_turned_off() -> None:
    with pytest.raises(EngineArgumentError, match=r"sglang\.disable_shared_experts_fusion = false: it is always true"):
        one(r1("sglang.disable_shared_experts_fusion=false"))
    assert one(r1("sglang.disable_shared_experts_fusion=true")).values["disable_shared_experts_fusion"] is True


def test_the_environment_loses_what_harms_an_engine_and_keeps_the_marks_of_the_run() -> None:
    inherited = {
        "PATH": "/bin",
        "R1HPC_RUN": "r1",
        "R1HPC_NODE": "r1/1/node01",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "LD_PRELOAD": "/lib/torch_memory_saver_hook.so",
        "TMS_INIT_ENABLE": "1",
        "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",
        "http_proxy": "http://proxy:3128",
        "MASTER_PORT": "20000",
        "PYTHONPATH": "/site",
    }
    config = r1()
    process = placed(config, [f"10.0.0.{number}" for number in range(1, 17)])[0]
    environment = engine_environment(config, process, inherited, Path("/tmp/e"))
    kept = {name: value for name, value in environment.items() if name in inherited}
    assert kept == {"PATH": "/bin", "R1HPC_RUN": "r1", "R1HPC_NODE": "r1/1/node01", "PYTHONPATH": f"{GPU_SITE}:/site"}
    assert environment["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "false"
    assert environment["SGLANG_MEMORY_SAVER_CUDA_GRAPH"] == "true"
    assert environment["TMPDIR"] == "/tmp/e"
    assert "SGLANG_USE_CPU_ENGINE" not in environment
    assert "GLOO_SOCKET_IFNAME" not in environment


def test_an_engine_on_cpu_sees_the_stand_ins_for_a_cpu() -> None:
    config = rehearsal()
    environment = engine_environment(config, placed(config, ["127.0.0.2"])[0], {"PYTHONPATH": "/site"}, Path("/tmp/e"))
    assert environment["PYTHONPATH"] == f"{CPU_SITE}:/site"
    assert environment["SGLANG_USE_CPU_ENGINE"] == "1"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert environment["SGLANG_CPU_OMP_THREADS_BIND"] == "0"


def test_an_engine_on_a_gpu_finds_no_megatron() -> None:
    """Which would switch its memory saver to a mode that cannot release CUDA graphs."""
    looks = "from importlib.util import find_spec; import megatron; assert find_spec('megatron.core') is None"
    subprocess.run([sys.executable, "-c", looks], env={"PYTHONPATH": str(GPU_SITE)}, check=True, timeout=60)


def test_process_groups_use_the_interface_of_the_fabric() -> None:
    config = r1("hosts.fabric_interface=ib0")
    process = placed(config, [f"10.0.0.{number}" for number in range(1, 17)])[0]
    environment = engine_environment(config, process, {}, Path("/tmp/e"))
    assert (environment["NCCL_SOCKET_IFNAME"], environment["GLOO_SOCKET_IFNAME"]) == ("ib0", "ib0")
