"""A small valid configuration that tests write into a directory of their own and vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = """\
run:
  name: small
  root: /runs
hosts:
  num_nodes: 2
  gpus_per_node: 8
  host_memory_gib: 100
ckpt:
  hf_checkpoint: /models/hf
  ref_load: /models/ref
rollout:
  prompt_data: /data/prompts.jsonl
  label_key: label
  rm_type: deepscaler
  num_rollout: 10
  rollout_batch_size: 4
  n_samples_per_prompt: 8
  rollout_max_response_len: 64
"""

WriteConfig = Callable[..., Path]
"""write_config(text, name="config.yaml") -> path; the text replaces SMALL, or follows it with append=True."""


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteConfig:
    """Write a configuration into the test's own directory, which becomes the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = SMALL, name: str = "config.yaml", append: bool = False) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SMALL + text if append else text, encoding="utf-8")
        return path

    return write
