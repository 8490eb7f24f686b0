"""Which endpoints are who they should be: admitted, refused or not known yet, and when each is to be looked at again.

An endpoint gets traffic once a probe has seen that its certificate is verified and names the wanted SPIFFE URI and no
other. One that shows another certificate is refused until it shows the right one, and so is one whose answers HAProxy
cut and that answers no two probes in a row. One that was admitted and does not answer otherwise stays so; it is silent
once HAProxy got no answer either, until it answers a probe.

The book decides; probing is left to others (`hcc.peers`). It reads no clock: `now_s` are monotonic seconds, `jitter` is
from 0 up to 1.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from hcc.mesh.peer_certificate import PeerCertificate
from hcc.mesh.snapshot import Endpoint, Health, Snapshot

# Of an admitted endpoint. Many endpoints are looked at less often: in all never more than so many a second.
AGAIN_S = 300.0
AGAIN_PER_S = 20.0
# After a change of the CAs all are looked at, spread over this.
DISTRUST_S = 30.0
RETRY_S = 0.25
MAX_RETRY_S = 30.0
# Of the probes that may be under way, those that only first probes may use.
FOR_FIRST = 16
NEVER = float("inf")
# The same endpoint is not suspected more often, and so long after a probe that it did not answer it has another chance:
# an honest one may just be restarting. Of all, no more than AGAIN_PER_S are suspected.
SUSPECT_S = 2.0
# Nor is one doubted: clients may give up on a slow application again and again. Of all, no more than AGAIN_PER_S are.
DOUBT_S = 10.0
# So long it must not have answered to be silent. HAProxy tries a request again for about as long: an instance that
# restarts in that time loses nothing.
SILENT_S = 3.0
# At most so long one that is silent waits for its next probe.
SILENT_AGAIN_S = 5.0
# What an earlier hcc admitted counts so long for upstreams of which Consul does not even say whose instances they have.
KEPT_S = 600.0
# Ten thousand endpoints, each with the leaf that it has and the one it had. About 8 MB in HAProxy's memory.
MAX_LEAVES = 20_000


class Peer(NamedTuple):
    """An endpoint and the SPIFFE URI that it must have; a tuple, as ten thousand are looked up at each change."""

    address: str
    port: int
    identity: str

    @property
    def where(self) -> str:
        """Its address for people: `10.0.0.1:21000`."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def peer_of(endpoint: Endpoint) -> Peer:
    """Where an endpoint is, and who it must be."""
    return Peer(endpoint.address, endpoint.port, endpoint.identity)


@dataclass(frozen=True, slots=True)
class Seen:
    """It showed a certificate that chains to the roots, and that it has the key."""

    certificate: PeerCertificate


@dataclass(frozen=True, slots=True)
class Unverified:
    """It showed a certificate that is not to be trusted."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Nothing was seen of its certificate.

    Args:
        asked: whether it could be asked; if not, we had no descriptor, no port or no route, which is not its doing.
    """

    reason: str
    asked: bool = True


Outcome = Seen | Unverified | NoAnswer


class Standing(StrEnum):
    """What is thought of an endpoint."""

    UNKNOWN = "unknown"
    ADMITTED = "admitted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of one probe.

    Args:
        before, now: what was thought of the endpoint, and is.
        reason: why it is not admitted, or not seen again; empty when all is well.
        impostor: it is verified as somebody else, by a probe or, as it answers none, by HAProxy.
        seen: whether this probe saw a verified certificate.
        was_silent, silent: whether it answered neither HAProxy nor probes before, and does not now.
    """

    peer: Peer
    before: Standing
    now: Standing
    reason: str = ""
    impostor: bool = False
    seen: bool = False
    was_silent: bool = False
    silent: bool = False

    @property
    def news(self) -> bool:
        """Whether anything changed."""
        return self.before is not self.now or self.was_silent is not self.silent


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may get traffic.

    Args:
        version: of the snapshot whose endpoints these are.
        admitted: endpoints.
        probing: whether there is an endpoint whose first probe has not ended.
        silent: those of the admitted that would get traffic and answer neither HAProxy nor probes; who fell silent
            first comes first.
        failed: those that would get traffic and are not admitted although a probe has ended.
    """

    version: int
    admitted: frozenset[Peer]
    probing: bool
    silent: tuple[Peer, ...] = ()
    failed: frozenset[Peer] = frozenset()


@dataclass(frozen=True, slots=True)
class Vetted:
    """What is known of endpoints that decides who gets traffic.

    Args:
        admitted: those that may; None where their identity is not looked at.
        silent: those of them that do not answer, who fell silent first coming first, and after these those that are not
            admitted although a probe has ended.
        probing: there may be more that are admitted soon.
    """

    admitted: frozenset[Peer] | None = None
    silent: tuple[Peer, ...] = ()
    probing: bool = False


# Where nobody looks at who they are.
UNVETTED = Vetted()


@dataclass(frozen=True, slots=True)
class KnownLeaf:
    """A leaf certificate that a probe has seen."""

    digest: str
    identity: str
    expires_s: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What the next hcc needs so that nothing goes out of service until it has probed.

    Args:
        admitted: address, port and SPIFFE URI, as in `Peer`.
    """

    admitted: tuple[tuple[str, int, str], ...] = ()
    leaves: tuple[KnownLeaf, ...] = ()


@dataclass(slots=True)
class _Record:
    standing: Standing = Standing.UNKNOWN
    reason: str = ""
    impostor: bool = False
    due_s: float = 0.0
    failures: int = 0
    # When the first probe was made of those that failed since the last answer.
    failing_s: float = NEVER
    # Whether HAProxy got no answer from it since the last one to a probe.
    doubted: bool = False
    # Whether HAProxy cut an answer of it since it was last seen to be who it should be.
    suspected: bool = False
    # Whether it did not answer the last probe that it got while suspected.
    evasive: bool = False
    silent_s: float = NEVER
    probing: bool = False
    asked_s: float = float("-inf")
    look: tuple[Health, int] = (Health.CRITICAL, 0)

    @property
    def first(self) -> bool:
        """Whether it waits for its first probe."""
        return self.standing is Standing.UNKNOWN and not self.failures

    @property
    def failed(self) -> bool:
        """Whether a probe has ended, and it is not admitted."""
        return self.standing is not Standing.ADMITTED and not self.first

    @property
    def silent(self) -> bool:
        """Whether it is to be left alone."""
        return self.silent_s < NEVER and self.standing is Standing.ADMITTED


_Waiting = tuple[float, int, Peer]


class PeerBook:
    """Changes with snapshots and probes; one owner.

    Args:
        most_leaves: leaf certificates remembered.
    """

    def __init__(self, most_leaves: int = MAX_LEAVES) -> None:
        self._records: dict[Peer, _Record] = {}
        # Whom an earlier hcc admitted, while Consul has not told of its target; and the URIs of such targets.
        self._kept: frozenset[tuple[str, int, str]] = frozenset()
        self._awaited: frozenset[str] = frozenset()
        self._kept_until_s = NEVER
        # Who waits for a probe, in three queues by how much it matters. What is no longer true in them is passed over.
        self._first: list[_Waiting] = []
        self._failing: list[_Waiting] = []
        self._again: list[_Waiting] = []
        self._serials = itertools.count()
        # Oldest first, as dicts keep their order.
        self._leaves: dict[str, KnownLeaf] = {}
        self._news: dict[str, str | None] = {}
        self._most_leaves = most_leaves
        # When one more that is suspected, or doubted, may be probed.
        self._suspect_s = self._doubt_s = float("-inf")
        self._version = 0
        self._admission: Admission | None = None

    # ---- who is there

    def follow(self, snapshot: Snapshot, now_s: float, jitter: float) -> None:
        """Take over the endpoints of a snapshot: forget who is gone; who is new or changed is to be probed now.

        Only who may get traffic is probed.
        """
        self._version, self._admission = snapshot.version, None
        if now_s >= self._kept_until_s:
            self._kept = frozenset(one for one in self._kept if one[2] in self._awaited)
        found = _looks(snapshot)
        for peer in self._records.keys() - found.keys():
            del self._records[peer]
        for place, (peer, look) in enumerate(found.items()):
            record = self._records.get(peer)
            if record is None:
                self._records[peer] = record = self._new(peer)
                restored = record.standing is Standing.ADMITTED
                # Spread, as they all come at once.
                spread = self._interval_s * ((jitter + place / len(found)) % 1.0)
                record.look = look
                self._plan(peer, record, now_s + spread if restored else now_s)
            elif record.look != look:
                record.look = look
                self._plan(peer, record, now_s)
        if snapshot.roots is not None:
            self._forget_kept(snapshot, now_s)

    def __len__(self) -> int:
        """How many endpoints there are."""
        return len(self._records)

    def admission(self) -> Admission:
        """Who may get traffic now."""
        if self._admission is None:
            records = self._records.items()
            admitted = frozenset(peer for peer, one in records if one.standing is Standing.ADMITTED)
            probing = any(one.first and _serves(one) for one in self._records.values())
            silent = sorted((one.silent_s, peer) for peer, one in records if one.silent and _serves(one))
            failed = frozenset(peer for peer, one in records if one.failed and _serves(one))
            self._admission = Admission(self._version, admitted, probing, tuple(peer for _, peer in silent), failed)
        return self._admission

    def waiting(self) -> int:
        """How many endpoints would get traffic and have not been admitted, nor refused."""
        return sum(one.standing is Standing.UNKNOWN and _serves(one) for one in self._records.values())

    def refused(self) -> tuple[tuple[Peer, str], ...]:
        """Those that are refused, and why, sorted."""
        records = self._records.items()
        return tuple(sorted((peer, one.reason) for peer, one in records if one.standing is Standing.REFUSED))

    def silent(self) -> tuple[tuple[Peer, str], ...]:
        """Those that are silent, and what the last probe found, sorted."""
        return tuple(sorted((peer, self._records[peer].reason) for peer in self.admission().silent))

    def impostors(self) -> int:
        """How many of those are verified as somebody else, by probes or by HAProxy."""
        return sum(one.standing is Standing.REFUSED and one.impostor for one in self._records.values())

    # ---- probes

    def take_due(self, now_s: float, most: int) -> tuple[Peer, ...]:
        """Those to be probed now, at most so many; each is under way until its outcome is noted.

        First probes go first, and there is always room for some: those that do not answer take long.
        """
        taken: list[Peer] = []
        for queue, left in ((self._first, 0), (self._failing, FOR_FIRST), (self._again, FOR_FIRST)):
            while len(taken) < most - left and queue and queue[0][0] <= now_s:
                due_s, _, peer = heapq.heappop(queue)
                record = self._records.get(peer)
                if record is not None and not record.probing and record.due_s == due_s and _serves(record):
                    record.probing, record.asked_s, record.due_s = True, now_s, NEVER
                    taken.append(peer)
        return tuple(taken)

    def next_due_s(self) -> float | None:
        """When the next one may be due; None when nobody waits."""
        return min((queue[0][0] for queue in (self._first, self._failing, self._again) if queue), default=None)

    def note(self, peer: Peer, outcome: Outcome, now_s: float, jitter: float) -> Judgement | None:
        """Take over what came of a probe; None when nobody wants to know any more."""
        record = self._records.get(peer)
        if record is None or not record.probing:
            return None
        before, was_first, was_silent = record.standing, record.first, record.silent
        record.probing = False
        self._judge(peer, record, outcome)
        self._listen(record, outcome, now_s)
        # It may have been asked for again meanwhile.
        self._plan(peer, record, min(record.due_s, now_s + self._delay_s(record, now_s, jitter)))
        if record.standing is not before or was_first or record.silent is not was_silent:
            self._admission = None
        return Judgement(
            peer,
            before,
            record.standing,
            record.reason,
            record.impostor,
            seen=isinstance(outcome, Seen),
            was_silent=was_silent,
            silent=record.silent,
        )

    def suspect(self, peers: Iterable[Peer], now_s: float) -> None:
        """HAProxy cut answers of these: have them probed now, or as soon as that is not too often."""
        for peer in peers:
            record = self._records.get(peer)
            if record is not None:
                record.suspected = True
                self._suspect_s = self._take_turn(peer, record, max(now_s, self._suspect_s), SUSPECT_S)

    def doubt(self, peers: Iterable[Peer], now_s: float) -> None:
        """HAProxy got no answer from these: have them probed now, or as soon as that is not too often."""
        for peer in peers:
            record = self._records.get(peer)
            if record is not None:
                record.doubted = True
                self._doubt_s = self._take_turn(peer, record, max(now_s, self._doubt_s), DOUBT_S)

    def distrust(self, now_s: float, jitter: float) -> None:
        """The CAs changed: have everybody probed again, who is not admitted at once."""
        spread_s = max(DISTRUST_S, len(self._records) / AGAIN_PER_S)
        for place, (peer, record) in enumerate(self._records.items()):
            admitted = record.standing is Standing.ADMITTED
            wait_s = spread_s * ((jitter + place / len(self._records)) % 1.0) if admitted else 0.0
            self._plan(peer, record, now_s + wait_s)

    def reconsider(self, now_s: float) -> None:
        """The clock was set: have those probed now that are refused; not the others, as it may be wrong since then."""
        for peer, record in self._records.items():
            if record.standing is Standing.REFUSED:
                self._plan(peer, record, now_s)

    def forget_probes(self, now_s: float) -> None:
        """Whoever was probing is gone: what was under way is due again."""
        for peer, record in self._records.items():
            if record.probing:
                record.probing = False
                self._plan(peer, record, now_s)

    # ---- leaves

    def leaves(self) -> dict[str, str]:
        """HAProxy's map: digest of a certificate, and whom it names."""
        return {digest: leaf.identity for digest, leaf in self._leaves.items()}

    def take_news(self) -> dict[str, str | None]:
        """What changed in that map since the last call: an identity, or None where an entry went."""
        news, self._news = self._news, {}
        return news

    def forget_expired(self, wall_s: float) -> bool:
        """Whether leaves were forgotten that are not valid any more at that Unix time."""
        expired = [digest for digest, leaf in self._leaves.items() if leaf.expires_s <= wall_s]
        for digest in expired:
            self._forget_leaf(digest)
        return bool(expired)

    # ---- from one hcc to the next

    def kept(self) -> Kept:
        """What is to be kept."""
        return Kept(tuple(sorted(self.admission().admitted | self._kept)), tuple(self._leaves.values()))

    def restore(self, kept: Kept) -> None:
        """Take over what an earlier hcc kept; it counts for those that Consul names when it first tells of a target.

        Its leaves are no news: whoever has told HAProxy of them, they are compared once it runs.
        """
        self._kept = frozenset(kept.admitted)
        for leaf in kept.leaves:
            self._remember(leaf)
        self._news = {}

    # ----

    @property
    def _interval_s(self) -> float:
        return max(AGAIN_S, len(self._records) / AGAIN_PER_S)

    def _forget_kept(self, snapshot: Snapshot, now_s: float) -> None:
        """Who is there has a record now, and whom Consul does not name of a target that it told of is gone.

        A target that is not told of, as its datacenter is silent, is waited for as long as that takes: HAProxy goes on
        with its servers.
        """
        if all(state.known for state in snapshot.upstreams):
            self._kept = frozenset()
            return
        self._kept_until_s = min(self._kept_until_s, now_s + KEPT_S)
        targets = [target for state in snapshot.upstreams for target in state.targets]
        told = {uri for target in targets if target.known for uri in target.identities}
        self._awaited = frozenset(uri for target in targets if not target.known for uri in target.identities)
        gone = told - self._awaited
        self._kept = frozenset(one for one in self._kept if one not in self._records and one[2] not in gone)

    def _new(self, peer: Peer) -> _Record:
        return _Record(Standing.ADMITTED if peer in self._kept else Standing.UNKNOWN)

    def _take_turn(self, peer: Peer, record: _Record, turn_s: float, pause_s: float) -> float:
        """Have it probed in this turn, or after its pause, unless it is probed before that anyway; the next turn."""
        due_s = max(turn_s, record.asked_s + pause_s)
        if record.due_s <= due_s:
            return turn_s
        self._plan(peer, record, due_s)
        return turn_s + 1 / AGAIN_PER_S

    def _plan(self, peer: Peer, record: _Record, due_s: float) -> None:
        record.due_s = due_s
        admitted = record.standing is Standing.ADMITTED
        queue = self._again if admitted else self._first if record.first else self._failing
        heapq.heappush(queue, (due_s, next(self._serials), peer))

    def _judge(self, peer: Peer, record: _Record, outcome: Outcome) -> None:
        match outcome:
            case Seen(certificate) if certificate.names_only(peer.identity):
                record.standing, record.reason, record.impostor, record.failures = Standing.ADMITTED, "", False, 0
                record.suspected = record.evasive = False
                self._remember(KnownLeaf(certificate.digest, peer.identity, certificate.expires_s))
            case Seen(certificate):
                found = ", ".join(certificate.uris) or "no URI"
                record.standing, record.impostor = Standing.REFUSED, True
                record.reason = f"expected {peer.identity}, found {found}"
                record.failures += 1
            case Unverified(reason):
                record.standing, record.impostor = Standing.REFUSED, False
                record.reason = f"its certificate is not verified: {reason}"
                record.failures += 1
            case NoAnswer(reason, asked=True) if record.evasive and record.standing is Standing.ADMITTED:
                record.standing, record.impostor = Standing.REFUSED, True
                record.reason = f"its answers were cut, and it answers no probe: {reason}"
                record.failures += 1
            case NoAnswer(reason, asked):
                # What is known of it stays; so does why it is refused.
                record.failures += 1
                record.evasive = record.evasive or (record.suspected and asked)
                if record.standing is not Standing.REFUSED:
                    record.reason = reason

    @staticmethod
    def _listen(record: _Record, outcome: Outcome, now_s: float) -> None:
        """Whether it is silent now: admitted, and it has answered neither HAProxy nor a probe for long enough."""
        if not isinstance(outcome, NoAnswer):
            record.failing_s, record.doubted, record.silent_s = NEVER, False, NEVER
            return
        record.failing_s = min(record.failing_s, record.asked_s)
        lost = record.doubted and record.standing is Standing.ADMITTED and now_s - record.failing_s >= SILENT_S
        if lost and not record.silent:
            record.silent_s = now_s

    def _delay_s(self, record: _Record, now_s: float, jitter: float) -> float:
        if record.standing is Standing.ADMITTED and record.suspected:
            return max(0.0, record.asked_s + SUSPECT_S - now_s)
        if record.standing is Standing.ADMITTED and not record.failures:
            return self._interval_s * (0.75 + jitter / 2)
        most_s = self._interval_s if record.standing is Standing.ADMITTED else MAX_RETRY_S
        if record.doubted:
            most_s = SILENT_AGAIN_S
        return min(most_s, RETRY_S * 2.0 ** min(record.failures - 1, 20)) * (0.75 + jitter / 2)

    def _remember(self, leaf: KnownLeaf) -> None:
        known = self._leaves.pop(leaf.digest, None)
        self._leaves[leaf.digest] = leaf
        if known is None:
            self._news[leaf.digest] = leaf.identity
        if len(self._leaves) > self._most_leaves:
            self._forget_leaf(next(iter(self._leaves)))

    def _forget_leaf(self, digest: str) -> None:
        del self._leaves[digest]
        self._news[digest] = None


def _looks(snapshot: Snapshot) -> Mapping[Peer, tuple[Health, int]]:
    """The endpoints that can be probed, and how Consul sees each: its health and weight, the better of two."""
    found: dict[Peer, tuple[Health, int]] = {}
    endpoints = (one for state in snapshot.upstreams for target in state.targets for one in target.endpoints)
    for one in endpoints:
        peer = peer_of(one)
        if one.identity and (one.serves or peer not in found):
            found[peer] = (one.health, one.weight)
    return found


def _serves(record: _Record) -> bool:
    health, weight = record.look
    return health is not Health.CRITICAL and weight > 0
