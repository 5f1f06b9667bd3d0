"""Errors meant for people: what was wrong, the value, the rule, the fix."""

from __future__ import annotations

from collections.abc import Sequence


class R1hpcError(Exception):
    """Something that the user can put right; printed without a traceback by every command line."""


class HostfileError(R1hpcError):
    """A hostfile that cannot be read as one; names file, line and part."""


class ClusterError(R1hpcError):
    """Slurm, or a node of it, does not answer as it must."""


class SubmitError(R1hpcError):
    """The jobs cannot be submitted as asked."""


class PreflightError(R1hpcError):
    """A node does not meet what the plan needs of it."""


class BringUpError(R1hpcError):
    """Ray did not come up, or did not place, before its deadline."""

    def __init__(self, message: str, hosts: Sequence[str] = ()) -> None:
        # Only the message is in self.args; Exception.__reduce__ carries hosts along in __dict__, so it stays picklable.
        super().__init__(message)
        self.hosts = tuple(hosts)
        """Names of those to blame; () when that is not known."""


class CanaryError(R1hpcError):
    """The canary failed: names the step and the cause, and says what to try."""


class RehearsalError(R1hpcError):
    """The private Slurm could not be started, stopped or reached."""


class ProblemsError(R1hpcError):
    """Several problems found in one go, one paragraph each."""

    heading = "problem"
    most_shown = 50
    """A thousand samples may all have the same problem; `problems` has them all."""

    def __init__(self, problems: Sequence[str]) -> None:
        # Exception.__reduce__ replays self.args: keeping the list as the one argument keeps it picklable.
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        count = len(self.problems)
        noun = self.heading if count == 1 else self.heading + "s"
        more = [f"  and {count - self.most_shown} more"] if count > self.most_shown else []
        return "\n".join([f"{count} {noun}:", *(f"  {p}" for p in self.problems[: self.most_shown]), *more])


class ConfigError(ProblemsError):
    """Every problem of a configuration, each with file:line, value, rule and the nearest right name."""

    heading = "configuration problem"


class PlanError(ProblemsError):
    """A plan that cannot fit or whose numbers do not divide; each with the arithmetic and the knob to turn."""

    heading = "planning problem"


class CheckpointError(R1hpcError):
    """A checkpoint that is not what it must be, or cannot be written; names file and tensor."""


class CheckpointProblems(ProblemsError):
    """Every problem found in a checkpoint, each naming its file or tensor."""

    heading = "checkpoint problem"
