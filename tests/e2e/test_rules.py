"""Layer-7 intentions: HAProxy decides request by request, and a change of rules reloads nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from hcc.haproxy.capabilities import Feature
from hcc.mesh.rules import NAME_PREFIX
from tests.e2e.clients import grpc_call, http2_client, http_get, kept_get, kept_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member
from tests.e2e.standing import H2_PORT, RPC_PORT, WEB_PORT, Standing
from tests.e2e.versions import can
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e


@contextmanager
def permissions(standing: Standing, destination: str, *rules: dict[str, Any]) -> Iterator[None]:
    """The rules while in the block; after it no rule governs any more.

    Without that wait the rules of one test can pass for the equal ones of the next: it sees them work, and then go.
    """
    server = standing.site.server
    member: Member = getattr(standing, destination)
    source = {"Name": "caller", "Permissions": list(rules)}
    entry = {"Kind": "service-intentions", "Name": destination, "Sources": [source]}
    server.put("/v1/config", entry)
    try:
        yield
    finally:
        server.delete(f"/v1/config/service-intentions/{destination}")
        wait_until(f"no rules for {destination}", lambda: not governed(member))


def governed(member: Member) -> bool:
    """Whether rules decide on the requests of a caller that HAProxy knows."""
    sidecar = member.sidecar
    return NAME_PREFIX in sidecar.runtime(f"show map {sidecar.state_dir}/verdicts.map")


def allow(**http: Any) -> dict[str, Any]:
    return {"Action": "allow", "HTTP": http}


def deny(**http: Any) -> dict[str, Any]:
    return {"Action": "deny", "HTTP": http}


def status(standing: Standing, path: str, method: str = "GET", **headers: str) -> int:
    connection = standing.client.http(WEB_PORT)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"host": "web", **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        if method == "PUT":
            connection.putheader("content-length", "0")
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_first_permission_that_matches_decides_and_else_the_default(standing: Standing) -> None:
    assert http_get(standing.client, WEB_PORT).status == 200
    worker = standing.web.sidecar.worker_pid()
    rules = (deny(PathPrefix="/headers"), allow(PathExact="/who", Methods=["GET"]), deny(PathPrefix="/who"))
    with permissions(standing, "web", *rules):
        wait_until("the rules", lambda: status(standing, "/headers") == 403)
        assert status(standing, "/who") == 200
        assert status(standing, "/who?x=/headers") == 200
        assert status(standing, "/who", "PUT") == 403
        assert status(standing, "/whoever") == 403
        assert status(standing, "/seen") == 200, "no permission matches, and the default is to allow"
        with permissions(standing, "web", deny(PathRegex="/se+n")):
            wait_until("the other rules", lambda: status(standing, "/seen") == 403)
            assert status(standing, "/headers") == 200
    wait_until("no rules", lambda: status(standing, "/seen") == 200)
    assert standing.web.sidecar.worker_pid() == worker, "a change of rules reloaded HAProxy"


def test_a_refused_request_is_logged_with_its_caller_and_counted(standing: Standing) -> None:
    sidecar = standing.web.sidecar
    with permissions(standing, "web", deny(PathPrefix="/headers")):
        wait_until("the rules", lambda: status(standing, "/headers") == 403)

        def denials() -> float:
            return sidecar.metrics()['hcc_spoe_verdicts_total{verdict="deny"}']

        def rested() -> bool:
            # A worker counts after its answer.
            before = denials()
            time.sleep(0.5)
            return denials() == before

        wait_until("the count to rest", rested)
        before = denials()
        assert status(standing, "/headers/x?secret=1") == 403
        wait_until("the count", lambda: denials() == before + 1)
        line = "denied: source=caller reason='no permission allows GET /headers"
        # Of many in ten seconds the first ten are told, and there were many before.
        wait_until("a line", lambda: status(standing, "/headers") == 403 and line in sidecar.log_text(), 25.0, 0.5)
        assert "secret" not in sidecar.log_text()


def test_a_path_is_looked_at_in_its_normal_form(standing: Standing, haproxy_version: str) -> None:
    with permissions(standing, "web", deny(PathPrefix="/headers")):
        wait_until("the rules", lambda: status(standing, "/headers") == 403)
        refused = (403,) if can(haproxy_version, Feature.NORMALIZE_URI) else (400, 403)
        for path in ("/%68eaders", "/who/../headers", "/./headers", "/who/%2e%2e/headers", "/who\\..\\headers"):
            assert status(standing, path) in refused, path
        assert status(standing, "/headers%00") == 400
        assert status(standing, "/Headers") == 200


def test_headers_decide(standing: Standing) -> None:
    role = {"Name": "x-role", "Exact": "admin"}
    with permissions(standing, "web", allow(Header=[role]), deny(PathPrefix="/")):
        wait_until("the rules", lambda: status(standing, "/who") == 403)
        wait_until("the header to be looked at", lambda: status(standing, "/who", x_role="admin") == 200)
        assert status(standing, "/who", x_role="Admin") == 403
        with permissions(standing, "web", allow(Header=[role | {"Invert": True}]), deny(PathPrefix="/")):
            wait_until("the rules", lambda: status(standing, "/who", x_role="user") == 200)
            assert status(standing, "/who", x_role="admin") == 403
            assert status(standing, "/who") == 403
    wait_until("no rules", lambda: status(standing, "/who") == 200)


def test_rules_on_another_header_refuse_nobody_else_while_haproxy_is_reloaded_for_them(standing: Standing) -> None:
    sidecar = standing.web.sidecar
    # A worker that was reloaded for rules of before starts with the verdicts of now.
    sidecar.wait_rest()
    assert http_get(standing.client, WEB_PORT).status == 200
    name = f"x-fool-{standing.site.number()}"
    worker = sidecar.worker_pid()
    with Load(kept_requests(standing.client, WEB_PORT, "web")) as load:
        with permissions(standing, "web", deny(Header=[{"Name": name, "Exact": "yes"}]), allow(PathPrefix="/")):
            wait_until("the rule", lambda: status(standing, "/who", **{name: "yes"}) == 403)
            load.go_on(50)
        load.go_on(50)
    load.assert_clean()
    assert sidecar.worker_pid() != worker


def test_rules_on_another_header_refuse_nobody_else_beside_a_haproxy_that_ran_before_either(standing: Standing) -> None:
    sidecar = standing.web.sidecar
    before, name = (f"x-{word}-{standing.site.number()}" for word in ("jester", "fool"))
    with permissions(standing, "web", deny(Header=[{"Name": before, "Exact": "yes"}]), allow(PathPrefix="/")):
        wait_until("the rule before", lambda: status(standing, "/who", **{before: "yes"}) == 403)
        sidecar.wait_rest()
        sidecar.kill()
        sidecar.start()
        sidecar.wait_ready()
        sidecar.wait_rest()
        rules = deny(Header=[{"Name": name, "Exact": "yes"}]), allow(PathPrefix="/")
        with Load(kept_requests(standing.client, WEB_PORT, "web")) as load, permissions(standing, "web", *rules):
            wait_until("the rule", lambda: status(standing, "/who", **{name: "yes"}) == 403)
            load.go_on(50)
        load.assert_clean()


def test_rules_hold_on_kept_connections_of_every_protocol(standing: Standing) -> None:
    kept = standing.client.http(WEB_PORT)
    try:
        assert kept_get(kept).status == 200
        with permissions(standing, "web", deny(PathExact="/who")):
            wait_until("the kept connection to be refused", lambda: kept_get(kept).status == 403)
        wait_until("the kept connection to be allowed", lambda: kept_get(kept).status == 200)
    finally:
        kept.close()
    with http2_client(standing.client, H2_PORT) as client:
        assert client.get("/")[0].status == 200
        with permissions(standing, "pages", deny(PathExact="/")):
            wait_until("the stream to be refused", lambda: client.get("/")[0].status == 403)
        wait_until("the stream to be allowed", lambda: client.get("/")[0].status == 200)


def test_a_grpc_method_can_be_denied(standing: Standing) -> None:
    assert "who" in grpc_call(standing.client, RPC_PORT, "hi")
    with permissions(standing, "rpc", deny(PathPrefix="/")):
        wait_until(
            "the call to be refused",
            lambda: grpc_call(standing.client, RPC_PORT, "hi").get("code") == "PERMISSION_DENIED",
        )
    wait_until("the call to be allowed", lambda: "who" in grpc_call(standing.client, RPC_PORT, "hi"))


def test_what_rules_decide_survives_a_reload(standing: Standing) -> None:
    sidecar = standing.web.sidecar
    registered = standing.web.service
    with permissions(standing, "web", deny(PathExact="/seen")):
        wait_until("the rules", lambda: status(standing, "/seen") == 403)
        worker = sidecar.worker_pid()
        try:
            config = registered.config | {"local_connect_timeout_ms": 3000 + standing.site.number()}
            standing.web.register(replace(registered, config=config))
            wait_until("the reload", lambda: sidecar.worker_pid() != worker)
            assert status(standing, "/who") == 200
            assert status(standing, "/seen") == 403
        finally:
            sidecar.wait_rest()
            worker = sidecar.worker_pid()
            standing.web.register(registered)
            wait_until("the reload back", lambda: sidecar.worker_pid() != worker)
            sidecar.wait_rest()
