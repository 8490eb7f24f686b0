"""The client's ways to the agent: TCP, IPv6, unix socket, TLS, tokens; and what it says when there is none."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from hcc.consul.client import ConsulClient
from hcc.consul.environment import ConsulSettings, consul_settings
from hcc.consul.errors import ConsulNotFoundError, ConsulUnavailableError, InterruptedPollError
from hcc.consul.keys import ChainWatch, EndpointsWatch
from hcc.errors import SettingError
from hcc.mesh.secret import Secret
from tests.fake_consul import FakeConsul, Fault

pytestmark = pytest.mark.integration
Connect = Callable[..., ConsulClient]


class Relay:
    """Passes bytes of each connection on to the fake agent: how a socket of another family or TLS reaches it."""

    def __init__(self, listener: socket.socket, target: str, context: ssl.SSLContext | None = None) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._listener = listener
        self._context = context
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        listener.settimeout(0.05)
        self._done = threading.Event()
        self._threads[0].start()

    def close(self) -> None:
        self._done.set()
        for sock in list(self._sockets):
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in list(self._threads):
            thread.join(5)
        for sock in (*self._sockets, self._listener):
            sock.close()

    def _accept(self) -> None:
        while not self._done.is_set():
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            sock.settimeout(5)
            self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        if self._context is not None:
            try:
                sock = self._context.wrap_socket(sock, server_side=True)
            except OSError:
                sock.close()
                return
        onward = socket.create_connection(self._target, 5)
        self._sockets += [sock, onward]
        for one, other in ((sock, onward), (onward, sock)):
            one.settimeout(30)
            self._threads.append(threading.Thread(target=self._pump, args=(one, other)))
            self._threads[-1].start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
            socket.socket.shutdown(other, socket.SHUT_RDWR)
        except OSError:
            return


@pytest.fixture
def fake() -> Iterator[FakeConsul]:
    with FakeConsul() as running:
        yield running


@pytest.fixture
def connect() -> Iterator[Connect]:
    clients: list[ConsulClient] = []

    def made(settings: ConsulSettings, token: Callable[[], Secret | None] | None = None) -> ConsulClient:
        clients.append(ConsulClient(settings, token, wait_s=30.0))
        return clients[-1]

    try:
        yield made
    finally:
        for client in clients:
            client.close()


@pytest.fixture
def relay(fake: FakeConsul) -> Iterator[Callable[..., None]]:
    relays: list[Relay] = []

    def begin(listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        listener.listen()
        relays.append(Relay(listener, fake.http_addr, context))

    try:
        yield begin
    finally:
        for running in relays:
            running.close()


def interrupted_while_it_waits(client: ConsulClient) -> None:
    index = client.roots().index
    assert index
    timer = threading.Timer(0.1, client.interrupt)
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(InterruptedPollError):
            client.roots(index)
    finally:
        timer.join(5)
    assert time.monotonic() - started < 5


def test_a_unix_socket_reaches_the_agent(relay: Callable[..., None], connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "consul.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    relay(listener)
    interrupted_while_it_waits(connect(consul_settings(http_addr=f"unix://{path}")))


def test_ipv6_reaches_the_agent(relay: Callable[..., None], connect: Connect) -> None:
    listener = socket.socket(socket.AF_INET6)
    listener.bind(("::1", 0))
    relay(listener)
    port = listener.getsockname()[1]
    assert connect(consul_settings(http_addr=f"[::1]:{port}")).services().data == {}


class Tls:
    """A relay with TLS that demands a client certificate, and the files a client needs."""

    def __init__(self, relay: Callable[..., None], directory: Path) -> None:
        ca = trustme.CA()
        server, client = ca.issue_cert("server.dc1.consul"), ca.issue_cert("client")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.configure_cert(context)
        ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        relay(listener, context)
        self.ca, self.certificate, self.key = directory / "ca.pem", directory / "c.pem", directory / "k.pem"
        ca.cert_pem.write_to_path(str(self.ca))
        client.cert_chain_pems[0].write_to_path(str(self.certificate))
        client.private_key_pem.write_to_path(str(self.key))
        self.choices: dict[str, Any] = {
            "http_addr": f"https://127.0.0.1:{listener.getsockname()[1]}",
            "ca_file": str(self.ca),
            "client_cert": str(self.certificate),
            "client_key": str(self.key),
            "tls_server_name": "server.dc1.consul",
        }


@pytest.fixture
def tls(relay: Callable[..., None], tmp_path: Path) -> Tls:
    return Tls(relay, tmp_path)


def test_tls_with_certificates_both_ways_reaches_the_agent_and_can_be_broken_off(tls: Tls, connect: Connect) -> None:
    interrupted_while_it_waits(connect(consul_settings(**tls.choices)))


@pytest.mark.parametrize("name", ["tls_server_name", "ca_file"])
def test_a_server_that_cannot_be_verified_is_refused(tls: Tls, connect: Connect, name: str) -> None:
    choices = {key: value for key, value in tls.choices.items() if key != name}
    with pytest.raises(ConsulUnavailableError, match="certificate verify failed"):
        connect(consul_settings(**choices)).services()


def test_a_ca_directory_is_read_as_consuls_own_programs_do_whatever_its_files_are_called(
    tls: Tls, connect: Connect, tmp_path: Path
) -> None:
    below = tmp_path / "ca.d" / "own"
    below.mkdir(parents=True)
    (below / "consul-agent-ca.pem").write_text(tls.ca.read_text())
    (below.parent / "readme").write_bytes(b"no PEM at all \xff")
    choices = tls.choices | {"ca_file": "", "ca_path": str(below.parent)}
    assert connect(consul_settings(**choices)).services().data == {}
    (below / "consul-agent-ca.pem").write_text(trustme.CA().cert_pem.bytes().decode())
    with pytest.raises(ConsulUnavailableError, match="certificate verify failed"):
        connect(consul_settings(**choices)).services()


def test_verification_can_be_switched_off(tls: Tls, connect: Connect) -> None:
    choices = tls.choices | {"tls_server_name": "", "ca_file": ""}
    assert connect(consul_settings(**choices, ssl_verify=False)).services().data == {}


def test_a_certificate_file_that_is_none_is_a_setting_error(tls: Tls) -> None:
    tls.certificate.write_text("nothing")
    with pytest.raises(SettingError, match=r"c\.pem"):
        ConsulClient(consul_settings(**tls.choices))


def test_certificate_files_that_were_replaced_are_used_by_the_next_connection(
    tls: Tls, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    renewed = {path: path.read_bytes() for path in (tls.ca, tls.certificate, tls.key)}
    other = trustme.CA()
    expired = other.issue_cert("client")
    other.cert_pem.write_to_path(str(tls.ca))
    expired.cert_chain_pems[0].write_to_path(str(tls.certificate))
    expired.private_key_pem.write_to_path(str(tls.key))
    client = connect(consul_settings(**tls.choices))
    with pytest.raises(ConsulUnavailableError, match="certificate verify failed"):
        client.services()
    tls.ca.write_bytes(renewed[tls.ca])
    with pytest.raises(ConsulUnavailableError):
        client.services()
    tls.certificate.write_bytes(renewed[tls.certificate])
    with pytest.raises(ConsulUnavailableError):
        client.services()
    assert "the certificates of before stay: TLS to Consul: expected a certificate and its key" in caplog.text
    tls.key.write_bytes(renewed[tls.key])
    assert client.services().data == {}


def test_every_request_asks_for_the_token_anew(fake: FakeConsul, connect: Connect) -> None:
    tokens = iter([None, Secret("one"), Secret("two")])
    client = connect(consul_settings(http_addr=fake.http_addr), lambda: next(tokens))
    for _ in range(3):
        client.services()
    assert [headers.get("X-Consul-Token") for _, _, headers in fake.requests] == [None, "one", "two"]


def test_every_request_is_counted_by_its_outcome(fake: FakeConsul) -> None:
    outcomes: list[str] = []
    client = ConsulClient(consul_settings(http_addr=fake.http_addr), count=outcomes.append)
    client.roots()
    with pytest.raises(ConsulNotFoundError):
        client.service("nobody")
    client.close()
    gone = ConsulClient(consul_settings(http_addr="127.0.0.1:1"), count=outcomes.append)
    with pytest.raises(ConsulUnavailableError):
        gone.roots()
    gone.close()

    assert outcomes == ["200", "404", "none"]


def test_basic_authentication_is_sent(fake: FakeConsul, connect: Connect) -> None:
    connect(consul_settings(http_addr=fake.http_addr, auth="user:word")).services()
    assert fake.requests[0][2]["Authorization"] == "Basic dXNlcjp3b3Jk"


def test_a_password_is_sent_in_utf_8_as_by_consul_s_own_programs(fake: FakeConsul, connect: Connect) -> None:
    given = "\u00fcser:w\u20acrd"
    connect(consul_settings(http_addr=fake.http_addr, auth=given)).services()
    assert base64.b64decode(fake.requests[0][2]["Authorization"].removeprefix("Basic ")).decode() == given


def test_the_environment_s_proxies_are_not_used(
    fake: FakeConsul, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert connect(consul_settings(http_addr=fake.http_addr)).services().data == {}


def test_a_path_before_the_api_is_kept(fake: FakeConsul, connect: Connect) -> None:
    client = connect(consul_settings(http_addr=f"http://{fake.http_addr}/some/path"))
    with pytest.raises(Exception, match="404"):
        client.services()
    assert fake.requests[0][1] == "/some/path/v1/agent/services"


def test_names_are_encoded_and_defaults_left_out(fake: FakeConsul, connect: Connect) -> None:
    client = connect(consul_settings(http_addr=fake.http_addr))
    client.endpoints(EndpointsWatch("My_Svc.with-dots", "dc1", filter='Service.Meta.v == "1"'))
    client.chain(ChainWatch("a/b", "dc2", "default", ""))
    assert [path for _, path, _ in fake.requests] == [
        "/v1/health/connect/My_Svc.with-dots?stale=&dc=dc1&filter=Service.Meta.v+%3D%3D+%221%22",
        "/v1/discovery-chain/a%2Fb?stale=&compile-dc=dc2",
    ]


def test_namespace_and_partition_of_the_settings_go_with_every_question(fake: FakeConsul, connect: Connect) -> None:
    settings = consul_settings(http_addr=fake.http_addr, namespace="team", partition="part")
    client = connect(settings)
    client.intentions("web")
    client.services()
    client.authorize("web", "spiffe://x/ns/default/dc/dc1/svc/y")
    client.register({"Name": "web", "ID": "web"})
    with pytest.raises(ConsulNotFoundError):  # the fake has no such thing
        client.maintenance("web", on=True, reason="a b")
    client.deregister("web")
    paths = [path for _, path, _ in fake.requests]
    assert paths[0].endswith("?by=destination&name=web&ns=team&partition=part")
    assert paths[4].endswith("/maintenance/web?enable=true&reason=a+b&ns=team&partition=part")
    assert all(path.endswith("ns=team&partition=part") for path in paths), paths


@pytest.mark.parametrize(
    ("own", "target", "asked"),
    [
        ("", "", ""),
        ("", "default", ""),
        ("default", "default", "&ns=default&partition=default"),
        ("team", "", "&ns=team&partition=team"),
        ("team", "default", "&ns=default&partition=default"),
        ("team", "other", "&ns=other&partition=other"),
        ("", "other", "&ns=other&partition=other"),
    ],
)
def test_a_target_is_asked_for_where_it_is(
    fake: FakeConsul, connect: Connect, own: str, target: str, asked: str
) -> None:
    client = connect(consul_settings(http_addr=fake.http_addr, namespace=own, partition=own))
    client.endpoints(EndpointsWatch("db", "dc1", namespace=target, partition=target))
    client.chain(ChainWatch("db", "dc1", target, target))
    assert [path.partition("dc=dc1")[2] for _, path, _ in fake.requests] == [asked, asked]


def test_nobody_there_says_where_and_why(connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConsulUnavailableError, match=rf"{address}: expected an answer .* refused") as caught:
            connect(consul_settings(http_addr=address)).services()
    assert len(str(caught.value)) < 200


def test_an_answer_that_is_too_slow_is_unavailable(
    fake: FakeConsul, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcc.consul.client.ANSWER_TIMEOUT_S", 0.1)
    fake.fail("ca/roots", Fault("delay", seconds=2.0))
    with pytest.raises(ConsulUnavailableError, match="timed out"):
        connect(consul_settings(http_addr=fake.http_addr)).roots()


def test_a_redirect_is_not_followed(fake: FakeConsul, connect: Connect) -> None:
    fake.fail("services", Fault("status", code=301, text="", headers=(("Location", "http://127.0.0.1:1/"),)))
    with pytest.raises(Exception, match="found 301"):
        connect(consul_settings(http_addr=fake.http_addr)).services()
