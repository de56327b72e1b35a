"""The places where the listener stands on aiohttp's insides: each fails here, loudly, when a new aiohttp moves it."""

import asyncio
import inspect
import ssl

import aiohttp
import pytest
from aiohttp import connector, web, web_protocol
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import (
    BadHttpMessage,
    BadStatusLine,
    ContentLengthError,
    HttpProcessingError,
    InvalidHeader,
    LineTooLong,
    TransferEncodingError,
)
from aiohttp.http_parser import HttpRequestParser
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler

from relay.transport.listener import Incoming, RelayHandler, RelayServer, Sent
from relay.transport.upload import Payload
from tests.transport.doubles import FakeTransport


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_it_is_the_minor_version_that_the_seams_were_looked_at_in() -> None:
    assert aiohttp.__version__.startswith("3.14.")


def test_aiohttp_makes_its_clients_contexts_where_they_are_dropped() -> None:
    assert isinstance(connector._SSL_CONTEXT_VERIFIED, ssl.SSLContext)
    assert isinstance(connector._SSL_CONTEXT_UNVERIFIED, ssl.SSLContext)


def test_the_c_parser_is_the_one_in_use() -> None:
    """The Python one is more lenient and far slower."""
    from aiohttp.http_parser import HttpRequestParserC

    assert HttpRequestParser is HttpRequestParserC


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("connection_made", ["self", "transport"]),
        ("connection_lost", ["self", "exc"]),
        ("data_received", ["self", "data"]),
        ("eof_received", ["self"]),
        ("pause_writing", ["self"]),
        ("resume_writing", ["self"]),
        ("pause_reading", ["self"]),
        ("force_close", ["self"]),
        ("log_exception", ["self", "args", "kw"]),
        ("handle_error", ["self", "request", "status", "exc", "message"]),
        ("set_parser", ["self", "parser", "data_received_cb"]),
        ("finish_response", ["self", "request", "resp", "start_time"]),
        ("start", ["self"]),
    ],
)
def test_the_handlers_methods_are_where_they_were(name: str, expected: list[str]) -> None:
    assert parameters(getattr(RequestHandler, name)) == expected


async def test_the_handler_takes_the_settings_that_it_is_given() -> None:
    accepted = set(inspect.signature(RequestHandler.__init__).parameters)
    server = _server()
    assert set(server._settings) <= accepted
    assert accepted >= {"manager", "loop"}


def test_every_overridden_method_exists_in_the_base() -> None:
    own = {name for name, value in vars(RelayHandler).items() if inspect.isfunction(value) and not name.startswith("__")}
    added = {name for name in own if not hasattr(RequestHandler, name)}
    assert added <= {"tap", "send_continue", "_expect_request", "_look", "_next_message", "_serve", "_linger", "_wait_for_next"}, (
        "a method that overrides nothing any more, or a new one to list here"
    )


async def test_the_handlers_attributes_are_where_they_were() -> None:
    handler = RelayHandler(_server())
    for name in (
        "_buffer_paused",
        "_close",
        "_keepalive",
        "_keepalive_handle",
        "_keepalive_timeout",
        "_lingering_time",
        "_loop",
        "_msg_queue_resume_size",
        "_next_keepalive_close_time",
        "_parser",
        "_request_count",
        "_request_handler",
        "_task_handler",
        "_waiter",
        "_message_tail",
        "_messages",
        "_current_request",
        "_payload_parser",
        "_force_close",
        "_upgraded",
        "transport",
        "peername",
    ):
        assert hasattr(handler, name), name
    assert handler._request_count == 0
    assert handler._message_tail == b""
    assert not hasattr(handler, "__dict__") or RequestHandler.__dictoffset__, "slots are gone"


async def test_the_server_takes_a_handler_and_cancels_handlers() -> None:
    signature = inspect.signature(web.Server.__init__)
    assert [*signature.parameters][:2] == ["self", "handler"]
    assert "handler_cancellation" in signature.parameters
    server = _server()
    assert server.handler_cancellation is True
    assert {"pre_shutdown", "shutdown", "connections"} <= set(dir(server))


def test_the_own_serving_loop_finds_what_it_calls() -> None:
    assert parameters(RequestHandler._handle_request) == ["self", "request", "start_time", "request_handler"]
    assert parameters(RequestHandler._make_error_handler) == ["self", "err_info"]
    assert parameters(RequestHandler._process_keepalive) == ["self"]
    assert parameters(RequestHandler._resume_reading_if_drained) == ["self"]
    assert callable(HttpRequestParser.message_consumed)
    assert "self._current_request = request" in inspect.getsource(RequestHandler._handle_request)
    assert "create_task(self.start())" in inspect.getsource(RequestHandler.connection_made)


def test_what_the_handler_is_asked_for_after_an_answer_is_what_sent_has() -> None:
    source = inspect.getsource(RequestHandler.finish_response)
    assert "request._finish()" in source
    assert "await prepare_meth(request)" in source and "await resp.write_eof()" in source
    assert {"keep_alive", "prepare", "write_eof"} <= set(dir(Sent))
    assert "._current_request._cancel(" in inspect.getsource(RequestHandler.connection_lost)


def test_a_message_that_cannot_be_parsed_is_queued_as_an_error() -> None:
    assert {"status", "exc", "message"} <= {field.name for field in web_protocol._ErrInfo.__attrs_attrs__}
    assert "handle_error(" in inspect.getsource(RequestHandler._make_error_handler)


@pytest.mark.parametrize("error", [BadStatusLine, ContentLengthError, InvalidHeader, LineTooLong, TransferEncodingError])
def test_every_parse_error_is_a_bad_message(error: type[Exception]) -> None:
    assert issubclass(error, BadHttpMessage)
    assert issubclass(error, HttpProcessingError)


def test_back_pressure_arrives_through_the_base_protocol() -> None:
    assert issubclass(RequestHandler, BaseProtocol)
    assert {"pause_writing", "resume_writing"} <= set(vars(BaseProtocol))


async def test_a_body_has_what_a_reader_of_bodies_needs() -> None:
    for name in ("is_eof", "at_eof", "readany", "read_nowait"):
        assert hasattr(Payload, name)
        assert hasattr(StreamReader, name) and hasattr(EMPTY_PAYLOAD, name)
    assert EMPTY_PAYLOAD.is_eof() and EMPTY_PAYLOAD.at_eof()
    reader = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16, loop=asyncio.get_running_loop())
    reader.feed_data(b"ab")
    assert not reader.is_eof()
    reader.feed_eof()
    assert reader.is_eof() and not reader.at_eof()
    assert reader.read_nowait(-1) == b"ab"
    assert reader.at_eof()
    assert await reader.readany() == b""


async def test_an_exception_set_on_a_body_is_raised_to_its_reader() -> None:
    protocol = BaseProtocol(asyncio.get_running_loop())
    protocol.connection_made(FakeTransport())
    reader = StreamReader(protocol, 2**16, loop=asyncio.get_running_loop())
    waiting = asyncio.ensure_future(reader.readany())
    await asyncio.sleep(0)
    reader.set_exception(KeyError("spoiled"))
    with pytest.raises(KeyError):
        await waiting


def _server() -> RelayServer:
    async def handle(incoming: Incoming) -> Sent:
        raise AssertionError

    return RelayServer(handle, max_connections=1, on_failure=lambda error: None)
