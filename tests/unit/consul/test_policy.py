from __future__ import annotations

import pytest

from hcc.consul.policy import Probe, default_allow, is_outdated, probe_uri
from hcc.mesh.identity import parse_service_uri
from hcc.mesh.intentions import Action, Intention
from hcc.mesh.permissions import Permission

ALLOW_ALL = Intention("*", Action.ALLOW, 8)
DENY_ALL = Intention("*", Action.DENY, 8)
L7_ALL = Intention("*", Action.PERMISSIONS, 8, (Permission(allow=True),))
ALLOW_WEB = Intention("web", Action.ALLOW, 9)


def test_the_probe_is_a_service_of_our_trust_domain() -> None:
    caller = parse_service_uri(probe_uri("td.consul", "dc1"))
    assert (caller.trust_domain, caller.datacenter) == ("td.consul", "dc1")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_probe_tells_the_default(allowed: bool) -> None:
    assert default_allow(Probe(allowed, by_intention=False), (ALLOW_WEB,), "allow") is allowed


@pytest.mark.parametrize(("header", "expected"), [("allow", True), ("deny", False), ("", None), ("?", None)])
def test_without_a_probe_the_header_tells_or_nothing_does(header: str, expected: bool | None) -> None:
    assert default_allow(None, (), header) is expected


def test_a_probe_answered_by_a_wildcard_that_is_gone_is_not_believed() -> None:
    stale = Probe(True, by_intention=True)
    assert is_outdated(stale, (ALLOW_WEB,))
    assert default_allow(stale, (ALLOW_WEB,), "allow") is None


@pytest.mark.parametrize("now", [DENY_ALL, L7_ALL, Intention("*", Action.ALLOW, 8, jwt=())])
def test_a_probe_answered_by_a_wildcard_that_changed_is_not_believed(now: Intention) -> None:
    assert is_outdated(Probe(True, by_intention=True), (now,))


def test_a_wildcard_from_a_peer_does_not_answer_for_us() -> None:
    assert is_outdated(Probe(True, by_intention=True), (Intention("*", Action.ALLOW, 8, peer="east"),))


def test_an_allowing_wildcard_makes_no_default_that_the_header_denies() -> None:
    probe = Probe(True, by_intention=True)
    assert default_allow(probe, (ALLOW_ALL,), "allow") is True
    assert default_allow(probe, (ALLOW_ALL,), "deny") is False


def test_a_denying_wildcard_makes_a_denying_default() -> None:
    assert default_allow(Probe(False, by_intention=True), (DENY_ALL,), "allow") is False
