"""Addresses as people write them: where to listen, which URL to call, which origins, networks and headers to accept.

Parsers raise ValueError with a message that never repeats what was found: a URL may hold a password.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, urlsplit

from relay.config.tree import Secret
from relay.config.values import parse_text

Listen = tuple[str, int]
"""Host and port."""

_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~:@!$&'()*+,=-]+)*/?")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_ENDPOINTS: Final = ("/chat/completions", "/completions", "/embeddings", "/responses", "/messages")
_DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
_NEVER_FORWARDED: Final = frozenset(
    {"authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie", "openai-organization", "openai-project", "host"}
    | {"connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive", "expect", "content-encoding"}
    | {"accept-encoding", "forwarded", "via"}
)
"""Credentials, framing and what names a peer: a list in a file must not open these doors."""


def parse_listen(value: object) -> Listen:
    """Return (host, port) of `127.0.0.1:8080` or `[::1]:8080`; port 0 lets the system choose."""
    expected = "HOST:PORT such as 127.0.0.1:8080"
    text = parse_text(value, expected)
    host, colon, port = text.rpartition(":")
    if not colon or _PORT.fullmatch(port) is None or int(port) > 65535:
        raise ValueError(f"expected {expected}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not isinstance(_literal(host), IPv6Address):
            raise ValueError(f"expected {expected}")
    elif _HOST.fullmatch(host) is None:
        raise ValueError(f"expected {expected}; 0.0.0.0:PORT is every address of this machine")
    return host, int(port)


def parse_base_url(value: object) -> str:
    """Return an http(s) URL with scheme and host in lower case and no slash at the end."""
    expected = "a URL such as https://api.example.com/v1"
    parts = _split(parse_text(value, expected), expected)
    path = parts.path.rstrip("/")
    if _PREFIX.fullmatch(path) is None or any(segment in (".", "..") for segment in path.split("/")):
        raise ValueError("the path of the URL holds something other than plain segments")
    if path.endswith(_ENDPOINTS):
        raise ValueError("leave the endpoint off: the URL ends where /chat/completions would follow, mostly in /v1")
    return f"{_origin(parts)}{path}"


def parse_redis_url(value: object) -> Secret:
    """Return the URL of a Redis server. It may hold a password, so no message repeats it."""
    expected = "a URL such as redis://host:6379/0"
    text = parse_text(value, expected)
    scheme, colon, rest = text.partition("://")
    if scheme not in ("redis", "rediss", "unix") or not colon or not rest:
        raise ValueError(f"expected {expected}; rediss:// is with TLS")
    try:
        parts = urlsplit(text)
        is_placed = parts.path != "" if scheme == "unix" else bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_placed = False
    if not is_placed or " " in text:
        raise ValueError(f"expected {expected}")
    if scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdigit():
        raise ValueError("the path of the URL is the number of a database, such as /0")
    return Secret(text)


def parse_proxy(value: object) -> str:
    """Return `http://host:port` of a proxy that is asked to CONNECT."""
    expected = "a proxy such as http://proxy.example.com:3128"
    parts = _split(parse_text(value, expected), expected)
    if parts.scheme != "http" or parts.path not in ("", "/"):
        raise ValueError(f"expected {expected}")
    return _origin(parts) if parts.port is not None else f"{_origin(parts)}:80"


def parse_origin(value: object) -> str:
    """Return a browser's origin, scheme, host and port, as browsers send it."""
    expected = "an origin such as https://app.example.com"
    text = parse_text(value, expected)
    if text == "*":
        raise ValueError("* would let every web page call with the reader's key; list the origins")
    parts = _split(text, expected)
    if parts.path not in ("", "/"):
        raise ValueError(f"expected {expected}, without a path")
    return _origin(parts)


def parse_network(value: object) -> str:
    """Return an address or a network in its canonical form."""
    expected = "an address or network such as 10.0.0.7 or 10.0.0.0/8"
    text = parse_text(value, expected)
    try:
        return str(ip_network(text)) if "/" in text else str(ip_address(text))
    except ValueError:
        raise ValueError(f"expected {expected}") from None


def parse_forwarded_header(value: object) -> bytes:
    """Return the lower-case name of a request header that may pass."""
    expected = "a header's name such as x-team"
    text = parse_text(value, expected)
    if _HEADER.fullmatch(text) is None:
        raise ValueError(f"expected {expected}")
    name = text.lower()
    if name in _NEVER_FORWARDED or name.startswith(("proxy-", "x-forwarded-")):
        raise ValueError("this header is never forwarded: it carries a credential, framing or an address")
    return name.encode()


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    address = _literal(host)
    return address.is_loopback if address is not None else host.lower() == "localhost"


def is_private(host: str) -> bool:
    """Tell whether the written host itself says that the address is not a public one."""
    address = _literal(host)
    return not address.is_global if address is not None else is_loopback(host)


def host_of(url: str) -> str:
    """Return the host of a URL that `parse_base_url` returned, without brackets."""
    return urlsplit(url).hostname or ""


def calls_itself(url: str, listen: Listen) -> bool:
    """Tell whether `url` leads to the address this process listens on."""
    parts = urlsplit(url)
    host, port = listen
    if port == 0 or (parts.port or _DEFAULT_PORTS[parts.scheme]) != port:
        return False
    target = parts.hostname or ""
    called, listener = _literal(target), _literal(host)
    if listener is not None and listener.is_unspecified:
        return is_loopback(target)
    if called is not None and listener is not None:
        return called == listener
    return target == host.lower() or (is_loopback(target) and is_loopback(host))


def listen_text(listen: Listen) -> str:
    """Write (host, port) as `HOST:PORT`."""
    host, port = listen
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(text: str, expected: str) -> SplitResult:
    """Split a URL into parts that are safe to join again: http(s), a plain host, no user, query or fragment."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"expected {expected}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"expected {expected}, beginning with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("a URL here holds no user name or password; use api_key for a credential")
    if "?" in text or "#" in text:
        raise ValueError("a URL here has no query and no fragment")
    host = parts.hostname or ""
    address = _literal(host) if "%" not in host else None
    if address is None and _HOST.fullmatch(host) is None:
        raise ValueError(f"expected {expected}, with a host of plain letters, digits, dots and dashes")
    if address is not None and (address.is_unspecified or address.is_multicast or address.is_link_local):
        raise ValueError("this address is never called: it is unspecified, multicast or link-local")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"expected {expected}, with a port from 1 to 65535")
    return parts


def _origin(parts: SplitResult) -> str:
    host = parts.hostname or ""
    name = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{name}" + (f":{parts.port}" if parts.port is not None else "")


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
