"""A login node: dry run without Slurm, no heavy import, follow and sweep in isolation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from r1hpc.config import load_config
from r1hpc.submit.follow import JobView, LogTail
from r1hpc.submit.order import Options, take_order
from r1hpc.submit.parameters import HOME
from r1hpc.submit.stages import CAST, CONVERT, foreign_source
from r1hpc.submit.sweep import combinations, element_name


def test_dry_run_prints_plan_and_texts_without_slurm_and_writes_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [sys.executable, "-m", "r1hpc.submit", "configs/r1.yaml", "--dry-run", "--set", f"run.root={tmp_path}/runs"],
        cwd=HOME,
        env=environment | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for expected in ("#SBATCH --array=0-15%16", "#SBATCH --array=0-3%4", "#SBATCH --nodes=16", "afterok:<convert>"):
        assert expected in done.stdout
    assert "nothing was submitted" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_loads_nothing_heavy() -> None:
    code = (
        "import sys; from r1hpc.submit.__main__ import main; "
        "assert main(['configs/r1.yaml', '--dry-run']) == 0; "
        "heavy = {'torch', 'ray', 'sglang', 'megatron', 'transformers', 'mpi4py', 'numpy'} & set(sys.modules); "
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_sweep_combinations_and_names() -> None:
    assert combinations(["a.b=1,2", "c.d=x"]) == [("a.b=1", "c.d=x"), ("a.b=2", "c.d=x")]
    assert element_name("r1", ("grpo.eps_clip_high=0.28", "rollout.rm_type=a/b")) == "r1.eps_clip_high-0.28.rm_type-a_b"


def test_log_tail_gives_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntw", encoding="utf-8")
    tail = LogTail()
    assert tail.new_lines([path]) == ["one"]
    with path.open("a", encoding="utf-8") as stream:
        stream.write("o\nthree\n")
    assert tail.new_lines([path]) == ["two", "three"]
    assert tail.new_lines([path]) == []


def test_an_array_has_ended_when_no_element_will_run_again() -> None:
    assert not JobView(("COMPLETED", "PREEMPTED"), "").ended
    assert JobView(("COMPLETED", "FAILED"), "").ended
    assert JobView(("COMPLETED", "COMPLETED", "RUNNING"), "").summary == "2 COMPLETED, 1 RUNNING"


def test_commas_in_brackets_belong_to_a_value() -> None:
    assert combinations(["a=[1,2],[3,4]"]) == [("a=[1,2]",), ("a=[3,4]",)]


def test_each_element_of_a_sweep_commits_to_its_own_run_directory(tmp_path: Path) -> None:
    options = Options("configs/r1.yaml", overrides=[f"run.root={tmp_path}"], sweep=["optimizer.lr=1e-6,2e-6"])
    order = take_order(options, lambda line: None)
    assert [element.config.ckpt.save for element in order.elements] == [None, None]
    assert [element.directory.root.name for element in order.elements] == ["deepseek-r1.lr-1e-6", "deepseek-r1.lr-2e-6"]


def _with(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")


def test_a_stage_is_complete_only_when_what_it_publishes_last_names_what_is_there(tmp_path: Path) -> None:
    overrides = [f"ckpt.bf16_checkpoint={tmp_path}/bf16", f"ckpt.ref_load={tmp_path}/ref"]
    config = load_config(HOME / "configs" / "r1.yaml", overrides=overrides).config
    index, tracker = "bf16/model.safetensors.index.json", "ref/latest_checkpointed_iteration.txt"
    for broken in ("", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": "a.safetensors"}}'):
        _with(tmp_path, index, broken)
        assert not CAST.is_complete(config), broken
    _with(tmp_path, "bf16/a.safetensors", "x")
    assert CAST.is_complete(config)
    _with(tmp_path, "ref/release/.metadata", "x")
    for broken in ("", "abc", "7"):
        _with(tmp_path, tracker, broken)
        assert not CONVERT.is_complete(config), broken
    _with(tmp_path, tracker, "release\n")
    assert CONVERT.is_complete(config)


def test_an_output_made_from_another_checkpoint_is_told(tmp_path: Path) -> None:
    config = load_config(HOME / "tests" / "pipeline.yaml", overrides=[f"vars.WORK={tmp_path}"]).config
    cast, release = tmp_path / "tiny-r1-bf16", tmp_path / "tiny-r1_torch_dist" / "release"
    cast.mkdir()
    release.mkdir(parents=True)
    assert foreign_source(CAST, config) is None  # nothing recorded: others make such checkpoints too
    (cast / "manifest.json").write_text(f'{{"source": {{"path": "{tmp_path}/tiny-r1"}}}}', encoding="utf-8")
    (release / "source.json").write_text(f'{{"path": "{tmp_path}/tiny-r1-bf16"}}', encoding="utf-8")
    assert foreign_source(CAST, config) is None
    assert foreign_source(CONVERT, config) is None
    (release / "source.json").write_text('{"path": "/elsewhere/R1-0528"}', encoding="utf-8")
    assert foreign_source(CONVERT, config) == "/elsewhere/R1-0528"
