"""What a person reads when a configuration is wrong: every problem at once, each with its place and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from r1hpc.config import load_config
from r1hpc.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

MANY_ERRORS = """\
run:
  name: my run
  root: ${SCRATCH}/runs
hosts:
  num_nodes: 0
  gpus_per_node: eight
  host_memory_gib: 100
  device: tpu
slurm:
  time_limit: 24h
  setup: module load cuda
ckpt:
  hf_checkpoint: /models/hf
  save_intervall: 20
  global_batch_size: 256
rollout:
  prompt_data: /data/prompts.jsonl@[5]
  num_rollout: 1e3
  rollout_batch_size: 4
  rollout_shuffle: yes
  dynamic_sampling_filter_path: filters
perf:
  tensor_model_parallel_sizes: 8
optimiser:
  lr: 1e-6
grpo:
  kl_coef: 0.1
  kl_loss_coef: 0.1
sglang:
  tp_size: 8
  mem_fraction: 0.5
"""

MANY_PROBLEMS = """\
19 configuration problems:
  config.yaml:2: run.name = "my run": must start with a letter or digit and hold only letters, digits, '.', '_' and '-'
  config.yaml:3: run.root: ${SCRATCH} is not defined; set it under vars:, with --set vars.SCRATCH=..., or in the \
environment
  config.yaml:5: hosts.num_nodes = 0: must be at least 1
  config.yaml:6: hosts.gpus_per_node = eight: expected: whole number, at least 1, at most 1024
  config.yaml:8: hosts.device = tpu: must be cuda or cpu
  config.yaml:10: slurm.time_limit = 24h: '24h' is no Slurm time: write minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S
  config.yaml:11: slurm.setup = "module load cuda": expected: list of text; write one item a line, each after a dash
  config.yaml:14: ckpt.save_intervall = 20: unknown key; did you mean save_interval?
  config.yaml:15: ckpt.global_batch_size = 256: unknown key; global_batch_size belongs to rollout
  config.yaml:16: rollout.rollout_max_response_len: required and not set: Tokens generated at most per sample
  config.yaml:17: rollout.prompt_data = /data/prompts.jsonl@[5]: a slice is written path@[a:b], with whole numbers or \
nothing for a and b
  config.yaml:18: rollout.num_rollout = 1e3: expected: whole number, at least 1; write 1000
  config.yaml:20: rollout.rollout_shuffle = yes: expected: true or false; write true
  config.yaml:21: rollout.dynamic_sampling_filter_path = filters: must be an import path: package.module.function
  config.yaml:23: perf.tensor_model_parallel_sizes = 8: unknown key; did you mean tensor_model_parallel_size?
  config.yaml:24: optimiser: unknown section; did you mean optimizer?
  config.yaml:27: grpo.kl_coef = 0.1: kl_loss_coef(0.1) is above 0 too, and KL would count twice; set one of them to 0
  config.yaml:28: grpo.kl_loss_coef = 0.1: has no effect without use_kl_loss: true
  config.yaml:30: sglang.tp_size = 8: cannot be set here: rollout_num_gpus_per_engine decides it"""


REWARDS = "deepscaler, math_verify, exact, boxed_deepscaler, boxed_math_verify or boxed_exact"
NO_NODE = "is no node: write names and ranges of names, such as node[01-03,07],login1"
ONE_LINE = "write one line (a block ends in a break of its own: take >- or |-)"


def problems_of(path: object, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=overrides, environ={})  # type: ignore[arg-type]
    return caught.value.problems


def test_all_problems_are_told_at_once_from_the_top_down(write_config: WriteConfig) -> None:
    path = write_config(MANY_ERRORS.replace("  mem_fraction: 0.5\n", ""))
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    assert str(caught.value) == MANY_PROBLEMS


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("hosts.num_nodes=true", "expected: whole number, at least 1, at most 65536"),
        ("rollout.num_rollout=2.5", "expected: whole number, at least 1"),
        ("rollout.num_rollout='2'", "expected: whole number, at least 1; this is text: write 2 without quotes"),
        ("rollout.num_rollout=1_000", "expected: whole number, at least 1; this is text: write 1000 without quotes"),
        ("rollout.num_rollout=", "expected: whole number, at least 1; nothing is written after the colon (or null)"),
        ("hosts.port_base=80", "must be at least 1024"),
        ("hosts.port_base=65536", "must be at most 65535"),
        ("run.file_system_gbps=0", "must be at least 0.001"),
        ("run.file_system_gbps=.inf", "must be finite"),
        ("optimizer.lr=nan", "must be finite"),
        ("optimizer.lr=-inf", "must be finite"),
        ("optimizer.lr=.nan", "must be finite"),
        ("run.file_system_gbps=20 GB", "expected: number, at least 0.001, at most 1000000"),
        ("run.name=2024", "expected: name of letters, digits, '.', '_' and '-'; write \"2024\" in quotes"),
        ("run.name=../x", "must start with a letter or digit and hold only letters, digits, '.', '_' and '-'"),
        ("megatron.hidden_dropout=1", "must be below 1"),
        ("slurm.time_limit=0", "must be at least 1"),
        ("slurm.time_limit=1.5", "expected: minutes, or a Slurm time such as 1-12:30:00"),
        ("slurm.restart=never", "must be requeue, chain or auto"),
        ("slurm.extra.x=1.5", "expected: text or whole number or true or false"),
        ("slurm.extra=3", "expected: mapping of names to text or whole number or true or false"),
        ("slurm.setup=one", "expected: list of text; write one item a line, each after a dash"),
        ("slurm.setup=[1]", 'expected: text; write "1" in quotes'),
        ("rollout.rollout_shuffle=Off", "expected: true or false; write false"),
        ("rollout.rollout_shuffle=1", "expected: true or false"),
        ("rollout.rollout_batch=4", "unknown key; did you mean rollout_batch_size?"),
        ("rollout.lr_decay_stile=x", "unknown key; did you mean lr_decay_style, which belongs to optimizer?"),
        ("rollout.zzz=4", "unknown key; `python -m r1hpc.config explain rollout` lists the keys of rollout"),
        ("rollout.time_limit=4", "unknown key; time_limit belongs to slurm or cast or convert"),
        ("hosts.num_nodes=99999999999999999999", "must be at most 65536"),
        ("hosts.gpus_per_node=1025", "must be at most 1024"),
        ("hosts.host_memory_gib=1e308", "must be at most 1000000"),
        ("run.file_system_gbps=1e-308", "must be at least 0.001"),
        ("run.mean_hours_between_interruptions=1e308", "must be at most 1000000"),
        ("run.expected_rollout_minutes=1e308", "must be at most 1 000 000 000"),
        ("run.seed=4294967296", "must be at most 4294967295"),
        ("rollout.num_rollout=1000000001", "must be at most 1 000 000 000"),
        ("rollout.rollout_top_k=-1000000001", "must be at least -1 000 000 000"),
        ("sglang.mem_fraction_static=1e-320", "must be at least 0.01"),
        ("optimizer.adam_eps=1e-320", "must be 0 or at least 1e-30: float32 holds nothing smaller"),
        ("slurm.time_limit=366-00", "must be at most 525600"),
        ("slurm.time_limit=9999999999", "must be at most 525600"),
        (
            "rollout.rm_type=deepscalr",
            f"must be {REWARDS}; a function of your own goes to custom_rm_path, with rm_type left out",
        ),
        ("sglang.kv_cache_dtype=nonsense", "must be auto, bf16, bfloat16, fp8_e4m3 or fp8_e5m2"),
        ("slurm.account=00123", 'expected: text, or null; write "00123" in quotes'),
        ("slurm.account=0x1F", 'expected: text, or null; write "0x1F" in quotes'),
        ("slurm.exclude=node[01-", '"node[01-" has an unclosed range: write node[01-03,07]'),
        ("slurm.exclude='a,node[01-,b'", '"node[01-" has an unclosed range: write node[01-03,07]'),
        ("slurm.exclude='a,,b'", f'"" {NO_NODE}'),
        ("slurm.exclude='@gpu'", f'"@gpu" {NO_NODE}'),
        ("slurm.exclude='n[1-3]!n2'", f'"n[1-3]!n2" {NO_NODE}'),
        ("slurm.exclude='n[3-1]'", '"n[3-1]": the range 3-1 runs backwards'),
        ('slurm.partition="a\\nb"', f"holds a line break: {ONE_LINE}"),
        ('run.name="a\\n"', f"holds a line break: {ONE_LINE}"),
        ('rollout.prompt_data="/a\\nb"', f"holds a line break: {ONE_LINE}"),
        ('slurm.setup=["a\\rb"]', f"holds a line break: {ONE_LINE}"),
        ('slurm.extra={"a\\nb": 1}', f"holds a line break: {ONE_LINE}"),
        ('slurm.comment="a\\x85b"', "holds the control character '\\x85': remove it"),
        ('run.root="/a\\0b"', "holds the control character '\\x00': remove it"),
        ("run.root=/a\x85b", "the value is not YAML: it holds the control character '\\x85'; remove it"),
        ("run.root=/a\udcffb", "the value is not YAML: it holds the control character '\\udcff'; remove it"),
        ("run.name.x=4", "expected: name of letters, digits, '.', '_' and '-'"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_right(write_config: WriteConfig, override: str, rule: str) -> None:
    (problem,) = problems_of(write_config(), override)
    key = override.partition("=")[0]
    assert problem in (f"--set {override}: {rule}", f"--set {override}: {key}: {rule}")


def test_a_section_that_is_a_value_is_told(write_config: WriteConfig) -> None:
    assert problems_of(write_config("perf: 8\nlr: 3\n", append=True)) == [
        "config.yaml:19: perf = 8: is a section: write its keys under it, indented",
        "config.yaml:20: lr: unknown section; belongs to optimizer: write it under optimizer:",
    ]


def test_a_list_item_is_told_with_its_own_line(write_config: WriteConfig) -> None:
    path = write_config("slurm:\n  setup:\n    - module purge\n    - 7\n", append=True)
    assert problems_of(path) == ['config.yaml:22: slurm.setup.1 = 7: expected: text; write "7" in quotes']


def test_an_absent_required_section_is_told_key_by_key(write_config: WriteConfig) -> None:
    path = write_config("run:\n  name: x\n  root: /r\nckpt: {hf_checkpoint: /a, ref_load: /b}\n")
    assert problems_of(path) == [
        "config.yaml: hosts.num_nodes: required and not set: Hosts of the train job",
        "config.yaml: hosts.gpus_per_node: required and not set: GPUs of a host: the slots of its hostfile line",
        "config.yaml: hosts.host_memory_gib: required and not set: Memory of a host that the job may use, GiB",
        "config.yaml: rollout.prompt_data: required and not set: "
        "Prompt file, one JSON object a line or parquet; a slice may follow: `path@[a:b]`",
        "config.yaml: rollout.num_rollout: required and not set: "
        "Number of the last iteration plus one, absolute: a resumed run goes on to the same end",
        "config.yaml: rollout.rollout_batch_size: required and not set: Prompts kept per rollout",
        "config.yaml: rollout.rollout_max_response_len: required and not set: Tokens generated at most per sample",
    ]


def test_long_values_are_cut(write_config: WriteConfig) -> None:
    path = write_config(f"slurm:\n  restart: {'x' * 200}\n", append=True)
    (problem,) = problems_of(path)
    assert problem == f"config.yaml:20: slurm.restart = {'x' * 57}...: must be requeue, chain or auto"


def test_problems_of_two_files_stay_together(write_config: WriteConfig) -> None:
    path = write_config("perf:\n  zzz: 1\nslurm:\n  nice: a\n", append=True)
    write_config("slurm:\n  qos: 3\nvars: [1]\n", "sites/x.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(path, site="x", environ={})
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "config.yaml:20",
        "config.yaml:22",
        "sites/x.yaml:2",
        "sites/x.yaml:3",
    ]


@pytest.mark.parametrize("value", ["false", "0", '""', "[]"])
def test_only_null_is_an_empty_section(write_config: WriteConfig, value: str) -> None:
    path = write_config("grpo:\n  eps_clip: 0.3\neval:\n", append=True)
    assert load_config(path, environ={}).config.grpo.eps_clip == 0.3
    write_config(f"grpo: {value}\n", "sites/x.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(path, site="x", environ={})
    (problem,) = caught.value.problems
    assert problem == f"sites/x.yaml:1: grpo = {value}: is a section: write its keys under it, indented"


def test_variables_may_be_an_empty_section_too(write_config: WriteConfig) -> None:
    assert load_config(write_config("vars:\n", append=True), environ={}).config.run.name == "small"
    path = write_config("vars: false\n", append=True)
    assert problems_of(path) == ["config.yaml:19: vars = false: is a section of names and texts"]


def test_a_block_is_told_with_the_line_of_its_key_and_its_fix_works(write_config: WriteConfig) -> None:
    path = write_config("slurm:\n  comment: |\n    one\n", append=True)
    assert problems_of(path) == [f'config.yaml:20: slurm.comment = "one\\n": holds a line break: {ONE_LINE}']
    path = write_config("slurm:\n  comment: >-\n    one\n    two\n", append=True)
    assert load_config(path, environ={}).config.slurm.comment == "one two"


def test_a_number_where_text_belongs_is_told_as_it_was_written(write_config: WriteConfig) -> None:
    text = "vars: {N: 007}\nslurm:\n  account: 00123\n  qos: ${N}\n  setup: [010]\n"
    assert problems_of(write_config(text, append=True)) == [
        'config.yaml:21: slurm.account = 00123: expected: text, or null; write "00123" in quotes',
        'config.yaml:22: slurm.qos = 7: expected: text, or null; write "${N}" in quotes',
        'config.yaml:23: slurm.setup.0 = 010: expected: text; write "010" in quotes',
    ]
