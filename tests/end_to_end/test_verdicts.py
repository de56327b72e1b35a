"""What each failure means, told by the bodies that vendors send: whether the next target answers, and who rests afterwards."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Literal

import pytest

from relay.policy.breaker import CONSECUTIVE_FAILURES
from tests.end_to_end.in_loop import RelayInLoop, relay_in_loop
from tests.end_to_end.two_targets import CHAT, at_rest
from tests.fakes import events
from tests.fakes.client import Response
from tests.fakes.scripts import Script, error_answer, json_answer, respond, sse
from tests.fakes.upstream import Peer, ScriptedUpstream
from tests.policy.recorded import REFUSED

WELL: Final = events.chat_stream("from", " the second")
WELL_WHOLE: Final = {"id": "x", "object": "chat.completion", "choices": [{"message": {"content": "from the second"}}]}
LATER: Final = (("Retry-After", "30"),)
MODEL_404: Final = {"error": {"message": "model 'm' not found", "type": "api_error", "param": None, "code": None}}

CALLERS: Final = (
    ("invalid", None, "invalid_request_error"),
    ("context", "context_length_exceeded", "invalid_request_error"),
    ("policy", "content_filter", None),
    ("number", 400, "BadRequestError"),
    ("message", None, None),
)
"""What a caller's own mistake is called within a 200: name, code, type."""

Rests = Literal["nobody", "target", "target at once", "credential"]
"""Who rests: nobody after five such failures; the target after five, or after one; all that the credential is good for after one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to fail, and what is made of it."""

    name: str
    script: Script
    rests: Rests
    result: str
    passes: int | None = None
    """The status that the caller gets at once; None where the next target answers."""
    is_stream: bool = True
    vendor: str | None = None
    fallback_on: tuple[str, ...] = ()
    is_wildcard: bool = False
    """Whether the caller chose the model's name."""


def in_a_200(code: str | int | None, type_: str | None) -> dict[str, Script]:
    """A caller's own mistake that an upstream tells after it has said 200, as a stream and not."""
    told = {"error": {"message": "This model's maximum context length is 8192 tokens.", "type": type_, "code": code}}
    return {"stream": sse([events.role(), events.event(told)], end="hang"), "json": json_answer(told)}


def recorded(file: str, rests: Rests, result: str, **more: Any) -> Row:
    """A refusal in a vendor's own words."""
    told = REFUSED[f"{file}.json"]
    headers = LATER if told["status"] == 429 else ()
    script = respond(told["status"], [("Content-Type", "application/json"), *headers], json.dumps(told["body"]).encode())
    return Row(**{"name": file, "script": script, "rests": rests, "result": result, "vendor": file.split("-")[0], **more})


def rows() -> list[Row]:
    """The table."""
    in_stream = {"id": "x", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}
    provider = {"code": 502, "message": "Provider disconnected"}
    created = events.event({"type": "response.created", "response": {"id": "r"}}, name="response.created")
    long = "openai-400-context-length"
    return [
        recorded("openai-401", "credential", "http_401"),
        recorded("deepseek-402", "credential", "http_402"),
        recorded("openrouter-402", "credential", "http_402"),
        recorded("xai-403", "target at once", "http_403"),
        recorded("openai-429-insufficient-quota", "credential", "http_429"),
        recorded("openai-429-rate-limit", "target at once", "http_429"),
        recorded("dashscope-compat-429-limit-requests", "target at once", "http_429"),
        recorded("dashscope-compat-429-burst", "target at once", "http_429"),
        recorded("dashscope-compat-429-insufficient-quota-tpm", "target at once", "http_429"),
        recorded("dashscope-compat-400-arrearage", "credential", "http_4xx"),
        recorded("ollama-v1-404", "nobody", "http_4xx"),
        recorded("ollama-v1-404", "nobody", "http_4xx", name="ollama-404-chosen-by-the-caller", passes=404, is_wildcard=True),
        Row(name="ollama-404-of-its-own", script=json_answer(MODEL_404, 404), rests="nobody", result="http_4xx"),
        Row(name="408", script=error_answer(408), rests="nobody", result="http_4xx"),
        Row(name="409", script=error_answer(409), rests="nobody", result="http_4xx"),
        Row(name="500", script=error_answer(500), rests="target", result="http_5xx"),
        Row(name="503", script=error_answer(503), rests="target", result="http_5xx"),
        recorded("anthropic-529", "target", "http_5xx"),
        Row(name="redirect", script=respond(307, [("Location", "http://x/")]), rests="target", result="redirect"),
        Row(name="html", script=respond(200, [("Content-Type", "text/html")], b"<html>"), rests="target", result="protocol_error"),
        Row(name="empty", script=respond(200), rests="target", result="empty", is_stream=False),
        Row(name="empty-stream", script=sse([]), rests="target", result="empty"),
        Row(name="role-then-silence", script=sse([events.role()], end="hang"), rests="target", result="timeout_first_token"),
        Row(name="role-then-end", script=sse([events.role()], end="fin"), rests="target", result="stream_broken"),
        Row(name="error-first", script=sse([events.error()], end="hang"), rests="target", result="error_event"),
        Row(name="error-after-role", script=sse([events.role(), events.error()]), rests="target", result="error_event"),
        Row(name="error-after-created", script=sse([created, events.error()]), rests="target", result="error_event"),
        Row(name="openrouter-finish", script=sse([events.event({**in_stream, "error": provider})]), rests="target", result="error_event"),
        Row(name="openrouter-finish-alone", script=sse([events.event(in_stream)]), rests="target", result="error_event"),
        Row(name="openrouter-200", script=json_answer({"error": provider}), rests="target", result="error_event", is_stream=False),
        Row(
            name="our-credential-in-an-event",
            script=sse([events.error("invalid_api_key", type="authentication_error")]),
            rests="credential",
            result="error_event",
        ),
        *(
            Row(name=f"{kind}-in-200-{name}", script=script, rests="nobody", result="error_event", passes=400, is_stream=kind == "stream")
            for name, code, type_ in CALLERS
            for kind, script in in_a_200(code, type_).items()
        ),
        Row(
            name="context-in-200-asked",
            script=sse([events.error("context_length_exceeded", type="invalid_request_error")]),
            rests="nobody",
            result="error_event",
            fallback_on=("context_length",),
        ),
        recorded(long, "nobody", "http_4xx", passes=400),
        recorded(long, "nobody", "http_4xx", name="context-asked", fallback_on=("context_length",)),
        recorded(long, "nobody", "http_4xx", name="context-not-asked", fallback_on=("content_policy",), passes=400),
        recorded("together-403-context", "nobody", "http_403", fallback_on=("context_length",)),
        recorded("dashscope-compat-400-inspection", "nobody", "http_4xx", passes=400),
        recorded("dashscope-compat-400-inspection", "nobody", "http_4xx", name="policy-asked", fallback_on=("content_policy",)),
        recorded("openai-400-invalid-param", "nobody", "http_4xx", passes=400, fallback_on=("context_length", "content_policy")),
        Row(name="413", script=error_answer(413), rests="nobody", result="http_4xx", passes=413),
        Row(name="422", script=error_answer(422), rests="nobody", result="http_4xx", passes=422),
    ]


ROWS: Final = rows()


@pytest.fixture(scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayInLoop]:
    """A relay with an upstream and a route for each row."""

    async def well(peer: Peer) -> None:
        await (sse(WELL) if peer.request.json()["stream"] else json_answer(WELL_WHOLE))(peer)

    async with ScriptedUpstream() as bad, ScriptedUpstream() as good:
        good.answers(well)
        upstreams: dict[str, Any] = {"good": {"base_url": good.url, "api_key": "sk-good"}}
        routes: dict[str, Any] = {}
        for row in ROWS:
            bad.route(model_of(row), row.script)
            vendor = {"vendor": row.vendor} if row.vendor is not None else {}
            upstreams[row.name] = {"base_url": bad.url, "api_key": f"sk-{row.name}", **vendor}
            name = f"{row.name}-*" if row.is_wildcard else row.name
            routes[name] = {"to": [f"{row.name}/{name}", f"good/{name}"], "fallback_on": list(row.fallback_on), "retries": 0}
        told = {"upstreams": upstreams, "routes": routes, "timeouts": {"first_token": "300ms"}, "metrics": {"label_values": 200}}
        async with relay_in_loop(told, tmp_path_factory.mktemp("verdicts")) as relay:
            yield relay
            await at_rest(relay)


def model_of(row: Row) -> str:
    """The name that is asked for."""
    return f"{row.name}-mine" if row.is_wildcard else row.name


def resting(relay: RelayInLoop, row: Row) -> Rests | None:
    """Who rests now."""
    targets = relay.app._targets
    states = {standing.name: standing.health.value for standing in targets.standings(monotonic())}
    (state,) = {state for name, state in states.items() if name.startswith(f"{row.name}/")}
    if targets.credentials(monotonic())[row.name]["cooling"]:
        return "credential"
    return "target" if state == "cooling" else None


async def ask(relay: RelayInLoop, row: Row) -> Response:
    """Ask for the row's route."""
    return await relay.post(CHAT, {"model": model_of(row), "messages": [], "stream": row.is_stream})


def check(row: Row, response: Response) -> None:
    """What the caller gets: the second target's answer, or the refusal as it came."""
    assert response.end == "complete"
    if row.passes is not None:
        assert (response.status, response.error_code is not None or b'"error"' in response.body) == (row.passes, True)
        if response.header("x-relay-error") is None:
            assert (response.header("x-relay-upstream"), response.header("x-relay-attempts")) == (row.name.encode(), b"1")
        return
    assert response.status == 200 and response.header("x-relay-upstream") == b"good"
    assert response.body == (b"".join(WELL) if row.is_stream else json.dumps(WELL_WHOLE).encode())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_failure_means_what_the_table_says(row: Row, relay: RelayInLoop) -> None:
    check(row, await ask(relay, row))
    (line,) = await relay.wait_log(route=f"{row.name}-*" if row.is_wildcard else row.name)
    assert line["outcome"] == ("rejected" if row.passes is not None else "complete")
    first = {"target at once": "target", "credential": "credential"}.get(row.rests)
    assert resting(relay, row) == first
    if first is None:
        for _ in range(CONSECUTIVE_FAILURES - 1):
            check(row, await ask(relay, row))
        assert resting(relay, row) == ("target" if row.rests == "target" else None)
    attempts = (await relay.metrics()).value("relay_upstream_attempts_total", upstream=row.name, result=row.result)
    assert attempts == (1 if first is not None else CONSECUTIVE_FAILURES)
