"""F46: a bug in the relay ends one exchange, honestly, and nothing else.

No input is known to reach one, so a part is broken on purpose: the relay runs in the test's loop, everything around it is real.
"""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.forward import attempt, forwarder
from relay.gateway import planning
from relay.stream import EventRelay, OpaqueRelay, WholeRelay
from relay.transport.sink import ClientSink
from relay.transport.upstream import UpstreamPools
from tests.end_to_end.fault_bed import CLOSE_SECONDS
from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.fakes import events
from tests.fakes.relay import config_for
from tests.fakes.scripts import body, hang, sse
from tests.fakes.upstream import ScriptedUpstream

SECRET = "what the bug's message says"
START = [events.role(), events.content("Hel")]
BAD = events.content("BUG")
"""The event that a broken part stumbles over."""


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError(SECRET)


async def broken_call(*_: object, **__: object) -> Any:
    raise RuntimeError(SECRET)


def stumbling(method: Callable[..., Any], where: int) -> Callable[..., Any]:
    """The method, but for bytes with the bad event in them."""

    def call(*values: Any, **more: Any) -> Any:
        if BAD in values[where]:
            raise RuntimeError(SECRET)
        return method(*values, **more)

    return call


@pytest.fixture
async def relay(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[RelayInLoop]:
    """A relay that may write tracebacks; afterwards its books must balance, and it must serve."""
    upstream.route("good", sse(events.chat_stream("Hel", "lo")))
    async with relay_in_loop(config_for(upstream), tmp_path, is_quiet=False) as relay:
        yield relay
        await relay.assert_identities()


async def assert_bug(relay: RelayInLoop, monkeypatch: pytest.MonkeyPatch, *, status: int, results: list[str]) -> None:
    """One outcome, one stack trace, and the next request is served as if nothing had been."""
    (line,) = await relay.wait_log()
    assert (line["outcome"], line["error_code"], line["status"]) == ("internal_error", "internal_error", status)
    traces = relay.logs("internal_error")
    assert [trace["request_id"] for trace in traces] == [line["request_id"]]
    assert "RuntimeError" in traces[0]["exception"]
    metrics = await relay.settled()
    assert metrics.sum("relay_requests_total") == metrics.sum("relay_requests_total", outcome="internal_error") == 1
    assert sorted(dict(labels)["result"] for labels in metrics.nonzero("relay_upstream_attempts_total")) == results
    monkeypatch.undo()
    response = await relay.post("/v1/chat/completions", {"model": "good", "stream": True})
    assert (response.status, response.end, response.has_done) == (200, "complete", True)


@pytest.mark.parametrize(
    ("place", "name", "part", "results"),
    [
        (planning.Planner, "plan", broken, []),
        (UpstreamPools, "begin", broken_call, ["cancelled"]),
        (attempt.Attempting, "head", broken, ["cancelled"]),
        (EventRelay, "_commit", broken, ["cancelled"]),
        (ClientSink, "open", broken, ["cancelled"]),
        (forwarder, "_mark_failed", broken, ["cancelled"]),
    ],
    ids=["routing", "connecting", "head", "commit", "opening", "judging"],
)
async def test_f46_a_bug_before_the_commit_is_a_500(
    place: object, name: str, part: Any, results: list[str], relay: RelayInLoop, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.answers(sse(START, end="hang") if name != "_mark_failed" else body([], end="fin"))
    monkeypatch.setattr(place, name, part)
    response = await relay.post("/v1/chat/completions", {"model": "bad", "stream": True})
    assert (response.status, response.error_code, response.end) == (500, "internal_error", "complete")
    assert SECRET.encode() not in response.raw
    await assert_bug(relay, monkeypatch, status=500, results=results)
    for request in upstream.of("bad"):
        assert request.closed_how == "self" or await upstream.wait_closed(request, within=CLOSE_SECONDS) in ("fin", "rst")


@pytest.mark.parametrize(
    ("place", "name", "where"),
    [(EventRelay, "_pass", 1), (EventRelay, "_feed_early", 1)],
    ids=["relaying", "relaying-early"],
)
async def test_f46_a_bug_after_the_commit_is_a_cut(
    place: Any, name: str, where: int, relay: RelayInLoop, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = (
        START
        if name == "_pass"
        else [events.event({"object": "chat.completion.chunk", "choices": [{"index": 0, "logprobs": 1, "finish_reason": "x"}]})]
    )
    upstream.answers(sse([*start, BAD, events.DONE], pause=0.1, end="hang"))
    monkeypatch.setattr(place, name, stumbling(getattr(place, name), where))
    response = await relay.post("/v1/chat/completions", {"model": "bad", "stream": True})
    assert (response.status, response.end, response.body) == (200, "cut", b"".join(start))
    await assert_bug(relay, monkeypatch, status=200, results=["cancelled"])
    (request,) = upstream.of("bad")
    assert await upstream.wait_closed(request, within=CLOSE_SECONDS) in ("fin", "rst")


async def test_f46_a_bug_in_an_opaque_answer_is_a_cut(
    relay: RelayInLoop, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpaqueRelay, "_pass", stumbling(OpaqueRelay._pass, 1))
    upstream.answers(body([b"sound", BAD], headers=[("Content-Type", "audio/mpeg")], pause=0.1, end="hang"))
    response = await relay.post("/v1/audio/speech", {"model": "bad"})
    assert (response.status, response.end, response.body) == (200, "cut", b"sound")
    await assert_bug(relay, monkeypatch, status=200, results=["cancelled"])


async def test_f46_a_bug_in_a_json_answer_is_a_500(relay: RelayInLoop, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WholeRelay, "finish", broken)
    upstream.answers(body([b'{"id": "x"}']))
    response = await relay.post("/v1/chat/completions", {"model": "bad"})
    assert (response.status, response.error_code) == (500, "internal_error")
    await assert_bug(relay, monkeypatch, status=500, results=["cancelled"])


@pytest.mark.parametrize("name", ["_release", "_watch"])
async def test_f46_a_bug_in_a_timer_is_a_500(
    name: str, relay: RelayInLoop, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "HOLD_SECONDS", 0.1)
    monkeypatch.setattr(attempt.Attempting, name, broken)
    upstream.answers(sse([events.role()], end="hang") if name == "_release" else hang())
    response = await relay.post("/v1/chat/completions", {"model": "bad", "stream": True})
    assert (response.status, response.error_code) == (500, "internal_error")
    await assert_bug(relay, monkeypatch, status=500, results=["cancelled"])
