"""Whether Consul's intentions let one service call another: the list, and how Consul evaluates it.

The SPOE workers decide with this module, so it imports nothing but the standard library's small parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hcc.mesh.identity import DEFAULT_NAMESPACE, DEFAULT_PARTITION, ServiceIdentity

WILDCARD = "*"


class Action(Enum):
    """What an intention says of a pair of services. `PERMISSIONS`: it depends on the request (layer 7)."""

    ALLOW = "allow"
    DENY = "deny"
    PERMISSIONS = "permissions"


@dataclass(frozen=True, slots=True)
class Intention:
    """One intention whose destination is the service we guard; `permissions` keeps the request rules as read.

    Args:
        source: service name, or `*`.
        precedence: Consul's number; the highest that matches governs.
        permissions: the JSON of each permission, in order, for an `Action.PERMISSIONS` intention.
        peer: name of the cluster peer the source lives in; empty for our own cluster.
        needs_jwt: a token is demanded; until tokens are checked such an intention denies.
    """

    source: str
    action: Action
    precedence: int
    permissions: tuple[str, ...] = ()
    source_namespace: str = DEFAULT_NAMESPACE
    source_partition: str = DEFAULT_PARTITION
    peer: str = ""
    needs_jwt: bool = False

    def label(self) -> str:
        """The intention in one phrase, for a log line."""
        return f"{self.source} -> {self.action.value} (precedence {self.precedence})"


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides who may call `destination`.

    Args:
        default_allow: what happens when no intention matches; None while unknown, which denies.
        version: grows with every change, so that a worker's answer can be told apart from an older one.
    """

    destination: str
    trust_domain: str
    intentions: tuple[Intention, ...]
    default_allow: bool | None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer and its reason; `reason` is for people and holds no secret."""

    allowed: bool
    reason: str


def evaluate(policy: Policy, caller: ServiceIdentity) -> Verdict:
    """The verdict on a connection from `caller`.

    The intention with the highest precedence whose source matches decides alone; none: the default policy.
    An intention that depends on the request, or on a token, denies here: a connection has neither.

    Source: reference/consul.md section 6.
    """
    if caller.trust_domain != policy.trust_domain.lower():
        return Verdict(False, f"trust domain {caller.trust_domain!r} is not ours")
    matching = (intention for intention in policy.intentions if _matches(intention, caller))
    governing = min(matching, key=_rank, default=None)
    if governing is not None:
        return _by_intention(governing)
    if policy.default_allow is None:
        return Verdict(False, "no intention matches and the default policy is unknown")
    return Verdict(policy.default_allow, f"no intention matches; default {_word(policy.default_allow)}")


def _by_intention(intention: Intention) -> Verdict:
    if intention.needs_jwt:
        return Verdict(False, f"intention {intention.label()} demands a JWT, which is not supported yet")
    if intention.action is Action.PERMISSIONS:
        return Verdict(False, f"intention {intention.label()} has L7 permissions, not supported yet")
    return Verdict(intention.action is Action.ALLOW, f"intention {intention.label()}")


def _rank(intention: Intention) -> tuple[int, bool]:
    # Equal precedence cannot come from Consul; should it, the exact source, the narrower rule, goes first.
    return -intention.precedence, intention.source == WILDCARD


def _matches(intention: Intention, caller: ServiceIdentity) -> bool:
    return (
        not intention.peer
        and intention.source in (WILDCARD, caller.service)
        and intention.source_namespace in (WILDCARD, caller.namespace)
        and intention.source_partition in (WILDCARD, caller.partition)
    )


def _word(allow: bool) -> str:
    return "allow" if allow else "deny"
