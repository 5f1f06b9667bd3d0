"""What r1hpc does differently for each SGLang that it can start."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from r1hpc.rollout.versions import UnsupportedSglang, capabilities

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("version", "bracketed_update", "ready", "get_weight_version", "attn_dp_size"),
    [
        ("0.5.17", False, False, True, False),
        ("0.5.19", False, False, True, False),
        ("0.5.20", False, True, True, False),
        ("0.5.21", True, True, False, False),
        ("0.5.22", True, True, False, True),
        ("0.5.23", True, True, False, True),
        ("0.5.21.post1", True, True, False, False),
        ("0.5.23rc2+cu130", True, True, False, True),
    ],
)
def test_each_version_has_the_endpoints_and_arguments_that_its_source_has(
    version: str, bracketed_update: bool, ready: bool, get_weight_version: bool, attn_dp_size: bool
) -> None:
    known = capabilities(version)
    assert (known.bracketed_update, known.ready) == (bracketed_update, ready)
    assert (known.get_weight_version, known.attn_dp_size) == (get_weight_version, attn_dp_size)
    assert known.notice is None


def test_a_newer_version_is_taken_for_the_newest_known_with_a_notice() -> None:
    known = capabilities("0.6.0")
    assert known.bracketed_update
    assert known.attn_dp_size
    assert known.notice == (
        "SGLang 0.6.0 is newer than 0.5.23, the newest that r1hpc knows: it is taken to be like that one"
    )


def test_an_older_version_is_refused_with_the_range() -> None:
    with pytest.raises(UnsupportedSglang, match=r"SGLang 0\.5\.16 is older than 0\.5\.17; install one of 0\.5\.17 to"):
        capabilities("0.5.16")


def test_a_version_without_numbers_is_refused() -> None:
    with pytest.raises(UnsupportedSglang, match="SGLang main: cannot tell"):
        capabilities("main")


def test_the_installed_version_is_read_without_importing_sglang() -> None:
    code = "import sys; from r1hpc.rollout.versions import installed_capabilities as read; print(read().version); "
    code += "assert not {'sglang', 'torch'} & sys.modules.keys()"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == metadata.version("sglang")
