"""What hcc counts about itself, for Prometheus; one value, made in `hcc.app` and handed to the actors.

Names follow Prometheus' conventions (prometheus.io, "Metric and label naming"): seconds, bytes, `_total`.
Labels hold names of actors, watches and workers, never an address, a serial number or a URI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from hcc.version import VERSION

PLAN_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class _Collected(Collector):
    """A collector that asks a function at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


class LateGauge(Collector):
    """A gauge without a sample until it is set: of a date a 0 would say 1970."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._value: float | None = None

    def set(self, value: float) -> None:
        """From now on it is this."""
        self._value = value

    def collect(self) -> Iterable[Metric]:
        """One family, which has no sample as long as nothing is known."""
        return (GaugeMetricFamily(self._name, self._text, value=self._value),)


class Metrics:
    """All counters and gauges, and the registry that shows them."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._gauge("hcc_build_info", "Version of hcc.", ("version",)).labels(VERSION).set(1)
        self.haproxy_info = self._gauge(
            "hcc_haproxy_info",
            "The HAProxy that runs, and the OpenSSL of its program.",
            ("version", "openssl", "control"),
        )
        self.haproxy_up = self._gauge(
            "hcc_haproxy_up", "Whether a HAProxy runs whose start is over, though it may hang."
        )
        self.haproxy_starts = self._counter("hcc_haproxy_starts", "Starts of HAProxy, the first included.")
        self.plans = self._counter("hcc_plans", "Plans applied, by outcome.", ("outcome",))
        for outcome in ("applied", "failed"):
            # From the start: the first failure is a step that `increase()` sees.
            self.plans.labels(outcome)
        self.operations = self._counter("hcc_operations", "Operations applied to HAProxy, by kind.", ("kind",))
        self.drift = self._counter("hcc_drift_repairs", "Repairs that nobody asked for: HAProxy had come to differ.")
        self.plan_seconds = Histogram(
            "hcc_plan_seconds", "How long applying a plan took.", buckets=PLAN_BUCKETS_S, registry=self.registry
        )
        self.reloads = self._counter("hcc_reloads", "Reloads of HAProxy that succeeded.")
        self.applied_version = self._gauge("hcc_snapshot_version", "Version of the last snapshot applied.")
        self.problems = self._gauge(
            "hcc_configuration_problems",
            "What Consul asks for that is not served as asked, the registration's warnings among it.",
        )
        self.listeners_left_out = self._gauge(
            "hcc_listeners_left_out", "Listeners that are not served, as somebody else has their address."
        )
        self.watch_answers = self._counter("hcc_watch_answers", "Changed answers of Consul.", ("watch",))
        self.watch_failures = self._counter("hcc_watch_failures", "Failed queries to Consul.", ("watch",))
        self.consul_requests = self._counter(
            "hcc_consul_requests", "Requests to Consul, by the status of the answer or `none`.", ("code",)
        )
        self.stale_answers = self._gauge(
            "hcc_stale_answers", "Answers of an earlier run that are served and Consul has not confirmed."
        )
        self.leaf_expiry = self._late_gauge("hcc_leaf_expiry_timestamp_seconds", "When the leaf certificate expires.")
        self.leaf_start = self._late_gauge(
            "hcc_leaf_start_timestamp_seconds", "When the leaf certificate became valid."
        )
        self.root_expiry = self._late_gauge(
            "hcc_root_expiry_timestamp_seconds", "When the first of the trusted CA certificates expires."
        )
        self.certificate_rejects = self._counter(
            "hcc_certificate_rejects", "Certificates of Consul refused before use."
        )
        self.policy_version = self._gauge("hcc_policy_version", "Version of the intentions in force.")
        self.decisions = self._counter(
            "hcc_spoe_decisions",
            "Decisions of SPOE workers about callers; those that HAProxy knows are not asked about.",
            ("source", "destination", "verdict"),
        )
        self.token_checks = self._counter(
            "hcc_token_checks", "Checks of requests' tokens (JWT), by verdict: `good` or `refused`.", ("verdict",)
        )
        for verdict in ("good", "refused"):
            # From the start: the first refusal is a step that `increase()` sees.
            self.token_checks.labels(verdict)
        self.worker_exits = self._counter("hcc_spoe_worker_exits", "Deaths of SPOE workers.")
        self.callers_remembered = self._gauge(
            "hcc_callers_remembered", "Certificates of callers that HAProxy knows by itself."
        )
        self.sessions_cut = self._counter("hcc_sessions_cut", "Sessions ended as their caller became denied.")
        self.probes = self._counter(
            "hcc_probes",
            "Probes of upstreams' endpoints, by what was seen: `right`, `impostor`, `unverified` or `no_answer`.",
            ("outcome",),
        )
        self.refused_endpoints = self._gauge(
            "hcc_refused_endpoints",
            "Endpoints that get no traffic: verified as another service, or with a certificate that is not.",
            ("reason",),
        )
        self.waiting_endpoints = self._gauge(
            "hcc_waiting_endpoints", "Healthy endpoints that get no traffic as no probe has seen yet who they are."
        )
        self.silent_endpoints = self._gauge(
            "hcc_silent_endpoints",
            "Endpoints that answer neither HAProxy nor probes; they get no traffic while enough others do.",
        )
        self.leaves_remembered = self._gauge(
            "hcc_leaves_remembered", "Certificates of upstreams' endpoints that HAProxy knows by itself."
        )
        self.ready = self._gauge("hcc_ready", "Whether /ready answers 200.")

    def collect_from(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Add a source that is asked at each scrape."""
        self.registry.register(_Collected(collect))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The body and content type of /metrics in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _late_gauge(self, name: str, text: str) -> LateGauge:
        gauge = LateGauge(name, text)
        self.registry.register(gauge)
        return gauge

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)
