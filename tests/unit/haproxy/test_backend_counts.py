from __future__ import annotations

from dataclasses import replace

import pytest

from hcc.haproxy.backend_counts import SHARE, BackendCounts, News
from hcc.haproxy.stats import Process, Row, RowKind, Stats
from hcc.haproxy.stats_reader import StatsUnavailableError
from tests.every_metric import stats_row

PROCESS = Process(uptime_s=100, connections=2, connections_total=10, max_connections=100, idle=0.5)
ONE, TWO = "10.0.0.1:21000", "10.0.0.2:21000"
UNREACHED_ONE = (("web", frozenset({ONE})),)


class Counting:
    """A HAProxy with two servers in each of two backends, whose counters the test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.uptime_s = 100
        self.silent = False
        self.cut = {"web": 0, "other": 0}
        self.failed = {("web", ONE): 0, ("web", TWO): 0, ("other", ONE): 0}
        # Of servers, by address.
        self.lies = {ONE: 0, TWO: 0}
        self.mute = False
        self.under_way = 0
        self.read: list[str] = []
        self.reading_s = 0.0
        self.counts = BackendCounts(self.backends, self.servers, lambda: self.now_s)

    def backends(self) -> Stats:
        if self.silent:
            raise StatsUnavailableError("hangs")
        rows = (
            _row(RowKind.BACKEND, name, failed=sum(n for (be, _), n in self.failed.items() if be == name), cut=cut)
            for name, cut in self.cut.items()
        )
        return Stats(replace(PROCESS, uptime_s=self.uptime_s), tuple(rows))

    def servers(self, backend: str) -> Stats:
        self.read.append(backend)
        self.now_s += self.reading_s
        if self.silent or self.mute:
            raise StatsUnavailableError("hangs")
        failed = {at: n for (be, at), n in self.failed.items() if be == backend}
        rows = (_row(RowKind.SERVER, backend, at, failed=n, cut=self.lies[at]) for at, n in failed.items())
        return Stats(PROCESS, tuple(replace(row, open_sessions=self.under_way) for row in rows))

    def look(self) -> News:
        return self.counts.look(lambda backend: backend == "web")


def _row(kind: RowKind, backend: str, address: str = "", *, failed: int = 0, cut: int = 0) -> Row:
    return replace(
        stats_row(kind, backend, address),
        address=address,
        denied_responses=cut,
        sessions=7 + failed,
        open_sessions=0,
        responses=(("2xx", 7), ("other", 0)),
        retries=0,
        redispatches=failed,
        connect_errors=0,
        response_errors=0,
        client_aborts=0,
    )


@pytest.fixture
def counting() -> Counting:
    made = Counting()
    made.look()
    return made


def test_while_no_answer_fails_or_is_cut_no_server_is_looked_at(counting: Counting) -> None:
    assert counting.look() == News()
    assert counting.read == []


def test_servers_whose_answers_were_cut_are_told_each_time_they_were(counting: Counting) -> None:
    for times in (1, 2):
        counting.cut["web"], counting.lies[TWO] = 3 * times, 3 * times
        found = counting.look()
        assert (found.cut, found.liars) == ((("web", 3),), (("web", frozenset({TWO})),))
    assert counting.look() == News()
    assert counting.read == ["web", "web"]


def test_where_no_server_tells_of_a_cut_the_backend_is_told_without_one(counting: Counting) -> None:
    counting.cut["web"] = 1

    assert counting.look().liars == (("web", frozenset()),)


def test_while_servers_cannot_be_read_who_was_cut_is_told_later_unless_the_backend_goes(counting: Counting) -> None:
    counting.cut["web"], counting.lies[TWO], counting.mute = 1, 1, True
    assert counting.look() == News(cut=(("web", 1),))

    counting.mute = False
    assert counting.look().liars == (("web", frozenset({TWO})),)

    counting.cut["web"], counting.mute = 2, True
    counting.look()
    del counting.cut["web"]
    counting.read.clear()
    assert counting.look() == News()
    assert counting.read == []


def test_a_new_worker_has_cut_what_it_counts(counting: Counting) -> None:
    counting.cut["web"], counting.lies[ONE] = 5, 5
    counting.look()
    counting.uptime_s, counting.cut["web"], counting.lies = 1, 6, {ONE: 0, TWO: 6}

    assert counting.look().liars == (("web", frozenset({TWO})),)


def test_servers_that_did_not_answer_are_told_each_time_they_did_not(counting: Counting) -> None:
    counting.failed["web", ONE] = 2
    assert counting.look().quiet == UNREACHED_ONE
    assert counting.look().quiet == ()

    counting.failed["web", TWO] = 1
    assert counting.look().quiet == (("web", frozenset({TWO})),)
    assert counting.read == ["web", "web"]


def test_backends_of_others_are_left_alone(counting: Counting) -> None:
    counting.failed["other", ONE] = 2
    counting.cut["other"] = 1

    assert counting.look() == News()
    assert counting.read == []


def test_a_retry_a_lost_request_and_who_gave_up_waiting_count_as_failures_too() -> None:
    row = replace(_row(RowKind.BACKEND, "web", failed=1), retries=10, connect_errors=100, responses=(("other", 1000),))

    assert row.failures == 1111
    assert replace(row, client_aborts=10_000, response_errors=100_000).failures == 111_111


def test_of_tcp_there_are_no_answers_to_count() -> None:
    row = replace(_row(RowKind.SERVER, "web", ONE, failed=2), http=False, sessions=100, client_aborts=50, responses=())

    assert (row.unanswered, row.failures) == (2, 2)


def test_an_interim_answer_stands_for_none() -> None:
    row = replace(_row(RowKind.SERVER, "web", ONE, failed=2), responses=(("1xx", 100), ("2xx", 7), ("other", 0)))

    assert row.unanswered == 2


def test_an_answer_under_way_hides_no_failure_and_makes_none(counting: Counting) -> None:
    counting.failed["web", ONE] = 3
    assert counting.look().quiet == UNREACHED_ONE
    for counting.under_way in (1, 3, 0):
        counting.failed["web", TWO] += 10
        assert counting.look().quiet == (("web", frozenset({TWO})),)


def test_a_server_that_was_deleted_and_added_again_counts_from_nothing(counting: Counting) -> None:
    counting.failed["web", ONE] = 300
    counting.look()
    counting.failed["web", ONE] = 2
    counting.failed["web", TWO] = 300

    assert counting.look().quiet == (("web", frozenset({ONE, TWO})),)
    assert counting.look().quiet == ()


def test_a_new_worker_counts_from_nothing(counting: Counting) -> None:
    counting.failed["web", ONE] = 3
    counting.look()
    counting.uptime_s, counting.failed["web", ONE] = 1, 1

    assert counting.look().quiet == UNREACHED_ONE


def test_what_an_older_worker_counted_before_is_no_news_and_what_a_younger_one_did_is() -> None:
    older, younger = Counting(), Counting()
    for one in (older, younger):
        one.cut["web"], one.lies[TWO], one.failed["web", ONE], one.now_s = 5, 5, 2, one.now_s + 10
    younger.uptime_s = 9

    assert older.look() == News()
    assert younger.look() == News(cut=(("web", 5),), quiet=UNREACHED_ONE, liars=(("web", frozenset({TWO})),))


def test_cuts_that_an_older_worker_counted_before_make_no_liar_of_a_server_that_fails() -> None:
    older = Counting()
    older.cut["web"], older.lies[ONE] = 1, 1
    older.look()

    older.failed["web", ONE] = 1
    assert older.look() == News(quiet=UNREACHED_ONE)

    older.cut["web"], older.lies[TWO] = 2, 1
    assert older.look().liars == (("web", frozenset({TWO})),)


def test_whose_the_first_cut_of_an_older_worker_was_is_not_known_and_whose_the_next_ones_are_is() -> None:
    older = Counting()
    older.cut["web"], older.lies[ONE] = 1, 1
    older.look()

    older.cut["web"], older.lies[TWO] = 2, 1
    assert older.look().liars == (("web", frozenset()),)

    older.cut["web"], older.lies[TWO] = 3, 2
    assert older.look().liars == (("web", frozenset({TWO})),)

    # Another worker of it counts from nothing.
    older.uptime_s, older.cut["web"], older.lies = 1, 1, {ONE: 1, TWO: 0}
    assert older.look().liars == (("web", frozenset({ONE})),)


def test_while_haproxy_does_not_say_there_is_no_news_and_nothing_is_lost(counting: Counting) -> None:
    counting.failed["web", ONE] = 2
    counting.silent = True
    assert counting.look() == News()

    counting.silent = False
    assert counting.look().quiet == UNREACHED_ONE


def test_where_nobody_is_to_be_doubted_no_server_is_looked_at(counting: Counting) -> None:
    counts = BackendCounts(counting.backends, None, lambda: counting.now_s)
    counts.look(lambda _: True)
    counting.failed["web", ONE], counting.cut["web"] = 2, 1

    assert counts.look(lambda _: True) == News(cut=(("web", 1),))


def test_reading_many_servers_takes_a_share_of_the_time_and_what_came_meanwhile_is_told_later(
    counting: Counting,
) -> None:
    counting.reading_s = 0.3
    counting.failed["web", ONE] = 1
    assert counting.look().quiet == UNREACHED_ONE

    counting.failed["web", ONE] = 2
    counting.now_s += 1
    assert counting.look().quiet == ()
    counting.now_s += 0.3 / SHARE
    assert counting.look().quiet == UNREACHED_ONE
    assert counting.read == ["web", "web"]
