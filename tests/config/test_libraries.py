"""Arguments that pass through are checked by name against the installed libraries, whose code is never run."""

from __future__ import annotations

import ast
import dataclasses
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from r1hpc.config import load_config
from r1hpc.config.aliases import ALIASES
from r1hpc.config.engines import AllToAll
from r1hpc.config.libraries import megatron_fields, sglang_arguments
from r1hpc.config.owned import MEGATRON_OWNED, MODEL_ARGUMENTS, SGLANG_OWNED
from r1hpc.config.passed_through import check_passed_through
from r1hpc.config.schema import Config
from r1hpc.config.source import Layer, Origin
from r1hpc.config.structure import section_fields
from r1hpc.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

needs_sglang = pytest.mark.skipif(find_spec("sglang") is None, reason="sglang is not installed")
needs_megatron = pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed")

ONE_STAGE = "an engine has one pipeline stage: rollout_num_gpus_per_engine decides its GPUs"
QUANTIZATION = "the quantization_config in the model's config.json decides it (ckpt.hf_checkpoint)"
DTYPE = "the checkpoint decides it on GPUs, and hosts.device: cpu computes in float32"
STAGES = "perf.pipeline_model_parallel_size and perf.decoder_*_pipeline_num_layers decide the layers of each stage"
OURS = {"rollout_num_gpus_per_engine", "server_concurrency"}
"""Keys under sglang: that are the client's, and no server argument."""
RUN_BY_TRAINER = {"attention_dropout", "hidden_dropout", "attention_softmax_in_fp32", "moe_token_dispatcher_type"}


@needs_sglang
def test_every_key_of_sglang_is_an_argument_of_the_installed_server() -> None:
    installed = sglang_arguments()
    assert installed is not None
    assert section_fields("sglang").keys() - OURS <= installed
    assert not OURS & installed
    targets = {key.removeprefix("sglang.") for alias in ALIASES for key in alias.sets if key.startswith("sglang.")}
    assert targets <= installed


def literals_of_sglang(argument: str) -> set[str]:
    """The texts that the annotation of a server argument holds: its choices, among its help."""
    spec = find_spec("sglang")
    assert spec is not None and spec.submodule_search_locations
    sources = (Path(spec.submodule_search_locations[0]) / "srt" / "arg_groups" / "fields").glob("*.py")
    statements = [statement for source in sources for statement in ast.walk(ast.parse(source.read_text("utf-8")))]
    (annotation,) = (
        statement.annotation
        for statement in statements
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.target.id == argument
    )
    constants = (node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


@needs_sglang
def test_values_of_sglang_are_those_of_the_installed_server() -> None:
    words = {text for text in literals_of_sglang("moe_a2a_backend") if " " not in text}
    assert set(get_args(AllToAll)) == words
    kv_cache = set(get_args(section_fields("sglang")["kv_cache_dtype"].annotation))
    assert {"auto", "fp8_e4m3"} <= kv_cache <= literals_of_sglang("kv_cache_dtype")
    assert set(get_args(section_fields("sglang")["deepep_mode"].annotation)) <= literals_of_sglang("deepep_mode")


@needs_sglang
@needs_megatron
def test_what_is_refused_is_an_argument_or_an_older_name_of_one() -> None:
    """A reason for a name that no library has any more would never be read."""
    short = {"model", "tp", "tensor_parallel_size", "pp", "pipeline_parallel_size", "nccl_init_addr"}
    assert SGLANG_OWNED.keys() - (sglang_arguments() or set()) == short
    assert MEGATRON_OWNED.keys() - MODEL_ARGUMENTS <= (megatron_fields() or set())


@needs_megatron
def test_megatron_fields_are_those_that_the_dataclass_has() -> None:
    transformer_config = pytest.importorskip("megatron.core.transformer.transformer_config")
    fields = {field.name for field in dataclasses.fields(transformer_config.MLATransformerConfig)}
    assert set(megatron_fields() or ()) == fields
    assert fields >= RUN_BY_TRAINER
    targets = {key.removeprefix("megatron.") for alias in ALIASES for key in alias.sets if key.startswith("megatron.")}
    assert targets <= fields | section_fields("megatron").keys()


@needs_sglang
@needs_megatron
def test_known_names_pass_and_unknown_ones_are_told_with_the_nearest(write_config: WriteConfig) -> None:
    good = "sglang:\n  max_total_tokens: 8192\n  attention_backend: fa3\nmegatron:\n  moe_router_dtype: fp32\n"
    loaded = load_config(write_config(good, append=True), environ={})
    assert loaded.notices == ()
    assert loaded.config.sglang.passed_through == {"max_total_tokens": 8192, "attention_backend": "fa3"}
    bad = good.replace("max_total_tokens", "max_total_token").replace("moe_router_dtype", "moe_router_type")
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(bad, append=True), environ={})
    assert caught.value.problems == [
        "config.yaml:20: sglang.max_total_token = 8192: the installed SGLang has no such argument; "
        "did you mean max_total_tokens?",
        "config.yaml:23: megatron.moe_router_type = fp32: the installed Megatron has no such argument; "
        "did you mean moe_router_dtype?",
    ]


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("sglang.model_path=/m", "cannot be set here: ckpt.hf_checkpoint decides it"),
        ("sglang.tp_size=8", "cannot be set here: rollout_num_gpus_per_engine decides it"),
        (
            "sglang.api_key=word",
            "cannot be set here: every attempt makes a key of its own, and no command line or configuration may have"
            " one",
        ),
        ("sglang.port=3", "cannot be set here: hosts.port_base and hosts.port_span decide it"),
        ("sglang.nccl_port=3", "cannot be set here: hosts.port_base and hosts.port_span decide it"),
        ("sglang.nnodes=3", "cannot be set here: the placement on the nodes decides it"),
        ("sglang.node_rank=3", "cannot be set here: the placement on the nodes decides it"),
        ("sglang.dist_init_addr=a", "cannot be set here: the placement on the nodes decides it"),
        ("sglang.base_gpu_id=3", "cannot be set here: the placement on the nodes decides it"),
        (
            "sglang.sglang_enable_memory_saver=true",
            "sglang.enable_memory_saver = true: cannot be set here: it is on wherever training and rollout share a GPU",
        ),
        ("sglang.random_seed=3", "cannot be set here: run.seed decides it, with another seed for each engine"),
        ("megatron.num_layers=3", "cannot be set here: the model's config.json decides it (ckpt.hf_checkpoint)"),
        ("sglang.pp_size=2", f"cannot be set here: {ONE_STAGE}"),
        ("sglang.quantization=fp8", f"cannot be set here: {QUANTIZATION}"),
        ("sglang.dtype=bfloat16", f"cannot be set here: {DTYPE}"),
        ("sglang.device=cpu", "cannot be set here: hosts.device decides it"),
        (
            "megatron.num_layers_in_first_pipeline_stage=7",
            "cannot be set here: perf.decoder_first_pipeline_num_layers decides it",
        ),
        (
            "megatron.num_layers_in_last_pipeline_stage=7",
            "cannot be set here: perf.decoder_last_pipeline_num_layers decides it",
        ),
        (
            "megatron.virtual_pipeline_model_parallel_size=2",
            f"cannot be set here: stages are not interleaved: {STAGES}",
        ),
        ("megatron.pipeline_model_parallel_layout=Et|t", f"cannot be set here: {STAGES}"),
        ("megatron.fp16=true", "cannot be set here: params_dtype decides it, bf16 or fp32"),
        ("megatron.tensor_model_parallel_size=2", "belongs to perf: write it there"),
        ("megatron.sequence_parallel=true", "belongs to perf: write it there"),
        ("megatron.expert_model_parallel_size=2", "belongs to perf or convert: write it there"),
    ],
)
def test_what_r1hpc_decides_itself_is_refused_with_the_reason(
    write_config: WriteConfig, override: str, rule: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), overrides=[override], environ={})
    (problem,) = caught.value.problems
    assert problem in (f"--set {override}: {rule}", f"--set {override}: {rule.partition(': ')[2]}")


def see_only(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave `directory` as all that can be imported from, as on a login node without the libraries."""
    monkeypatch.setattr(sys, "path", [str(directory)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in ("sglang", "megatron"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_names_are_unchecked_and_said_so_where_the_library_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_only(tmp_path, monkeypatch)
    layer = Layer(
        Origin("c.yaml"), {"sglang": {"anything": 1, "tp_size": 2}, "megatron": {"num_layers": 2, "other": 3}}
    )
    notices, problems = check_passed_through(layer)
    assert notices == [
        "sglang: SGLang is not installed, so unchecked: anything, tp_size",
        "megatron: Megatron is not installed, so unchecked: num_layers, other",
    ]
    assert [problem.about for problem in problems] == ["sglang.tp_size = 2", "megatron.num_layers = 2"]


def test_older_and_newer_layouts_of_sglang_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "sglang" / "srt"
    (source / "arg_groups" / "fields").mkdir(parents=True)
    (tmp_path / "sglang" / "__init__.py").write_text("raise SystemExit('the library must not be run')\n")
    server = "class ServerArgs:\n    old: int = 1\n    def f(self):\n        local: int = 2\n"
    server += "class PortArgs:\n    port: int\n"
    (source / "server_args.py").write_text(server)
    see_only(tmp_path, monkeypatch)
    assert sglang_arguments() == frozenset({"old"})
    (source / "arg_groups" / "fields" / "device.py").write_text("class Device:\n    new: int = 1\n    derived = 3\n")
    assert sglang_arguments() == frozenset({"old", "new"})


def test_the_schema_itself_names_no_argument_twice() -> None:
    both = section_fields("sglang").keys() & section_fields("megatron").keys()
    assert both == set()
    assert {"sglang", "megatron"} <= Config.model_fields.keys()
