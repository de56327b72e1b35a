"""Prompts and answers in the log, for those who switched it on (`logging.prompts`): one line more for each request that has a JSON body.

It is another observer, so without it nothing is kept and nothing is paid. The beginnings only, of the request's body and of what reached
the client; what looks like a credential is taken out of them as out of everything.
"""

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from relay.exchange import MAX_OVERHEARD, Exchange, Summary
from relay.telemetry.logs import LogWriter
from relay.telemetry.redaction import redact

_json_line: Final = msgspec.json.Encoder().encode


class PromptLog:
    """Writes the lines: a `gateway.Observer`."""

    __slots__ = ("_worker", "_writer")

    def __init__(self, writer: LogWriter, *, worker: int | None = None) -> None:
        """Write with the number of the `worker`; as JSON on a terminal too, where it makes control characters harmless."""
        self._writer = writer
        self._worker = worker

    def began(self) -> None:
        """Write nothing."""

    def routed(self, exchange: Exchange) -> None:
        """Ask for the beginning of the answer."""
        exchange.overheard = bytearray()

    def violated(self, identity: str) -> None:
        """Write nothing."""

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        """Write nothing."""

    def ended(self, exchange: Exchange, summary: Summary) -> None:
        """Write what was asked and what was answered."""
        body = summary.request.body
        if body is None:
            return
        fields: dict[str, Any] = {
            "event": "prompt",
            "request_id": summary.request.id,
            "prompt": _text(body.raw),
            "prompt_bytes": len(body.raw),
            "answer": _text(bytes(exchange.overheard or b"")),
            "answer_bytes": summary.bytes_out,
            "level": "info",
            "ts": datetime.now(UTC).isoformat(),
        }
        if self._worker is not None:
            fields["worker"] = self._worker
        self._writer.put(_json_line(fields))


def _text(data: bytes) -> str:
    return redact(data[:MAX_OVERHEARD].decode("utf-8", "replace"))
