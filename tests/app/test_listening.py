"""What a person is told when an address cannot be had."""

import errno
import socket

import pytest

from relay.app.listening import listen, listen_message
from relay.config import discover


def message_of(host: str, port: int) -> str:
    with pytest.raises(OSError) as caught:
        listen(host, port)
    return listen_message(discover({}, has_ollama=False, listen=f"127.0.0.1:{port}"), caught.value)


def test_a_port_that_is_taken_says_so_and_how_to_have_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first, second = message_of("127.0.0.1", port).splitlines()
    assert first == f"relay: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert second == "Another program is using the port; see `ss -ltnp`, or choose another one: relay serve --listen 127.0.0.1:8081"


def test_an_address_of_another_machine_is_not_blamed_on_another_program() -> None:
    message = message_of("203.0.113.7", 18081)  # set aside for documents (RFC 5737)
    assert "This machine does not have that address" in message
    assert "program" not in message


def test_a_name_without_an_address_is_not_blamed_on_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: object, address: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(
        socket, "socket", type("Socket", (), {"bind": bind, "setsockopt": _nothing, "close": _nothing, "__init__": _nothing})
    )
    message = message_of("relay.invalid", 18081)
    assert "relay.invalid:18081: Name or service not known" in message
    assert "say the address itself" in message


def test_a_port_of_the_system_is_told_as_one() -> None:
    error = OSError(errno.EACCES, "Permission denied", "127.0.0.1:80")
    config = discover({}, has_ollama=False, listen="127.0.0.1:80")
    assert "Ports below 1024 are the system's" in listen_message(config, error)


def _nothing(*_: object) -> None:
    pass
