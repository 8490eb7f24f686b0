"""Who serves while instances come, go and do not answer: book, configuration and brake, in simulated time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hcc.actors.basis import Basis
from hcc.haproxy.brake import braked
from hcc.haproxy.model import ActualServers
from hcc.mesh.chain import Target
from hcc.mesh.peer_book import NoAnswer, Outcome, PeerBook, Seen
from hcc.mesh.peer_certificate import PeerCertificate
from hcc.mesh.snapshot import Endpoint, Health, TargetEndpoints, UpstreamState
from tests.builders import certificates, chain, endpoint, options, service_uri, snapshot, upstream

WEB, OTHER, EVIL = service_uri("web"), service_uri("other"), service_uri("evil")
A, B, F = endpoint("10.0.0.1"), endpoint("10.0.0.2"), replace(endpoint("10.0.0.9"), identity=OTHER)
CRITICAL = replace(A, health=Health.CRITICAL)
REFUSED = NoAnswer("Connection refused")


def seen(uri: str) -> Seen:
    return Seen(PeerCertificate("A", (uri,), 1000))


class World:
    """An upstream of two targets, the other one with F, which answers unless it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.book = PeerBook()
        self.basis = Basis(options(), probes=True, certificates=certificates())
        self.running: ActualServers = ()
        self.answers: dict[str, Outcome] = {F.address: seen(OTHER)}

    def say(self, *first: Endpoint) -> None:
        """What Consul says of the first target."""
        targets = (TargetEndpoints("web", first, identity=WEB), TargetEndpoints("other", (F,), identity=OTHER))
        state = UpstreamState(upstream("web"), chain("web", failover=(Target("other", "other", "dc1"),)), targets)
        version = self.basis.snapshot.version + 1 if self.basis.snapshot else 1
        said = replace(snapshot(state), version=version)
        self.basis = replace(self.basis, snapshot=said)
        self.book.follow(said, self.now_s, 0.5)
        self.apply()

    def serving(self) -> list[str]:
        return [server.address for _, servers in self.running for server in servers if server.enabled]

    def doubt(self, one: Endpoint) -> None:
        """HAProxy got no answer from it."""
        self.book.doubt([peer for peer in self.book.admission().admitted if peer.address == one.address], self.now_s)

    def pass_time(self, duration_s: float, answers: Mapping[str, Outcome] | None = None) -> set[tuple[str, ...]]:
        """All sets of who served."""
        self.answers |= answers or {}
        found = set()
        end_s = self.now_s + duration_s
        while self.now_s < end_s:
            for due in self.book.take_due(self.now_s, 64):
                self.book.note(due, self.answers.get(due.address, REFUSED), self.now_s, 0.5)
            self.apply()
            found.add(tuple(self.serving()))
            self.now_s += 0.25
        return found

    def apply(self) -> None:
        self.basis = replace(self.basis, admission=self.book.admission())
        assert self.basis.snapshot is not None
        wanted = braked(self.basis.wanted(self.basis.snapshot, ()).desired, self.running)
        self.running = tuple((one.name, one.servers) for one in wanted.backends if one.tls is not None)


def test_a_target_whose_instances_answer_no_first_probe_is_passed_until_one_does() -> None:
    world = World()
    world.say(A)
    assert world.pass_time(60.0) == {(F.address,)}

    world.pass_time(60.0, {A.address: seen(WEB)})

    assert world.serving() == [A.address]


def test_so_is_one_whose_instances_are_somebody_else() -> None:
    world = World()
    world.answers[A.address] = seen(EVIL)
    world.say(A)

    assert world.pass_time(60.0) == {(F.address,)}


def test_one_more_instance_that_does_not_answer_does_not_end_a_failover() -> None:
    world = World()
    world.say(A)
    world.pass_time(10.0, {A.address: seen(WEB)})
    assert world.serving() == [A.address]
    world.answers[A.address] = REFUSED
    world.doubt(A)
    world.pass_time(10.0)
    assert world.serving() == [F.address]

    world.say(A, B)

    assert world.serving() == [F.address]
    assert world.pass_time(1200.0) == {(F.address,)}
    world.pass_time(60.0, {B.address: seen(WEB)})
    assert world.serving() == [B.address]


def test_nor_does_one_whose_sidecar_listens_later() -> None:
    world = World()
    world.say(CRITICAL)
    world.pass_time(10.0)
    assert world.serving() == [F.address]

    world.say(CRITICAL, B)

    assert world.serving() == [F.address]
    assert world.pass_time(20.0) == {(F.address,)}
    world.pass_time(40.0, {B.address: seen(WEB)})
    assert world.serving() == [B.address]


def test_where_nobody_of_any_target_answers_who_served_last_goes_on() -> None:
    world = World()
    world.say(A)
    world.pass_time(10.0)
    world.answers[F.address] = REFUSED
    world.doubt(F)

    assert world.pass_time(60.0) == {(F.address,)}
    assert world.book.admission().silent
