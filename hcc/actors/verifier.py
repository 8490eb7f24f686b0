"""Verifier: an upstream's endpoint gets traffic once it was seen to be who it should be, and its answers only as such.

Thin: `PeerBook` decides, `Prober` and `LeafMap` act. The book outlives this actor, and by a file hcc itself, so that
nothing goes out of service until it was probed anew.
"""

from __future__ import annotations

import logging
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from hcc.actors.actor import Actor
from hcc.actors.backoff import Retries
from hcc.actors.lifecycle import StopReason
from hcc.actors.messages import (
    ADMIN,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    AdmissionChanged,
    CredentialsReady,
    FactsReported,
    HAProxyDown,
    HAProxyUp,
    Preview,
    Publish,
    SnapshotChanged,
    WorkerReplaced,
)
from hcc.actors.readiness import PeerFacts
from hcc.errors import HccError
from hcc.haproxy.backend_counts import BackendCounts, News
from hcc.haproxy.control import ControlError
from hcc.haproxy.leaf_map import LeafMap, Meant
from hcc.haproxy.map_text import MapChange, MapTextError, map_change
from hcc.haproxy.owners import Owners
from hcc.log import LastingProblem
from hcc.mesh.peer_book import Judgement, Kept, NoAnswer, Peer, PeerBook, Seen, Standing, Unverified, peer_of
from hcc.mesh.snapshot import Snapshot, TargetEndpoints
from hcc.metrics import Metrics
from hcc.peers.prober import Deliver, Probed
from hcc.peers.tls import client_context
from hcc.settings import VerifyUpstream

# Who may get traffic is told at once; while many are being probed, at most this part of the time is spent on telling.
TELL_SHARE = 0.05
# Probes under way at once. They are handshakes in one thread, which sleeps while endpoints do.
MOST_PROBES = 64
STORE_S = 1.0
STORED_PER_S = 5_000
EXPIRY_S = 60.0
RETRY_S = 0.5
MAX_RETRY_S = 10.0
# A session that began just before its endpoint went into maintenance may not have been there to be cut.
CUT_AGAIN_S = 0.5
# Where HAProxy, or one of its workers that stop, could not be told. One of those that hangs takes two seconds.
CUT_RETRY_S = 5.0
LOOK_S = 1.0
# A wall clock that gains or loses more than this between two looks was set: slewing moves it by half a millisecond.
CLOCK_STEP_S = 2.0
# Cut answers of one upstream are told at most this often.
TELL_CUTS_S = 60.0

_log = logging.getLogger(__name__)


class VerifierError(HccError):
    """What probes has failed; a new Verifier begins with a new one."""


class Probes(Protocol):
    """What `hcc.peers.prober.Prober` does."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def ask(self, peers: Iterable[Peer], context: ssl.SSLContext) -> None: ...


@dataclass(slots=True)
class Register:
    """What outlives the actor, used by one generation at a time.

    Args:
        keep: puts what is known where the next hcc finds it; whether it could.
    """

    book: PeerBook = field(default_factory=PeerBook)
    keep: Callable[[Kept], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """From the prober's thread; none at all when it has failed."""

    probed: tuple[Probed, ...]


@dataclass(frozen=True, slots=True)
class _Probe:
    """To itself: somebody is due."""


@dataclass(frozen=True, slots=True)
class _Tell:
    """To itself: what probes have found meanwhile is to be told."""


@dataclass(frozen=True, slots=True)
class _StartProbing:
    """To itself: what probes could not be made; try again."""


@dataclass(frozen=True, slots=True)
class _UseAgain:
    """To itself: the newest credentials could not be used for probes; try again."""


@dataclass(frozen=True, slots=True)
class _Store:
    """To itself: write what is known."""


@dataclass(frozen=True, slots=True)
class _Expire:
    """To itself: forget certificates that have expired."""


@dataclass(frozen=True, slots=True)
class _Resync:
    """To itself: compare what HAProxy knows with what it should."""

    coalesce_key: ClassVar[str] = "resync"


@dataclass(frozen=True, slots=True)
class _CutAgain:
    """To itself: cut what came in while it was being cut."""


@dataclass(frozen=True, slots=True)
class _CutStopping:
    """To itself: cut in workers that stop, too."""


@dataclass(frozen=True, slots=True)
class _Look:
    """To itself: look whether HAProxy has cut answers."""


class Verifier(Actor):
    """Owns the book of endpoints, the probes, and HAProxy's map of their leaves."""

    def init(
        self,
        *,
        mode: VerifyUpstream,
        register: Register,
        make_prober: Callable[[Deliver], Probes],
        leaves: LeafMap,
        counts: BackendCounts,
        metrics: Metrics,
        resync_s: float,
    ) -> None:
        self._mode = mode
        self._resync_s = resync_s
        self._register = register
        self._book = register.book
        self._make_prober = make_prober
        self._leaves = leaves
        self._counts = counts
        self._metrics = metrics
        self._checks = mode.checks_answers and leaves.looks
        self._snapshot: Snapshot | None = None
        self._prober: Probes | None = None
        self._context: ssl.SSLContext | None = None
        self._roots: frozenset[str] | None = None
        # The newest credentials, as long as probes do without them.
        self._unused: CredentialsReady | None = None
        self._under_way = 0
        self._stored = True
        self._disk_problem = LastingProblem(_log)
        # Who is to be cut: once more, and in workers that stop.
        self._to_cut: frozenset[Peer] = frozenset()
        self._to_cut_in_stopping: frozenset[Peer] = frozenset()
        # When these may be told again, of which one may hang.
        self._stopping_at_s = 0.0
        self._stopping_problem = LastingProblem(_log)
        self._retries = Retries()
        # Whether HAProxy may lack something that it was, or should have been, told.
        self._behind = True
        # How far the wall clock is ahead of the monotonic one.
        self._ahead_s = time.time() - time.monotonic()
        # When it was last told that an upstream's answers were cut.
        self._told_s: dict[str, float] = {}
        # Upstreams by endpoint, made when somebody is to be named; and when admissions may be told again.
        self._names: dict[Peer, list[str]] | None = None
        self._tell_at_s = 0.0

    def setup(self) -> None:
        if self.context.generation > 1:
            for source in (CONSUL_WATCHER, CERT_MANAGER):
                self.tell(source, Publish())
        if self._mode.probes:
            self._book.forget_probes(time.monotonic())
            self._start_probing()
            self.after(EXPIRY_S, _Expire(), key="expire")
        if self._checks:
            self.after_about(self._resync_s, _Resync(), key="resync")
        if self._checks or self._mode.probes:
            self.after(LOOK_S, _Look(), key="look")

    def handle(self, message: object) -> object | None:
        if isinstance(message, Preview):
            return self._differences()
        self._deal_with(message)
        return None

    def _deal_with(self, message: object) -> None:
        match message:
            case SnapshotChanged(snapshot):
                self._follow(snapshot)
            case CredentialsReady():
                self._unused = message
                self._use()
            case _UseAgain():
                self._use()
            case _Outcomes(probed):
                self._hear(probed)
            case HAProxyUp() | WorkerReplaced() | _Resync():
                self._resync(drift=isinstance(message, _Resync) and not self._behind)
            case HAProxyDown():
                # It starts with the file, which somebody else may have damaged. None of its workers is left.
                self._store()
                self._to_cut_in_stopping = frozenset()
            case Publish():
                if self._snapshot is not None and self._mode.probes:
                    self._publish()
            case _:
                self._handle_timer(message)

    def _handle_timer(self, message: object) -> None:
        match message:
            case _Probe():
                self._probe()
            case _Tell():
                self._publish()
            case _StartProbing():
                self._start_probing()
            case _Store():
                self._store()
            case _Expire():
                self.after(EXPIRY_S, _Expire(), key="expire")
                if self._book.forget_expired(time.time()):
                    self._tell_leaves()
            case _CutAgain():
                self._cut_again()
            case _CutStopping():
                self._cut_stopping()
            case _Look():
                self.after(LOOK_S, _Look(), key="look")
                self._look_at_clock()
                self._look()

    def teardown(self, reason: StopReason) -> None:  # noqa: ARG002 (Actor's signature)
        """End the probes, and leave on disk what is known."""
        self._stop_probing()
        if not self._stored:
            self._store()

    # ---- probes

    def _follow(self, snapshot: Snapshot) -> None:
        self._snapshot, self._names = snapshot, None
        if self._mode.probes:
            self._book.follow(snapshot, time.monotonic(), _jitter())
            self._probe()
            self._publish()

    def _use(self) -> None:
        credentials = self._unused
        if credentials is None:
            return
        try:
            self._context = client_context(credentials.certificate.name, credentials.ca.pem)
        except OSError as exc:
            text = "endpoints cannot be probed with the new certificate, the old one stays; next try in %.0f s: %s"
            _log.error(text, MAX_RETRY_S, exc)
            self.after(MAX_RETRY_S, _UseAgain(), key="use")
            return
        self.cancel("use")
        self._unused = None
        if self._roots is not None and credentials.ca.fingerprints != self._roots:
            self._book.distrust(time.monotonic(), _jitter())
        self._roots = credentials.ca.fingerprints
        self._probe()

    def _probe(self) -> None:
        """Have those probed that are due, as many as may be under way."""
        if self._prober is None or self._context is None:
            return
        now_s = time.monotonic()
        due = self._book.take_due(now_s, MOST_PROBES - self._under_way)
        if due:
            self._under_way += len(due)
            self._prober.ask(due, self._context)
        next_s = self._book.next_due_s()
        if next_s is not None and self._under_way < MOST_PROBES:
            self.after(max(next_s - now_s, 0.05), _Probe(), key="probe")

    def _deliver(self, probed: tuple[Probed, ...]) -> None:
        # Called in the prober's thread; the address fences out threads of an earlier generation.
        self.address.tell(_Outcomes(probed))

    def _hear(self, probed: tuple[Probed, ...]) -> None:
        if not probed:
            raise VerifierError("the prober has failed")
        self._under_way -= len(probed)
        found = [self._noted(one) for one in probed]
        news = [one for one in found if one is not None and (one.news or one.before is Standing.UNKNOWN)]
        self._take_out(frozenset(one.peer for one in news if one.impostor and one.before is Standing.ADMITTED))
        # The leaf before its endpoint: HAProxy must know it when it answers.
        self._tell_leaves()
        self._probe()
        if news:
            # HAProxy must not be told to take somebody back who was just taken out.
            self._publish_soon(now=any(one.now is Standing.REFUSED for one in news))
        for judgement in news:
            self._say(judgement)

    def _noted(self, one: Probed) -> Judgement | None:
        judgement = self._book.note(one.peer, one.outcome, time.monotonic(), _jitter())
        if judgement is not None:
            self._metrics.probes.labels(_word(one, judgement)).inc()
        return judgement

    def _publish_soon(self, *, now: bool) -> None:
        """To tell takes time by the number of all endpoints, so it is not done for each of ten thousand."""
        began_s = time.monotonic()
        if not now and self._under_way and began_s < self._tell_at_s:
            self.after(self._tell_at_s - began_s, _Tell(), key="tell")
            return
        self._publish()
        ended_s = time.monotonic()
        self._tell_at_s = ended_s + (ended_s - began_s) / TELL_SHARE

    def _say(self, judgement: Judgement) -> None:
        peer = judgement.peer
        if judgement.now is Standing.REFUSED and judgement.before is not Standing.REFUSED:
            # Of one that is refused by its cut answers it was not seen who it is.
            what = "is another service" if judgement.impostor and judgement.seen else "is not to be trusted"
            _log.error("%s: %s %s and gets no traffic: %s", self._name(peer), peer.where, what, judgement.reason)
        elif judgement.now is Standing.ADMITTED and judgement.before is Standing.REFUSED:
            _log.info("%s: %s is who it should be, and gets traffic", self._name(peer), peer.where)
        elif judgement.silent and not judgement.was_silent:
            text = "%s: %s does not answer, and gets no traffic while enough others do: %s"
            _log.warning(text, self._name(peer), peer.where, judgement.reason)
        elif judgement.was_silent and not judgement.silent:
            _log.info("%s: %s answers again, and gets traffic", self._name(peer), peer.where)
        elif judgement.now is Standing.UNKNOWN:
            _log.debug("%s is not known yet: %s", peer.where, judgement.reason)

    def _name(self, peer: Peer) -> str:
        """The upstreams that have this endpoint, for people."""
        if self._names is None:
            self._names = _names(self._snapshot) if self._snapshot else {}
        return f"upstream {', '.join(self._names.get(peer, ()))}"

    def _start_probing(self) -> None:
        try:
            prober = self._make_prober(self._deliver)
            prober.start()
        except OSError as exc:
            _log.error("endpoints cannot be probed; next try in %.0f s: %s", MAX_RETRY_S, exc)
            self.after(MAX_RETRY_S, _StartProbing(), key="start-probing")
            return
        self._prober = prober
        self._probe()

    def _stop_probing(self) -> None:
        self.cancel("start-probing")
        if self._prober is not None:
            self._prober.stop()
            self._prober = None

    # ---- sessions

    def _take_out(self, peers: frozenset[Peer]) -> None:
        if peers:
            self._cut(peers)
            self._to_cut |= peers
            self.after(CUT_AGAIN_S, _CutAgain(), key="cut-again")

    def _cut_again(self) -> None:
        self._to_cut = self._still_refused(self._to_cut)
        if self._cut(self._to_cut):
            self._to_cut = frozenset()
        else:
            self.after(CUT_RETRY_S, _CutAgain(), key="cut-again")

    def _cut(self, peers: frozenset[Peer]) -> bool:
        """Whether they were taken out of the current worker; those that stop are told later, as they may hang."""
        try:
            runs = self._leaves.take_out(self._meant(peers)) if peers else False
        except ControlError as exc:
            where = ", ".join(sorted(peer.where for peer in peers))
            _log.error("%s cannot be taken out at once: %s", where, exc)
            return False
        if runs:
            self._to_cut_in_stopping |= peers
            self.after(max(self._stopping_at_s - time.monotonic(), 0.0), _CutStopping(), key="cut-stopping")
        return True

    def _cut_stopping(self) -> None:
        self._to_cut_in_stopping = self._still_refused(self._to_cut_in_stopping)
        if self._to_cut_in_stopping:
            failure = self._leaves.take_out_of_stopping(self._meant(self._to_cut_in_stopping))
            if failure is not None:
                text = "workers of HAProxy that stop may go on with endpoints that are not who they should be"
                self._stopping_problem.say(f"{text}; they are told until they do not")
                _log.debug("workers that stop: %s", failure)
                self._stopping_at_s = time.monotonic() + CUT_RETRY_S
                self.after(CUT_RETRY_S, _CutStopping(), key="cut-stopping")
                return
        self._to_cut_in_stopping = frozenset()
        self._stopping_problem.over()

    def _still_refused(self, peers: frozenset[Peer]) -> frozenset[Peer]:
        return peers & {peer for peer, _ in self._book.refused()}

    def _meant(self, peers: frozenset[Peer]) -> Meant:
        """Where to take them out."""
        owners = Owners(self._snapshot.upstreams if self._snapshot else ())
        admitted = self._book.admission().admitted
        places = {(peer.address, peer.port) for peer in peers}
        return {place: _holding(place, peers, owners, admitted) for place in places}

    # ---- what HAProxy counts

    def _look_at_clock(self) -> None:
        """Where it was set, certificates may be valid now that were not."""
        before, self._ahead_s = self._ahead_s, time.time() - time.monotonic()
        if self._mode.probes and abs(self._ahead_s - before) > CLOCK_STEP_S:
            _log.info(
                "the clock was set by %.0f s: endpoints that are refused are probed again", self._ahead_s - before
            )
            self._book.reconsider(time.monotonic())
            self._probe()

    def _look(self) -> None:
        """Tell of answers that HAProxy has cut since the last look; have those probed, and who does not answer it."""
        if self._snapshot is None:
            # Nobody knows yet whose backends they are; what was counted until then is news when it is known.
            return
        owners = Owners(self._snapshot.upstreams)
        news = self._counts.look(lambda proxy: owners.of(proxy) is not None)
        for backend, cut in news.cut if self._checks else ():
            owner = owners.of(backend)
            if owner is not None:
                self._say_cut(owner.upstream.key.label(), cut)
        if self._mode.probes and (news.liars or news.quiet):
            self._think_ill(news, owners)
            self._probe()

    def _think_ill(self, news: News, owners: Owners) -> None:
        now_s = time.monotonic()
        for backend, places in news.liars if self._checks else ():
            there = _peers_of(owners, backend)
            if places:
                self._book.suspect((peer for peer in there if peer.where in places), now_s)
            else:
                # It may be any of them.
                self._book.doubt(there, now_s)
        for backend, places in news.quiet:
            self._book.doubt((peer for peer in _peers_of(owners, backend) if peer.where in places), now_s)

    def _say_cut(self, label: str, cut: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s.get(label, float("-inf")) >= TELL_CUTS_S:
            self._told_s[label] = now_s
            _log.error("upstream %s: %d answers were cut, as an endpoint is not who it should be", label, cut)

    # ---- HAProxy's map

    def _tell_leaves(self) -> None:
        news = self._book.take_news()
        if not news:
            return
        self._metrics.leaves_remembered.set(len(self._book.leaves()))
        change = MapChange(
            added=tuple((digest, identity) for digest, identity in news.items() if identity is not None),
            removed=tuple(digest for digest, identity in news.items() if identity is None),
        )
        self._store_soon()
        if self._checks and not self._try(lambda: self._changed(change)):
            self._store()

    def _changed(self, change: MapChange) -> bool:
        """Whether HAProxy knows it; raises ControlError where one with that map runs and was not told."""
        if self._leaves.change(change):
            return True
        if self._leaves.entries() is not None:
            # It would cut the answers of instances whose leaves it does not know.
            raise ControlError("HAProxy runs, but nobody listened on its sockets for a moment")
        return False

    def _resync(self, *, drift: bool) -> None:
        """Make HAProxy know what it should; with `drift` it should already, and what is repaired is counted."""
        if self._checks:
            self.after_about(self._resync_s, _Resync(), key="resync")
            self._try(lambda: self._repair(drift=drift))
            # The next reload reads the file, which somebody may have damaged.
            self._store_leaves()

    def _repair(self, *, drift: bool) -> bool:
        found = self._leaves.entries()
        if found is None:
            return False
        self._book.take_news()
        change = map_change(found, self._book.leaves())
        if not change:
            return True
        known = self._changed(change)
        if drift and known:
            self._metrics.drift.inc()
            _log.warning("HAProxy's map of leaves was not as it should be: %d entries put right", len(change))
        return known

    def _differences(self) -> tuple[str, ...]:
        """How HAProxy's map differs from what it should be; raises ControlError."""
        found = self._leaves.entries() if self._checks else None
        change = map_change(found, self._book.leaves()) if found is not None else MapChange()
        return (f"change {len(change)} leaves of upstreams' instances",) if change else ()

    def _try(self, act: Callable[[], bool]) -> bool:
        """Whether HAProxy knows it; if it could not be told, all is compared again soon."""
        try:
            known = act()
        except (ControlError, MapTextError) as exc:
            delay = self._retries.next_delay_s(time.monotonic(), RETRY_S, MAX_RETRY_S)
            _log.error("HAProxy's memory of leaves is not up to date; next try in %.1f s: %s", delay, exc)
            self.after(delay, _Resync(), key="resync")
            self._behind = True
            return False
        self._retries.reset()
        self._behind = not known
        return known

    # ---- others

    def _store_soon(self) -> None:
        if self._stored:
            self._stored = False
            # Ten thousand endpoints take 0.1 s to write.
            self.after(STORE_S + len(self._book) / STORED_PER_S, _Store(), key="store")

    def _store(self) -> None:
        """For the next start of HAProxy, and for the next hcc; what the disk does not take is tried again."""
        self._stored = True
        are_stored = self._store_leaves()
        if not self._register.keep(self._book.kept()) or not are_stored:
            self._store_soon()

    def _store_leaves(self) -> bool:
        """Whether the disk took them; if not, that is said once."""
        try:
            self._leaves.store(self._book.leaves())
        except OSError as exc:
            self._disk_problem.say(f"the map of leaves cannot be written: {exc.strerror}")
            return False
        self._disk_problem.over()
        return True

    def _publish(self) -> None:
        self.cancel("tell")
        admission, refused, impostors = self._book.admission(), self._book.refused(), self._book.impostors()
        self._metrics.refused_endpoints.labels("impostor").set(impostors)
        self._metrics.refused_endpoints.labels("unverified").set(len(refused) - impostors)
        self._metrics.waiting_endpoints.set(self._book.waiting())
        self._metrics.silent_endpoints.set(len(admission.silent))
        self.tell(CONFIG_RECONCILER, AdmissionChanged(admission))
        facts = PeerFacts(admission.admitted, refused, self._book.silent(), admission.failed)
        self.tell(ADMIN, FactsReported(facts))
        self._store_soon()


def _holding(
    place: tuple[str, int], peers: frozenset[Peer], owners: Owners, admitted: frozenset[Peer]
) -> Callable[[str], bool]:
    """Whether a backend has one of these there, and nobody else who may serve there."""

    def holds(backend: str) -> bool:
        there = {
            one
            for leg in owners.legs(backend).values()
            for one in _peers(leg.targets)
            if (one.address, one.port) == place
        }
        return not there.isdisjoint(peers) and there.isdisjoint(admitted)

    return holds


def _peers(targets: Iterable[TargetEndpoints]) -> Iterator[Peer]:
    """The endpoints of targets, and who they should be."""
    return (peer_of(one) for target in targets for one in target.endpoints)


def _peers_of(owners: Owners, backend: str) -> Iterator[Peer]:
    """The endpoints of the upstream that has the backend."""
    owner = owners.of(backend)
    return _peers(owner.targets if owner else ())


def _names(snapshot: Snapshot) -> dict[Peer, list[str]]:
    """The labels of the upstreams that have an endpoint."""
    names: dict[Peer, list[str]] = {}
    for state in snapshot.upstreams:
        label = state.upstream.key.label()
        for one in set(_peers(state.targets)):
            names.setdefault(one, []).append(label)
    return names


def _word(one: Probed, judgement: Judgement) -> str:
    match one.outcome:
        case NoAnswer():
            return "no_answer"
        case Unverified():
            return "unverified"
        case Seen():
            return "impostor" if judgement.impostor else "right"


def _jitter() -> float:
    # Spread, so that the sidecars of a mesh do not all probe at the same moment.
    return random.random()  # noqa: S311
