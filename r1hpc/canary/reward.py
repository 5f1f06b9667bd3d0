"""The canary's reward: whatever was answered, another number, so that every group has advantages."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

REWARD = f"{__name__}.spread"
"""For `rollout.custom_rm_path`."""


def spread(response: str, label: str | None, metadata: Mapping[str, Any]) -> float:
    """A number from 0 to 1 that depends on the response alone; equal responses have the same."""
    return zlib.crc32(response.encode()) / 0xFFFFFFFF
