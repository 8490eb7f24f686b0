"""All that a configuration is decided from, as far as it was told, and whether it is enough. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hcc.haproxy.desired import Certificates, Options, Result, desired
from hcc.haproxy.review import Review
from hcc.mesh.peer_book import Admission, Peer
from hcc.mesh.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Basis:
    """What was told so far.

    Args:
        options: what the operator chose.
        probes: whether endpoints are probed. Then nothing is done before it is known who may get traffic.
        untouched: HAProxy ran before us, may go on as it is, and nothing was done to it yet.
        held: a newer snapshot that would close the public listener because one answer is not there yet.
        callers: None before it was told who calls: the lines that run stay.
    """

    options: Options
    probes: bool
    untouched: bool = False
    snapshot: Snapshot | None = None
    held: Snapshot | None = None
    certificates: Certificates = field(default_factory=Certificates)
    callers: tuple[str, ...] | None = None
    admission: Admission | None = None

    def with_snapshot(self, snapshot: Snapshot, *, serves: bool) -> Basis:
        """The same with a newer snapshot; it is held while the public listener `serves` and would have no policy.

        Then the service was renamed, so that its policy is another one: the old one counts until that is known.
        """
        if serves and self.options.intentions.asks and snapshot.policy is None:
            return replace(self, held=snapshot)
        return replace(self, snapshot=snapshot, held=None)

    @property
    def released(self) -> Basis:
        """The same; the snapshot that was held counts, whatever it lacks."""
        return replace(self, snapshot=self.held or self.snapshot, held=None)

    @property
    def lacks(self) -> str:
        """That without which a HAProxy that ran before us would be told to serve nobody; empty when it is there."""
        if not self.untouched or self.snapshot is None:
            return ""
        if self.certificates.leaf is None:
            return "certificate"
        serves = self.options.intentions.asks and self.snapshot.proxy.service_id
        return "policy" if serves and self.snapshot.policy is None else ""

    @property
    def decides(self) -> bool:
        """Whether something can be decided from it."""
        return self.snapshot is not None and (not self.probes or self.admission is not None) and not self.lacks

    @property
    def complete(self) -> bool:
        """Whether no answer is missing any more."""
        complete = self.snapshot is not None and self.snapshot.complete(intentions=self.options.intentions.asks)
        return complete and self.certificates.leaf is not None

    @property
    def stands_in(self) -> bool:
        """Whether a target for failover would serve although it is not known who is in one before it."""
        legs = (leg for state in self.snapshot.upstreams for leg in state.legs) if self.snapshot else ()
        return any(not leg.known and any(target.serves for target in leg.targets) for leg in legs)

    @property
    def probing(self) -> bool:
        """Whether it is not known yet of all endpoints who they are."""
        if not self.probes or self.admission is None or self.snapshot is None:
            return False
        return self.admission.version < self.snapshot.version or self.admission.probing

    @property
    def admitted(self) -> frozenset[Peer] | None:
        """Who may get traffic; None where that is not looked at."""
        return self.admission.admitted if self.probes and self.admission else None

    @property
    def silent(self) -> tuple[Peer, ...]:
        """Those of them that do not answer, and after these who is not admitted as probes have failed."""
        if not self.probes or self.admission is None:
            return ()
        return (*self.admission.silent, *sorted(self.admission.failed))

    def sees_as(self, other: Basis) -> bool:
        """Whether it is known of the same endpoints who they are, and of all of them here as there."""
        return (self.admitted, self.silent, self.probing) == (other.admitted, other.silent, other.probing)

    def wanted(self, snapshot: Snapshot, callers: tuple[str, ...]) -> Result:
        """What HAProxy should do, with these `callers`."""
        return desired(
            snapshot,
            self.options,
            self.certificates,
            callers,
            self.admitted,
            silent=self.silent,
            probing=self.probing,
        )

    def review(self, snapshot: Snapshot, callers: tuple[str, ...]) -> Review:
        """The same, to look at elsewhere."""
        return Review(self.options, callers, snapshot, self.admitted, self.silent)
