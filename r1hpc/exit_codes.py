"""Exit codes of the jobs; the requeue decision reads them. Standard library only, any Python >= 3.6."""

SUCCESS = 0
CRASHED = 1
STOP_REQUESTED = 75
"""A signal asked the attempt to stop; it stopped in order (EX_TEMPFAIL)."""
PREFLIGHT_FAILED = 76
"""A node does not meet the plan's needs, or did not report."""
BRING_UP_FAILED = 77
"""Ray did not come up on every node in time."""
NODE_LOST = 78
"""A node that was up stopped answering."""
OUT_OF_TIME = 79
"""The loop left by its own clock: no other iteration ends within the allocation. All that is trained is committed."""
CANARY_FAILED = 80
"""A few layers of the model did not get through two iterations as they must: a person has to look."""
INVALID = 64
"""The configuration or the command line is wrong: trying again cannot help (EX_USAGE)."""
SRUN_LAUNCH_FAILED = 233
"""srun could not start its tasks: a node died during the launch."""
