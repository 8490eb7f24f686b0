"""FakeProber, which the Verifier's tests rely on, does what the real Prober does with real endpoints."""

from __future__ import annotations

import contextlib
import errno
import queue
import resource
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hcc.mesh.peer_book import NoAnswer, Outcome, Peer, Seen, Unverified
from hcc.mesh.peer_certificate import PeerCertificate
from hcc.peers.prober import Probed, Prober
from hcc.peers.tls import client_context
from tests.fakes import FakeProber, FakeProbers
from tests.haproxy_stage import DEADLINE_S, Server, wait_until
from tests.pki import Authority, IssuedLeaf, service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration
WEB, EVIL = service_uri("web"), service_uri("evil")
# Longer than a test waits: the probe of somebody who is silent does not end.
PROBE_S = 30.0
AnyProber = FakeProber | Prober


class Subject:
    """A prober, our credentials, and what was heard of it."""

    def __init__(self, directory: Path) -> None:
        self.heard: queue.Queue[tuple[Probed, ...]] = queue.Queue()
        self.authority = Authority()
        leaf = written(directory, "us", self.authority.leaf(service_uri("us")))
        self.context = client_context(str(leaf), self.authority.pem)

    def next(self) -> tuple[Probed, ...]:
        return self.heard.get(timeout=DEADLINE_S)


class FakeSubject(Subject):
    """Endpoints of a fake have the outcome that they are said to have."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.probers = FakeProbers()
        self.prober = self.probers.make(self.heard.put)
        self._outcomes: dict[str, Outcome] = {}

    def close(self) -> None:
        self.prober.stop()

    def right(self) -> Peer:
        """Somebody who is who it should be."""
        return self._peer(Seen(PeerCertificate("A", (WEB,), 4_000_000_000)))

    def impostor(self) -> Peer:
        return self._peer(Seen(PeerCertificate("B", (EVIL,), 4_000_000_000)))

    def stranger(self) -> Peer:
        """Somebody of another mesh."""
        return self._peer(Unverified("unable to get local issuer certificate"))

    def nobody(self) -> Peer:
        return self._peer(NoAnswer("Connection refused"))

    def silent(self) -> Peer:
        """Somebody whose probe has no end."""
        return Peer("10.0.1.1", 21000, WEB)

    def go_on(self) -> None:
        """Let all probes end that do."""
        self.prober.answer(self._outcomes)

    def fail(self) -> None:
        self.prober.fail()

    @contextlib.contextmanager
    def out_of_files(self) -> Iterator[None]:
        self.probers.failing = 1
        yield

    def make(self) -> None:
        """Another prober, which nobody needs."""
        self.probers.make(self.heard.put)

    def stillborn(self) -> AnyProber:
        """Another, whose start has found no thread left and raised."""
        self.probers.stillborn = 1
        made = self.probers.make(self.heard.put)
        with pytest.raises(OSError, match="can't start new thread"):
            made.start()
        return made

    def _peer(self, outcome: Outcome) -> Peer:
        address = f"10.0.0.{len(self._outcomes) + 1}"
        self._outcomes[address] = outcome
        return Peer(address, 21000, WEB)


class RealSubject(Subject):
    """Endpoints that listen, or do not."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._directory = directory
        self._servers: list[Server] = []
        self._silent = socket.create_server(("127.0.0.1", 0))
        self._broken = False
        self.prober = Prober(self._deliver, PROBE_S)

    def close(self) -> None:
        self.prober.stop()
        for server in self._servers:
            server.close()
        self._silent.close()

    def right(self) -> Peer:
        return self._serving(self.authority.leaf(WEB))

    def impostor(self) -> Peer:
        return self._serving(self.authority.leaf(EVIL))

    def stranger(self) -> Peer:
        return self._serving(Authority("Another").leaf(WEB))

    def nobody(self) -> Peer:
        return Peer("127.0.0.1", free_port(), WEB)

    def silent(self) -> Peer:
        return Peer("127.0.0.1", int(self._silent.getsockname()[1]), WEB)

    def go_on(self) -> None:
        """They do."""

    def fail(self) -> None:
        self._broken = True
        self.prober.ask([self.nobody()], self.context)

    @contextlib.contextmanager
    def out_of_files(self) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def make(self) -> None:
        Prober(self.heard.put)

    def stillborn(self) -> AnyProber:
        def refuse(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        before = descriptors()
        made = Prober(self.heard.put)
        with pytest.MonkeyPatch.context() as scarce:
            scarce.setattr(threading, "_start_new_thread", refuse)
            with pytest.raises(OSError, match="can't start new thread"):
                made.start()
        assert descriptors() == before
        return made

    def _deliver(self, probed: tuple[Probed, ...]) -> None:
        if probed and self._broken:
            raise RuntimeError("a bug of ours")
        self.heard.put(probed)

    def _serving(self, leaf: IssuedLeaf) -> Peer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(written(self._directory, f"{len(self._servers)}", leaf))
        self._servers.append(Server("endpoint", context))
        return Peer("127.0.0.1", self._servers[-1].port, WEB)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def written(directory: Path, name: str, leaf: IssuedLeaf) -> Path:
    path = directory / f"{name}.pem"
    path.write_text(leaf.combined_pem)
    return path


AnySubject = FakeSubject | RealSubject


@pytest.fixture(params=[FakeSubject, RealSubject], ids=["fake", "real"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnySubject]:
    made: AnySubject = request.param(tmp_path)
    yield made
    made.close()


def probed(subject: AnySubject, *peers: Peer) -> list[Probed]:
    """What came of the probes of these, when all have ended."""
    subject.prober.ask(iter(peers), subject.context)
    subject.go_on()
    found: list[Probed] = []
    while len(found) < len(peers):
        together = subject.next()
        assert together, "it says that it has failed"
        found += together
    return found


def test_a_prober_runs_from_its_start_until_it_is_stopped(subject: AnySubject) -> None:
    prober = subject.prober
    runs = [prober.running]

    prober.start()
    runs.append(prober.running)
    for _ in range(2):
        prober.stop()
        runs.append(prober.running)

    assert runs == [False, True, False, False]
    assert subject.heard.empty()


def test_who_it_should_be_is_seen_as_such_and_an_impostor_as_another(subject: AnySubject) -> None:
    subject.prober.start()
    right, impostor = subject.right(), subject.impostor()

    outcomes = {one.peer: one.outcome for one in probed(subject, right, impostor)}

    assert outcomes.keys() == {right, impostor}
    for peer, uri in ((right, WEB), (impostor, EVIL)):
        outcome = outcomes[peer]
        assert isinstance(outcome, Seen)
        assert outcome.certificate.names_only(uri)


def test_who_is_not_to_be_trusted_or_does_not_answer_is_told_with_a_reason(subject: AnySubject) -> None:
    subject.prober.start()
    stranger, nobody = subject.stranger(), subject.nobody()

    outcomes = {one.peer: one.outcome for one in probed(subject, stranger, nobody)}

    assert isinstance(untrusted := outcomes[stranger], Unverified)
    assert "unable to get local issuer" in untrusted.reason
    assert isinstance(silence := outcomes[nobody], NoAnswer)
    assert "Connection refused" in silence.reason


def test_each_question_has_one_outcome_and_others_are_not_waited_for(subject: AnySubject) -> None:
    subject.prober.start()
    subject.prober.ask([subject.silent()], subject.context)
    peer = subject.nobody()

    found = [one.peer for one in probed(subject, peer, peer)]

    assert found == [peer, peer]
    subject.go_on()
    assert [one.peer for one in probed(subject, peer)] == [peer]
    assert subject.heard.empty()


def test_when_nobody_was_asked_about_nothing_is_told(subject: AnySubject) -> None:
    subject.prober.start()
    subject.nobody()

    subject.prober.ask([], subject.context)
    subject.go_on()

    subject.prober.stop()
    assert subject.heard.empty()


def test_once_it_is_stopped_it_tells_nothing_and_does_not_mind_a_question(subject: AnySubject) -> None:
    subject.prober.start()
    peers = [subject.silent(), subject.nobody()]
    subject.prober.ask(peers[:1], subject.context)

    subject.prober.stop()

    subject.prober.ask(peers, subject.context)
    subject.go_on()
    assert subject.heard.empty()


def test_one_that_fails_says_so_once_ends_and_does_not_mind_a_question_or_a_stop(subject: AnySubject) -> None:
    subject.prober.start()
    peer = subject.nobody()

    subject.fail()

    assert subject.next() == ()
    wait_until(lambda: not subject.prober.running, "it ends")
    subject.prober.ask([peer], subject.context)
    subject.go_on()
    subject.prober.stop()
    assert subject.heard.empty()


def test_one_that_finds_no_file_descriptor_left_cannot_be_made_and_later_can(subject: AnySubject) -> None:
    with subject.out_of_files(), pytest.raises(OSError, match="Too many open files") as raised:
        subject.make()

    assert raised.value.errno == errno.EMFILE
    subject.prober.start()
    assert probed(subject, subject.nobody())


def test_one_that_finds_no_thread_left_says_so_and_does_not_mind_a_question_or_a_stop(subject: AnySubject) -> None:
    stillborn = subject.stillborn()

    stillborn.ask([subject.nobody()], subject.context)
    stillborn.stop()

    assert not stillborn.running
    assert subject.heard.empty()
