from __future__ import annotations

import pytest

from hcc.consul.policy import Probe, configured_default, is_outdated, may_stand, probe_uri, probed_default
from hcc.mesh.identity import parse_service_uri
from hcc.mesh.intentions import Action, Intention
from hcc.mesh.permissions import JwtProvider, Permission

ALLOW_ALL = Intention("*", Action.ALLOW, 8)
DENY_ALL = Intention("*", Action.DENY, 8)
L7_ALL = Intention("*", Action.PERMISSIONS, 8, (Permission(allow=True),))
ALLOW_WEB = Intention("web", Action.ALLOW, 9)


def test_the_probe_is_a_service_of_our_trust_domain() -> None:
    caller = parse_service_uri(probe_uri("td.consul", "dc1"))
    assert (caller.trust_domain, caller.datacenter) == ("td.consul", "dc1")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_probe_tells_the_default(allowed: bool) -> None:
    assert probed_default(Probe(allowed, by_intention=False), "allow") is allowed


@pytest.mark.parametrize(("header", "expected"), [("allow", True), ("deny", False), ("", None), ("?", None)])
def test_without_a_probe_the_header_tells_or_nothing_does(header: str, expected: bool | None) -> None:
    assert probed_default(None, header) is expected


@pytest.mark.parametrize("configured", ["", "allow", "deny", "?"])
@pytest.mark.parametrize("header", ["", "allow", "deny", "?"])
def test_what_the_agent_is_configured_with_counts_and_else_the_acl_default(configured: str, header: str) -> None:
    expected = {"allow": True, "deny": False}.get(configured or header)
    assert configured_default(configured, header) is expected


@pytest.mark.parametrize(("header", "expected"), [("allow", None), ("deny", False), ("", None)])
def test_an_agent_that_does_not_say_allows_nobody(header: str, expected: bool | None) -> None:
    assert configured_default(None, header) is expected


def test_a_probe_answered_by_a_wildcard_that_is_gone_is_not_believed() -> None:
    stale = Probe(True, by_intention=True)
    assert is_outdated(stale, (ALLOW_WEB,))
    assert not is_outdated(stale, (ALLOW_ALL,))
    assert not is_outdated(Probe(False, by_intention=True), (DENY_ALL,))


@pytest.mark.parametrize("now", [DENY_ALL, L7_ALL, Intention("*", Action.ALLOW, 8, jwt=())])
def test_a_probe_answered_by_a_wildcard_that_changed_is_not_believed(now: Intention) -> None:
    assert is_outdated(Probe(True, by_intention=True), (now,))


def test_a_wildcard_from_a_peer_does_not_answer_for_us() -> None:
    assert is_outdated(Probe(True, by_intention=True), (Intention("*", Action.ALLOW, 8, peer="east"),))


WEB, NO_WEB, DB = Intention("web", Action.ALLOW, 9), Intention("web", Action.DENY, 9), Intention("db", Action.ALLOW, 9)
RULED = Intention("web", Action.PERMISSIONS, 9, (Permission(False),))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([], [WEB]),
        ([WEB], [NO_WEB]),
        ([WEB], [NO_WEB, DB]),
        ([RULED], [WEB]),
        ([RULED], [RULED, DB]),
    ],
)
def test_a_default_that_allows_may_stand_where_it_decides_about_no_more(
    before: list[Intention], now: list[Intention]
) -> None:
    assert may_stand(True, before, now)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([WEB, DB], [WEB]),
        ([WEB], [RULED]),
        ([RULED], [Intention("web", Action.PERMISSIONS, 9, ())]),
        ([NO_WEB], [Intention("web", Action.ALLOW, 9, jwt=(JwtProvider("okta"),))]),
        # Of another cluster: not the same caller.
        ([Intention("web", Action.DENY, 9, peer="east")], [WEB]),
    ],
)
def test_a_default_that_allows_may_not_stand_where_it_decides_about_more(
    before: list[Intention], now: list[Intention]
) -> None:
    assert not may_stand(True, before, now)
    assert may_stand(False, before, now)
    assert not may_stand(None, before, now)
