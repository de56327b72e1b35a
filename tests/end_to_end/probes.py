"""A relay under attack: raw bytes go in, and what came back, what reached the upstream and what was logged is asserted."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.fakes.client import Pairs, Response
from tests.fakes.relay import RelayProcess
from tests.fakes.scripts import json_answer
from tests.fakes.upstream import Request, ScriptedUpstream

CHAT = "/v1/chat/completions"
ANSWER = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}}]}
LOG_SECONDS = 5.0
ENVELOPE = {"message", "type", "param", "code"}
"""Members of an error of the relay's own; `attempts` beside them where there were any."""
STATUS_LINE = re.compile(rb"^HTTP/1\.1 \d{3} ", re.MULTILINE)
SMUGGLED = b'POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n{"model":"smuggled"}'
"""A request that hides behind another one: it must never reach an upstream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a refused request must look like from all sides."""

    status: int
    code: str
    outcome: str | None = "invalid_request"
    """None: the bytes were no request under /v1, so there is no exchange, no count and no log line."""
    closes: bool = False
    """Whether the connection must be closed behind the answer."""


class Bed:
    """A running relay, and the scripted upstream behind it."""

    def __init__(self, relay: RelayProcess, upstream: ScriptedUpstream, *, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Attack `relay`; `headers` go with the requests that show that it still serves."""
        self.relay = relay
        self.upstream = upstream
        self._headers = tuple(headers)
        upstream.route("still-serving", json_answer(ANSWER))

    async def refuse(self, data: bytes, wanted: Refusal) -> Response:
        """Send bytes and assert that they are refused as `wanted`, and that nothing came of them anywhere."""
        before = self.seen
        async with await self.relay.connect() as client:
            await client.send(data)
            response = await client.read_response(method=data.partition(b" ")[0].decode("latin-1"))
            if wanted.closes:
                rest, _ = await client.read_until_close(within=5)
                assert rest == b"", rest
        self.check(response, wanted)
        assert self.seen == before, "something reached the upstream"
        await self.check_log(response, wanted)
        await self.still_serves()
        return response

    def check(self, response: Response, wanted: Refusal) -> None:
        """Assert that an answer is the relay's own, with its fixed text and a whole envelope."""
        assert (response.status, response.end) == (wanted.status, "complete"), response.raw
        error = response.json()["error"]
        assert isinstance(error, dict)
        assert set(error) - {"attempts"} == ENVELOPE
        assert error["code"] == wanted.code, error
        assert response.header("x-relay-error") == wanted.code.encode()
        assert (response.header("x-relay-request-id") is not None) == (wanted.outcome is not None)
        if wanted.closes:
            assert response.header("connection") == b"close"

    async def check_log(self, response: Response, wanted: Refusal) -> None:
        """Assert that an exchange has one log line with its outcome and code."""
        if wanted.outcome is None:
            return
        line = await self.line(response)
        assert (line["outcome"], line["error_code"], line["status"], line["attempts"]) == (wanted.outcome, wanted.code, wanted.status, 0)

    async def line(self, response: Response) -> dict[str, Any]:
        """Return the only log line of an exchange, found by its request id."""
        request_id = (response.header("x-relay-request-id") or b"").decode()
        assert request_id, response.raw
        async with asyncio.timeout(LOG_SECONDS):
            while not (found := [line for line in self.whole_lines if request_id in line and '"event":"request"' in line]):
                await asyncio.sleep(0.005)
        assert len(found) == 1, found
        line = json.loads(found[0])
        assert isinstance(line, dict)
        return line

    @property
    def whole_lines(self) -> list[str]:
        """Return the lines of the log that are written to their end."""
        return self.relay.stderr().split("\n")[:-1]

    async def settle_accounts(self) -> None:
        """Assert at the end that nothing is in flight, and that the metrics count exactly the outcomes that the log tells."""
        await self.relay.assert_identities()
        metrics = await self.relay.settled()
        told = Counter(line["outcome"] for line in self.relay.logs("request"))
        assert told == {outcome: metrics.sum("relay_requests_total", outcome=outcome) for outcome in told}
        assert sum(told.values()) == metrics.sum("relay_requests_total")

    @property
    def seen(self) -> tuple[int, int]:
        """Connections and requests that the upstream has seen so far."""
        return self.upstream.connection_count, len(self.upstream.requests)

    async def still_serves(self) -> None:
        """Assert that the relay is alive and answers an honest request."""
        assert self.relay.is_alive, self.relay.stderr()[-4000:]
        answer = await self.relay.post(CHAT, {"model": "still-serving", "messages": []}, self._headers)
        assert (answer.status, answer.json()) == (200, ANSWER), answer.raw

    async def send(self, target: str | bytes, value: object, headers: Pairs = (), *, method: str = "POST") -> Response:
        """Send JSON, or bytes as they are (None: no body), on a connection of its own and take the answer."""
        lines = list(headers)
        body = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        if body is not None and not any(str(name).lower() == "content-type" for name, _ in lines):
            lines.append(("Content-Type", "application/json"))
        async with await self.relay.connect() as client:
            await client.request(method, target, lines, body)
            return await client.read_response(method=method)

    async def forwarded(self, target: str | bytes, value: object, headers: Pairs = (), *, method: str = "POST") -> tuple[Response, Request]:
        """Send a request that must be passed on exactly once; return the answer and what the upstream got."""
        known = len(self.upstream.requests)
        response = await self.send(target, value, headers, method=method)
        assert len(self.upstream.requests) == known + 1, (response.raw, self.upstream.requests[known:])
        return response, self.upstream.requests[known]


def request(*lines: bytes, body: bytes = b"") -> bytes:
    """Put a request together from its lines as they are; the empty line and the body follow."""
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def post(*lines: bytes, body: bytes = b"{}", path: bytes = b"/v1/chat/completions") -> bytes:
    """Put a POST together, without a Content-Length unless `lines` have one."""
    return request(b"POST %b HTTP/1.1" % path, b"Host: relay", *lines, body=body)


def answers_in(data: bytes) -> int:
    """Count the status lines in what a client got."""
    return len(STATUS_LINE.findall(data))
