"""The pins: one version of everything, CPU and GPU alike, and never the unrelated package deep-ep."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from r1hpc.rehearsal import bootstrap

HOME = Path(__file__).resolve().parents[1]


def _project() -> dict[str, Any]:
    return tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))


def _pins(requirements: list[str]) -> dict[str, str]:
    pins = {}
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([A-Za-z0-9._+]+)", requirement)
        assert match, f"{requirement}: not pinned to one version"
        pins[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return pins


def _extras() -> dict[str, dict[str, str]]:
    project = _project()
    extras = {name: _pins(found) for name, found in project["project"]["optional-dependencies"].items()}
    no_deps = _pins(project["tool"]["r1hpc"]["cpu-no-deps"])
    return extras | {"base": _pins(project["project"]["dependencies"]), "cpu-no-deps": no_deps}


def test_cpu_and_gpu_environments_pin_the_same_versions() -> None:
    extras = _extras()
    cpu = extras["base"] | extras["cpu"] | extras["cpu-no-deps"]
    shared = set(cpu) & set(extras["gpu"])
    assert {"torch", "sglang", "megatron-core", "ray", "transformers", "mpi4py"} <= shared
    assert {name: (cpu[name], extras["gpu"][name]) for name in shared if cpu[name] != extras["gpu"][name]} == {}


def test_constraints_agree_with_the_pins() -> None:
    lines = (HOME / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = _pins([line for line in lines if not line.startswith("#")])
    assert len(constraints) > 80
    extras = _extras()
    pins = extras["base"] | extras["cpu"] | extras["cpu-no-deps"] | extras["dev"]
    pins = {name: version for name, version in pins.items() if name in constraints}
    assert {name: (pin, constraints[name]) for name, pin in pins.items() if constraints[name] != pin} == {}


def test_deep_ep_of_the_registry_is_never_named() -> None:
    for name, pins in _extras().items():
        assert "deep-ep" not in pins, name
    assert _extras()["gpu"]["sgl-deep-ep"] == "0.1.2"


def test_the_environment_is_the_one_that_the_pins_describe() -> None:
    from importlib.metadata import version

    extras = _extras()
    pins = extras["base"] | extras["cpu"] | extras["cpu-no-deps"]
    different = {name: (version(name), pin) for name, pin in pins.items() if version(name).partition("+")[0] != pin}
    assert different == {}


@pytest.mark.parametrize(
    ("environment", "programs", "reason"),
    [
        ({"SLURM_JOB_ID": "7"}, {"apt-get"}, "inside a Slurm job"),
        ({}, set(), "no apt-get here"),
        ({}, {"apt-get", "sbatch"}, "belongs to a site's own Slurm"),
    ],
)
def test_the_system_is_left_as_it_is(
    environment: dict[str, str], programs: set[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in programs:
        (tmp_path / program).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    found = bootstrap._reason_not_to_install()
    assert found is not None
    assert reason in found


def test_the_environment_is_made_once() -> None:
    command = [sys.executable, str(HOME / "r1hpc" / "rehearsal" / "bootstrap.py"), "venv"]
    if not bootstrap.STAMP.is_file():
        pytest.skip("this environment was not made by bootstrap.py")
    before = bootstrap.STAMP.stat().st_mtime_ns
    subprocess.run(command, check=True, timeout=60, env={"PATH": "/usr/bin:/bin"})
    assert bootstrap.STAMP.stat().st_mtime_ns == before
