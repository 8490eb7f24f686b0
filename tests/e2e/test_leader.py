"""A cluster of three Consul servers loses its leader under load: the last answers serve, and changes arrive again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from tests.e2e.agents import ConsulAgent, client_config, server_config
from tests.e2e.clients import fresh_requests, tcp_ask, tcp_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import namespace
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
WEB_PORT, DB_PORT, ADDED_PORT = 9651, 9652, 9653
SERVERS = ("127.0.1.1", "127.0.1.2", "127.0.1.3")
ELECTED_S = 40.0


@dataclass
class Cluster:
    """Services on a client agent of three servers, which are known by their addresses."""

    mesh: Mesh
    agent: ConsulAgent
    servers: dict[str, ConsulAgent]
    caller: Member

    def leader(self) -> str:
        """The leader's address, empty while there is none."""
        said = str(self.agent.ask("GET", "/v1/status/leader").body)
        return said.rpartition(":")[0] if said.rpartition(":")[0] in self.servers else ""


@pytest.fixture
def cluster(site: Site, haproxy: str) -> Iterator[Cluster]:
    directory = site.directory / f"leader-{site.number()}"
    directory.mkdir()
    with namespace("l") as place, ExitStack() as stack:

        def agent(name: str, config: dict[str, object]) -> ConsulAgent:
            made = ConsulAgent(place, directory / name, config)
            stack.callback(made.process.forget)
            stack.callback(made.process.kill)
            made.start()
            return made

        cluster_of = {"bootstrap_expect": len(SERVERS), "retry_join": list(SERVERS), "retry_interval": "300ms"}
        servers = {
            address: agent(address, server_config(address, address) | cluster_of | {"client_addr": address})
            for address in SERVERS
        }
        client = agent("client", client_config("client", "127.0.0.1", SERVERS[0]) | {"retry_join": list(SERVERS)})
        client.wait_ready(ELECTED_S)
        mesh = Mesh(Site(client, client, directory, site.numbers), haproxy)
        stack.callback(mesh.close)
        calls = (upstream("lweb", WEB_PORT), upstream("ldb", DB_PORT))
        _, _, caller = mesh.join(Service("lweb", "http"), Service("ldb"), Service("lcaller", upstreams=calls))
        yield Cluster(mesh, client, servers, caller)


@on_2_8
def test_a_lost_leader_costs_no_request_and_the_next_one_s_changes_arrive(cluster: Cluster) -> None:
    caller, lost = cluster.caller, cluster.leader()
    place = caller.namespace
    with (
        Load(fresh_requests(place, WEB_PORT, "lweb"), 1, 0.02) as http,
        Load(tcp_requests(place, DB_PORT, "ldb"), 1, 0.02) as tcp,
    ):
        cluster.servers[lost].process.kill()
        wait_until("another leader", lambda: cluster.leader() not in {"", lost}, ELECTED_S)
        added = upstream("ldb", ADDED_PORT, Datacenter="dc1")
        usual = caller.service
        caller.register(replace(usual, upstreams=(*usual.upstreams, added)))
        wait_until("a change", lambda: tcp_ask(place, ADDED_PORT) == "ldb", ELECTED_S)
        cluster.agent.set_intention("lcaller", "lweb", "allow")
        for load in (http, tcp):
            load.go_on(20)
    for load in (http, tcp):
        load.assert_clean()
    wait_until("readiness", lambda: caller.sidecar.ready() == (200, "ready\n"), ELECTED_S)
