"""python -m r1hpc.config, and what loading a configuration must not load."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from r1hpc.config.__main__ import main
from r1hpc.config.explain import reference
from r1hpc.config.schema import Config
from r1hpc.config.structure import all_keys, section_fields
from r1hpc.exit_codes import INVALID, SUCCESS
from tests.config.conftest import SMALL

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

ROOT = Path(__file__).parents[2]
LAUNCH = """\
A_ARGS=(
  --hf-checkpoint /models/hf --ref-load /models/ref --prompt-data /data/prompts.jsonl --label-key label
  --rm-type deepscaler --num-rollout 10 --rollout-batch-size 4 --n-samples-per-prompt 8
  --rollout-max-response-len 64 --lr 1e-6
)
"""
"""Flags of all that a configuration needs beside its machine."""
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
    assert printed.out == (
        "config.yaml: ok (sizes and memory: python -m r1hpc.plan, once the model's config.json is there)\n"
    )
    assert printed.err == "notice: site.yaml:2: hosts.slots is an older name: read as hosts.gpus_per_node\n"


def test_check_refuses_what_the_plan_refuses_where_the_model_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    r1 = str(ROOT / "configs/r1.yaml")
    assert main(["check", r1]) == SUCCESS
    assert capsys.readouterr().out == f"{r1}: ok\n"
    assert main(["check", r1, "--set", "perf.decoder_last_pipeline_num_layers=70"]) == INVALID
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "61 layers - last(70) = -9" in printed.err


def test_check_looks_up_what_is_named_by_import_path(capsys: pytest.CaptureFixture[str]) -> None:
    typo = "rollout.dynamic_sampling_filter_path=r1hpc.rollout.filters.check_reward_nonzero_sdt"
    assert main(["check", str(ROOT / "configs/r1.yaml"), "--set", typo]) == INVALID
    assert "did you mean check_reward_nonzero_std?" in capsys.readouterr().err


def test_check_prints_problems_and_fails(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write_config()), "--set", "run.sed=2", "--set", "run.seed=a"]) == INVALID
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "2 configuration problems:\n"
        "  --set run.sed=2: unknown key; did you mean seed?\n"
        "  --set run.seed=a: expected: whole number, at least 0, at most 4294967295\n"
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
    assert capsys.readouterr().out.startswith("rollout.rm_type\n  Reward; ")
    assert main(["explain", "slurm.gpus", str(write_config())]) == SUCCESS
    assert "  from     its default\n" in capsys.readouterr().out
    assert main(["explain", "sglang.max_total_tokens"]) == SUCCESS
    assert "passed on to the library" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "sglang.sglang_enable_ep_moe",
            "sglang.enable_ep_moe\n  an older name: read as sglang.ep_size = rollout_num_gpus_per_engine\n",
        ),
        ("slot", "hosts.slot\n  an older name: read as hosts.gpus_per_node\n"),
        (
            "cast.MP_PP0_LAYERS",
            "cast.mp_pp0_layers\n  accepted without effect: "
            "only Pai-Megatron-Patch's older converters read it, the cast never did\n",
        ),
    ],
)
def test_explain_of_an_older_name_says_what_it_means(key: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", key]) == SUCCESS
    assert capsys.readouterr().out == said


@pytest.mark.skipif(find_spec("sglang") is None, reason="sglang is not installed")
def test_explain_of_an_unknown_argument_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for key, hint in (("sglang.max_total_token", "; did you mean max_total_tokens?"), ("sglang.nonsense", "")):
        assert main(["explain", key]) == INVALID
        expected = f"1 configuration problem:\n  {key}: the installed SGLang has no such argument{hint}\n"
        assert capsys.readouterr().err == expected


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
        ("sglang.tp_size", "cannot be set here: rollout_num_gpus_per_engine decides it"),
        ("megatron.tensor_model_parallel_size", "belongs to perf: write it there"),
    ],
)
def test_explain_of_a_wrong_key_names_the_right_one(key: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", key]) == INVALID
    assert capsys.readouterr().err == f"1 configuration problem:\n  {key}: {problem}\n"


def test_import_writes_a_file_and_says_what_is_next(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    script = write_config(LAUNCH, name="run.sh")
    assert main(["import", str(script), "-o", "out.yaml", "--base", str(write_config())]) == SUCCESS
    printed = capsys.readouterr()
    assert printed.out == "wrote out.yaml; next: python -m r1hpc.config check out.yaml\n"
    assert main(["check", "out.yaml"]) == SUCCESS
    assert main(["import", str(script)]) == SUCCESS
    assert "\noptimizer:\n  lr: 1.0e-06\n" in capsys.readouterr().out


def test_an_import_passes_its_check_wherever_it_is_written(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = (ROOT / "configs/models/tiny-r1/config.json").read_text(encoding="utf-8")
    write_config(model, name="configs/models/config.json")
    write_config("node01 slots=8\nnode02 slots=8\n", name="hostfiles/two.hostfile")
    text = SMALL.replace("hf_checkpoint:", "hf_config: ${MODELS}/config.json\n  hf_checkpoint:")
    text = text.replace("hosts:", "hosts:\n  hostfile: hostfiles/two.hostfile") + "vars: {MODELS: models}\n"
    text = text.replace("host_memory_gib: 100", "host_memory_gib: 200")  # check plans it too
    slices = "num_tasks: 1, pipeline_model_parallel_size: 1, expert_model_parallel_size: 1"
    layers = "decoder_first_pipeline_num_layers: null, decoder_last_pipeline_num_layers: null"
    text += f"convert: {{{slices}, {layers}}}\n"
    base = write_config(text, name="configs/base.yaml")
    script = write_config(LAUNCH, name="run.sh")
    (tmp_path / "far" / "away").mkdir(parents=True)
    assert main(["import", str(script), "-o", "far/away/out.yaml", "--base", str(base)]) == SUCCESS
    assert main(["check", "far/away/out.yaml"]) == SUCCESS
    assert main(["show", "far/away/out.yaml"]) == SUCCESS
    shown = capsys.readouterr().out
    assert f"hf_config: {tmp_path}/configs/models/config.json\n" in shown
    assert f"hostfile: {tmp_path}/hostfiles/two.hostfile\n" in shown
    (tmp_path / "configs/models/config.json").unlink()
    assert main(["import", str(script), "-o", "far/away/out.yaml", "--base", str(base)]) == INVALID
    assert "configs/base.yaml:10: ckpt.hf_config = models/config.json: no readable file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("absent/out.yaml", "absent/out.yaml cannot be written: make the directory absent first"),
        (".", ". is a directory: name a file in it, such as run.yaml"),
        ("run.sh/out.yaml", "run.sh/out.yaml cannot be written: Not a directory; name another place"),
        ("/dev/null", "/dev/null is no file: leave -o out to print"),
    ],
)
def test_an_import_that_cannot_be_written_is_told(
    write_config: WriteConfig, output: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = write_config(LAUNCH, name="run.sh")
    assert main(["import", str(script), "-o", output]) == INVALID
    assert capsys.readouterr().err.endswith(f"1 configuration problem:\n  {problem}\n")


@pytest.mark.parametrize("command", ["reference", "show configs/r1.yaml", "explain sglang"])
def test_a_reader_that_stops_early_is_no_error(command: str) -> None:
    # true has left long before Python has started: every write meets a closed pipe.
    script = f"set -o pipefail; {sys.executable} -m r1hpc.config {command} | true"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (SUCCESS, "")


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
