"""Who may sign the tokens that intentions demand: Consul's `jwt-provider` entries, as far as people are to be told.

Tokens are not validated, so a demand for one denies; this says of whom one is demanded, and what kind of keys that
would take.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenProvider:
    """One entry.

    Args:
        issuer: what a token's `iss` must be, empty for anything.
        keys: where its keys are and of what kind, in one phrase; never the keys.
    """

    name: str
    issuer: str
    keys: str

    def label(self) -> str:
        """The entry in one phrase."""
        return f"{f'issuer {self.issuer!r}, ' if self.issuer else ''}{self.keys}"


@dataclass(frozen=True, slots=True)
class TokenProviders:
    """All entries of the mesh, sorted by name."""

    entries: tuple[TokenProvider, ...] = ()

    def label_of(self, name: str) -> str:
        """A provider in one phrase, by the name that an intention has for it."""
        found = next((one for one in self.entries if one.name == name), None)
        return f"{name} [{found.label() if found else 'unknown to Consul'}]"
