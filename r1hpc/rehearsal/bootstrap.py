"""Set up a bare machine: the virtual environment, and the system packages of the private Slurm.

    python3 r1hpc/rehearsal/bootstrap.py venv             .venv with the pinned CPU environment
    python3 r1hpc/rehearsal/bootstrap.py system [--test]  Slurm and munge from apt, where that is ours to do

Standard library only: it runs before anything is installed. Both are idempotent and quick the second time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[2]
VENV = HOME / ".venv"
STAMP = VENV / ".r1hpc-stamp"
CONSTRAINTS = HOME / "constraints.txt"
POLICY = Path("/usr/sbin/policy-rc.d")
SITE_CONF = Path("/etc/slurm/slurm.conf")
DAEMONS = ("slurmctld", "slurmd", "munged")
SUPPORTED = ((3, 11), (3, 12))


class SetUpError(Exception):
    """What is missing and how to get it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description="Set up a bare machine for r1hpc.")
    parser.add_argument("what", choices=("venv", "system"))
    parser.add_argument("--test", action="store_true", help="also what only the tests need")
    arguments = parser.parse_args(argv)
    try:
        if arguments.what == "venv":
            make_venv()
        else:
            install_system_packages(with_tests=arguments.test)
    except (SetUpError, subprocess.CalledProcessError) as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    return 0


def make_venv() -> None:
    """Make .venv as pyproject.toml and constraints.txt say; nothing to do when they have not changed since."""
    if sys.version_info[:2] not in SUPPORTED:
        raise SetUpError(
            f"Python {sys.version.split()[0]} at {sys.executable}: r1hpc needs 3.11 or 3.12; make PYTHON=python3.12 ..."
        )
    digest = _digest()
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == digest:
        return
    settings = _settings()
    STAMP.unlink(missing_ok=True)
    if not (VENV / "bin" / "pip").is_file():
        _create_venv()
    _install_torch(settings)
    _pip("-e", f"{HOME}[cpu,dev]", "-c", str(CONSTRAINTS))
    # megatron-core says it needs Python 3.12; its 3.11 wheel is complete.
    _pip("--no-deps", "--ignore-requires-python", *settings["tool"]["r1hpc"]["cpu-no-deps"])
    STAMP.write_text(digest, encoding="utf-8")
    print(f"environment ready: {VENV}")


def install_system_packages(with_tests: bool) -> None:
    """Install Slurm and munge from apt where that is ours to do; otherwise say what is left out and why."""
    settings = _settings()["tool"]["r1hpc"]
    wanted = settings["apt-slurm"] + (settings["apt-test"] if with_tests else [])
    missing = [name for name in wanted if not _installed(name)]
    if not missing:
        return
    reason = _reason_not_to_install()
    if reason:
        print(f"system packages not installed ({', '.join(missing)}): {reason}")
        return
    with _services_kept_from_starting():
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        subprocess.run(["apt-get", "update", "-q"], check=True, env=environment, stdout=subprocess.DEVNULL)
        subprocess.run(install, check=True, env=environment, stdout=subprocess.DEVNULL)
    print(f"installed: {', '.join(missing)}")


def _reason_not_to_install() -> str | None:
    """Why the system is left as it is, or None."""
    if "SLURM_JOB_ID" in os.environ:
        return "inside a Slurm job"
    if shutil.which("apt-get") is None:
        return "no apt-get here; install slurm and munge with this system's package manager"
    if os.geteuid() != 0:
        return "not root; as root: apt-get install slurm-wlm munge iproute2"
    if shutil.which("sbatch") and (SITE_CONF.exists() or not all(shutil.which(name) for name in DAEMONS)):
        return "this machine belongs to a site's own Slurm, which is left as it is"
    return None


@contextmanager
def _services_kept_from_starting() -> Iterator[None]:
    """Debian's packages start their daemons unless policy-rc.d forbids it; a policy that is there stays."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def _create_venv() -> None:
    """python3 -m venv; Debian's Python has no ensurepip until python3-venv is installed."""
    if _has_ensurepip():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        return
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetUpError(f"this Python has no ensurepip; as root: apt-get install {package}")
    with _services_kept_from_starting():
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "install", "-y", "-q", package], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)


def _has_ensurepip() -> bool:
    done = subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True, check=False)
    return done.returncode == 0


def _install_torch(settings: dict[str, Any]) -> None:
    """The CPU build where pip finds one; else the registry's, which brings CUDA: several GB, but it works too."""
    pin = next(pin for pin in settings["project"]["optional-dependencies"]["cpu"] if pin.startswith("torch=="))
    try:
        _pip(f"{pin}+cpu", "-c", str(CONSTRAINTS), quiet_failure=True)
    except subprocess.CalledProcessError:
        print(f"no CPU build of {pin} on hand: installing the default build, which brings several GB of CUDA packages")
        print("(to avoid that, give pip a place that has one: PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL)")
        _pip(pin)


def _pip(*arguments: str, quiet_failure: bool = False) -> None:
    command = [str(VENV / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, stderr=errors, check=False)
        errors.seek(0)
        text = errors.read()
    if done.returncode != 0:
        if not quiet_failure:
            print(text, file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)


def _installed(package: str) -> bool:
    """Whether dpkg has it; on another system, whether its programs are there is asked by who needs them."""
    if shutil.which("dpkg-query") is None:
        return False
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True, check=False)
    return done.stdout == "install ok installed"


def _settings() -> dict[str, Any]:
    with (HOME / "pyproject.toml").open("rb") as stream:
        return tomllib.load(stream)


def _digest() -> str:
    """Changes when the environment has to be made anew."""
    digest = hashlib.sha256()
    for path in (HOME / "pyproject.toml", CONSTRAINTS):
        digest.update(path.read_bytes())
    digest.update(f"{sys.version} {HOME}".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
