"""TLS towards an upstream over an own `ssl.MemoryBIO` pair, between a plain transport and a protocol.

The loop's own TLS costs about three times as much per small event (measured by `bench/`, row "TLS to the upstream"):
it wakes its state machine and copies through several buffers for each record. Here ciphertext goes into one BIO and
plaintext comes out of `SSLObject.read` in the same call, into the wrapped protocol's `data_received`.

`TlsLink` looks like a transport to the protocol above and is the protocol of the transport below.
"""

import asyncio
import ssl
from typing import Any, Final

from aiohttp import connector

_READ_SIZE: Final = 256 * 2**10


class TlsLink(asyncio.Protocol, asyncio.Transport):
    """Encrypts what the protocol writes and decrypts what the peer sends."""

    __slots__ = ("_incoming", "_is_open", "_object", "_outgoing", "_protocol", "_transport", "ready")

    def __init__(self, context: ssl.SSLContext, server_name: str, protocol: asyncio.Protocol) -> None:
        asyncio.Transport.__init__(self)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._is_open = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is; fails with ssl.SSLError or ConnectionError."""
        self.ready.add_done_callback(_look_at)

    # The protocol of the transport below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are not asyncio.Transport subclasses
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        """Decrypt and pass on all that can be read."""
        self._incoming.write(data)
        if not self._is_open and not self._shake_hands():
            return
        try:
            plain = self._object.read(_READ_SIZE)
            while plain:
                self._protocol.data_received(plain)
                plain = self._object.read(_READ_SIZE)
        except ssl.SSLWantReadError:
            # Nothing more to decrypt: the usual way out.
            if self._outgoing.pending:
                self._flush()
            return
        except ssl.SSLError as error:
            self._fail(error)
            return
        # An empty read is the peer's close_notify: its FIN follows, or we send ours.
        self.close()

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def pause_writing(self) -> None:
        """Pass the transport's back-pressure on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass the end of the transport's back-pressure on."""
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the protocol, or the one who waits for the handshake."""
        self._transport = None
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionResetError("closed during the TLS handshake"))
        elif self._is_open:
            self._protocol.connection_lost(exc)

    def _shake_hands(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._fail(error)
            return False
        self._flush()
        self._is_open = True
        if not self.ready.done():
            self.ready.set_result(None)
        self._protocol.connection_made(self)
        return True

    def _fail(self, error: ssl.SSLError) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
        self._flush()
        self.abort()

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    # The transport of the protocol above

    def write(self, data: Any) -> None:
        """Encrypt and send."""
        if self._transport is None or not self._is_open:
            return
        self._object.write(data)
        self._transport.write(self._outgoing.read())

    def close(self) -> None:
        """Close after what was written; no close_notify is awaited."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def is_closing(self) -> bool:
        """Tell whether the connection is closed or closing."""
        return self._transport is None or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Stop reading ciphertext."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read ciphertext again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Return the bytes of ciphertext not sent yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport below knows."""
        return default if self._transport is None else self._transport.get_extra_info(name, default)


def _look_at(ready: "asyncio.Future[None]") -> None:
    """Take note of a failure that nobody may wait for any more, when connecting has timed out meanwhile."""
    if not ready.cancelled():
        ready.exception()


def drop_unused_contexts() -> None:
    """Drop the two contexts that aiohttp makes for its client, which nobody uses here: they hold 1.5 MB of certificates."""
    connector._SSL_CONTEXT_VERIFIED = connector._SSL_CONTEXT_UNVERIFIED = None  # type: ignore[assignment]
