"""Permissions compiled to what HAProxy can decide alone: ordered rules, and a default.

What a rule says is `ALLOW`, `DENY`, or the name of a `TokenDemand`: then a token decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathRule, Permission
from hcc.mesh.request import Look, LookedAt
from hcc.mesh.token_demands import TOKEN_PREFIX, TokenDemand, demand_of
from hcc.mesh.token_providers import TokenProviders

ALLOW, DENY = "allow", "deny"
# Tells the name of a rule set from other verdicts.
NAME_PREFIX = "rules-"
_NAME_DIGITS = 32
_LOOKS = {HeaderMatch.PRESENT: Look.PRESENCE, HeaderMatch.REGEX: Look.PATTERN}


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the requests that fulfil all conditions of one permission (there is at least one)."""

    says: str
    path: PathRule | None
    headers: tuple[HeaderRule, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules in order: the first that speaks of a request decides, else the default.

    Equal sets decide alike, so callers with equal sets can share one. A rule that could never decide, or that says
    what would be said without it, is not in it.
    """

    rules: tuple[Rule, ...]
    default: str

    @property
    def name(self) -> str:
        """A name for HAProxy's maps, made of the content alone: equal sets have one name in every process."""
        from hashlib import sha256  # noqa: PLC0415 (brings OpenSSL along, which a worker needs for nothing else)

        content = json.dumps([self.default, [_described(rule) for rule in self.rules]])
        return f"{NAME_PREFIX}{sha256(content.encode()).hexdigest()[:_NAME_DIGITS]}"

    @property
    def by_request(self) -> bool:
        """Whether it takes a request to decide, and not the caller alone."""
        return bool(self.rules) or self.default.startswith(TOKEN_PREFIX)


@dataclass(frozen=True, slots=True)
class Demands:
    """What tokens have to do with permissions.

    Args:
        everywhere: demanded of all requests that are allowed, beside what each permission demands; None for nothing.
        known: whose tokens can be checked; None while unknown, and then no token is good enough.
    """

    everywhere: tuple[JwtProvider, ...] | None = None
    known: TokenProviders | None = None

    def of(self, jwt: tuple[JwtProvider, ...] | None) -> TokenDemand | None:
        """What is demanded where a permission demands `jwt`; None where no token could be good enough, or none is."""
        return demand_of([one for one in (self.everywhere, jwt) if one is not None], self.known)

    def said(self, jwt: tuple[JwtProvider, ...] | None) -> str:
        """What is said to a request that is allowed but for its token."""
        if jwt is None and self.everywhere is None:
            return ALLOW
        demand = self.of(jwt)
        return demand.name if demand else DENY


NO_DEMANDS = Demands()


def compiled_rules(permissions: tuple[Permission, ...], default_allow: bool, demands: Demands = NO_DEMANDS) -> RuleSet:
    """The rules that decide as these permissions do; without any rule the default decides every request.

    A permission that demands a token which cannot be checked denies the requests it speaks of; one that we do not
    understand denies everything that reaches it.
    """
    rules: list[Rule] = []
    default = demands.said(None) if default_allow else DENY
    for permission in permissions:
        says = what_says(permission, demands)
        if permission.unconditional or permission.fault:
            default = says
            break
        # The order of conditions that must all hold means nothing, nor does one said twice.
        headers = tuple(sorted(set(permission.headers), key=repr))
        rules.append(Rule(says, permission.path, headers, tuple(sorted(set(permission.methods)))))
    while rules and rules[-1].says == default:
        rules.pop()
    return RuleSet(tuple(rules), default)


def looked_at(sets: Iterable[RuleSet]) -> tuple[LookedAt, ...]:
    """The headers that these rules look at, by name, each as closely as the one does that looks most closely."""
    looks: dict[str, Look] = {}
    for header in (header for each in sets for rule in each.rules for header in rule.headers):
        look = _LOOKS.get(header.kind, Look.VALUE)
        looks[header.name] = max(look, looks.get(header.name, look))
    return tuple(LookedAt(name, looks[name]) for name in sorted(looks))


def what_says(permission: Permission, demands: Demands) -> str:
    """What a permission says to the requests that reach it."""
    return demands.said(permission.jwt) if permission.allow and not permission.fault else DENY


def token_demands(permissions: tuple[Permission, ...], demands: Demands) -> Iterator[TokenDemand]:
    """Every demand that rules compiled of these may name, some more often than once."""
    for jwt in (None, *(permission.jwt for permission in permissions)):
        demand = demands.of(jwt)
        if demand is not None:
            yield demand


def _described(rule: Rule) -> list[object]:
    path = None if rule.path is None else [rule.path.kind.value, rule.path.value]
    headers = [[each.name, each.kind.value, each.value, each.invert, each.ignore_case] for each in rule.headers]
    return [rule.says, path, headers, list(rule.methods)]
