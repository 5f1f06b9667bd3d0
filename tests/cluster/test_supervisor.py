"""The agent's children: deaf to the agent's signals, never orphaned, ended to the last one. All of them real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from r1hpc.cluster.leftovers import end_earlier_attempts, processes_of, processes_of_others
from r1hpc.cluster.processes import processes_of_node

HOME = Path(__file__).resolve().parents[2]

# A stand-in for an agent: starts one child, which starts a grandchild in a session of its own, as engines do.
_AGENT = """
    import os, sys, time
    from pathlib import Path
    from r1hpc.cluster.supervisor import Supervisor

    node, logs, script = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    marks = {"R1HPC_RUN": node, "R1HPC_ATTEMPT": "/attempts/1", "R1HPC_NODE": node}
    with Supervisor(node, logs, "n1", logs / "scratch") as supervisor:
        supervisor.start("child", ["bash", "-c", script], dict(os.environ) | marks)
        ACTION
"""


def _agent(tmp_path: Path, action: str, script: str) -> tuple[subprocess.Popen[str], str]:
    node = f"supervised-{os.getpid()}-{time.time_ns()}"
    code = textwrap.dedent(_AGENT).replace("ACTION", action)
    command = [sys.executable, "-c", code, node, str(tmp_path), script]
    return subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True), node


def _wait(ready: Callable[[], bool], deadline_s: float = 10) -> None:
    deadline = time.monotonic() + deadline_s
    while not ready():
        assert time.monotonic() < deadline, f"not so after {deadline_s:g} s"
        time.sleep(0.02)


def test_children_and_grandchildren_outlive_usr1_and_term(tmp_path: Path) -> None:
    script = f"setsid sleep 61 & {sys.executable} -c 'import time; time.sleep(62)' & sleep 63 & wait"
    agent, node = _agent(tmp_path, "time.sleep(60)", script)
    try:
        _wait(lambda: len(processes_of_node(node)) == 4)
        pids = processes_of_node(node)
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        assert processes_of_node(node) == pids
    finally:
        agent.kill()
        agent.communicate()
    _wait(lambda: processes_of_node(node) == [])


def test_a_killed_agent_leaves_nothing_not_even_what_left_its_session(tmp_path: Path) -> None:
    # The double fork makes the sleeper an orphan that no parent-death signal reaches.
    agent, node = _agent(tmp_path, "time.sleep(60)", "(setsid sleep 64 &) ; sleep 65; true")
    _wait(lambda: len(processes_of_node(node)) == 3)
    agent.kill()
    agent.communicate()
    _wait(lambda: processes_of_node(node) == [])
    assert processes_of(node) == []


def test_the_end_of_the_agent_kills_every_descendant_and_reaps_the_orphans(tmp_path: Path) -> None:
    action = "time.sleep(1); left = supervisor.stop_all(); print(left, supervisor.reap())"
    agent, node = _agent(tmp_path, action, "(setsid sleep 66 &) ; env -u R1HPC_NODE setsid sleep 67 & sleep 68")
    output, _ = agent.communicate(timeout=20)
    assert output == "[] []\n"
    assert agent.returncode == 0
    assert processes_of(node) == []


def test_an_ended_child_is_reported_with_its_name_code_and_last_words(tmp_path: Path) -> None:
    action = "time.sleep(0.5); print(*supervisor.reap())"
    agent, _ = _agent(tmp_path, action, "echo starting; echo out of luck >&2; exit 3")
    output, _ = agent.communicate(timeout=20)
    assert output == f"child ended with exit code 3: out of luck (see {tmp_path / 'n1-child.log'})\n"


def test_a_child_killed_by_a_signal_is_reported_by_the_signals_name(tmp_path: Path) -> None:
    agent, _ = _agent(tmp_path, "time.sleep(0.5); print(*supervisor.reap())", "kill -SEGV $$")
    output, _ = agent.communicate(timeout=20)
    assert output.startswith("child ended with SIGSEGV (see")


def _sleeper(run: str, attempt: str, node: str | None) -> subprocess.Popen[bytes]:
    marks = {"R1HPC_RUN": run, "R1HPC_ATTEMPT": attempt} | ({"R1HPC_NODE": node} if node else {})
    return subprocess.Popen(["sleep", "69"], env=dict(os.environ) | marks)


def test_leftovers_of_earlier_attempts_are_ended_and_all_else_is_spared(tmp_path: Path) -> None:
    run = f"run-{os.getpid()}-{time.time_ns()}"
    stale = _sleeper(run, "/attempts/1-r0", "1-r0/n1")
    current = _sleeper(run, "/attempts/1-r1", "1-r1/n1")
    batch = _sleeper(run, "/attempts/1-r0", None)  # not started by an agent: perhaps the batch script itself
    other = _sleeper(f"{run}-other", "/attempts/1-r0", "1-r0/n1")
    try:
        _wait(lambda: len(processes_of(run)) == 3)
        assert other.pid in [process.pid for process in processes_of_others(run)]
        ended = end_earlier_attempts(run, Path("/attempts/1-r1"))
        assert [process.pid for process in ended] == [stale.pid]
        assert stale.wait(5) == -signal.SIGKILL
        assert [process.poll() for process in (current, batch, other)] == [None, None, None]
    finally:
        for process in (stale, current, batch, other):
            process.kill()
            process.wait()
