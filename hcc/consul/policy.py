"""What the default policy is, when no intention says anything: read from Consul's answers, denying on doubt.

Consul has no endpoint for it. A probe with a caller that cannot exist gets the default from `authorize`,
which alone knows `default_intention_policy`; `X-Consul-Default-ACL-Policy` shows only the ACL part.

Source: reference/consul.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import WILDCARD, Action, Intention

# No service can have this name: it would have to be registered with it. It sorts and reads as what it is.
IMPOSSIBLE_CALLER = "hcc-probe-of-the-default-policy"


@dataclass(frozen=True, slots=True)
class Probe:
    """What `authorize` said; `by_intention`: an intention matched the impossible caller."""

    authorized: bool
    by_intention: bool


def probe_uri(trust_domain: str, datacenter: str) -> str:
    """The SPIFFE URI of the caller that cannot exist."""
    return ServiceIdentity(trust_domain, IMPOSSIBLE_CALLER, datacenter).uri()


def is_outdated(probe: Probe, intentions: tuple[Intention, ...]) -> bool:
    """Whether the probe was answered from another list than this one (the agent answers it from a cache).

    An intention can match the impossible caller only if it names everyone.
    """
    said = {_allows(intention) for intention in intentions if _names_everyone(intention)}
    return probe.by_intention and probe.authorized not in said


def default_allow(probe: Probe | None, intentions: tuple[Intention, ...], header: str) -> bool | None:
    """Whether callers that no intention names are let in; None when it cannot be known, which denies.

    Where an intention names everyone it answers the probe itself, and the default decides nothing; an allow
    is then taken over only while the header does not contradict it.

    Args:
        probe: None where the token may not ask.
        intentions: the list that was read just before.
        header: `allow`, `deny`, or empty.
    """
    if probe is None:
        return {"allow": True, "deny": False}.get(header)
    if is_outdated(probe, intentions):
        return None
    if probe.by_intention:
        return probe.authorized and header != "deny"
    return probe.authorized


def _names_everyone(intention: Intention) -> bool:
    return intention.source == WILDCARD and not intention.peer


def _allows(intention: Intention) -> bool:
    return intention.action is Action.ALLOW and intention.jwt is None
