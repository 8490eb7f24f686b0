"""The `jwt-provider` entries: whose tokens can be checked, and how.

What we do not know, or do not do, makes a provider whose tokens nobody gets in with: a check left out would let in whom
the entry's author did not mean.

Source: hashicorp/consul agent/structs/config_entry_jwt_provider.go, agent/xds/jwt_authn.go (1.20.1).
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping

from hcc.consul.conditions import unknown_fields
from hcc.consul.fields import Fields, fields_list
from hcc.mesh.secret import Secret
from hcc.mesh.token_providers import (
    USUAL_PLACES,
    PlaceKind,
    TokenChecks,
    TokenKey,
    TokenPlace,
    TokenProvider,
    TokenProviders,
)

# `CacheConfig` is about Envoy's memory.
_ENTRY = frozenset(
    (
        *("Kind", "Name", "Partition", "Namespace", "Meta", "Hash", "Status", "CreateIndex", "ModifyIndex"),
        *("JSONWebKeySet", "Issuer", "Audiences", "Locations", "ClockSkewSeconds", "CacheConfig"),
    )
)
_PLACE = frozenset(("Header", "QueryParam", "Cookie"))
_HEADER = frozenset(("Name", "ValuePrefix", "Forward"))
_NAMED = frozenset(("Name",))
_PLACE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_MAX_PREFIX_CHARACTERS = 100
_MAX_PLACES = 10
_MAX_KEYS = 100
DEFAULT_SKEW_S = 30
_MAX_SKEW_S = 24 * 3600
_MAX_FILE_CHARACTERS = 100
_MAX_KIND_CHARACTERS = 10
_MIN_RSA_BITS = 2048
_NO_LINE_ENDS = str.maketrans("", "", "\r\n")
# By the size of the digest, as RFC 7518 section 3.2 demands.
_HMAC_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# Kind and curve of a key, and what signatures it makes: never another kind's, whatever a token says.
_ALGORITHMS = {
    ("RSA", ""): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
# What makes a key of each kind, without what makes it a private one.
_PARTS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x"), "oct": ("k",)}


def token_providers(data: object) -> TokenProviders:
    """All providers, from the list of entries.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    found = (_provider(entry) for entry in fields_list(data, ""))
    return TokenProviders(tuple(sorted(found, key=lambda one: one.name)))


def _provider(entry: Fields) -> TokenProvider:
    key_set = entry.child("JSONWebKeySet")
    local = _local_keys(key_set)
    keys = tuple(key for one in local if (key := _key(one)) is not None)
    places = tuple(_place(each) for each in entry.children("Locations")) or USUAL_PLACES
    checks = TokenChecks(entry.texts("Audiences"), _skew_s(entry), places, keys)
    issuer = entry.text("Issuer")
    fault = "; ".join((*_unknown(entry, _ENTRY), *_place_faults(entry, places), *_faults(issuer, checks, local)))
    return TokenProvider(
        name=entry.required("Name"),
        issuer=issuer,
        keys=_described(key_set, local),
        fault=fault,
        checks=None if fault else checks,
    )


def _skew_s(entry: Fields) -> int:
    return entry.number("ClockSkewSeconds") or DEFAULT_SKEW_S


def _faults(issuer: str, checks: TokenChecks, local: tuple[Mapping[str, object], ...]) -> tuple[str, ...]:
    faults = []
    if not issuer:
        faults.append("it names no issuer")
    if not 0 <= checks.skew_s <= _MAX_SKEW_S:
        faults.append(f"ClockSkewSeconds is {checks.skew_s}")
    if not checks.keys:
        faults.append("none of these keys can be used" if local else "keys can only be used from the entry itself")
    if len(local) > _MAX_KEYS:
        faults.append(f"it has more than {_MAX_KEYS} keys")
    return tuple(faults)


# ---- places


def _place(item: Fields) -> TokenPlace:
    header = item.child("Header")
    if header.values:
        return TokenPlace(
            PlaceKind.HEADER, header.text("Name").lower(), header.text("ValuePrefix"), header.flag("Forward")
        )
    if item.values.get("QueryParam"):
        return TokenPlace(PlaceKind.QUERY, item.child("QueryParam").text("Name"))
    return TokenPlace(PlaceKind.COOKIE, item.child("Cookie").text("Name"))


def _place_faults(entry: Fields, places: tuple[TokenPlace, ...]) -> tuple[str, ...]:
    faults = [f"a {one.kind.value} {one.name[:20]!r} cannot be looked at" for one in places if not _can_be_seen(one)]
    for item in entry.children("Locations"):
        faults += _unknown(item, _PLACE)
        faults += _unknown(item.child("Header"), _HEADER)
        faults += [fault for name in ("QueryParam", "Cookie") for fault in _unknown(item.child(name), _NAMED)]
        if sum(bool(item.values.get(name)) for name in _PLACE) > 1:
            faults.append("one of its Locations is several")
    if len(places) > _MAX_PLACES:
        faults.append(f"it has more than {_MAX_PLACES} Locations")
    return tuple(faults)


def _can_be_seen(place: TokenPlace) -> bool:
    return bool(_PLACE_NAME.fullmatch(place.name)) and len(place.prefix) <= _MAX_PREFIX_CHARACTERS


def _unknown(item: Fields, known: frozenset[str]) -> list[str]:
    return [f"{name} is not supported" for name in unknown_fields(item, known)]


# ---- keys


def _described(key_set: Fields, local: tuple[Mapping[str, object], ...]) -> str:
    if key_set.values.get("Remote"):
        return "keys on a server"
    filename = key_set.child("Local").text("Filename")
    if filename:
        return f"keys in the file {filename[:_MAX_FILE_CHARACTERS]!r}"
    kinds = sorted({f"{key['kty']}"[:_MAX_KIND_CHARACTERS] for key in local})
    return f"keys in its entry: {', '.join(kinds)}" if kinds else "no keys that can be read"


def _local_keys(key_set: Fields) -> tuple[Mapping[str, object], ...]:
    """The keys of a JWKS in base64 (RFC 7517 section 5); none where it is no such set, or there is another source."""
    local = key_set.child("Local")
    if key_set.values.get("Remote") or local.text("Filename"):
        return ()
    # In lines, too, as `base64` prints it: Go's decoder passes over their ends, and nothing else.
    text = local.text("JWKS").translate(_NO_LINE_ENDS)
    try:
        loaded = json.loads(binascii.a2b_base64(text, strict_mode=True))
        return tuple(key for key in loaded["keys"] if key["kty"] and isinstance(key, dict))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


def _key(jwk: Mapping[str, object]) -> TokenKey | None:
    """The key, with what makes it and nothing else; None where it is none that we check signatures with."""
    kind, kid, named = jwk["kty"], jwk.get("kid", ""), jwk.get("alg")
    parts = {name: jwk.get(name) for name in _PARTS.get(kind, ())} if isinstance(kind, str) else {}
    if not parts or not isinstance(kid, str) or not _is_for_signatures(jwk):
        return None
    if not all(isinstance(part, str) and part for part in parts.values()):
        return None
    able = _algorithms(str(kind), {name: str(part) for name, part in parts.items()})
    algorithms = able if named is None else tuple(one for one in able if one == named)
    if not algorithms:
        return None
    return TokenKey(kid, algorithms, Secret(json.dumps({"kty": kind, **parts}, sort_keys=True)))


def _is_for_signatures(jwk: Mapping[str, object]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _algorithms(kind: str, parts: Mapping[str, str]) -> tuple[str, ...]:
    if kind == "oct":
        size = len(_decoded(parts["k"]))
        return tuple(name for name, least in _HMAC_BYTES.items() if size >= least)
    if kind == "RSA" and int.from_bytes(_decoded(parts["n"]), "big").bit_length() < _MIN_RSA_BITS:
        return ()
    return _ALGORITHMS.get((kind, parts.get("crv", "")), ())


def _decoded(text: str) -> bytes:
    """Base64url without padding (RFC 7515 section 2); nothing where it is not."""
    try:
        return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return b""
