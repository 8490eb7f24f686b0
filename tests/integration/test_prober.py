"""The probe against real TLS servers and HAProxy sidecars: what it sees, and what they see of it."""

from __future__ import annotations

import contextlib
import queue
import resource
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hcc.haproxy.render_tls import CIPHERS
from hcc.mesh.peer_book import NoAnswer, Outcome, Peer, Seen, Unverified
from hcc.peers.prober import Probed, Prober
from hcc.peers.tls import client_context
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import proxy, snapshot
from tests.haproxy_stage import DEADLINE_S, stage, wait_until
from tests.pki import Authority, IssuedLeaf, rsa_leaf, service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration
WEB, EVIL = service_uri("web"), service_uri("evil")
PROBE_S = 30.0
# Where one that is silent is waited for.
SHORT_S = 3.0


class Mesh:
    """A CA, our own leaf, and a prober with both."""

    def __init__(self, directory: Path, probe_s: float) -> None:
        self.authority = Authority()
        self.context = client_context(
            str(self._written(directory, self.authority.leaf(service_uri("us")))), self.authority.pem
        )
        self.directory = directory
        self.outcomes: queue.Queue[tuple[Probed, ...]] = queue.Queue()
        self.prober = Prober(self.outcomes.put, probe_s)
        self.prober.start()

    def server_context(self, leaf: IssuedLeaf) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cadata=self.authority.pem)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._written(self.directory, leaf))
        return context

    def probe(self, *ports: int) -> dict[int, Outcome]:
        """What came of the probes of these, when all have ended."""
        self.prober.ask([Peer("127.0.0.1", port, WEB) for port in ports], self.context)
        found: dict[int, Outcome] = {}
        while len(found) < len(ports):
            found |= {one.peer.port: one.outcome for one in self.outcomes.get(timeout=DEADLINE_S)}
        return found

    @staticmethod
    def _written(directory: Path, leaf: IssuedLeaf) -> Path:
        with tempfile.NamedTemporaryFile("w", dir=directory, suffix=".pem", delete=False) as file:
            file.write(leaf.combined_pem)
        return Path(file.name)


@pytest.fixture
def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mesh]:
    made = Mesh(tmp_path, getattr(request, "param", PROBE_S))
    try:
        yield made
    finally:
        made.prober.stop()
        assert not made.prober.running


@contextlib.contextmanager
def listening(talk: Callable[[socket.socket], object], host: str = "127.0.0.1") -> Iterator[int]:
    """A server on the port given that does this with each connection."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=64) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with contextlib.suppress(OSError), connection:
                        connection.settimeout(DEADLINE_S)
                        talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def shows(context: ssl.SSLContext) -> contextlib.AbstractContextManager[int]:
    """A TLS server."""

    def talk(connection: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)

    return listening(talk)


def test_a_peer_may_speak_any_single_suite_that_the_mesh_entry_can_name(mesh: Mesh) -> None:
    leaf, with_rsa = mesh.authority.leaf(WEB), rsa_leaf(mesh.authority, WEB)
    for suite in CIPHERS.values():
        context = mesh.server_context(leaf if "ECDSA" in suite else with_rsa)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(suite)
        with shows(context) as port:
            assert isinstance(mesh.probe(port)[port], Seen), suite


@pytest.mark.parametrize("uris", [(WEB,), (EVIL,), (WEB, EVIL), ()])
def test_a_verified_server_is_seen_with_all_of_its_uris(mesh: Mesh, uris: tuple[str, ...]) -> None:
    leaf = mesh.authority.leaf(*uris)
    with shows(mesh.server_context(leaf)) as port:
        outcome = mesh.probe(port)[port]

    assert isinstance(outcome, Seen)
    assert outcome.certificate.uris == uris
    assert outcome.certificate.names_only(WEB) is (uris == (WEB,))
    assert outcome.certificate.expires_s == int(leaf.certificate.not_valid_after_utc.timestamp())


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda ours: ours.leaf(WEB, days=-1), "expired"),
        (lambda _: Authority("Another").leaf(WEB), "unable to get local issuer"),
        (lambda ours: ours.leaf(WEB, server=False), "purpose"),
    ],
)
def test_a_server_that_is_not_to_be_trusted_is_told_apart(
    mesh: Mesh, made: Callable[[Authority], IssuedLeaf], reason: str
) -> None:
    with shows(mesh.server_context(made(mesh.authority))) as port:
        outcome = mesh.probe(port)[port]

    assert isinstance(outcome, Unverified)
    assert reason in outcome.reason


def test_a_server_that_speaks_only_tls_1_2_is_seen_too_and_gets_our_leaf(mesh: Mesh) -> None:
    context = mesh.server_context(mesh.authority.leaf(WEB))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    shown: list[object] = []

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            shown.append((tls.getpeercert() or {}).get("subjectAltName"))

    with listening(talk) as port:
        outcome = mesh.probe(port)[port]

    assert isinstance(outcome, Seen)
    assert outcome.certificate.names_only(WEB)
    assert shown == [(("URI", service_uri("us")),)]


def test_with_tls_1_3_the_server_never_sees_a_connection(mesh: Mesh) -> None:
    seen: list[str] = []
    context = mesh.server_context(mesh.authority.leaf(WEB))

    def talk(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as tls:
                seen.append(f"a connection of {tls.getpeercert()}")
        except OSError as exc:
            seen.append(type(exc).__name__)

    with listening(talk) as port:
        assert isinstance(mesh.probe(port)[port], Seen)
        wait_until(lambda: seen, "the server to notice")

    # By how far its reading was; SSLZeroReturnError: the prober's parting words.
    assert seen[0] in ("SSLEOFError", "SSLError", "SSLZeroReturnError", "ConnectionResetError")


@pytest.mark.parametrize("mesh", [SHORT_S], indirect=True)
def test_who_is_silent_closes_refuses_or_speaks_something_else_does_not_answer(mesh: Mesh) -> None:
    with (
        listening(lambda one: one.recv(1)) as closing,
        listening(lambda one: time.sleep(2 * SHORT_S)) as silent,
        listening(lambda one: one.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as other,
        listening(lambda one: one.sendall(b"\x16\x03\x03\x40\x00" + bytes(0x4000) + bytes(10_000_000))) as flooding,
    ):
        outcomes = mesh.probe(closing, silent, other, flooding, free_port())

    assert all(isinstance(outcome, NoAnswer) and outcome.asked for outcome in outcomes.values()), outcomes
    reasons = {port: outcome.reason for port, outcome in outcomes.items() if isinstance(outcome, NoAnswer)}
    assert [port for port, reason in reasons.items() if "within 3 s" in reason] == [silent]
    assert any("Connection refused" in reason for reason in reasons.values())


@pytest.mark.parametrize("mesh", [SHORT_S], indirect=True)
def test_many_that_are_silent_hold_up_nobody(mesh: Mesh) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=128) as silent,
        shows(mesh.server_context(mesh.authority.leaf(WEB))) as port,
    ):
        where = Peer("127.0.0.1", int(silent.getsockname()[1]), WEB)
        mesh.prober.ask([where] * 60, mesh.context)

        mesh.prober.ask([Peer("127.0.0.1", port, WEB)], mesh.context)
        first = mesh.outcomes.get(timeout=DEADLINE_S)

        assert [one.peer.port for one in first] == [port]
        late = 0
        while late < 60:
            late += len(mesh.outcomes.get(timeout=DEADLINE_S))


def test_a_server_with_an_ipv6_address_is_seen(mesh: Mesh) -> None:
    context = mesh.server_context(mesh.authority.leaf(WEB))
    with listening(lambda one: context.wrap_socket(one, server_side=True), "::1") as port:
        mesh.prober.ask([Peer("::1", port, WEB)], mesh.context)
        ((probed,),) = [mesh.outcomes.get(timeout=DEADLINE_S)]

    assert isinstance(probed.outcome, Seen), probed


def test_what_is_no_port_does_not_answer_and_the_next_one_is_probed(mesh: Mesh) -> None:
    with shows(mesh.server_context(mesh.authority.leaf(WEB))) as port:
        outcomes = mesh.probe(70_000, port)

    assert isinstance(no_port := outcomes[70_000], NoAnswer)
    assert not no_port.asked
    assert isinstance(outcomes[port], Seen)


def test_a_probe_that_was_not_made_for_want_of_a_descriptor_or_a_route_says_so(mesh: Mesh) -> None:
    mesh.probe(free_port())  # Its thread has its own descriptors before there are no more.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as one:
        lowest_free = one.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        assert mesh.probe(9) == {9: NoAnswer("Too many open files", asked=False)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    # No connection goes to a broadcast address.
    mesh.prober.ask([Peer("255.255.255.255", 9, WEB)], mesh.context)
    (probed,) = mesh.outcomes.get(timeout=DEADLINE_S)
    assert probed.outcome == NoAnswer("cannot be connected to: Network is unreachable", asked=False)


def test_a_prober_that_fails_says_so_and_ends(mesh: Mesh) -> None:
    heard: list[tuple[Probed, ...]] = []

    def deliver(probed: tuple[Probed, ...]) -> None:
        heard.append(probed)
        if probed:
            raise RuntimeError("a bug of ours")

    prober = Prober(deliver, PROBE_S)
    prober.start()
    try:
        prober.ask([Peer("127.0.0.1", free_port(), WEB)], mesh.context)
        wait_until(lambda: not prober.running, "its thread to end")
    finally:
        prober.stop()
    assert [len(one) for one in heard] == [1, 0]


@pytest.mark.parametrize("mesh", [1.0], indirect=True)
def test_what_cannot_be_connected_to_in_time_is_told_from_what_does_not_speak(mesh: Mesh) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        where = full.getsockname()
        # Nobody accepts, and whoever comes when the queue is full waits for ever.
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(where)
        outcome = mesh.probe(int(where[1]))[int(where[1])]

    assert outcome == NoAnswer("cannot be connected to within 1 s")


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_a_haproxy_sidecar_is_seen_its_log_has_a_failed_handshake_and_its_application_nothing(branch: str) -> None:
    with stage(branch) as there:
        app = there.app()
        bind_port, log = free_port(), Path(there.directory) / "syslog"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
            syslog.bind(str(log))
            here = snapshot(proxy_=proxy(bind_port=bind_port, local_port=app.port))
            there.converge(there.rendered(here, access_log=str(log)))
            outcomes: queue.Queue[tuple[Probed, ...]] = queue.Queue()
            prober = Prober(outcomes.put)
            prober.start()
            try:
                for _ in range(3):
                    peer = Peer("127.0.0.1", bind_port, service_uri("server"))
                    prober.ask([peer], client_context(there.layout.leaf, there.authority.pem))
                    ((probed,),) = [outcomes.get(timeout=DEADLINE_S)]
                    assert isinstance(probed.outcome, Seen), probed
                    assert probed.outcome.certificate.names_only(peer.identity)
            finally:
                prober.stop()
            syslog.settimeout(DEADLINE_S)
            # 2.2 says that it starts.
            lines = [
                line for line in (syslog.recv(4096) for _ in range(3 + (branch == "2.2"))) if b"started" not in line
            ]
            assert len(lines) == 3
            assert all(b"SSL handshake failure" in line for line in lines)
        assert app.accepted == 0
