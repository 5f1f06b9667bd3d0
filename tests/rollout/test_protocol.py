"""Requests as SGLang takes them; replies held to the letter, and what is kept of those that fail."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest

from r1hpc.rollout.protocol import (
    BOOT_VERSION,
    EngineBusy,
    EngineRefusal,
    EngineReplyError,
    Request,
    Response,
    events,
    join_spans,
    new_rid,
    request_body,
)
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.types import Generation, VersionSpan

PARAMS = SamplingParams(temperature=0.8, top_p=1.0, top_k=-1, max_new_tokens=6)
PROMPT = numpy.array([5, 6, 7], numpy.int32)


def begun(*tokens: int, version: int = 3) -> Generation:
    return Generation(
        numpy.array(tokens, numpy.int32),
        numpy.full(len(tokens), -0.25, numpy.float32),
        "abort",
        (VersionSpan(version, 0, len(tokens)),),
    )


def event(
    rows: list[Any], total: int, finish: dict[str, Any] | None = None, version: object = "3", **meta: Any
) -> bytes:
    known = {"output_token_logprobs": rows, "completion_tokens": total, "finish_reason": finish}
    return json.dumps({"output_ids": [], "meta_info": known | {"weight_version": version} | meta}).encode()


def rows(*tokens: int) -> list[list[Any]]:
    return [[-token / 8, token, None] for token in tokens]


def response(request: Request | None = None) -> Response:
    return Response(request or Request(PROMPT, PARAMS, "r7"), "engine0")


def test_a_request_keeps_the_end_token_and_asks_for_the_logprobs_of_the_response_alone() -> None:
    body = request_body(Request(PROMPT, PARAMS, "r7"), "abc-r7")
    assert body == {
        "rid": "abc-r7",
        "input_ids": [5, 6, 7],
        "sampling_params": {
            "temperature": 0.8,
            "top_p": 1.0,
            "top_k": -1,
            "max_new_tokens": 6,
            "no_stop_trim": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "stream_interval": 128,
        },
        "return_logprob": True,
        "logprob_start_len": -1,
        "return_text_in_logprobs": False,
        "stream": True,
    }


def test_stop_tokens_are_sent_where_there_are_some() -> None:
    assert SamplingParams(1.0, 1.0, -1, 6, (9, 11)).payload()["stop_token_ids"] == [9, 11]


def test_what_was_begun_is_sent_behind_the_prompt_and_counts_against_the_limit() -> None:
    body = request_body(Request(PROMPT, PARAMS, "r7", begun(20, 21)), "x")
    assert body["input_ids"] == [5, 6, 7, 20, 21]
    assert body["sampling_params"]["max_new_tokens"] == 4


def test_no_id_is_a_prefix_of_another() -> None:
    ids = {new_rid(Request(PROMPT, PARAMS, name)) for name in ("g1", "g1", "g12", "")}
    assert len(ids) == 4
    assert not [(a, b) for a in ids for b in ids if a != b and b.startswith(a)]


def test_events_are_cut_wherever_the_network_cuts_them() -> None:
    stream = b'data: {"a": 1}\n\n: a comment\n\ndata:{"b": 2}\n\ndata: [DONE]\n\n'
    for size in (1, 2, 3, 7, len(stream)):
        buffer = bytearray()
        seen: list[bytes] = []
        for begin in range(0, len(stream), size):
            buffer += stream[begin : begin + size]
            seen += events(buffer)
        assert seen == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]
        assert not buffer


def test_increments_are_joined() -> None:
    r = response()
    r.add(event(rows(8), 1))
    r.add(event(rows(16, 24), 3))
    assert r.finish_reason is None
    r.add(event(rows(2), 4, {"type": "stop", "matched": 2}, weight_versions=[{"version": "3", "start": 0, "end": 4}]))
    assert r.finish_reason == "stop"
    whole = r.generation("stop")
    assert whole.tokens.tolist() == [8, 16, 24, 2]
    assert whole.tokens.dtype == numpy.int32
    assert whole.logprobs.tolist() == [-1.0, -2.0, -3.0, -0.25]
    assert whole.logprobs.dtype == numpy.float32
    assert whole.versions == (VersionSpan(3, 0, 4),)


def test_chunks_that_repeat_the_whole_response_count_once() -> None:
    r = response()
    r.add(event(rows(8), 1))
    r.add(event(rows(8, 16, 24), 3))
    r.add(event(rows(8, 16, 24, 2), 4, {"type": "length"}))
    assert r.generation("length").tokens.tolist() == [8, 16, 24, 2]


def test_an_abort_in_the_engines_queue_repeats_the_response_also_where_chunks_are_increments() -> None:
    # SGLang's answer for a retracted request: whole list of log-probs, glued to an increment that was not yet read.
    r = response()
    r.add(event(rows(8), 1))
    r.add(event([*rows(16), *rows(8, 16)], 2, {"type": "abort", "message": "Abort in waiting queue"}))
    assert r.finish_reason == "abort"
    assert r.generation("abort").tokens.tolist() == [8, 16]


def test_an_abort_before_the_first_token_is_an_empty_response() -> None:
    r = response()
    r.add(event([], 0, {"type": "abort", "message": "Abort in waiting queue"}))
    empty = r.generation("abort")
    assert empty.tokens.tolist() == []
    assert empty.versions == ()
    assert empty.tokens.dtype == numpy.int32


def test_a_continued_response_holds_the_beginning_with_its_own_logprobs_and_version() -> None:
    r = response(Request(PROMPT, PARAMS, "r7", begun(20, 21)))
    r.add(event(rows(8), 1, version="4"))
    r.add(event(rows(16), 2, {"type": "stop"}, version="4"))
    whole = r.generation("stop")
    assert whole.tokens.tolist() == [20, 21, 8, 16]
    assert whole.logprobs.tolist() == [-0.25, -0.25, -1.0, -2.0]
    assert whole.versions == (VersionSpan(3, 0, 2), VersionSpan(4, 2, 4))


def test_spans_of_one_version_become_one() -> None:
    joined = join_spans([VersionSpan(3, 0, 2)], [VersionSpan(3, 0, 1), VersionSpan(5, 1, 4)])
    assert joined == (VersionSpan(3, 0, 3), VersionSpan(5, 3, 6))


def test_versions_change_within_a_response_as_the_engine_says_at_its_end() -> None:
    r = response()
    r.add(event(rows(8, 16), 2, version="3"))
    spans = [{"version": "3", "start": 0, "end": 1}, {"version": "4", "start": 1, "end": 3}]
    r.add(event(rows(24), 3, {"type": "stop"}, version="4", weight_versions=spans))
    assert r.generation("stop").versions == (VersionSpan(3, 0, 1), VersionSpan(4, 1, 3))


def test_weights_that_were_never_published_have_a_version_of_their_own() -> None:
    r = response()
    r.add(event(rows(8), 1, version="default"))
    assert r.versions == {BOOT_VERSION}


BAD = [
    (b"{not json", "not JSON: {not json"),
    (b"[1, 2]", "[1, 2] where an object with meta_info should be"),
    (b'{"meta_info": null}', "meta_info is None where dict should be"),
    (event([], 0).replace(b'"output_token_logprobs": [], ', b""), "output_token_logprobs is None where list"),
    (event(rows(8), 3), "0 tokens before + 1 in meta_info.output_token_logprobs != 3 in meta_info.completion_tokens"),
    (event([[None, 8, None]], 1), "0 behind token 0, is [None, 8, None], not [log-prob <= 0, token id"),
    (event([[-1.0, "8", None]], 1), "is [-1.0, '8', None]"),
    (event([[-1.0, -8, None]], 1), "is [-1.0, -8, None]"),
    (event([[0.5, 8, None]], 1), "is [0.5, 8, None]"),
    (event([[float("nan"), 8, None]], 1), "is [nan, 8, None]"),
    (event([*rows(8), [float("-inf"), 8, None]], 2), "1 behind token 0, is [-inf, 8, None]"),
    (event(rows(*range(7)), 7), "7 tokens where 6 were asked for"),
    (event(rows(8), 1, version="abc"), "meta_info.weight_version is 'abc', not a whole number"),
    (event(rows(8), 1, version=None), "meta_info.weight_version is None"),
    (event(rows(8), 1, {"type": "eof"}), "finish_reason is {'type': 'eof'}"),
    (event(rows(8), True), "completion_tokens is True where int should be"),
    (
        event(rows(8, 16), 2, {"type": "stop"}, weight_versions=[{"version": "3", "start": 0, "end": 1}]),
        "do not fill 0 to 2 in order",
    ),
]


@pytest.mark.parametrize(("bad", "says"), BAD, ids=[says[:40] for _, says in BAD])
def test_a_malformed_reply_says_what_and_where_and_leaves_the_response_as_it_was(bad: bytes, says: str) -> None:
    r = response()
    with pytest.raises(EngineReplyError) as caught:
        r.add(bad)
    assert says in str(caught.value)
    assert str(caught.value).startswith("engine0: malformed reply to r7: ")
    assert (len(r), r.finish_reason, r.versions) == (0, None, set())


def test_what_came_before_a_malformed_chunk_is_kept() -> None:
    r = response()
    r.add(event(rows(8, 16), 2))
    with pytest.raises(EngineReplyError):
        r.add(event([[-1.0, 24, None], ["x"]], 4))
    kept = r.generation("abort")
    assert kept.tokens.tolist() == [8, 16]
    assert kept.versions == (VersionSpan(3, 0, 2),)


def test_a_repeated_response_that_differs_is_refused() -> None:
    r = response()
    r.add(event(rows(8, 16), 2))
    with pytest.raises(EngineReplyError, match=r"token 1 was 16 and is \[-3.0, 24, None\] now"):
        r.add(event(rows(8, 24, 32), 3))


@pytest.mark.parametrize(("status", "kind"), [(400, EngineRefusal), (503, EngineBusy), (500, EngineBusy)])
def test_an_abort_with_a_status_is_an_error_of_that_status(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"engine0: r7: status {status}: too long"):
        response().add(event([], 0, {"type": "abort", "status_code": status, "message": "too long"}))


def test_an_error_within_the_stream_is_raised() -> None:
    with pytest.raises(EngineRefusal, match="status 400: Duplicate request ID"):
        response().add(b'{"error": {"message": "Duplicate request ID", "code": 400}}')


def test_a_long_reply_is_not_printed_whole() -> None:
    with pytest.raises(EngineReplyError) as caught:
        response().add(b"x" * 100_000)
    assert len(str(caught.value)) < 400
    assert "(100,000 characters)" in str(caught.value)


def test_a_response_of_32k_tokens_takes_8_bytes_a_token() -> None:
    import tracemalloc

    r = response(Request(PROMPT, SamplingParams(1.0, 1.0, -1, 32_768), "r7"))
    tracemalloc.start()
    for begin in range(0, 32_768, 128):
        r.add(event(rows(*range(begin, begin + 128)), begin + 128))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 * 32_768 <= held < 8 * 32_768 * 1.3
