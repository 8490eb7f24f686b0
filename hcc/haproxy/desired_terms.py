"""What a configuration is decided by besides Consul's answers, and what falls short of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hcc.haproxy.model import CaFile, CertificateFile, GlobalOptions
from hcc.mesh.secret import Secret
from hcc.settings import Enforcement


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose.

    Args:
        agent_sockets: unix sockets of the SPOE workers.
        identities, verdicts, rules: map files of the callers that HAProxy remembers, and of rules for requests.
        ticket_keys: file of the keys of TLS sessions.
        ticket_secret: from it, the leaf and the CAs these keys are derived; random, new with each hcc.
        intentions: what is done about callers whom they deny.
        leaves: map file of upstreams' leaf certificates; empty where their answers are not looked at.
        descriptors: how many file descriptors HAProxy may have; 0 for any number.
        patterns: whether HAProxy can match the regular expressions of routes.
        route_timeouts: whether it can wait for some answers longer than for others.
    """

    process: GlobalOptions
    agent_sockets: tuple[str, ...]
    identities: str
    verdicts: str
    rules: str
    ticket_keys: str
    ticket_secret: Secret
    intentions: Enforcement = Enforcement.ENFORCE
    leaves: str = ""
    token_socket: str = ""
    descriptors: int = 0
    patterns: bool = True
    route_timeouts: bool = True


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files that stand for Consul's leaf and roots, once they have been checked and written."""

    leaf: CertificateFile | None = None
    ca: CaFile | None = None


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that is not served as asked: what it concerns, and why, for people."""

    subject: str
    text: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.subject}: {self.text}"
