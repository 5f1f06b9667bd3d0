"""Finds the file of a site: --site NAME is sites/NAME.yaml beside the configuration, or a path."""

from __future__ import annotations

import os
from pathlib import Path

from r1hpc.config.nearest import nearest
from r1hpc.config.source import Origin, Problem


def find_site(site: str, config_path: Path) -> tuple[Path | None, list[Problem]]:
    """The file that `site` means, or None and why there is none."""
    if "/" in site or site.endswith((".yaml", ".yml")):
        return Path(site), []  # reading it says whether it is there
    folder = config_path.parent / "sites"
    available = _names(folder)
    if site in available:
        return folder / f"{site}.yaml", []
    close = nearest(site, available)
    known = f"{folder} has {', '.join(available)}" if available else f"there are no site files in {folder}"
    hint = f"; did you mean {close}?" if close else ""
    return None, [Problem(Origin(f"--site {site}"), f"no such site: {known}{hint}")]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name.removesuffix(".yaml") for name in os.listdir(folder) if name.endswith(".yaml"))
    except OSError:  # absent, or closed to this user
        return []
