"""How tokens are drawn, as SGLang takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SamplingParams:
    """One request's sampling; -1 and 1 are SGLang's words for an unlimited top_k and top_p."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    """Of the whole response: a response that goes on is asked for what is left of them."""
    stop_token_ids: tuple[int, ...] = ()
    """Besides the end tokens that the checkpoint names."""

    def payload(self) -> dict[str, Any]:
        """SGLang's `sampling_params`: the end token stays in the response, and no text is cleaned."""
        params: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
            "no_stop_trim": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        if self.stop_token_ids:
            params["stop_token_ids"] = list(self.stop_token_ids)
        return params
