"""A sidecar that is told to stop lets its callers go to others and finishes what it has: no request is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hcc.haproxy.capabilities import Feature
from tests.e2e.certificates import answer, handshake, mesh_certificate
from tests.e2e.clients import fresh_requests, http_get, kept_requests, read_line, tcp_ask, tcp_requests
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import is_running
from tests.e2e.sidecar import HCC, Sidecar
from tests.e2e.versions import can, on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
SHOP_PORT, TILL_PORT, STOCK_PORT, KIOSK_PORT = 9501, 9502, 9503, 9506
GET = b"GET %b HTTP/1.1\r\nHost: kiosk\r\n\r\n"


@dataclass
class Street:
    """Two instances of an http service, which itself calls `stock`, and two of a tcp service; one caller of both."""

    mesh: Mesh
    shops: list[Member]
    tills: list[Member]
    caller: Member

    def wait_for_both_shops(self) -> None:
        """Return when the caller gets answers from either: one that was drained before may only just be healthy."""
        place = self.caller.namespace
        wait_until("both shops", lambda: {http_get(place, SHOP_PORT).text for _ in "12"} == {"shop-1", "shop-2"}, 20)

    def loads(self) -> tuple[Load, Load, Load]:
        client = self.caller.namespace
        shops, tills = ("shop-1", "shop-2"), ("till-1", "till-2")
        return (
            Load(fresh_requests(client, SHOP_PORT, *shops)),
            Load(kept_requests(client, SHOP_PORT, *shops)),
            Load(tcp_requests(client, TILL_PORT, *tills)),
        )


@pytest.fixture(scope="module")
def street(site: Site, haproxy: str) -> Iterator[Street]:
    mesh = Mesh(site, haproxy)
    shops = [Service("shop", "http", id=f"shop-{n}", upstreams=(upstream("stock", STOCK_PORT + n),)) for n in (1, 2)]
    tills = [Service("till", id=f"till-{n}") for n in (1, 2)]
    caller = Service("walker", host="b", upstreams=(upstream("shop", SHOP_PORT), upstream("till", TILL_PORT)))
    try:
        delays = zip(shops, ("700ms", "5s"), strict=True)
        added = [mesh.add(shop, "--drain-delay", delay, "--drain-maintenance") for shop, delay in delays]
        made = mesh.join(Service("stock", "http"), *tills, caller)
        for member in added:
            member.wait_ready()
            member.wait_healthy(site.client)
        yield Street(mesh, added, made[1:3], made[3])
    finally:
        mesh.close()


@on_2_8
def test_a_drain_is_told_to_consul_before_the_listener_closes_and_the_next_start_takes_it_back(street: Street) -> None:
    street.wait_for_both_shops()
    shop = street.shops[1]
    ended: list[int] = []
    stopping = threading.Thread(target=lambda: ended.append(shop.sidecar.stop(40)))
    try:
        with Load(fresh_requests(street.caller.namespace, SHOP_PORT, "shop-1", "shop-2")) as load:
            stopping.start()
            wait_until("maintenance", lambda: "drained by hcc" in _maintenance(shop), pause_s=0.01)
            assert shop.namespace.listening(shop.public_port, shop.namespace.address)
            assert shop.sidecar.ready()[0] == 503
            stopping.join()
            load.go_on(20)
        load.assert_clean()
        assert ended == [0]
    finally:
        stopping.join()
        shop.sidecar.start()
    shop.sidecar.wait_ready()
    wait_until("the end of maintenance", lambda: not _maintenance(shop))


@on_2_8
def test_a_start_ends_the_maintenance_of_a_drain_also_without_the_setting(street: Street) -> None:
    till = street.tills[0]
    assert till.sidecar.stop() == 0
    try:
        # As a sidecar with --drain-maintenance leaves it.
        path = f"/v1/agent/service/maintenance/{till.service.service_id}-sidecar-proxy"
        till.agent.ask("PUT", f"{path}?enable=true&reason=drained+by+hcc")
        assert _maintenance(till) == ["drained by hcc"]
    finally:
        till.sidecar.start()
    till.sidecar.wait_ready()
    wait_until("the end of maintenance", lambda: not _maintenance(till))


def test_sigterm_under_load_costs_no_request_where_there_is_another_instance(street: Street, tmp_path: Path) -> None:
    street.wait_for_both_shops()
    shop, client = street.shops[0], street.caller.agent
    certificate, roots = mesh_certificate(client, "walker", tmp_path), client.root_pems()
    relayed: list[bytes] = []

    def relay() -> None:
        # To the instance that stops: what `stock` is to the other one is a port of its own.
        place = (street.caller.namespace, shop.namespace.address, shop.public_port)
        with handshake(*place, roots, certificate) as sock:
            sock.sendall(b"GET /relay/%d HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n" % (STOCK_PORT + 1))
            relayed.append(b"".join(iter(lambda: sock.recv(4096), b"")))

    going = (shop, street.tills[0])
    started = {pid for member in going for pid in member.sidecar.descendants()}
    with ExitStack() as stack:
        loads = [stack.enter_context(load) for load in street.loads()]
        calls = [threading.Thread(target=relay) for _ in range(4)]
        for call in calls:
            call.start()
        shop.wait_held(len(calls))  # They are about to call `stock` through the sidecar that stops.
        assert [member.sidecar.stop(15) for member in going] == [0, 0]
        for call in calls:
            call.join(10)
        for load in loads:
            load.go_on(50)
    for load in loads:
        load.assert_clean()
    assert [text.partition(b"\r\n\r\n")[2].strip() for text in relayed] == [b"shop-1: stock"] * len(calls)
    wait_until("its processes to be gone", lambda: not [pid for pid in started if is_running(pid)])
    assert tcp_ask(street.caller.namespace, TILL_PORT) == "till-2"


def test_a_drain_waits_for_answers_and_not_for_connections_that_callers_merely_keep(
    site: Site, haproxy: str, haproxy_version: str, tmp_path: Path
) -> None:
    # One that is too old does not say that they are idle, and has all of the time.
    within = "60s" if can(haproxy_version, Feature.IDLE_CLOSE_ON_RESPONSE) else "8s"
    with closing(Mesh(site, haproxy)) as mesh, ExitStack() as stack:
        (kiosk,) = mesh.join(Service("kiosk", "http"), flags=("--drain-timeout", within))
        certificate, roots = mesh_certificate(site.client, "guest", tmp_path), site.client.root_pems()
        place = (site.client.namespace, kiosk.namespace.address, kiosk.public_port)
        kept, slow = (stack.enter_context(handshake(*place, roots, certificate)) for _ in range(2))
        assert b"kiosk" in answer(kept, GET % b"/who")
        slow.settimeout(20)
        answers: list[bytes] = []
        asking = threading.Thread(target=lambda: answers.append(answer(slow, GET % b"/slow/4")))
        asking.start()
        kiosk.wait_held(1)
        began_s = time.monotonic()

        assert kiosk.sidecar.stop(50) == 0

        assert time.monotonic() - began_s < 30
        asking.join()
        assert b"kiosk" in answers[0]


def test_an_open_tcp_connection_has_all_of_the_time_though_nothing_is_said_on_it(site: Site, haproxy: str) -> None:
    with closing(Mesh(site, haproxy)) as mesh:
        guest = Service("guest", host="b", upstreams=(upstream("kiosk", KIOSK_PORT),))
        _, caller = mesh.join(Service("kiosk"), guest, flags=("--drain-timeout", "60s"))
        ended: list[int] = []
        stopping = threading.Thread(target=lambda: ended.append(caller.sidecar.stop(50)))
        with caller.namespace.connect("127.0.0.1", KIOSK_PORT) as held:
            held.sendall(b"WHO\n")
            assert read_line(held) == "kiosk"
            stopping.start()
            time.sleep(5)  # Kept connections of http would have been cut by then.
            held.sendall(b"WHO\n")
            assert read_line(held) == "kiosk"
        stopping.join()
        assert ended == [0]


def test_who_is_denied_during_a_drain_is_cut_at_once(site: Site, haproxy: str) -> None:
    with closing(Mesh(site, haproxy)) as mesh:
        guest = Service("guest", host="b", upstreams=(upstream("kiosk", KIOSK_PORT),))
        kiosk, caller = mesh.join(Service("kiosk"), guest, flags=("--drain-timeout", "30s"))
        with caller.namespace.connect("127.0.0.1", KIOSK_PORT) as held:
            held.sendall(b"WHO\n")
            assert read_line(held) == "kiosk"
            kiosk.sidecar.process.signal(signal.SIGTERM)
            wait_until("the drain", lambda: "the public listener is closed" in kiosk.sidecar.log_text())
            held.sendall(b"WHO\n")
            assert read_line(held) == "kiosk"

            mesh.intend("guest", "kiosk", "deny")

            with contextlib.suppress(ConnectionResetError):
                assert held.recv(100) == b""
        assert kiosk.sidecar.stop(20) == 0


def test_a_sidecar_whose_log_nobody_reads_denies_and_drains_all_the_same(
    site: Site, haproxy: str, tmp_path: Path
) -> None:
    pipe = tmp_path / "stderr"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    with closing(Mesh(site, haproxy)) as mesh, os.fdopen(end, "r+b", buffering=0) as unread:
        (caller,) = mesh.join(Service("guest", host="b", upstreams=(upstream("kiosk", KIOSK_PORT),)))
        silent = ("sh", "-c", 'exec "$@" 2>"$0"', str(pipe), HCC)
        kiosk = mesh.add(Service("kiosk"), "--log-level", "debug", program=silent)
        kiosk.wait_ready()
        place = caller.namespace
        wait_until("the kiosk to answer", lambda: tcp_ask(place, KIOSK_PORT) == "kiosk")
        while unread.write(b"x") is not None:
            pass
        held = place.connect("127.0.0.1", KIOSK_PORT)
        held.sendall(b"WHO\n")
        assert read_line(held) == "kiosk"

        mesh.intend("guest", "kiosk", "deny")
        with held, contextlib.suppress(ConnectionResetError):
            assert held.recv(100) == b""
        assert kiosk.sidecar.ready()[0] == 200
        assert kiosk.sidecar.stop(10) == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_endpoints_of_upstreams_come_and_go_during_a_drain(site: Site, haproxy: str, restarted: bool) -> None:
    with closing(Mesh(site, haproxy)) as mesh:
        kiosk, first, caller = mesh.join(
            Service("kiosk", upstreams=(upstream("larder", STOCK_PORT),)),
            Service("larder", "http", id="larder-1"),
            Service("guest", host="b", upstreams=(upstream("kiosk", KIOSK_PORT),)),
            flags=("--drain-timeout", "60s"),
        )
        with caller.namespace.connect("127.0.0.1", KIOSK_PORT) as held:
            held.sendall(b"WHO\n")
            assert read_line(held) == "kiosk"
            kiosk.sidecar.process.signal(signal.SIGTERM)
            wait_until("the drain", lambda: "the public listener is closed" in kiosk.sidecar.log_text())
            if restarted:
                # It knows nothing of what runs, and sees a listener that is closed.
                kiosk.sidecar.restart("ConfigReconciler")

            second = mesh.add(Service("larder", "http", id="larder-2"))
            second.wait_ready()
            second.wait_healthy(second.agent)
            first.set_health("critical")

            place = kiosk.namespace
            wait_until("the new one", lambda: {http_get(place, STOCK_PORT).text for _ in "123"} == {"larder-2"}, 20)
            held.sendall(b"WHO\n")
            assert read_line(held) == "kiosk"
        assert kiosk.sidecar.stop(20) == 0
        assert "reload with" not in kiosk.sidecar.log_text().partition("the public listener is closed")[2]


def test_who_came_before_a_reload_is_served_with_the_help_of_upstreams_while_it_drains(
    site: Site, haproxy: str
) -> None:
    with closing(Mesh(site, haproxy)) as mesh:
        kiosk, _, caller = mesh.join(
            Service("kiosk", upstreams=(upstream("larder", STOCK_PORT),)),
            Service("larder", "http"),
            Service("guest", host="b", upstreams=(upstream("kiosk", KIOSK_PORT),)),
            flags=("--drain-timeout", "60s"),
        )
        with caller.namespace.connect("127.0.0.1", KIOSK_PORT) as held:
            held.sendall(b"RELAY %d\n" % STOCK_PORT)
            assert read_line(held) == "larder"
            before = kiosk.sidecar.worker_pid()
            kiosk.register(replace(kiosk.service, upstreams=(*kiosk.service.upstreams, upstream("guest", TILL_PORT))))
            wait_until("the reload", lambda: kiosk.sidecar.worker_pid() != before, 20)
            kiosk.sidecar.wait_rest()

            kiosk.sidecar.process.signal(signal.SIGTERM)
            wait_until("the drain", lambda: "the public listener is closed" in kiosk.sidecar.log_text())
            assert not kiosk.namespace.listening(kiosk.public_port, kiosk.namespace.address)

            # The application asks its upstream a while after it was asked.
            held.sendall(b"RELAY %d\n" % STOCK_PORT)
            assert read_line(held) == "larder"
        assert kiosk.sidecar.stop(20) == 0


@on_2_8
def test_a_haproxy_that_says_nothing_as_its_drain_begins_keeps_its_upstreams(site: Site, haproxy: str) -> None:
    with closing(Mesh(site, haproxy)) as mesh:
        kiosk, _, caller = mesh.join(
            Service("kiosk", upstreams=(upstream("larder", STOCK_PORT),)),
            Service("larder", "http"),
            Service("guest", host="b", upstreams=(upstream("kiosk", KIOSK_PORT),)),
            flags=("--drain-timeout", "60s"),
        )
        with caller.namespace.connect("127.0.0.1", KIOSK_PORT) as held:
            held.sendall(b"WHO\n")
            assert read_line(held) == "kiosk"
            worker = kiosk.sidecar.worker_pid()
            os.kill(worker, signal.SIGSTOP)
            try:
                kiosk.sidecar.process.signal(signal.SIGTERM)
                time.sleep(3)  # Longer than it is waited for.
            finally:
                os.kill(worker, signal.SIGCONT)

            wait_until("the drain", lambda: "the public listener is closed" in kiosk.sidecar.log_text())
            assert not kiosk.namespace.listening(kiosk.public_port, kiosk.namespace.address)
            held.sendall(b"RELAY %d\n" % STOCK_PORT)
            assert read_line(held) == "larder"
        assert kiosk.sidecar.stop(20) == 0


@on_2_8
def test_a_drain_closes_what_the_reload_under_way_has_opened(site: Site, haproxy: str, tmp_path: Path) -> None:
    checks, slow = tmp_path / "checks", tmp_path / "haproxy"
    slow.write_text(f'#!/bin/sh\ncase "$1" in -c) : >{checks}; sleep 0.5;; esac\nexec {haproxy} "$@"\n')
    slow.chmod(0o755)
    with closing(Mesh(site, str(slow))) as mesh:
        (kiosk,) = mesh.join(Service("kiosk", "http"), flags=("--drain-timeout", "60s"))
        checks.unlink()
        kiosk.register(replace(kiosk.service, config={"appname_header": "X-App"}))
        wait_until("the reload to be under way", checks.exists, pause_s=0.01)
        began = time.monotonic()
        assert kiosk.sidecar.stop(50) == 0
        assert time.monotonic() - began < 30
        said = kiosk.sidecar.log_text()
        assert said.index("reload with configuration") < said.index("the public listener is closed")


@on_2_8
def test_a_drain_is_done_though_who_is_to_do_it_is_just_being_started(site: Site, haproxy: str) -> None:
    with closing(Mesh(site, haproxy)) as mesh:
        (kiosk,) = mesh.join(Service("kiosk", "http"), flags=("--drain-timeout", "60s"))
        sidecar = kiosk.sidecar
        _fail_again_and_again(sidecar, "ProcessSupervisor")
        began = time.monotonic()
        assert sidecar.stop(50) == 0
        assert time.monotonic() - began < 30
        assert "the public listener is closed" in sidecar.log_text()


def _fail_again_and_again(sidecar: Sidecar, actor: str) -> None:
    """Return when the actor waits for a second or so to be started once more, as there was no file left for it."""
    pid = sidecar.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as operator:
        operator.settimeout(5)
        operator.connect(str(sidecar.state_dir / "control.sock"))
        operator.sendall(b"GET /health HTTP/1.1\r\nHost: hcc\r\n\r\n")
        assert b"200" in operator.recv(4096)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            operator.sendall(f"POST /v1/actors/{actor}/restart HTTP/1.1\r\nHost: hcc\r\n\r\n".encode())
            again = f"Actor {actor} restarts in"
            wait_until("it to fail", lambda: sidecar.log_text().count(again) >= 6, pause_s=0.01)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def _maintenance(member: Member) -> list[str]:
    checks = member.agent.get("/v1/agent/checks").values()
    return [check["Notes"] for check in checks if check["CheckID"].startswith("_service_maintenance")]
