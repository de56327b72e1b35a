"""No secret shows, whatever happens: canary credentials and a canary prompt down every path, then a search of everything.

Searched are all that the relay wrote (stderr, stdout, `relay check`), every byte that any client got, the metrics, the spans
as a collector gets them, the usage ledger, the state of limits, the admin endpoint, and the `repr` of the configuration; the
upstreams' side is searched for the callers' credentials and the callers' side for the upstreams'.
"""

import asyncio
import base64
import hashlib
import io
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from relay.config import load
from tests.conftest import RelayWith
from tests.end_to_end.probes import ANSWER, CHAT, post, request
from tests.fakes import events, scripts
from tests.fakes.canaries import leaks
from tests.fakes.client import RawClient
from tests.fakes.collector import Collector, running_collector
from tests.fakes.ports import refusing_port
from tests.fakes.relay import ROOT, RelayProcess
from tests.fakes.upstream import ScriptedUpstream

CLIENT_KEY = "sk-clientCANARY+7f/3a91=c2"
HASHED_KEY = "sk-hashedCANARY+11/b0d4=97"
LIMITED_KEY = "sk-limitedCANARY+20/8e1d=5f"
WRONG_KEY = "sk-guessCANARY+e6/55a2=10"
PASSED_KEY = "sk-passedCANARY+9d/042c=ee"
UPSTREAM_KEY = "sk-upstreamCANARY+c8/1f63=4b"
FILE_KEY = "sk-fileCANARY+5a/d219=88"
NEW_FILE_KEY = "sk-renewedCANARY+4e/7b06=31"
VARIABLE_KEY = "sk-variableCANARY+02/9ce5=d7"
ECHOED_KEY = "sk-echoedCANARY+d0/8e51=0f"
ORGANIZATION = "org-CANARY+a4/6612=f9"
PROMPT = "promptCANARY of a person who trusts us"
ANSWERED = "answerCANARY of a model"
SERVER = 2
"""The kind of a span for a request of a caller (OTLP)."""
PROXY_PASSWORD = "proxyCANARY+3c/8"

CREDENTIALS = [
    CLIENT_KEY,
    HASHED_KEY,
    LIMITED_KEY,
    WRONG_KEY,
    PASSED_KEY,
    UPSTREAM_KEY,
    FILE_KEY,
    NEW_FILE_KEY,
    VARIABLE_KEY,
    PROXY_PASSWORD,
]
CALLERS = [CLIENT_KEY, HASHED_KEY, LIMITED_KEY, WRONG_KEY, ORGANIZATION]
UPSTREAMS = [UPSTREAM_KEY, FILE_KEY, NEW_FILE_KEY, VARIABLE_KEY]


def test_search_finds_each_form() -> None:
    for text in (CLIENT_KEY, quote(CLIENT_KEY), CLIENT_KEY[:12], base64.b64encode(f"user:{CLIENT_KEY}".encode()), f"x{CLIENT_KEY}"):
        assert leaks(text, CREDENTIALS) == [CLIENT_KEY], text
    assert leaks("nothing", [*CREDENTIALS, PROMPT]) == []


class Scene:
    """A relay full of secrets, its upstream, and every byte that came back from it."""

    def __init__(self, relay: RelayProcess, upstream: ScriptedUpstream, folder: Path, collector: Collector) -> None:
        self.relay = relay
        self.upstream = upstream
        self.folder = folder
        """Where the relay keeps what it was told to keep."""
        self.key_file = folder / "key"
        self.collector = collector
        self.received: list[bytes] = []

    async def play(self, data: bytes, *, leave_after: float | None = None) -> None:
        """Send bytes, and keep all that comes until the relay closes or is quiet."""
        async with await RawClient.open(self.relay.port) as client:
            await client.send(data)
            try:
                got, _ = await client.read_until_close(within=leave_after or 8)
            except TimeoutError:
                got = bytes(client.inbox)
            self.received.append(got)

    async def ask(
        self,
        model: str,
        headers: Iterable[tuple[str, str]] = (),
        *,
        path: str = CHAT,
        stream: bool = True,
        leave_after: float | None = None,
    ) -> None:
        """Send a prompt with a key."""
        stream_text = "true" if stream else "false"
        body = f'{{"model":"{model}","stream":{stream_text},"messages":[{{"role":"user","content":"{PROMPT}"}}]}}'.encode()
        lines = [f"{name}: {value}".encode() for name, value in (tuple(headers) or (("Authorization", f"Bearer {CLIENT_KEY}"),))]
        lines += [b"Connection: close", b"Content-Type: application/json", b"OpenAI-Organization: " + ORGANIZATION.encode()]
        data = post(*lines, b"Content-Length: %d" % len(body), body=body, path=path.encode())
        await self.play(data, leave_after=leave_after)


@pytest.fixture(scope="module")
async def scene(
    shared_relay_with: RelayWith, shared_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("secrets")
    key_file = folder / "key"
    key_file.write_text(FILE_KEY + "\n")
    (folder / "state").mkdir()
    with refusing_port() as nobody, running_collector() as collector:
        upstreams: dict[str, Any] = {
            "mine": {"base_url": shared_upstream.url, "api_key": UPSTREAM_KEY},
            "filed": {"base_url": shared_upstream.url, "api_key_file": str(key_file)},
            "named": {"base_url": shared_upstream.url, "api_key": "${CANARY_KEY}"},
            "down": {"base_url": f"http://127.0.0.1:{nobody}/v1", "api_key": UPSTREAM_KEY},
            "tls": {"base_url": f"https://127.0.0.1:{shared_upstream.port}/v1", "api_key": UPSTREAM_KEY},
            "lost": {"base_url": "http://nowhere.invalid/v1", "api_key": UPSTREAM_KEY},
            "narrow": {"base_url": shared_upstream.url, "api_key": UPSTREAM_KEY, "limits": {"concurrency": 1}},
        }
        slow = {"to": ["mine/slow-start", "named/whole"], "hedge": {"after": "50ms", "at_most": "50%"}}
        beating = {"to": "mine/slow-start", "heartbeat": {"after": "1s", "every": "1s"}}
        falling = {"to": ["down/whole", "mine/status-500", "named/whole"]}
        config = {
            "upstreams": upstreams,
            "routes": {
                **{f"{name}/*": f"{name}/*" for name in upstreams},
                "*": "mine/*",
                "hedged": slow,
                "beating": beating,
                "falling": falling,
                "moved": ["mine/status-500", "down/x", "filed/echo"],
            },
            "keys": {
                "alice": {"key": CLIENT_KEY},
                "bob": {"hash": _digest(HASHED_KEY), "routes": ["filed/*"]},
                "carol": {"key": LIMITED_KEY, "limits": {"rpm": 2, "tpm": 100_000, "budget": "1M tokens/day"}},
            },
            "usage": {"store": str(folder / "usage.db")},
            "state_dir": str(folder / "state"),
            "tracing": {"otlp": collector.url},
            "timeouts": {"connect": "500ms", "first_token": "500ms", "between_tokens": "500ms", "write": "500ms", "total": "3s"},
        }
        relay = await shared_relay_with(config, env={"CANARY_KEY": VARIABLE_KEY})
        scene = Scene(relay, shared_upstream, folder, collector)
        set_scripts(shared_upstream)
        await play_everything(scene)
        yield scene


def _digest(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def set_scripts(upstream: ScriptedUpstream) -> None:
    """Answer in every way there is; answers hold no credential, but what the relay itself writes must hold none of the answer."""
    start = [events.role(), events.content(ANSWERED)]
    upstream.answers(scripts.json_answer(ANSWER))
    upstream.route("whole", scripts.sse(events.chat_stream(ANSWERED)))
    upstream.route("json", scripts.json_answer({**ANSWER, "x": ANSWERED}))
    upstream.route("cut", scripts.sse(start, end="fin"))
    upstream.route("reset", scripts.sse(start, end="rst"))
    upstream.route("stall", scripts.sse(start, end="hang"))
    upstream.route("silent", scripts.hang())
    upstream.route("closed", scripts.close())
    upstream.route("error-later", scripts.sse([*start, events.error()]))
    upstream.route("error-first", scripts.sse([events.error()]))
    upstream.route("garbage", scripts.raw(b"SSH-2.0\r\n\r\n", end="fin"))
    upstream.route(
        "odd-chunk", scripts.raw(scripts.head(200, [*scripts.EVENT_STREAM, ("Transfer-Encoding", "chunked")]) + b"zz\r\n", end="fin")
    )
    # An upstream that quotes a key in the words that are observed.
    quoted = {**ANSWER, "model": f"m {ECHOED_KEY}", "choices": [{"index": 0, "message": {}, "finish_reason": f"stop {ECHOED_KEY}"}]}
    upstream.route("echo", scripts.json_answer(quoted))
    upstream.route("slow-start", scripts.sse(events.chat_stream(ANSWERED), pause=0.4))
    upstream.route("html", scripts.respond(200, [("Content-Type", "text/html")], b"<html>"))
    for status in (301, 400, 401, 402, 403, 404, 408, 409, 422, 429, 500, 502, 503, 529, 999):
        upstream.route(f"status-{status}", scripts.error_answer(status, headers=[("Location", "https://elsewhere.invalid/")]))


MODELS = ["whole", "json", "cut", "reset", "stall", "silent", "closed", "error-later", "error-first", "garbage", "odd-chunk", "html"]
STATUSES = [f"status-{status}" for status in (301, 400, 401, 402, 403, 404, 408, 409, 422, 429, 500, 502, 503, 529, 999)]


async def play_everything(scene: Scene) -> None:
    """Send canaries down every path."""
    bearer = ("Authorization", f"Bearer {CLIENT_KEY}")
    async with asyncio.TaskGroup() as group:
        for model in (*MODELS, *STATUSES):
            group.create_task(scene.ask(model))
            group.create_task(scene.ask(model, stream=False))
        for upstream in ("down", "tls", "lost", "filed", "named"):
            group.create_task(scene.ask(f"{upstream}/whole"))
        for path in ("/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/moderations", "/v1/images/generations", "/v1/files"):
            group.create_task(scene.ask("json", path=path, stream=False))
        for model in ("stall", "silent", "whole"):
            group.create_task(scene.ask(model, leave_after=0.1))
        for _ in range(6):
            group.create_task(scene.ask("hedged"))
            group.create_task(scene.ask("narrow/slow-start"))
            group.create_task(scene.ask("whole", [("Authorization", f"Bearer {LIMITED_KEY}")]))
        group.create_task(scene.ask("beating"))
        group.create_task(scene.ask("falling"))
        for headers in odd_traces():
            group.create_task(scene.ask("falling", [bearer, *headers]))
        for headers in odd_credentials():
            group.create_task(scene.ask("whole", headers))
        for data in odd_requests():
            group.create_task(scene.play(data))
    await scene.ask("moved", stream=False)
    await scene.ask(f"filed/x {WRONG_KEY}", stream=False)
    await scene.ask("filed/whole", [("x-api-key", HASHED_KEY)])
    await scene.ask("mine/whole", [("x-api-key", HASHED_KEY)])
    scene.key_file.write_text(NEW_FILE_KEY)
    await asyncio.sleep(1.1)  # the file is looked at once a second
    await scene.ask("filed/whole", [bearer])
    await reload(scene)


def odd_traces() -> list[list[tuple[str, str]]]:
    """Return trace contexts with a secret in them."""
    parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    return [
        [parent, ("tracestate", f"vendor={WRONG_KEY.replace('=', '-')}")],
        [("traceparent", f"00-{WRONG_KEY}-b7ad6b7169203331-01")],
        [parent, ("baggage", f"key={WRONG_KEY}")],
    ]


def odd_credentials() -> list[list[tuple[str, str]]]:
    """Return credentials as they should not be."""
    return [
        [("Authorization", f"Bearer {WRONG_KEY}")],
        [("Authorization", f"Basic {base64.b64encode(f'u:{WRONG_KEY}'.encode()).decode()}")],
        [("Authorization", f"Bearer {CLIENT_KEY}"), ("x-api-key", WRONG_KEY)],
        [("Authorization", f"Bearer {CLIENT_KEY}"), ("Authorization", f"Bearer {WRONG_KEY}")],
        [("Cookie", f"key={CLIENT_KEY}")],
        [("Proxy-Authorization", f"Bearer {CLIENT_KEY}")],
        [("X-Request-Id", WRONG_KEY), ("api-key", CLIENT_KEY), ("X-Goog-Api-Key", WRONG_KEY)],
    ]


def odd_requests() -> list[bytes]:
    """Return requests that fail with a secret somewhere in them."""
    key = b"Authorization: Bearer " + CLIENT_KEY.encode()
    wrong = WRONG_KEY.encode()
    prompt = PROMPT.encode()
    close = b"Connection: close"
    bodies = [
        b'{"model":"whole","x":"%b"' % prompt,
        b'{"model":["%b"]}' % prompt,
        b'{"model":"%b\\n"}' % prompt,
        b"\xff" + prompt,
    ]
    quoted = quote(WRONG_KEY, safe="").encode()
    targets = [b"/v1/%b/../x" % quoted, b"/v1/images?api_key=" + quoted, b"/" + wrong]
    return [
        *(post(key, close, b"Content-Length: %d" % len(body), body=body) for body in bodies),
        *(request(b"GET %b HTTP/1.1" % target, b"Host: relay", key, close) for target in targets),
        post(key + b"\0", b"Content-Length: 2"),
        post(b"Authorization " + wrong, b"Content-Length: 2"),
        post(key, b"Transfer-Encoding: chunked", body=wrong + b"\r\n"),
        post(key, b"Transfer-Encoding: gzip, chunked", b"X-Key: " + wrong),
        post(key, b"Content-Length: 99999999999", b"Expect: 100-continue", body=b""),
        post(key, b"X-Long: " + wrong * 1000, b"Content-Length: 2"),
        request(b"GET /v1/models HTTP/1.1", b"Host: relay", key, close),
        request(b"GET /v1/models/%b HTTP/1.1" % quoted, b"Host: relay", key, close),
        request(b"GET /v1/responses/resp_1 HTTP/1.1", b"Host: relay", key, close),
        request(b"GET /v1/realtime?model=x HTTP/1.1", b"Host: relay", key, b"Connection: Upgrade", b"Upgrade: h2c"),
        *(request(b"GET %b HTTP/1.1" % path, b"Host: relay", key, close) for path in (b"/", b"/healthz", b"/readyz", b"/metrics")),
    ]


async def reload(scene: Scene) -> None:
    """Let a bad file be refused and the good one be read again."""
    good = dict(scene.relay.config)
    broken = {"base_url": scene.upstream.url, "api_key": f"{UPSTREAM_KEY} more", "token": UPSTREAM_KEY}
    bad = {**good, "upstreams": {**good["upstreams"], "mine": broken}}
    for config, result in ((bad, "refused"), (good, "ok")):
        scene.relay.write_config(config)
        scene.relay.process.send_signal(signal.SIGHUP)
        await scene.relay.wait_log("reload", result=result, within=10)


async def test_relay_writes_no_secret(scene: Scene) -> None:
    await scene.relay.settled(within=10)
    written = scene.relay.stderr() + scene.relay.stdout()
    assert len(scene.relay.logs("request")) > 80
    assert len(scene.relay.logs("attempt_failed")) > 20
    assert leaks(written, [*CREDENTIALS, ORGANIZATION, PROMPT, ANSWERED]) == []
    assert "CANARY" not in written.replace("CANARY_KEY", "")
    assert "stop sk-***" in written and '"model":"filed/x sk-***"' in written, "keys were there to be taken out"


async def test_spans_tell_no_secret(scene: Scene) -> None:
    ended = len(scene.relay.logs("request"))
    for _ in range(100):
        if sum(span.kind == SERVER for span in scene.collector.spans) >= ended:
            break
        await asyncio.sleep(0.1)
    assert sum(span.kind == SERVER for span in scene.collector.spans) >= ended
    assert any("fallback" in [name for name, _, _ in span.events] for span in scene.collector.spans)
    sent = b"\n".join(scene.collector.bodies)
    assert leaks(sent, [*CREDENTIALS, ORGANIZATION, PROMPT, ANSWERED]) == []
    assert b"CANARY" not in sent
    assert b"stop sk-***" in sent and b"m sk-***" in sent, "keys were there to be taken out"


async def test_metrics_tell_no_secret(scene: Scene) -> None:
    for accept in ("text/plain", "application/openmetrics-text"):
        async with await scene.relay.connect() as client:
            await client.request("GET", "/metrics", [("Accept", accept)])
            page = await client.read_response(method="GET")
        assert page.status == 200
        assert b"CANARY" not in page.raw
        assert leaks(page.raw, [*CREDENTIALS, ORGANIZATION, PROMPT, ANSWERED]) == []


async def test_what_is_kept_and_sent_to_others_tells_no_secret(scene: Scene) -> None:
    await scene.relay.settled(within=10)
    async with asyncio.timeout(10):
        while not (scene.collector.bodies and (scene.folder / "usage.db").stat().st_size):
            await asyncio.sleep(0.1)
    async with await scene.relay.connect() as client:
        await client.request("GET", "/admin/targets")
        admin = await client.read_response(method="GET")
    assert admin.status == 200
    files = [file for file in scene.folder.rglob("*") if file.is_file() and file != scene.key_file]
    assert len(files) >= 2
    kept = {**{str(file): file.read_bytes() for file in files}, "spans": b"".join(scene.collector.bodies), "admin": admin.raw}
    for place, data in kept.items():
        assert leaks(data, [*CREDENTIALS, ORGANIZATION, PROMPT, ANSWERED]) == [], place
        assert b"CANARY" not in data, place


async def test_the_scene_has_everything_in_it(scene: Scene) -> None:
    metrics = await scene.relay.settled(within=10)
    for name in ("relay_hedges_total", "relay_fallbacks_total", "relay_key_rate_limited_total", "relay_queue_wait_seconds_count"):
        assert metrics.sum(name), name
    outcomes = {line["outcome"] for line in scene.relay.logs("request")}
    assert outcomes >= {"complete", "invalid_request", "unauthorized", "rate_limited", "rejected", "upstream_failed", "upstream_cut"}
    assert outcomes >= {"upstream_stalled", "upstream_error", "client_gone"}


def test_clients_get_no_credential_and_not_their_own_words(scene: Scene) -> None:
    everything = b"\n".join(scene.received)
    assert len(scene.received) > 90
    assert ANSWERED.encode() in everything, "the upstreams' answers are there, so something was searched"
    assert leaks(everything, [*CREDENTIALS, ORGANIZATION, PROMPT]) == []


def test_upstreams_get_no_callers_credential_or_organization_and_only_their_own(scene: Scene) -> None:
    heads = [got.head for got in scene.upstream.requests]
    assert leaks(b"\n".join(heads), [key for key in CALLERS if key != WRONG_KEY]) == []
    sent = {got.header("authorization") for got in scene.upstream.requests}
    assert sent == {f"Bearer {key}".encode() for key in UPSTREAMS}
    assert not [head for head in heads if b"organization" in head.lower()]
    # A client's wrong key passes nowhere as a credential; as a request id or in a query it is the client's own data.
    for got in scene.upstream.requests:
        lines = [value for name, value in got.headers if name.lower() not in (b"x-request-id", b"tracestate")]
        assert leaks(b"\n".join(lines), [WRONG_KEY]) == []


def test_checking_tells_no_secret(scene: Scene, tmp_path: Path) -> None:
    proxied = tmp_path / "proxied.yaml"
    proxied.write_text(
        f"upstreams: {{mine: {{base_url: 'https://api.example.com/v1', api_key: '{UPSTREAM_KEY}'}}}}\nroutes: {{'*': mine/*}}\n"
    )
    proxy = f"http://user:{quote(PROXY_PASSWORD, safe='')}@127.0.0.1:9"
    for file, environment, code in (
        (scene.relay.config_file, {"CANARY_KEY": VARIABLE_KEY}, 0),
        (scene.relay.config_file, {"CANARY_KEY": f"{VARIABLE_KEY} more"}, 78),
        (scene.relay.config_file, {}, 78),
        (proxied, {"HTTPS_PROXY": proxy}, 78),
    ):
        command = [sys.executable, "-m", "relay", "check", str(file)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == code, done.stderr
        assert leaks(done.stdout + done.stderr, CREDENTIALS) == []


def test_configuration_shows_no_secret_in_any_of_pythons_ways(scene: Scene) -> None:
    config = load(str(scene.relay.config_file), {"CANARY_KEY": VARIABLE_KEY})
    log = io.StringIO()
    logger = logging.Logger("config")
    logger.addHandler(logging.StreamHandler(log))
    logger.error("%s %r %s", config, config.upstreams, vars(config) if hasattr(config, "__dict__") else config.keys)
    shown = [repr(config), str(config), f"{config}", f"{config.upstreams!r}", log.getvalue()]
    shown += [repr(upstream) + str(upstream.api_key) + f"{upstream.api_key}" for upstream in config.upstreams.values() if upstream.api_key]
    assert leaks("".join(shown), CREDENTIALS) == []
    assert "***" in "".join(shown)


async def test_passthrough_sends_the_callers_identity_to_its_upstream_and_writes_it_nowhere(
    relay_with: RelayWith, upstream: ScriptedUpstream
) -> None:
    upstream.answers(scripts.json_answer(ANSWER))
    upstream.route("refused", scripts.error_answer(401))
    mine = {"base_url": upstream.url, "api_key": "passthrough"}
    relay = await relay_with({"upstreams": {"mine": mine}, "routes": {"*": "mine/*"}})
    caller = (("Authorization", f"Bearer {PASSED_KEY}"), ("OpenAI-Organization", ORGANIZATION))
    got = b"".join([(await relay.post(CHAT, {"model": model, "user": PROMPT}, caller)).raw for model in ("good", "refused")])
    assert [request.header("authorization") for request in upstream.requests] == [f"Bearer {PASSED_KEY}".encode()] * 2
    assert [request.header("openai-organization") for request in upstream.requests] == [ORGANIZATION.encode()] * 2
    await relay.settled()
    assert leaks(got + relay.stderr().encode() + (await relay.get("/metrics")).raw, [PASSED_KEY, ORGANIZATION, PROMPT]) == []
