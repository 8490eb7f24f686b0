"""What a request's tokens must be, as one value that a verdict can name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hcc.mesh.permissions import JwtProvider
from hcc.mesh.token_providers import TokenProviders

# Tells the name of a demand from other verdicts.
TOKEN_PREFIX = "token-"  # noqa: S105 (a prefix)
_NAME_DIGITS = 32


@dataclass(frozen=True, slots=True)
class TokenDemand:
    """For each of `all_of` a token is needed, of one of its providers and with all of that provider's claims."""

    all_of: tuple[tuple[JwtProvider, ...], ...]

    @property
    def name(self) -> str:
        """A name for HAProxy's maps, made of the content alone: equal demands have one name in every process."""
        from hashlib import sha256  # noqa: PLC0415 (brings OpenSSL along, which a worker needs for nothing else)

        content = json.dumps([[[one.name, one.claims] for one in any_of] for any_of in self.all_of])
        return f"{TOKEN_PREFIX}{sha256(content.encode()).hexdigest()[:_NAME_DIGITS]}"


def demand_of(demands: Sequence[tuple[JwtProvider, ...]], known: TokenProviders | None) -> TokenDemand | None:
    """What all of these demand together, of providers whose tokens can be checked.

    Returns:
        None where no token could be good enough: for one of them there is no such provider.
    """
    all_of = tuple(_usable(jwt, known) for jwt in demands)
    return TokenDemand(tuple(dict.fromkeys(all_of))) if all_of and all(all_of) else None


def demand_label(jwt: tuple[JwtProvider, ...], known: TokenProviders | None) -> str:
    """A demand in one phrase, for people, with what keeps its tokens from being checked."""
    said = f"demands a JWT of {' or '.join(_label(one, known) for one in jwt) or 'nobody'}"
    return said if _usable(jwt, known) else f"{said}, which cannot be checked"


def _usable(jwt: tuple[JwtProvider, ...], known: TokenProviders | None) -> tuple[JwtProvider, ...]:
    return tuple(one for one in jwt if not one.fault and _can_check(one, known))


def _can_check(demanded: JwtProvider, known: TokenProviders | None) -> bool:
    found = known.find(demanded.name) if known else None
    return found is not None and not found.fault


def _label(demanded: JwtProvider, known: TokenProviders | None) -> str:
    said = known.label_of(demanded.name) if known else f"{demanded.name} [not known yet]"
    return f"{said}, not understood: {demanded.fault}" if demanded.fault else said
