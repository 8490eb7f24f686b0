"""Certificates change under load: neither a failed request nor a reload."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from hcc.haproxy.capabilities import Feature
from tests.e2e.agents import ConsulAgent
from tests.e2e.certificates import bare_certificate, change_ca, mesh_certificate, served_certificate
from tests.e2e.clients import fresh_requests, kept_requests, tcp_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member
from tests.e2e.standing import DB_PORT, WEB_PORT, Standing
from tests.e2e.versions import can
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
# Consul spreads the renewal of leaves after a change of CA over half a minute, after a second change over more.
RENEWED_S = 90.0


@pytest.mark.timeout(240)
def test_a_new_ca_and_its_new_leaves_cost_no_request_and_no_reload_where_haproxy_can(
    standing: Standing, haproxy_version: str, tmp_path: Path
) -> None:
    server = standing.site.server
    listeners = (standing.web, standing.db, standing.pages, standing.rpc)
    before = _workers((*listeners, standing.caller))
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in _loads(standing)]
        old_root = _active_root(server)
        change_ca(server)
        wait_until("another active root", lambda: _active_root(server) != old_root)
        new_ca = _subject(_active_root(server))
        for member in listeners:
            what = f"{member.service.name} to take callers of the new CA"
            wait_until(what, partial(_takes_newcomer, standing, member, tmp_path, new_ca))
        trusting = _workers(listeners)
        wait_until(
            "a leaf of the new CA at one of the listeners",
            lambda: any(_served(standing, member, tmp_path).issuer == new_ca for member in listeners),
            RENEWED_S,
            pause_s=0.3,
        )
        for load in loads:
            load.go_on(50)
    for load in loads:
        load.assert_clean()
    if can(haproxy_version, Feature.SERVER_CERT_UPDATE):
        assert _workers(listeners) == trusting, "a new leaf reloaded"
    if can(haproxy_version, Feature.CA_UPDATE):
        assert _workers((*listeners, standing.caller)) == before, "new roots reloaded"


def _workers(members: tuple[Member, ...]) -> dict[str, int]:
    return {member.service.name: member.sidecar.worker_pid() for member in members}


def _loads(standing: Standing) -> tuple[Load, ...]:
    return (
        Load(fresh_requests(standing.client, WEB_PORT, "web"), threads=1, pause_s=0.02),
        Load(kept_requests(standing.client, WEB_PORT, "web"), threads=1, pause_s=0.02),
        Load(tcp_requests(standing.client, DB_PORT, "db"), threads=1, pause_s=0.02),
    )


def _active_root(server: ConsulAgent) -> str:
    roots = server.get("/v1/agent/connect/ca/roots")
    return next(str(root["RootCert"]) for root in roots["Roots"] if root["ID"] == roots["ActiveRootID"])


def _subject(pem: str) -> x509.Name:
    return x509.load_pem_x509_certificate(pem.encode()).subject


def _takes_newcomer(standing: Standing, member: Member, directory: Path, ca: x509.Name) -> bool:
    """Whether the listener takes a caller whose certificate is of that CA (which Consul issues at once)."""
    name = f"newcomer-{standing.site.number()}"
    pem = bare_certificate(standing.site.server, name, directory)
    assert x509.load_pem_x509_certificate(pem.read_bytes()).issuer == ca
    host, port, roots = member.namespace.address, member.public_port, standing.site.server.root_pems()
    try:
        served_certificate(standing.client, host, port, roots, pem)
    except ssl.SSLError:
        return False
    return True


def _served(standing: Standing, member: Member, directory: Path) -> x509.Certificate:
    host, port, roots = member.namespace.address, member.public_port, standing.site.server.root_pems()
    own = mesh_certificate(standing.site.server, "prober", directory)
    return served_certificate(standing.client, host, port, roots, own)
