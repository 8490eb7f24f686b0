from hcc.app.collectors import pool_metrics, watch_metrics, worker_metrics
from hcc.consul.keys import EndpointsWatch, LeafWatch, QueryWatch
from hcc.consul.watch_state import WatchState
from hcc.metrics import Metrics
from hcc.spoe.counters import CounterMemory, CounterSlots, Slot
from hcc.spoe.events import WorkerPhase, WorkerState


def test_of_several_watches_of_a_kind_the_oldest_answer_counts_and_all_that_fail() -> None:
    metrics = Metrics()
    states = (
        WatchState(LeafWatch("web"), 3.0, answered=True),
        WatchState(EndpointsWatch("a", "dc1"), 5.0, answered=True),
        WatchState(EndpointsWatch("b", "dc1"), 190.0, answered=False, failing_s=90.0, problem="HTTP 500"),
    )
    metrics.collect_from(lambda: watch_metrics(states))
    value = metrics.registry.get_sample_value

    assert value("hcc_watch_age_seconds", {"watch": "EndpointsWatch"}) == 190.0
    assert value("hcc_watch_failing", {"watch": "EndpointsWatch"}) == 1.0
    assert value("hcc_watch_failing", {"watch": "LeafWatch"}) == 0.0
    assert value("hcc_watch_stale", {"watch": "EndpointsWatch"}) == 1.0
    assert value("hcc_watch_stale", {"watch": "LeafWatch"}) == 0.0


def test_a_prepared_query_is_overdue_only_after_the_pause_that_its_owner_wants() -> None:
    rare = QueryWatch("web", "", "dc1", poll_interval_ms=600_000)
    assert not WatchState(rare, 610.0, answered=True).stale
    assert WatchState(rare, 760.0, answered=True).stale


def test_workers_are_counted_by_phase_also_where_there_are_none() -> None:
    metrics = Metrics()
    ready = WorkerState(0, "/run/w1", WorkerPhase.READY, 7, 1, 1)
    metrics.collect_from(lambda: pool_metrics((ready,)))
    value = metrics.registry.get_sample_value

    assert value("hcc_spoe_workers", {"phase": "ready"}) == 1.0
    assert value("hcc_spoe_workers", {"phase": "exited"}) == 0.0


def test_what_workers_were_too_busy_to_tell_is_summed_over_them() -> None:
    memory = CounterMemory(2)
    for index, dropped in enumerate((2, 3)):
        CounterSlots(memory.fd, index).add(Slot.NOTICES_DROPPED, dropped)
    metrics = Metrics()
    metrics.collect_from(lambda: worker_metrics(memory.read))

    assert metrics.registry.get_sample_value("hcc_spoe_dropped_notices_total") == 5.0
    memory.close()


def test_a_date_that_nobody_knows_yet_is_not_shown_as_1970() -> None:
    metrics = Metrics()
    body, _ = metrics.exposition("")
    assert b"# TYPE hcc_leaf_expiry_timestamp_seconds gauge\n" in body
    assert b"\nhcc_leaf_expiry_timestamp_seconds" not in body

    metrics.leaf_expiry.set(1.7e9)

    assert metrics.registry.get_sample_value("hcc_leaf_expiry_timestamp_seconds") == 1.7e9
