from __future__ import annotations

from typing import Any

import pytest

from hcc.consul.answers import Application
from hcc.consul.decode import answer, application, intentions, leaf, probe, roots
from hcc.consul.errors import ConsulAnswerError
from hcc.consul.keys import IntentionsWatch, ServiceWatch
from hcc.consul.policy import Probe
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy, decide, verdict_of
from hcc.mesh.permissions import JwtProvider, PathMatch, PathRule, Permission
from hcc.mesh.request import Request
from hcc.mesh.snapshot import Root, Roots

LEAF = {
    "SerialNumber": "09",
    "CertPEM": "CERT",
    "PrivateKeyPEM": "KEY",
    "Service": "web",
    "ServiceURI": "spiffe://td/ns/default/dc/dc1/svc/web",
    "ValidAfter": "a",
    "ValidBefore": "b",
}


def match(**fields: Any) -> tuple[Intention, ...]:
    return intentions({"web": [{"SourceName": "client", "Precedence": 9} | fields]})


def test_roots_keep_their_order_and_the_old_ones() -> None:
    body = {
        "TrustDomain": "td.consul",
        "Roots": [
            {"ID": "a", "RootCert": "A", "Active": False},
            {"ID": "b", "RootCert": "B", "Active": True},
        ],
    }
    assert roots(body) == Roots("td.consul", (Root("a", "A"), Root("b", "B")))


@pytest.mark.parametrize("listed", [None, [], [{"ID": "a"}], [{"ID": "a", "RootCert": 1}]])
def test_roots_without_a_certificate_are_an_error(listed: object) -> None:
    with pytest.raises(ConsulAnswerError):
        roots({"TrustDomain": "td", "Roots": listed})


def test_a_leaf_hides_its_key() -> None:
    found = leaf(LEAF)
    assert found.key_pem.reveal() == "KEY"
    assert "KEY" not in repr(found)


@pytest.mark.parametrize("name", ["CertPEM", "PrivateKeyPEM", "Service", "ServiceURI"])
def test_a_leaf_without_what_it_is_for_is_an_error(name: str) -> None:
    with pytest.raises(ConsulAnswerError, match=name):
        leaf({key: value for key, value in LEAF.items() if key != name})


def test_a_key_of_another_type_is_not_shown() -> None:
    with pytest.raises(ConsulAnswerError) as caught:
        leaf(LEAF | {"PrivateKeyPEM": ["half a key"]})
    assert "half" not in str(caught.value)


def test_no_intentions_are_null() -> None:
    assert intentions({"web": None}) == ()


def test_intentions_keep_their_order() -> None:
    body = [
        {"SourceName": "client", "Action": "allow", "Precedence": 9, "SourceNS": "default"},
        {"SourceName": "*", "Action": "deny", "Precedence": 8},
    ]
    assert intentions({"web": body}) == (Intention("client", Action.ALLOW, 9), Intention("*", Action.DENY, 8))


def test_permissions_keep_their_order() -> None:
    (found,) = match(Permissions=[{"HTTP": {"PathExact": "/b"}, "Action": "allow"}, {"Action": "deny"}])
    assert found.action is Action.PERMISSIONS
    assert found.permissions == (Permission(True, PathRule(PathMatch.EXACT, "/b")), Permission(allow=False))


def test_a_peer_and_a_token_are_kept() -> None:
    assert match(SourcePeer="east", Action="allow")[0].peer == "east"
    assert match(JWT={"Providers": [{"Name": "x"}]}, Action="allow")[0].jwt == (JwtProvider("x"),)
    assert match(JWT={}, Action="allow")[0].jwt == ()
    assert match(JWT=None, Action="allow")[0].jwt is None


@pytest.mark.parametrize("action", ["", "ALLOW?", None])
def test_an_unknown_action_denies(action: str | None) -> None:
    assert match(Action=action)[0].action is Action.DENY


def test_a_sameness_group_lets_nobody_of_ours_in_and_keeps_out_whom_it_denies() -> None:
    assert match(SourceSamenessGroup="g", Action="allow")[0].peer == "sameness group g"
    assert match(SourceSamenessGroup="g", Action="deny")[0].peer == ""


@pytest.mark.parametrize(
    "body",
    [
        {"Action": "deny"},
        {"Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/admin"}}, {"Action": "allow"}]},
        {"Permissions": [{"Action": "allow", "HTTP": {"PathExact": "/"}}]},
        {"Action": "allow", "JWT": {"Providers": [{"Name": "okta"}]}},
    ],
)
@pytest.mark.parametrize("http", [True, False])
def test_what_a_sameness_group_is_not_just_allowed_is_denied_to_ours(body: dict[str, Any], http: bool) -> None:
    (grouped,) = match(SourceName="web", SourceSamenessGroup="g", SourcePartition="default", Precedence=9, **body)
    everyone = Intention("*", Action.ALLOW, 8, source_partition="*")
    rules = Policy("db", "td", (grouped, everyone), default_allow=True, http=http)
    for partition in ("default", "team"):
        caller = ServiceIdentity("td", "web", "dc1", partition=partition)
        verdict = decide(rules, caller, Request("GET", "/"))
        assert not verdict.allowed
        assert verdict.intention == grouped
        assert verdict_of(rules, caller).rules is None
    assert decide(rules, ServiceIdentity("td", "other", "dc1"), Request("GET", "/")).allowed


def test_why_permissions_for_a_sameness_group_deny_is_told() -> None:
    (grouped,) = match(SourceSamenessGroup="g", Permissions=[{"Action": "allow"}])
    assert "sameness group 'g'" in grouped.permissions[0].fault


@pytest.mark.parametrize(
    "body", [None, [], {}, {"web": [], "db": []}, {"web": {}}, {"web": [{}]}, {"web": [{"SourceName": 3}]}]
)
def test_intentions_of_another_shape_are_an_error(body: object) -> None:
    with pytest.raises(ConsulAnswerError):
        intentions(body)


@pytest.mark.parametrize(
    ("reason", "by_intention"),
    [
        ("Default behavior configured by ACLs", False),
        ("ACLs disabled, access is allowed by default", False),
        ("Matched L4 intention: default/* => default/web (Precedence: 8, Action: DENY)", True),
        ("Matched intention: ALLOW default/* => default/web", True),
        ("", True),
    ],
)
def test_the_reason_of_authorize_tells_an_intention_from_the_default(reason: str, by_intention: bool) -> None:
    assert probe({"Authorized": True, "Reason": reason}) == Probe(True, by_intention)


def test_an_authorize_answer_without_a_verdict_is_an_error() -> None:
    with pytest.raises(ConsulAnswerError):
        probe({})


def test_the_application_is_where_it_registered() -> None:
    body = {"ID": "web-1", "Service": "web", "Address": "", "Port": 8181}
    assert answer(ServiceWatch("web-1"), body) == application(body) == Application("web-1", "web", "", 8181)


def test_intentions_are_never_decoded_without_their_default() -> None:
    with pytest.raises(TypeError):
        answer(IntentionsWatch("web", "td", "dc1"), {"web": None})
