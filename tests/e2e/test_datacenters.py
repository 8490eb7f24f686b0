"""Two datacenters, joined over a WAN: services of one call those of the other, with certificates of both."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.consul_agent import acls
from tests.e2e.agents import ConsulAgent, server_config
from tests.e2e.certificates import change_ca, mesh_certificate, served_certificate
from tests.e2e.clients import fresh_requests, http_get, is_refused, kept_requests, tcp_ask, tcp_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import joined_pair
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import stays, wait_until

pytestmark = pytest.mark.e2e
WEB_PORT, DB_PORT = 9671, 9672
JOINED_S, RENEWED_S = 40.0, 90.0


@dataclass
class Federation:
    """Web is in both datacenters, db in dc2; the caller in dc1 calls db there, and web in dc1 or else in dc2.

    Db calls web in dc1.
    """

    mesh: Mesh
    web: Member
    abroad: Member
    db: Member
    caller: Member

    @property
    def primary(self) -> ConsulAgent:
        return self.mesh.site.server

    @property
    def secondary(self) -> ConsulAgent:
        return self.mesh.site.client

    def answers(self) -> set[str]:
        return {http_get(self.caller.namespace, WEB_PORT).text for _ in range(5)}


@pytest.fixture(scope="module", params=["", "1.8"])
def federated(site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The agents of both datacenters, each a server, in place of a server's and a client's."""
    with _federated(site, str(request.param)) as made:
        yield made


@contextmanager
def _federated(site: Site, line: str, token: str = "") -> Iterator[Site]:
    """Both agents; with a token under ACLs that deny by default, and it is the management token."""
    directory = site.directory / f"wan-{site.number()}"
    directory.mkdir()
    with joined_pair(("p", "s")) as (one, two), ExitStack() as stack:
        whole: dict[str, Any] = {"primary_datacenter": "dc1"}
        if token:
            whole |= acls(line, token)
            whole["acl"]["enable_token_replication"] = True
            whole["acl"]["tokens"]["replication"] = token
        joining = {"datacenter": "dc2", "retry_join_wan": [one.address], "retry_interval_wan": "300ms"}
        agents = [
            ConsulAgent(one, directory / "dc1", server_config("p", one.address) | whole, token, line),
            ConsulAgent(two, directory / "dc2", server_config("s", two.address) | whole | joining, token, line),
        ]
        for agent in agents:
            stack.callback(agent.process.forget)
            stack.callback(agent.process.kill)
            agent.start()
            agent.wait_ready(JOINED_S)
        yield Site(agents[0], agents[1], directory, site.numbers)


@pytest.fixture
def federation(federated: Site, haproxy: str) -> Iterator[Federation]:
    mesh = Mesh(federated, haproxy)
    try:
        resolver = {"Kind": "service-resolver", "Name": "web", "Failover": {"*": {"Datacenters": ["dc2"]}}}
        federated.server.put("/v1/config", resolver)
        calls = (upstream("web", WEB_PORT), upstream("db", DB_PORT, Datacenter="dc2"))
        members = [
            mesh.add(service)
            for service in (
                Service("web", "http"),
                Service("web", "http", host="b", id="web-2"),
                Service("db", host="b", upstreams=(upstream("web", WEB_PORT, Datacenter="dc1"),)),
                Service("caller", upstreams=calls),
            )
        ]
        for member in members:
            member.wait_ready()
            member.wait_healthy(member.agent)
        yield Federation(mesh, *members)
    finally:
        federated.server.delete("/v1/config/service-resolver/web")
        mesh.close()


@on_2_8
@pytest.mark.timeout(240)
def test_a_service_fails_over_to_another_datacenter_and_is_let_in_there_or_not(federation: Federation) -> None:
    caller = federation.caller
    wait_until("db in dc2", lambda: tcp_ask(caller.namespace, DB_PORT) == "db")
    wait_until("web in dc1", lambda: federation.answers() == {"web"})
    with Load(fresh_requests(caller.namespace, WEB_PORT, "web", "web-2")) as load:
        wait_until("the other one to stand by", lambda: "1 standby" in caller.sidecar.command("status").stdout)
        federation.web.set_health("critical")
        wait_until("web in dc2", lambda: federation.answers() == {"web-2"})
        federation.web.set_health("passing")
        federation.web.wait_healthy(federation.web.agent)
        wait_until("web in dc1", lambda: federation.answers() == {"web"})
    load.assert_clean()
    wait_until("web in dc1, from dc2", lambda: http_get(federation.db.namespace, WEB_PORT).text == "web")
    shown = "/ns/default/dc/dc2/svc/db"
    wait_until("its name", lambda: shown in federation.web.sidecar.command("explain", "--source", "db.dc2").stdout)
    federation.mesh.intend("caller", "db", "deny")
    wait_until("the refusal in dc2", lambda: is_refused(lambda: tcp_ask(caller.namespace, DB_PORT)))
    federation.mesh.intend("db", "web", "deny")
    wait_until("the refusal in dc1", lambda: http_get(federation.db.namespace, WEB_PORT).status == 403)


@on_2_8
@pytest.mark.timeout(240)
def test_a_new_ca_of_the_primary_datacenter_costs_no_request_to_the_secondary(
    federation: Federation, tmp_path: Path
) -> None:
    place = federation.caller.namespace
    wait_until("db in dc2", lambda: tcp_ask(place, DB_PORT) == "db")
    before = _issuer(federation, tmp_path)
    with ExitStack() as stack:
        loads = [
            stack.enter_context(Load(tcp_requests(place, DB_PORT, "db"), threads=1, pause_s=0.02)),
            stack.enter_context(Load(kept_requests(place, WEB_PORT, "web"), threads=1, pause_s=0.02)),
        ]
        change_ca(federation.primary)
        wait_until("a leaf of dc2's new CA", lambda: _issuer(federation, tmp_path) != before, RENEWED_S, pause_s=0.3)
        for load in loads:
            load.go_on(50)
    for load in loads:
        load.assert_clean()


@pytest.mark.parametrize("consul_line", ["1.8", "1.14", "1.20"], indirect=True)
@on_2_8
@pytest.mark.timeout(240)
def test_a_token_that_may_see_nothing_in_another_datacenter_takes_no_instance_there_away(
    site: Site, haproxy: str, consul_line: str
) -> None:
    management = str(uuid.uuid4())
    with _federated(site, consul_line, management) as guarded, ExitStack() as stack:
        mesh = Mesh(guarded, haproxy)
        stack.callback(mesh.close)
        mesh.intend("caller", "db", "allow")
        usual, limited = _token(guarded, "caller"), _token(guarded, "caller", "dc1")
        files = [guarded.directory / f"{name}.token" for name in ("db", "caller")]
        for file, secret in zip(files, (_token(guarded, "db"), usual), strict=True):
            file.touch(mode=0o600)
            file.write_text(secret)
        mesh.add(Service("db", host="b"), "--token-file", str(files[0]))
        calls = (upstream("db", DB_PORT, Datacenter="dc2"),)
        caller = mesh.add(Service("caller", upstreams=calls), "--token-file", str(files[1]))
        place = caller.namespace
        wait_until("db in dc2", lambda: tcp_ask(place, DB_PORT) == "db", JOINED_S)
        files[1].write_text(limited)
        caller.sidecar.hang_up()
        wait_until("the token to be read", lambda: "the token changed" in caller.sidecar.log_text())
        # All is asked anew: 1.14 and 1.20 can hold a question for all of its wait when the token loses its rights.
        caller.sidecar.restart("ConsulWatcher")
        wait_until("the refusal in the log", lambda: "give it service:read" in caller.sidecar.log_text(), JOINED_S)
        stays("db serving", lambda: tcp_ask(place, DB_PORT) == "db", 2.0)
        assert "give it service:read" in caller.sidecar.command("status").stdout


def _token(federated: Site, service: str, *datacenters: str) -> str:
    """The secret of a new token with the service's identity, in these datacenters or in all; both know it."""
    identity = {"ServiceName": service, "Datacenters": list(datacenters)}
    made = federated.server.put("/v1/acl/token", {"ServiceIdentities": [identity]})
    secret = str(made["SecretID"])
    known = "/v1/acl/token/self"
    wait_until("the token in dc2", lambda: federated.client.ask("GET", known, token=secret).status == 200, JOINED_S)
    return secret


def _issuer(federation: Federation, directory: Path) -> bytes:
    """Who signed what db in dc2 shows, by key: the names of these CAs are empty."""
    own = mesh_certificate(federation.secondary, "prober", directory)
    host, port, roots = federation.db.namespace.address, federation.db.public_port, federation.secondary.root_pems()
    shown = served_certificate(federation.caller.namespace, host, port, roots, own)
    identifier = shown.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert identifier is not None
    return identifier
