"""The run directory, also after a submit that was killed while it wrote it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from r1hpc.cluster.requeue import REQUEUE, Decision
from r1hpc.cluster.requeue.ledger import close_record, mark_carried_out
from r1hpc.config import Config, load_config
from r1hpc.config.dump import config_hash, dump_config
from r1hpc.errors import SubmitError
from r1hpc.plan import Plan
from r1hpc.plan.plan_for import plan_for
from r1hpc.submit.__main__ import main
from r1hpc.submit.command import submit
from r1hpc.submit.order import Options, take_order
from r1hpc.submit.parameters import HOME
from r1hpc.submit.prepare import prepare, run_directory
from r1hpc.submit.stages import TRAIN


def _load(root: Path, *overrides: str) -> tuple[Config, Plan]:
    loaded = load_config(HOME / "tests" / "pipeline.yaml", overrides=[f"run.root={root}", *overrides])
    return loaded.config, plan_for(loaded)


def _killed_at(rename: int, config: Config, plan: Plan) -> bool:
    """Prepare in a child that is killed just before its n-th rename; False when it ended before."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def kill_at(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event == "os.rename":
                count += 1
                if count == rename:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill_at)
        try:
            prepare(config, plan, "requeue")
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _run(root: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads((root / "rehearsal" / "run.json").read_text(encoding="utf-8"))
    return value


def test_killed_at_any_rename_the_next_submit_works_and_the_old_configuration_is_kept(tmp_path: Path) -> None:
    first, first_plan = _load(tmp_path)
    second, second_plan = _load(tmp_path, "grpo.eps_clip=0.11")
    third, third_plan = _load(tmp_path, "grpo.eps_clip=0.12")
    run = tmp_path / "rehearsal"
    renames = 0
    while True:
        shutil.rmtree(run, ignore_errors=True)
        before = prepare(first, first_plan, "requeue")
        was_killed = _killed_at(renames + 1, second, second_plan)
        if not was_killed:
            break
        renames += 1
        after = prepare(third, third_plan, "requeue")
        assert after.run_id == before.run_id
        assert (run / "config.yaml").read_text(encoding="utf-8") == dump_config(third)
        assert _run(tmp_path)["config_hash"] == config_hash(third)
        kept = run / f"config.{config_hash(first)}.yaml"
        assert kept.read_text(encoding="utf-8") == dump_config(first), f"killed at rename {renames}"
    assert renames == 5  # the kept configuration, config.yaml, plan.json, plan.txt, run.json


def test_hold_is_lifted_only_by_a_submit_that_came_to_its_end(tmp_path: Path) -> None:
    config, plan = _load(tmp_path)
    hold = prepare(config, plan, "chain").directory.hold
    hold.write_text("{}", encoding="utf-8")
    assert _killed_at(4, config, plan)  # the last rename, of run.json
    assert hold.exists()
    prepare(config, plan, "chain", again=True)
    assert hold.exists()
    prepare(config, plan, "chain")
    assert not hold.exists()


def test_a_lost_configuration_is_written_anew(tmp_path: Path) -> None:
    config, plan = _load(tmp_path)
    prepare(config, plan, "requeue").directory.config.unlink()
    changed, changed_plan = _load(tmp_path, "grpo.eps_clip=0.11")
    directory = prepare(changed, changed_plan, "requeue").directory
    assert directory.config.read_text(encoding="utf-8") == dump_config(changed)


def test_an_element_is_of_its_sweep_until_it_is_submitted_by_itself(tmp_path: Path) -> None:
    config, plan = _load(tmp_path)
    prepare(config, plan, "requeue", pinned=["node03", "node01"], sweep_of="base-123abc")
    assert (_run(tmp_path)["sweep_of"], _run(tmp_path)["pinned"]) == ("base-123abc", ["node03", "node01"])
    prepare(config, plan, "requeue")
    assert (_run(tmp_path)["sweep_of"], _run(tmp_path)["pinned"]) == (None, [])


def test_the_lead_is_that_of_the_jobs_own_signal_where_the_job_was_not_made_from_the_plan(tmp_path: Path) -> None:
    config, plan = _load(tmp_path)
    prepare(config, plan, "requeue")
    assert _run(tmp_path)["signal_lead_s"] == plan.signal_lead_s != 1800
    prepare(config, plan, "requeue", signal_lead_s=1800)
    assert _run(tmp_path)["signal_lead_s"] == 1800


@pytest.mark.parametrize("name", ["100%", "a\\b"])
def test_a_run_root_that_slurm_would_read_as_a_pattern_is_refused(tmp_path: Path, name: str) -> None:
    config, _ = _load(tmp_path / name)
    with pytest.raises(SubmitError, match=r"run\.root = .*: [%\\]+ has a meaning in Slurm's file name patterns"):
        run_directory(config)


def test_a_submit_says_that_the_last_attempt_never_came_to_its_requeue(tmp_path: Path) -> None:
    config, plan = _load(tmp_path)
    prepared = prepare(config, plan, "requeue")
    assert prepared.notices == ()
    attempt = prepared.directory.attempt("7", 0).root
    attempt.mkdir(parents=True)
    (attempt / "begin.json").write_text(json.dumps({"job_id": "7", "restart": 0, "started": 1.0}), encoding="utf-8")
    close_record(str(attempt), 1, Decision(REQUEUE, "crash", "the attempt failed"))
    assert prepare(config, plan, "requeue", again=True).notices == ()
    (notice,) = prepare(config, plan, "requeue").notices
    assert notice == (
        "attempt 7-r0 ended (crash: the attempt failed), and was cut off before its requeue was asked for; "
        "this submit goes on from the run's last commit"
    )
    mark_carried_out(str(attempt), Decision(REQUEUE, "crash", "the attempt failed"))
    assert prepare(config, plan, "requeue").notices == ()


def test_every_key_that_a_submit_changes_is_told_old_and_new(tmp_path: Path) -> None:
    config, plan = _load(tmp_path)
    assert prepare(config, plan, "requeue").notices == ()
    changes = ("grpo.eps_clip=0.11", "slurm.time_limit=3:00:00", "optimizer.lr=2e-6")
    changed, changed_plan = _load(tmp_path, *changes)
    keys, science = prepare(changed, changed_plan, "requeue").notices
    first, *lines = keys.splitlines()
    assert first == "changed since the last submit of this run:"
    assert sorted(lines) == [
        f"  grpo.eps_clip: {config.grpo.eps_clip} -> 0.11",
        f"  optimizer.lr: {config.optimizer.lr} -> 2e-06",
        f"  slurm.time_limit: {config.slurm.time_limit} -> 180",
    ]
    assert science.startswith("the science of this run has changed")
    assert prepare(changed, changed_plan, "requeue").notices == ()


def test_a_killed_submit_is_not_what_the_next_one_is_compared_with(tmp_path: Path) -> None:
    config, plan = _load(tmp_path, "grpo.eps_clip=0.10")
    prepare(config, plan, "requeue")
    assert _killed_at(5, *_load(tmp_path, "grpo.eps_clip=0.11"))  # run.json is not written
    keys, _ = prepare(*_load(tmp_path, "grpo.eps_clip=0.12"), "requeue").notices
    assert keys.splitlines()[1:] == ["  grpo.eps_clip: 0.1 -> 0.12"]


def test_a_learning_rate_that_a_commit_overrules_is_told(tmp_path: Path) -> None:
    config, plan = _load(tmp_path, "optimizer.lr=2e-6")
    root = prepare(config, plan, "requeue").directory.checkpoints
    for iteration, peak in ((3, 9e-6), (7, 1e-6), (8, 2e-6)):
        commit = root / f"iter_{iteration:07d}"
        commit.mkdir(parents=True)
        schedule = {"step": 1, "peak": peak, "minimum": 0.0, "style": "constant", "warmup_steps": 0, "total_steps": 9}
        (commit / "trainer.json").write_text(json.dumps({"schedule": schedule}), encoding="utf-8")
        if iteration < 8:  # the last one was never committed
            (commit / "COMMITTED.json").touch()
    (notice,) = prepare(config, plan, "requeue").notices
    assert notice.startswith("optimizer.lr stays 1e-06 as in the commit, not 2e-06: ")
    assert f"ckpt.ref_load={root}/iter_0000007" in notice
    other, other_plan = _load(tmp_path, "optimizer.lr=2e-6", "run.name=other", f"ckpt.load={root}")
    assert prepare(other, other_plan, "requeue").notices == (notice,)
    shutil.rmtree(root)
    assert prepare(config, plan, "requeue").notices == ()


def test_the_command_is_recorded_without_what_was_meant_for_one_submit_alone(tmp_path: Path) -> None:
    settings = [f"run.root={tmp_path}", "grpo.eps_clip=0.11"]
    options = Options(
        str(HOME / "tests" / "pipeline.yaml"), overrides=settings, prepare=True, stages=["train"], cluster="local"
    )
    submit(options, lambda line: None)
    command = [options.config, "--cluster", "local", "--set", settings[0], "--set", settings[1]]
    assert (_run(tmp_path)["command"], _run(tmp_path)["cwd"]) == (command, os.getcwd())


def test_preparing_answers_with_the_directory_alone_and_says_what_changes_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(HOME / "tests" / "pipeline.yaml"), "--prepare", "--set", f"run.root={tmp_path}", "--set"]
    assert main([*command, "grpo.eps_clip=0.11"]) == 0
    assert "changed" not in capsys.readouterr().err
    assert main([*command, "grpo.eps_clip=0.12"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/rehearsal\n"
    assert "note: changed since the last submit of this run:\n  grpo.eps_clip: 0.11 -> 0.12\n" in err


def test_each_element_of_a_sweep_has_the_command_that_submits_it_alone(tmp_path: Path) -> None:
    options = Options("configs/r1.yaml", overrides=[f"run.root={tmp_path}"], sweep=["optimizer.lr=1e-6,2e-6"])
    order = take_order(options, lambda line: None)
    assert order.options.command[-2:] == ["--sweep", "optimizer.lr=1e-6,2e-6"]
    for element in order.elements:
        again = load_config(element.command[0], overrides=element.command[2::2]).config
        assert dump_config(again) == dump_config(element.config)


def test_a_complete_run_is_left_out_until_more_iterations_are_asked_for(tmp_path: Path) -> None:
    config, plan = _load(tmp_path, "rollout.num_rollout=4")
    run = prepare(config, plan, "requeue").directory
    assert not TRAIN.is_complete(config)
    run.done.write_text('{"iterations": 4}')
    assert TRAIN.is_complete(config)
    more, more_plan = _load(tmp_path, "rollout.num_rollout=6")
    assert not TRAIN.is_complete(more)
    prepare(more, more_plan, "requeue", again=True)
    assert run.done.exists(), "a job that restarts must find what was done"
    notices = prepare(more, more_plan, "requeue").notices
    assert not run.done.exists()
    assert "the run was complete with 4 iterations; it goes on to num_rollout" in notices


def test_a_dry_run_of_a_complete_run_ends_with_how_to_go_on(tmp_path: Path) -> None:
    overrides = ["ckpt.bf16_checkpoint=null", f"run.root={tmp_path}"]
    config, plan = _load(tmp_path, *overrides, f"ckpt.ref_load={tmp_path}/ref")
    prepare(config, plan, "requeue").directory.done.write_text(json.dumps({"iterations": config.rollout.num_rollout}))
    (tmp_path / "ref" / "release").mkdir(parents=True)
    (tmp_path / "ref" / "release" / ".metadata").touch()
    (tmp_path / "ref" / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")
    options = Options(
        str(HOME / "tests" / "pipeline.yaml"),
        overrides=[*overrides, f"ckpt.ref_load={tmp_path}/ref"],
        dry_run=True,
    )
    said: list[str] = []
    submit(options, said.append)
    assert "stage cast: not needed, left out" in said
    assert f"stage train: complete ({tmp_path}/rehearsal/checkpoints), left out" in said
    assert said[-1] == (
        "every stage is complete: nothing to submit; to go on raise rollout.num_rollout, to start another set run.name"
    )
