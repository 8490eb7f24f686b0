"""Who gets through a real public listener, at first contact and ever after, and under what goes wrong meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived
from h2.exceptions import ProtocolError

from hcc.actors.backoff import BackOff
from hcc.actors.messages import SPOE_POOL, PolicyChanged
from hcc.haproxy.capabilities import Feature, Version
from hcc.haproxy.names import AGENTS, PUBLIC
from hcc.haproxy.render_lines import MOST_QUESTIONS
from hcc.haproxy.stats import Row, RowKind
from hcc.haproxy.stats_reader import EVERYTHING, StatsReader
from hcc.mesh.caller import Remembered
from hcc.mesh.caller_book import MAX_REMEMBERED
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention
from hcc.mesh.permissions import PathMatch, PathRule, Permission
from hcc.mesh.rules import ALLOW
from hcc.mesh.snapshot import Protocol
from hcc.spoe.cache import MAX_ENTRIES
from tests import pki
from tests.binaries import HAPROXY_BRANCHES
from tests.forgeries import ALLOWED as SERVICE
from tests.forgeries import MESH, forged_leaves
from tests.haproxy_stage import wait_until
from tests.integration.gate import ALLOWED, CUT, CUT_SINCE_3_0, DENIED, PROCESSING_MS, Callers, Gate, gate
from tests.integration.test_both_sides import Http2End, Http2Server
from tests.spoe_certificates import TRUST_DOMAIN, Leaf, service_uri, uri_names

pytestmark = pytest.mark.integration
WEB = Intention(SERVICE, Action.ALLOW, 9)
OTHER_DOMAIN = "99999999-2222-3333-4444-555555555555.consul"
NO_WEB = Intention(SERVICE, Action.DENY, 9)
# One for all, as making keys takes the time.
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def processing_ms() -> int:
    """How long HAProxy waits for a worker's answer."""
    return PROCESSING_MS


# Before SPOEPool kills the worker that hangs.
usual_time = pytest.mark.parametrize("processing_ms", [500])


@pytest.fixture(params=[f"{branch}-{protocol}" for branch in HAPROXY_BRANCHES for protocol in ("tcp", "http")])
def opened(request: pytest.FixtureRequest, processing_ms: int) -> Iterator[Gate]:
    branch, protocol = request.param.split("-")
    with gate(branch, Protocol(protocol), processing_ms=processing_ms) as made:
        yield made


# Of new certificates; by hand: HCC_CALLERS=10000, half a minute to two for each HAProxy.
MANY = int(os.environ.get("HCC_CALLERS", "200"))
# What 10,000 remembered certificates, and the workers' answers to them, may take.
MEMORY_KB = 64_000


def numbered(service: str, serial: int) -> Leaf:
    """One of many certificates of a service."""
    return MESH.leaf(*uri_names(service_uri(service)), serial=serial, key=KEY)


def strangers(opened: Gate, service: str) -> Callable[[], str]:
    """A call with another certificate each time: each has to be asked about. For several threads."""
    serials, lock = itertools.count(1), threading.Lock()

    def call() -> str:
        with lock:
            context = opened.context(numbered(service, next(serials)))
        return opened.ask(context)[0]

    return call


def test_no_forged_certificate_gets_in_at_first_or_ever_after(opened: Gate) -> None:
    opened.decide_by(WEB)
    assert opened.ask(opened.context(MESH.service(SERVICE)))[0] == ALLOWED
    for what, leaf in forged_leaves().items():
        context = opened.context(leaf)
        first, session = opened.ask(context)
        again = opened.ask(context)[0]
        resumed = opened.ask(context, session)[0] if session else DENIED
        assert (first, again, resumed) == (DENIED, DENIED, DENIED), what
    assert opened.remembered() == {SERVICE}
    assert opened.ask(opened.context(MESH.service(SERVICE)))[0] == ALLOWED


def test_a_denied_caller_is_so_in_a_namespace_that_consul_has_not(opened: Gate) -> None:
    # Consul without namespaces (1.20.1) signs what a service's token asks it to, and intentions speak of "default".
    opened.decide_by(Intention("*", Action.DENY, 8), default=True)
    place = f"spiffe://{TRUST_DOMAIN}"
    for made_up in ("/ns/made-up/dc/dc1/svc/evil", "/ap/made-up/ns/default/dc/dc1/svc/evil"):
        context = opened.context(MESH.leaf(*uri_names(place + made_up)))
        assert [opened.ask(context)[0] for _ in range(2)] == [DENIED, DENIED], made_up
    assert not opened.remembered()


def test_a_resumed_session_gets_what_its_certificate_gets_and_no_more(opened: Gate) -> None:
    opened.decide_by(WEB)
    web = opened.context(MESH.service(SERVICE))
    other = opened.context(MESH.service("other"))
    first, of_web = opened.ask(web)
    denied, of_other = opened.ask(other)
    assert (first, denied) == (ALLOWED, DENIED)
    assert opened.ask(web, of_web)[0] == ALLOWED
    if of_other is not None:
        assert opened.ask(other, of_other)[0] == DENIED
    opened.decide_by(NO_WEB, Intention("other", Action.ALLOW, 9))
    assert opened.ask(web, of_web)[0] == DENIED
    if of_other is not None:
        assert opened.ask(other, of_other)[0] == ALLOWED


def test_a_no_of_a_worker_holds_though_haproxy_has_not_heard_of_the_denial(opened: Gate) -> None:
    opened.decide_by(WEB)
    assert opened.ask(opened.context(MESH.service(SERVICE)))[0] == ALLOWED
    wait_until(lambda: bool(opened.remembered()), "HAProxy knows the caller")
    opened.tree.tell(SPOE_POOL, PolicyChanged(replace(opened.policy, intentions=(NO_WEB,), version=1_000)))
    wait_until(lambda: all(one.policy_version == 1_000 for one in opened.pool.workers()), "the policy")
    assert ALLOW in (opened.maps.verdicts() or {}).values(), "it has heard of it"
    # Another certificate of the same service.
    assert strangers(opened, SERVICE)() == DENIED


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_http_2_is_spoken_only_where_it_is_offered(branch: str) -> None:
    with gate(branch, Protocol("http")) as opened:
        opened.decide_by(WEB)
        context = opened.context(MESH.service(SERVICE))
        assert opened.ask(context)[0] == ALLOWED
        with (
            socket.create_connection(("127.0.0.1", opened.port), timeout=10) as plain,
            context.wrap_socket(plain) as tls,
        ):
            # RFC 9113 section 3.4, and a SETTINGS frame without settings.
            tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
            assert tls.recv(100).startswith(b"HTTP/1.1 40")


def test_a_question_that_a_killed_worker_left_is_asked_again(opened: Gate) -> None:
    opened.decide_by(WEB)
    call = strangers(opened, SERVICE)
    assert call() == ALLOWED
    for index in (0, 1):
        opened.wait_whole()
        pid = opened.pool.workers()[index].pid
        os.kill(pid, signal.SIGSTOP)
        with Callers(call, 8) as callers:
            # Until some wait for the worker that is stopped, and before HAProxy gives it up.
            time.sleep(0.15)
            os.kill(pid, signal.SIGKILL)
            callers.go_on(20)
        assert Counter(callers.answers).keys() == {ALLOWED}
    assert opened.ask(opened.context(MESH.service("evil")))[0] == DENIED


@usual_time
def test_who_asks_again_asks_another_than_the_worker_that_hangs(opened: Gate) -> None:
    opened.decide_by(WEB)
    opened.wait_whole()
    call = strangers(opened, SERVICE)
    pid = opened.pool.workers()[0].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert [call() for _ in range(6)] == [ALLOWED] * 6
    finally:
        # SPOEPool may have done so.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_strangers_lose_nothing_to_a_worker_that_is_dead_for_long(
    opened: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.decide_by(WEB)
    opened.wait_whole()
    call = strangers(opened, SERVICE)
    monkeypatch.setattr(BackOff, "next_delay_s", lambda _: 60.0)
    os.kill(opened.pool.workers()[0].pid, signal.SIGKILL)
    assert [call() for _ in range(20)] == [ALLOWED] * 20
    # A new HAProxy has not looked yet who is there.
    opened.reload()
    assert [call() for _ in range(20)] == [ALLOWED] * 20


@usual_time
def test_strangers_lose_nothing_to_a_worker_that_hangs_however_many_ask_at_a_time(opened: Gate) -> None:
    opened.decide_by(WEB)
    with Callers(strangers(opened, SERVICE), 6) as callers:
        # Until HAProxy has connections to both.
        callers.go_on(30)
        pid = opened.pool.workers()[0].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            callers.go_on(20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert Counter(callers.answers).keys() == {ALLOWED}


def test_strangers_under_load_lose_nothing_to_killed_workers_and_reloads(opened: Gate) -> None:
    opened.decide_by(WEB)
    with Callers(strangers(opened, SERVICE), 3) as callers:
        for number in range(6):
            callers.go_on(15)
            if number % 3 == 2:
                opened.reload()
            else:
                opened.kill_worker(number % 2)
        callers.go_on(15)
    assert Counter(callers.answers).keys() == {ALLOWED}


def test_an_intention_flipped_under_load_holds_for_every_call_that_begins_after_it(opened: Gate) -> None:
    known = opened.context(MESH.service(SERVICE))
    stranger, other = strangers(opened, SERVICE), strangers(opened, "db")
    db = Intention("db", Action.ALLOW, 9)
    opened.decide_by(WEB, db)
    with Callers(other, 1) as unharmed, Callers(lambda: opened.ask(known)[0], 1) as flipped:
        for _ in range(4):
            for intention, wanted in ((NO_WEB, DENIED), (WEB, ALLOWED)):
                opened.decide_by(intention, db)
                assert {opened.ask(known)[0] for _ in range(3)} == {wanted}
                assert stranger() == wanted
        unharmed.go_on(5)
    if opened.stage.capabilities.has(Feature.DYNAMIC_SERVERS):
        # Before, those of others are cut along, as README says.
        assert Counter(unharmed.answers).keys() == {ALLOWED}
    # A request that is under way when its caller is denied is cut.
    cut = {CUT, CUT_SINCE_3_0} if opened.stage.capabilities.version >= Version(3, 0) else {CUT}
    assert Counter(flipped.answers).keys() <= {ALLOWED, DENIED} | cut


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_a_denial_ends_the_first_session_and_a_later_one_also_in_a_worker_that_stops(branch: str) -> None:
    db = Intention("db", Action.ALLOW, 9)
    with gate(branch, Protocol.TCP) as opened, contextlib.ExitStack() as sessions:
        opened.decide_by(WEB, db)
        web, other = opened.context(MESH.service(SERVICE)), opened.context(MESH.service("db"))

        def begin(context: ssl.SSLContext) -> ssl.SSLSocket:
            plain = sessions.enter_context(socket.create_connection(("127.0.0.1", opened.port), timeout=15))
            made = sessions.enter_context(context.wrap_socket(plain))
            assert made.recv(100) == b"app\n"
            return made

        def echoes(session: ssl.SSLSocket) -> bool:
            session.sendall(b"still here")
            return session.recv(100) == b"still here"

        # Before HAProxy knows them, so on the common line, and after.
        first, unharmed = begin(web), begin(other)
        wait_until(lambda: opened.remembered() == {SERVICE, "db"}, "the callers to be remembered")
        second = begin(web)
        opened.reload()
        assert all(map(echoes, (first, second, unharmed)))
        opened.decide_by(NO_WEB, db)
        assert ended(first)
        assert ended(second)
        # It was not the end of that worker.
        assert echoes(unharmed)


def ended(session: ssl.SSLSocket) -> bool:
    """Whether it is over, in time."""
    try:
        return session.recv(100) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_a_denial_holds_though_the_workers_have_not_heard_of_it(branch: str) -> None:
    some = (Permission(False, PathRule(PathMatch.EXACT, "/x")), Permission(True, PathRule(PathMatch.PREFIX, "/")))
    other = Intention("other", Action.PERMISSIONS, 9, some)
    with gate(branch, Protocol.HTTP) as opened:
        opened.decide_by(Intention(SERVICE, Action.PERMISSIONS, 9, some), other)
        context = opened.context(numbered(SERVICE, 1))
        wait_until(lambda: opened.ask(context)[0] == ALLOWED, "the rules")
        wait_until(lambda: SERVICE in opened.remembered(), "it to be remembered")

        # The rules by which the workers would let it in are still there, as another service has them.
        opened.decide_by(NO_WEB, other, workers_too=False)

        assert [opened.ask(context)[0] for _ in range(5)] == [DENIED] * 5


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_a_connection_is_not_let_in_by_who_has_the_same_name_in_a_new_trust_domain(branch: str) -> None:
    with gate(branch, Protocol.HTTP) as opened, contextlib.ExitStack() as sessions:
        opened.decide_by(WEB)
        old = opened.context(numbered(SERVICE, 1))
        wait_until(lambda: opened.ask(old)[0] == ALLOWED and SERVICE in opened.remembered(), "the caller")
        plain = sessions.enter_context(socket.create_connection(("127.0.0.1", opened.port), timeout=15))
        kept = http.client.HTTPConnection("localhost")
        kept.sock = sessions.enter_context(old.wrap_socket(plain))

        def status() -> int:
            kept.request("GET", "/")
            with kept.getresponse() as answer:
                answer.read()
                return answer.status

        assert status() == 200
        opened.policy = replace(opened.policy, trust_domain=OTHER_DOMAIN)
        opened.decide_by(WEB)
        new = opened.context(MESH.leaf(*uri_names(service_uri(SERVICE, OTHER_DOMAIN)), serial=2, key=KEY))
        assert opened.ask(new)[0] == ALLOWED
        wait_until(lambda: SERVICE in opened.remembered(), "its successor to be remembered")

        assert status() == 403


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_a_caller_gets_no_tunnel_in_which_nobody_looks_at_requests(branch: str) -> None:
    with gate(branch, Protocol.HTTP) as opened:
        opened.decide_by(WEB)
        context = opened.context(numbered(SERVICE, 1))
        settings = "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"
        for words in (["h2c"], ["H2C"], ["websocket, h2c"], ["h2c, websocket"], ["x", "h2c"]):
            upgrade = [f"Upgrade: {word}" for word in words]
            head = opened.head_told(context, "Connection: Upgrade, HTTP2-Settings", *upgrade, settings)
            assert "h2c" not in head.lower(), words
        websocket = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
        assert "upgrade: websocket" in opened.head_told(context, "Connection: Upgrade", *websocket).lower()
        # Once by those that the workers decide, once by those that HAProxy knows.
        stranger = opened.context(numbered(SERVICE, 2))
        for connect in (stranger, context):
            assert opened.answer(connect, "CONNECT h:80 HTTP/1.1", "Host: h:80")[0] == 405


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_the_application_is_told_the_certificate_that_came_and_nothing_else(branch: str) -> None:
    header, forged = "x-forwarded-client-cert", "By=x;Hash=00;URI=spiffe://x/ns/default/dc/dc1/svc/root"
    claims = [f"{name}: {forged}" for name in ("X-Forwarded-Client-Cert", header, header.upper(), header)]
    with gate(branch, Protocol.HTTP) as opened:
        opened.decide_by(WEB)
        leaf = numbered(SERVICE, 1)
        context, digest = opened.context(leaf), hashlib.sha256(leaf.der()).hexdigest()

        def told() -> list[tuple[str, ...]]:
            lines = (line.partition(": ") for line in opened.head_told(context, *claims).splitlines())
            return [tuple(value.split(";")) for name, _, value in lines if name.lower() == header]

        wanted = [("By=" + pki.service_uri("server"), f"Hash={digest}", "URI=" + service_uri(SERVICE))]
        # By the answer of a worker, and then by what HAProxy remembers.
        assert told() == wanted
        wait_until(lambda: opened.remembered() == {SERVICE}, "the caller to be remembered")
        assert told() == wanted


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_a_caller_cannot_have_the_application_drop_who_it_is(branch: str) -> None:
    with gate(branch, Protocol.HTTP, appname_header="X-App.Of*") as opened:
        opened.decide_by(WEB)
        context = opened.context(numbered(SERVICE, 1))

        def status(*connection: str) -> int:
            return opened.answer(context, "GET / HTTP/1.1", "Host: h", *(f"Connection: {one}" for one in connection))[0]

        for name in ("X-Forwarded-Client-Cert", "x-app.of*"):
            for asked in ((name,), (f"close, {name}",), (f"a,{name} ,b",), ("close", name.upper()), (f'"a, {name}"',)):
                assert status(*asked) == 400, asked
        for harmless in ("close", "keep-alive", "Upgrade", "x-forwarded-client-certs, my-x-app.of*", "x-appyof"):
            assert status(harmless) == 200, harmless


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_the_verdicts_on_ten_thousand_certificates_are_right_and_their_memory_is_bounded(branch: str) -> None:
    earlier = (ServiceIdentity(TRUST_DOMAIN, f"earlier-{number % 50}", "dc1") for number in range(MAX_REMEMBERED - 50))
    known = {f"{number:064X}": Remembered(one, 2_000_000_000).text() for number, one in enumerate(earlier)}
    with gate(branch, Protocol.TCP, known) as opened:
        opened.decide_by(*(Intention(f"s{number}", Action.ALLOW, 9) for number in range(0, 20, 2)))
        wait_until(lambda: len(opened.maps.identities() or {}) == len(known), "those of before")
        before = opened.memory_kb()
        numbers, wrong = iter(range(MANY)), []

        def come() -> None:
            for number in numbers:
                context = opened.context(numbered(f"s{number % 20}", number + 1))
                wanted = DENIED if number % 2 else ALLOWED
                answers = {opened.ask(context)[0] for _ in range(2)}
                if answers != {wanted}:
                    wrong.append((number, answers))

        threads = [threading.Thread(target=come) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        newest = MANY - 2 + MANY % 2
        wait_until(lambda: f"s{newest % 20}" in opened.remembered(), "the newest to be remembered")
        # What is new comes before what is too old goes.
        bound = min(MAX_REMEMBERED, len(known) + len(range(0, MANY, 2)))
        wait_until(lambda: len(opened.maps.identities() or {}) == bound, "no more to be remembered than may be")
        assert opened.remembered().isdisjoint(f"s{number}" for number in range(1, 20, 2))
        assert all(worker.cached <= MAX_ENTRIES for worker in opened.pool.counters())
        taken = opened.memory_kb() - before
        sys.stderr.write(f"HAProxy {branch}: {MANY} certificates took {taken} kB\n")
        assert taken < MEMORY_KB


@pytest.mark.parametrize("branch", HAPROXY_BRANCHES)
def test_requests_that_a_caller_leaves_open_leave_haproxy_descriptors_for_others(branch: str) -> None:
    app = Patient("slow")
    app.resets, app.poured = [], 0
    with contextlib.closing(app), gate(branch, Protocol.HTTP2, app_port=app.port) as opened:
        opened.decide_by(WEB, Intention("db", Action.ALLOW, 9))
        with contextlib.ExitStack() as held:
            # HAProxy takes 500 connections here, and counts on two descriptors for each. Some go in on the common line.
            for _ in range(2):
                end = held.enter_context(http2_end(opened, SERVICE))
                for _ in range(900):
                    end.ask("/silent")
            opened.stage.process.look(10.0)
            assert len(os.listdir(f"/proc/{opened.stage.worker()}/fd")) < 800  # noqa: PTH208 (only how many)
            other = held.enter_context(http2_end(opened, "db"))
            other.wait(ResponseReceived, other.ask())


class Patient(Http2Server):
    """One that is not astonished when HAProxy ends."""

    def talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ProtocolError):
            super().talk(connection)


@pytest.mark.parametrize("branch", ["3.2", "3.4"])
def test_questions_about_one_caller_do_not_take_all_of_haproxys_descriptors(branch: str) -> None:
    with gate(branch, Protocol("http2")) as opened, http2_end(opened, "evil") as client:
        opened.decide_by(WEB)
        opened.wait_whole()

        def rows() -> tuple[Row, ...]:
            return StatsReader(opened.stage.layout.stats_socket, EVERYTHING).read().rows

        def asked() -> int:
            return sum(row.open_sessions for row in rows() if row.kind is RowKind.SERVER and row.proxy == AGENTS)

        for worker in opened.pool.workers():
            os.kill(worker.pid, signal.SIGSTOP)
        streams = [client.ask() for _ in range(4 * MOST_QUESTIONS)]
        wait_until(lambda: sum(row.requests for row in rows() if row.proxy == PUBLIC) == len(streams), "all are there")
        wait_until(lambda: asked() >= 2 * MOST_QUESTIONS, "as many questions as there may be")
        assert asked() == 2 * MOST_QUESTIONS
        client.wait(ResponseReceived, *streams)


@contextlib.contextmanager
def http2_end(opened: Gate, service: str) -> Iterator[Http2End]:
    """A client that speaks HTTP/2 with the certificate of that service."""
    context = opened.context(MESH.leaf(*uri_names(service_uri(service)), key=KEY))
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", opened.port), timeout=10) as plain, context.wrap_socket(plain) as tls:
        yield Http2End(tls, H2Connection(H2Configuration(client_side=True)))
