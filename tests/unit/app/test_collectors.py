from hcc.app.collectors import pool_metrics, watch_metrics
from hcc.consul.keys import EndpointsWatch, LeafWatch
from hcc.consul.watch_state import WatchState
from hcc.metrics import Metrics
from hcc.spoe.events import WorkerPhase, WorkerState


def test_of_several_watches_of_a_kind_the_oldest_answer_counts_and_all_that_fail() -> None:
    metrics = Metrics()
    states = (
        WatchState(LeafWatch("web"), 3.0, answered=True),
        WatchState(EndpointsWatch("a", "dc1"), 5.0, answered=True),
        WatchState(EndpointsWatch("b", "dc1"), 90.0, answered=False, failing_s=90.0, problem="HTTP 500"),
    )
    metrics.collect_from(lambda: watch_metrics(states))
    value = metrics.registry.get_sample_value

    assert value("hcc_watch_age_seconds", {"watch": "EndpointsWatch"}) == 90.0
    assert value("hcc_watch_failing", {"watch": "EndpointsWatch"}) == 1.0
    assert value("hcc_watch_failing", {"watch": "LeafWatch"}) == 0.0


def test_workers_are_counted_by_phase_also_where_there_are_none() -> None:
    metrics = Metrics()
    ready = WorkerState(0, "/run/w1", WorkerPhase.READY, 7, 1, 1)
    metrics.collect_from(lambda: pool_metrics((ready,)))
    value = metrics.registry.get_sample_value

    assert value("hcc_spoe_workers", {"phase": "ready"}) == 1.0
    assert value("hcc_spoe_workers", {"phase": "exited"}) == 0.0
