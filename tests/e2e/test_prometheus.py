"""A real Prometheus finds real sidecars through Consul, by the committed configuration, rules and dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests import binaries
from tests.e2e.clients import http_get, is_refused, tcp_ask
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import Namespace
from tests.e2e.processes import Process
from tests.e2e.waiting import wait_until
from tests.observability import PROMETHEUS, RULES, names, queries, recorded, rule_expressions

pytestmark = pytest.mark.e2e

on_2_8 = pytest.mark.parametrize("haproxy_version", ["2.8"], indirect=True, scope="session")
WEB_PORT, DB_PORT = 9131, 9132
WINDOW = "30s"
WEB_RATE = 'destination:hcc_inbound_requests:rate5m{destination="seen-web"}'
# What is not there while all is well.
MAY_BE_EMPTY = "> 0"


class Prometheus:
    """One server beside Consul's, in its namespace."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self.namespace = namespace
        self.port = 9090
        directory.mkdir()
        (directory / "hcc-rules.yml").write_text(RULES.read_text())
        # As it is, but quicker.
        config = PROMETHEUS.read_text().replace("_interval: 15s", "_interval: 1s")
        (directory / "prometheus.yml").write_text(config)
        words = (
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )
        self.process = Process("prometheus", namespace.command(binaries.prometheus(), *words), directory / "log")
        self.process.start()

    def close(self) -> None:
        self.process.end()
        self.process.forget()

    def api(self, path: str) -> Any:
        """The data of an answer that is a success."""
        connection = self.namespace.http(self.port)
        try:
            connection.request("GET", f"/api/v1/{path}")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.api(f"query?query={quote(expression)}")["result"]
        return found

    def targets(self) -> dict[str, tuple[str, str]]:
        """Service and health by instance."""
        found = self.api("targets")["activeTargets"]
        return {one["labels"]["instance"]: (one["labels"]["service"], one["health"]) for one in found}


@pytest.fixture(scope="module")
def prometheus(site: Site) -> Iterator[Prometheus]:
    directory = site.directory / "prometheus"
    made = Prometheus(site.server.namespace, directory)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def scraped(mesh: Mesh) -> Iterator[Member]:
    """An http and a tcp service, and a caller of both on the other host; all three registered for Prometheus."""
    members = [
        watched(mesh, Service("seen-web", "http")),
        watched(mesh, Service("seen-db")),
        watched(
            mesh,
            Service(
                "seen-caller",
                host="b",
                upstreams=(upstream("seen-web", WEB_PORT), upstream("seen-db", DB_PORT)),
            ),
        ),
    ]
    for member in members:
        member.wait_ready()
    for member in members:
        member.wait_healthy(mesh.site.client)
    caller = members[-1]
    wait_until("web to answer", lambda: http_get(caller.namespace, WEB_PORT).status == 200, 20)
    wait_until("db to answer", lambda: tcp_ask(caller.namespace, DB_PORT), 20)
    yield caller
    for member in members:
        # A clean end takes the registration away.
        assert member.sidecar.stop() == 0


def watched(mesh: Mesh, service: Service) -> Member:
    port = 18000 + mesh.site.number()
    address = mesh.site.agent(service.host).namespace.address
    member = mesh.add(service, "--stats-addr", f"{address}:{port}", "--stats-service-register")
    member.sidecar.stats_port = port
    member.sidecar.stats_host = address
    return member


def call_both(caller: Member) -> None:
    for _ in range(20):
        assert http_get(caller.namespace, WEB_PORT).status == 200
        assert tcp_ask(caller.namespace, DB_PORT) == "seen-db"


@pytest.mark.timeout(240)
@on_2_8
def test_it_finds_the_sidecars_and_every_panel_and_rule_has_data_or_is_silent_as_it_should(
    mesh: Mesh, scraped: Member, prometheus: Prometheus
) -> None:
    expected = {f"seen-{name}": (f"seen-{name}", "up") for name in ("web", "db", "caller")}
    wait_until("all three to be scraped", lambda: prometheus.targets() == expected, 60, 0.5)
    # By the caller's sidecar and by the called one's, which are not scraped at the same moment.
    seen = (
        'sum(hcc_upstream_requests_total{source="seen-caller",destination="seen-web"})',
        'sum(hcc_inbound_requests_total{destination="seen-web"})',
    )
    before = {one: value(prometheus, one) for one in seen}

    def more_was_seen() -> bool:
        call_both(scraped)
        return all(value(prometheus, one) > before[one] for one in seen)

    # Two samples at least, so that there are rates.
    wait_until("the traffic to be seen", more_was_seen, 30, 1.0)
    mesh.intend("seen-caller", "seen-db", "deny")
    wait_until("a refusal", lambda: is_refused(lambda: tcp_ask(scraped.namespace, DB_PORT)), 20)
    wait_until("rates", lambda: all(answered(prometheus, query.with_variables(WINDOW)) for query in queries()), 30, 1.0)

    rules = _rules(prometheus)
    assert {rule["name"] for rule in rules if rule["type"] == "recording"} == recorded()
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []
    # A scrape that came late makes one pending for a moment.
    wait_until("no alert", lambda: {rule.get("state", "inactive") for rule in _rules(prometheus)} == {"inactive"})
    # Rules are evaluated at their own moments, up to an interval after the samples that a panel already shows.
    wait_until("every rule to have data", lambda: all_have_data(prometheus), 30, 1.0)
    wait_until("the rate of requests", lambda: value(prometheus, WEB_RATE) > 0, 30, 1.0)


def all_have_data(prometheus: Prometheus) -> bool:
    for name in {name for expression in rule_expressions() for name in names(expression)}:
        assert prometheus.query(name), f"no data for {name}"
    return True


def answered(prometheus: Prometheus, expression: str) -> bool:
    found = prometheus.query(expression)
    assert found or MAY_BE_EMPTY in expression, f"no data: {expression}"
    return True


def _rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]


def value(prometheus: Prometheus, expression: str) -> float:
    found = prometheus.query(expression)
    return float(found[0]["value"][1]) if found else 0.0
