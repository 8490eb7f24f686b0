"""Whether Consul's intentions let one service call another: the list, and how Consul evaluates it.

    verdict_of(policy, caller)           a connection: allow, deny, or the rules that decide request by request
    rule_sets(policy)                    all the rules that any caller may get
    demands_of(policy)                   what tokens must be where rules leave it to them
    decide(policy, caller, request)      one request: allow or deny, by which intention and which permission

What one policy says of many callers is told by `hcc.mesh.judgement`. The SPOE workers decide with this module, so it
imports nothing but the standard library's small parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from hcc.mesh.identity import DEFAULT_NAMESPACE, DEFAULT_PARTITION, ServiceIdentity
from hcc.mesh.permissions import JwtProvider, Permission, speaks_of
from hcc.mesh.request import CONSULS_DEFAULT, Normalization, NormalRequest, Request, RequestError, normalised
from hcc.mesh.rules import ALLOW, DENY, Demands, RuleSet, compiled_rules, looked_at, token_demands, what_says
from hcc.mesh.token_demands import TokenDemand, demand_label
from hcc.mesh.token_providers import TokenProviders

WILDCARD = "*"


class Action(Enum):
    """What an intention says of a pair of services. `PERMISSIONS`: it depends on the request (layer 7)."""

    ALLOW = "allow"
    DENY = "deny"
    PERMISSIONS = "permissions"


@dataclass(frozen=True, slots=True)
class Intention:
    """One intention whose destination is the service we guard.

    Args:
        source: service name, or `*`.
        precedence: Consul's number; the highest that matches governs.
        permissions: in order, for an `Action.PERMISSIONS` intention: the first that speaks of a request decides.
        peer: name of the cluster peer the source lives in; empty for our own cluster.
        jwt: the providers, one of which must have signed a token; None where none is demanded.
    """

    source: str
    action: Action
    precedence: int
    permissions: tuple[Permission, ...] = ()
    source_namespace: str = DEFAULT_NAMESPACE
    source_partition: str = DEFAULT_PARTITION
    peer: str = ""
    jwt: tuple[JwtProvider, ...] | None = None

    def label(self) -> str:
        """The intention in one phrase, for a log line."""
        return f"{self.source} -> {self.action.value} (precedence {self.precedence})"


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides who may call `destination`.

    Args:
        default_allow: what happens when no intention matches; None while unknown, which denies.
        version: grows with every change, so that a worker's answer can be told apart from an older one.
        http: the destination speaks http, http2 or grpc; else permissions deny, as there are no requests.
        normalization: how requests are brought into one form before permissions are looked at; None while unknown,
            which makes permissions deny.
        providers: who may sign the tokens that intentions demand; None while unknown, and then no token is good enough.
        has_namespaces: Consul has namespaces and partitions. One that has none signs certificates that name some all
            the same; no intention of it speaks of such a caller, and the default policy must not let it in.
    """

    destination: str
    trust_domain: str
    intentions: tuple[Intention, ...]
    default_allow: bool | None
    version: int = 0
    http: bool = False
    normalization: Normalization | None = CONSULS_DEFAULT
    providers: TokenProviders | None = None
    has_namespaces: bool = False

    @property
    def complete(self) -> bool:
        """Whether all that it needs was told, whoever may sign the tokens that it demands included."""
        return self.providers is not None or not any(demands_tokens(one) for one in self.intentions)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer and its reason.

    Args:
        reason: for people; holds no secret.
        intention: the one that governs; None if the default policy decided, or the caller's trust domain or namespace.
        permission: position of the deciding one among the intention's; None if none decided.
        rules: what decides request by request; `allowed` is False then, as the connection alone gets nothing.
        by_token: the request's token decides; `allowed` is False then, as nobody has looked at it.
    """

    allowed: bool
    reason: str
    intention: Intention | None = None
    permission: int | None = None
    rules: RuleSet | None = None
    by_token: bool = False


def verdict_of(policy: Policy, caller: ServiceIdentity) -> Verdict:
    """The verdict on a connection from `caller`: allowed, denied, or `rules`.

    The intention with the highest precedence whose source matches governs alone; none: the default policy.
    Permissions that decide all requests alike are no rules but a plain verdict.

    Source: reference/consul.md section 6.
    """
    if caller.trust_domain != policy.trust_domain.lower():
        return Verdict(False, f"trust domain {caller.trust_domain!r} is not ours")
    one = governing(policy.intentions, caller)
    return by_default(policy, caller) if one is None else by_intention(one, policy)


def governing(intentions: Iterable[Intention], caller: ServiceIdentity) -> Intention | None:
    """The one of them that decides, alone; None for the default policy."""
    return min((one for one in intentions if _matches(one, caller)), key=_rank, default=None)


def by_default(policy: Policy, caller: ServiceIdentity) -> Verdict:
    """The verdict on a caller of our trust domain that no intention speaks of."""
    if not policy.has_namespaces and (caller.namespace, caller.partition) != (DEFAULT_NAMESPACE, DEFAULT_PARTITION):
        return Verdict(False, f"{caller.source()!r} names a namespace or partition, and Consul has none")
    return Verdict(bool(policy.default_allow), f"no intention matches; {_default(policy)}")


def decide(policy: Policy, caller: ServiceIdentity, request: Request) -> Verdict:
    """The verdict on one request from `caller`; its `rules` is None.

    The first permission that speaks of the request decides; none: the default policy, never the next intention.
    A request without a normal form is denied before that, and one for a tunnel whatever is said of its caller. Where
    permissions come to the same answer for every request, it is that on the connection, and no request is looked at.
    """
    verdict = verdict_of(policy, caller)
    if policy.http and request.opens_tunnel:
        return Verdict(False, "the request is refused: CONNECT opens a tunnel, whatever the policy", verdict.intention)
    intention = verdict.intention
    how = policy.normalization
    if intention is None or verdict.rules is None or how is None:
        return verdict
    label = f"intention {intention.label()}"
    try:
        normal = normalised(request, how, looked_at(rule_sets(policy)))
    except RequestError as exc:
        return Verdict(False, f"the request is refused: {exc}", intention)
    permissions, demands = _permissions(intention), _demands(intention, policy)
    found = _first(permissions, normal)
    if found is None:
        says = demands.said(None) if policy.default_allow else DENY
        reason = f"{label}: no permission matches; {_default(policy)}"
    else:
        says = what_says(permissions[found], demands)
        reason = f"{label}, Permissions[{found}]: {_why(permissions[found], policy)}"
    if intention.action is not Action.PERMISSIONS:
        found, reason = None, label
    reason += _told(intention, policy)
    if says in (ALLOW, DENY):
        return Verdict(says == ALLOW, reason, intention, found)
    return Verdict(False, f"{reason}; the token decides", intention, found, by_token=True)


def demands_tokens(intention: Intention) -> bool:
    """Whether it, or one of its permissions, demands a token."""
    return intention.jwt is not None or any(one.jwt is not None for one in intention.permissions)


def rule_sets(policy: Policy) -> tuple[RuleSet, ...]:
    """Every rule set that `verdict_of` may give under this policy, each once, in the order of its intentions."""
    verdicts = (by_intention(intention, policy) for intention in policy.intentions if not intention.peer)
    return tuple(dict.fromkeys(verdict.rules for verdict in verdicts if verdict.rules is not None))


def demands_of(policy: Policy) -> dict[str, TokenDemand]:
    """Every demand that one of the rule sets may name, by its name."""
    found = (
        demand
        for intention in policy.intentions
        if not intention.peer and policy.http and policy.normalization is not None
        for demand in token_demands(_permissions(intention), _demands(intention, policy))
    )
    return {demand.name: demand for demand in found}


def by_intention(intention: Intention, policy: Policy) -> Verdict:
    """What one intention of the policy says where it governs."""
    label = f"intention {intention.label()}"
    if not _by_request(intention):
        return Verdict(intention.action is Action.ALLOW, label, intention)
    told = _told(intention, policy)
    has = "has L7 permissions" if intention.action is Action.PERMISSIONS else "looks at requests"
    if not policy.http:
        return Verdict(False, f"{label} {has}, but {policy.destination!r} is a tcp service{told}", intention)
    if policy.normalization is None:
        return Verdict(False, f"{label} {has}, and the mesh entry is not known yet{told}", intention)
    rules = compiled_rules(_permissions(intention), bool(policy.default_allow), _demands(intention, policy))
    told += "".join(f"; {note}" for note in _notes(intention.permissions, policy))
    if rules.by_request:
        return Verdict(False, f"{label}: the request decides{told}", intention, rules=rules)
    return Verdict(rules.default == ALLOW, f"{label}: {rules.default}, whatever the request{told}", intention)


def _by_request(intention: Intention) -> bool:
    """Whether requests, or their tokens, decide: not where it denies everything anyway."""
    demanding = intention.jwt is not None and intention.action is Action.ALLOW
    return demanding or intention.action is Action.PERMISSIONS


def _permissions(intention: Intention) -> tuple[Permission, ...]:
    """Those of an intention; one that just allows has one that says so."""
    return intention.permissions if intention.action is Action.PERMISSIONS else (Permission(allow=True),)


def _demands(intention: Intention, policy: Policy) -> Demands:
    return Demands(intention.jwt, policy.providers)


def _told(intention: Intention, policy: Policy) -> str:
    """What the intention itself demands of tokens, to be added to a reason."""
    return "" if intention.jwt is None else f"; it {demand_label(intention.jwt, policy.providers)}"


def _notes(permissions: tuple[Permission, ...], policy: Policy) -> Iterator[str]:
    """What may be denied although its author meant to allow it."""
    for position, permission in enumerate(permissions):
        if permission.fault or permission.jwt is not None:
            yield f"Permissions[{position}]: {_why(permission, policy)}"


def _first(permissions: tuple[Permission, ...], request: NormalRequest) -> int | None:
    for position, permission in enumerate(permissions):
        if permission.fault or speaks_of(permission, request):
            return position
    return None


def _why(permission: Permission, policy: Policy) -> str:
    if permission.fault:
        return f"denied, as it is not understood: {permission.fault}"
    if permission.jwt is not None and permission.allow:
        return demand_label(permission.jwt, policy.providers)
    return _word(permission.allow)


def _default(policy: Policy) -> str:
    return "the default policy is unknown" if policy.default_allow is None else f"default {_word(policy.default_allow)}"


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
