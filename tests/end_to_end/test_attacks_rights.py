"""What a key may reach: routes, models, stored objects (A52, A53), and what a browser's page may do (A48)."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, Bed, Refusal
from tests.fakes import events, scripts
from tests.fakes.client import Response
from tests.fakes.upstream import ScriptedUpstream

NOT_ALLOWED = Refusal(status=403, code="route_not_allowed", outcome="unauthorized")
UNKNOWN_ID = Refusal(status=404, code="unknown_id")
NOT_FOUND = Refusal(status=404, code="model_not_found")
ORIGIN = "https://app.example.com"


def auth(name: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer sk-{name}")


@pytest.fixture(scope="module")
async def other() -> AsyncIterator[ScriptedUpstream]:
    """A second upstream."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
async def bed(shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream, other: ScriptedUpstream) -> AsyncIterator[Bed]:
    upstreams = {
        "mine": {"base_url": shared_upstream.url, "api_key": "sk-upstream"},
        "other": {"base_url": other.url, "api_key": "sk-other"},
    }
    routes = {"fast": "mine/small", "dear": "mine/large", "still-serving": "mine/still-serving", "other/*": "other/*", "*": "mine/*"}
    keys: dict[str, Any] = {
        "all": {"key": "sk-all"},
        "twin": {"key": "sk-twin"},
        "fast": {"key": "sk-fast", "routes": ["fast"]},
        "wide": {"key": "sk-wide", "routes": ["other/*"]},
        "star": {"key": "sk-star", "routes": ["*"]},
    }
    config = {"server": {"cors_origins": [ORIGIN]}, "upstreams": upstreams, "routes": routes, "keys": keys}
    for upstream in (shared_upstream, other):
        upstream.answers(scripts.json_answer(ANSWER))
    bed = Bed(await shared_relay_with(config), shared_upstream, headers=[auth("all")])
    yield bed
    await bed.settle_accounts()


async def sent(bed: Bed, other: ScriptedUpstream) -> int:
    return len(bed.upstream.requests) + len(other.requests)


# Routes.

REACHED = {
    ("all", "fast"): True,
    ("all", "other/x"): True,
    ("all", "anything"): True,
    ("fast", "fast"): True,
    ("fast", "dear"): False,
    ("fast", "Fast"): False,
    ("fast", "fast "): False,
    ("fast", "other/x"): False,
    ("fast", "small"): False,
    ("fast", "large"): False,
    ("fast", "*"): False,
    ("wide", "other/x"): True,
    ("wide", "other/../fast"): True,
    ("wide", "other"): False,
    ("wide", "fast"): False,
    ("star", "anything"): True,
    ("star", "fast"): False,
    ("star", "other/x"): False,
}


@pytest.mark.parametrize(("key", "model"), REACHED)
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/v1/responses", "/v1/images/generations"])
async def test_a53_key_reaches_its_routes_and_no_others(bed: Bed, other: ScriptedUpstream, path: str, key: str, model: str) -> None:
    known = await sent(bed, other)
    answer = await bed.send(path, {"model": model}, [auth(key)])
    if REACHED[key, model]:
        assert (answer.status, await sent(bed, other)) == (200, known + 1)
        return
    bed.check(answer, NOT_ALLOWED)
    assert await sent(bed, other) == known
    await bed.check_log(answer, NOT_ALLOWED)


UNPEEKED: dict[str, tuple[str, str, object, list[tuple[str, str]]]] = {
    "no model": ("POST", "/v1/images", {}, []),
    "no body": ("GET", "/v1/images", None, []),
    "multipart": (
        "POST",
        "/v1/audio/transcriptions",
        b'--x\r\n\r\n{"model":"fast"}',
        [("Content-Type", "multipart/form-data; boundary=x")],
    ),
    "text": ("POST", "/v1/images", b'{"model":"fast"}', [("Content-Type", "text/plain")]),
    "encoded": ("POST", "/v1/images", b'{"model":"fast"}', [("Content-Encoding", "gzip")]),
    "two models": ("POST", "/v1/images", b'{"model":"fast","model":"dear"}', []),
    "two spellings": ("POST", "/v1/images", b'{"model":"fast","Model":"dear"}', []),
    "over a MiB": ("POST", "/v1/images", b'{"model":"fast","x":"' + b"y" * 2**20 + b'"}', []),
    "no JSON": ("POST", "/v1/images", b'{"model":"fast"', []),
    "a list": ("POST", "/v1/images", b'[{"model":"fast"}]', []),
    "stored answers": ("GET", "/v1/responses", None, []),
    "realtime by GET": ("GET", "/v1/realtime", None, []),
}


@pytest.mark.parametrize("name", UNPEEKED)
async def test_a53_key_without_the_star_route_cannot_reach_what_names_no_model(bed: Bed, other: ScriptedUpstream, name: str) -> None:
    method, path, body, headers = UNPEEKED[name]
    known = await sent(bed, other)
    for key in ("fast", "wide"):
        bed.check(await bed.send(path, body, [*headers, auth(key)], method=method), NOT_ALLOWED)
    assert await sent(bed, other) == known
    for key in ("star", "all"):
        assert (await bed.send(path, body, [*headers, auth(key)], method=method)).status == 200
    assert await sent(bed, other) == known + 2


async def test_a53_model_of_the_query_counts_when_there_is_no_body_to_contradict_it(bed: Bed) -> None:
    limited = [auth("fast")]
    assert (await bed.send("/v1/images?model=fast", None, limited, method="GET")).status == 200
    assert (await bed.send("/v1/images?model=fa%73t", None, limited, method="GET")).status == 200
    bed.check(await bed.send("/v1/images?model=dear", None, limited, method="GET"), NOT_ALLOWED)
    bed.check(await bed.send("/v1/images?model=fast", {"model": "dear"}, limited), NOT_ALLOWED)
    # What the body asks for cannot be seen here: a key that may not use everything does not get through on a query's word.
    text = [("Content-Type", "text/plain")]
    bed.check(await bed.send("/v1/images?model=fast", b"x", [*text, *limited]), NOT_ALLOWED)
    assert (await bed.send("/v1/images?model=fast", b"x", [*text, auth("all")])).status == 200


# Models.


async def listed(bed: Bed, *headers: tuple[str, str]) -> set[str]:
    answer = await bed.send("/v1/models", None, headers, method="GET")
    assert answer.status == 200, answer.raw
    data = answer.json()["data"]
    assert isinstance(data, list)
    return {entry["id"] for entry in data}


async def test_a_refused_look_at_the_models_is_logged_like_any_other(bed: Bed) -> None:
    answer = await bed.send("/v1/models", None, [("Authorization", "Bearer sk-wrong-for-models")], method="GET")
    assert answer.status == 401
    assert (await bed.relay.wait_log(operation="models"))[-1]["outcome"] == "unauthorized"


async def test_a53_models_are_those_the_key_may_use(bed: Bed, other: ScriptedUpstream) -> None:
    bed.upstream.route("/v1/models", scripts.json_answer({"data": [{"id": "alpha", "object": "model"}, {"id": 7}, "odd"]}))
    other.route("/v1/models", scripts.json_answer({"data": [{"id": "beta", "object": "model", "owned_by": "them"}]}))
    fixed = {"fast", "dear", "still-serving"}
    assert await listed(bed, auth("all")) == {*fixed, "alpha", "other/beta"}
    assert await listed(bed, auth("fast")) == {"fast"}
    assert await listed(bed, auth("wide")) == {"other/beta"}
    assert await listed(bed, auth("star")) == {"alpha"}
    refused = await bed.send("/v1/models", None, method="GET")
    assert (refused.status, refused.error_code) == (401, "missing_key")


@pytest.mark.parametrize(("key", "name", "is_found"), [("fast", "fast", True), ("fast", "dear", False), ("fast", "nothing", False)])
async def test_a53_model_a_key_may_not_use_is_as_unknown_as_one_that_is_not(bed: Bed, key: str, name: str, is_found: bool) -> None:
    answer = await bed.send(f"/v1/models/{name}", None, [auth(key)], method="GET")
    if is_found:
        assert answer.json()["id"] == name
        return
    bed.check(answer, NOT_FOUND)
    assert answer.body == (await bed.send("/v1/models/never-was", None, [auth(key)], method="GET")).body


# Stored objects.


OBJECTS: dict[str, tuple[str, object, str]] = {
    "response": ("/v1/responses", {"model": "other/r", "input": "x"}, "/v1/responses/"),
    "file": ("/v1/files?model=other/x", {"purpose": "x"}, "/v1/files/"),
    "batch": ("/v1/batches", {"model": "other/x"}, "/v1/batches/"),
    "stored chat": (CHAT, {"model": "other/c", "messages": [], "store": True}, CHAT + "/"),
}


def shape(answer: Response) -> tuple[Any, ...]:
    """All of an answer but its id."""
    return answer.status, answer.body, [(name, value) for name, value in answer.headers if not name.lower().endswith(b"request-id")]


@pytest.mark.parametrize("kind", OBJECTS)
async def test_a52_object_is_found_by_its_maker_at_its_upstream_and_by_nobody_else(bed: Bed, other: ScriptedUpstream, kind: str) -> None:
    path, body, below = OBJECTS[kind]
    object_id = f"obj_{kind.replace(' ', '_')}_1"
    name = str(body["model"]) if kind in ("response", "stored chat") else path.partition("?")[0]  # type: ignore[index]
    other.route(name.removeprefix("other/"), scripts.json_answer({"id": object_id, "object": "thing", "status": "completed"}))
    assert (await bed.send(path, body, [auth("all")])).json()["id"] == object_id
    known = await sent(bed, other)

    for method in ("GET", "DELETE", "POST"):
        never_was = await bed.send(f"{below}obj_never_was", None, [auth("twin")], method=method)
        foreign = await bed.send(f"{below}{object_id}", None, [auth("twin")], method=method)
        bed.check(foreign, UNKNOWN_ID)
        assert shape(foreign) == shape(never_was)
        deeper = await bed.send(f"{below}{object_id}/content", None, [auth("twin")], method=method)
        assert shape(deeper) == shape(never_was)
    assert await sent(bed, other) == known

    mine = await bed.send(f"{below}{object_id}", None, [auth("all")], method="GET")
    assert (mine.status, other.requests[-1].target) == (200, f"{below}{object_id}".encode())
    assert other.requests[-1].header("authorization") == b"Bearer sk-other"
    assert await sent(bed, other) == known + 1


async def test_a52_object_of_a_stream_is_its_makers_too(bed: Bed, other: ScriptedUpstream) -> None:
    created = events.event(
        {"type": "response.created", "response": {"id": "resp_stream", "status": "in_progress"}}, name="response.created"
    )
    delta = events.event({"type": "response.output_text.delta", "delta": "x"}, name="response.output_text.delta")
    done = events.event({"type": "response.completed", "response": {"id": "resp_stream", "status": "completed"}}, name="response.completed")
    other.route("rs", scripts.sse([created, delta, done]))
    answer = await bed.send("/v1/responses", {"model": "other/rs", "stream": True}, [auth("all")])
    assert (answer.status, answer.end) == (200, "complete")
    bed.check(await bed.send("/v1/responses/resp_stream", None, [auth("twin")], method="GET"), UNKNOWN_ID)
    assert (await bed.send("/v1/responses/resp_stream", None, [auth("all")], method="GET")).status == 200


async def test_a52_previous_response_id_is_pinned_and_only_its_makers(bed: Bed, other: ScriptedUpstream) -> None:
    other.route("p", scripts.json_answer({"id": "resp_pinned", "object": "response", "status": "completed"}))
    await bed.send("/v1/responses", {"model": "other/p"}, [auth("all")])
    known = await sent(bed, other)
    follow = {"model": "other/p", "previous_response_id": "resp_pinned"}
    bed.check(await bed.send("/v1/responses", follow, [auth("twin")]), UNKNOWN_ID)
    bed.check(await bed.send("/v1/responses", {**follow, "previous_response_id": "resp_never"}, [auth("all")]), UNKNOWN_ID)
    bed.check(await bed.send("/v1/responses", {**follow, "model": "fast"}, [auth("all")]), UNKNOWN_ID)
    assert await sent(bed, other) == known
    assert (await bed.send("/v1/responses", follow, [auth("all")])).status == 200
    assert await sent(bed, other) == known + 1


async def test_a52_id_cannot_be_taken_over(bed: Bed, other: ScriptedUpstream) -> None:
    """An upstream that repeats an id, or a caller who makes one, does not change whose it is."""
    other.route("t", scripts.json_answer({"id": "resp_taken", "object": "response", "status": "completed"}))
    await bed.send("/v1/responses", {"model": "other/t"}, [auth("all")])
    await bed.send("/v1/responses", {"model": "other/t"}, [auth("twin")])
    bed.check(await bed.send("/v1/responses/resp_taken", None, [auth("twin")], method="GET"), UNKNOWN_ID)
    assert (await bed.send("/v1/responses/resp_taken", None, [auth("all")], method="GET")).status == 200


@pytest.mark.parametrize(
    "odd", ["resp%5Fodd", "resp_odd%20", "RESP_ODD", "resp_odd/../resp_odd", "resp_od%64", "./resp_odd", "resp_odd;x", "%72esp_odd"]
)
async def test_a52_other_spelling_of_an_id_is_another_id(bed: Bed, other: ScriptedUpstream, odd: str) -> None:
    other.route("o", scripts.json_answer({"id": "resp_odd", "object": "response", "status": "completed"}))
    await bed.send("/v1/responses", {"model": "other/o"}, [auth("all")])
    known = await sent(bed, other)
    answer = await bed.send(f"/v1/responses/{odd}", None, [auth("twin")], method="GET")
    assert (answer.status, answer.error_code in ("unknown_id", "bad_path")) == (400 if ".." in odd or "./" in odd else 404, True)
    assert await sent(bed, other) == known


async def test_a52_unknown_id_goes_to_the_only_upstream_there_is(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.json_answer(ANSWER))
    config = {"upstreams": {"mine": {"base_url": upstream.url, "api_key": "x"}}, "routes": {"*": "mine/*"}}
    relay = await relay_with(config)
    assert (await relay.get("/v1/responses/resp_of_yesterday")).status == 200
    assert upstream.requests[-1].target == b"/v1/responses/resp_of_yesterday"


# Browsers.


async def test_a48_preflight_works_without_a_key_and_reaches_no_upstream(bed: Bed, other: ScriptedUpstream) -> None:
    known = await sent(bed, other)
    asked = [("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "authorization,content-type,x-stainless-os")]
    answer = await bed.send(CHAT, None, [("Origin", ORIGIN), *asked], method="OPTIONS")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("access-control-allow-origin") == ORIGIN.encode()
    assert answer.header("access-control-allow-headers") == b"authorization,content-type,x-stainless-os"
    assert b"POST" in (answer.header("access-control-allow-methods") or b"")
    assert answer.header("access-control-allow-credentials") is None
    assert b"Origin" in answer.all("vary")
    assert await sent(bed, other) == known


async def test_a48_answers_to_a_listed_origin_say_so_errors_and_streams_too(bed: Bed) -> None:
    bed.upstream.route("small", scripts.sse(events.chat_stream("hi")))
    for headers, status in (([auth("all")], 200), ([], 401)):
        answer = await bed.send(CHAT, {"model": "fast", "stream": True}, [("Origin", ORIGIN), *headers])
        assert (answer.status, answer.all("access-control-allow-origin")) == (status, [ORIGIN.encode()])
        assert b"x-relay-request-id" in (answer.header("access-control-expose-headers") or b"")
        assert b"Origin" in answer.all("vary")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"{ORIGIN}.evil", "http://app.example.com", ORIGIN + ":444", ORIGIN.upper()]
)
async def test_a48_other_origins_get_no_leave(bed: Bed, origin: str) -> None:
    preflight = await bed.send(CHAT, None, [("Origin", origin), ("Access-Control-Request-Method", "POST")], method="OPTIONS")
    answer = await bed.send(CHAT, {"model": "fast"}, [("Origin", origin), auth("all")])
    for got in (preflight, answer):
        assert got.all("access-control-allow-origin") == []
        assert b"Origin" in got.all("vary")


async def test_a48_upstreams_own_leave_does_not_pass_for_ours(bed: Bed) -> None:
    leave = [("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Credentials", "true")]
    bed.upstream.route("small", scripts.json_answer(ANSWER, headers=leave))
    for origin in (ORIGIN, "https://evil.example"):
        answer = await bed.send(CHAT, {"model": "fast"}, [("Origin", origin), auth("all")])
        assert answer.all("access-control-allow-origin") == ([ORIGIN.encode()] if origin == ORIGIN else [])
        assert answer.all("access-control-allow-credentials") == []


async def test_a48_without_origins_listed_nothing_is_said(relay_with: RelayWith, upstream: ScriptedUpstream) -> None:
    upstream.answers(scripts.json_answer(ANSWER))
    config = {"upstreams": {"mine": {"base_url": upstream.url, "api_key": "x"}}, "routes": {"*": "mine/*"}}
    bed = Bed(await relay_with(config), upstream)
    upstream.route("/v1/images", scripts.respond(200, [("Access-Control-Allow-Origin", "*")]))
    asked = [("Origin", ORIGIN), ("Access-Control-Request-Method", "POST")]
    answer, got = await bed.forwarded("/v1/images", None, asked, method="OPTIONS")
    assert (answer.status, got.method, got.all("origin")) == (200, b"OPTIONS", [])
    assert not [name for name, _ in answer.headers if name.lower().startswith(b"access-control-")]
