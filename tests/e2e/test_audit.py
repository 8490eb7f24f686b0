"""`--intentions audit`: everybody is let in, and whom enforcing would deny is logged and counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.clients import http_get, read_line, tcp_ask
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
LENIENT_TCP, LENIENT_HTTP = 9811, 9812
LINE = "let in, would be denied: source="


@pytest.fixture(scope="module")
def lenient(site: Site, haproxy: str) -> Iterator[tuple[Member, Member]]:
    """A tcp and an http service that call themselves."""
    mesh = Mesh(site, haproxy)
    names = ("lenient-tcp", "lenient-http")
    try:
        tcp, http = mesh.join(
            Service(names[0], upstreams=(upstream(names[0], LENIENT_TCP),)),
            Service(names[1], "http", upstreams=(upstream(names[1], LENIENT_HTTP),)),
            flags=("--intentions", "audit"),
        )
        yield tcp, http
    finally:
        for name in names:
            site.server.delete(f"/v1/config/service-intentions/{name}")
        mesh.close()


def counted(member: Member) -> float:
    return member.sidecar.metrics()["hcc_audit_denials_total"]


def rested(member: Member) -> float:
    """The count when it rests: a worker counts after its answer."""

    def twice() -> float | None:
        before = counted(member)
        time.sleep(0.5)
        return before if counted(member) == before else None

    return wait_until("the count to rest", twice) or 0.0


def status_of(member: Member, path: str) -> int:
    return http_get(member.namespace, LENIENT_HTTP, path).status


def deny(site: Site, service: str, *permissions: dict[str, object]) -> None:
    """The service denied to itself; with permissions, by these."""
    source = {"Name": service} | ({"Permissions": list(permissions)} if permissions else {"Action": "deny"})
    site.server.put("/v1/config", {"Kind": "service-intentions", "Name": service, "Sources": [source]})


def test_a_denied_tcp_caller_gets_in_each_time_and_is_counted_each_time(
    site: Site, lenient: tuple[Member, Member]
) -> None:
    tcp, _ = lenient
    with tcp.namespace.connect("127.0.0.1", LENIENT_TCP) as kept:
        kept.sendall(b"WHO\n")
        assert read_line(kept) == "lenient-tcp"
        deny(site, "lenient-tcp")
        wait_until("a count", lambda: tcp_ask(tcp.namespace, LENIENT_TCP) == "lenient-tcp" and counted(tcp) > 0)
        before = rested(tcp)
        for _ in range(5):
            assert tcp_ask(tcp.namespace, LENIENT_TCP) == "lenient-tcp"
        wait_until("the count", lambda: counted(tcp) == before + 5)
        kept.sendall(b"WHO\n")
        assert read_line(kept) == "lenient-tcp", "its session was cut"
    assert tcp.sidecar.metrics()["hcc_sessions_cut_total"] == 0
    wait_until("a line", lambda: f"{LINE}lenient-tcp reason='intention lenient-tcp -> deny" in tcp.sidecar.log_text())
    assert "intentions are only audited" in tcp.sidecar.log_text()


def test_denied_requests_go_through_and_are_counted_one_by_one(site: Site, lenient: tuple[Member, Member]) -> None:
    _, http = lenient
    status = partial(status_of, http)
    assert status("/who") == 200
    deny(site, "lenient-http")
    wait_until("a count", lambda: status("/who") == 200 and counted(http) > 0)
    before = rested(http)
    assert [status("/who") for _ in range(5)] == [200] * 5
    wait_until("the count", lambda: counted(http) == before + 5)
    wait_until("a line", lambda: f"{LINE}lenient-http reason='intention lenient-http" in http.sidecar.log_text())


def test_requests_that_rules_deny_go_through_as_they_came_and_are_counted(
    site: Site, lenient: tuple[Member, Member]
) -> None:
    _, http = lenient
    status = partial(status_of, http)
    deny(site, "lenient-http", {"Action": "deny", "HTTP": {"PathPrefix": "/headers"}})

    def ruled() -> bool:
        before = counted(http)
        return [status("/who"), status("/headers"), counted(http) - before] == [200, 200, 1]

    wait_until("the rules", ruled)
    before = rested(http)
    as_sent = status("/who/../headers")
    assert as_sent == http_get(http.namespace, http.app_port, "/who/../headers").status, "the path was changed"
    assert status("/headers%00") == http_get(http.namespace, http.app_port, "/headers%00").status
    assert status("/who") == 200
    wait_until("the count", lambda: counted(http) == before + 2)
