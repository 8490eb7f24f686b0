from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.intentions import Action, Intention, Policy, rule_sets
from hcc.mesh.permissions import HeaderMatch, HeaderRule, JwtProvider, PathMatch, PathRule, Permission
from hcc.mesh.request import EscapedSlashes, Normalization, Underscores
from hcc.mesh.secret import Secret
from hcc.mesh.token_providers import USUAL_PLACES, TokenChecks, TokenKey, TokenProvider, TokenProviders
from hcc.spoe.policy_codec import PolicyCodecError, decode_policy, encode_policy

TEXT = st.text(max_size=8)
JWT = st.none() | st.lists(
    st.builds(
        JwtProvider, TEXT, st.lists(st.tuples(st.lists(TEXT, max_size=2).map(tuple), TEXT), max_size=2).map(tuple), TEXT
    ),
    max_size=2,
).map(tuple)
PERMISSIONS = st.builds(
    Permission,
    allow=st.booleans(),
    path=st.none() | st.builds(PathRule, st.sampled_from(PathMatch), TEXT),
    headers=st.lists(
        st.builds(HeaderRule, TEXT, st.sampled_from(HeaderMatch), TEXT, st.booleans(), st.booleans()),
        max_size=2,
    ).map(tuple),
    methods=st.lists(TEXT, max_size=2).map(tuple),
    jwt=JWT,
    fault=TEXT,
)
INTENTIONS = st.builds(
    Intention,
    source=TEXT,
    action=st.sampled_from(Action),
    precedence=st.integers(0, 9),
    permissions=st.lists(PERMISSIONS, max_size=3).map(tuple),
    source_namespace=TEXT,
    source_partition=TEXT,
    peer=TEXT,
    jwt=JWT,
)
POLICIES = st.builds(
    Policy,
    destination=TEXT,
    trust_domain=TEXT,
    intentions=st.lists(INTENTIONS, max_size=4).map(tuple),
    default_allow=st.sampled_from((True, False, None)),
    version=st.integers(0, 2**63),
    http=st.booleans(),
    normalization=st.none()
    | st.builds(
        Normalization, st.booleans(), st.booleans(), st.sampled_from(EscapedSlashes), st.sampled_from(Underscores)
    ),
    providers=st.none()
    | st.builds(TokenProviders, st.lists(st.builds(TokenProvider, TEXT, TEXT, TEXT), max_size=2).map(tuple)),
    has_namespaces=st.booleans(),
)


@given(POLICIES)
def test_every_policy_comes_back(policy: Policy) -> None:
    assert decode_policy(encode_policy(policy)) == policy


def test_no_worker_is_told_how_tokens_are_checked() -> None:
    key = TokenKey("one", ("HS256",), Secret("a key that can sign"))
    provider = TokenProvider("okta", "https://okta", "keys", checks=TokenChecks((), 30, USUAL_PLACES, (key,)))
    okta = Intention("web", Action.ALLOW, 9, jwt=(JwtProvider("okta"),))
    whole = Policy("a", "b", (okta,), None, http=True, providers=TokenProviders((provider,)))
    encoded = encode_policy(whole)
    assert b"sign" not in encoded
    assert rule_sets(decode_policy(encoded)) == rule_sets(whole)
    assert rule_sets(whole)


def test_every_field_of_a_policy_travels() -> None:
    permission = Permission(True, PathRule(PathMatch.EXACT, "/"), (HeaderRule("a", HeaderMatch.PRESENT),))
    intention = Intention("web", Action.PERMISSIONS, 9, (permission,), jwt=(JwtProvider("okta"),))
    fields = json.loads(encode_policy(Policy("a", "b", (intention,), None)))
    assert fields.keys() == set(Policy.__slots__)
    (encoded,) = fields["intentions"]
    assert encoded.keys() == set(Intention.__slots__)
    assert encoded["permissions"][0].keys() == set(Permission.__slots__)
    assert encoded["permissions"][0]["headers"][0].keys() == set(HeaderRule.__slots__)
    assert encoded["jwt"][0].keys() == set(JwtProvider.__slots__)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": "1"},
        {"version": True},
        {"default_allow": 1},
        {"intentions": {}},
        {"intentions": [{}]},
        {"intentions": [1]},
        {"more": 1},
        {"destination": None},
    ],
)
def test_a_field_of_another_type_or_name_is_refused(changed: dict[str, object]) -> None:
    fields = json.loads(encode_policy(Policy("a", "b", (), None))) | changed
    with pytest.raises(PolicyCodecError):
        decode_policy(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "changed",
    [
        {"action": "maybe"},
        {"action": []},
        {"permissions": [1]},
        {"permissions": [{}]},
        {"jwt": 0},
        {"jwt": [{"name": "x", "claims": [["a"]]}]},
        {"jwt": [{"name": "x", "claims": [[["a"], "b", "c"]]}]},
        {"extra": 1},
    ],
)
def test_an_intention_that_is_not_understood_is_refused(changed: dict[str, object]) -> None:
    fields = json.loads(encode_policy(Policy("a", "b", (Intention("web", Action.ALLOW, 9),), None)))
    fields["intentions"][0] |= changed
    with pytest.raises(PolicyCodecError):
        decode_policy(json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff", b"{", b"[" * 100_000])
def test_what_is_no_policy_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyCodecError):
        decode_policy(data)
