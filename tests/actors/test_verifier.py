from __future__ import annotations

import errno
import logging
import random
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.actors import verifier
from hcc.actors.messages import (
    ADMIN,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    VERIFIER,
    AdmissionChanged,
    CredentialsReady,
    HAProxyDown,
    Preview,
    Publish,
    SnapshotChanged,
    WorkerReplaced,
)
from hcc.actors.readiness import PeerFacts
from hcc.actors.verifier import MOST_PROBES, Register, Verifier, _Resync
from hcc.haproxy.backend_counts import BackendCounts
from hcc.haproxy.control import ControlError
from hcc.haproxy.map_text import MapChange
from hcc.haproxy.model import CaFile, CertificateFile
from hcc.haproxy.names import backend_name
from hcc.haproxy.stats import Process, RowKind, Stats
from hcc.mesh.chain import Split
from hcc.mesh.peer_book import Admission, Kept, NoAnswer, Peer, Seen, Unverified
from hcc.mesh.peer_certificate import PeerCertificate
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Endpoint, Snapshot, UpstreamState
from hcc.metrics import Metrics
from hcc.peers.tls import client_context
from hcc.settings import VerifyUpstream
from tests.actors.scene import Scene, playing
from tests.actors.stage import DEADLINE_S, eventually
from tests.builders import (
    endpoint,
    resolver,
    routed_chain,
    routed_state,
    service_uri,
    snapshot,
    upstream,
    upstream_state,
)
from tests.every_metric import stats_row
from tests.fakes import FakeLeaves, FakeProbers
from tests.pki import Authority

WEB, EVIL = service_uri("web"), service_uri("evil")
ONE, TWO = endpoint("10.0.0.1"), endpoint("10.0.0.2")
API = upstream("web")
PROCESS = Process(uptime_s=9, connections=2, connections_total=10, max_connections=100, idle=0.5)


def seen(uri: str = WEB, digest: str = "A") -> Seen:
    return Seen(PeerCertificate(digest, (uri,), 4_000_000_000))


def here(*endpoints: Endpoint, version: int = 1) -> Snapshot:
    return snapshot(upstream_state(API, endpoints), version=version)


class VerifierScene(Scene):
    """Verifier between probes that end as the test says and neighbours that listen."""

    def __init__(self, directory: Path, mode: VerifyUpstream, *, failing: int = 0, stillborn: int = 0) -> None:
        self.directory = directory
        self.probers = FakeProbers()
        # Before the actor begins, which makes one at once.
        self.probers.failing, self.probers.stillborn = failing, stillborn
        self.leaves = FakeLeaves()
        self.kept: list[Kept] = []
        self.metrics = Metrics()
        self.denied = 0
        # By address, of servers.
        self.failures: dict[str, int] = {}
        self.lies: dict[str, int] = {}
        self.uptime_s = PROCESS.uptime_s
        self.looks = 0
        self.authority = Authority()
        super().__init__(
            VERIFIER,
            Verifier,
            {
                "mode": mode,
                "register": Register(keep=self.keep),
                "make_prober": self.probers.make,
                "leaves": self.leaves,
                "counts": BackendCounts(self.stats, self.servers),
                "metrics": self.metrics,
                "resync_s": 300.0,
            },
            (ADMIN, CONSUL_WATCHER, CERT_MANAGER, CONFIG_RECONCILER),
        )

    def keep(self, kept: Kept) -> bool:
        if not self.leaves.full:
            self.kept.append(kept)
        return not self.leaves.full

    def stats(self) -> Stats:
        self.looks += 1
        row = replace(stats_row(RowKind.BACKEND, backend_name(API)), denied_responses=self.denied)
        failures = sum(self.failures.values())
        return Stats(replace(PROCESS, uptime_s=self.uptime_s), (replace(row, redispatches=failures),))

    def servers(self, backend: str) -> Stats:
        none = replace(stats_row(RowKind.SERVER, backend, "s"), open_sessions=0, responses=())
        places = {**self.failures, **self.lies}
        rows = (replace(none, server=place, address=place, sessions=self.failures.get(place, 0)) for place in places)
        return Stats(PROCESS, tuple(replace(row, denied_responses=self.lies.get(row.server, 0)) for row in rows))

    def give_credentials(self, *more: Authority) -> None:
        leaf = self.authority.leaf(service_uri("us"))
        path = self.directory / "leaf.pem"
        path.write_text(leaf.combined_pem)
        authorities = (self.authority, *more)
        ca = CaFile(
            "roots.pem", frozenset(one.fingerprint for one in authorities), "".join(one.pem for one in authorities)
        )
        self.tell(CredentialsReady(CertificateFile(str(path), leaf.fingerprint, Secret(leaf.combined_pem)), ca))

    def begin(self, *endpoints: Endpoint) -> None:
        self.give_credentials()
        self.tell(SnapshotChanged(here(*endpoints)))
        eventually(lambda: len(self.asked()) == len(endpoints), "all are probed")

    def asked(self) -> list[str]:
        """Addresses of those that are being probed."""
        return [peer.address for peer in self.probers.made[-1].asked] if self.probers.made else []

    def probes(self, outcome: str) -> float:
        """How many ended so."""
        return self.metrics.registry.get_sample_value("hcc_probes_total", {"outcome": outcome}) or 0.0

    def expect_admitted(self, *endpoints: Endpoint) -> Admission:
        wanted = {Peer(one.address, one.port, one.identity) for one in endpoints}
        return self.expect(
            CONFIG_RECONCILER, AdmissionChanged, lambda message: message.admission.admitted == wanted
        ).admission


@pytest.fixture
def mode() -> VerifyUpstream:
    return VerifyUpstream.BOTH


@pytest.fixture
def scene(tmp_path: Path, mode: VerifyUpstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[VerifierScene]:
    monkeypatch.setattr(verifier, "LOOK_S", 0.02)
    made = VerifierScene(tmp_path, mode)
    with playing(made):
        yield made


def test_endpoints_are_admitted_as_probes_see_them_and_haproxy_knows_their_leaves_by_then(scene: VerifierScene) -> None:
    scene.begin(ONE, TWO)
    assert scene.expect(CONFIG_RECONCILER, AdmissionChanged).admission == Admission(1, frozenset(), probing=True)

    scene.probers.now.answer({"10.0.0.1": seen()})

    scene.expect_admitted(ONE)
    assert scene.leaves.loaded == {"A": WEB}
    scene.probers.now.answer({"10.0.0.2": seen(digest="B")})
    assert not scene.expect_admitted(ONE, TWO).probing


def test_nobody_is_probed_before_there_is_something_to_verify_by(scene: VerifierScene) -> None:
    scene.tell(SnapshotChanged(here(ONE)))
    scene.expect(CONFIG_RECONCILER, AdmissionChanged)
    assert scene.asked() == []

    scene.give_credentials()

    eventually(lambda: len(scene.asked()) == 1, "the endpoint is probed")


def test_an_impostor_is_told_once_by_name_refused_and_cut(
    scene: VerifierScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.begin(ONE, TWO)
    scene.probers.now.answer({"10.0.0.1": seen(), "10.0.0.2": seen()})
    scene.expect_admitted(ONE, TWO)
    changed = replace(TWO, weight=2)
    scene.tell(SnapshotChanged(here(ONE, changed, version=2)))
    eventually(lambda: len(scene.asked()) == 1, "it is probed again")
    caplog.clear()

    with caplog.at_level(logging.ERROR):
        scene.probers.now.answer({"10.0.0.2": seen(EVIL)})
        scene.expect_admitted(ONE)
        eventually(lambda: len(scene.asked()) == 1, "it is probed again soon")
        scene.probers.now.answer({"10.0.0.2": seen(EVIL)})
        eventually(lambda: len(scene.asked()) == 1, "it is probed again soon")

    (line,) = [one.getMessage() for one in caplog.records]
    assert line == (
        f"upstream web: 10.0.0.2:21000 is another service and gets no traffic: expected {WEB}, found {EVIL}"
    )
    web = frozenset(("up:web:9191:to",))
    eventually(lambda: scene.leaves.taken_out == [("10.0.0.2", 21000, web)] * 2, "it is taken out, and once more")
    facts = scene.facts(ADMIN, PeerFacts)
    assert facts is not None
    assert facts.refused == ((Peer("10.0.0.2", 21000, WEB), f"expected {WEB}, found {EVIL}"),)
    assert scene.metrics.registry.get_sample_value("hcc_refused_endpoints", {"reason": "impostor"}) == 1
    assert scene.metrics.registry.get_sample_value("hcc_probes_total", {"outcome": "impostor"}) == 2


def test_several_impostors_are_cut_together_and_in_workers_that_stop_after_all_else(
    scene: VerifierScene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Once they have failed it would wait for ever.
    monkeypatch.setattr(verifier, "CUT_RETRY_S", 60.0)
    scene.leaves.stopping_hangs = True
    three = endpoint("10.0.0.3")
    scene.begin(ONE, TWO, three)
    scene.probers.now.answer({one.address: seen() for one in (ONE, TWO, three)})
    scene.expect_admitted(ONE, TWO, three)
    scene.tell(SnapshotChanged(here(*(replace(one, weight=2) for one in (ONE, TWO, three)), version=2)))
    eventually(lambda: len(scene.asked()) == 3, "they are probed again")

    scene.probers.now.answer({ONE.address: seen(EVIL), TWO.address: seen(EVIL)})
    scene.expect_admitted(three)

    both = frozenset((ONE.address, TWO.address))
    eventually(lambda: scene.leaves.told_stopping == [both], "workers that stop are told of both")
    eventually(lambda: len(scene.leaves.taken_out) == 4, "both are taken out, and once more")
    scene.probers.now.answer({three.address: seen(EVIL)})
    eventually(lambda: len(scene.leaves.taken_out) == 6, "so is the third, and once more")
    scene.settle()
    assert scene.leaves.told_stopping == [both]
    assert len([text for text in caplog.messages if "workers of HAProxy that stop" in text]) == 1


def test_a_certificate_for_which_no_descriptor_was_left_is_tried_again(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "MAX_RETRY_S", 0.05)
    scene.begin(ONE)
    scene.probers.now.answer({ONE.address: seen()})
    scene.expect_admitted(ONE)
    failures = [OSError(errno.EMFILE, "Too many open files")] * 2
    made: list[int] = []

    def fails_twice(path: str, roots_pem: str) -> ssl.SSLContext:
        if failures:
            raise failures.pop()
        made.append(roots_pem.count("BEGIN"))
        return client_context(path, roots_pem)

    monkeypatch.setattr(verifier, "client_context", fails_twice)
    scene.give_credentials(Authority())
    eventually(lambda: made == [2], "probes use the new roots")
    scene.give_credentials()
    eventually(lambda: made == [2, 1], "and others when they come")
    scene.settle()
    assert made == [2, 1]


def test_workers_that_stop_are_told_until_they_know_of_those_that_are_refused_still(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "CUT_RETRY_S", 0.05)
    scene.leaves.stopping_hangs = True
    scene.begin(ONE, TWO)
    scene.probers.now.answer({ONE.address: seen(), TWO.address: seen()})
    scene.expect_admitted(ONE, TWO)
    scene.tell(SnapshotChanged(here(*(replace(one, weight=2) for one in (ONE, TWO)), version=2)))
    eventually(lambda: len(scene.asked()) == 2, "they are probed again")
    scene.probers.now.answer({ONE.address: seen(EVIL), TWO.address: seen(EVIL)})
    eventually(lambda: len(scene.leaves.told_stopping) > 3, "they are told again and again")
    eventually(lambda: len(scene.asked()) == 2, "they are probed again soon")

    scene.probers.now.answer({TWO.address: seen()})
    eventually(lambda: scene.leaves.told_stopping[-1] == {ONE.address}, "one of them is itself again")
    told = len(scene.leaves.told_stopping)
    scene.leaves.stopping_hangs = False
    eventually(lambda: len(scene.leaves.told_stopping) > told, "they are told once more")
    scene.settle()

    assert scene.leaves.told_stopping[-1] == {ONE.address}


def test_an_address_that_went_to_another_service_is_taken_out_of_the_upstream_it_left_alone(
    scene: VerifierScene,
) -> None:
    # Consul does not know yet that web's instance is gone.
    other = replace(TWO, identity=EVIL)
    rightly = replace(upstream_state(upstream("evil", 9292), (other,)))
    both = snapshot(upstream_state(upstream("web"), (ONE, TWO)), rightly)
    scene.begin(ONE, TWO)
    scene.probers.now.answer({"10.0.0.1": seen(), "10.0.0.2": seen()})
    scene.expect_admitted(ONE, TWO)

    scene.tell(SnapshotChanged(replace(both, version=2)))
    eventually(lambda: len(scene.asked()) == 1, "who is new is probed")
    scene.probers.now.answer({"10.0.0.2": seen(EVIL)})
    scene.expect_admitted(ONE, TWO, other)
    scene.tell(SnapshotChanged(replace(both, version=3, upstreams=(_heavier(both.upstreams[0]), rightly))))
    eventually(lambda: len(scene.asked()) == 1, "what changed is probed again")
    scene.probers.now.answer({"10.0.0.2": seen(EVIL)})

    scene.expect_admitted(ONE, other)
    eventually(lambda: len(scene.leaves.taken_out) == 2, "it is taken out, and once more")
    assert scene.leaves.taken_out == [("10.0.0.2", 21000, frozenset(("up:web:9191:to",)))] * 2


def test_an_impostor_is_taken_out_of_each_leg_that_it_is_in(scene: VerifierScene) -> None:
    legs = (resolver("v1"), resolver("v2"), resolver("v3"))
    split = routed_chain(splits=(Split("v1", 50.0), Split("v2", 30.0), Split("v3", 20.0)), legs=legs)

    def led(two: Endpoint, version: int) -> Snapshot:
        endpoints = {"v1.web": [ONE, two], "v2.web": [two], "v3.web": [ONE]}
        return replace(snapshot(routed_state(split, endpoints)), version=version)

    # The last two are of a worker that stops, from before the splitter, and somebody else's.
    scene.leaves.backends = [f"up:web:9191:to{leg}" for leg in (":v1", ":v2", ":v3", "")] + ["up:api:9191:to"]
    scene.give_credentials()
    scene.tell(SnapshotChanged(led(TWO, 1)))
    eventually(lambda: len(scene.asked()) == 2, "each is probed once")
    scene.probers.now.answer({"10.0.0.1": seen(), "10.0.0.2": seen()})
    scene.expect_admitted(ONE, TWO)

    scene.tell(SnapshotChanged(led(replace(TWO, weight=7), 2)))
    eventually(lambda: len(scene.asked()) == 1, "what changed is probed again")
    scene.probers.now.answer({"10.0.0.2": seen(EVIL)})

    eventually(lambda: len(scene.leaves.taken_out) == 2, "it is taken out, and once more")
    where = frozenset(("up:web:9191:to:v1", "up:web:9191:to:v2", "up:web:9191:to"))
    assert scene.leaves.taken_out == [("10.0.0.2", 21000, where)] * 2


def _heavier(state: UpstreamState) -> UpstreamState:
    (target,) = state.targets
    changed = (target.endpoints[0], replace(target.endpoints[1], weight=7))
    return replace(state, targets=(replace(target, endpoints=changed),))


def test_while_many_are_probed_those_admitted_are_told_together(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After having told once it would wait for hours.
    monkeypatch.setattr(verifier, "TELL_SHARE", 1e-9)
    endpoints = [endpoint(f"10.0.0.{number}") for number in range(1, 7)]
    scene.begin(*endpoints)
    for one in endpoints[:4]:
        scene.probers.now.answer({one.address: seen()})
    scene.expect_admitted(endpoints[0])
    eventually(lambda: scene.probes("right") == 4, "the others are noted")
    assert max(len(told.admission.admitted) for told in scene.all_of(CONFIG_RECONCILER, AdmissionChanged)) == 1

    scene.probers.now.answer({endpoints[4].address: seen(EVIL)})

    scene.expect_admitted(*endpoints[:4])


def test_the_last_that_was_probed_is_told_at_once(scene: VerifierScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "TELL_SHARE", 1e-9)
    scene.begin(ONE, TWO)
    scene.probers.now.answer({ONE.address: seen()})
    scene.expect_admitted(ONE)

    scene.probers.now.answer({TWO.address: seen()})

    scene.expect_admitted(ONE, TWO)


def test_those_admitted_while_others_do_not_answer_are_told_after_a_while(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "TELL_SHARE", 1e-3)
    three = endpoint("10.0.0.3")
    scene.begin(ONE, TWO, three)
    scene.probers.now.answer({ONE.address: seen()})
    scene.expect_admitted(ONE)
    scene.probers.now.answer({TWO.address: seen()})

    assert scene.expect_admitted(ONE, TWO).probing


def test_one_that_does_not_answer_waits_and_is_asked_again(scene: VerifierScene) -> None:
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": NoAnswer("Connection refused")})
    scene.expect(CONFIG_RECONCILER, AdmissionChanged, lambda message: not message.admission.probing)
    assert scene.metrics.registry.get_sample_value("hcc_waiting_endpoints") == 1
    eventually(lambda: len(scene.asked()) == 1, "it is asked again")

    scene.probers.now.answer({"10.0.0.1": seen()})

    scene.expect_admitted(ONE)
    assert scene.metrics.registry.get_sample_value("hcc_waiting_endpoints") == 0


def test_a_new_set_of_cas_has_all_probed_again_and_takes_nobody_out(scene: VerifierScene) -> None:
    scene.begin(ONE, TWO)
    scene.probers.now.answer({"10.0.0.1": seen(), "10.0.0.2": NoAnswer("silent")})
    scene.expect_admitted(ONE)
    eventually(lambda: scene.asked() == ["10.0.0.2"], "the silent one is due")
    scene.probers.now.answer({"10.0.0.2": NoAnswer("silent")})

    scene.give_credentials(Authority("New"))

    eventually(lambda: scene.asked() == ["10.0.0.2"], "the silent one first")
    told = len(scene.all_of(CONFIG_RECONCILER, AdmissionChanged))
    scene.tell(Publish())
    scene.settle()
    after = scene.all_of(CONFIG_RECONCILER, AdmissionChanged)
    assert len(after) > told
    assert [peer.address for peer in after[-1].admission.admitted] == ["10.0.0.1"]


def test_who_was_refused_by_a_clock_that_was_wrong_is_probed_as_soon_as_it_is_right(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.mesh.peer_book.RETRY_S", 60.0)
    scene.begin(ONE, TWO)
    scene.probers.now.answer({"10.0.0.1": seen(), "10.0.0.2": Unverified("certificate is not yet valid")})
    scene.expect_admitted(ONE)
    looks = scene.looks
    eventually(lambda: scene.looks > looks + 1, "it has looked at the clock")
    assert scene.asked() == []
    right = time.time

    monkeypatch.setattr(time, "time", lambda: right() + 3600.0)

    eventually(lambda: scene.asked() == ["10.0.0.2"], "it is probed")
    scene.probers.now.answer({"10.0.0.2": seen(digest="B")})
    scene.expect_admitted(ONE, TWO)


def test_who_had_answers_cut_and_answers_no_probe_is_refused_by_name_and_cut_and_nobody_else_is_probed(
    scene: VerifierScene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.mesh.peer_book.SUSPECT_S", 0.0)
    scene.begin(ONE, TWO)
    scene.probers.now.answer({ONE.address: seen(), TWO.address: seen()})
    scene.expect_admitted(ONE, TWO)
    eventually(lambda: scene.looks > 1, "it knows what was counted before")
    liar = Peer(TWO.address, TWO.port, WEB)

    with caplog.at_level(logging.ERROR):
        scene.lies = {Peer(ONE.address, ONE.port, WEB).where: 0, liar.where: 3}
        scene.denied = 3
        for _ in range(2):
            eventually(lambda: scene.asked() == [TWO.address], "the liar is probed")
            scene.probers.now.answer({TWO.address: NoAnswer("breaks the connection")})
        scene.expect_admitted(ONE)
        scene.settle()

    reason = "its answers were cut, and it answers no probe: breaks the connection"
    assert f"upstream web: {liar.where} is not to be trusted and gets no traffic: {reason}" in caplog.messages
    facts = scene.facts(ADMIN, PeerFacts)
    assert facts is not None
    assert facts.refused == ((liar, reason),)
    assert scene.metrics.registry.get_sample_value("hcc_refused_endpoints", {"reason": "impostor"}) == 1
    assert scene.leaves.taken_out[0] == (TWO.address, TWO.port, frozenset(("up:web:9191:to",)))


def test_answers_that_haproxy_cuts_are_told_and_their_upstream_is_probed_where_it_does_not_say_whose(
    scene: VerifierScene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.mesh.peer_book.DOUBT_S", 0.0)
    scene.denied = 5
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    assert scene.asked() == []
    eventually(lambda: scene.looks > 1, "it knows what was counted before")

    with caplog.at_level(logging.ERROR):
        scene.denied = 7
        eventually(lambda: len(scene.asked()) == 1, "the endpoint is probed")
        scene.probers.now.answer({"10.0.0.1": seen()})
        # A worker that begins anew counts from nothing, and has counted one since.
        scene.denied = 1
        eventually(lambda: len(scene.asked()) == 1, "the endpoint is probed")

    assert [one.getMessage() for one in caplog.records] == [
        "upstream web: 2 answers were cut, as an endpoint is not who it should be"
    ]


def test_one_that_haproxy_cannot_reach_is_probed_and_is_silent_until_it_answers(
    scene: VerifierScene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.mesh.peer_book.DOUBT_S", 0.0)
    monkeypatch.setattr("hcc.mesh.peer_book.SILENT_S", 0.05)
    scene.begin(ONE, TWO)
    scene.probers.now.answer({ONE.address: seen(), TWO.address: seen()})
    scene.expect_admitted(ONE, TWO)
    eventually(lambda: scene.looks > 1, "it knows what was counted before")
    scene.heard[ADMIN].clear()
    one = Peer(ONE.address, ONE.port, WEB)

    with caplog.at_level(logging.INFO):
        scene.failures = {one.where: 2, Peer(TWO.address, TWO.port, WEB).where: 0}
        eventually(lambda: scene.asked() == [ONE.address], "the one that failed is probed")
        scene.probers.now.answer({ONE.address: NoAnswer("no handshake")})
        time.sleep(0.06)
        eventually(lambda: scene.asked() == [ONE.address], "it is probed again")
        scene.probers.now.answer({ONE.address: NoAnswer("no handshake")})

        told = scene.expect(CONFIG_RECONCILER, AdmissionChanged, lambda message: message.admission.silent == (one,))
        assert told.admission.admitted == {one, Peer(TWO.address, TWO.port, WEB)}
        eventually(lambda: scene.facts(ADMIN, PeerFacts) is not None, "it is reported")
        shown = scene.facts(ADMIN, PeerFacts)
        assert shown is not None
        assert shown.silent == ((one, "no handshake"),)
        assert scene.metrics.registry.get_sample_value("hcc_silent_endpoints") == 1

        eventually(lambda: scene.asked() == [ONE.address], "it is probed again")
        scene.probers.now.answer({ONE.address: seen()})
        eventually(lambda: scene.all_of(CONFIG_RECONCILER, AdmissionChanged)[-1].admission.silent == (), "it is back")
        assert scene.metrics.registry.get_sample_value("hcc_silent_endpoints") == 0
        # What is done comes before what is said.
        eventually(lambda: "answers again" in caplog.text, "it is said")

    assert [record.getMessage() for record in caplog.records if "answer" in record.getMessage()] == [
        "upstream web: 10.0.0.1:21000 does not answer, and gets no traffic while enough others do: no handshake",
        "upstream web: 10.0.0.1:21000 answers again, and gets traffic",
    ]


def test_a_worker_that_comes_after_a_reload_is_told_what_its_file_lacked(scene: VerifierScene) -> None:
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    scene.leaves.loaded = {"OLD": WEB}

    scene.tell(WorkerReplaced())

    eventually(lambda: scene.leaves.loaded == {"A": WEB}, "the map is put right")


def test_what_somebody_changed_in_the_map_is_foreseen_put_right_and_counted(scene: VerifierScene) -> None:
    def counted() -> float | None:
        return scene.metrics.registry.get_sample_value("hcc_drift_repairs_total")

    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    assert scene.tree.ask_actor(VERIFIER, Preview(), 5.0) == ()
    scene.leaves.loaded = {"A": EVIL, "FORGED": WEB}
    assert scene.tree.ask_actor(VERIFIER, Preview(), 5.0) == ("change 2 leaves of upstreams' instances",)

    scene.tell(_Resync())

    eventually(lambda: counted() == 1.0, "it is counted")
    assert scene.leaves.loaded == {"A": WEB}


def test_what_haproxy_could_not_be_told_before_is_no_drift(scene: VerifierScene) -> None:
    scene.begin(ONE)
    scene.leaves.running = False
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    scene.leaves.running = True

    scene.tell(_Resync())

    eventually(lambda: scene.leaves.loaded == {"A": WEB}, "the map is put right")
    assert scene.tree.ask_actor(VERIFIER, Preview(), 5.0) == ()
    assert scene.metrics.registry.get_sample_value("hcc_drift_repairs_total") == 0.0


def test_the_map_is_compared_again_and_again_at_moments_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the 300 s that it is told; without a draw nothing would happen for so long.
    monkeypatch.setattr(random, "uniform", lambda low, _: low * 1e-4)
    scene = VerifierScene(tmp_path, VerifyUpstream.BOTH)
    with playing(scene):
        for forged in ("ONE", "TWO"):
            scene.leaves.loaded = {forged: WEB}
            eventually(lambda: scene.leaves.loaded == {}, "the map is put right")


def test_a_damaged_map_file_is_put_back_at_the_next_comparison(scene: VerifierScene) -> None:
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    eventually(lambda: scene.leaves.stored == {"A": WEB}, "the file is written")
    scene.leaves.stored = {"A": EVIL}

    scene.tell(_Resync())

    eventually(lambda: scene.leaves.stored == {"A": WEB}, "the file is put right")


def test_what_the_disk_did_not_take_is_written_once_it_can_be(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "STORE_S", 0.05)
    scene.leaves.full = True
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    eventually(lambda: scene.leaves.stores > 1, "it is tried again")

    scene.leaves.full = False

    eventually(lambda: scene.leaves.stored == {"A": WEB}, "the map is written")
    eventually(lambda: bool(scene.kept) and len(scene.kept[-1].admitted) == 1, "who was admitted is kept")


def test_a_full_disk_is_said_once_as_long_as_it_is_full(
    scene: VerifierScene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is tried again by itself would be taken for what the test has written.
    monkeypatch.setattr(verifier, "STORE_S", 60.0)

    def store(*, full: bool) -> None:
        scene.leaves.full, before = full, scene.leaves.stores
        scene.tell(HAProxyDown("test"))
        eventually(lambda: scene.leaves.stores > before, "it is written, or not")

    for full in (True, True, False, True):
        store(full=full)
    # Until then the last one has been dealt with.
    scene.restart()

    said = [record.message for record in caplog.records if "map of leaves" in record.message]
    assert said == ["the map of leaves cannot be written: No space left on device"] * 2


def test_while_haproxy_does_not_run_or_answer_the_file_has_it_before_anybody_is_admitted(
    scene: VerifierScene,
) -> None:
    scene.leaves.running = False
    scene.begin(ONE, TWO)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    assert scene.leaves.stored == {"A": WEB}

    scene.leaves.running, scene.leaves.silent = True, True
    scene.probers.now.answer({"10.0.0.2": seen(digest="B")})
    scene.expect_admitted(ONE, TWO)

    assert scene.leaves.stored == {"A": WEB, "B": WEB}
    scene.leaves.silent = False
    eventually(lambda: scene.leaves.loaded == {"A": WEB, "B": WEB}, "HAProxy is told when it answers")


def test_a_restarted_verifier_goes_on_with_what_is_known(scene: VerifierScene) -> None:
    scene.begin(ONE, TWO)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    first = scene.probers.now

    scene.restart()

    assert not first.running
    scene.expect(CONSUL_WATCHER, Publish)
    scene.expect(CERT_MANAGER, Publish)
    scene.heard[CONFIG_RECONCILER].clear()
    scene.give_credentials()
    scene.tell(SnapshotChanged(here(ONE, TWO)))
    scene.expect_admitted(ONE)
    eventually(lambda: scene.asked() == ["10.0.0.2"], "what was under way is due")


def test_a_prober_that_fails_is_replaced_with_the_actor(scene: VerifierScene) -> None:
    scene.begin(ONE)

    scene.probers.now.fail()

    eventually(lambda: len(scene.probers.made) == 2, "a new Verifier with a new prober")


def test_what_is_known_is_kept_and_at_the_latest_at_the_end(scene: VerifierScene) -> None:
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)

    scene.restart()

    assert scene.kept[-1].admitted == (Peer("10.0.0.1", 21000, WEB),)
    assert [leaf.digest for leaf in scene.kept[-1].leaves] == ["A"]


@pytest.mark.parametrize("mode", [VerifyUpstream.OFF, VerifyUpstream.RESPONSE])
def test_without_probes_there_is_no_prober(scene: VerifierScene, mode: VerifyUpstream) -> None:
    scene.give_credentials()
    scene.tell(SnapshotChanged(here(ONE)))
    scene.tell(Publish())
    eventually(lambda: scene.looks > 2 or mode is VerifyUpstream.OFF, "it looks at answers alone")
    assert scene.probers.made == []
    assert scene.heard[CONFIG_RECONCILER] == []


@pytest.mark.parametrize("lack", ["failing", "stillborn"])
def test_a_prober_that_cannot_be_made_or_started_is_tried_again_and_nobody_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    monkeypatch.setattr(verifier, "MAX_RETRY_S", 0.05)
    made = VerifierScene(tmp_path, VerifyUpstream.BOTH, **{lack: 2})
    with playing(made):
        made.begin(ONE)
        assert made.probers.failing == made.probers.stillborn == 0
        assert [actor.restarts for actor in made.tree.actors(DEADLINE_S) if actor.name == VERIFIER] == [0]


def test_an_endpoint_that_is_itself_again_is_not_cut_once_more(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "CUT_AGAIN_S", 60.0)
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    scene.tell(SnapshotChanged(here(replace(ONE, weight=2), version=2)))
    eventually(lambda: len(scene.asked()) == 1, "it is probed again")
    scene.probers.now.answer({"10.0.0.1": seen(EVIL)})
    eventually(lambda: len(scene.asked()) == 1, "it is probed again soon")
    scene.heard[CONFIG_RECONCILER].clear()
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)

    scene.tell(verifier._CutAgain())

    scene.settle()
    assert len(scene.leaves.taken_out) == 1


def test_an_impostor_is_taken_out_until_each_worker_of_haproxy_has_answered(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "CUT_AGAIN_S", 0.01)
    monkeypatch.setattr(verifier, "CUT_RETRY_S", 0.01)
    tried: list[str] = []

    def hangs(address: str, *_: object) -> None:
        tried.append(address)
        raise ControlError("worker 7 does not answer")

    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    scene.tell(SnapshotChanged(here(replace(ONE, weight=2), version=2)))
    eventually(lambda: len(scene.asked()) == 1, "it is probed again")
    with monkeypatch.context() as hung:
        hung.setattr(scene.leaves, "take_out", hangs)
        scene.probers.now.answer({"10.0.0.1": seen(EVIL)})
        eventually(lambda: len(tried) > 4, "tries")

    eventually(lambda: len(scene.leaves.taken_out) == 1, "it is done")


def test_a_leaf_that_haproxy_did_not_hear_of_is_told_again_though_it_listens_by_now(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.begin(ONE)
    with monkeypatch.context() as away:
        away.setattr(scene.leaves, "change", lambda _: False)
        scene.probers.now.answer({"10.0.0.1": seen()})
        scene.expect_admitted(ONE)

    eventually(lambda: scene.leaves.loaded == {"A": WEB}, "it is told")


def test_haproxy_is_told_of_a_leaf_before_anybody_hears_of_its_endpoint(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def change(change: MapChange) -> bool:
        # Time enough for who is told too early to be heard.
        threading.Event().wait(0.2)
        told.append(any(one.admission.admitted for one in scene.all_of(CONFIG_RECONCILER, AdmissionChanged)))
        return True

    monkeypatch.setattr(scene.leaves, "change", change)
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})

    scene.expect_admitted(ONE)
    assert told == [False]


def test_what_a_haproxy_that_is_younger_than_us_has_cut_is_news(
    scene: VerifierScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.denied, scene.uptime_s = 5, 0

    scene.begin(ONE)

    eventually(lambda: "5 answers were cut" in caplog.text, "the answers are told")


def test_new_cas_have_those_who_serve_probed_and_the_same_ones_do_not(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.mesh.peer_book.DISTRUST_S", 0.0)
    monkeypatch.setattr("hcc.mesh.peer_book.AGAIN_PER_S", 1e9)
    scene.begin(ONE)
    scene.probers.now.answer({"10.0.0.1": seen()})
    scene.expect_admitted(ONE)
    scene.give_credentials()
    scene.settle()
    threading.Event().wait(0.3)
    assert scene.asked() == []

    scene.give_credentials(Authority("New"))

    eventually(lambda: scene.asked() == [ONE.address], "who serves is probed")


def test_no_more_are_probed_at_once_than_may_be(scene: VerifierScene) -> None:
    many = [endpoint(f"10.0.1.{number}") for number in range(MOST_PROBES + 10)]
    scene.give_credentials()
    scene.tell(SnapshotChanged(here(*many)))
    eventually(lambda: len(scene.asked()) == MOST_PROBES, "as many as may be")
    scene.tell(SnapshotChanged(here(*many, version=2)))
    scene.expect(CONFIG_RECONCILER, AdmissionChanged, lambda told: told.admission.version == 2)
    assert len(scene.asked()) == MOST_PROBES

    scene.probers.now.answer({many[0].address: seen()})

    eventually(lambda: scene.probes("right") == 1 and len(scene.asked()) == MOST_PROBES, "one more")


def test_a_leaf_that_expires_is_forgotten_by_haproxy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "EXPIRY_S", 0.05)
    made = VerifierScene(tmp_path, VerifyUpstream.BOTH)
    now = time.time
    with playing(made):
        made.begin(ONE)
        made.probers.now.answer({"10.0.0.1": Seen(PeerCertificate("A", (WEB,), int(time.time()) + 3600))})
        made.expect_admitted(ONE)
        assert made.leaves.loaded == {"A": WEB}

        monkeypatch.setattr(time, "time", lambda: now() + 3600.0)

        eventually(lambda: made.leaves.loaded == {}, "it is forgotten")


def test_a_server_line_that_rightly_serves_somebody_else_is_not_taken_out(scene: VerifierScene) -> None:
    # A query finds both at one address, of which Consul does not know yet that one is gone.
    other = replace(TWO, identity=EVIL)
    find = upstream("find", query=True)
    scene.leaves.backends = [backend_name(find)]
    scene.give_credentials()
    scene.tell(SnapshotChanged(snapshot(upstream_state(find, (TWO,)))))
    eventually(lambda: len(scene.asked()) == 1, "it is probed")
    scene.probers.now.answer({TWO.address: seen()})
    scene.expect_admitted(TWO)
    scene.tell(SnapshotChanged(snapshot(upstream_state(find, (TWO, other)), version=2)))
    eventually(lambda: len(scene.asked()) == 1, "who is new is probed")
    scene.probers.now.answer({TWO.address: seen(EVIL)})
    scene.expect_admitted(TWO, other)

    scene.tell(SnapshotChanged(snapshot(upstream_state(find, (replace(TWO, weight=2), other)), version=3)))
    eventually(lambda: len(scene.asked()) == 1, "what changed is probed again")
    scene.probers.now.answer({TWO.address: seen(EVIL)})
    scene.expect_admitted(other)

    eventually(lambda: len(scene.leaves.taken_out) == 2, "it was looked at, and once more")
    assert {backends for _, _, backends in scene.leaves.taken_out} == {frozenset()}


def test_credentials_that_cannot_be_used_leave_the_old_ones(
    scene: VerifierScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.begin(ONE)
    gone = CertificateFile(str(scene.directory / "gone.pem"), "A" * 40, Secret(""))
    scene.tell(CredentialsReady(gone, CaFile("roots.pem", frozenset(("B" * 40,)), scene.authority.pem)))
    scene.tell(SnapshotChanged(here(ONE, TWO, version=2)))

    eventually(lambda: len(scene.asked()) == 2, "who is new is probed by the old ones")
    assert "the old one stays" in caplog.text
    assert scene.generation() == 1


def test_two_that_are_taken_out_one_after_the_other_are_both_cut_once_more(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "CUT_AGAIN_S", 3.0)
    scene.begin(ONE, TWO)
    scene.probers.now.answer({one.address: seen() for one in (ONE, TWO)})
    scene.expect_admitted(ONE, TWO)
    scene.tell(SnapshotChanged(here(*(replace(one, weight=2) for one in (ONE, TWO)), version=2)))
    eventually(lambda: len(scene.asked()) == 2, "probed again")
    scene.probers.now.answer({ONE.address: seen(EVIL)})
    eventually(lambda: len(scene.leaves.taken_out) >= 1, "the first")
    scene.probers.now.answer({TWO.address: seen(EVIL)})
    eventually(lambda: len(scene.leaves.taken_out) >= 4, "each is taken out once more")
    assert sorted(a for a, _, _ in scene.leaves.taken_out) == [ONE.address] * 2 + [TWO.address] * 2


def test_two_that_are_taken_out_one_after_the_other_are_both_cut_in_a_worker_that_hangs_meanwhile(
    scene: VerifierScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "CUT_RETRY_S", 3.0)
    scene.leaves.stopping_hangs = True
    scene.begin(ONE, TWO)
    scene.probers.now.answer({one.address: seen() for one in (ONE, TWO)})
    scene.expect_admitted(ONE, TWO)
    scene.tell(SnapshotChanged(here(*(replace(one, weight=2) for one in (ONE, TWO)), version=2)))
    eventually(lambda: len(scene.asked()) == 2, "probed again")
    scene.probers.now.answer({ONE.address: seen(EVIL)})
    eventually(lambda: len(scene.leaves.told_stopping) == 1, "the first")
    time.sleep(0.6)  # Both cuts of the first are over.
    scene.probers.now.answer({TWO.address: seen(EVIL)})
    scene.leaves.stopping_hangs = False
    eventually(lambda: len(scene.leaves.told_stopping) == 2, "both")
    assert scene.leaves.told_stopping[1] == frozenset((ONE.address, TWO.address))
