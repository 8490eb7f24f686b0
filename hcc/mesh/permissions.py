"""Permissions of layer-7 intentions: which requests one speaks of.

Source: hashicorp/consul agent/xds/rbac.go (1.20.1) and what Envoy does with it; reference/consul.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from string import ascii_lowercase, ascii_uppercase

from hcc.mesh.patterns import compiled
from hcc.mesh.request import NormalRequest

_ASCII_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


class PathMatch(Enum):
    """How a path is compared: always with its case, and without the query."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"


class HeaderMatch(Enum):
    """How a header's value is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    REGEX = "regex"
    PRESENT = "present"


@dataclass(frozen=True, slots=True)
class PathRule:
    """A condition on the normalised path; a regular expression must match all of it."""

    kind: PathMatch
    value: str


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """A condition on one header.

    A header that is not there fulfils nothing, inverted or not; only an inverted `PRESENT` is fulfilled by it.

    Args:
        name: in lower case; `host` for HTTP/2's `:authority`.
        value: empty for `PRESENT`; a regular expression must match the whole of the header's value.
        ignore_case: of ASCII letters; not for regular expressions.
    """

    name: str
    kind: HeaderMatch
    value: str = ""
    invert: bool = False
    ignore_case: bool = False

    def label(self) -> str:
        """The condition in one phrase, for people."""
        word = f"{'not ' if self.invert else ''}{self.kind.value}"
        value = "" if self.kind is HeaderMatch.PRESENT else f" {self.value!r}"
        return f"header {self.name} {word}{value}{' in any case' if self.ignore_case else ''}"


@dataclass(frozen=True, slots=True)
class JwtProvider:
    """A `jwt-provider` that may have signed the caller's token.

    Args:
        claims: of the token, each a path into it and the value to be found there.
        fault: why we do not know what is demanded; no token is good enough then.
    """

    name: str
    claims: tuple[tuple[tuple[str, ...], str], ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Permission:
    """One permission: what happens to the requests that fulfil all its conditions; without any, to every request.

    Args:
        methods: in upper case; empty for all.
        jwt: the providers, one of which must have signed a token; None where none is demanded.
        fault: why we do not know what it speaks of; such a permission denies whatever reaches it.
    """

    allow: bool
    path: PathRule | None = None
    headers: tuple[HeaderRule, ...] = ()
    methods: tuple[str, ...] = ()
    jwt: tuple[JwtProvider, ...] | None = None
    fault: str = ""

    def label(self) -> str:
        """The permission in one phrase, for people."""
        if self.fault:
            return f"not understood: {self.fault}"
        parts = [] if self.path is None else [f"path {self.path.kind.value} {self.path.value!r}"]
        parts += [header.label() for header in self.headers]
        parts += [f"method {' or '.join(self.methods)}"] if self.methods else []
        if self.jwt is not None:
            parts.append(f"demands a JWT of {' or '.join(one.name for one in self.jwt) or 'nobody'}")
        return f"{'allow' if self.allow else 'deny'} {', '.join(parts) or 'every request'}"

    @property
    def unconditional(self) -> bool:
        """Whether it speaks of every request."""
        return self.path is None and not self.headers and not self.methods


def distrusting(permission: Permission, header: str) -> Permission:
    """The permission; it denies if it has a condition on that header, of any case, in which callers are told.

    That is set when rules have been looked at: until then it is what the caller claims.
    """
    name = header.lower()
    if all(rule.name != name for rule in permission.headers):
        return permission
    fault = f"the header {name} tells the caller, and is what it claims when rules are looked at"
    return replace(permission, fault=f"{permission.fault}; {fault}" if permission.fault else fault)


def speaks_of(permission: Permission, request: NormalRequest) -> bool:
    """Whether the request fulfils all conditions; what the permission demands of tokens is no condition."""
    return (
        (permission.path is None or _path_matches(permission.path, request.path))
        and (not permission.methods or request.method in permission.methods)
        and all(_header_matches(rule, request.headers.get(rule.name)) for rule in permission.headers)
    )


def _path_matches(rule: PathRule, path: str) -> bool:
    if rule.kind is PathMatch.EXACT:
        return path == rule.value
    if rule.kind is PathMatch.PREFIX:
        return path.startswith(rule.value)
    return compiled(rule.value).fullmatch(path) is not None


def _header_matches(rule: HeaderRule, value: str | None) -> bool:
    if value is None:
        return rule.kind is HeaderMatch.PRESENT and rule.invert
    return _value_matches(rule, value) is not rule.invert


def _value_matches(rule: HeaderRule, value: str) -> bool:
    expected = rule.value
    if rule.ignore_case:
        expected, value = expected.translate(_ASCII_LOWER), value.translate(_ASCII_LOWER)
    match rule.kind:
        case HeaderMatch.PRESENT:
            return True
        case HeaderMatch.EXACT:
            return value == expected
        case HeaderMatch.PREFIX:
            return value.startswith(expected)
        case HeaderMatch.SUFFIX:
            return value.endswith(expected)
        case HeaderMatch.CONTAINS:
            return expected in value
        case HeaderMatch.REGEX:
            return compiled(rule.value).fullmatch(value) is not None
