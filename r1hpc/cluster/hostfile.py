"""Hostfiles that people write: read every dialect, name what is wrong with file, line and part.

python -m r1hpc.cluster.hostfile FILE      prints the hosts and the exact command of Open MPI and of MPICH
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from r1hpc.cluster.hostfile_forms import mpich_command, openmpi_command, write_hydra, write_openmpi
from r1hpc.cluster.hostfile_line import HostLine, parse_line
from r1hpc.cluster.hosts import ClusterHost
from r1hpc.errors import HostfileError


@dataclass(frozen=True)
class Host:
    """One host of a hostfile; all its lines together."""

    name: str
    """Name or address, as written."""
    slots: int | None
    """None when it stands bare on one line: the reader's gpus_per_node is meant."""
    line: int
    """Its first line, from 1."""
    user: str | None = None


@dataclass(frozen=True)
class Hostfile:
    """The hosts of a hostfile in the order of their first lines."""

    path: Path
    hosts: tuple[Host, ...]
    notices: tuple[str, ...]
    openmpi: bool = True
    """Open MPI reads the file as it stands."""

    def spares(self, num_nodes: int) -> tuple[Host, ...]:
        """The hosts beyond those that a job of num_nodes uses."""
        return self.hosts[num_nodes:]

    def cluster_hosts(self, gpus_per_node: int) -> list[ClusterHost]:
        """The hosts under their own names, for a launch without Slurm."""
        return [ClusterHost(host.name, host.name, host.slots or gpus_per_node) for host in self.hosts]


def read_hostfile(path: Path) -> Hostfile:
    """Read a hostfile. Raises HostfileError, one line for each problem: `hostfiles/h.txt:7: ...`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise HostfileError(f"{path}: {error.strerror}; a hostfile has one line a host: node01 slots=8") from None
    except UnicodeDecodeError:
        raise HostfileError(f"{path}: is no text file; a hostfile has one line a host: node01 slots=8") from None
    hosts: dict[str, Host] = {}
    excluded: dict[str, int] = {}
    problems, notices, openmpi = [], [], True
    for number, raw in enumerate(text.splitlines(), start=1):
        try:
            line = parse_line(raw)
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        if line is None:
            continue
        openmpi = openmpi and line.openmpi
        notices += [f"{path}:{number}: {notice}" for notice in line.notices]
        for name in line.names:
            if line.excluded:
                excluded[name] = number
            else:
                hosts[name] = _merged(hosts.get(name), name, line, number)
    notices += [
        f"{path}:{n}: ^{name} excludes a host that no line names" for name, n in excluded.items() if name not in hosts
    ]
    kept = tuple(host for name, host in hosts.items() if name not in excluded)
    if not kept and not problems:
        problems.append(f"{path}: names no host; write one line a host: node01 slots=8")
    if problems:
        raise HostfileError("\n".join(problems))
    return Hostfile(path, kept, tuple(notices), openmpi)


def _merged(before: Host | None, name: str, line: HostLine, number: int) -> Host:
    """A repeated host adds up: a bare line is one slot (PBS, LSF), `slots=` its number."""
    if before is None:
        return Host(name, line.slots, number, line.user)
    return Host(name, (before.slots or 1) + (line.slots or 1), before.line, before.user or line.user)


def check(hostfile: Hostfile, num_nodes: int, gpus_per_node: int) -> list[str]:
    """What keeps a hostfile from carrying num_nodes x gpus_per_node; [] when it does. Spares are checked too."""
    problems = []
    count = len(hostfile.hosts)
    if count < num_nodes:
        problems.append(
            f"{hostfile.path}: {count} of {num_nodes} hosts: hosts.num_nodes = {num_nodes}; "
            f"add {num_nodes - count} or lower hosts.num_nodes"
        )
    wrong = [host for host in hostfile.hosts if host.slots not in (None, gpus_per_node)]
    problems += [
        f"{hostfile.path}:{host.line}: {host.name} has {host.slots} slots, but hosts.gpus_per_node = {gpus_per_node}"
        for host in wrong
    ]
    return problems


def require(hostfile: Hostfile, num_nodes: int, gpus_per_node: int) -> None:
    """Raise HostfileError with everything that `check` finds."""
    problems = check(hostfile, num_nodes, gpus_per_node)
    if problems:
        raise HostfileError("\n".join(problems))


def main(argv: list[str] | None = None) -> int:
    """Print the hosts and how to start a run on them without Slurm."""
    parser = argparse.ArgumentParser(prog="python -m r1hpc.cluster.hostfile", description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--run", default="configs/r1.yaml", help="configuration or run directory in the commands")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="slots of a host whose line gives none")
    parser.add_argument("--write", action="store_true", help="write the forms that the launchers read beside the file")
    arguments = parser.parse_args(argv)
    try:
        hostfile = read_hostfile(arguments.file)
    except HostfileError as error:
        print(error, file=sys.stderr)
        return 1
    for notice in hostfile.notices:
        print(f"note: {notice}", file=sys.stderr)
    hosts = hostfile.cluster_hosts(arguments.gpus_per_node)
    width = max(len(host.name) for host in hosts)
    for host in hosts:
        print(f"{host.name:{width}}  slots={host.slots}")
    forms = launcher_files(hostfile)
    if arguments.write:
        write_hydra(hosts, forms.hydra)
        if forms.openmpi != hostfile.path:
            write_openmpi(hosts, forms.openmpi)
    print()
    print(launch_commands(hostfile, len(hosts), f"python -m jobs.train {arguments.run} --hostfile {arguments.file}"))
    return 0


@dataclass(frozen=True)
class LauncherFiles:
    """The file that each launcher takes."""

    openmpi: Path
    """The hostfile itself when Open MPI reads it as it stands."""
    hydra: Path


def launcher_files(hostfile: Hostfile) -> LauncherFiles:
    """Where the two forms are, or would be written."""
    beside = hostfile.path.with_name
    name = hostfile.path.name
    return LauncherFiles(hostfile.path if hostfile.openmpi else beside(f"{name}.openmpi"), beside(f"{name}.hydra"))


def launch_commands(hostfile: Hostfile, num_nodes: int, program: str) -> str:
    """The exact command of Open MPI and of MPICH, and how to get the files that they name."""
    forms = launcher_files(hostfile)
    lines = [
        f"Open MPI:  {openmpi_command(forms.openmpi, num_nodes, program)}",
        f"MPICH:     {mpich_command(forms.hydra, num_nodes, program)}",
    ]
    missing = [str(path) for path in (forms.openmpi, forms.hydra) if not _is_current(path, hostfile.path)]
    if missing:
        lines.append(
            f"           (python -m r1hpc.cluster.hostfile {hostfile.path} --write makes {', '.join(missing)})"
        )
    return "\n".join(lines)


def _is_current(form: Path, source: Path) -> bool:
    return form.exists() and form.stat().st_mtime >= source.stat().st_mtime


if __name__ == "__main__":
    sys.exit(main())
