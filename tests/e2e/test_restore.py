"""Consul's servers are given an older snapshot: their indexes go back, and what it says counts at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.binaries import CONSUL_LINES
from tests.e2e.agents import ConsulAgent, server_config
from tests.e2e.clients import http_get
from tests.e2e.mesh import Mesh, Service, Site, upstream
from tests.e2e.namespaces import namespace
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
WEB_PORT = 9691


@pytest.fixture
def agent(site: Site, consul_line: str) -> Iterator[ConsulAgent]:
    with namespace("r") as place:
        directory = site.directory / f"restore-{site.number()}"
        made = ConsulAgent(place, directory, server_config("rho", "127.0.0.1"), line=consul_line)
        try:
            made.start()
            made.wait_ready()
            yield made
        finally:
            made.process.kill()
            made.process.forget()


@pytest.mark.parametrize("consul_line", CONSUL_LINES, indirect=True)
@on_2_8
def test_a_denial_that_an_older_snapshot_brings_back_counts_at_once_and_so_do_later_changes(
    agent: ConsulAgent, site: Site, haproxy: str
) -> None:
    mesh = Mesh(Site(agent, agent, site.directory, site.numbers), haproxy)
    try:
        web, caller = mesh.join(Service("web", "http"), Service("caller", upstreams=(upstream("web", WEB_PORT),)))
        mesh.intend("caller", "web", "deny")
        wait_until("the denial", lambda: http_get(caller.namespace, WEB_PORT).status == 403)
        snapshot = _raw(agent, "GET")
        agent.set_intention("caller", "web", "allow")
        for number in range(100):
            agent.put(f"/v1/kv/{number}", number)
        wait_until("an answer", lambda: http_get(caller.namespace, WEB_PORT).status == 200)

        _raw(agent, "PUT", snapshot)

        wait_until("the denial of before", lambda: http_get(caller.namespace, WEB_PORT).status == 403)
        agent.set_intention("caller", "web", "allow")
        wait_until("an answer again", lambda: http_get(caller.namespace, WEB_PORT).status == 200)
        web.set_health("critical")
        web.wait_unhealthy(agent)
        wait_until("nobody to answer", lambda: http_get(caller.namespace, WEB_PORT).status == 503)
    finally:
        mesh.close()


def _raw(agent: ConsulAgent, method: str, body: bytes = b"") -> bytes:
    """Take a snapshot, or restore it."""
    connection = agent.connection()
    try:
        connection.request(method, "/v1/snapshot", body)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()
