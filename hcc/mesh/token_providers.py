"""Who may sign the tokens that intentions demand: Consul's `jwt-provider` entries.

A provider whose tokens cannot be checked as its entry means it has a `fault`: nobody gets in by such a token, and the
fault is told. How the others' tokens are checked is in `checks`; that stays in the main process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from hcc.mesh.secret import Secret


class PlaceKind(Enum):
    """Where in a request a token can be."""

    HEADER = "header"
    QUERY = "query"
    COOKIE = "cookie"


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """One place of a request where a token is looked for.

    Args:
        name: of a header in lower case; of a query parameter or a cookie as it is.
        prefix: what stands before the token in a header; a header without it has no token.
        forward: whether the application gets the header, too.
    """

    kind: PlaceKind
    name: str
    prefix: str = ""
    forward: bool = True

    @property
    def line(self) -> str:
        """The header that it is in; empty where it is in none."""
        return {PlaceKind.HEADER: self.name, PlaceKind.COOKIE: "cookie"}.get(self.kind, "")

    @property
    def argument(self) -> str:
        """The word by which HAProxy tells what is there; of queries and cookies it tells all."""
        return f"header.{self.line}" if self.line else self.kind.value

    @property
    def counted(self) -> str:
        """The word by which it tells how many lines of that header there are."""
        return f"headers.{self.line}"


# Where an entry names no places (RFC 6750 sections 2.1 and 2.3).
USUAL_PLACES = (
    TokenPlace(PlaceKind.HEADER, "authorization", "Bearer ", forward=False),
    TokenPlace(PlaceKind.QUERY, "access_token"),
)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key that signatures are checked with.

    Args:
        kid: its name; empty when it has none.
        algorithms: the only ones it is used with, RFC 7518 section 3.1 and RFC 8037.
        jwk: RFC 7517, as JSON; of a pair of keys only the public one. A symmetric one could sign.
    """

    kid: str
    algorithms: tuple[str, ...]
    jwk: Secret


@dataclass(frozen=True, slots=True)
class TokenChecks:
    """How a provider's tokens are found and checked.

    Args:
        audiences: one of them must be among a token's; empty for any.
        skew_s: by how much clocks may differ.
        places: none of them is empty of names.
        keys: at least one.
    """

    audiences: tuple[str, ...]
    skew_s: int
    places: tuple[TokenPlace, ...]
    keys: tuple[TokenKey, ...]


@dataclass(frozen=True, slots=True)
class TokenProvider:
    """One entry.

    Args:
        issuer: what a token's `iss` must be.
        keys: where its keys are and of what kind, in one phrase; never the keys.
        fault: why its tokens cannot be checked; empty when they can.
        checks: None where they cannot, and where nobody checks them (in SPOE workers).
    """

    name: str
    issuer: str
    keys: str
    fault: str = ""
    checks: TokenChecks | None = None

    def label(self) -> str:
        """The entry in one phrase."""
        issuer = f"issuer {self.issuer!r}, " if self.issuer else ""
        return f"{issuer}{self.keys}{f'; {self.fault}' if self.fault else ''}"


@dataclass(frozen=True, slots=True)
class TokenProviders:
    """All entries of the mesh, sorted by name."""

    entries: tuple[TokenProvider, ...] = ()

    def find(self, name: str) -> TokenProvider | None:
        """A provider by the name that an intention has for it."""
        return next((one for one in self.entries if one.name == name), None)

    def label_of(self, name: str) -> str:
        """A provider in one phrase."""
        found = self.find(name)
        return f"{name} [{found.label() if found else 'unknown to Consul'}]"

    def without_checks(self) -> TokenProviders:
        """The same for who only has to know whose tokens can be checked."""
        return TokenProviders(tuple(replace(one, checks=None) for one in self.entries))
