"""What the actors tell each other. Every message is a frozen value.

A message that carries a whole state has a `coalesce_key`: of two in one mailbox only the newer is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hcc.actors.readiness import (
    CallerFacts,
    ConsulFacts,
    CredentialFacts,
    HAProxyFacts,
    PeerFacts,
    PolicyFacts,
    ReconcilerFacts,
)
from hcc.haproxy.model import CaFile, CertificateFile
from hcc.haproxy.review import Review
from hcc.haproxy.sight import Sight
from hcc.mesh.intentions import Policy
from hcc.mesh.peer_book import Admission
from hcc.mesh.snapshot import Leaf, Roots, Snapshot

CONSUL_WATCHER = "ConsulWatcher"
CERT_MANAGER = "CertManager"
CONFIG_RECONCILER = "ConfigReconciler"
PROCESS_SUPERVISOR = "ProcessSupervisor"
SPOE_GROUP = "SPOE"
SPOE_POOL = "SPOEPool"
TOKEN_AGENT = "TokenAgent"  # noqa: S105 (a name)
AUTHORISER = "Authoriser"
VERIFIER = "Verifier"
ADMIN = "Admin"


@dataclass(frozen=True, slots=True)
class Publish:
    """To any source of state: tell again what you told last. A restarted actor asks so for what it missed."""

    coalesce_key: ClassVar[str] = "publish"


@dataclass(frozen=True, slots=True)
class ReloadToken:
    """To ConsulWatcher: read the token file again (SIGHUP)."""

    coalesce_key: ClassVar[str] = "reload-token"


@dataclass(frozen=True, slots=True)
class SnapshotChanged:
    """ConsulWatcher to ConfigReconciler and Verifier."""

    snapshot: Snapshot
    coalesce_key: ClassVar[str] = "snapshot"


@dataclass(frozen=True, slots=True)
class CredentialsOffered:
    """ConsulWatcher to CertManager: what Consul gave, unchecked."""

    leaf: Leaf
    roots: Roots
    coalesce_key: ClassVar[str] = "credentials"


@dataclass(frozen=True, slots=True)
class CredentialsReady:
    """CertManager to ConfigReconciler and Verifier: checked, and on disk."""

    certificate: CertificateFile
    ca: CaFile
    coalesce_key: ClassVar[str] = "credentials"


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """ConsulWatcher to Authoriser, SPOEPool and TokenAgent."""

    policy: Policy
    coalesce_key: ClassVar[str] = "policy"


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """TokenAgent to SPOEPool: a request was denied for its token, of many in a second the first are told.

    Args:
        source: the caller's service, or empty if that is not certain.
    """

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class CallersMet:
    """SPOEPool to Authoriser: workers allowed these, whom HAProxy does not remember.

    Args:
        calls: certificate (DER) and where the call comes from, as HAProxy's `show sess` has it.
    """

    calls: tuple[tuple[bytes, str], ...]


@dataclass(frozen=True, slots=True)
class CallersChanged:
    """Authoriser to ConfigReconciler: names of the services that called, whether let in or not, and are remembered."""

    callers: tuple[str, ...]
    coalesce_key: ClassVar[str] = "callers"


@dataclass(frozen=True, slots=True)
class AdmissionChanged:
    """Verifier to ConfigReconciler: which endpoints are who they should be."""

    admission: Admission
    coalesce_key: ClassVar[str] = "admission"


@dataclass(frozen=True, slots=True)
class WorkerReplaced:
    """ConfigReconciler to Authoriser and Verifier: HAProxy was reloaded; its maps are those of the files.

    Args:
        sight: what the new worker looks at, which may not be what the newest policy asks; None for just that.
    """

    sight: Sight | None = None
    coalesce_key: ClassVar[str] = "haproxy"


@dataclass(frozen=True, slots=True)
class ConfigurationInstalled:
    """ConfigReconciler to ProcessSupervisor: a checked configuration is on disk; start HAProxy if none runs."""

    coalesce_key: ClassVar[str] = "installed"


@dataclass(frozen=True, slots=True)
class Reloading:
    """ConfigReconciler to ProcessSupervisor: a reload begins, or is over: until then HAProxy may be slow to answer.

    Args:
        under_way: whether it begins.
        replaced: whether it is over and a new worker took over, which all were told of.
    """

    under_way: bool
    replaced: bool = False
    coalesce_key: ClassVar[str] = "reloading"


@dataclass(frozen=True, slots=True)
class HAProxyUp:
    """ProcessSupervisor to ConfigReconciler, Authoriser and Verifier: a worker answers; `pid` is the master's."""

    pid: int
    coalesce_key: ClassVar[str] = "haproxy"


@dataclass(frozen=True, slots=True)
class HAProxyDown:
    """ProcessSupervisor to all that own files which it starts again with."""

    reason: str
    coalesce_key: ClassVar[str] = "haproxy"


@dataclass(frozen=True, slots=True)
class Preview:
    """Admin to ConfigReconciler (answer: `Previewed`), Authoriser and Verifier (a phrase a change): do nothing yet."""


@dataclass(frozen=True, slots=True)
class Previewed:
    """What ConfigReconciler would do now, with all read back.

    Args:
        reasons, operations: of the plan, in words.
        reloads: whether a new worker would take over.
        config: haproxy.cfg as it is wanted.
        review: what all that is made of.
        left_out: listeners that are not in it, and why.
    """

    reasons: tuple[str, ...]
    operations: tuple[str, ...]
    reloads: bool
    config: str
    review: Review
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """To everyone concerned with stopping: no more reloads. How long connections have is in `Draining`."""

    coalesce_key: ClassVar[str] = "drain"


Facts = CallerFacts | PeerFacts | ReconcilerFacts | CredentialFacts | PolicyFacts | HAProxyFacts | ConsulFacts


@dataclass(frozen=True, slots=True)
class FactsReported:
    """To Admin: what the sender knows now."""

    facts: Facts

    @property
    def coalesce_key(self) -> str:
        """One place in the mailbox for each kind of facts."""
        return type(self.facts).__name__
