"""Routes of a service-router and legs of a service-splitter: of which requests they speak, and what they change.

Paths and headers are compared as in permissions of intentions (`hcc.mesh.permissions`). Leaves to others: reading
them (`hcc.consul.routes`), and the ways through a chain that they make up (`hcc.mesh.ways`).

Source: hashicorp/consul agent/xds/routes.go (1.20.1) and what Envoy does with it; reference/consul.md section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hcc.mesh.permissions import HeaderMatch, HeaderRule, PathMatch, PathRule


class QueryMatch(Enum):
    """How a parameter of the query is compared."""

    PRESENT = "present"
    EXACT = "exact"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class QueryRule:
    """A condition on one parameter of the query, as it was sent: nothing is decoded, and of several the first counts.

    Args:
        value: empty for `PRESENT`; a regular expression must match the whole of the parameter's value.
    """

    name: str
    kind: QueryMatch
    value: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Of which requests a route speaks: those that fulfil all conditions; without any, of all.

    Args:
        path: on the path as it was sent, without the query.
        ignore_case: of the path; not for regular expressions.
        headers: several lines of one are one value, joined by commas.
        methods: in upper case; empty for all.
        fault: why we do not know of which it speaks.
    """

    path: PathRule | None = None
    ignore_case: bool = False
    headers: tuple[HeaderRule, ...] = ()
    query: tuple[QueryRule, ...] = ()
    methods: tuple[str, ...] = ()
    fault: str = ""

    @property
    def has_patterns(self) -> bool:
        """Whether regular expressions are needed to look; queries take one in any case."""
        headers = any(one.kind is HeaderMatch.REGEX for one in self.headers)
        return headers or bool(self.query) or (self.path is not None and self.path.kind is PathMatch.REGEX)


EVERY_REQUEST = Match()
# Of a snapshot that an hcc wrote which did not read matches yet.
NOT_READ = Match(fault="a match that was not read")


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """What becomes of the headers of a message: first some are removed, then set, then added to those there are."""

    remove: tuple[str, ...] = ()
    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()


NO_HEADERS = HeaderChanges()


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What the beginning of a path becomes.

    Args:
        prefix: the beginning; empty for the whole path.
    """

    text: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a route or a leg changes about the requests that take it.

    Args:
        timeout_ms: how long an answer is waited for; 0 when not given, negative for ever.
        unserved: what else is asked for, a phrase each.
    """

    rewrite: Rewrite | None = None
    timeout_ms: int = 0
    request: HeaderChanges = NO_HEADERS
    response: HeaderChanges = NO_HEADERS
    unserved: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is something to be done."""
        asked = self.rewrite is not None or self.timeout_ms != 0
        return asked or self.request != NO_HEADERS or self.response != NO_HEADERS


NO_CHANGES = Changes()
