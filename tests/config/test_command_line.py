"""python -m r1hpc.config, and what loading a configuration must not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from r1hpc.config.__main__ import main
from r1hpc.config.explain import reference
from r1hpc.config.schema import Config
from r1hpc.config.structure import all_keys, section_fields
from r1hpc.exit_codes import INVALID, SUCCESS

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "submitit", "sglang", "megatron", "transformers", "numpy", "mpi4py", "rich")


@pytest.mark.parametrize("arguments", [["configs/r1.yaml"], ["configs/r1.yaml", "perf.zzz=1"]])
def test_loading_imports_nothing_heavy_whether_it_succeeds_or_not(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from r1hpc.config import load_config, dump_config, config_hash\n"
        "from r1hpc.errors import ConfigError\n"
        "try:\n"
        "    config = load_config(sys.argv[1], overrides=['sglang.chunked_prefill_size=1', *sys.argv[2:]]).config\n"
        "    dump_config(config), config_hash(config)\n"
        "except ConfigError as error:\n"
        "    print('refused', len(error.problems))\n"
        f"print('heavy', *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ([] if len(arguments) == 1 else ["refused 1"]) + ["heavy"]


def test_check_prints_notices_and_ok(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config("hosts:\n  slots: 8\n", name="site.yaml")
    assert main(["check", str(write_config()), "--site", str(path), "--set", "run.seed=2"]) == SUCCESS
    printed = capsys.readouterr()
    assert printed.out == "config.yaml: ok\n"
    assert printed.err == "notice: site.yaml:2: hosts.slots is an older name: read as hosts.gpus_per_node\n"


def test_check_prints_problems_and_fails(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write_config()), "--set", "run.sed=2", "--set", "run.seed=a"]) == INVALID
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "2 configuration problems:\n"
        "  --set run.sed=2: unknown key; did you mean seed?\n"
        "  --set run.seed=a: expected: whole number\n"
    )


def test_show_prints_what_check_accepts(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(write_config()), "--set", "slurm.time_limit=1-00:00:00"]) == SUCCESS
    shown = capsys.readouterr().out
    assert "  time_limit: 1440\n" in shown
    assert main(["check", str(write_config(shown, name="shown.yaml"))]) == SUCCESS


def test_explain_says_what_a_key_is_and_where_it_is_set(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "rollout.rollout_batch_size", str(write_config())]) == SUCCESS
    assert capsys.readouterr().out == (
        "rollout.rollout_batch_size\n"
        "  Prompts kept per rollout. --rollout-batch-size\n"
        "  takes    whole number, at least 1\n"
        "  default  required\n"
        "  value    4\n"
        "  from     config.yaml:16\n"
    )
    assert main(["explain", "rm_type"]) == SUCCESS
    assert capsys.readouterr().out.startswith("rollout.rm_type\n  Reward: ")
    assert main(["explain", "slurm.gpus", str(write_config())]) == SUCCESS
    assert "  from     its default\n" in capsys.readouterr().out
    assert main(["explain", "sglang.max_total_tokens"]) == SUCCESS
    assert "passed on to the library" in capsys.readouterr().out


def test_explain_lists_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "ckpt"]) == SUCCESS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ckpt: Where weights come from and where the run commits itself."
    assert [line.split()[0] for line in lines[1:]] == list(section_fields("ckpt"))


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("perf.contxt_parallel_size", "unknown key; did you mean context_parallel_size?"),
        ("save_intervall", "no such key; did you mean ckpt.save_interval?"),
        ("optimiser", "no such key; did you mean optimizer?"),
    ],
)
def test_explain_of_a_wrong_key_names_the_right_one(key: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", key]) == INVALID
    assert capsys.readouterr().err == f"1 configuration problem:\n  {key}: {problem}\n"


def test_import_writes_a_file_and_says_what_is_next(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    script = write_config("A_ARGS=( --lr 1e-6 )\n", name="run.sh")
    assert main(["import", str(script), "-o", "out.yaml", "--base", str(write_config())]) == SUCCESS
    printed = capsys.readouterr()
    assert printed.out == "wrote out.yaml; next: python -m r1hpc.config check out.yaml\n"
    assert main(["check", "out.yaml"]) == SUCCESS
    assert main(["import", str(script)]) == SUCCESS
    assert "\noptimizer:\n  lr: 1.0e-06\n" in capsys.readouterr().out


def test_the_reference_page_is_in_step_with_the_schema() -> None:
    assert (ROOT / "docs" / "configuration-reference.md").read_text(encoding="utf-8") == reference()


def test_every_section_and_key_says_what_it_is() -> None:
    for section in Config.model_fields:
        assert section_fields(section)
    for key in all_keys():
        section, _, name = key.partition(".")
        description = section_fields(section)[name].description or ""
        assert description.strip(), key
        assert not description.startswith("--"), f"{key} says its flag and nothing else"
