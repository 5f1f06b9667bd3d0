"""What the installed SGLang can do, by its version: the one place that knows how 0.5.17 to 0.5.23 differ."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from r1hpc.errors import R1hpcError

Release = tuple[int, int, int]

OLDEST: Release = (0, 5, 17)
"""Older ones name arguments and endpoints otherwise."""
NEWEST: Release = (0, 5, 23)
"""The newest whose source was read."""

_READY_SINCE: Release = (0, 5, 20)
_BRACKETED_UPDATE_SINCE: Release = (0, 5, 21)
_WEIGHT_VERSION_BEFORE: Release = (0, 5, 21)
_ATTN_DP_SIZE_SINCE: Release = (0, 5, 22)


class UnsupportedSglang(R1hpcError):
    """SGLang is missing, or of a version that r1hpc does not know how to start."""


@dataclass(frozen=True)
class Capabilities:
    """How one version of SGLang is started and spoken to."""

    version: str
    bracketed_update: bool
    """Weights are taken only between POST /begin_weight_update and POST /end_weight_update (from 0.5.21)."""
    ready: bool
    """GET /ready (from 0.5.20)."""
    get_weight_version: bool
    """GET /get_weight_version (up to 0.5.20); /model_info says it in every version."""
    attn_dp_size: bool
    """--attn-dp-size D in place of --dp-size D --enable-dp-attention (from 0.5.22, which calls those deprecated)."""
    notice: str | None = None
    """What to tell the user: this version is newer than those that were read."""


def installed_capabilities() -> Capabilities:
    """The capabilities of the installed SGLang, from its metadata: nothing of it is imported.

    Raises UnsupportedSglang where it is not installed, too old or of no readable version.
    """
    try:
        return capabilities(version("sglang"))
    except PackageNotFoundError:
        raise UnsupportedSglang(
            f"SGLang is not installed in this environment; the rollout needs {_text(OLDEST)} to {_text(NEWEST)}: "
            "pip install 'r1hpc[gpu]', or the CPU environment of the rehearsal"
        ) from None


def capabilities(text: str) -> Capabilities:
    """The capabilities of the version `text`. Raises UnsupportedSglang."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise UnsupportedSglang(f"SGLang {text}: cannot tell which release this is; install one of {_span()}")
    release = (int(match[1]), int(match[2]), int(match[3]))
    if release < OLDEST:
        raise UnsupportedSglang(f"SGLang {text} is older than {_text(OLDEST)}; install one of {_span()}")
    return Capabilities(
        version=text,
        bracketed_update=release >= _BRACKETED_UPDATE_SINCE,
        ready=release >= _READY_SINCE,
        get_weight_version=release < _WEIGHT_VERSION_BEFORE,
        attn_dp_size=release >= _ATTN_DP_SIZE_SINCE,
        notice=_newer(text) if release > NEWEST else None,
    )


def _newer(text: str) -> str:
    return f"SGLang {text} is newer than {_text(NEWEST)}, the newest that r1hpc knows: it is taken to be like that one"


def _span() -> str:
    return f"{_text(OLDEST)} to {_text(NEWEST)}"


def _text(release: Release) -> str:
    return ".".join(map(str, release))
