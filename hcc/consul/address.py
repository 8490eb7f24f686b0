"""Where the Consul agent is, from the forms that `CONSUL_HTTP_ADDR` may have.

The forms are those of Consul's own programs, so that one variable serves all of them: `host:port`, `host`,
`[ipv6]:port`, `http://..`, `https://host:port/path`, `unix:///path`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hcc.errors import SettingError
from hcc.settings import MAX_PORT, is_host_name, whole_number

DEFAULT_ADDRESS = "127.0.0.1:8500"
# As a URL without a port, and as Consul's own programs do; 8500 is the default of the whole address only.
_URL_PORTS = {"http": 80, "https": 443}
_FORMS = "host:port, http(s)://host[:port][/path] or unix:///path"


@dataclass(frozen=True, slots=True)
class AgentAddress:
    """One agent's HTTP API.

    Args:
        scheme: `http` or `https`.
        host: name or IP address, IPv6 without brackets; `localhost` for a socket.
        path: put before `/v1`, without a slash at its end; mostly empty.
        socket: path of a unix socket, which then replaces host and port.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    socket: str = ""

    def base_url(self) -> str:
        """The URL that `/v1/...` is appended to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    def label(self) -> str:
        """The address for people."""
        return f"unix://{self.socket}" if self.socket else self.base_url()


def agent_address(text: str, *, ssl: bool = False, source: str = "CONSUL_HTTP_ADDR") -> AgentAddress:
    """The address that a text means; an empty text means 127.0.0.1:8500.

    Args:
        text: as the operator wrote it.
        ssl: TLS was asked for elsewhere (`CONSUL_HTTP_SSL`); it wins over a scheme of `http`.
        source: the flag or variable to name in an error.

    Raises:
        SettingError: another scheme, no host, a bad port, or TLS over a unix socket.
    """
    scheme, separator, rest = (text or DEFAULT_ADDRESS).strip().partition("://")
    if not separator:
        scheme, rest = "http", scheme
    scheme = scheme.lower()
    if scheme == "unix":
        return _unix_address(text, rest, ssl, source)
    if scheme not in _URL_PORTS:
        raise _error(text, source, f"the scheme {masked(scheme)!r}")
    scheme = "https" if ssl else scheme
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise _error(text, source, "a user before the host; give it as CONSUL_HTTP_AUTH=user:password")
    host, port = _host_and_port(text, authority, source)
    path = path.strip("/")
    return AgentAddress(scheme, host, port or _URL_PORTS[scheme], f"/{path}" if path else "")


def masked(text: str) -> str:
    """An address as it may be shown: without what stands before an `@`, which may be a password."""
    before, separator, after = text.rpartition("@")
    if not separator or text.strip().lower().startswith("unix:"):
        return text
    scheme, separator, _ = before.partition("://")
    return f"{scheme}://...@{after}" if separator else f"...@{after}"


def _unix_address(text: str, path: str, ssl: bool, source: str) -> AgentAddress:
    if ssl:
        raise _error(text, source, "TLS (CONSUL_HTTP_SSL) together with a unix socket")
    if not path.startswith("/"):
        raise _error(text, source, "a socket path that is not absolute")
    return AgentAddress("http", "localhost", _URL_PORTS["http"], socket=path)


def _host_and_port(text: str, authority: str, source: str) -> tuple[str, int]:
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _error(text, source, "an unclosed bracket")
        port = rest[1:]
    elif authority.count(":") > 1:
        host, rest, port = authority, "", ""
    else:
        host, rest, port = authority.partition(":")
    if not _plain(host) or not is_host_name(host):
        raise _error(text, source, f"the host {host!r}")
    return host, _port(text, port, source) if rest else 0


def _plain(host: str) -> bool:
    return bool(host) and host.isascii() and host.isprintable() and not any(mark in host for mark in " @?#[]/\\")


def _port(text: str, port: str, source: str) -> int:
    number = whole_number(port, 1, MAX_PORT)
    if number is None:
        raise _error(text, source, f"the port {port!r}")
    return number


def _error(text: str, source: str, found: str) -> SettingError:
    return SettingError(f"{source}={masked(text)}: expected {_FORMS}, found {found}")
