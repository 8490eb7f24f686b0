from __future__ import annotations

from dataclasses import replace

import pytest

from hcc.actors.basis import Basis
from hcc.haproxy.desired import desired
from hcc.haproxy.desired_terms import Certificates
from hcc.mesh.peer_book import UNVETTED, Admission, Vetted, peer_of
from hcc.mesh.snapshot import Snapshot
from hcc.settings import Enforcement
from tests.builders import certificates, endpoint, options, proxy, service_uri, snapshot, upstream_state
from tests.haproxy_examples import examples

ENDPOINT = endpoint(identity=service_uri("web"))


def without_policy(version: int = 2) -> Snapshot:
    return replace(snapshot(), policy=None, version=version)


@pytest.mark.parametrize(
    ("known", "lacks"),
    [
        (Basis(options(), probes=False, untouched=True), ""),
        (Basis(options(), probes=False, untouched=True, snapshot=snapshot()), "certificate"),
        (Basis(options(), probes=False, snapshot=snapshot()), ""),
        (
            Basis(options(), probes=False, untouched=True, snapshot=without_policy(), certificates=certificates()),
            "policy",
        ),
        (
            Basis(
                options(intentions=Enforcement.OFF),
                probes=False,
                untouched=True,
                snapshot=without_policy(),
                certificates=certificates(),
            ),
            "",
        ),
        (
            Basis(
                options(),
                probes=False,
                untouched=True,
                snapshot=replace(without_policy(), proxy=replace(proxy(), service_id="")),
                certificates=certificates(),
            ),
            "",
        ),
    ],
)
def test_what_a_haproxy_that_ran_before_us_must_not_be_changed_without(known: Basis, lacks: str) -> None:
    assert known.lacks == lacks
    assert known.decides is (known.snapshot is not None and not lacks)


def test_how_many_endpoints_are_unknown_is_what_is_neither_admitted_nor_failed() -> None:
    endpoints = [endpoint(f"10.0.0.{number}", identity=service_uri("web")) for number in range(1, 6)]
    here = replace(snapshot(upstream_state(endpoints=endpoints)), version=2)
    first, second, third, *_ = map(peer_of, endpoints)
    some = Admission(2, frozenset((first, second)), probing=True, failed=frozenset((third,)))
    basis = Basis(options(), probes=True, snapshot=here, admission=some)
    assert basis.unknown == 2
    assert replace(basis, admission=replace(some, probing=False)).unknown == 0
    assert replace(basis, admission=None).unknown == replace(basis, probes=False).unknown == 0


def test_where_endpoints_are_probed_nothing_is_decided_before_the_first_admission() -> None:
    known = Basis(options(), probes=True, snapshot=snapshot())
    assert not known.decides
    assert known.vetted == UNVETTED
    told = replace(known, admission=Admission(snapshot().version, frozenset(), probing=False))
    assert told.decides
    assert told.vetted == Vetted(frozenset())
    later = replace(told, snapshot=replace(snapshot(), version=snapshot().version + 1))
    assert later.vetted.probing


def test_who_was_admitted_does_not_count_where_nobody_is_probed() -> None:
    peer = peer_of(ENDPOINT)
    admission = Admission(1, frozenset((peer,)), probing=False, silent=(peer,))
    assert Basis(options(), probes=True, admission=admission).vetted == Vetted(frozenset((peer,)), (peer,))
    failed = peer._replace(port=1)
    both = replace(admission, failed=frozenset((failed,)))
    assert Basis(options(), probes=True, admission=both).vetted.silent == (peer, failed)
    assert Basis(options(), probes=False, admission=admission).vetted == UNVETTED


def test_a_snapshot_that_would_close_the_public_listener_is_held_until_it_is_released_or_another_comes() -> None:
    serving = Basis(options(), probes=False, snapshot=snapshot())
    held = serving.with_snapshot(without_policy(), serves=True)
    assert (held.snapshot, held.held) == (serving.snapshot, without_policy())
    assert (held.released.snapshot, held.released.held) == (without_policy(), None)
    whole = replace(snapshot(), version=3)
    assert held.with_snapshot(whole, serves=True) == replace(serving, snapshot=whole)
    assert serving.with_snapshot(without_policy(), serves=False).snapshot == without_policy()
    assert serving.released == serving


def test_it_is_complete_with_every_answer_and_a_certificate() -> None:
    known = Basis(options(), probes=False, snapshot=snapshot(), certificates=certificates())
    assert known.complete
    assert not replace(known, certificates=Certificates()).complete
    assert not replace(known, snapshot=without_policy()).complete
    assert not replace(known, snapshot=None).complete


@pytest.mark.parametrize("name", examples())
def test_what_a_policy_looks_at_is_worked_out_once_and_is_what_its_snapshot_needs(name: str) -> None:
    asked = replace(examples()[name], version=1)
    nothing = Basis(options(), probes=False, certificates=certificates())
    known = nothing.with_snapshot(asked, serves=True)
    assert known.wanted(asked, ()) == desired(asked, options(), certificates())

    news = known.with_snapshot(replace(asked, version=2), serves=True)
    assert news.sight is known.sight
    assert news.with_snapshot(without_policy(3), serves=True).sight is known.sight
    other = news.with_snapshot(without_policy(3), serves=True).released
    assert other.sight == nothing.sight
    assert other.with_snapshot(asked, serves=True).wanted(asked, ()) == desired(asked, options(), certificates())
