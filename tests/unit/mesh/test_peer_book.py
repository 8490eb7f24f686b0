from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.peer_book import (
    AGAIN_PER_S,
    AGAIN_S,
    DISTRUST_S,
    DOUBT_S,
    FOR_FIRST,
    KEPT_S,
    MAX_RETRY_S,
    SILENT_AGAIN_S,
    SILENT_S,
    SUSPECT_S,
    Judgement,
    Kept,
    NoAnswer,
    Outcome,
    Peer,
    PeerBook,
    Seen,
    Standing,
    Unverified,
)
from hcc.mesh.peer_certificate import PeerCertificate
from hcc.mesh.snapshot import Endpoint, Health, Snapshot, UpstreamState
from tests.builders import endpoint, service_uri, snapshot, upstream, upstream_state

WEB, EVIL = service_uri("web"), service_uri("evil")
SILENT = NoAnswer("does not finish the handshake within 3 s")
UNASKED = NoAnswer("Too many open files", asked=False)
MIDDLE = 0.5


def seen(*uris: str, digest: str = "A", expires_s: int = 1000) -> Seen:
    return Seen(PeerCertificate(digest, uris, expires_s))


def here(*endpoints: Endpoint, version: int = 1) -> Snapshot:
    return snapshot(upstream_state(endpoints=endpoints), version=version)


def peer(address: str = "10.0.0.1", identity: str = WEB) -> Peer:
    return Peer(address, 21000, identity)


def book_of(*endpoints: Endpoint, now_s: float = 0.0) -> PeerBook:
    book = PeerBook()
    book.follow(here(*endpoints), now_s, MIDDLE)
    return book


def _taken(book: PeerBook, now_s: float) -> tuple[Peer, Outcome]:
    """Whoever is due, who must be one, and that it does not answer."""
    (due,) = book.take_due(now_s, 64)
    return due, SILENT


def probed(book: PeerBook, outcome: Outcome, now_s: float = 0.0, who: Peer | None = None) -> Judgement:
    """One probe of whoever is due, which must be one."""
    (due,) = book.take_due(now_s, 64)
    assert who is None or due == who
    judgement = book.note(due, outcome, now_s, MIDDLE)
    assert judgement is not None
    return judgement


def test_nobody_is_admitted_before_a_probe_has_seen_who_it_is() -> None:
    book = book_of(endpoint())

    assert book.admission().admitted == frozenset()
    assert book.admission().probing
    assert book.waiting() == 1


def test_the_wanted_uri_alone_admits() -> None:
    book = book_of(endpoint())

    judgement = probed(book, seen(WEB))

    assert judgement == Judgement(peer(), Standing.UNKNOWN, Standing.ADMITTED, seen=True)
    assert book.admission().admitted == {peer()}
    assert not book.admission().probing
    assert book.leaves() == {"A": WEB}


@pytest.mark.parametrize("uris", [(EVIL,), (WEB, EVIL), (WEB, WEB), (EVIL, WEB), (), (WEB.upper(),), (WEB + "x",)])
def test_any_other_list_of_uris_refuses(uris: tuple[str, ...]) -> None:
    book = book_of(endpoint())

    judgement = probed(book, seen(*uris))

    assert judgement.now is Standing.REFUSED
    assert judgement.impostor
    assert WEB in judgement.reason
    assert all(uri in judgement.reason for uri in uris)
    assert book.admission().admitted == frozenset()
    assert book.refused() == ((peer(), judgement.reason),)
    assert book.impostors() == 1
    assert book.leaves() == {}


def test_a_certificate_that_is_not_verified_refuses_but_is_nobodys() -> None:
    book = book_of(endpoint())

    judgement = probed(book, Unverified("self-signed certificate"))

    assert (judgement.now, judgement.impostor, book.impostors()) == (Standing.REFUSED, False, 0)
    assert "self-signed" in judgement.reason


@pytest.mark.parametrize("outcome", [SILENT, Unverified("self-signed certificate"), seen(EVIL)])
def test_who_would_get_traffic_and_is_not_admitted_has_failed_once_a_probe_has_ended(outcome: Outcome) -> None:
    book = book_of(endpoint())
    assert book.admission().failed == frozenset()

    probed(book, outcome)

    assert book.admission().failed == {peer()}
    assert book.admission().silent == ()
    book.follow(here(endpoint(health=Health.CRITICAL), version=2), 1.0, MIDDLE)
    assert book.admission().failed == frozenset()
    book.follow(here(endpoint(), version=3), 2.0, MIDDLE)
    assert book.admission().failed == {peer()}
    probed(book, seen(WEB), now_s=2.0)
    assert book.admission().failed == frozenset()


def test_an_admitted_endpoint_that_does_not_answer_stays_admitted() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))

    judgement = probed(book, SILENT, now_s=AGAIN_S)

    assert not judgement.news
    assert book.admission().admitted == {peer()}


def test_one_that_haproxy_and_probes_do_not_reach_is_silent_until_it_answers() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    book.doubt([peer()], 10.0)
    book.doubt([peer()], 10.1)
    assert not probed(book, SILENT, now_s=10.0).silent

    fell = book.note(*_taken(book, 10.5), 10.0 + SILENT_S, MIDDLE)

    assert fell is not None
    assert (fell.news, fell.was_silent, fell.silent, fell.now) == (True, False, True, Standing.ADMITTED)
    assert book.admission().silent == (peer(),)
    assert book.admission().admitted == {peer()}
    assert book.silent() == ((peer(), SILENT.reason),)
    back = probed(book, seen(WEB), now_s=30.0)
    assert (back.news, back.was_silent, back.silent) == (True, True, False)
    assert book.admission().silent == ()


def a_thousand_admitted() -> tuple[list[Endpoint], PeerBook]:
    """Endpoints, each of which was probed at 0 s, and the book of them."""
    endpoints = [endpoint(f"10.0.{number // 250}.{number % 250}") for number in range(1000)]
    book = book_of(*endpoints)
    while due := book.take_due(0.0, 64):
        for one in due:
            book.note(one, seen(WEB), 0.0, MIDDLE)
    return endpoints, book


def test_doubts_about_many_cause_no_more_probes_than_the_bound() -> None:
    endpoints, book = a_thousand_admitted()
    asked = 0
    for second in range(1, 101):
        book.doubt([peer(one.address) for one in endpoints], float(second))
        for one in book.take_due(float(second), 10_000):
            asked += 1
            book.note(one, seen(WEB), float(second), MIDDLE)

    assert asked <= 100 * AGAIN_PER_S


def test_a_doubt_about_one_of_many_waits_no_longer_than_about_one_of_few() -> None:
    endpoints, book = a_thousand_admitted()

    few = [peer(one.address) for one in endpoints[:3]]
    book.doubt(few, DOUBT_S)

    assert set(book.take_due(DOUBT_S + 3 / AGAIN_PER_S, 64)) == set(few)


def test_one_that_haproxy_reaches_is_not_silent_however_long_probes_fail() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    for turn in range(1, 10):
        assert not probed(book, SILENT, now_s=turn * 2 * AGAIN_S).silent

    book.doubt([peer()], 20 * AGAIN_S)

    assert probed(book, SILENT, now_s=20 * AGAIN_S).silent


def test_one_that_is_back_in_time_was_not_silent() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    book.doubt([peer()], 10.0)
    probed(book, SILENT, now_s=10.0)
    probed(book, seen(WEB), now_s=12.0)

    # The next time counts from its own beginning, and wants a doubt of its own.
    assert not probed(book, SILENT, now_s=12.0 + 2 * AGAIN_S).silent
    assert not probed(book, SILENT, now_s=12.0 + 4 * AGAIN_S).silent


def test_who_fell_silent_first_comes_first_and_all_are_asked_again_soon() -> None:
    two = peer("10.0.0.2")
    book = book_of(endpoint(), endpoint("10.0.0.2"))
    for due in book.take_due(0.0, 64):
        book.note(due, seen(WEB), 0.0, MIDDLE)
    now_s = 0.0
    for doubted, turns in ((two, 3), (peer(), 30)):
        book.doubt([doubted], now_s)
        for _ in range(turns):
            now_s += SILENT_AGAIN_S * 1.25
            for due in book.take_due(now_s, 64):
                book.note(due, SILENT, now_s, MIDDLE)

    assert book.admission().silent == (two, peer())
    next_s = book.next_due_s()
    assert next_s is not None
    assert next_s <= now_s + SILENT_AGAIN_S * 1.25


def test_one_that_consul_calls_critical_is_not_told_as_silent_until_it_is_to_serve_again() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    book.doubt([peer()], 10.0)
    probed(book, SILENT, now_s=10.0)
    assert probed(book, SILENT, now_s=20.0).silent

    book.follow(here(endpoint(health=Health.CRITICAL), version=2), 30.0, MIDDLE)
    assert (book.admission().silent, book.silent()) == ((), ())

    book.follow(here(endpoint(), version=3), 3000.0, MIDDLE)
    assert book.admission().silent == (peer(),)
    assert probed(book, seen(WEB), now_s=3000.0).was_silent
    assert book.admission().silent == ()


def test_one_that_is_refused_is_not_silent_as_well() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    book.doubt([peer(), peer("10.9.9.9")], 10.0)
    probed(book, seen(EVIL), now_s=10.0)
    book.doubt([peer()], 20.0)

    assert not probed(book, SILENT, now_s=20.0 + SILENT_S).silent
    assert not probed(book, SILENT, now_s=20.0 + 3 * SILENT_S).silent
    assert book.admission().silent == ()


def test_an_admitted_endpoint_that_is_somebody_else_now_is_out_until_it_is_itself_again() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))

    assert probed(book, seen(EVIL), now_s=AGAIN_S).before is Standing.ADMITTED
    assert book.admission().admitted == frozenset()
    probed(book, SILENT, now_s=AGAIN_S + 10)
    assert book.admission().admitted == frozenset()
    assert EVIL in book.refused()[0][1]
    probed(book, seen(WEB), now_s=AGAIN_S + 50)
    assert book.admission().admitted == {peer()}
    assert book.refused() == ()


def test_who_does_not_answer_is_asked_again_ever_more_seldom() -> None:
    book = book_of(endpoint())
    now_s, waits = 0.0, []
    for _ in range(12):
        probed(book, SILENT, now_s=now_s)
        due_s = book.next_due_s()
        assert due_s is not None
        waits.append(due_s - now_s)
        now_s = due_s
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] == MAX_RETRY_S


def test_who_is_admitted_is_looked_at_again_on_a_jittered_schedule() -> None:
    dues = set()
    for jitter in (0.0, 0.3, 0.99):
        book = book_of(endpoint())
        book.take_due(0.0, 64)
        book.note(peer(), seen(WEB), 0.0, jitter)
        dues.add(book.next_due_s())
    assert len(dues) == 3
    assert all(due is not None and AGAIN_S * 0.7 < due < AGAIN_S * 1.3 for due in dues)


def test_an_endpoint_that_consul_says_otherwise_about_is_probed_and_meanwhile_stays_admitted() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    assert book.take_due(1.0, 64) == ()

    book.follow(here(endpoint(health=Health.WARNING), version=2), 1.0, MIDDLE)

    assert book.admission().admitted == {peer()}
    assert book.admission().version == 2
    assert book.take_due(1.0, 64) == (peer(),)


def test_who_may_not_get_traffic_is_not_probed_until_it_may() -> None:
    book = book_of(endpoint(health=Health.CRITICAL), endpoint("10.0.0.2", weight=0))
    assert book.take_due(0.0, 64) == ()
    assert not book.admission().probing

    book.follow(here(endpoint(), endpoint("10.0.0.2", weight=0), version=2), 1.0, MIDDLE)

    assert book.take_due(1.0, 64) == (peer(),)


def test_who_leaves_is_forgotten_but_its_leaf_is_known_as_it_may_still_answer() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))

    book.follow(here(version=2), 1.0, MIDDLE)
    book.follow(here(endpoint(), version=3), 2.0, MIDDLE)

    assert book.admission().admitted == frozenset()
    assert book.leaves() == {"A": WEB}


def test_an_outcome_that_comes_after_the_endpoint_left_or_came_back_changes_nothing() -> None:
    book = book_of(endpoint())
    book.take_due(0.0, 64)
    book.follow(here(version=2), 1.0, MIDDLE)
    assert book.note(peer(), seen(WEB), 1.0, MIDDLE) is None
    book.follow(here(endpoint(), version=3), 2.0, MIDDLE)

    assert book.note(peer(), seen(WEB), 2.0, MIDDLE) is None

    assert book.admission().admitted == frozenset()


def test_a_change_during_a_probe_is_followed_by_another_one() -> None:
    book = book_of(endpoint())
    book.take_due(0.0, 64)
    book.follow(here(endpoint(weight=5), version=2), 1.0, MIDDLE)
    assert book.take_due(1.0, 64) == ()

    book.note(peer(), seen(WEB), 1.5, MIDDLE)

    assert book.take_due(1.5, 64) == (peer(),)


def test_first_probes_go_ahead_and_always_find_room() -> None:
    silent = [endpoint(f"10.0.1.{number}") for number in range(100)]
    book = book_of(*silent)
    for _ in range(2):
        for one in book.take_due(0.0, 64):
            book.note(one, SILENT, 0.0, MIDDLE)
    under_way = len(book.take_due(60.0, 64))
    assert under_way == 64 - FOR_FIRST

    book.follow(here(*silent, endpoint("10.0.2.1"), version=2), 60.0, MIDDLE)

    assert book.take_due(60.0, 64 - under_way) == (peer("10.0.2.1"),)


def test_ten_thousand_endpoints_are_looked_at_no_faster_than_the_bound() -> None:
    many = [endpoint(f"10.{a}.{b}.1") for a in range(40) for b in range(250)]
    book = book_of(*many)
    while due := book.take_due(0.0, 64):
        for number, one in enumerate(due):
            book.note(one, seen(WEB, digest=str(number)), 0.0, number / 64)
    assert len(book.admission().admitted) == 10_000
    assert len(book.take_due(len(many) / AGAIN_PER_S * 0.7, 10_000)) == 0


def test_after_a_change_of_the_cas_those_who_serve_are_probed_spread_out_and_the_others_at_once() -> None:
    book = book_of(endpoint(), endpoint("10.0.0.2"), endpoint("10.0.0.3"))
    for one in book.take_due(0.0, 64):
        book.note(one, SILENT if one.address == "10.0.0.3" else seen(WEB), 0.0, MIDDLE)

    book.distrust(10.0, 0.2)

    assert book.take_due(10.0, 64) == (peer("10.0.0.3"),)
    assert len(book.admission().admitted) == 2
    assert set(book.take_due(10.0 + DISTRUST_S, 64)) == {peer(), peer("10.0.0.2")}


def test_suspects_are_probed_at_once_but_not_again_and_again() -> None:
    book = book_of(endpoint(), endpoint("10.0.0.9"))
    for one in book.take_due(0.0, 64):
        book.note(one, seen(WEB), 0.0, MIDDLE)

    book.suspect([peer(), peer("10.9.9.9")], SUSPECT_S / 2)

    assert book.take_due(SUSPECT_S / 2, 64) == ()
    assert book.take_due(SUSPECT_S, 64) == (peer(),)
    book.note(peer(), seen(WEB), 10.0, MIDDLE)
    book.suspect([peer()], 10.0)
    assert book.take_due(10.0, 64) == (peer(),)


def test_one_whose_answers_were_cut_and_that_answers_no_probe_is_refused_until_it_is_seen_to_be_itself() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    book.suspect([peer()], 10.0)

    assert probed(book, SILENT, now_s=10.0).now is Standing.ADMITTED
    # Its answers go on to be cut.
    book.suspect([peer()], 11.0)
    assert book.take_due(10.0 + SUSPECT_S * 0.9, 64) == ()
    judgement = probed(book, SILENT, now_s=10.0 + SUSPECT_S)

    assert (judgement.before, judgement.now, judgement.impostor) == (Standing.ADMITTED, Standing.REFUSED, True)
    assert judgement.reason == f"its answers were cut, and it answers no probe: {SILENT.reason}"
    assert (book.admission().admitted, book.impostors()) == (frozenset(), 1)
    assert probed(book, SILENT, now_s=60.0).now is Standing.REFUSED
    assert probed(book, seen(WEB), now_s=120.0).now is Standing.ADMITTED
    # That is forgiven; not to answer is no lie by itself.
    assert probed(book, SILENT, now_s=120.0 + 2 * AGAIN_S).now is Standing.ADMITTED


def test_one_that_restarts_just_after_an_answer_of_it_was_cut_is_not_refused() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    for began_s in (10.0, 20.0):
        book.suspect([peer()], began_s)
        assert probed(book, SILENT, now_s=began_s).now is Standing.ADMITTED
        assert probed(book, seen(WEB), now_s=began_s + SUSPECT_S).now is Standing.ADMITTED
    assert book.take_due(20.0 + AGAIN_S / 2, 64) == ()


def test_a_suspect_that_could_not_be_asked_is_asked_again_soon_and_not_refused() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    book.suspect([peer()], 10.0)
    for turn in range(10):
        judgement = probed(book, UNASKED, now_s=10.0 + turn * SUSPECT_S)
        assert (judgement.now, judgement.reason) == (Standing.ADMITTED, UNASKED.reason)

    assert probed(book, SILENT, now_s=50.0).now is Standing.ADMITTED
    assert probed(book, UNASKED, now_s=52.0).now is Standing.ADMITTED
    assert probed(book, SILENT, now_s=54.0).now is Standing.REFUSED


def test_one_that_is_refused_for_that_is_not_silent_any_more() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    book.doubt([peer()], 10.0)
    probed(book, SILENT, now_s=10.0)
    assert probed(book, SILENT, now_s=20.0).silent

    book.suspect([peer()], 20.5)
    assert probed(book, SILENT, now_s=30.0).silent

    assert not probed(book, SILENT, now_s=40.0).silent
    assert (book.admission().silent, book.silent()) == ((), ())


def test_suspicions_of_many_cause_no_more_probes_than_the_bound_and_of_one_no_wait() -> None:
    endpoints, book = a_thousand_admitted()
    asked = 0
    for second in range(1, 101):
        book.suspect([peer(one.address) for one in endpoints], float(second))
        for one in book.take_due(float(second), 10_000):
            asked += 1
            book.note(one, seen(WEB), float(second), MIDDLE)
    assert asked <= 100 * AGAIN_PER_S

    _, book = a_thousand_admitted()
    book.suspect([peer("10.0.0.1")], SUSPECT_S)
    assert book.take_due(SUSPECT_S, 64) == (peer("10.0.0.1"),)


def test_the_next_hcc_goes_on_with_those_admitted_and_probes_them_in_its_own_time() -> None:
    before = book_of(endpoint(), endpoint("10.0.0.2"), endpoint("10.0.0.3"))
    for one in before.take_due(0.0, 64):
        before.note(one, seen(WEB, digest=one.address), 0.0, MIDDLE)
    book = PeerBook()

    book.restore(before.kept())
    # Consul's answers come one after the other.
    book.follow(replace(here(), roots=None, upstreams=()), 0.0, MIDDLE)
    book.follow(here(endpoint(), endpoint("10.0.0.2"), endpoint("10.0.0.4"), version=2), 0.0, MIDDLE)

    assert book.admission().admitted == {peer(), peer("10.0.0.2")}
    assert book.take_due(0.0, 64) == (peer("10.0.0.4"),)
    assert set(book.take_due(AGAIN_S, 64)) == {peer(), peer("10.0.0.2")}
    assert book.leaves() == before.leaves()


def test_what_was_kept_does_not_admit_who_comes_later_or_is_to_be_somebody_else() -> None:
    before = book_of(endpoint())
    probed(before, seen(WEB))
    book = PeerBook()
    book.restore(before.kept())

    book.follow(here(replace(endpoint(), identity=EVIL)), 0.0, MIDDLE)
    book.follow(here(endpoint(), version=2), 0.0, MIDDLE)

    assert book.admission().admitted == frozenset()


def test_what_was_kept_stays_kept_until_consul_told_all() -> None:
    before = book_of(endpoint())
    probed(before, seen(WEB))
    book = PeerBook()
    book.restore(before.kept())
    book.follow(replace(here(), roots=None, upstreams=()), 0.0, MIDDLE)

    assert book.kept().admitted == (peer(),)


# Of these Consul tells nothing: who has the chain is not known, or the target's datacenter is silent.
CHAINLESS = UpstreamState(upstream("gone"), None, ())
FAR = service_uri("db")


def far(*endpoints: Endpoint, known: bool = True) -> UpstreamState:
    state = upstream_state(upstream("db"), endpoints)
    return replace(state, targets=tuple(replace(one, known=known) for one in state.targets))


def restored(*kept: Peer) -> PeerBook:
    book = PeerBook()
    book.restore(Kept(kept))
    return book


def test_what_was_kept_ends_for_each_target_that_consul_tells_of_whatever_else_it_does_not() -> None:
    book = restored(peer(), peer("10.0.0.2"), peer("10.0.0.9", FAR))
    near = upstream_state(endpoints=(endpoint(),))
    book.follow(snapshot(near, far(known=False), CHAINLESS, version=1), 0.0, MIDDLE)
    assert set(book.kept().admitted) == {peer(), peer("10.0.0.9", FAR)}

    # An address that was gone comes back, as whose ever.
    near = upstream_state(endpoints=(endpoint(), endpoint("10.0.0.2")))
    book.follow(snapshot(near, far(known=False), CHAINLESS, version=2), 1.0, MIDDLE)
    assert book.admission().admitted == {peer()}
    assert book.take_due(1.0, 64) == (peer("10.0.0.2"),)


def test_who_was_kept_and_is_refused_or_gone_is_kept_no_more() -> None:
    book = restored(peer(), peer("10.0.0.2"))
    both = upstream_state(endpoints=(endpoint(), endpoint("10.0.0.2")))
    book.follow(snapshot(both, CHAINLESS, version=1), 0.0, MIDDLE)
    assert len(book.take_due(AGAIN_S, 64)) == 2
    book.note(peer(), seen(EVIL), AGAIN_S, MIDDLE)
    book.follow(snapshot(upstream_state(endpoints=(endpoint(),)), CHAINLESS, version=2), AGAIN_S, MIDDLE)
    assert book.kept().admitted == ()


def test_a_silent_datacenter_is_waited_for_and_loses_no_server_when_it_tells() -> None:
    book = restored(peer("10.0.0.9", FAR))
    for now_s in (0.0, KEPT_S, 1000 * KEPT_S):
        book.follow(snapshot(far(known=False), CHAINLESS, version=1), now_s, MIDDLE)
        assert book.kept().admitted == (peer("10.0.0.9", FAR),)
    served = replace(endpoint("10.0.0.9"), identity=FAR)
    book.follow(snapshot(far(served), CHAINLESS, version=2), 1000 * KEPT_S, MIDDLE)
    assert book.admission().admitted == {peer("10.0.0.9", FAR)}


@pytest.mark.parametrize(("later_s", "counts"), [(KEPT_S - 1.0, True), (KEPT_S, False)])
def test_of_upstreams_whose_instances_nobody_can_name_it_counts_for_minutes(later_s: float, *, counts: bool) -> None:
    book = restored(peer("10.0.0.9", FAR))
    book.follow(snapshot(CHAINLESS, version=1), 5.0, MIDDLE)
    served = replace(endpoint("10.0.0.9"), identity=FAR)
    book.follow(snapshot(far(served), CHAINLESS, version=2), 5.0 + later_s, MIDDLE)
    assert book.admission().admitted == (frozenset({peer("10.0.0.9", FAR)}) if counts else frozenset())


def test_leaves_that_were_kept_are_known_and_no_news() -> None:
    before = book_of(endpoint())
    probed(before, seen(WEB))
    book = PeerBook()
    book.restore(before.kept())

    assert book.leaves() == before.leaves() != {}
    assert book.take_news() == {}


def test_probes_that_were_under_way_when_the_actor_died_are_due_again() -> None:
    book = book_of(endpoint())
    book.take_due(0.0, 64)

    book.forget_probes(1.0)

    assert book.take_due(1.0, 64) == (peer(),)


def test_leaves_are_bounded_expire_and_are_told_once() -> None:
    book = PeerBook(most_leaves=2)
    book.follow(here(endpoint()), 0.0, MIDDLE)
    now_s = 0.0
    for number, expires_s in enumerate((5, 5000, 50)):
        probed(book, seen(WEB, digest=f"D{number}", expires_s=expires_s), now_s=now_s)
        now_s += 2 * AGAIN_S
    assert book.leaves() == {"D1": WEB, "D2": WEB}
    assert book.take_news() == {"D0": None, "D1": WEB, "D2": WEB}

    assert book.forget_expired(100.0)

    assert book.take_news() == {"D2": None}
    assert not book.forget_expired(100.0)


def test_of_two_upstreams_that_name_an_endpoint_the_one_that_may_use_it_has_it_probed() -> None:
    web, api = upstream("web", 1), upstream("api", 2)
    for states in ((Health.CRITICAL, Health.PASSING), (Health.PASSING, Health.CRITICAL)):
        pairs = zip((web, api), states, strict=True)
        both = snapshot(*(upstream_state(one, (endpoint(health=health),)) for one, health in pairs))
        book = PeerBook()
        book.follow(both, 0.0, MIDDLE)
        assert book.take_due(0.0, 64) == (peer(),)


def test_who_it_should_be_must_be_known_before_an_endpoint_is_probed() -> None:
    book = book_of(replace(endpoint(), identity=""))

    assert len(book) == 0
    assert book.take_due(0.0, 64) == ()


def test_an_impostor_whose_certificate_is_not_verified_later_is_none_any_more() -> None:
    book = book_of(endpoint())
    probed(book, seen(EVIL))
    assert book.impostors() == 1

    judgement = probed(book, Unverified("expired"), now_s=AGAIN_S)

    assert (judgement.now, judgement.impostor, book.impostors()) == (Standing.REFUSED, False, 0)


def test_who_serves_and_does_not_answer_is_asked_again_ever_more_seldom_up_to_the_usual_interval() -> None:
    book = book_of(endpoint())
    probed(book, seen(WEB))
    now_s, waits = AGAIN_S, []
    for _ in range(16):
        probed(book, SILENT, now_s=now_s)
        due_s = book.next_due_s()
        assert due_s is not None
        waits.append(due_s - now_s)
        now_s = due_s
    assert waits == sorted(waits)
    assert waits[0] < 1
    assert waits[-1] == AGAIN_S


def test_looking_at_those_who_serve_leaves_room_for_first_probes_too() -> None:
    many = [endpoint(f"10.0.1.{number}") for number in range(100)]
    book = book_of(*many)
    for _ in range(2):
        for one in book.take_due(0.0, 64):
            book.note(one, seen(WEB, digest=one.address), 0.0, MIDDLE)

    assert len(book.take_due(AGAIN_S, 64)) == 64 - FOR_FIRST


def test_a_suspicion_puts_no_probe_off_and_the_one_that_was_planned_before_is_not_made_as_well() -> None:
    silent = book_of(endpoint())
    probed(silent, SILENT)
    planned_s = silent.next_due_s()
    assert planned_s is not None
    assert planned_s < SUSPECT_S
    silent.suspect([peer()], 0.0)
    assert silent.take_due(planned_s, 64) == (peer(),)

    book = book_of(endpoint())
    probed(book, seen(WEB))
    book.suspect([peer()], SUSPECT_S)
    probed(book, seen(WEB), now_s=SUSPECT_S)
    assert book.take_due(AGAIN_S + SUSPECT_S / 2, 64) == ()
    assert book.take_due(AGAIN_S + SUSPECT_S, 64) == (peer(),)


def test_what_was_kept_waits_for_the_answer_about_each_upstream() -> None:
    before = book_of(endpoint())
    probed(before, seen(WEB))
    book = PeerBook()
    book.restore(before.kept())
    state = upstream_state()
    unknown = replace(state, targets=tuple(replace(target, known=False) for target in state.targets))

    book.follow(snapshot(unknown), 0.0, MIDDLE)
    book.follow(here(endpoint(), version=2), 1.0, MIDDLE)

    assert book.admission().admitted == {peer()}


def test_a_leaf_that_is_seen_again_outlives_one_that_is_not() -> None:
    book = PeerBook(most_leaves=2)
    book.follow(here(endpoint()), 0.0, MIDDLE)
    for turn, digest in enumerate(("A", "B", "A", "C")):
        probed(book, seen(WEB, digest=digest), now_s=turn * 2 * AGAIN_S)

    assert set(book.leaves()) == {"A", "C"}


@given(st.lists(st.sampled_from(["right", "wrong", "silent", "unverified", "change", "leave"]), max_size=30))
def test_whatever_happens_only_who_was_seen_as_the_right_one_last_is_admitted(events: list[str]) -> None:
    book = book_of(endpoint())
    outcomes: dict[str, Outcome] = {
        "right": seen(WEB),
        "wrong": seen(EVIL),
        "silent": SILENT,
        "unverified": Unverified("expired"),
    }
    expected, weight, now_s = False, 1, 0.0
    for version, event in enumerate(events, start=2):
        now_s += 2 * AGAIN_S
        if event in outcomes:
            probed(book, outcomes[event], now_s=now_s)
            expected = expected if event == "silent" else event == "right"
        elif event == "change":
            weight += 1
            book.follow(here(endpoint(weight=weight), version=version), now_s, MIDDLE)
        else:
            book.follow(here(version=version), now_s, MIDDLE)
            book.follow(here(endpoint(weight=weight), version=version), now_s, MIDDLE)
            expected = False
        assert (peer() in book.admission().admitted) is expected
        assert book.next_due_s() is not None
