"""Certificates for TLS towards a scripted upstream: a private authority, good and bad certificates of it."""

import datetime
import ssl
from pathlib import Path

import trustme


class Authority:
    """A certificate authority that lives as long as the tests."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.file = directory / "authority.pem"
        """The authority's certificate, for `ca_file`."""
        self._authority.cert_pem.write_to_path(str(self.file))

    def server(self, *names: str, expired: bool = False) -> ssl.SSLContext:
        """A server's context with a certificate for `names` (localhost when none is given)."""
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        certificate = self._authority.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=past if expired else None)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context

    def client(self) -> ssl.SSLContext:
        """A client's context that trusts this authority alone."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context
