"""Whether the holder of a certificate may come in: the certificate read, its identity, and the intentions."""

from __future__ import annotations

from dataclasses import dataclass

from hcc.mesh.caller import caller_text
from hcc.mesh.identity import IdentityError, parse_service_uri
from hcc.mesh.intentions import Policy, verdict_of
from hcc.spoe.caller import LONG_NAME, MAX_SOURCE_BYTES
from hcc.spoe.der import Certificate, CertificateError, parse_certificate

MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer, the service it is about, and why.

    Args:
        source: the caller (`ServiceIdentity.source`); empty unless it is certainly a service of our trust domain.
        reason: for people; may quote the certificate, printable, at most 300 characters.
        understood: a certificate came and could be read; if not, the denial says nothing about intentions.
        rules: name of the rule set that decides each request of this caller, in HAProxy; `allowed` is False then,
            so that a configuration without such rules denies. Empty: the answer is the answer.
        caller: the service as HAProxy is to remember it; empty like `source`.
    """

    allowed: bool
    source: str
    reason: str
    understood: bool = True
    rules: str = ""
    caller: str = ""

    @property
    def denied(self) -> bool:
        """Whether the caller is refused for good, whatever it requests."""
        return not self.allowed and not self.rules


def decide(der: bytes, policy: Policy | None) -> Decision:
    """The decision on a caller.

    Args:
        der: the certificate HAProxy verified; empty if there was none.
        policy: None until the first one has come, which denies.
    """
    certificate = read(der)
    return certificate if isinstance(certificate, Decision) else judge(certificate, policy)


def read(der: bytes) -> Certificate | Decision:
    """What the certificate says; the refusal where none came, or it cannot be read."""
    if not der:
        # The handshake demands one: HAProxy leaves out what has no room in its frame.
        return refusal("the caller's certificate is too large to ask about it, or there is none")
    try:
        return parse_certificate(der)
    except CertificateError as exc:
        return refusal(f"the certificate cannot be read: {exc}")


def refusal(reason: str) -> Decision:
    """The decision on a caller whose certificate could not be read."""
    return Decision(False, "", reason[:MAX_REASON_CHARACTERS], understood=False)


def judge(certificate: Certificate, policy: Policy | None) -> Decision:
    """The decision on who holds a certificate; that to let somebody in hangs on nothing but its URIs."""
    uris = certificate.uris
    if len(uris) != 1:
        return Decision(False, "", f"expected one URI in the certificate, found {len(uris)}")
    try:
        caller = parse_service_uri(uris[0])
    except IdentityError as exc:
        return Decision(False, "", str(exc)[:MAX_REASON_CHARACTERS])
    name = caller.source()
    if len(name) > MAX_SOURCE_BYTES:
        return Decision(False, "", LONG_NAME)
    if policy is None:
        return Decision(False, "", f"no policy has come yet; the caller is {uris[0]!r}"[:MAX_REASON_CHARACTERS])
    verdict = verdict_of(policy, caller)
    reason = verdict.reason[:MAX_REASON_CHARACTERS]
    rules = "" if verdict.rules is None else verdict.rules.name
    if caller.trust_domain != policy.trust_domain.lower():
        return Decision(verdict.allowed, "", reason)
    return Decision(verdict.allowed, name, reason, rules=rules, caller=caller_text(caller))
