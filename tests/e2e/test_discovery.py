"""Consul's changes reach the traffic: health, weights, instances, queries, upstreams."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.e2e.clients import fresh_requests, http_get, is_refused, kept_get, kept_requests, tcp_ask
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import Namespace
from tests.e2e.versions import on_2_6, on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
PORT, QUERY_PORT, OTHER_PORT, MOVED_PORT = 9301, 9302, 9303, 9304
WEIGHTS = {"Passing": 3, "Warning": 1}


@dataclass
class Shop:
    """Two instances of one http service (the first with thrice the weight) and one caller."""

    mesh: Mesh
    one: Member
    two: Member
    buyer: Member

    @property
    def client(self) -> Namespace:
        return self.buyer.namespace

    def settled_worker(self) -> int:
        """The worker of the buyer's HAProxy when nothing of before is on its way any more."""
        self.buyer.sidecar.wait_rest()
        return self.buyer.sidecar.worker_pid()

    def shares(self, requests: int = 80) -> dict[str, float]:
        """Which part of the requests each instance answered; a failed request counts under its status."""
        replies = (http_get(self.client, PORT) for _ in range(requests))
        counts = Counter(reply.text if reply.status == 200 else str(reply.status) for reply in replies)
        return {name: count / requests for name, count in counts.items()}

    def wait_shares(self, what: str, expected: dict[str, float]) -> None:
        """Return when the shares are these, within a tenth."""

        def near() -> bool:
            shares = self.shares()
            assert shares.keys() == expected.keys(), shares
            assert all(abs(shares[name] - share) < 0.1 for name, share in expected.items()), shares
            return True

        # So many requests take their time, and the first sample may be one of before and after.
        wait_until(what, near, 60)

    def quick_answer(self, timeout_s: float) -> str:
        """Who answered a request; OSError when nobody did in that time."""
        with contextlib.closing(self.client.http(PORT, timeout_s=timeout_s)) as connection:
            return kept_get(connection).text

    def wait_silent(self, number: int) -> None:
        """Return when so many instances are said to be silent; requests, that hang perhaps, go on until then."""

        def found() -> bool:
            with contextlib.suppress(OSError):
                self.quick_answer(1.0)
            return self.buyer.sidecar.metrics()["hcc_silent_endpoints"] == number

        wait_until(f"{number} to be silent", found, 40)

    def wait_usual(self) -> None:
        for member in (self.one, self.two):
            member.wait_healthy(self.mesh.site.client)
        self.wait_shares("the usual shares", {"shop-1": 0.75, "shop-2": 0.25})


@contextlib.contextmanager
def hanging(member: Member) -> Iterator[None]:
    """Its hcc and HAProxy stopped, but not dead: the kernel takes connections for them, Consul's check included."""
    with contextlib.ExitStack() as thawed:
        for pid in (member.sidecar.process.pid, *member.sidecar.haproxy_masters(), member.sidecar.worker_pid()):
            os.kill(pid, signal.SIGSTOP)
            thawed.callback(os.kill, pid, signal.SIGCONT)
        yield


@pytest.fixture(scope="module")
def shop(site: Site, haproxy: str) -> Iterator[Shop]:
    mesh = Mesh(site, haproxy)
    try:
        buyer = Service("buyer", host="b", upstreams=(upstream("shop", PORT),))
        one = Service("shop", "http", id="shop-1", weights=WEIGHTS)
        yield Shop(mesh, *mesh.join(one, Service("shop", "http", id="shop-2"), buyer))
    finally:
        mesh.close()


def test_requests_are_shared_by_weight(shop: Shop) -> None:
    shop.wait_usual()


def test_a_warning_instance_gets_its_warning_weight_without_a_reload(shop: Shop) -> None:
    worker = shop.settled_worker()
    shop.one.set_health("warning")
    try:
        shop.wait_shares("even shares", {"shop-1": 0.5, "shop-2": 0.5})
    finally:
        shop.one.set_health("passing")
    shop.wait_usual()
    assert shop.buyer.sidecar.worker_pid() == worker


def test_an_instance_that_fails_its_check_and_comes_back_costs_no_request_and_no_reload(shop: Shop) -> None:
    worker = shop.settled_worker()
    with Load(fresh_requests(shop.client, PORT, "shop-1", "shop-2")) as load:
        shop.one.set_health("critical")
        try:
            shop.wait_shares("the first to be left out", {"shop-2": 1.0})
        finally:
            shop.one.set_health("passing")
        shop.wait_usual()
    load.assert_clean()
    assert shop.buyer.sidecar.worker_pid() == worker


@on_2_8
def test_a_service_whose_every_instance_fails_is_unavailable_and_comes_back(shop: Shop) -> None:
    worker = shop.settled_worker()
    try:
        shop.one.set_health("critical")
        shop.two.set_health("critical")
        wait_until("503", lambda: http_get(shop.client, PORT).text == "no healthy upstream")
    finally:
        shop.one.set_health("passing")
        shop.two.set_health("passing")
    shop.wait_usual()
    assert shop.buyer.sidecar.worker_pid() == worker


@on_2_6
def test_an_application_that_is_stopped_is_left_out_when_its_check_says_so_and_comes_back(shop: Shop) -> None:
    usual, app = shop.two.service, shop.two.app
    assert app is not None
    check = {"Check": {"Name": "app", "TCP": f"127.0.0.1:{app.port}", "Interval": "1s", "Status": "passing"}}
    shop.two.register(replace(usual, more=check))
    try:
        app.stop()
        shop.wait_shares("the stopped one to be left out", {"shop-1": 1.0})
        app.start()
        shop.wait_usual()
    finally:
        shop.two.register(usual)
    shop.wait_usual()


def test_an_instance_that_is_deregistered_and_registered_again_costs_no_request_and_no_reload(shop: Shop) -> None:
    worker = shop.settled_worker()
    with Load(fresh_requests(shop.client, PORT, "shop-1", "shop-2")) as load:
        shop.two.agent.deregister("shop-2")
        try:
            shop.wait_shares("the second to be left out", {"shop-1": 1.0})
        finally:
            shop.two.come_back()
        shop.wait_usual()
    load.assert_clean()
    assert shop.buyer.sidecar.worker_pid() == worker


def test_an_instance_that_hangs_is_left_out_until_it_answers_again_without_a_reload(shop: Shop) -> None:
    sidecar, worker = shop.buyer.sidecar, shop.settled_worker()
    with hanging(shop.one):
        shop.wait_silent(1)
        sidecar.wait_rest()
        assert {shop.quick_answer(3.0) for _ in range(20)} == {"shop-2"}
        assert "maintenance, silent" in sidecar.command("status").stdout
    shop.wait_silent(0)
    shop.wait_usual()
    assert sidecar.worker_pid() == worker


@on_2_8
def test_where_all_instances_hang_another_target_of_the_resolver_takes_over_without_a_reload(shop: Shop) -> None:
    boutique = shop.mesh.join(Service("boutique", "http"))[0]
    server, sidecar = shop.mesh.site.server, shop.buyer.sidecar
    resolver = {"Kind": "service-resolver", "Name": "shop", "Failover": {"*": {"Service": "boutique"}}}
    server.put("/v1/config", resolver)
    try:
        wait_until("the other one to stand by", lambda: "1 standby" in sidecar.command("status").stdout)
        worker = shop.settled_worker()
        with hanging(shop.one), hanging(shop.two):
            shop.wait_silent(2)
            sidecar.wait_rest()
            wait_until("the other service", lambda: shop.quick_answer(3.0) == "boutique")
            assert {shop.quick_answer(3.0) for _ in range(20)} == {"boutique"}
        shop.wait_silent(0)
        shop.wait_usual()
        assert sidecar.worker_pid() == worker
    finally:
        server.delete("/v1/config/service-resolver/shop")
    wait_until("nobody to stand by", lambda: "standby" not in sidecar.command("status").stdout)
    boutique.remove()


def test_weights_change_by_registration_without_a_reload(shop: Shop) -> None:
    worker = shop.settled_worker()
    usual = shop.two.service
    try:
        shop.two.register(replace(usual, weights={"Passing": 9, "Warning": 1}))
        shop.wait_shares("the second to get most", {"shop-1": 0.25, "shop-2": 0.75})
    finally:
        shop.two.register(usual)
    shop.wait_usual()
    assert shop.buyer.sidecar.worker_pid() == worker


def test_a_third_instance_joins_and_leaves_under_load_without_a_failed_request_or_a_reload(shop: Shop) -> None:
    worker = shop.settled_worker()
    with Load(kept_requests(shop.client, PORT, "shop-1", "shop-2", "shop-3")) as load:
        third = shop.mesh.join(Service("shop", "http", id="shop-3"))[0]
        try:
            shop.wait_shares("three instances", {"shop-1": 0.6, "shop-2": 0.2, "shop-3": 0.2})
            third.agent.deregister("shop-3")
            shop.wait_usual()
            load.go_on(50)
        finally:
            third.remove()
    load.assert_clean()
    assert shop.buyer.sidecar.worker_pid() == worker


def test_a_redirect_to_another_service_and_back_costs_no_request(shop: Shop) -> None:
    boutique = shop.mesh.join(Service("boutique", "http"))[0]
    server = shop.mesh.site.server
    redirect = {"Kind": "service-resolver", "Name": "shop", "Redirect": {"Service": "boutique"}}
    with Load(kept_requests(shop.client, PORT, "shop-1", "shop-2", "boutique")) as load:
        server.put("/v1/config", redirect)
        try:
            shop.wait_shares("the other service", {"boutique": 1.0})
        finally:
            server.delete("/v1/config/service-resolver/shop")
        shop.wait_usual()
    load.assert_clean()
    boutique.remove()


def test_failover_to_another_service_and_back_costs_no_request_and_no_reload(shop: Shop) -> None:
    boutique = shop.mesh.join(Service("boutique", "http"))[0]
    server, sidecar = shop.mesh.site.server, shop.buyer.sidecar
    resolver = {"Kind": "service-resolver", "Name": "shop", "Failover": {"*": {"Service": "boutique"}}}
    with (
        Load(kept_requests(shop.client, PORT, "shop-1", "shop-2", "boutique")) as kept,
        Load(fresh_requests(shop.client, PORT, "shop-1", "shop-2", "boutique")) as fresh,
    ):
        server.put("/v1/config", resolver)
        try:
            wait_until("the other one to stand by", lambda: "1 standby" in sidecar.command("status").stdout)
            shop.wait_usual()
            worker = shop.settled_worker()
            for one in (shop.one, shop.two):
                one.set_health("critical")
            shop.wait_shares("the other service", {"boutique": 1.0})
            # One more that Consul calls healthy, and where nobody listens.
            check = {"CheckID": "shop-deaf-ttl", "Name": "up", "TTL": "1h", "Status": "passing"}
            deaf = {"Port": 23999, "Checks": [check]}
            server.register({"ID": "shop-deaf", "Name": "shop", "Port": 1, "Connect": {"SidecarService": deaf}})
            try:
                wait_until("it to be known", lambda: "waiting" in sidecar.command("status").stdout)
                shop.wait_shares("the other service still", {"boutique": 1.0})
            finally:
                server.deregister("shop-deaf")
            shop.two.set_health("passing")
            shop.wait_shares("the one that is back", {"shop-2": 1.0})
            shop.one.set_health("passing")
            shop.wait_usual()
            assert sidecar.worker_pid() == worker
        finally:
            for one in (shop.one, shop.two):
                one.set_health("passing")
            server.delete("/v1/config/service-resolver/shop")
        wait_until("nobody to stand by", lambda: "standby" not in sidecar.command("status").stdout)
        shop.wait_usual()
    kept.assert_clean()
    fresh.assert_clean()
    boutique.remove()


def test_a_load_balancer_policy_costs_one_reload_and_no_request_and_endpoints_still_come_and_go(shop: Shop) -> None:
    server, sidecar = shop.mesh.site.server, shop.buyer.sidecar
    balancer = {"Policy": "least_request", "LeastRequestConfig": {"ChoiceCount": 3}}
    worker = shop.settled_worker()
    with Load(kept_requests(shop.client, PORT, "shop-1", "shop-2")) as load:
        server.put("/v1/config", {"Kind": "service-resolver", "Name": "shop", "LoadBalancer": balancer})
        try:
            wait_until("the policy", lambda: "balance random(3)" in sidecar.command("config").stdout)
            wait_until("a new worker", lambda: sidecar.worker_pid() not in {0, worker})
            worker = shop.settled_worker()
            shop.two.agent.deregister("shop-2")
            shop.wait_shares("the second to be left out", {"shop-1": 1.0})
            shop.two.come_back()
            wait_until("the second again", lambda: shop.shares().get("shop-2", 0.0) > 0.0)
            assert sidecar.worker_pid() == worker
        finally:
            server.delete("/v1/config/service-resolver/shop")
            shop.two.come_back()
        wait_until("the usual policy", lambda: "balance roundrobin" in sidecar.command("config").stdout)
        shop.wait_usual()
    load.assert_clean()


def test_a_prepared_query_upstream_reaches_what_the_query_finds(shop: Shop) -> None:
    server = shop.mesh.site.server
    query = server.ask("POST", "/v1/query", {"Name": "find-shop", "Service": {"Service": "shop", "OnlyPassing": True}})
    by_query = _query_upstream("find-shop")
    caller = Service("asker", host="b", upstreams=(by_query,))
    try:
        asker = shop.mesh.join(caller)[0]
        wait_until("an answer by the query", lambda: http_get(asker.namespace, QUERY_PORT).status == 200)
        shop.two.set_health("critical")
        wait_until(
            "the query to leave out the second",
            lambda: {http_get(asker.namespace, QUERY_PORT).text for _ in range(20)} == {"shop-1"},
        )
    finally:
        shop.two.set_health("passing")
        server.delete(f"/v1/query/{query.body['ID']}")
    shop.wait_usual()


def test_upstreams_are_added_changed_and_removed_while_others_go_on(shop: Shop) -> None:
    usual = shop.buyer.service
    side = shop.mesh.join(Service("side"))[0]
    with Load(fresh_requests(shop.client, PORT, "shop-1", "shop-2")) as load:
        shop.buyer.register(replace(usual, upstreams=(*usual.upstreams, upstream("side", OTHER_PORT))))
        wait_until("the added upstream", lambda: tcp_ask(shop.client, OTHER_PORT) == "side")
        shop.buyer.register(replace(usual, upstreams=(*usual.upstreams, upstream("side", MOVED_PORT))))
        wait_until("the moved upstream", lambda: tcp_ask(shop.client, MOVED_PORT) == "side")
        wait_until("the old port to close", lambda: not shop.client.listening(OTHER_PORT))
        shop.buyer.register(usual)
        wait_until("the removed upstream to close", lambda: not shop.client.listening(MOVED_PORT))
        load.go_on(20)
    load.assert_clean()
    side.remove()


@on_2_8
def test_an_upstream_listens_before_its_service_exists_and_serves_when_it_does(mesh: Mesh) -> None:
    caller = Service("early", host="b", upstreams=(upstream("late", OTHER_PORT),))
    early = mesh.join(caller)[0]
    assert is_refused(lambda: tcp_ask(early.namespace, OTHER_PORT))
    worker = early.sidecar.worker_pid()
    mesh.join(Service("late"))
    wait_until("the late service", lambda: tcp_ask(early.namespace, OTHER_PORT) == "late")
    assert early.sidecar.worker_pid() == worker


@on_2_8
def test_a_service_that_becomes_http_is_served_as_http(mesh: Mesh) -> None:
    caller = Service("reader", host="b", upstreams=(upstream("turning", OTHER_PORT),))
    turning, reader = mesh.join(Service("turning", app=False), caller)
    mesh.set_protocol("turning", "http")
    # Nothing listens behind the sidecar: as tcp the connection would just end, as http there is an answer.
    wait_until("an HTTP answer", lambda: http_get(reader.namespace, OTHER_PORT).status == 503)
    assert turning.sidecar.ready()[0] == 200


def _query_upstream(query: str) -> dict[str, Any]:
    config = {"protocol": "http", "poll_interval": "1s"}
    return upstream(query, QUERY_PORT, DestinationType="prepared_query", Config=config)
