"""The admin endpoint against a running relay: what it tells and does, and whom it refuses."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.fakes.client import RawClient, Response
from tests.fakes.ports import free_port
from tests.fakes.relay import ROOT, RelayProcess
from tests.fakes.scripts import error_answer, json_answer
from tests.fakes.upstream import ScriptedUpstream

ANSWER = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": []}
ASK = {"model": "fast", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
JSON = ("Content-Type", "application/json")
WITHIN = 15.0


@pytest.fixture
async def second() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as other:
        other.answers(json_answer(ANSWER))
        yield other


@pytest.fixture
async def relay(upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith) -> RelayProcess:
    upstream.answers(json_answer(ANSWER))
    return await relay_with(config(upstream, second))


@pytest.fixture(scope="module")
async def shared(shared_upstream: ScriptedUpstream, shared_relay_with: RelayWith) -> RelayProcess:
    """One relay for all requests that change nothing."""
    return await shared_relay_with(config(shared_upstream, shared_upstream))


def config(first: ScriptedUpstream, second: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": {
            "first": {"base_url": first.url, "api_key": "sk-CANARY-first", "limits": {"concurrency": 7}},
            "second": {"base_url": second.url, "api_key": "sk-CANARY-second"},
        },
        "routes": {"fast": ["first/org/a", "second/b"], "any-*": "second/*"},
        **more,
    }


async def targets(relay: RelayProcess) -> dict[str, dict[str, Any]]:
    response = await relay.get("/admin/targets")
    assert (response.status, response.header("content-type")) == (200, b"application/json")
    assert b"CANARY" not in response.raw
    return {entry["target"]: entry for entry in response.json()["targets"]}  # type: ignore[attr-defined,index]


async def used(relay: RelayProcess) -> bytes | None:
    return (await relay.post(CHAT, ASK)).header("x-relay-upstream")


async def test_targets_are_told_with_health_pace_load_and_routes(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    found = await targets(relay)
    assert {name: entry["routes"] for name, entry in found.items()} == {
        "first/org/a": ["fast"],
        "second/b": ["fast"],
        "second/*": ["any-*"],
    }
    assert {entry["health"] for entry in found.values()} == {"healthy"}
    assert {entry["time_to_first_token_seconds"] for entry in found.values()} == {None}
    upstream.answers(error_answer(500))
    for _ in range(5):
        assert await used(relay) == b"second"
    first = (await targets(relay))["first/org/a"]
    assert (first["health"], first["cause"], first["trips"], first["in_flight"]) == ("cooling", "failures", 1, 0)
    assert 5 < first["rest_seconds"] <= 10
    whole = (await relay.get("/admin/targets")).json()
    assert isinstance(whole, dict)
    assert whole["upstreams"][0] == {
        "upstream": "first",
        "in_flight": 0,
        "waiting": 0,
        "concurrency": 7,
        "credentials": {"healthy": 1, "cooling": 0, "probing": 0},
    }


async def test_a_target_rests_for_as_long_as_one_says_and_comes_back_when_one_says(relay: RelayProcess) -> None:
    assert await used(relay) == b"first"
    response = await relay.post("/admin/targets/first/org/a/rest", {"seconds": 600})
    assert (response.status, response.json()["cause"]) == (200, "operator")  # type: ignore[index,call-overload]
    assert 590 < (await targets(relay))["first/org/a"]["rest_seconds"] <= 600
    assert await used(relay) == b"second"
    assert (await relay.post("/admin/targets/first%2Forg%2Fa/restore", {})).status == 404
    assert (await relay.post("/admin/targets/first/org%2Fa/restore", {})).status == 200
    assert (await targets(relay))["first/org/a"]["health"] == "healthy"
    assert await used(relay) == b"first"
    said = [(line["action"], line["target"], line["seconds"]) for line in await relay.wait_log("admin", count=2)]
    assert said == [("rest", "first/org/a", 600.0), ("restore", "first/org/a", None)]


async def test_a_refused_credential_is_forgiven_with_its_target(relay: RelayProcess, upstream: ScriptedUpstream) -> None:
    upstream.answers(error_answer(401))
    assert await used(relay) == b"second"
    upstream.answers(json_answer(ANSWER))
    assert await used(relay) == b"second"
    assert (await targets(relay))["first/org/a"]["health"] == "cooling"
    assert (await relay.post("/admin/targets/first/org/a/restore", {})).status == 200
    assert await used(relay) == b"first"


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("POST", "/admin/targets", b"{}", 405, "method_not_allowed"),
        ("GET", "/admin/targets/first/org/a/rest", b"", 405, "method_not_allowed"),
        ("POST", "/admin/targets/first/org/b/rest", b'{"seconds": 1}', 404, "unknown_target"),
        ("POST", "/admin/targets/first/rest", b'{"seconds": 1}', 404, "not_found"),
        ("POST", "/admin/targets/first/org/a/stop", b"{}", 404, "not_found"),
        ("GET", "/admin/else", b"", 404, "not_found"),
        ("POST", "/admin/targets/first/org/a/rest", b"", 400, "invalid_value"),
        ("POST", "/admin/targets/first/org/a/rest", b'{"seconds": 0}', 400, "invalid_value"),
        ("POST", "/admin/targets/first/org/a/rest", b'{"seconds": -1}', 400, "invalid_value"),
        ("POST", "/admin/targets/first/org/a/rest", b'{"seconds": 1e300}', 400, "invalid_value"),
        ("POST", "/admin/targets/first/org/a/rest", b'{"seconds": "60"}', 400, "invalid_value"),
        ("POST", "/admin/targets/first/org/a/rest", b'{"seconds": 60, "for": "ever"}', 400, "invalid_value"),
        ("POST", "/admin/targets/first/org/a/rest", b" " * 5000, 413, "request_too_large"),
    ],
)
async def test_what_cannot_be_done_is_said(shared: RelayProcess, method: str, target: str, body: bytes, status: int, code: str) -> None:
    response = await sent(shared, method, target, body)
    assert (response.status, response.error_code) == (status, code)
    assert {entry["health"] for entry in (await targets(shared)).values()} == {"healthy"}


async def sent(relay: RelayProcess, method: str, target: str, body: bytes = b"", **headers: str | None) -> Response:
    lines = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
    if body:
        lines["Content-Length"] = str(len(body))
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    async with await RawClient.open(relay.port) as client:
        await client.send(f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode() + body)
        return await client.read_response(method=method)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8080"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "localhost.evil.example:8080"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "192.168.0.7:8080"},
        {"X_Forwarded_For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
        {"Via": "1.1 proxy"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_comes_from_a_page_or_through_a_proxy_is_refused(shared: RelayProcess, headers: dict[str, str], method: str) -> None:
    target, body = ("/admin/targets", b"") if method == "GET" else ("/admin/targets/first/org/a/rest", b'{"seconds": 60}')
    response = await sent(shared, method, target, body, **headers)
    assert (response.status, response.error_code) == (403, "not_local")
    assert (await targets(shared))["first/org/a"]["health"] == "healthy"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None])
async def test_a_body_that_a_form_could_send_changes_nothing(shared: RelayProcess, kind: str | None) -> None:
    response = await sent(shared, "POST", "/admin/targets/first/org/a/rest", b'{"seconds": 60}', Content_Type=kind)
    assert response.status == 400
    assert (await targets(shared))["first/org/a"]["health"] == "healthy"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080"])
async def test_names_of_loopback_are_good(shared: RelayProcess, host: str) -> None:
    assert (await sent(shared, "GET", "/admin/targets", Host=host)).status == 200


async def test_it_is_where_the_metrics_are_and_never_on_another_address(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith
) -> None:
    port = free_port()
    keys = {"alice": {"hash": "sha256:" + "0" * 64}}
    public = {"server": {"listen": f"0.0.0.0:{free_port()}"}, "keys": keys}
    relay = await relay_with(config(upstream, second, metrics={"listen": f"127.0.0.1:{port}"}, **public))
    assert (await relay.get("/admin/targets")).status == 404
    async with await RawClient.open(port) as client:
        await client.request("GET", "/admin/targets", [])
        assert (await client.read_response(method="GET")).status == 200
    exposed = {"server": {"listen": f"0.0.0.0:{free_port()}"}, "keys": keys}
    other = free_port()
    open_relay = await relay_with(config(upstream, second, metrics={"listen": f"0.0.0.0:{other}"}, **exposed))
    assert (await open_relay.get("/admin/targets")).status == 404
    async with await RawClient.open(other) as client:
        await client.request("GET", "/admin/targets", [])
        assert (await client.read_response(method="GET")).status == 404


@pytest.mark.parametrize("place", ["main", "own"])
async def test_several_workers_are_told_and_asked_as_one(
    upstream: ScriptedUpstream, second: ScriptedUpstream, relay_with: RelayWith, place: str
) -> None:
    upstream.answers(json_answer(ANSWER))
    port = free_port()
    own = {"metrics": {"listen": f"127.0.0.1:{port}"}} if place == "own" else {}
    relay = await relay_with(config(upstream, second, server={"workers": 3}, **own))
    await relay.wait_log("worker_ready", count=3, within=WITHIN)

    async def order(path: str, **body: object) -> Response:
        async with await RawClient.open(port if own else relay.port) as client:
            await client.request("POST" if path else "GET", f"/admin/targets{path}", [JSON] if path else [], json.dumps(body).encode())
            return await client.read_response(within=WITHIN)

    async def line() -> dict[str, Any]:
        found: dict[str, Any] = (await order("")).json()["targets"][0]  # type: ignore[assignment,index]
        return found

    assert (await line())["workers"] == {"healthy": 3}
    rested = await order("/first/org/a/rest", seconds=600)
    assert (rested.status, rested.json()["health"], rested.json()["workers"]) == (200, "cooling", {"cooling": 3})
    assert [await used(relay) for _ in range(12)] == [b"second"] * 12
    for child in relay.process.children()[:2]:
        child.kill()
    await relay.wait_log("worker_ready", count=5, within=WITHIN)
    assert (await line())["workers"] == {"cooling": 3}, "who is started later is told as well"
    restored = await order("/first/org/a/restore")
    assert (restored.status, restored.json()["workers"]) == (200, {"healthy": 3})
    assert [await used(relay) for _ in range(12)] == [b"first"] * 12
    unknown = await order("/first/nothing/rest", seconds=1)
    assert (unknown.status, unknown.error_code) == (404, "unknown_target")
    assert [(each["action"], each.get("worker")) for each in relay.logs("admin")] == [("rest", None), ("restore", None)]


async def told(relay: RelayProcess, *words: str) -> tuple[int | None, str, str]:
    """Run `relay targets` and return its exit code and what it printed."""
    command = [sys.executable, "-m", "relay", "targets", "--url", relay.url.removesuffix("/v1"), *words]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_command_line_lists_rests_and_restores(relay: RelayProcess) -> None:
    code, out, err = await told(relay)
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["target", "health"],
        ["first/org/a", "healthy"],
        ["second/b", "healthy"],
        ["second/*", "healthy"],
    ]
    code, out, err = await told(relay, "rest", "first/org/a", "--for", "2h")
    assert (code, err) == (0, "") and "cooling (operator)" in out and "7200s" in out
    assert await used(relay) == b"second"
    code, out, _ = await told(relay, "--json")
    assert code == 0 and json.loads(out)["targets"][0]["cause"] == "operator"
    assert (await told(relay, "restore", "first/org/a"))[0] == 0
    assert await used(relay) == b"first"
    unknown = "relay targets: No route has a target of this name. `relay targets` lists them.\n"
    assert await told(relay, "rest", "first/nothing") == (1, "", unknown)
    assert (await told(relay, "rest", "first/org/a", "--for", "ever"))[0] == 2
