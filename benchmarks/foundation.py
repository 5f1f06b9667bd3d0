"""How long the foundation takes: dry run, planning, the private Slurm, Ray from the hostfile.

    python benchmarks/foundation.py [--quick]

Prints a line a figure and, last, all of them as one JSON object. --quick leaves the 16 nodes out (null).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from r1hpc.config import load_config
from r1hpc.plan import make_plan, read_model_shape
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.spec import ClusterSpec, default_directory
from r1hpc.rundir import AttemptDir

HOME = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure everything that this host can."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, under a minute")
    quick = parser.parse_args().quick
    figures: dict[str, float | None] = {}
    report(figures, "dry_run_s", median_of(dry_run, 3 if quick else 9))
    report(figures, "config_error_s", median_of(config_error, 3 if quick else 9))
    report(figures, "plan_128_ms", 1e3 * planning(16, 50))
    report(figures, "plan_4096_ms", 1e3 * planning(512, 10))
    if shutil.which("slurmctld") is None:
        print("no Slurm on this host: slurm_up_s and ray_up_* left out", file=sys.stderr)
    else:
        measure_clusters(figures, (4,) if quick else (4, 16), 1 if quick else 3)
    print(json.dumps(figures))
    return 0


def report(figures: dict[str, float | None], name: str, value: float | None) -> None:
    """Keep and print a figure."""
    figures[name] = None if value is None else round(value, 4)
    print(f"{name:<16} {figures[name]}", flush=True)


def median_of(run: Callable[[], None], repetitions: int) -> float:
    """Median wall seconds; the first, cold run is not counted."""
    run()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def dry_run() -> None:
    """python -m r1hpc.submit configs/r1.yaml --dry-run, a whole process."""
    command = [sys.executable, "-m", "r1hpc.submit", "configs/r1.yaml", "--dry-run"]
    subprocess.run(command, cwd=HOME, check=True, capture_output=True)


def config_error() -> None:
    """The same with a wrong key: from the prompt to the error."""
    command = [sys.executable, "-m", "r1hpc.submit", "configs/r1.yaml", "--dry-run", "--set", "perf.tensor_paralel=8"]
    done = subprocess.run(command, cwd=HOME, check=False, capture_output=True, text=True)
    if done.returncode == 0 or "tensor_paralel" not in done.stderr:
        raise RuntimeError(f"expected an error that names the key, got {done.returncode}: {done.stderr}")


def planning(num_nodes: int, repetitions: int) -> float:
    """Median seconds of planning R1 on that many nodes, without reading files."""
    overrides = [f"hosts.num_nodes={num_nodes}", f"rollout.rollout_batch_size={max(128, num_nodes * 8)}"]
    overrides.append(f"rollout.over_sampling_batch_size={max(256, num_nodes * 16)}")
    config = load_config(HOME / "configs" / "r1.yaml", overrides=overrides).config
    shape = read_model_shape(HOME / "configs" / "models" / "deepseek-r1" / "config.json")
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        make_plan(config, shape)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_clusters(figures: dict[str, float | None], sizes: tuple[int, ...], repetitions: int) -> None:
    """Up time of 4 nodes, and of Ray on 4 and 16, from a passed preflight to an answer from every slot."""
    figures["ray_up_16_s"] = None
    base = default_directory().parent / "bench"
    base.mkdir(parents=True, exist_ok=True)
    for nodes in sizes:
        up, ray = [], []
        for _ in range(repetitions):
            directory = Path(tempfile.mkdtemp(prefix="b", dir=base))
            start = time.perf_counter()
            cluster = RehearsalCluster.up(ClusterSpec(directory=directory, nodes=nodes))
            up.append(time.perf_counter() - start)
            try:
                ray.append(bring_up(cluster, nodes, directory / "runs"))
            finally:
                cluster.down()
                shutil.rmtree(directory, ignore_errors=True)
        if nodes == 4:
            report(figures, "slurm_up_s", statistics.median(up))
        report(figures, f"ray_up_{nodes}_s", statistics.median(ray))


def bring_up(cluster: RehearsalCluster, nodes: int, root: Path) -> float:
    """Submit the preflight stage; seconds from the end of the preflight until every GPU slot had answered."""
    command = [sys.executable, "-m", "r1hpc.submit", "configs/rehearsal.yaml", "--stage", "preflight", "--wait"]
    command += ["--cluster", "slurm", "--set", f"hosts.num_nodes={nodes}", "--set", f"run.root={root}"]
    done = cluster.run(command, cwd=HOME, timeout_s=300)
    if done.returncode != 0:
        raise RuntimeError(f"bring-up of {nodes} nodes failed:\n{done.stdout}\n{done.stderr}")
    attempt = AttemptDir(next(root.glob("rehearsal/attempts/*")))
    return attempt.placement.stat().st_mtime - attempt.launch.stat().st_mtime


if __name__ == "__main__":
    sys.exit(main())
