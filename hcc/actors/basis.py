"""All that a configuration is decided from, as far as it was told, and whether it is enough. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hcc.haproxy.desired import Result, desired
from hcc.haproxy.desired_terms import Certificates, Options
from hcc.haproxy.review import Review
from hcc.haproxy.sight import Sight, sight_for
from hcc.mesh.judgement import Judgement
from hcc.mesh.peer_book import UNVETTED, Admission, Vetted
from hcc.mesh.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Basis:
    """What was told so far.

    Args:
        options: what the operator chose.
        probes: whether endpoints are probed. Then nothing is done before it is known who may get traffic.
        untouched: HAProxy ran before us, may go on as it is, and nothing was done to it yet.
        held: a newer snapshot that would close the public listener because one answer is not there yet.
        sight: what the snapshot's policy looks at in a request.
        callers: None before it was told who calls: the lines that run stay.
    """

    options: Options
    probes: bool
    untouched: bool = False
    snapshot: Snapshot | None = None
    held: Snapshot | None = None
    sight: Sight = field(default_factory=Sight)
    certificates: Certificates = field(default_factory=Certificates)
    callers: tuple[str, ...] | None = None
    admission: Admission | None = None

    def with_snapshot(self, snapshot: Snapshot, *, serves: bool) -> Basis:
        """The same with a newer snapshot; it is held while the public listener `serves` and would have no policy.

        Then the service was renamed, so that its policy is another one: the old one counts until that is known.
        """
        if serves and self.options.intentions.asks and snapshot.policy is None:
            return replace(self, held=snapshot)
        return self._upon(snapshot)

    @property
    def released(self) -> Basis:
        """The same; the snapshot that was held counts, whatever it lacks."""
        return self if self.held is None else self._upon(self.held)

    def _upon(self, snapshot: Snapshot) -> Basis:
        """The same with this snapshot, which counts."""
        policy, earlier = snapshot.policy, self.snapshot.policy if self.snapshot else None
        # Most news are of something else, and to see what a policy looks at takes longer than all the rest.
        sight = self.sight if policy == earlier else sight_for(Judgement(policy)) if policy else Sight()
        return replace(self, snapshot=snapshot, held=None, sight=sight)

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
    def unknown(self) -> int:
        """Of about how many endpoints it is not known yet who they are."""
        if not self.probing or self.admission is None or self.snapshot is None:
            return 0
        targets = (target for state in self.snapshot.upstreams for leg in state.legs for target in leg.targets)
        known = len(self.admission.admitted) + len(self.admission.failed)
        return max(0, sum(len(target.endpoints) for target in targets) - known)

    @property
    def vetted(self) -> Vetted:
        """Which endpoints may get traffic."""
        if not self.probes or self.admission is None:
            return UNVETTED
        silent = (*self.admission.silent, *sorted(self.admission.failed))
        return Vetted(self.admission.admitted, silent, self.probing)

    def wanted(self, snapshot: Snapshot, callers: tuple[str, ...]) -> Result:
        """What HAProxy should do, with these `callers`."""
        return desired(snapshot, self.options, self.certificates, callers, self.vetted, self.sight)

    def review(self, snapshot: Snapshot, callers: tuple[str, ...]) -> Review:
        """The same, to look at elsewhere."""
        vetted = self.vetted
        return Review(self.options, callers, snapshot, vetted.admitted, vetted.silent)
