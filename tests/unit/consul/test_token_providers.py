from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.token_providers import token_providers
from hcc.mesh.token_providers import TokenProvider, TokenProviders

SECRET = "c2VjcmV0LW9mLXRoZS1rZXk"
KEYS = {"keys": [{"kty": "RSA", "n": "AQAB"}, {"kty": "oct", "k": SECRET}, {"kty": "RSA", "n": "AQAC"}]}


def keys_of(key_set: Any) -> str:
    (found,) = token_providers([{"Kind": "jwt-provider", "Name": "okta", "JSONWebKeySet": key_set}]).entries
    return found.keys


def jwks(value: object) -> dict[str, dict[str, str]]:
    return {"Local": {"JWKS": base64.b64encode(json.dumps(value).encode()).decode()}}


def test_each_provider_is_read_with_its_issuer_and_where_its_keys_are() -> None:
    found = token_providers(
        [
            {"Name": "okta", "Issuer": "https://okta", "JSONWebKeySet": {"Remote": {"URI": "https://okta/keys"}}},
            {"Name": "auth", "JSONWebKeySet": {"Local": {"Filename": "/etc/keys.json"}}},
        ]
    )
    assert found.entries == (
        TokenProvider("auth", "", "keys in the file '/etc/keys.json'"),
        TokenProvider("okta", "https://okta", "keys on a server"),
    )


def test_of_the_keys_only_their_kinds_leave_the_decoder() -> None:
    assert keys_of(jwks(KEYS)) == "keys in its entry: RSA, oct"


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
