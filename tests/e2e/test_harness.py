"""The harness itself: the two servers are real and separate, Consul spans them, the applications answer."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.binaries import CONSUL_LINES, HAPROXY_BRANCHES
from tests.e2e.apps import App
from tests.e2e.clients import (
    grpc_call,
    http2_client,
    http_digest,
    http_get,
    http_put,
    tcp_ask,
    tcp_digest,
    tcp_put,
)
from tests.e2e.load import Load
from tests.e2e.mesh import Site
from tests.e2e.namespaces import NAMES, sweep
from tests.e2e.payload import digest
from tests.e2e.processes import ROOT
from tests.e2e.versions import CONTROLS, DIRECT, pairwise
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
SIZE = 1_000_003
MAKES_ONE = """
from tests.e2e.namespaces import namespace
with namespace("x") as made:
    print(made.name, flush=True)
    input()
"""


def test_every_consul_meets_every_haproxy_and_each_of_both_meets_every_control() -> None:
    chosen = pairwise(HAPROXY_BRANCHES)
    assert {(line, branch) for line, branch, _ in chosen} == set(itertools.product(CONSUL_LINES, HAPROXY_BRANCHES))
    assert {(branch, control) for _, branch, control in chosen} == set(itertools.product(HAPROXY_BRANCHES, CONTROLS))
    # Not counting the newest HAProxy, which the oldest Data Plane API refuses.
    served = {(line, control) for line, branch, control in chosen if branch != HAPROXY_BRANCHES[-1]}
    assert served == set(itertools.product(CONSUL_LINES, CONTROLS))
    newest = {line for line, branch, control in chosen if (branch, control) == (HAPROXY_BRANCHES[-1], DIRECT)}
    assert newest == set(CONSUL_LINES)


def test_the_two_agents_are_one_cluster(site: Site) -> None:
    nodes = wait_until("both nodes in the catalogue", lambda: _nodes(site) == {"alpha", "beta"})
    assert nodes
    assert site.client.get("/v1/agent/self")["Config"]["Server"] is False
    assert site.server.get("/v1/agent/self")["Config"]["Server"] is True


def test_the_client_agent_hands_out_certificates_of_the_mesh(site: Site) -> None:
    leaf = site.client.leaf("anybody")
    context = ssl.create_default_context(cadata=site.client.root_pems())
    assert context.get_ca_certs()
    assert leaf["ServiceURI"].endswith("/svc/anybody")


def test_loopback_ports_of_one_server_are_closed_on_the_other(site: Site, tmp_path: Path) -> None:
    app = App(site.server.namespace, tmp_path, "tcp", 7001, "here")
    try:
        app.start()
        app.wait_ready()
        assert not site.client.namespace.listening(7001)
        with socket.socket() as outside:
            assert outside.connect_ex(("127.0.0.1", 7001)) != 0
    finally:
        app.stop()


@pytest.mark.parametrize("kind", ["tcp", "http", "http2", "grpc"])
def test_applications_answer_without_a_sidecar(site: Site, tmp_path: Path, kind: str) -> None:
    namespace = site.server.namespace
    app = App(namespace, tmp_path, kind, 7002, "bare")
    try:
        app.start()
        app.wait_ready()
        if kind == "tcp":
            assert tcp_ask(namespace, 7002) == "bare"
            assert tcp_put(namespace, 7002, SIZE) == tcp_digest(namespace, 7002, SIZE) == digest(SIZE)
        elif kind == "http":
            assert http_get(namespace, 7002).text == "bare"
            assert http_put(namespace, 7002, SIZE).text == http_digest(namespace, 7002, SIZE) == digest(SIZE)
        elif kind == "http2":
            with http2_client(namespace, 7002) as client:
                assert [answer.body for answer in client.get("/1", "/2", "/3")] == [b"bare\n"] * 3
                assert client.put("/", b"x" * 9000).status == 200
        else:
            assert grpc_call(namespace, 7002, "hi") == {"who": "bare hi", "count": 100, "trailer": "bare"}
    finally:
        app.stop()


def test_namespaces_of_a_killed_run_are_swept_and_those_of_a_living_one_are_not(site: Site) -> None:
    with subprocess.Popen([sys.executable, "-c", MAKES_ONE], stdin=-1, stdout=-1, text=True, cwd=ROOT) as other:
        assert other.stdout
        name = other.stdout.readline().strip()
        assert name == f"hcc-{other.pid}-x"
        inside = ("ip", "netns", "pids", name)
        sleeper = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "60"])
        wait_until("it to be inside", lambda: str(sleeper.pid) in subprocess.check_output(inside, text=True).split())
        assert name not in sweep()
        other.kill()
    try:
        sweep()
        assert not (NAMES / name).exists()
        assert sleeper.wait(5) != 0
    finally:
        sleeper.kill()
        sleeper.wait(5)
    assert site.server.namespace.pids()


def test_a_load_counts_answers_and_failures_by_reason() -> None:
    numbers = itertools.count()

    def request() -> None:
        if next(numbers) % 5 == 4:
            raise ConnectionResetError("now and then")

    with Load(lambda: contextlib.nullcontext(request), threads=1, pause_s=0) as load:
        load.go_on(50)
    assert load.failed.keys() == {"ConnectionResetError: now and then"}
    with pytest.raises(AssertionError, match="now and then"):
        load.assert_clean()


def _nodes(site: Site) -> set[str]:
    return {node["Node"] for node in site.client.get("/v1/catalog/nodes")}
