"""What becomes of a job whose attempt has ended.

Standard library only and Python >= 3.6: this runs on the batch host, outside any container.
"""

from r1hpc.cluster.requeue.decision import EXIT, HOLD, REQUEUE, Decision, Facts, Past, decide
from r1hpc.cluster.requeue.texts import parse_job, parse_nodes

__all__ = ["EXIT", "HOLD", "REQUEUE", "Decision", "Facts", "Past", "decide", "parse_job", "parse_nodes"]
