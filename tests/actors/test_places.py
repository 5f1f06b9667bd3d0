"""What a trainer is told of its place, and what the driver is told by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from r1hpc.actors.trainers import trainer_places
from r1hpc.cluster.ray import Slot


def test_hosts_of_one_machine_share_its_cores() -> None:
    slots = [Slot("a", 0, 0, 1, "m"), Slot("b", 1, 1, 2, "m"), Slot("b", 3, 2, 3, "m"), Slot("c", 7, 3, 4, "n")]
    places = trainer_places(slots, Path("/logs"))
    assert [(place.rank, place.host, place.gpu, place.machine_slots) for place in places] == [
        (0, "a", 0, 3),
        (1, "b", 0, 3),
        (2, "b", 1, 3),
        (3, "c", 0, 1),
    ]


def test_the_driver_reads_what_trainers_answer_without_what_they_train_with() -> None:
    answers = ["r1hpc.train.update_stats", "r1hpc.train.checkpoint.saved_checkpoint", "r1hpc.sync.outline"]
    program = f"import sys, {', '.join(answers)}; print(sorted({{'torch', 'megatron', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
