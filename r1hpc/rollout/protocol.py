"""What goes over the wire to an SGLang server and what must come back: requests, streamed replies, weight versions.

Why replies are streamed: SGLang does answer an aborted request with what it has so far, streamed or not, but an engine
that dies takes every unstreamed token with it, up to an hour of decoding a sample. So each request asks for a chunk
every `STREAM_INTERVAL` tokens. With --incremental-streaming-output a chunk holds only what is new, and streaming costs
what one whole reply costs: 30 bytes and 1 us a token here, 5 % of a core at 2,048 streams of 25 tokens/s. Without it
every chunk repeats the whole response: 12 us a token at 4k tokens, and eight times that at 32k, which is several cores;
only good enough for a rehearsal. Both forms are read, told apart by `completion_tokens`.
"""

from __future__ import annotations

import json
import uuid
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from r1hpc.errors import R1hpcError
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.types import FinishReason, Generation, VersionSpan

STREAM_INTERVAL = 128
"""Tokens between chunks: the most that a dying engine takes with it, of each sample."""

BOOT_VERSION = -1
"""Stands for "default", SGLang's version of weights that it booted from and nobody published."""

_EXCERPT = 200


class EngineReplyError(R1hpcError):
    """An engine's reply that is not what SGLang documents; says what and where."""


class EngineRefusal(R1hpcError):
    """An engine says that the request itself is wrong (status 400): asking again cannot help."""


class EngineBusy(R1hpcError):
    """An engine failed at or turned away a good request (status 500 or 503): asking again may help."""


@dataclass(frozen=True)
class Request:
    """One response wanted, or the rest of one."""

    prompt: NDArray[numpy.int32]
    """[P]"""
    params: SamplingParams
    request_id: str
    """For logs; the engine is given a unique id that ends with it."""
    begun: Generation | None = None
    """What earlier attempts generated; the engine goes on behind it and the answer includes it."""

    @property
    def tokens_left(self) -> int:
        """Tokens that may still be generated; 0 needs no engine."""
        return self.params.max_new_tokens - (0 if self.begun is None else len(self.begun.tokens))

    def so_far(self, finish_reason: FinishReason) -> Generation:
        """What `begun` holds, ended for `finish_reason`."""
        if self.begun is None:
            empty = numpy.empty(0)
            return Generation(empty.astype(numpy.int32), empty.astype(numpy.float32), finish_reason, ())
        return replace(self.begun, finish_reason=finish_reason)


def new_rid(request: Request) -> str:
    """An id for one attempt. SGLang aborts by prefix and refuses ids in use, so each begins with its own 16 digits."""
    return f"{uuid.uuid4().hex[:16]}-{request.request_id}"


def request_body(request: Request, rid: str, attention_rank: int | None = None) -> dict[str, Any]:
    """The JSON of POST /generate: tokens in, tokens and log-probs out.

    attention_rank: the data-parallel attention rank that takes it; null leaves that to the engine.

    `logprob_start_len` -1 asks for none of the prompt's log-probs, which also keeps the prefix cache usable.
    """
    begun = [] if request.begun is None else request.begun.tokens.tolist()
    params = replace(request.params, max_new_tokens=request.tokens_left).payload()
    return {
        "rid": rid,
        "input_ids": request.prompt.tolist() + begun,
        "sampling_params": params | {"stream_interval": STREAM_INTERVAL},
        "return_logprob": True,
        "logprob_start_len": -1,
        "return_text_in_logprobs": False,
        "stream": True,
    } | ({} if attention_rank is None else {"routed_dp_rank": attention_rank})


def events(buffer: bytearray) -> Iterator[bytes]:
    """The data of each complete server-sent event at the front of `buffer`, taken out of it."""
    while (end := buffer.find(b"\n\n")) >= 0:
        line = bytes(buffer[:end]).strip()
        del buffer[: end + 2]
        if line.startswith(b"data:"):
            yield line[5:].strip()


class Response:
    """A response while it comes in. What has arrived can be taken at any time, also after a failure.

    Tokens and log-probs are kept as plain arrays, 8 bytes a token: a thousand responses of 32k tokens are 270 MB.
    """

    def __init__(self, request: Request, engine: str) -> None:
        self.request = request
        self.finish_reason: FinishReason | None = None
        """None while more is to come."""
        self._engine = engine
        self._tokens = array("i")
        self._logprobs = array("f")
        self._spans: list[VersionSpan] = []

    def __len__(self) -> int:
        """Tokens that this attempt has brought."""
        return len(self._tokens)

    @property
    def versions(self) -> set[int]:
        """Weight versions that generated what this attempt has brought."""
        return {span.version for span in self._spans}

    def generation(self, finish_reason: FinishReason) -> Generation:
        """All tokens so far, those of earlier attempts first."""
        begun = self.request.so_far(finish_reason)
        return Generation(
            tokens=numpy.concatenate([begun.tokens, numpy.frombuffer(self._tokens, numpy.int32)]),
            logprobs=numpy.concatenate([begun.logprobs, numpy.frombuffer(self._logprobs, numpy.float32)]),
            finish_reason=finish_reason,
            versions=join_spans(begun.versions, self._spans),
        )

    def add(self, event: bytes) -> None:
        """Take one event of the stream. Raises EngineReplyError, EngineRefusal or EngineBusy."""
        try:
            reply = json.loads(event)
        except ValueError as error:
            raise self._malformed(f"not JSON: {_excerpt(event)}") from error
        if isinstance(reply, dict) and "error" in reply:
            raise status_error(self._engine, self.request.request_id, *_error_of(reply))
        meta = _field(reply, "meta_info", dict, self._malformed)
        finish = self._finish(meta)
        rows = self._new_rows(_field(meta, "output_token_logprobs", list, self._malformed), meta)
        tokens, logprobs = self._read_rows(rows)
        # Nothing is kept of an event before all of it was found good.
        self._spans = self._new_spans(meta, len(self._tokens) + len(tokens))
        self._tokens.extend(tokens)
        self._logprobs.extend(logprobs)
        self.finish_reason = finish

    def _new_rows(self, rows: list[Any], meta: dict[str, Any]) -> list[Any]:
        total = _field(meta, "completion_tokens", int, self._malformed)
        have = len(self._tokens)
        if have + len(rows) != total:
            # A chunk that repeats the whole response. An abort in the engine's queue does so even where chunks are
            # incremental, and may then come glued to the last increment: its own part is the end.
            if not have <= total <= len(rows):
                raise self._malformed(
                    f"{have} tokens before + {len(rows)} in meta_info.output_token_logprobs != "
                    f"{total} in meta_info.completion_tokens"
                )
            rows = rows[len(rows) - total :]
            if have and self._read_rows(rows[have - 1 : have])[0][0] != self._tokens[-1]:
                raise self._malformed(f"token {have - 1} was {self._tokens[-1]} and is {_excerpt(rows[have - 1])} now")
            rows = rows[have:]
        if total > self.request.tokens_left:
            raise self._malformed(f"{total} tokens where {self.request.tokens_left} were asked for")
        return rows

    def _read_rows(self, rows: list[Any]) -> tuple[array[int], array[float]]:
        tokens, logprobs = array("i"), array("f")
        for place, row in enumerate(rows):
            match row:
                # Not above 0, but for rounding. The bounds are also False for NaN.
                case [float() | int() as logprob, int() as token, *_] if (
                    0 <= token < 2**31 and float("-inf") < logprob <= 1e-3
                ):
                    tokens.append(token)
                    logprobs.append(logprob)
                case _:
                    where = f"meta_info.output_token_logprobs, {place} behind token {len(self._tokens)},"
                    raise self._malformed(f"{where} is {_excerpt(row)}, not [log-prob <= 0, token id, text or null]")
        return tokens, logprobs

    def _new_spans(self, meta: dict[str, Any], total: int) -> list[VersionSpan]:
        if (spans := meta.get("weight_versions")) is not None:
            return self._read_spans(spans, total)
        if total == len(self._tokens):
            return self._spans
        version = self._version(meta.get("weight_version"), "meta_info.weight_version")
        return list(join_spans(self._spans, [VersionSpan(version, 0, total - len(self._tokens))]))

    def _read_spans(self, spans: Any, total: int) -> list[VersionSpan]:
        read: list[VersionSpan] = []
        if isinstance(spans, list):
            for span in spans:
                match span:
                    case {"version": version, "start": int() as begin, "end": int() as end}:
                        read.append(VersionSpan(self._version(version, "meta_info.weight_versions"), begin, end))
        read = [span for span in read if span.end > span.begin]
        ends = [0, *(span.end for span in read)]
        if [span.begin for span in read] != ends[:-1] or ends[-1] != total:
            raise self._malformed(f"meta_info.weight_versions {_excerpt(spans)} do not fill 0 to {total} in order")
        return read

    def _version(self, value: Any, where: str) -> int:
        if value == "default":
            return BOOT_VERSION
        try:
            return int(str(value))
        except ValueError:
            raise self._malformed(f"{where} is {_excerpt(value)}, not a whole number") from None

    def _finish(self, meta: dict[str, Any]) -> FinishReason | None:
        match meta.get("finish_reason"):
            case None:
                return None
            case {"type": "stop"}:
                return "stop"
            case {"type": "length"}:
                return "length"
            case {"type": "abort", "status_code": int() as status, **rest}:
                raise status_error(self._engine, self.request.request_id, status, str(rest.get("message")))
            case {"type": "abort"}:
                return "abort"
            case other:
                raise self._malformed(f"meta_info.finish_reason is {_excerpt(other)}, not a stop, length or abort")

    def _malformed(self, what: str) -> EngineReplyError:
        return EngineReplyError(f"{self._engine}: malformed reply to {self.request.request_id}: {what}")


def join_spans(first: Sequence[VersionSpan], then: Sequence[VersionSpan]) -> tuple[VersionSpan, ...]:
    """Spans of one response behind those of another; neighbours of one version become one."""
    joined = list(first)
    offset = joined[-1].end if joined else 0
    for span in then:
        moved = VersionSpan(span.version, span.begin + offset, span.end + offset)
        if joined and joined[-1].version == moved.version:
            joined[-1] = VersionSpan(moved.version, joined[-1].begin, moved.end)
        else:
            joined.append(moved)
    return tuple(joined)


def status_error(engine: str, what: str, status: int, message: str) -> R1hpcError:
    """The error for a reply with an HTTP status that is not 200."""
    kind = EngineRefusal if 400 <= status < 500 and status not in (408, 429) else EngineBusy
    return kind(f"{engine}: {what}: status {status}: {message}")


def _error_of(reply: dict[str, Any]) -> tuple[int, str]:
    match reply["error"]:
        case {"message": message, "code": int() as status}:
            return status, str(message)
        case other:
            return 400, _excerpt(other)


def _field(reply: Any, name: str, kind: type, malformed: Any) -> Any:
    if not isinstance(reply, dict):
        raise malformed(f"{_excerpt(reply)} where an object with {name} should be")
    value = reply.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise malformed(f"{name} is {_excerpt(value)} where {kind.__name__} should be")
    return value


def _excerpt(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else repr(value)
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}... ({len(text):,} characters)"
