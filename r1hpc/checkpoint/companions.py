"""What a Hugging Face checkpoint holds besides its weights: configuration, tokenizer, chat template, code, index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.hf_checkpoint import CONFIG, INDEX, MANIFEST
from r1hpc.publish import publish_json, publish_text, publishing

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def copy_companions(source: Path, target: Path, beside: Path | None = None) -> None:
    """Copy every file beside the weights: tokenizer, template, generation settings, code, licence.

    The configuration, the index and the manifest speak of the weights; whoever writes those writes them too.
    beside: directory of the temporary files, here and below; null means `target`.
    """
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.suffix not in _WEIGHTS:
            if file.name in (CONFIG, INDEX, MANIFEST):
                continue
            with open(file, "rb") as original, publishing(target / file.name, beside) as copy:
                shutil.copyfileobj(original, copy)


def publish_config(config: Mapping[str, Any], target: Path, *, quantized: bool, beside: Path | None = None) -> None:
    """Write config.json; without `quantized` it names no quantization, which loaders would apply to bf16 weights."""
    kept = {key: value for key, value in config.items() if quantized or key != "quantization_config"}
    publish_text(target / CONFIG, json.dumps(kept, indent=2, ensure_ascii=False) + "\n", beside)


def publish_index(target: Path, weight_map: Mapping[str, str], total_bytes: int, beside: Path | None = None) -> None:
    """Write the index, which makes the checkpoint one: last of all."""
    publish_json(target / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}, beside)
