"""The status of real sidecars, over both sockets, and when HAProxy hangs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hcc.actors.status import CallerStatus, ServerState, Status, from_json
from tests.e2e.clients import http_get, is_refused, tcp_ask
from tests.e2e.mesh import Member
from tests.e2e.standing import DB_PORT, WEB_PORT, Standing
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e


def status(member: Member) -> Status:
    code, text = member.sidecar.fetch("/api/v1/status")
    assert code == 200, text
    return from_json(json.loads(text))


def test_the_status_shows_endpoints_as_consul_and_haproxy_have_them_and_when_they_changed(standing: Standing) -> None:
    assert http_get(standing.client, WEB_PORT).status == 200

    shown = status(standing.caller)

    assert shown.readiness.ready
    assert shown.sidecar.service_id == "caller"
    assert shown.versions.consul.startswith("1.")
    upstreams = {one.name: one for one in shown.upstreams}
    (web,) = upstreams["web"].endpoints
    assert (web.address, web.health, web.state) == (standing.web.namespace.address, "passing", ServerState.UP)
    assert upstreams["web"].protocol == "http"
    assert upstreams["ghost-http"].endpoints == ()
    # Tests before may have changed Consul's CA: it lists the old roots, too.
    trusted = standing.site.client.root_pems().count("BEGIN CERTIFICATE")
    assert [one.kind for one in shown.certificates] == ["leaf", *["root"] * trusted]
    assert all(watch.age_s < 90 for watch in shown.watches if not watch.problem)
    assert shown.plans

    began = time.time()
    standing.web.set_health("critical")
    try:
        wait_until("HAProxy to take it out", lambda: endpoint(standing, "web") == ("critical", "maintenance"), 20)
        changed_at = {one.name: one for one in status(standing.caller).upstreams}["web"].endpoints[0].changed_at
        assert changed_at is not None
        assert began - 1 <= changed_at <= time.time()
    finally:
        standing.web.set_health("passing")
        standing.web.wait_healthy(standing.site.client)
    wait_until("HAProxy to use it again", lambda: endpoint(standing, "web") == ("passing", "up"), 20)


def endpoint(standing: Standing, name: str) -> tuple[str, str]:
    upstream = next(one for one in status(standing.caller).upstreams if one.name == name)
    return upstream.endpoints[0].health, upstream.endpoints[0].state.value


def test_a_caller_is_named_and_counted_when_it_is_let_in_and_when_it_is_denied(
    standing: Standing, haproxy_version: str
) -> None:
    server, labels = standing.site.server, 'datacenter="dc1",destination="db",protocol="tcp"'
    counts, sessions = standing.db.sidecar.metrics, f'hcc_caller_sessions_total{{{labels},source="caller"}}'

    # HAProxy counts by caller as soon as it knows the caller, and can have a line for it without a reload.
    counted = haproxy_version != "2.2"

    def caller() -> CallerStatus | None:
        # Other tests on this stage may have called as somebody else.
        return next((one for one in status(standing.db).callers if one.service == "caller"), None)

    def decided(verdict: str, why: str = "") -> bool:
        found = caller()
        return found is not None and found.verdict == verdict and why in found.reason

    def called() -> bool:
        assert tcp_ask(standing.client, DB_PORT) == "db"
        return counts().get(sessions, 0) > 0 if counted else caller() is not None

    wait_until("the caller", called, 20, 0.5)
    found = caller()
    assert found is not None
    assert (found.verdict, found.current) == ("allow", True)
    assert (found.sessions is not None) == counted

    before = counts()[f"hcc_inbound_denied_total{{{labels}}}"]
    server.set_intention("caller", "db", "deny")
    try:
        wait_until("a refusal", lambda: is_refused(lambda: tcp_ask(standing.client, DB_PORT)), 20)
        wait_until("the reason", lambda: decided("deny", "caller -> deny"))

        def counted_too() -> bool:
            # What was seen first may have been let in, and then cut.
            assert is_refused(lambda: tcp_ask(standing.client, DB_PORT))
            return counts()[f"hcc_inbound_denied_total{{{labels}}}"] > before

        wait_until("the count", counted_too)
    finally:
        server.remove_intention("caller", "db")
    wait_until("an answer again", lambda: tcp_ask(standing.client, DB_PORT) == "db", 20)
    wait_until("the verdict of today", lambda: decided("allow"))


def test_the_page_is_served_with_a_policy_that_lets_nothing_run(standing: Standing) -> None:
    connection = standing.caller.namespace.http(standing.caller.sidecar.stats_port)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    assert response.status == 200
    assert (response.getheader("Content-Security-Policy") or "").startswith("default-src 'none'")
    assert "<h1>caller</h1>" in text
    assert standing.web.namespace.address in text


def test_a_haproxy_that_hangs_makes_neither_metrics_nor_status_hang(standing: Standing) -> None:
    sidecar = standing.pages.sidecar
    time.sleep(1.5)  # what was read before is kept for a second
    with frozen(sidecar.worker_pid()):
        # Each of these gives up after some seconds.
        assert sidecar.metrics()["hcc_haproxy_stats_up"] == 0.0
        shown = status(standing.pages)
        assert "does not answer" in shown.haproxy.problem
        assert shown.actors
    wait_until("figures again", lambda: sidecar.metrics()["hcc_haproxy_stats_up"] == 1.0, 10)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until("all of its threads to stop", lambda: set(states(pid)) == {"T"}, 5)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def states(pid: int) -> list[str]:
    """Of every thread, as in proc(5)."""
    files = Path(f"/proc/{pid}/task").glob("*/stat")
    return [file.read_text().rpartition(") ")[2][0] for file in files]
