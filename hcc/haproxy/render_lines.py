"""Lines that several sections of the configuration have. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import Bind, Mode, TcpBind, Timeouts

KEEP_ALIVE_MS = 3_600_000
REQUEST_MS = 60_000
# Under way at each SPOE agent, which answers them one by one; others wait for their turn.
MOST_QUESTIONS = 64
# Connections that nothing goes over: asked about well before a firewall that forgets idle ones after a minute does so,
# and given up after two and a half, so that they outlive what sessions with data outlive, a network that fails a while.
_ASK_IDLE_S, _ASK_AGAIN_S, _ASK_TIMES = 30, 15, 8


def frontend_mode(mode: Mode) -> Iterator[str]:
    """The mode of a frontend. A chunk of an answer (a server-sent event) must not wait 200 ms for the next one."""
    yield f"  mode {mode.value}"
    if mode is Mode.HTTP:
        yield "  option http-no-delay"


def client_timeout(milliseconds: int) -> Iterator[str]:
    """How long a frontend's client may be silent."""
    yield f"  timeout client {words.milliseconds(milliseconds)}"


def connection_limit(limit: int) -> Iterator[str]:
    """What closes connections to a frontend beyond so many, before anything is read; 0 for no limit."""
    if limit:
        yield f"  tcp-request connection reject if {{ fe_conn gt {words.number(limit)} }}"


def no_h2(capabilities: Capabilities) -> Iterator[str]:
    """What keeps HAProxy from speaking HTTP/2 with whoever begins so.

    One connection may have many requests then, which a caller, one that is denied as well, can give up as fast as it
    makes them: that keeps HAProxy from all else.
    """
    if capabilities.has(Feature.DISABLE_H2_UPGRADE):
        yield "  option disable-h2-upgrade"


def kept_alive() -> Iterator[str]:
    """How long an http client may be silent between requests, and before its request is there.

    Who opened a connection closes it: a request must not cross with our closing. Envoy waits as long.
    """
    yield f"  timeout http-request {words.milliseconds(REQUEST_MS)}"
    yield f"  timeout http-keep-alive {words.milliseconds(KEEP_ALIVE_MS)}"


def watched(side: str, capabilities: Capabilities) -> Iterator[str]:
    """What has the kernel ask whether the far end of an idle connection is there, of the side `cli` or `srv`.

    One that lost its power or its network ends nothing, and a firewall that forgets a connection tells nobody. The
    kernel's own times, two hours, are longer than any connection of ours may be idle.
    """
    if capabilities.has(Feature.KEEPALIVE_TIMES):
        yield f"  option {side}tcpka"
        yield f"  {side}tcpka-idle {words.number(_ASK_IDLE_S)}s"
        yield f"  {side}tcpka-intvl {words.number(_ASK_AGAIN_S)}s"
        yield f"  {side}tcpka-cnt {words.number(_ASK_TIMES)}"


def backend_mode(mode: Mode) -> Iterator[str]:
    """The mode of a backend. A tcp client may end its side before there is a server, and is answered all the same."""
    yield f"  mode {mode.value}"
    if mode is Mode.TCP:
        yield "  no option abortonclose"


def question_limit(capabilities: Capabilities) -> str:
    """What bounds the questions under way at the server of an SPOE agent.

    Who asks for thousands of requests at once over HTTP/2 must not have the descriptors of everybody's connections.
    """
    return f" maxconn {words.number(MOST_QUESTIONS)}" if capabilities.has(Feature.SPOE_CONNECTIONS) else ""


def timeout_lines(timeouts: Timeouts) -> Iterator[str]:
    """The timeouts of a backend."""
    yield f"  timeout connect {words.milliseconds(timeouts.connect_ms)}"
    yield f"  timeout server {words.milliseconds(timeouts.server_ms)}"
    if timeouts.tunnel_ms:
        yield f"  timeout tunnel {words.milliseconds(timeouts.tunnel_ms)}"


def bind_address(bind: Bind) -> str:
    """What follows `bind`, without TLS."""
    if isinstance(bind, TcpBind):
        return words.address(bind.address, bind.port)
    return f"unix@{words.listening_path(bind.path)}{f' mode {words.mode(bind.mode)}' if bind.mode else ''}"
