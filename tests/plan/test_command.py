"""python -m r1hpc.plan, the plain text and the JSON."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from r1hpc.config import load_config
from r1hpc.plan import Plan, plan_for, plan_to_json, render_plan
from r1hpc.plan.__main__ import main
from r1hpc.plan.terminal import print_plan

ROOT = Path(__file__).parents[2]
R1 = str(ROOT / "configs" / "r1.yaml")


def test_the_story_starts_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([R1]) == 0
    text = capsys.readouterr().out
    assert text.startswith("deepseek-r1: fits. 671 B parameters on 16 nodes, 128 GPUs")
    order = ["One rollout", "GPU memory", "Host memory", "Time", "Warnings", "Layout", "Engines", "Disk"]
    titles = [line for line in text.splitlines() if line.startswith(tuple(order))]
    assert [next(title for title in order if line.startswith(title)) for line in titles] == order


def test_plain_text_fits_a_page_and_is_plain(r1_plan: Plan, rehearsal_plan: Plan) -> None:
    for plan in (r1_plan, rehearsal_plan):
        text = render_plan(plan)
        assert text.isascii()
        assert max(map(len, text.splitlines())) <= 92
        assert len(text.splitlines()) <= 90


def test_gauges_show_the_share_of_the_limit(r1_plan: Plan) -> None:
    train = r1_plan.phase("train").worst
    share = train.total_bytes / train.limit_bytes
    filled = round(20 * share)
    line = next(line for line in render_plan(r1_plan).splitlines() if line.startswith("  train ") and "[" in line)
    assert f"[{'#' * filled}{'.' * (20 - filled)}]" in line
    assert f"{share:.0%} {train.total_bytes / 1e9:.1f} GB; stage 1: gradients 25.4 GB" in line


def test_a_terminal_gets_the_same_story(r1_plan: Plan) -> None:
    stream = io.StringIO()
    print_plan(r1_plan, Console(file=stream, width=100, force_terminal=False))
    words = stream.getvalue().split()
    plain = render_plan(r1_plan).replace("#", "").split()
    missing = [word for word in plain if word.isalpha() and word not in words]
    assert missing == []
    assert "█" in stream.getvalue()


def test_json_holds_every_part(capsys: pytest.CaptureFixture[str], r1_plan: Plan) -> None:
    assert main([R1, "--json", "--num-prompts", "17400"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads(json.dumps(plan_to_json(r1_plan)))
    assert values["world_size"] == 128
    assert values["topology"]["groups"]["cp"][0] == "0-24/8"
    assert len(values["topology"]["groups"]["tp"]) == 16
    assert values["signal_lead_s"] == r1_plan.signal_lead_s
    assert values["phases"][0]["stages"][1]["parts"][0]["name"] == "weights"
    assert values["engine"]["ranks"] == ["0-63", "64-127"]


def test_overrides_and_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(ROOT / "configs/models/deepseek-r1/config.json")
    assert main([R1, "--set", "hosts.num_nodes=32", "--model", model]) == 0
    assert "on 32 nodes, 256 GPUs" in capsys.readouterr().out


def test_a_refusal_is_told_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([R1, "--set", "hosts.num_nodes=15"]) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("3 planning problems:\n")
    assert "= 128 does not divide 15 nodes * 8 GPUs = 120" in captured.err


@pytest.mark.parametrize("count", ["0", "-5", "many"])
def test_a_number_of_prompts_is_at_least_one(capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([R1, "--num-prompts", count])
    assert caught.value.code == 2
    assert f"argument --num-prompts: '{count}' is no whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_error(form: list[str]) -> None:
    """As with `| head`: nobody reads the pipe any more."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        command = [sys.executable, "-m", "r1hpc.plan", R1, *form]
        done = subprocess.run(
            command, cwd=ROOT, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_blocks_gets_an_ascii_bar(r1_plan: Plan) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    print_plan(r1_plan, Console(file=stream, width=100, force_terminal=False))
    stream.seek(0)
    train = r1_plan.phase("train").worst
    filled = round(20 * train.total_bytes / train.limit_bytes)
    line = next(line for line in stream.read().splitlines() if line.startswith("  train ") and "#" in line)
    assert line.split()[1] == "#" * filled + "." * (20 - filled)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv to be refused")
def test_a_closed_directory_is_named_without_a_traceback(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*unprivileged, sys.executable, "-m", "r1hpc.plan", R1]
    checkpoint = ["--set", f"ckpt.hf_checkpoint={closed}"]

    def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    try:
        for model in (closed, closed / "deepseek-r1"):
            done = plan("--model", str(model))
            assert done.returncode == 64
            assert f"{model}" in done.stderr
            assert "cannot be read (Permission denied); give the model's config.json" in done.stderr
            assert "Traceback" not in done.stderr
        done = plan(*checkpoint, "--set", "ckpt.hf_config=null")
        assert done.returncode == 64
        assert f"ckpt.hf_checkpoint = {closed}: permission denied; give a directory" in done.stderr
        assert "Traceback" not in done.stderr
        done = plan(*checkpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("deepseek-r1: fits.")
    finally:
        closed.chmod(stat.S_IRWXU)


def test_planning_loads_neither_torch_nor_the_engines() -> None:
    code = (
        "import sys; from r1hpc.plan.__main__ import main; assert main([sys.argv[1]]) == 0;"
        "heavy = {'torch', 'ray', 'sglang', 'megatron', 'mpi4py', 'submitit', 'numpy', 'rich.console'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, R1], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_4096_gpus_are_planned_with_data_parallelism() -> None:
    overrides = ["hosts.num_nodes=512", "rollout.rollout_batch_size=4096", "rollout.over_sampling_batch_size=4096"]
    plan = plan_for(load_config(R1, overrides=overrides))
    assert (plan.world_size, plan.topology.dp, plan.topology.edp) == (4096, 32, 32)
    assert plan.engine.num_engines == 64
    groups = plan_to_json(plan)["topology"]["groups"]
    assert len(groups["tp"]) == 512
    assert groups["dp"][0] == "0-992/32"
    # experts / 32, dense / (32 * 4), 12 B each, 8 GPUs
    adam = next(part.bytes for part in plan.hosts[1].use.parts if part.name == "host Adam")
    assert adam == 8 * 12 * (5_637_144_576 // 32 + 703_856_640 // 128)


def test_small_worlds_are_planned_too() -> None:
    rehearsal = str(ROOT / "tests" / "pipeline.yaml")
    one = ["hosts.num_nodes=1", "hosts.gpus_per_node=8", "hosts.host_memory_gib=16"]
    plan = plan_for(load_config(rehearsal, overrides=one))
    assert (plan.world_size, plan.num_nodes, plan.topology.dp) == (8, 1, 1)
    assert list(plan.topology.stage_nodes(1)) == [0]
