"""HTTP connections of `requests` that can be broken off from another thread, over TCP, TLS or a unix socket.

`Session.close` does not end a read that waits for a blocking query; shutting down its socket does
(reference/python-libs.md, long polls).
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NoReturn

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from hcc.consul.address import AgentAddress
from hcc.consul.environment import ConsulSettings
from hcc.consul.errors import InterruptedPollError
from hcc.errors import SettingError

log = logging.getLogger(__name__)

_POOL_SIZE = 4
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class Switch:
    """Knows the open sockets of one client, and ends them all. Safe for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.is_off = False

    def add(self, sock: socket.socket) -> None:
        """Remember an open socket.

        Raises:
            InterruptedPollError: `turn_off` came first.
        """
        with self._lock:
            if self.is_off:
                msg = "expected a running client, found one that was stopped"
                raise InterruptedPollError(msg)
            self._sockets.add(sock)

    def forget(self, sock: socket.socket) -> None:
        """Forget a socket that is about to be closed."""
        with self._lock:
            self._sockets.discard(sock)

    def turn_off(self) -> None:
        """Break off every request that waits, now and later."""
        with self._lock:
            self.is_off = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    # The plain shutdown: that of an SSLSocket forgets the encryption under a running read.
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Plain(HTTPConnection):
    """A connection whose socket the switch knows, to a host or to a unix socket."""

    switch: ClassVar[Switch]
    socket_path: ClassVar[str]

    def _new_conn(self) -> socket.socket:
        return _unix_socket(self.socket_path, self.timeout) if self.socket_path else super()._new_conn()

    def connect(self) -> None:
        super().connect()
        if self.sock is not None:
            self.switch.add(self.sock)

    def close(self) -> None:
        if self.sock is not None:
            self.switch.forget(self.sock)
        super().close()


class _Encrypted(HTTPSConnection):
    """As `_Plain`, with TLS by the certificates of now."""

    switch: ClassVar[Switch]
    tls: ClassVar[staticmethod[[], ssl.SSLContext | None]]

    def connect(self) -> None:
        self.ssl_context = self.tls()
        super().connect()
        # Where nobody verifies that is said once, by tls_context, and not as a warning for each request.
        self.is_verified = True
        if isinstance(self.sock, socket.socket):
            self.switch.add(self.sock)

    def close(self) -> None:
        if isinstance(self.sock, socket.socket):
            self.switch.forget(self.sock)
        super().close()


class AgentAdapter(HTTPAdapter):
    """Sends every request of a session to one agent, whatever host its URL names."""

    def __init__(
        self, address: AgentAddress, switch: Switch, tls: Callable[[], ssl.SSLContext | None], server_name: str
    ) -> None:
        super().__init__()
        self._pool = _pool(address, switch, tls, server_name)

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: bool | str | None,
        proxies: Mapping[str, str] | None = None,
        cert: tuple[str, str] | str | None = None,
    ) -> HTTPConnectionPool:
        """The one pool; what TLS needs is in it already."""
        del request, verify, proxies, cert
        return self._pool

    def cert_verify(self, conn: object, url: object, verify: object, cert: object) -> None:
        """Nothing: `requests` would replace the pool's own TLS context."""

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()
        super().close()


def tls_context(settings: ConsulSettings) -> ssl.SSLContext | None:
    """What the agent's certificate is checked with, and ours; None for plain HTTP. May be shared by all clients.

    Raises:
        SettingError: a certificate or key file that cannot be used.
    """
    if settings.address.scheme != "https":
        return None
    roots = settings.ca_file or settings.ca_path
    with _readable("CA certificates in PEM", roots):
        below = "" if settings.ca_file else _certificates_below(settings.ca_path)
        context = ssl.create_default_context(cafile=settings.ca_file or None, cadata=below or None)
    # Python 3.13 asks for what a company's own CA often lacks; Consul's programs, and Python before, do not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if settings.client_cert:
        with _readable("a certificate and its key in PEM", f"{settings.client_cert}, {settings.client_key}"):
            context.load_cert_chain(settings.client_cert, settings.client_key, lambda: _refuse_passphrase(settings))
    if not settings.ssl_verify:
        log.warning("TLS to Consul at %s: certificate not verified, as asked", settings.address.label())
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _certificates_below(directory: str) -> str:
    """The certificates in all files below a directory, as Consul's own programs read it; empty for no directory.

    OpenSSL itself would look only at files that are named after the hash of what is in them.

    Raises:
        OSError: it cannot be read.
        SettingError: there are none.
    """
    if not directory:
        return ""
    # Says why it cannot be read, which the search below does not.
    list(Path(directory).iterdir())
    files = (path for path in sorted(Path(directory).rglob("*")) if path.is_file())
    found = [pem for path in files for pem in _CERTIFICATE.findall(path.read_text("ascii", errors="replace"))]
    if not found:
        raise SettingError(f"TLS to Consul: expected CA certificates in PEM, found none in the files below {directory}")
    return "\n".join(found)


def _refuse_passphrase(settings: ConsulSettings) -> NoReturn:
    # OpenSSL would ask for it on the terminal, where nobody may sit.
    msg = f"TLS to Consul: expected a client key without a passphrase, found an encrypted one in {settings.client_key}"
    raise SettingError(msg)


@contextlib.contextmanager
def _readable(what: str, files: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as exc:
        # OpenSSL's word for it is one for programmers.
        reason = f" ({exc.reason.replace('_', ' ').lower()})" if exc.reason else ""
        raise SettingError(f"TLS to Consul: expected {what}, found something else in {files}{reason}") from exc
    except OSError as exc:
        raise SettingError(f"TLS to Consul: expected {what}, found {exc.strerror}: {files}") from exc


def _pool(
    address: AgentAddress, switch: Switch, tls: Callable[[], ssl.SSLContext | None], server_name: str
) -> HTTPConnectionPool:
    context = tls()
    if context is None:
        plain = HTTPConnectionPool(address.host, address.port, maxsize=_POOL_SIZE)
        plain.ConnectionCls = type("Plain", (_Plain,), {"switch": switch, "socket_path": address.socket})
        return plain
    pool = HTTPSConnectionPool(
        address.host,
        address.port,
        maxsize=_POOL_SIZE,
        ssl_context=context,
        cert_reqs="CERT_REQUIRED" if context.verify_mode is ssl.CERT_REQUIRED else "CERT_NONE",
        server_hostname=server_name or None,
        assert_hostname=server_name or None,
    )
    pool.ConnectionCls = type("Encrypted", (_Encrypted,), {"switch": switch, "tls": staticmethod(tls)})
    return pool


def _unix_socket(path: str, timeout: object) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout if isinstance(timeout, int | float) else None)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock
