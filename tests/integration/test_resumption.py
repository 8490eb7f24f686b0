"""A TLS session is resumed, and never after the certificate or CA it came with was replaced."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from hcc.haproxy.capabilities import Feature
from hcc.haproxy.plan import plan
from hcc.haproxy.render import Rendered
from hcc.mesh.snapshot import Protocol, UpstreamState
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import Stage, stage
from tests.pki import Authority, service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration

TLS_VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Caller:
    """Calls the public listener of a sidecar, with one TLS session for as long as it is resumed."""

    def __init__(self, made: Stage, version: ssl.TLSVersion) -> None:
        self._stage, self._version = made, version
        self.port, self._app = free_port(), made.app()
        self._session: ssl.SSLSession | None = None
        self.context = self._context()

    def serve(self) -> None:
        """Let HAProxy run with the present leaf and roots."""
        self._stage.converge(self.wanted())

    def wanted(self, *states: UpstreamState) -> Rendered:
        """With the present leaf and roots."""
        upstreams = tuple(state.upstream for state in states)
        proxy_ = proxy(bind_port=self.port, local_port=self._app.port, protocol=Protocol.TCP, upstreams=upstreams)
        return self._stage.rendered(snapshot(*states, proxy_=proxy_))

    def resumed(self) -> bool:
        """Whether this connection resumed the session of the one before."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as raw,
            self.context.wrap_socket(raw, session=self._session) as tls,
        ):
            # In TLS 1.3 a session comes with the first data.
            assert tls.recv(100)
            self._session = tls.session
            return bool(tls.session_reused)

    def _context(self) -> ssl.SSLContext:
        leaf = self._stage.authority.leaf(service_uri("web"))
        context = self._stage.context(ssl.PROTOCOL_TLS_CLIENT, leaf)
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = self._version
        return context


@pytest.fixture(params=HAPROXY_BRANCHES)
def made(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as running:
        yield running


@pytest.fixture(params=TLS_VERSIONS, ids=lambda version: version.name)
def caller(request: pytest.FixtureRequest, made: Stage) -> Caller:
    made.authorities.append(Authority("Other CA"))
    caller = Caller(made, request.param)
    caller.serve()
    assert [caller.resumed(), caller.resumed()] == [False, True]
    return caller


def test_not_after_a_new_leaf(made: Stage, caller: Caller) -> None:
    made.leaf = made.authority.leaf(service_uri("server"))
    caller.serve()
    assert not caller.resumed()
    assert caller.resumed()


def test_nor_by_who_has_no_ticket(made: Stage) -> None:
    """A cache of sessions would outlive all certificates."""
    caller = Caller(made, ssl.TLSVersion.TLSv1_2)
    caller.context.options |= ssl.OP_NO_TICKET
    caller.serve()
    assert [caller.resumed(), caller.resumed()] == [False, False]


def test_not_after_the_ca_of_the_caller_has_gone(made: Stage, caller: Caller) -> None:
    made.authorities.remove(made.authority)
    caller.serve()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        caller.resumed()


def test_nor_while_a_reload_that_something_else_asks_for_is_refused(made: Stage, caller: Caller) -> None:
    made.authorities.remove(made.authority)
    rendered = caller.wanted(upstream_state(upstream("late", free_port())))

    applied = made.control.apply(plan(rendered, made.actual(rendered), may_reload=False))

    assert applied.failure is None
    if made.capabilities.has(Feature.CA_UPDATE):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            caller.resumed()
    else:
        # The CA itself stays until the reload, and nothing that begins meanwhile may outlive it.
        assert caller.resumed()
        made.converge(rendered)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            caller.resumed()
