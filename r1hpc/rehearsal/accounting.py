"""slurmdbd on a private MariaDB, for `sacct`."""

from __future__ import annotations

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.client import Client
from r1hpc.rehearsal.daemons import Starter
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.processes import ProcessId
from r1hpc.rehearsal.topology import Topology

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "mariadb-admin", "sacctmgr")
PACKAGES = "slurmdbd mariadb-server"

CREATE = (
    "create database slurm_acct_db; create user 'slurm'@'127.0.0.1' identified by 'slurm'; "
    "grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1'"
)

ACCOUNT = "default"


def start_database(starter: Starter, client: Client, layout: Layout, topology: Topology, user: str) -> ProcessId:
    """Start MariaDB in a fresh data directory, with an empty database for slurmdbd."""
    data = layout.directory / "database"
    socket = layout.directory / "run" / "mysql.sock"
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={user}"]
    client.run([*install, "--auth-root-authentication-method=normal", "--skip-test-db"], timeout_s=60, check=True)
    server = [
        *("mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket}", f"--user={user}"),
        *(f"--pid-file={layout.directory}/run/mariadbd.pid", f"--port={topology.database_port}"),
        # slurmdbd wants the lock timeout; the rest keeps the server small.
        *("--bind-address=127.0.0.1", "--skip-name-resolve", "--innodb-lock-wait-timeout=900"),
        *("--innodb-buffer-pool-size=64M", "--innodb-log-file-size=32M", "--performance-schema=OFF"),
    ]
    process = starter.start("mariadbd", server)
    starter.wait_listening("mariadbd", topology.database_port, deadline_s=60)
    client.run(["mariadb", "--no-defaults", "-uroot", f"--socket={socket}", "-e", CREATE], timeout_s=30, check=True)
    return process


def start_dbd(starter: Starter, client: Client, topology: Topology) -> ProcessId:
    """Start slurmdbd and wait until it answers."""
    process = starter.start("slurmdbd", ["slurmdbd", "-D"])
    starter.wait_listening("slurmdbd", topology.dbd_port, deadline_s=60)
    starter.wait("slurmdbd answers", lambda: _answers(client), ["slurmdbd"], deadline_s=60)
    return process


def register_cluster(client: Client, layout: Layout, user: str) -> None:
    """Make the cluster, an account and its one user known to slurmdbd."""
    for words in (
        ["cluster", layout.cluster_name],
        ["account", ACCOUNT, f"Cluster={layout.cluster_name}", "Description=rehearsal", "Organization=rehearsal"],
        ["user", user, f"Account={ACCOUNT}"],
    ):
        client.run(["sacctmgr", "--immediate", "add", *words], timeout_s=30, check=True)


def _answers(client: Client) -> bool:
    try:
        client.query(["sacctmgr", "--noheader", "list", "cluster"])
    except RehearsalError:
        return False
    return True
