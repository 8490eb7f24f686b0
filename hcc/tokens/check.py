"""Whether the tokens of a request are what an intention demands.

Signatures and times are PyJWT's. What is added: a key is used with the algorithms of its kind alone, whatever a token
says of itself; nothing is critical to us, so `crit` is refused; and one provider's token is one token.

Source: RFC 7515, RFC 7519; hashicorp/consul agent/xds/rbac.go, jwt_authn.go (1.20.1) for what counts as demanded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from jwt import PyJWK
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)

from hcc.errors import PeerError
from hcc.mesh.intentions import Policy, demands_of
from hcc.mesh.permissions import JwtProvider
from hcc.mesh.token_demands import TokenDemand
from hcc.mesh.token_providers import PlaceKind, TokenChecks, TokenKey, TokenPlace, TokenProvider, TokenProviders

MAX_TOKEN_CHARACTERS = 8 * 1024
# What was found good is not checked again for this long, nor after it has expired.
REMEMBER_S = 300.0
MAX_REMEMBERED = 4_096
# RFC 7515 section 7.1; the signature may be missing.
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
# What may be wrong with claims whose signature is right, and how it is told.
_WRONG: tuple[tuple[type[PyJWTError], str], ...] = (
    (ExpiredSignatureError, "has expired"),
    (ImmatureSignatureError, "is not valid yet"),
    (InvalidAudienceError, "is for another audience"),
    (InvalidIssuerError, "is of another issuer"),
    (InvalidSignatureError, "has a signature that is not right"),
    (MissingRequiredClaimError, "lacks a claim that is needed"),
)

_log = logging.getLogger(__name__)


class TokenError(PeerError):
    """A token that is not good enough. The text says why and never quotes it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer.

    Args:
        reason: for people, where it is no; quotes no token.
        strip: names of the headers that the application is not to get.
    """

    good: bool
    reason: str = ""
    strip: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Token:
    """One that is good: its claims, and the headers it came in that are not sent on."""

    claims: Mapping[str, Any]
    strip: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Remembered:
    """What was found good.

    Args:
        checked_s: when, by the wall clock. Where that was set back since, one of the tokens may not be valid yet.
        expires_s: when the first of the tokens expires, by the wall clock.
        until_s: when it is to be checked again, by the monotonic clock.
    """

    outcome: Outcome
    checked_s: float
    expires_s: float
    until_s: float

    def counts(self, now_s: float, monotonic_s: float) -> bool:
        """Whether it may be taken for what a check would find now."""
        return self.checked_s <= now_s < self.expires_s and monotonic_s < self.until_s


class TokenChecker:
    """Checks by one policy; another policy takes another checker. Not safe to be used by two threads at once.

    Args:
        before: the policy before. What it demands counts for `earlier_s` more: HAProxy goes by it for as long, at most.
            Tokens are then checked by the providers of now; by those of before where the policy knows none, and so
            demands nothing itself.
        clock: for durations; what tokens say of time is compared with the wall clock.
    """

    def __init__(
        self,
        policy: Policy,
        before: Policy | None = None,
        earlier_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._demands = demands_of(policy)
        self._earlier = demands_of(before) if before is not None else {}
        self._earlier_until_s = clock() + earlier_s
        knows = before if before is not None and policy.providers is None else policy
        self._known = knows.providers or TokenProviders()
        self._remembered: dict[bytes, _Remembered] = {}
        self._keys: dict[TokenKey, Any] = {}
        for provider in self._known.entries:
            for key in provider.checks.keys if provider.checks else ():
                self._load(provider.name, key)

    def check(self, demand: str, sent: Mapping[str, str | int], now_s: float) -> Outcome:
        """Whether a request's tokens fulfil the demand of that name.

        Args:
            demand: as rules name it.
            sent: what HAProxy found in the request, by `TokenPlace.argument` and `TokenPlace.counted`.
            now_s: seconds since the epoch; PyJWT reads the clock itself.
        """
        wanted = self._wanted(demand)
        if wanted is None:
            return Outcome(False, "it needs a token that the intentions do not demand any more")
        digest = _digest(demand, sent)
        known = self._remembered.get(digest)
        if known is not None and known.counts(now_s, self._clock()):
            return known.outcome
        try:
            tokens = [self._any_of(any_of, sent) for any_of in wanted.all_of]
        except TokenError as exc:
            return Outcome(False, str(exc))
        outcome = Outcome(True, strip=tuple(sorted({name for one in tokens for name in one.strip})))
        expires_s = min(_expiry_s(one.claims) for one in tokens)
        self._remember(digest, _Remembered(outcome, now_s, expires_s, self._clock() + REMEMBER_S))
        return outcome

    def knows(self, demand: str) -> bool:
        """Whether the policy, or the one before, has a demand of that name."""
        return demand in self._demands or demand in self._earlier

    def _wanted(self, demand: str) -> TokenDemand | None:
        earlier = self._earlier if self._clock() < self._earlier_until_s else {}
        return self._demands.get(demand) or earlier.get(demand)

    def _any_of(self, providers: tuple[JwtProvider, ...], sent: Mapping[str, str | int]) -> _Token:
        reasons = []
        for demanded in providers:
            provider = self._known.find(demanded.name)
            try:
                token = self._token_of(provider, sent)
                _check_claims(demanded, token.claims)
            except TokenError as exc:
                reasons.append(f"{demanded.name}: {exc}")
            else:
                return token
        raise TokenError("; ".join(reasons))

    def _token_of(self, provider: TokenProvider | None, sent: Mapping[str, str | int]) -> _Token:
        if provider is None or provider.checks is None:
            raise TokenError("its tokens cannot be checked")
        checks = provider.checks
        found = [(place, text) for place in checks.places if (text := _found(place, sent))]
        texts = {text for _, text in found}
        if len(texts) != 1:
            raise TokenError("there is more than one token" if texts else "there is no token")
        claims = self._claims(texts.pop(), provider.issuer, checks)
        headers = (place for place, _ in found if place.kind is PlaceKind.HEADER and not place.forward)
        return _Token(claims, tuple(place.name for place in headers))

    def _claims(self, token: str, issuer: str, checks: TokenChecks) -> Mapping[str, Any]:
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise TokenError(f"the token is longer than {MAX_TOKEN_CHARACTERS} characters")
        try:
            algorithm, kid = _header(token)
            return self._by_one_of(self._fitting(checks.keys, algorithm, kid), token, algorithm, issuer, checks)
        except PyJWTError as exc:
            raise TokenError(f"the token {_told(exc)}") from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise TokenError("the token cannot be read") from None

    def _fitting(self, keys: tuple[TokenKey, ...], algorithm: str, kid: str) -> tuple[TokenKey, ...]:
        """Those that may have signed it: a key without a name may be any."""
        able = (key for key in keys if key in self._keys and algorithm in key.algorithms)
        found = tuple(key for key in able if not kid or key.kid in ("", kid))
        if not found:
            raise TokenError("the token is of no key that is known, or of an algorithm that is not that key's")
        return found

    def _by_one_of(
        self, keys: tuple[TokenKey, ...], token: str, algorithm: str, issuer: str, checks: TokenChecks
    ) -> Mapping[str, Any]:
        for key in keys:
            with suppress(InvalidSignatureError):
                return _decoded(token, self._keys[key], algorithm, issuer, checks)
        raise InvalidSignatureError

    def _load(self, provider: str, key: TokenKey) -> None:
        try:
            self._keys[key] = PyJWK.from_json(key.jwk.reveal(), key.algorithms[0]).key
        except (PyJWTError, UnsupportedAlgorithm, ValueError) as exc:
            _log.warning("a key of jwt-provider %s cannot be used: %s", provider, type(exc).__name__)

    def _remember(self, digest: bytes, found: _Remembered) -> None:
        self._remembered.pop(digest, None)
        self._remembered[digest] = found
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]


def _digest(demand: str, sent: Mapping[str, str | int]) -> bytes:
    return hashlib.sha256(json.dumps([demand, sorted(sent.items())]).encode()).digest()


def _expiry_s(claims: Mapping[str, Any]) -> float:
    # Read as it was to be compared with the clock; it may be too large for a float.
    return int(claims["exp"]) if "exp" in claims else math.inf


# ---- where it is


def _found(place: TokenPlace, sent: Mapping[str, str | int]) -> str:
    """The token at that place, empty if there is none; one that another reader might not find is an error."""
    value = str(sent.get(place.argument, ""))
    if place.kind is PlaceKind.QUERY:
        return _in_query(place.name, value)
    count = sent.get(place.counted, 0)
    if not count:
        return ""
    if count != 1:
        raise TokenError(f"the header {place.line} is there more than once")
    return _in_cookies(place.name, value) if place.kind is PlaceKind.COOKIE else _in_header(place, value)


def _in_header(place: TokenPlace, value: str) -> str:
    if value.startswith(place.prefix):
        return value.removeprefix(place.prefix).strip(" \t")
    words, prefix = value.casefold().split(), " ".join(place.prefix.casefold().split())
    # The name of a scheme is read in either case (RFC 9110 section 11.1), and some look at nothing but the last word.
    if words and ((prefix and " ".join(words).startswith(prefix)) or _TOKEN.fullmatch(words[-1])):
        raise TokenError(f"the header {place.line} has what may be a token, and not after {place.prefix!r}")
    return ""


def _in_query(name: str, query: str) -> str:
    values = _parameters(name, query)
    # Some take a semicolon for an ampersand, as HTML 4.01 had it.
    if len(values) > 1 or values != _parameters(name, query.replace(";", "&")):
        raise TokenError(f"the query parameter {name} is there more than once, or not for every reader")
    return values[0] if values else ""


def _parameters(name: str, query: str) -> list[str]:
    return [value for key, value in parse_qsl(query, keep_blank_values=True) if key == name]


def _in_cookies(name: str, line: str) -> str:
    pairs = (pair.partition("=") for pair in line.split(";"))
    values = [value.strip() for key, _, value in pairs if key.strip() == name]
    # Some end a cookie at a comma, or do not end it in between quotes.
    if len(values) > 1 or len(values) != len(re.findall(rf"(?:^|[;,\s\"]){re.escape(name)}\s*=", line)):
        raise TokenError(f"the cookie {name} is there more than once, or not for every reader")
    return values[0] if values else ""


# ---- what it says


def _header(token: str) -> tuple[str, str]:
    header = jwt.get_unverified_header(token)
    if "crit" in header or "b64" in header:
        raise TokenError("the token's header demands what is not known")
    algorithm, kid = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str) or not isinstance(kid, str):
        raise TokenError("the token's header cannot be read")
    return algorithm, kid


def _decoded(token: str, key: Any, algorithm: str, issuer: str, checks: TokenChecks) -> Mapping[str, Any]:  # noqa: ANN401 (a key of any kind)
    return jwt.decode(
        token,
        key=key,
        algorithms=[algorithm],
        issuer=issuer,
        audience=checks.audiences or None,
        leeway=checks.skew_s,
        options={
            "require": ["iss"],
            "verify_aud": bool(checks.audiences),
            # When it was made is nobody's demand.
            "verify_iat": False,
            "enforce_minimum_key_length": True,
        },
    )


def _told(exc: PyJWTError) -> str:
    # Never the library's own words, which may quote the token.
    return next((words for kind, words in _WRONG if isinstance(exc, kind)), "cannot be read")


def _check_claims(demanded: JwtProvider, claims: Mapping[str, Any]) -> None:
    for path, expected in demanded.claims:
        value: object = claims
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, str) or value != expected:
            raise TokenError(f"the claim {'.'.join(path)} is not what is demanded")
