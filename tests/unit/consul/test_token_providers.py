from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.token_providers import token_providers
from hcc.mesh.json_form import from_json, to_json
from hcc.mesh.token_providers import USUAL_PLACES, PlaceKind, TokenPlace, TokenProvider, TokenProviders

SECRET = "c2VjcmV0LW9mLXRoZS1rZXk"
RSA = {"kty": "RSA", "n": "_" * 342, "e": "AQAB"}


def keys_of(key_set: Any) -> str:
    (found,) = token_providers([{"Kind": "jwt-provider", "Name": "okta", "JSONWebKeySet": key_set}]).entries
    return found.keys


def jwks(value: object) -> dict[str, dict[str, str]]:
    return {"Local": {"JWKS": base64.b64encode(json.dumps(value).encode()).decode()}}


def provider(key_set: Any = None, **fields: Any) -> TokenProvider:
    entry = {"Name": "okta", "Issuer": "https://okta", "JSONWebKeySet": key_set or jwks({"keys": [RSA]}), **fields}
    (found,) = token_providers([entry]).entries
    return found


def test_where_the_keys_are_elsewhere_the_tokens_cannot_be_checked() -> None:
    found = token_providers(
        [
            {"Name": "okta", "Issuer": "https://okta", "JSONWebKeySet": {"Remote": {"URI": "https://okta/keys"}}},
            {"Name": "auth", "JSONWebKeySet": {"Local": {"Filename": "/etc/keys.json"}}},
        ]
    )
    elsewhere = "keys can only be used from the entry itself"
    assert found.entries == (
        TokenProvider("auth", "", "keys in the file '/etc/keys.json'", f"it names no issuer; {elsewhere}"),
        TokenProvider("okta", "https://okta", "keys on a server", elsewhere),
    )


def test_keys_in_the_entry_are_kept_without_what_makes_them_private() -> None:
    private = {**RSA, "d": SECRET, "p": SECRET, "kid": "one", "use": "sig"}
    found = provider(jwks({"keys": [private, {"kty": "RSA", "n": "AQAB", "e": "AQAB"}]}))
    assert (found.keys, found.fault) == ("keys in its entry: RSA", "")
    assert found.checks is not None
    (key,) = found.checks.keys
    assert (key.kid, json.loads(key.jwk.reveal())) == ("one", RSA)
    assert key.algorithms == ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
    assert RSA["n"] not in f"{found} {found!r}"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_keys_may_be_in_lines_as_base64_prints_them(end: str) -> None:
    # Consul takes them so (1.20.1), but not with blanks.
    lines = base64.encodebytes(json.dumps({"keys": [RSA]}).encode()).decode()
    assert lines.count("\n") > 1
    assert provider({"Local": {"JWKS": lines.replace("\n", end)}}) == provider()
    assert keys_of({"Local": {"JWKS": lines.replace("\n", " ")}}) == "no keys that can be read"


def test_what_is_kept_for_the_next_start_comes_back_with_its_keys() -> None:
    whole = TokenProviders((provider(Audiences=["a"]),))
    assert from_json(TokenProviders, to_json(whole, secrets=True)) == whole
    assert RSA["n"] not in str(to_json(whole))


@pytest.mark.parametrize(
    ("key", "algorithms"),
    [
        ({**RSA, "alg": "PS256"}, ("PS256",)),
        ({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, ("ES256",)),
        ({"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}, ("ES384",)),
        ({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "key_ops": ["verify"]}, ("ES512",)),
        ({"kty": "OKP", "crv": "Ed25519", "x": "AA"}, ("EdDSA",)),
        ({"kty": "oct", "k": "A" * 43}, ("HS256",)),
        ({"kty": "oct", "k": "A" * 86}, ("HS256", "HS384", "HS512")),
        ({"kty": "oct", "k": "A" * 22}, ()),
        ({"kty": "oct", "k": "A" * 86, "alg": "RS256"}, ()),
        ({**RSA, "alg": "HS256"}, ()),
        ({**RSA, "alg": "none"}, ()),
        ({**RSA, "use": "enc"}, ()),
        ({**RSA, "key_ops": ["encrypt"]}, ()),
        ({**RSA, "key_ops": "verify"}, ()),
        ({**RSA, "kid": 7}, ()),
        ({**RSA, "n": 7}, ()),
        ({**RSA, "e": ""}, ()),
        ({**RSA, "n": "A" * 300}, ()),
        ({**RSA, "n": "\u00e4" * 400}, ()),
        ({"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"}, ()),
        ({"kty": "EC", "crv": "P-256", "x": "AA"}, ()),
        ({"kty": "OKP", "crv": "X25519", "x": "AA"}, ()),
        ({"kty": "new", "x": "AA"}, ()),
        ({"kty": ["RSA"]}, ()),
    ],
)
def test_a_key_is_for_the_algorithms_of_its_kind_alone(key: dict[str, Any], algorithms: tuple[str, ...]) -> None:
    found = provider(jwks({"keys": [key]}))
    assert (found.checks.keys[0].algorithms if found.checks else ()) == algorithms
    assert found.fault == ("" if algorithms else "none of these keys can be used")


def test_places_and_audiences_and_skew_are_read() -> None:
    usual = provider().checks
    assert usual is not None
    assert (usual.audiences, usual.skew_s, usual.places) == ((), 30, USUAL_PLACES)
    header = {"Name": "X-Token", "ValuePrefix": "Bearer ", "Forward": True}
    found = provider(
        Audiences=["a", "b"],
        ClockSkewSeconds=5,
        CacheConfig={"Size": 10},
        Locations=[{"Header": header}, {"QueryParam": {"Name": "t"}}, {"Cookie": {"Name": "C"}, "Header": None}],
    ).checks
    assert found is not None
    assert (found.audiences, found.skew_s) == (("a", "b"), 5)
    assert found.places == (
        TokenPlace(PlaceKind.HEADER, "x-token", "Bearer ", forward=True),
        TokenPlace(PlaceKind.QUERY, "t"),
        TokenPlace(PlaceKind.COOKIE, "C"),
    )


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ({"Issuer": ""}, "it names no issuer"),
        ({"Forwarding": {"HeaderName": "x-payload"}}, "Forwarding is not supported"),
        ({"RequireExpiry": True}, "RequireExpiry is not supported"),
        ({"ClockSkewSeconds": -1}, "ClockSkewSeconds is -1"),
        ({"Locations": [{}]}, "a cookie '' cannot be looked at"),
        ({"Locations": [{"Body": {"Name": "x"}}]}, "a cookie '' cannot be looked at; Body is not supported"),
        ({"Locations": [{"Header": {"Name": "x y"}}]}, "a header 'x y' cannot be looked at"),
        ({"Locations": [{"Header": {"Name": "x", "Case": True}}]}, "Case is not supported"),
        (
            {"Locations": [{"Header": {"Name": "x"}, "Cookie": {"Name": "x"}}]},
            "one of its Locations is several",
        ),
        ({"Locations": [{"Cookie": {"Name": f"c{n}"}} for n in range(11)]}, "it has more than 10 Locations"),
        ({"JSONWebKeySet": None}, "keys can only be used from the entry itself"),
    ],
)
def test_what_is_not_understood_makes_a_provider_whose_tokens_nobody_gets_in_with(
    field: dict[str, Any], fault: str
) -> None:
    found = provider(**field)
    assert (found.fault, found.checks) == (fault, None)


@pytest.mark.parametrize(
    "key_set",
    [
        None,
        {},
        {"Local": None, "Remote": None},
        {"Local": {"JWKS": "no base64 \u00e4"}},
        {"Local": {"JWKS": "AAAA"}},
        jwks([]),
        jwks(7),
        jwks({"keys": []}),
        jwks({"keys": 7}),
        jwks({"keys": [7]}),
        jwks({"keys": [{}]}),
    ],
)
def test_keys_that_are_none_are_said_to_be_none(key_set: Any) -> None:
    assert keys_of(key_set) == "no keys that can be read"


@pytest.mark.parametrize("data", [{}, [1], [{"Name": ""}], [{"Name": "okta", "JSONWebKeySet": 1}]])
def test_an_answer_of_another_shape_is_an_error(data: object) -> None:
    with pytest.raises(ConsulAnswerError):
        token_providers(data)


def test_without_entries_every_provider_is_unknown_to_consul() -> None:
    assert token_providers(None) == TokenProviders()
    assert TokenProviders().label_of("okta") == "okta [unknown to Consul]"
