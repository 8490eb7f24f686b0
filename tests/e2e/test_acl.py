"""Under ACLs with default deny: a service identity is enough, doubt refuses, tokens may change."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.binaries import CONSUL_LINES
from tests.consul_agent import acls
from tests.e2e.agents import ConsulAgent, server_config
from tests.e2e.clients import http_get, is_refused, tcp_ask
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import namespace
from tests.e2e.test_ask import asked
from tests.e2e.versions import on_2_6
from tests.e2e.waiting import stays, wait_until

pytestmark = pytest.mark.e2e
VAULT_PORT, SHELF_PORT, ADDED_PORT = 9601, 9602, 9603


@dataclass
class Guarded:
    """A mesh on one agent with ACLs; each sidecar has a token with its own service identity, in a file."""

    mesh: Mesh
    directory: Path

    @property
    def agent(self) -> ConsulAgent:
        return self.mesh.site.server

    def token(self, service: str) -> tuple[str, str]:
        """Accessor and secret of a new token with the service's identity."""
        answer = self.agent.put("/v1/acl/token", {"ServiceIdentities": [{"ServiceName": service}]})
        return answer["AccessorID"], answer["SecretID"]

    def add(self, service: Service) -> tuple[Member, str, Path]:
        """The member, its token's accessor and the token file."""
        accessor, secret = self.token(service.name)
        file = self.directory / f"{service.name}.token"
        file.touch(mode=0o600)
        file.write_text(secret + "\n")
        return self.mesh.add(service, "--token-file", str(file)), accessor, file


@pytest.fixture(scope="module")
def guarded(site: Site, haproxy: str, consul_line: str) -> Iterator[Guarded]:
    secret = str(uuid.uuid4())
    directory = site.directory / f"acl-{site.number()}"
    directory.mkdir()
    with namespace("c") as place:
        config = server_config("gamma", "127.0.0.1") | acls(consul_line, secret)
        agent = ConsulAgent(place, directory / "gamma", config, secret, consul_line)
        try:
            agent.start()
            agent.wait_ready()
            mesh = Mesh(Site(agent, agent, directory, site.numbers), haproxy)
            try:
                yield Guarded(mesh, directory)
            finally:
                mesh.close()
        finally:
            agent.process.kill()
            agent.process.forget()


@pytest.mark.parametrize("consul_line", [CONSUL_LINES[0], CONSUL_LINES[-1]], indirect=True)
@on_2_6
def test_without_an_intention_nobody_is_let_in_and_with_one_the_caller_is(guarded: Guarded) -> None:
    calls = (upstream("vault", VAULT_PORT), upstream("shelf", SHELF_PORT))
    vault, shelf = guarded.add(Service("vault"))[0], guarded.add(Service("shelf", "http"))[0]
    caller, accessor, file = guarded.add(Service("clerk", upstreams=calls))
    for member in (vault, shelf, caller):
        member.wait_ready()
        member.wait_healthy(guarded.agent)
    _default_deny_is_kept(guarded, caller)
    _intentions_open_and_close(guarded, caller)
    _a_new_token_is_read_at_sighup(guarded, caller, accessor, file)


def _default_deny_is_kept(guarded: Guarded, caller: Member) -> None:
    place = caller.namespace
    wait_until("http to be refused", lambda: http_get(place, SHELF_PORT).status == 403)
    stays("tcp refused", lambda: is_refused(lambda: tcp_ask(place, VAULT_PORT)), 0.5)


def _intentions_open_and_close(guarded: Guarded, caller: Member) -> None:
    place = caller.namespace
    for service in ("vault", "shelf"):
        guarded.mesh.intend("clerk", service, "allow")
    wait_until("tcp to be allowed", lambda: tcp_ask(place, VAULT_PORT) == "vault")
    wait_until("http to be allowed", lambda: http_get(place, SHELF_PORT).text == "shelf")
    guarded.agent.remove_intention("clerk", "vault")
    wait_until("tcp to be refused", lambda: is_refused(lambda: tcp_ask(place, VAULT_PORT)))
    assert http_get(place, SHELF_PORT).text == "shelf"


def _a_new_token_is_read_at_sighup(guarded: Guarded, caller: Member, accessor: str, file: Path) -> None:
    file.write_text(guarded.token("clerk")[1] + "\n")
    caller.sidecar.hang_up()
    wait_until("SIGHUP in the log", lambda: "the token changed" in caller.sidecar.log_text())
    guarded.agent.delete(f"/v1/acl/token/{accessor}")
    usual = caller.service
    caller.register(replace(usual, upstreams=(*usual.upstreams, upstream("shelf", ADDED_PORT, Datacenter="dc1"))))
    wait_until("the added upstream", lambda: http_get(caller.namespace, ADDED_PORT).text == "shelf", 20)
    assert caller.sidecar.ready()[0] == 200
    secrets = (guarded.agent.token, file.read_text().strip())
    assert not [secret for secret in secrets if secret in caller.sidecar.log_text()]


@pytest.mark.parametrize("consul_line", [CONSUL_LINES[-1]], indirect=True)
@on_2_6
def test_a_token_that_may_not_read_intentions_lets_nobody_in_and_every_place_says_so(guarded: Guarded) -> None:
    rules = """
        service "mute" { policy = "write" intentions = "deny" }
        service "mute-sidecar-proxy" { policy = "write" }
        service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"""
    policy = guarded.agent.put("/v1/acl/policy", {"Name": "mute", "Rules": rules})
    secret = guarded.agent.put("/v1/acl/token", {"Policies": [{"ID": policy["ID"]}]})["SecretID"]
    file = guarded.directory / "mute.token"
    file.touch(mode=0o600)
    file.write_text(secret)
    mute = guarded.mesh.add(Service("mute"), "--token-file", str(file))

    def not_ready() -> bool:
        status, missing = mute.sidecar.ready()
        return status == 503 and "policy: intentions are not known yet" in missing and "leaf" not in missing

    wait_until("the rest to be there", not_ready)
    said = "intentions for mute: GET /v1/connect/intentions/match"
    wait_until("the reason in the log", lambda: said in mute.sidecar.log_text())
    assert mute.sidecar.log_text().count(said) == 1
    wait_until("what to do about it", lambda: "give it intentions:read" in mute.sidecar.log_text())
    status = asked(mute, "status")
    assert "give it intentions:read" in status.stdout, status.stdout
    doctor = asked(mute, "doctor", "--token-file", str(file), "--haproxy", guarded.mesh.haproxy)
    assert doctor.returncode == 1
    assert "intention:read on mute" in doctor.stdout
    explained = asked(mute, "explain", "--source", "clerk")
    assert (explained.returncode, "no policy yet" in explained.stderr) == (1, True)
