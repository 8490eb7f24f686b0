"""HAProxy's counters with Consul's labels: what is counted under which, and how much of it there is."""

from __future__ import annotations

import re
from dataclasses import replace

from prometheus_client import generate_latest

from hcc.app.haproxy_metrics import haproxy_metrics
from hcc.haproxy.names import backend_name, upstream_name
from hcc.haproxy.stats import Row, RowKind, Stats
from hcc.haproxy.stats_reader import StatsUnavailableError
from hcc.mesh.chain import Chain, Route, Split
from hcc.mesh.naming import joined
from hcc.mesh.permissions import PathMatch, PathRule
from hcc.mesh.routes import EVERY_REQUEST, Match
from hcc.mesh.snapshot import Health, Protocol, Snapshot, Upstream
from hcc.metrics import Metrics
from tests.builders import endpoint, proxy, resolver, routed_chain, routed_state, snapshot, upstream, upstream_state
from tests.every_metric import PROCESS
from tests.every_metric import stats_row as row


def rows_of(one: Upstream, *targets: str) -> tuple[Row, ...]:
    backends = [backend_name(one, target) for target in targets or ("",)]
    return (row(RowKind.FRONTEND, upstream_name(one)), *(row(RowKind.BACKEND, name) for name in backends))


def scraped(mesh: Snapshot | None, *rows: Row) -> Metrics:
    metrics = Metrics()
    metrics.collect_from(lambda: haproxy_metrics(lambda: Stats(PROCESS, rows), lambda: mesh))
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def upstream_labels(destination: str, datacenter: str = "dc1", protocol: str = "http") -> dict[str, str]:
    return {"source": "server", "destination": destination, "datacenter": datacenter, "protocol": protocol}


def test_an_upstreams_frontend_and_backend_are_counted_under_consuls_names() -> None:
    web = upstream("web", datacenter="dc2")
    metrics = scraped(snapshot(upstream_state(web, protocol="http")), *rows_of(web))
    labels = upstream_labels("web", "dc2")

    assert value(metrics, "hcc_upstream_connections_total", **labels) == 10
    assert value(metrics, "hcc_upstream_requests_total", **labels) == 20
    assert value(metrics, "hcc_upstream_responses_total", **labels, code="5xx") == 1
    assert value(metrics, "hcc_upstream_request_bytes_total", **labels) == 100
    assert value(metrics, "hcc_upstream_response_bytes_total", **labels) == 1000
    assert value(metrics, "hcc_upstream_connect_errors_total", **labels) == 2
    assert value(metrics, "hcc_upstream_serving_endpoints", **labels) == 7
    assert value(metrics, "hcc_upstream_response_time_average_seconds", **labels) == 0.25
    assert value(metrics, "hcc_upstream_connect_time_average_seconds", **labels) is None


def test_tcp_has_no_requests_and_a_query_has_a_name_of_its_own() -> None:
    web, query = upstream("web"), upstream("web", 9192, query=True)
    metrics = scraped(snapshot(upstream_state(web), upstream_state(query)), *rows_of(web), *rows_of(query))

    assert value(metrics, "hcc_upstream_connections_total", **upstream_labels("web", protocol="tcp")) == 10
    assert value(metrics, "hcc_upstream_connections_total", **upstream_labels("query:web", protocol="tcp")) == 10
    assert value(metrics, "hcc_upstream_requests_total", **upstream_labels("web", protocol="tcp")) is None


def test_rows_with_equal_labels_are_one_sample_and_of_averages_the_slowest_counts() -> None:
    one, two = upstream("web", 9191), upstream("web", 9192)
    slow = row(RowKind.BACKEND, backend_name(two, "v1"), connect_s=0.9)
    fast = row(RowKind.BACKEND, backend_name(two, "v2"), connect_s=0.1)
    mesh = snapshot(upstream_state(one, protocol="http"), upstream_state(two, protocol="http"))
    metrics = scraped(mesh, *rows_of(one), *rows_of(two), slow, fast)

    assert value(metrics, "hcc_upstream_connections_total", **upstream_labels("web")) == 20
    assert value(metrics, "hcc_upstream_connect_errors_total", **upstream_labels("web")) == 8
    assert value(metrics, "hcc_upstream_connect_time_average_seconds", **upstream_labels("web")) == 0.9


def legs_serving(chain: Chain, **serving: int) -> tuple[float | None, float | None]:
    """All servers together, and those of the leg that has the fewest."""
    web = upstream("web")
    rows = (
        replace(row(RowKind.BACKEND, backend_name(web, leg)), active_servers=number) for leg, number in serving.items()
    )
    metrics = scraped(snapshot(routed_state(chain, {}, web)), *rows)
    labels = upstream_labels("web")
    names = ("hcc_upstream_serving_endpoints", "hcc_upstream_leg_serving_endpoints")
    total, least = (value(metrics, name, **labels) for name in names)
    return total, least


def test_a_leg_without_servers_is_seen_beside_one_that_has_some() -> None:
    split = routed_chain(splits=(Split("v1", 90), Split("v2", 10)), legs=(resolver("v1"), resolver("v2")))
    assert legs_serving(split, v1=3, v2=2) == (5, 2)
    assert legs_serving(split, v1=3, v2=0) == (3, 0)
    assert legs_serving(split, v1=0, v2=3) == (3, 0)
    # One that a change of the chain has taken away, in a worker from before it.
    assert legs_serving(split, v1=3, v2=2, v3=0) == (5, 2)


def test_a_leg_that_no_request_comes_to_may_be_empty() -> None:
    everything = Match(PathRule(PathMatch.PREFIX, "/"))
    routes = (Route("v1", match=everything), Route("v2", match=EVERY_REQUEST))
    assert legs_serving(routed_chain(*routes, legs=(resolver("v1"), resolver("v2"))), v1=3, v2=0) == (3, 3)


def test_an_upstream_without_legs_is_one() -> None:
    web, query = upstream("web"), upstream("web", 9192, query=True)
    metrics = scraped(snapshot(upstream_state(web), upstream_state(query)), *rows_of(web), *rows_of(query))
    for destination in ("web", "query:web"):
        labels = upstream_labels(destination, protocol="tcp")
        assert value(metrics, "hcc_upstream_leg_serving_endpoints", **labels) == 7


def test_the_public_listener_and_each_caller_are_counted() -> None:
    mesh = snapshot(proxy_=proxy(protocol=Protocol.HTTP))
    metrics = scraped(
        mesh,
        row(RowKind.FRONTEND, "public"),
        row(RowKind.BACKEND, "app"),
        row(RowKind.SERVER, "app", "app"),
        row(RowKind.SERVER, "app", joined("shop")),
        row(RowKind.FRONTEND, "spoe_agents"),
    )
    ours = {"destination": "server", "datacenter": "dc1", "protocol": "http"}

    assert value(metrics, "hcc_inbound_requests_total", **ours) == 20
    assert value(metrics, "hcc_inbound_denied_total", **ours) == 3
    assert value(metrics, "hcc_inbound_failed_handshakes_total", **ours) == 9
    assert value(metrics, "hcc_inbound_response_errors_total", **ours) == 4
    assert value(metrics, "hcc_caller_sessions_total", source="shop", **ours) == 10
    assert value(metrics, "hcc_caller_responses_total", source="shop", **ours, code="2xx") == 5
    assert value(metrics, "hcc_caller_open_sessions", source="app", **ours) is None


def test_failed_handshakes_are_not_shown_where_haproxy_does_not_count_them() -> None:
    public = replace(row(RowKind.FRONTEND, "public"), failed_handshakes=None)
    ours = {"destination": "server", "datacenter": "dc1", "protocol": "tcp"}
    assert value(scraped(snapshot(), public), "hcc_inbound_failed_handshakes_total", **ours) is None


def test_each_endpoint_is_shown_where_haproxy_was_asked_for_them() -> None:
    web = upstream("web")
    server = row(RowKind.SERVER, backend_name(web), "10.0.0.1:21000")
    spare = replace(server, server="s2", address="127.127.127.127:1")
    metrics = scraped(snapshot(upstream_state(web, protocol="http")), *rows_of(web), server, spare)
    labels = upstream_labels("web") | {"endpoint": server.address}

    assert value(metrics, "hcc_endpoint_sessions_total", **labels) == 10
    assert value(metrics, "hcc_endpoint_up", **labels) == 1
    assert value(metrics, "hcc_endpoint_up", **(labels | {"endpoint": spare.address})) is None
    assert value(metrics, "hcc_upstream_connections_total", **upstream_labels("web")) == 10


def test_an_endpoint_of_two_legs_is_up_once_and_its_sessions_are_taken_together() -> None:
    web = upstream("web")
    servers = [row(RowKind.SERVER, backend_name(web, leg), "10.0.0.1:21000") for leg in ("v1", "v2")]
    metrics = scraped(snapshot(upstream_state(web, protocol="http")), *servers)
    labels = upstream_labels("web") | {"endpoint": servers[0].address}

    assert value(metrics, "hcc_endpoint_up", **labels) == 1
    assert value(metrics, "hcc_endpoint_sessions_total", **labels) == 20


def test_instances_are_counted_by_health_also_where_there_are_none() -> None:
    mesh = snapshot(
        upstream_state(upstream("web"), (endpoint("10.0.0.1"), endpoint("10.0.0.2", health=Health.CRITICAL)))
    )
    metrics = scraped(mesh)
    labels = upstream_labels("web", protocol="tcp")
    counts = {h.value: value(metrics, "hcc_upstream_endpoints", **labels, health=h.value) for h in Health}
    assert counts == {"passing": 1, "warning": 0, "critical": 1}


def test_a_haproxy_that_says_nothing_is_a_zero_and_no_error() -> None:
    def silent() -> Stats:
        raise StatsUnavailableError("it hangs")

    metrics = Metrics()
    metrics.collect_from(lambda: haproxy_metrics(silent, lambda: None))

    assert value(metrics, "hcc_haproxy_stats_up") == 0
    assert value(metrics, "hcc_haproxy_open_connections") is None
    assert value(scraped(None), "hcc_haproxy_stats_up") == 1
    assert value(scraped(None), "hcc_haproxy_idle_ratio") == 0.5


def exposed(endpoints: int) -> list[str]:
    web = upstream("web")
    many = tuple(endpoint(f"10.{n // 65536}.{n // 256 % 256}.{n % 256}") for n in range(endpoints))
    mesh = snapshot(upstream_state(web, many, protocol="http"), proxy_=proxy(protocol=Protocol.HTTP))
    rows = (*rows_of(web), row(RowKind.FRONTEND, "public"), row(RowKind.SERVER, "app", "shop"))
    made = scraped(mesh, *rows)
    return generate_latest(made.registry).decode().splitlines()


def test_ten_thousand_endpoints_make_no_more_samples_than_ten() -> None:
    assert len(exposed(10_000)) == len(exposed(10))


def test_no_label_holds_an_address_or_a_uri() -> None:
    labels = [text for line in exposed(10) for text in re.findall(r'="([^"]*)"', line)]
    assert labels
    assert [text for text in labels if re.search(r"\d+\.\d+\.\d+\.\d+|spiffe:|:\d+$", text)] == []
