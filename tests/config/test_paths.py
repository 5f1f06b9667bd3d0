"""Relative paths become absolute, each from the place that its documentation names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from r1hpc.config import load_config
from r1hpc.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig


def test_directories_and_data_are_relative_to_the_working_directory(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = "eval:\n  eval_prompt_data: {aime: 'd/aime.jsonl@[:30]', math: /m.jsonl}\n  eval_interval: 5\n"
    path = write_config(text, name="configs/c.yaml", append=True)
    loaded = load_config(
        path,
        overrides=[
            "run.root=runs/../runs",
            "ckpt.hf_checkpoint=hf/",
            "ckpt.bf16_checkpoint=../bf16",
            "ckpt.ref_load=~/ref",
            "ckpt.load=null",
            "ckpt.save=./save//x",
            "rollout.prompt_data=d/p@v2.jsonl@[-100:]",
        ],
    )
    config = loaded.config
    assert config.run.root == f"{tmp_path}/runs"
    assert config.ckpt.hf_config is None
    assert config.ckpt.hf_checkpoint == f"{tmp_path}/hf"
    assert config.ckpt.bf16_checkpoint == f"{tmp_path.parent}/bf16"
    assert config.ckpt.ref_load == "/home/me/ref"
    assert config.ckpt.load is None
    assert config.ckpt.save == f"{tmp_path}/save/x"
    assert config.rollout.prompt_data == f"{tmp_path}/d/p@v2.jsonl@[-100:]"
    assert config.eval.eval_prompt_data == {"aime": f"{tmp_path}/d/aime.jsonl@[:30]", "math": "/m.jsonl"}


def test_a_link_stays_a_link(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "newest").symlink_to(tmp_path / "v1")
    loaded = load_config(write_config(), overrides=["ckpt.ref_load=newest"])
    assert loaded.config.ckpt.ref_load == f"{tmp_path}/newest"


def test_hf_config_is_looked_for_beside_the_file_that_names_it_first(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config(name="configs/c.yaml")
    write_config("{}", name="m/config.json")
    override = "ckpt.hf_config=m/config.json"
    assert load_config(path, overrides=[override]).config.ckpt.hf_config == f"{tmp_path}/m/config.json"
    write_config("ckpt: {hf_config: m/config.json}\n", name="configs/sites/x.yaml")
    assert load_config(path, site="x").config.ckpt.hf_config == f"{tmp_path}/m/config.json"
    write_config("{}", name="configs/sites/m/config.json")
    assert load_config(path, site="x").config.ckpt.hf_config == f"{tmp_path}/configs/sites/m/config.json"


def test_a_hostfile_is_looked_for_here_then_beside_the_file_then_above_it(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    path = write_config("hosts:\n  hostfile: h/r1.hostfile\n", name="configs/sites/x.yaml")
    config = write_config(name="configs/c.yaml")
    for place in ("configs/h/r1.hostfile", "configs/sites/h/r1.hostfile", "h/r1.hostfile"):
        write_config("10.0.0.1 slots=8\n", name=place)
        assert load_config(config, site=str(path)).config.hosts.hostfile == f"{tmp_path}/{place}"


def test_automatic_hosts_are_no_path(write_config: WriteConfig) -> None:
    assert load_config(write_config()).config.hosts.hostfile == "auto"
    assert load_config(write_config(), overrides=["hosts.hostfile=auto"]).config.hosts.hostfile == "auto"


def test_files_that_are_missing_are_told_with_every_place(write_config: WriteConfig, tmp_path: Path) -> None:
    text = "vars:\n  W: none\nperf:\n  zzz: 1\n"
    path = write_config(text, name="configs/c.yaml", append=True)
    write_config("hosts:\n  hostfile: ${W}.hostfile\nckpt:\n  hf_config: ${W}.json\n", name="configs/sites/x.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(path, site="x", environ={})
    assert caught.value.problems == [
        "configs/c.yaml:22: perf.zzz = 1: unknown key; `python -m r1hpc.config explain perf` lists the keys of perf",
        f"configs/sites/x.yaml:2: hosts.hostfile = none.hostfile: no readable file; looked for "
        f"{tmp_path}/none.hostfile, {tmp_path}/configs/sites/none.hostfile, {tmp_path}/configs/none.hostfile",
        f"configs/sites/x.yaml:4: ckpt.hf_config = none.json: no readable file; looked for "
        f"{tmp_path}/configs/sites/none.json, {tmp_path}/none.json",
    ]


def test_a_closed_directory_is_told_and_not_a_traceback(write_config: WriteConfig, tmp_path: Path) -> None:
    path = write_config(name="closed/c.yaml")
    write_config("{}", name="closed/config.json")
    # Without capabilities root is stopped by file modes like anybody.
    command = [sys.executable, "-m", "r1hpc.config", "check"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    (tmp_path / "closed").chmod(0)
    try:
        for arguments, problem in (
            ([str(path), "--site", "x"], "--site x: no such site: there are no site files in closed/sites"),
            ([str(path)], "closed/c.yaml: cannot be read: Permission denied"),
            (
                [str(write_config()), "--set", "ckpt.hf_config=closed/config.json"],
                f"--set ckpt.hf_config=closed/config.json: no readable file; looked for {tmp_path}/closed/config.json",
            ),
        ):
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
            assert f"  {problem}\n" in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("run.root=''", "is empty: write a path"),
        ("ckpt.hf_checkpoint=' '", "is empty: write a path"),
        ("ckpt.ref_load=''", "is empty: write a path, or leave the key out"),
        ("ckpt.hf_config=''", "is empty: write a path, or leave the key out"),
        ("hosts.hostfile=''", "is empty: write a path, or leave the key out"),
        ("slurm.python=''", "is empty: write a path, or leave the key out"),
        ("rollout.prompt_data=''", "is empty: write a path"),
        ("run.root=$BASE_DIR/runs", "$BASE_DIR would stay as it is: write ${BASE_DIR}"),
        ("rollout.prompt_data=/d/$NAME.jsonl@[:5]", "$NAME would stay as it is: write ${NAME}"),
        ("ckpt.save=~nosuchuser/x", "there is no home directory for ~nosuchuser: write the path"),
        ("hosts.hostfile=~nosuchuser/x", "there is no home directory for ~nosuchuser: write the path"),
    ],
)
def test_what_is_no_path_is_told(write_config: WriteConfig, override: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), overrides=[override], environ={})
    assert caught.value.problems == [f"--set {override}: {rule}"]


def test_an_evaluation_set_without_a_path_is_told(write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config("eval:\n  eval_prompt_data: {aime: ''}\n", append=True), environ={})
    assert caught.value.problems == ['config.yaml:20: eval.eval_prompt_data.aime = "": is empty: write a path']


def test_an_empty_variable_is_told_once_where_it_stands_in_paths(write_config: WriteConfig) -> None:
    text = "vars:\n  BASE_DIR:\n  ROOT: ${BASE_DIR}/r\nslurm:\n  comment: a${BASE_DIR}b\n"
    path = write_config(text, append=True)
    assert load_config(path, environ={}).config.slurm.comment == "ab"
    for overrides, environ, problem in (
        (
            ["run.root=${ROOT}/runs", "ckpt.save=${BASE_DIR}/save"],
            {},
            "config.yaml:20: vars.BASE_DIR: is empty, and run.root = ${ROOT}/runs is a path: give it a value",
        ),
        (
            ["vars.BASE_DIR=", "slurm.python=${BASE_DIR}/bin/python"],
            {},
            "--set vars.BASE_DIR=: vars.BASE_DIR is empty, and slurm.python = ${BASE_DIR}/bin/python is a path: "
            "give it a value",
        ),
        (
            ["rollout.prompt_data=${DATA}/p.jsonl"],
            {"DATA": ""},
            "--set rollout.prompt_data=${DATA}/p.jsonl: DATA of the environment is empty, and "
            "rollout.prompt_data = ${DATA}/p.jsonl is a path: give it a value",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides=overrides, environ=environ)
        assert caught.value.problems == [problem]
