"""What the status of a run says, worked by hand, as text and as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r1hpc.metrics.build import eval_numbers
from r1hpc.metrics.metrics import Metrics
from r1hpc.metrics.progress import say_progress
from r1hpc.rundir import RunDir
from r1hpc.status.__main__ import main
from r1hpc.status.noted import NoRun
from r1hpc.status.report import Status, gather
from r1hpc.status.text import render
from tests.metrics.reports import eval_result
from tests.status.runs import BEGAN, ROOT, WrittenRun, no_slurm, slurm


@pytest.fixture
def written(tmp_path: Path) -> WrittenRun:
    return WrittenRun.prepared(tmp_path)


def requeued_thrice(written: WrittenRun) -> None:
    """4 GPUs. Preempted in iteration 2 when only iteration 0 was committed; before its first; node lost; running.

    42-r0: 0 to 3600, iterations of 900 s end at 1800 and 2700
    42-r1: 4000 to 4900, nothing
    42-r2: 5000 on, iteration 1 again, ends at 6800; last sign of it is at 7000; closed by the next at 9000
    42-r3: 9000 on, iteration 2 ends at 10800
    """
    written.submitted(("train", "42"))
    first = written.attempt("42-r0", 0)
    written.iteration(0, first, 1800, 900)
    written.commit(0, 1900)
    written.iteration(1, first, 2700, 900)
    written.end(first, 3600, "preempted", "requeue", "the job was asked to stop")
    written.end(written.attempt("42-r1", 4000), 4900, "preempted", "requeue", "the job was asked to stop")
    third = written.attempt("42-r2", 5000)
    written.iteration(1, third, 6800, 900)
    written.commit(1, 6900)
    progress = {"what": "rollout", "iteration": 2, "since": BEGAN + 6800, "now": BEGAN + 7000, "detail": ""}
    third.progress.write_text(json.dumps(progress), encoding="utf-8")
    written.end(third, 9000, "abandoned", "exit", "no end was recorded: the batch host died")
    fourth = written.attempt("42-r3", 9000)
    written.iteration(2, fourth, 10800, 1080, reward=0.625)
    progress = {"what": "update", "iteration": 3, "since": BEGAN + 11000, "now": BEGAN + 11000, "detail": ""}
    fourth.progress.write_text(json.dumps(progress), encoding="utf-8")


def test_gpu_hours_useful_and_lost(written: WrittenRun) -> None:
    requeued_thrice(written)
    hours = written.status(11700, slurm(("42", "RUNNING"))).hours
    # 4 GPUs: 900 s are 1 GPU-hour. Held: 3600 + 900 + (7000 - 5000) + (11700 - 9000) = 9200 s.
    assert hours.held == pytest.approx(9200 / 900)
    # Iterations 0 (900), 1 (900), 2 (1080).
    assert hours.useful == pytest.approx(2880 / 900)
    # To the first iteration: 900 of 42-r0, all 900 of 42-r1, 900 of 42-r2, 720 of 42-r3.
    assert hours.starting == pytest.approx(3420 / 900)
    # Iteration 1 of 42-r0.
    assert hours.again == pytest.approx(1)
    # 42-r0 from 2700 to 3600, 42-r2 from 6800 to its last sign at 7000.
    assert hours.unfinished == pytest.approx(1100 / 900)
    assert hours.under_way == pytest.approx(1)
    assert hours.lost == pytest.approx((3420 + 900 + 1100) / 900)


def test_requeued_thrice_as_text(written: WrittenRun) -> None:
    requeued_thrice(written)
    (written.run.logs / "train-42.log").touch()
    (written.run.logs / "train-42-0.log").touch()
    status = written.status(11700, slurm(("42", "RUNNING")))
    text = re.sub(r"[A-Z][a-z]{2} \d\d \d\d:\d\d", "DAY", render(status, 100))
    assert text.split("\n\n")[1:] == [
        "state      running: train 42: RUNNING on node[01-02]\n"
        "to do      nothing: wait; to stop:\n"
        "           scancel 42",
        "stages     cast       not submitted\n"
        "           convert    not submitted\n"
        "           train      running        42: RUNNING on node[01-02]",
        # (900 + 900 + 1080) / 3 = 960 s for the one that is left
        "iterations 3 of 4 done, 16 min left if nothing interrupts\n"
        "now        update of iteration 3, for 11.7 min (last sign 11.7 min ago)\n"
        "reward     0.625 of what is trained on, 0.312 of all that were graded (iteration 2)\n"
        "commit     iteration 1, 80 min ago: checkpoints/iter_0000001",
        "attempts   42-r0  DAY     60 min  it. 0-1       preempted: the job was asked to stop\n"
        "           42-r1  DAY     15 min  -             preempted: the job was asked to stop\n"
        "           42-r2  DAY   33.3 min  it. 1         abandoned: no end was recorded: the batch\n"
        "             host died\n"
        "           42-r3  DAY     45 min  it. 2         running",
        "GPU-hours  10.2 held: 3.2 useful, 6.02 lost (3.8 starting, 1 done again, 1.22 not finished); 1 under\n"
        "             way\n"
        "logs       logs/train-42.log\n"
        "           logs/train-42-0.log\n"
        "           attempts/42-r3/logs/node01-driver.log\n"
        "           attempts/42-r3/logs",
    ]


def test_of_many_attempts_the_last_are_shown(written: WrittenRun) -> None:
    for number in range(15):
        written.end(written.attempt(f"42-r{number}", 10 * number), 10 * number + 5, "preempted", "requeue")
    (rows,) = [part.splitlines() for part in _paragraphs(written.status(900, no_slurm)) if part.startswith("attempts")]
    assert rows[0] == "attempts   5 earlier ones: 5 preempted"
    named = [row.split()[0] for row in rows if "42-r" in row]
    assert named == [f"42-r{number}" for number in range(5, 15)]


@pytest.mark.parametrize("columns", [20, 80, 97, 120, 500])
def test_text_fits_the_terminal(written: WrittenRun, columns: int) -> None:
    requeued_thrice(written)
    lines = render(written.status(11700, no_slurm), columns).splitlines()
    widest = min(max(columns, 80), 120)
    # A path is never broken: it may be too long by itself.
    assert [line for line in lines if len(line) > widest and " " in line.strip()] == []


def test_json_has_the_documented_keys(written: WrittenRun) -> None:
    requeued_thrice(written)
    value = json.loads(json.dumps(written.status(11700, slurm(("42", "RUNNING"))).to_json(), allow_nan=False))
    assert value["run"] == {"directory": str(written.run.root), "id": "rehearsal-aaaaaa", "name": "rehearsal"}
    assert (value["state"], value["iterations"], value["num_rollout"]) == ("running", 3, 4)
    assert (value["reward"], value["reward_finished"], value["seconds_left"]) == (0.625, 0.3125, 960)
    assert value["commit"]["iteration"] == 1
    assert [attempt["cause"] for attempt in value["attempts"]] == ["preempted", "preempted", "abandoned", None]
    assert (value["progress"]["what"], value["silent_s"]) == ("update", 700)
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    keys = {*value, *value["stages"][0], *value["attempts"][0], *value["commit"], *value["gpu_hours"]}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_held_out_sets_have_their_newest_result(written: WrittenRun) -> None:
    attempt = written.attempt("42-r0", 0)
    written.iteration(0, attempt, 10, 5)
    metrics = Metrics(written.run, 1, 4)
    metrics.add_final_evaluation(eval_numbers([eval_result(weight_version=1, accuracy=0.75)]))
    metrics.close()
    status = written.status(60, no_slurm)
    assert (status.evaluations["heldout"].accuracy, status.evaluations["heldout"].weight_version) == (0.75, 1)
    assert "held out   heldout: 0.750 after 1 iterations" in render(status, 80)


def test_a_line_that_is_being_written_does_not_count_yet(written: WrittenRun) -> None:
    attempt = written.attempt("42-r0", 0)
    written.iteration(0, attempt, 10, 5)
    with written.run.metrics.open("a", encoding="utf-8") as stream:
        stream.write('{"iteration": 1, "atte')
    assert written.status(60, no_slurm).iterations == 1


@pytest.mark.parametrize("name", ["begin.json", "end.json", "outcome.json", "progress.json"])
def test_records_that_cannot_be_read_are_passed_over(written: WrittenRun, name: str) -> None:
    requeued_thrice(written)
    (written.run.attempts / "42-r3" / name).write_text('{"started": ', encoding="utf-8")
    render(written.status(11700, no_slurm), 80)


def test_a_configuration_that_cannot_be_read_is_no_reason_to_say_nothing(written: WrittenRun) -> None:
    requeued_thrice(written)
    written.run.config.write_text("run: [", encoding="utf-8")
    status = written.status(11700, slurm(("42", "RUNNING")))
    assert (status.verdict.state, status.iterations, status.noted.num_rollout) == ("running", 3, None)
    assert "iterations 3 of ? done\n" in render(status, 80)


def test_a_save_that_is_not_committed_is_no_commit(written: WrittenRun) -> None:
    written.commit(3, 10)
    (written.run.checkpoints / "iter_0000007").mkdir()
    (written.run.checkpoints / ".iter_0000009.01234567.uncommitted").mkdir()
    status = written.status(60, no_slurm)
    assert status.commit is not None
    assert status.commit.iteration == 3


def test_exit_codes(written: WrittenRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written.run.root)]) == 0
    assert "state      prepared" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nothing'} is no run directory")
    written.run.hold.touch()
    assert main([str(written.run.root), "--watch"]) == 1


def test_a_file_is_told_with_the_run_that_it_configures(written: WrittenRun, tmp_path: Path) -> None:
    with pytest.raises(NoRun, match=f"config.yaml is a file, .* is {written.run.root}$"):
        gather(RunDir(written.run.config), BEGAN, no_slurm)
    other = tmp_path / "notes.txt"
    other.write_text("no: [configuration", encoding="utf-8")
    with pytest.raises(NoRun, match=r"notes.txt is a file, and a run is a directory: give run\.root/run\.name"):
        gather(RunDir(other), BEGAN, no_slurm)


@pytest.mark.parametrize(
    "jobs", ["[1]", "null", '{"jobs": 7}', '{"jobs": [1, {"stage": "train"}]}', '{"cluster": "local", "stages": 7}']
)
def test_jobs_of_a_wrong_form_are_passed_over(written: WrittenRun, jobs: str) -> None:
    written.run.jobs.write_text(jobs, encoding="utf-8")
    assert written.status(60, no_slurm).noted.jobs == ()
    run = json.loads(written.run.run.read_text(encoding="utf-8"))
    written.run.run.write_text(json.dumps(run | {"sweep_of": "base-bbbbbb"}), encoding="utf-8")
    base = RunDir(written.run.root.parent / "base")
    base.root.mkdir()
    base.run.write_text('{"run_id": "base-bbbbbb"}', encoding="utf-8")
    base.sweep_index.write_text(f"{written.run.root}\n", encoding="utf-8")
    base.jobs.write_text(jobs, encoding="utf-8")
    written.run.jobs.unlink()
    assert written.status(60, no_slurm).noted.jobs == ()


def test_a_command_has_a_line_of_its_own_however_long(written: WrittenRun) -> None:
    override = "rollout.custom_rm_path=" + "a long word " * 12
    run = json.loads(written.run.run.read_text(encoding="utf-8"))
    run |= {"command": ["r1.yaml", "--set", override], "cwd": os.getcwd()}
    written.run.run.write_text(json.dumps(run), encoding="utf-8")
    written.submitted(("train", "42"))
    status = written.status(60, slurm(("42", "PENDING", "DependencyNeverSatisfied")))
    assert _paragraphs(status)[1].splitlines()[-3:] == [
        "to do      scancel 42",
        "           mend it, then",
        f"           python -m r1hpc.submit r1.yaml --set '{override}'",
    ]


def test_a_login_node_without_slurm_runs_it_and_loads_nothing_heavy(written: WrittenRun, tmp_path: Path) -> None:
    written.submitted(("train", "42"))
    say_progress(written.attempt("42-r0", 10), "rollout", 0)
    code = (
        "import sys; from r1hpc.status.__main__ import main; "
        "assert main([sys.argv[1], '--json']) == 0; "
        "heavy = {'torch', 'ray', 'sglang', 'megatron', 'transformers', 'mpi4py', 'numpy', 'submitit', 'tensorboard',"
        " 'matplotlib'} & set(sys.modules); print('heavy:', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(written.run.root)],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    value, heavy = done.stdout.splitlines()
    assert heavy == "heavy: []"
    assert json.loads(value)["why"].endswith("(by its files: no Slurm on this host)")


def _paragraphs(status: Status) -> list[str]:
    return render(status, 80).split("\n\n")
