"""What the default policy is, when no intention says anything: read from Consul's answers, denying on doubt.

Consul has no endpoint for it. A probe with a caller that cannot exist gets the default from `authorize`, unless an
intention names everyone, which then answers. The default still decides there: on requests that no permission of an
intention matches. Then it is what the agent is configured with: `default_intention_policy`, which few tokens may read,
and where that is not set the ACL default policy, which every answer carries in `X-Consul-Default-ACL-Policy`.

Source: reference/consul.md section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import WILDCARD, Action, Intention

_VALUES = {"allow": True, "deny": False}
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
    said = {_allows(intention) for intention in intentions if names_everyone(intention)}
    return probe.by_intention and probe.authorized not in said


def probed_default(probe: Probe | None, header: str) -> bool | None:
    """Whether callers that no intention names are let in, by a probe that no intention answered.

    None when it cannot be known, which denies.

    Args:
        probe: None where the token may not ask.
        header: `allow`, `deny`, or empty.
    """
    return _VALUES.get(header) if probe is None else probe.authorized


def configured_default(configured: str | None, header: str) -> bool | None:
    """The same by the agent's configuration.

    Args:
        configured: its `default_intention_policy`, empty where that is not set; None where the token may not read it.
        header: `allow`, `deny`, or empty.
    """
    if configured is None:
        # With ACLs that allow by default it can be read, unless somebody took care that it cannot.
        return False if header == "deny" else None
    return _VALUES.get(configured or header)


def names_everyone(intention: Intention) -> bool:
    """Whether it matches every caller of this cluster, the impossible one too."""
    return intention.source == WILDCARD and not intention.peer


def may_stand(default_allow: bool | None, before: Sequence[Intention], now: Sequence[Intention]) -> bool:
    """Whether a default policy that was true of one list lets nobody in by another one whom it did not let in before.

    It may be another one meanwhile. One that denies lets nobody in. One that allows decides about no more than it did
    where nobody's intention is gone, and those that leave something to it, as permissions and tokens do, are as they
    were.

    Args:
        default_allow: what it was; None where that is not known.
        before: the list that it was true of.
        now: the list of now.
    """
    if not default_allow:
        return default_allow is not None
    gone = {_whose(one) for one in before} - {_whose(one) for one in now}
    leaving = (one for one in now if one.action is Action.PERMISSIONS or one.jwt is not None)
    return not gone and all(one in before for one in leaving)


def _whose(intention: Intention) -> tuple[str, ...]:
    return (intention.source, intention.source_namespace, intention.source_partition, intention.peer)


def _allows(intention: Intention) -> bool:
    return intention.action is Action.ALLOW and intention.jwt is None
