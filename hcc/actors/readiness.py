"""Whether a sidecar is ready, and what it lacks: pure, from the facts that the actors report."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from hcc.actors.status import CallerStatus, PlanStatus
from hcc.mesh.peer_book import Peer
from hcc.settings import Enforcement, VerifyUpstream


@dataclass(frozen=True, slots=True)
class ReconcilerFacts:
    """What ConfigReconciler last saw.

    Args:
        applied: HAProxy runs what was last asked for.
        public_bound: the public listener is part of what HAProxy runs.
        public_expected: this proxy has a public listener at all (it stands for a service instance).
        problems: what Consul asks for that cannot be served.
        taken: listeners that are left out, as their address is somebody else's.
        plans: those that were carried out last, the newest first.
    """

    applied: bool = False
    public_bound: bool = False
    public_expected: bool = True
    snapshot_version: int = 0
    problems: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    failure: str = ""
    plans: tuple[PlanStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Validity:
    """A certificate in use: `kind` is `leaf` or `root`; times are Unix seconds."""

    kind: str
    name: str
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class CredentialFacts:
    """What CertManager holds; `problem` is why a newer certificate was refused, or that none comes."""

    leaf: bool = False
    roots: bool = False
    problem: str = ""
    certificates: tuple[Validity, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyFacts:
    """What the SPOE workers hold.

    Args:
        version: of the newest policy, None until there is one.
        deciding: workers that have a policy, perhaps still the one before.
        current: those that have the newest.
        callers: who was decided about, the newest decision first.
    """

    version: int | None = None
    deciding: int = 0
    current: int = 0
    callers: tuple[CallerStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class HAProxyFacts:
    """What ProcessSupervisor sees.

    Args:
        version: of the one that runs; of the program when hcc started, as long as none was seen to run.
        reachable: it can be asked and told; not when somebody removed its sockets.
    """

    running: bool = False
    pid: int = 0
    version: str = ""
    reachable: bool = True


@dataclass(frozen=True, slots=True)
class ConsulFacts:
    """What ConsulWatcher sees: queries that fail at present, by name with the reason.

    Args:
        stale: what is served from answers of an earlier run that Consul has not confirmed, by name.
    """

    proxy_known: bool = False
    failing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallerFacts:
    """What HAProxy remembers of its callers.

    Args:
        verdicts: `allow`, `deny`, or the name of the rule set that decides each request, by the caller's name, sorted.
        remembered: how many certificates.
    """

    verdicts: tuple[tuple[str, str], ...] = ()
    remembered: int = 0


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What Verifier knows of upstreams' endpoints.

    Args:
        admitted: those that were seen to be who they should be.
        refused: those that were seen to be somebody else, or with a certificate that is not to be trusted, and why.
        silent: those of the admitted that do not answer, and why, as the last probe says.
        failed: those that would get traffic and are not admitted although a probe has ended.
    """

    admitted: frozenset[Peer] = frozenset()
    refused: tuple[tuple[Peer, str], ...] = ()
    silent: tuple[tuple[Peer, str], ...] = ()
    failed: frozenset[Peer] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it; Admin keeps the newest of each kind.

    Args:
        stats_problem: why nobody can be served on the stats address; empty when they are, or none is wanted.
    """

    intentions: Enforcement = Enforcement.ENFORCE
    verify: VerifyUpstream = VerifyUpstream.BOTH
    draining: bool = False
    stats_problem: str = ""
    reconciler: ReconcilerFacts = field(default_factory=ReconcilerFacts)
    credentials: CredentialFacts = field(default_factory=CredentialFacts)
    policy: PolicyFacts = field(default_factory=PolicyFacts)
    haproxy: HAProxyFacts = field(default_factory=HAProxyFacts)
    consul: ConsulFacts = field(default_factory=ConsulFacts)
    callers: CallerFacts = field(default_factory=CallerFacts)
    peers: PeerFacts = field(default_factory=PeerFacts)


def missing_parts(facts: Facts, now: float) -> tuple[str, ...]:
    """What keeps the sidecar from being ready at that Unix time, a phrase each; empty when it is ready."""
    reconciler = facts.reconciler
    expired = _expired(facts.credentials, now)
    parts = (
        (facts.draining, "draining: the sidecar is stopping"),
        (not facts.consul.proxy_known, "proxy: its registration was not read from Consul yet"),
        (not facts.credentials.leaf, "leaf: no usable certificate yet"),
        (expired is not None, f"leaf: expired at {expired:%FT%TZ}, and was not renewed" if expired else ""),
        (not facts.credentials.roots, "roots: no CA certificates yet"),
        (facts.intentions.asks and facts.policy.version is None, "policy: intentions are not known yet"),
        (
            facts.intentions.asks and facts.policy.version is not None and not facts.policy.deciding,
            "policy: no SPOE worker has it",
        ),
        (not facts.haproxy.running, "haproxy: not running"),
        (not facts.haproxy.reachable, "haproxy: its sockets are gone, it cannot be told anything"),
        (
            reconciler.public_expected and not reconciler.public_bound,
            "public listener: not bound yet",
        ),
        (
            not reconciler.public_expected and not reconciler.applied,
            "configuration: not applied yet",
        ),
    )
    return tuple(text for lacking, text in parts if lacking)


def _expired(credentials: CredentialFacts, now: float) -> datetime | None:
    """When the leaf expired; None when it has not."""
    ends = (one.not_after for one in credentials.certificates if one.kind == "leaf" and one.not_after <= now)
    return next((datetime.fromtimestamp(end, UTC) for end in ends), None)


def reservations(facts: Facts) -> tuple[str, ...]:
    """What is to be known about a sidecar that is ready all the same, a phrase each."""
    stale = facts.consul.stale
    return (f"stale: from an earlier run, not confirmed by Consul yet: {', '.join(stale)}",) if stale else ()
