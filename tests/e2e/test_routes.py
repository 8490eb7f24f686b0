"""Consul's routers and splitters reach the traffic: who answers which request, and what changes without a loss."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.clients import fresh_requests, http2_client, kept_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.test_ask import asked
from tests.e2e.test_impostors import posing, wait_refused
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
PORT, HTTP2_PORT = 9321, 9322
ROUTER, SPLITTER, RESOLVER = "service-router", "service-splitter", "service-resolver"


@dataclass
class Store:
    """Three http services with an instance each, and one caller of the first, which has a router or a splitter."""

    mesh: Mesh
    store: Member
    canary: Member
    books: Member
    buyer: Member

    @property
    def reloads(self) -> float:
        return self.buyer.sidecar.metrics().get("hcc_reloads_total", 0.0)

    @property
    def worker(self) -> int:
        return self.buyer.sidecar.worker_pid()

    def settle(self) -> None:
        """Return when no reload is under way: during one either worker may answer."""
        self.buyer.sidecar.wait_rest()

    def put(self, kind: str, name: str = "store", **entry: Any) -> None:
        self.mesh.site.server.put("/v1/config", {"Kind": kind, "Name": name} | entry)

    def split(self, store: float, canary: float) -> None:
        legs = {"store": store, "canary": canary}
        self.put(SPLITTER, Splits=[{"Weight": weight, "Service": name} for name, weight in legs.items()])

    @contextlib.contextmanager
    def cleaned(self) -> Iterator[None]:
        """Afterwards the first service is as it was, and has been called as such."""
        server = self.mesh.site.server
        self.settle()
        try:
            yield
        finally:
            for kind, name in ((ROUTER, "store"), (SPLITTER, "store"), (RESOLVER, "canary")):
                server.delete(f"/v1/config/{kind}/{name}")
        wait_until("no ways", lambda: "hcc_way" not in self.buyer.sidecar.command("config").stdout, 20)
        self.wait_answers("nothing but the first", {"store"})

    def ask(self, path: str = "/who", method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers of an answer; underscores of names are hyphens."""
        with contextlib.closing(self.buyer.namespace.http(PORT)) as connection:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, answer.read().decode().strip(), names

    def who(self, path: str = "/who", method: str = "GET", **headers: str) -> str:
        """The instance that answered."""
        status, text, names = self.ask(path, method, **headers)
        return names.get("x-app", f"{status} {text}")

    def counted(self, requests: int) -> Counter[str]:
        with contextlib.closing(self.buyer.namespace.http(PORT)) as connection:
            found = Counter[str]()
            for _ in range(requests):
                connection.request("GET", "/who")
                answer = connection.getresponse()
                text = answer.read().decode().strip()
                found[text if answer.status == 200 else f"{answer.status} {text}"] += 1
            return found

    def wait_answers(self, what: str, names: set[str]) -> None:
        wait_until(what, lambda: set(self.counted(60)) == names)


@pytest.fixture(scope="module")
def shop(site: Site, haproxy: str) -> Iterator[Store]:
    mesh = Mesh(site, haproxy)
    try:
        services = [Service(name, "http") for name in ("store", "canary", "books")]
        yield Store(mesh, *mesh.join(*services, Service("reader", host="b", upstreams=(upstream("store", PORT),))))
    finally:
        mesh.close()


def test_requests_take_the_first_route_that_speaks_of_them_and_are_changed_by_it(shop: Store) -> None:
    def http(service: str, changes: dict[str, Any] | None = None, **match: Any) -> dict[str, Any]:
        return {"Match": {"HTTP": match}, "Destination": {"Service": service} | (changes or {})}

    books = {
        "PrefixRewrite": "/",
        "RequestHeaders": {"Set": {"X-Route": "it's 100 $x"}, "Remove": ["X-Gone"]},
        "ResponseHeaders": {"Add": {"X-By": "books"}},
    }
    conditions = [{"Name": "x-canary", "Exact": "yes"}, {"Name": "x-no", "Present": True, "Invert": True}]
    routes = [
        http("books", books, PathPrefix="/books/"),
        http("canary", Header=conditions),
        http("canary", PathRegex="/v[0-9]+/.*"),
        http("canary", QueryParam=[{"Name": "v", "Exact": "2"}]),
        http("books", Methods=["PUT"]),
    ]
    with shop.cleaned():
        shop.put(ROUTER, Routes=routes)
        wait_until("a route", lambda: shop.who("/books/who") == "books", 20)
        assert shop.who() == "store"
        assert shop.who(x_canary="yes") == "canary"
        assert shop.who(x_canary="yes", x_no="") == "store"
        assert shop.who(x_canary="yes!") == "store"
        assert shop.who("/v2/x") == "canary"
        assert shop.who("/v/x") == "store"
        assert shop.who("/who?w=1&v=2") == "canary"
        assert shop.who("/who?v=1&v=2") == "store"
        assert shop.who("/Books/who") == "store"
        assert shop.who("/who", "PUT", Content_Length="0") == "books"
        status, text, headers = shop.ask("/books/headers", X_Gone="x", x_canary="yes")
        assert (status, headers["x-by"], headers["x-app"]) == (200, "books", "books")
        seen = {name.lower(): value for name, value in json.loads(text).items()}
        assert seen["x-route"] == "it's 100 $x"
        assert "x-gone" not in seen
        assert "x-by" not in shop.ask()[2]

        shown = json.loads(shop.buyer.sidecar.fetch("/api/v1/status")[1])["upstreams"][0]
        assert len({one["leg"] for one in shown["endpoints"]}) == 3
        assert {one["state"] for one in shown["endpoints"]} == {"up"}
        assert "(books.default.default.dc1)" in shop.buyer.sidecar.command("status").stdout
        told = asked(shop.buyer, "troubleshoot", "upstream", "store")
        assert "by 6 ways to 3 legs" in told.stdout
        assert "canary.default.default.dc1: 1 of 1 take traffic" in told.stdout
        assert told.returncode == 0, told.stdout


def test_a_splitter_gives_each_leg_its_share_and_other_weights_cost_one_reload_and_no_request(shop: Store) -> None:
    client = shop.buyer.namespace
    with (
        shop.cleaned(),
        Load(kept_requests(client, PORT, "store", "canary")) as kept,
        Load(fresh_requests(client, PORT, "store", "canary")) as fresh,
    ):
        before = shop.reloads
        shop.split(90, 10)
        shop.wait_answers("both legs", {"store", "canary"})
        shop.settle()
        assert shop.reloads == before + 1
        found = shop.counted(1_000)
        assert set(found) == {"store", "canary"}
        assert 50 < found["canary"] < 160, found
        shop.split(40, 60)
        wait_until("the other weights", lambda: shop.counted(100)["canary"] > 40, 20)
        shop.settle()
        assert shop.reloads == before + 2
        found = shop.counted(1_000)
        assert 500 < found["canary"] < 700, found
        kept.go_on(50)
        fresh.go_on(50)
    kept.assert_clean()
    fresh.assert_clean()


def test_endpoints_of_a_leg_come_and_go_without_a_reload(shop: Store) -> None:
    with shop.cleaned():
        shop.split(50, 50)
        shop.wait_answers("both legs", {"store", "canary"})
        shop.settle()
        worker = shop.worker
        with Load(fresh_requests(shop.buyer.namespace, PORT, "store", "canary", "canary-2")) as load:
            (second,) = shop.mesh.join(Service("canary", "http", id="canary-2"))
            try:
                shop.wait_answers("another instance of a leg", {"store", "canary", "canary-2"})
                second.set_health("critical")
                shop.wait_answers("it to be left out", {"store", "canary"})
                load.go_on(50)
            finally:
                second.remove()
        load.assert_clean()
        assert shop.worker == worker


def test_a_leg_fails_over_by_itself(shop: Store) -> None:
    with shop.cleaned():
        shop.put(RESOLVER, "canary", Failover={"*": {"Service": "books"}})
        shop.split(50, 50)
        shop.wait_answers("both legs", {"store", "canary"})
        shop.settle()
        worker = shop.worker
        with Load(fresh_requests(shop.buyer.namespace, PORT, "store", "canary", "books")) as load:
            shop.canary.set_health("critical")
            try:
                shop.wait_answers("the service that it fails over to", {"store", "books"})
            finally:
                shop.canary.set_health("passing")
                shop.canary.wait_healthy(shop.mesh.site.client)
            shop.wait_answers("the leg itself", {"store", "canary"})
        load.assert_clean()
        assert shop.worker == worker


def test_an_impostor_in_a_leg_is_sent_nothing(shop: Store) -> None:
    with shop.cleaned():
        shop.split(50, 50)
        shop.wait_answers("both legs", {"store", "canary"})
        # An honest instance of the other leg is none here.
        with posing(shop.mesh, "canary", http=True, first="store") as impostor:
            wait_refused(shop.buyer, 1)
            shop.wait_answers("honest instances alone", {"store", "canary"})
            assert impostor.heard == b""


def test_answers_of_a_leg_are_let_through_only_from_its_own_service(shop: Store) -> None:
    with shop.cleaned():
        shop.split(50, 50)
        shop.wait_answers("both legs", {"store", "canary"})
        with posing(shop.mesh, "canary", http=True, first="canary") as impostor:
            shop.wait_answers("one more instance of a leg", {"store", "canary", "impostor"})
            impostor.become("store")
            found = Counter[str]()
            for _ in range(40):
                found += shop.counted(3)
            assert "impostor" not in found, found
            wait_refused(shop.buyer, 1)
        shop.wait_answers("the others alone", {"store", "canary"})


def test_who_may_not_call_the_service_of_a_leg_is_denied_there_alone(shop: Store) -> None:
    with shop.cleaned():
        shop.split(50, 50)
        shop.wait_answers("both legs", {"store", "canary"})
        server = shop.mesh.site.server
        server.set_intention("reader", "canary", "deny")
        try:
            wait_until("a denial", lambda: 403 in {shop.ask()[0] for _ in range(20)})
            answers = {shop.ask()[:2] for _ in range(60)}
            assert {status for status, _ in answers} == {200, 403}
            assert {text for status, text in answers if status == 200} == {"store"}
        finally:
            server.remove_intention("reader", "canary")
        shop.wait_answers("both legs again", {"store", "canary"})


def test_a_route_to_a_service_that_was_not_called_before_costs_no_request(shop: Store) -> None:
    with shop.cleaned(), Load(kept_requests(shop.buyer.namespace, PORT, "store", "canary", "books")) as load:
        for canary in (0, 100, 0, 50):
            shop.split(100 - canary, canary)
            wanted = {name for name, weight in (("store", 100 - canary), ("canary", canary)) if weight}
            shop.wait_answers(f"{canary} %", wanted)
        shop.put(ROUTER, Routes=[{"Match": {"HTTP": {"PathPrefix": "/"}}, "Destination": {"Service": "books"}}])
        shop.wait_answers("a route before the split", {"books"})
        load.go_on(50)
    load.assert_clean()


def test_requests_are_changed_as_before_while_it_is_not_known_who_serves_on_a_new_way(shop: Store) -> None:
    changes = {"PrefixRewrite": "/", "RequestHeaders": {"Set": {"X-Route": "books"}}}
    books = {"Match": {"HTTP": {"PathPrefix": "/books/"}}, "Destination": {"Service": "books"} | changes}
    nowhere = {"Match": {"HTTP": {"PathPrefix": "/canary/"}}, "Destination": {"Service": "canary"}}

    def request() -> None:
        assert "x-route" in shop.ask("/books/headers")[1].lower()

    with shop.cleaned():
        shop.put(ROUTER, Routes=[books])
        wait_until("a route", lambda: shop.who("/books/who") == "books", 20)
        shop.settle()
        worker = shop.worker
        with Load(lambda: contextlib.nullcontext(request)) as load:
            shop.put(RESOLVER, "canary", Redirect={"Service": "canary", "Datacenter": "dc9"})
            shop.put(ROUTER, Routes=[nowhere, books])
            wait_until("it to be asked for", lambda: "not known yet" in shop.buyer.sidecar.command("status").stdout, 20)
            load.go_on(50)
        load.assert_clean()
        assert shop.worker == worker


def test_endpoints_come_and_go_while_it_is_not_known_who_serves_in_a_new_leg(shop: Store) -> None:
    with shop.cleaned():
        shop.settle()
        worker = shop.worker
        shop.put(RESOLVER, "canary", Redirect={"Service": "canary", "Datacenter": "dc9"})
        shop.split(50, 50)
        wait_until("it to be asked for", lambda: "not known yet" in shop.buyer.sidecar.command("status").stdout, 20)
        with Load(fresh_requests(shop.buyer.namespace, PORT, "store", "store-2")) as load:
            (second,) = shop.mesh.join(Service("store", "http", id="store-2"))
            try:
                shop.wait_answers("another instance", {"store", "store-2"})
                second.set_health("critical")
                shop.wait_answers("it to be left out", {"store"})
                load.go_on(50)
            finally:
                second.remove()
        load.assert_clean()
        assert shop.worker == worker


def test_another_hcc_goes_on_with_what_runs(shop: Store) -> None:
    with shop.cleaned():
        shop.split(50, 50)
        shop.wait_answers("both legs", {"store", "canary"})
        shop.settle()
        worker, sidecar = shop.worker, shop.buyer.sidecar
        with Load(fresh_requests(shop.buyer.namespace, PORT, "store", "canary")) as load:
            for actor in ("ConsulWatcher", "ConfigReconciler", "Verifier"):
                sidecar.restart(actor)
            load.go_on(50)
            sidecar.kill()
            load.go_on(50)
            sidecar.start()
            sidecar.wait_ready()
            load.go_on(50)
        load.assert_clean()
        assert shop.worker == worker


def test_a_splitter_that_came_while_hcc_was_down_costs_no_request(shop: Store) -> None:
    sidecar = shop.buyer.sidecar
    with shop.cleaned(), Load(fresh_requests(shop.buyer.namespace, PORT, "store", "canary")) as load:
        sidecar.kill()
        shop.split(50, 50)
        load.go_on(20)
        sidecar.start()
        sidecar.wait_ready()
        shop.wait_answers("both legs", {"store", "canary"})
        load.go_on(50)
    load.assert_clean()


def test_what_cannot_be_served_of_a_router_is_said_and_by_which_service_the_rest_is(shop: Store) -> None:
    retries = {"Match": {"HTTP": {"PathPrefix": "/b"}}, "Destination": {"Service": "books", "NumRetries": 3}}
    odd = {"Match": {"HTTP": {"PathRegex": r"/\pN"}}, "Destination": {"Service": "books"}}
    with shop.cleaned():
        shop.put(ROUTER, Routes=[retries])
        wait_until("a route", lambda: shop.who("/b") == "books", 20)
        assert "NumRetries of a route, which is not served" in shop.buyer.sidecar.command("status").stdout
        shop.put(ROUTER, Routes=[retries, odd])
        wait_until("the default path alone", lambda: shop.who("/b") == "store", 20)
        assert "store.default.default.dc1 serves all of it" in shop.buyer.sidecar.command("status").stdout


@on_2_8
def test_routes_and_shares_are_the_same_over_http2(mesh: Mesh) -> None:
    one, two = (Service(name, "http2") for name in ("hstore", "hbooks"))
    # Of connections, of which Envoy needs one here.
    called = upstream("hstore", HTTP2_PORT, Config={"limits": {"max_connections": 1}})
    (*_, caller) = mesh.join(one, two, Service("hreader", host="b", upstreams=(called,)))
    server = mesh.site.server
    route = {"Match": {"HTTP": {"PathPrefix": "/books"}}, "Destination": {"Service": "hbooks"}}
    server.put("/v1/config", {"Kind": ROUTER, "Name": "hstore", "Routes": [route]})
    try:
        wait_until("the route", lambda: _named(caller, "/books") == ["hbooks"], 20)
        # Of one connection, each request by itself.
        assert _named(caller, "/", "/books", "/", "/books/x") == ["hstore", "hbooks", "hstore", "hbooks"]
        assert _named(caller, *["/"] * 50) == ["hstore"] * 50
        assert "max_connections is not served for http2" in caller.sidecar.command("status").stdout
    finally:
        server.delete(f"/v1/config/{ROUTER}/hstore")


def _named(caller: Member, *paths: str) -> list[str]:
    with http2_client(caller.namespace, HTTP2_PORT) as client:
        return [answer.headers["x-app"] for answer in client.get(*paths)]
