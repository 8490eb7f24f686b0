"""Permissions compiled to what HAProxy can decide alone: ordered rules that allow or deny, and a default."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hcc.mesh.permissions import HeaderRule, PathRule, Permission

# Tells the name of a rule set from other verdicts.
NAME_PREFIX = "rules-"
_NAME_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the requests that fulfil all conditions of one permission (there is at least one)."""

    allow: bool
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
    default_allow: bool

    @property
    def name(self) -> str:
        """A name for HAProxy's maps, made of the content alone: equal sets have one name in every process."""
        from hashlib import sha256  # noqa: PLC0415 (brings OpenSSL along, which a worker needs for nothing else)

        content = json.dumps([self.default_allow, [_described(rule) for rule in self.rules]])
        return f"{NAME_PREFIX}{sha256(content.encode()).hexdigest()[:_NAME_DIGITS]}"


def compiled_rules(permissions: tuple[Permission, ...], default_allow: bool) -> RuleSet:
    """The rules that decide as these permissions do; without any rule the default decides every request.

    A permission that demands a token denies the requests it speaks of, as tokens are not validated; one that we do
    not understand denies everything that reaches it.
    """
    rules: list[Rule] = []
    for permission in permissions:
        allow = permission.allow and permission.jwt is None and not permission.fault
        if permission.unconditional or permission.fault:
            default_allow = allow
            break
        # The order of conditions that must all hold means nothing, nor does one said twice.
        headers = tuple(sorted(set(permission.headers), key=repr))
        rules.append(Rule(allow, permission.path, headers, tuple(sorted(set(permission.methods)))))
    while rules and rules[-1].allow is default_allow:
        rules.pop()
    return RuleSet(tuple(rules), default_allow)


def _described(rule: Rule) -> list[object]:
    path = None if rule.path is None else [rule.path.kind.value, rule.path.value]
    headers = [[each.name, each.kind.value, each.value, each.invert, each.ignore_case] for each in rule.headers]
    return [rule.allow, path, headers, list(rule.methods)]
