"""Metrics that are asked for at each scrape, because somebody else keeps the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from hcc.actors.lifecycle import ActorError, ActorState, ActorStatus
from hcc.actors.tree import Tree
from hcc.consul.watch_state import WatchState
from hcc.spoe.counters import BUCKET_BOUNDS_NS, WorkerCounters
from hcc.spoe.events import WorkerPhase, WorkerState

ASK_TIMEOUT_S = 1.0
_NS = 1e9


def actor_metrics(tree: Callable[[], Tree]) -> Iterable[Metric]:
    """State, restarts, mailbox and losses of every actor; nothing while the root does not answer."""
    try:
        return actor_metrics_of(tree().actors(ASK_TIMEOUT_S))
    except ActorError:
        return ()


def actor_metrics_of(statuses: tuple[ActorStatus, ...]) -> tuple[Metric, ...]:
    """The same, of these."""
    return (
        _gauge("hcc_actor_up", "Whether the actor runs.", statuses, _is_up),
        _gauge("hcc_actor_mailbox_depth", "Messages that wait.", statuses, lambda one: one.mailbox_depth),
        _counter("hcc_actor_restarts", "Starts after the first.", statuses, lambda one: one.restarts),
        _counter("hcc_actor_dropped_messages", "Messages lost.", statuses, lambda one: one.dropped),
        _counter("hcc_actor_zombies", "Hung threads abandoned.", statuses, lambda one: one.zombies),
    )


def log_metrics(dropped: int) -> Iterator[Metric]:
    """How many lines of the log nobody will read."""
    yield _sum("hcc_log_dropped_lines", "Lines of the log dropped, as nobody reads it or it takes none.", [dropped])


def watch_metrics(states: Iterable[WatchState]) -> Iterator[Metric]:
    """How old the answers of Consul are, by kind of question: of several, the oldest counts."""
    ages: dict[str, float] = {}
    failing = Counter[str]()
    stale = Counter[str]()
    for state in states:
        kind = type(state.key).__name__
        ages[kind] = max(ages.get(kind, 0.0), state.age_s)
        failing[kind] += bool(state.problem)
        stale[kind] += state.stale
    age = GaugeMetricFamily("hcc_watch_age_seconds", "Since Consul answered last, changed or not.", labels=("watch",))
    fails = GaugeMetricFamily("hcc_watch_failing", "Questions whose last try failed.", labels=("watch",))
    late = GaugeMetricFamily("hcc_watch_stale", "Questions whose answer is overdue.", labels=("watch",))
    for kind in sorted(ages):
        age.add_metric((kind,), ages[kind])
        fails.add_metric((kind,), failing[kind])
        late.add_metric((kind,), stale[kind])
    yield age
    yield fails
    yield late


def pool_metrics(workers: Iterable[WorkerState]) -> Iterator[Metric]:
    """How many SPOE workers there are, by phase of their life."""
    family = GaugeMetricFamily("hcc_spoe_workers", "SPOE workers, by phase.", labels=("phase",))
    phases = [worker.phase for worker in workers]
    for phase in WorkerPhase:
        family.add_metric((phase.value,), phases.count(phase))
    yield family


def worker_metrics(
    counters: Callable[[], tuple[WorkerCounters, ...]], *, refused_tokens: int = 0, enforced: bool = True
) -> Iterator[Metric]:
    """What the SPOE workers counted, over all their restarts, summed over the workers.

    Args:
        counters: theirs.
        refused_tokens: by others, which with audit are denials, too.
        enforced: False with audit.
    """
    workers = counters()
    verdicts = CounterMetricFamily("hcc_spoe_verdicts", "Answers to HAProxy.", labels=("verdict",))
    verdicts.add_metric(("allow",), sum(one.allowed for one in workers))
    verdicts.add_metric(("deny",), sum(one.denied for one in workers))
    yield verdicts
    if not enforced:
        text = "Let in though denied, with `--intentions audit` only."
        yield _sum("hcc_audit_denials", text, [refused_tokens, *(one.denied for one in workers)])
    yield _sum("hcc_spoe_unreadable_certificates", "Denied as unreadable.", [one.errors for one in workers])
    yield _sum("hcc_spoe_connections", "Connections from HAProxy.", [one.connections_total for one in workers])
    yield _sum("hcc_spoe_bad_frames", "Connections ended for a bad frame.", [one.frames_bad for one in workers])
    text = "Denials and callers that hcc did not hear of, as there were too many at once."
    yield _sum("hcc_spoe_dropped_notices", text, [one.notices_dropped for one in workers])
    yield GaugeMetricFamily(
        "hcc_spoe_open_connections", "Open connections.", value=sum(one.connections_open for one in workers)
    )
    yield GaugeMetricFamily(
        "hcc_spoe_cached_decisions", "Decisions remembered.", value=sum(one.cached for one in workers)
    )
    yield _latency(workers)


def _is_up(status: ActorStatus) -> float:
    return float(status.state is ActorState.RUNNING)


def _gauge(name: str, text: str, statuses: tuple[ActorStatus, ...], value: Callable[[ActorStatus], float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("actor",))
    for status in statuses:
        family.add_metric((status.name,), value(status))
    return family


def _counter(name: str, text: str, statuses: tuple[ActorStatus, ...], value: Callable[[ActorStatus], float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=("actor",))
    for status in statuses:
        family.add_metric((status.name,), value(status))
    return family


def _sum(name: str, text: str, values: list[int]) -> Metric:
    return CounterMetricFamily(name, text, value=sum(values))


def _latency(workers: tuple[WorkerCounters, ...]) -> Metric:
    family = HistogramMetricFamily("hcc_spoe_answer_seconds", "From reading a question to its answer.")
    bounds = [str(bound / _NS) for bound in BUCKET_BOUNDS_NS] + ["+Inf"]
    buckets: list[tuple[str, float]] = []
    seen = 0
    for index, bound in enumerate(bounds):
        seen += sum(one.latency_buckets[index] for one in workers)
        buckets.append((bound, float(seen)))
    family.add_metric((), buckets, sum_value=sum(one.latency_sum_ns for one in workers) / _NS)
    return family
