"""A real HAProxy that gets no answer at first: whom it asks again, and when it has asked enough."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from hcc.mesh.intentions import Policy
from hcc.mesh.snapshot import Protocol
from hcc.settings import Enforcement
from hcc.spoe.caller import BRIEF_ACTIONS, Asked
from hcc.spoe.connection import Connection
from hcc.spoe.values import NULL
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import proxy, snapshot
from tests.haproxy_stage import stage
from tests.ports import free_port
from tests.spoe_certificates import TRUST_DOMAIN, service_uri
from tests.spop_frames import hello_of

pytestmark = pytest.mark.integration
LET_IN = {"tcp": b"app", "http": b"HTTP/1.1 200 OK"}
REFUSED = {"tcp": b"", "http": b"HTTP/1.1 403 Forbidden"}
# What becomes of a question: an answer, the end of its connection, or nothing.
ANSWER, BREAK, IGNORE = "answer", "break", "ignore"


class Agent(socketserver.ThreadingUnixStreamServer):
    """A worker whose answers are told by the test.

    Args:
        path: of its socket.
        fate: of a question on a connection of that engine.
    """

    request_queue_size = 100

    def __init__(self, path: str, fate: Callable[[object], str]) -> None:
        super().__init__(path, _Session)
        self.fate = fate
        self.sessions: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def get_request(self) -> tuple[socket.socket, object]:
        accepted = super().get_request()
        self.sessions.append(accepted[0])
        return accepted

    def close(self) -> None:
        self.shutdown()
        self._thread.join(10)
        for session in self.sessions:
            with suppress(OSError):
                session.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Session(socketserver.BaseRequestHandler):
    server: Agent

    def handle(self) -> None:
        connection, engine = Connection(), None
        with suppress(OSError):
            while data := self.request.recv(65_536):
                if engine is None:
                    # HAProxy's hello comes in one piece.
                    engine = hello_of(data).get(b"engine-id", NULL).data
                connection.receive_data(data)
                for event in connection.events():
                    if isinstance(event, Asked):
                        fate = self.server.fate(engine)
                        if fate == BREAK:
                            return
                        if fate == ANSWER:
                            connection.acknowledge(event.ids, BRIEF_ACTIONS[True])
                self.request.sendall(connection.data_to_send())


class Asking:
    """HAProxy's public listener, before agents that treat the questions of an engine alike.

    Args:
        port: of the listener.
        context: for callers.
        fates: of the engines' questions, by the order in which they ask.
    """

    def __init__(self, port: int, context: ssl.SSLContext, fates: tuple[str, ...]) -> None:
        self.engines: list[object] = []
        self._address = ("127.0.0.1", port)
        self._context = context
        self._fates = fates
        self._lock = threading.Lock()

    def fate(self, engine: object) -> str:
        with self._lock:
            if engine not in self.engines:
                self.engines.append(engine)
            return self._fates[self.engines.index(engine)]

    def call(self) -> bytes:
        """The first line that comes back; empty where the connection is closed without a word."""
        with (
            suppress(ConnectionError, ssl.SSLEOFError),
            socket.create_connection(self._address, timeout=10) as plain,
            self._context.wrap_socket(plain) as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            return tls.recv(1000).partition(b"\n")[0].strip()
        return b""


@contextmanager
def asking(branch: str, protocol: Protocol, *fates: str) -> Iterator[Asking]:
    with stage(branch) as made:
        port, http = free_port(), protocol.is_http
        context = made.context(ssl.PROTOCOL_TLS_CLIENT, made.authority.leaf(service_uri("web")))
        found = Asking(port, context, fates)
        agents = [Agent(made.layout.agent_socket(number), found.fate) for number in (1, 2)]
        try:
            policy = Policy("server", TRUST_DOMAIN, (), default_allow=True, http=http)
            here = proxy(protocol=protocol, bind_port=port, local_port=made.app(http=http).port)
            made.converge(made.rendered(snapshot(proxy_=here, policy_=policy), intentions=Enforcement.ENFORCE))
            yield found
        finally:
            for agent in agents:
                agent.close()


@pytest.mark.parametrize("first", [BREAK, IGNORE])
@pytest.mark.parametrize("protocol", ["tcp", "http"])
@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_whose_second_question_ends_with_its_connection_is_asked_about_a_third_time(
    branch: str, protocol: str, first: str
) -> None:
    with asking(branch, Protocol(protocol), first, BREAK, ANSWER) as asked, ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(lambda _: asked.call(), range(12)))
    assert Counter(answers).keys() == {LET_IN[protocol]}


@pytest.mark.parametrize("fates", [(BREAK, BREAK, BREAK), (BREAK, IGNORE, ANSWER), (IGNORE, IGNORE, ANSWER)])
@pytest.mark.parametrize("protocol", ["tcp", "http"])
@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_who_gets_no_answer_is_refused_and_who_waited_twice_does_not_wait_again(
    branch: str, protocol: str, fates: tuple[str, ...]
) -> None:
    with asking(branch, Protocol(protocol), *fates) as asked:
        assert asked.call() == REFUSED[protocol]
    assert len(asked.engines) == (2 if IGNORE in fates else 3)
