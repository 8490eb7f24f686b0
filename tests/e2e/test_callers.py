"""Callers that HAProxy remembers: let in without a worker, cut as soon as they are denied."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
from cryptography import x509

from hcc.haproxy.capabilities import Feature
from hcc.haproxy.control import ControlError
from hcc.haproxy.runtime import MasterSocket
from hcc.mesh.caller import key_name
from tests.e2e.certificates import answer, handshake, mesh_certificate
from tests.e2e.clients import http2_client, http_get, is_refused, read_line, tcp_ask
from tests.e2e.mesh import Member
from tests.e2e.sidecar import Sidecar
from tests.e2e.standing import DB_PORT, H2_PORT, WEB_PORT, Standing
from tests.e2e.versions import can, on_2_8
from tests.e2e.waiting import stays, wait_until

pytestmark = pytest.mark.e2e

KNOWN = "caller:dc1"
HEADER = "x-forwarded-client-cert"
GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"


@contextmanager
def intention(standing: Standing, source: str, destination: str, action: str) -> Iterator[None]:
    server = standing.site.server
    server.set_intention(source, destination, action)
    try:
        yield
    finally:
        server.remove_intention(source, destination)


@contextmanager
def workers_hung(sidecar: Sidecar, *, hcc_too: bool = False) -> Iterator[None]:
    """All SPOE workers stopped, but not dead: nobody answers. With hcc nobody replaces them either, else in 3 s."""
    pids = sidecar.spoe_workers()
    assert pids
    if hcc_too:
        pids = (sidecar.process.pid, *pids)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def reconfigured(standing: Standing, member: Member) -> Iterator[None]:
    """HAProxy was reloaded for a change of the registration; once more when that was taken back."""
    sidecar, registered = member.sidecar, member.service
    changed = registered.config | {"local_connect_timeout_ms": 4000 + standing.site.number()}
    worker = sidecar.worker_pid()
    try:
        member.register(replace(registered, config=changed))
        wait_until("the reload", lambda: sidecar.worker_pid() != worker)
        # During a reload either of them may answer.
        sidecar.wait_rest()
        worker = sidecar.worker_pid()
        yield
    finally:
        member.register(registered)
        wait_until("the reload back", lambda: sidecar.worker_pid() != worker)
        sidecar.wait_rest()


@pytest.fixture(autouse=True)
def _settled(standing: Standing, haproxy_version: str) -> None:
    """What the test before did is over: all may come in again, and each has its line."""
    sidecar = standing.db.sidecar
    wait_until("all callers of db to be allowed, with a line", lambda: _is_settled(sidecar, haproxy_version))


@pytest.fixture
def stranger(standing: Standing, tmp_path: Path) -> Path:
    """The certificate of a service that never called before."""
    return mesh_certificate(standing.site.client, f"stranger{standing.site.number()}", tmp_path)


def asked(standing: Standing, member: Member, certificate: Path, question: bytes = b"WHO\n") -> bytes:
    roots = standing.site.client.root_pems()
    with handshake(standing.client, member.namespace.address, member.public_port, roots, certificate) as sock:
        return answer(sock, question)


@contextmanager
def introduced(standing: Standing, certificate: Path) -> Iterator[ssl.SSLSocket]:
    """A session with db of a caller that may be new, who is refused where no worker answers in time."""
    place = (standing.client, standing.db.namespace.address, standing.db.public_port)
    roots = standing.site.client.root_pems()
    with contextlib.ExitStack() as opened:

        def session() -> ssl.SSLSocket | None:
            made = opened.enter_context(handshake(*place, roots, certificate))
            return made if answer(made, b"WHO\n") == b"db\n" else None

        found = wait_until("it to be let in", session)
        assert found is not None
        yield found


@contextmanager
def away(sidecar: Sidecar) -> Iterator[None]:
    """No hcc in the block, and after it no worker that it left: of whom such a one lets in the new hcc never hears."""
    left = set(sidecar.spoe_workers())
    sidecar.kill()
    try:
        yield
    finally:
        sidecar.start()
    sidecar.wait_ready()
    wait_until("the workers of before to be gone", lambda: not left & set(sidecar.spoe_workers()))


def questions(sidecar: Sidecar) -> float:
    """How often the workers were asked."""
    return sum(value for name, value in sidecar.metrics().items() if name.startswith("hcc_spoe_verdicts_total"))


def remembers(sidecar: Sidecar, caller: str) -> bool:
    """Whether it is let in without asking a worker."""
    verdicts, identities = (sidecar.runtime(_show(name, sidecar)).splitlines() for name in ("verdicts", "identities"))
    is_known = any(line.split()[2].startswith(f"{caller}|") for line in identities if line.strip())
    found = (line.split()[1:] for line in verdicts if line.strip())
    return is_known and any((key_name(key), verdict) == (caller, "allow") for key, verdict in found)


def known(sidecar: Sidecar) -> int:
    return len([line for line in sidecar.runtime(_show("identities", sidecar)).splitlines() if line.strip()])


def _show(name: str, sidecar: Sidecar) -> str:
    return f"show map {sidecar.state_dir}/{name}.map"


def wait_known(standing: Standing) -> None:
    """Return when web, db and pages remember the caller."""
    members = (standing.web, standing.db, standing.pages)

    def all_called() -> bool:
        assert tcp_ask(standing.client, DB_PORT) == "db"
        assert http_get(standing.client, WEB_PORT).status == 200
        with http2_client(standing.client, H2_PORT) as client:
            assert client.get("/")[0].status == 200
        return all(remembers(member.sidecar, KNOWN) for member in members)

    if not all_called():
        # A worker that an hcc that was killed left behind may have been asked, of which nobody heard.
        wait_until("web, db and pages to remember the caller", all_called, pause_s=0.5)


def test_a_known_caller_is_let_in_without_asking_a_worker(standing: Standing) -> None:
    wait_known(standing)
    before = [questions(member.sidecar) for member in (standing.web, standing.db)]
    for _ in range(20):
        assert tcp_ask(standing.client, DB_PORT) == "db"
        assert http_get(standing.client, WEB_PORT).status == 200
    assert [questions(member.sidecar) for member in (standing.web, standing.db)] == before


def test_with_every_worker_hung_a_known_caller_gets_in_and_a_stranger_does_not(
    standing: Standing, stranger: Path
) -> None:
    wait_known(standing)
    with contextlib.ExitStack() as hung:
        for member in (standing.web, standing.db):
            hung.enter_context(workers_hung(member.sidecar, hcc_too=True))
        assert tcp_ask(standing.client, DB_PORT) == "db"
        assert http_get(standing.client, WEB_PORT).status == 200
        assert asked(standing, standing.db, stranger) == b""
    # What did not answer in time was down for HAProxy's check.
    wait_until("the stranger to get in", lambda: asked(standing, standing.db, stranger) == b"db\n")


def test_a_denied_caller_stays_out_with_every_worker_hung_until_it_is_allowed_again(standing: Standing) -> None:
    wait_known(standing)
    with workers_hung(standing.db.sidecar), intention(standing, "caller", "db", "deny"):
        wait_until("tcp to be refused", lambda: is_refused(lambda: tcp_ask(standing.client, DB_PORT)))
    wait_until("tcp to be allowed", lambda: tcp_ask(standing.client, DB_PORT) == "db")


def test_a_tcp_session_is_cut_when_its_caller_is_denied_and_others_go_on(
    standing: Standing, stranger: Path, haproxy_version: str
) -> None:
    wait_known(standing)
    sidecar = standing.db.sidecar
    # The first session of the other one comes before HAProxy knows it, and so has no line of its own.
    with introduced(standing, stranger) as other, contextlib.ExitStack() as opened:
        wait_until("the other one to be remembered", partial(remembers, sidecar, f"{_service(stranger)}:dc1"))
        wait_until("it to have a line", lambda: _is_settled(sidecar, haproxy_version))
        sessions = [opened.enter_context(standing.client.connect("127.0.0.1", DB_PORT)) for _ in range(3)]
        for session in sessions:
            session.sendall(b"WHO\n")
            assert read_line(session) == "db"
        before = sidecar.metrics()["hcc_sessions_cut_total"]
        with intention(standing, "caller", "db", "deny"):
            for session in sessions:
                assert session.recv(100) == b"", "still open"
            wait_until("the count", lambda: sidecar.metrics()["hcc_sessions_cut_total"] >= before + 3)
            if can(haproxy_version, Feature.DYNAMIC_SERVERS):
                assert answer(other, b"WHO\n") == b"db\n"
                assert sidecar.metrics()["hcc_sessions_cut_total"] == before + 3
    wait_until("tcp to be allowed", lambda: tcp_ask(standing.client, DB_PORT) == "db")


def test_a_tcp_session_that_a_stopping_worker_serves_is_cut_when_its_caller_is_denied(standing: Standing) -> None:
    wait_known(standing)
    with contextlib.ExitStack() as opened:
        sessions = [opened.enter_context(standing.client.connect("127.0.0.1", DB_PORT)) for _ in range(3)]
        for session in sessions:
            session.sendall(b"WHO\n")
            assert read_line(session) == "db"
        with reconfigured(standing, standing.db):
            for session in sessions:
                session.sendall(b"WHO\n")
                assert read_line(session) == "db"
            with intention(standing, "caller", "db", "deny"):
                for session in sessions:
                    assert session.recv(100) == b"", "still open"
    wait_until("tcp to be allowed", lambda: tcp_ask(standing.client, DB_PORT) == "db")


def test_a_connection_kept_to_a_stopping_worker_is_denied_though_the_master_hung_at_the_denial(
    standing: Standing, stranger: Path
) -> None:
    member, roots = standing.web, standing.site.client.root_pems()
    sidecar, name = member.sidecar, _service(stranger)
    master_socket = MasterSocket(f"{sidecar.state_dir}/master.sock")

    def denied(ask: Callable[[str], str]) -> bool:
        try:
            found = (line.split()[1:] for line in ask(_show("verdicts", sidecar)).splitlines() if line.strip())
        except ControlError:
            # The master was just starting anew.
            return False
        return any((key_name(key), verdict) == (f"{name}:dc1", "deny") for key, verdict in found)

    with handshake(standing.client, member.namespace.address, member.public_port, roots, stranger) as kept:
        assert b" 200 " in answer(kept, GET)
        wait_until("it to be remembered", lambda: remembers(sidecar, f"{name}:dc1"))
        worker, (master,) = sidecar.worker_pid(), sidecar.haproxy_masters()
        with reconfigured(standing, member), contextlib.ExitStack() as hung:
            os.kill(master, signal.SIGSTOP)
            hung.callback(os.kill, master, signal.SIGCONT)
            with intention(standing, name, "web", "deny"):
                wait_until("the worker that serves to deny", lambda: denied(sidecar.runtime))
                hung.close()
                ask = partial(master_socket.of_worker, worker)
                wait_until("the one that stops to deny", lambda: denied(ask))
                assert b" 403 " in answer(kept, GET)


def test_the_first_session_of_a_caller_is_cut_too(standing: Standing, stranger: Path, haproxy_version: str) -> None:
    name = _service(stranger)
    with introduced(standing, stranger) as first:
        wait_until("it to be remembered", lambda: remembers(standing.db.sidecar, f"{name}:dc1"))
        with standing.client.connect("127.0.0.1", DB_PORT) as other, intention(standing, name, "db", "deny"):
            other.sendall(b"WHO\n")
            assert read_line(other) == "db"
            wait_until("it to be cut", lambda: _ended(first))
            if can(haproxy_version, Feature.DYNAMIC_SERVERS):
                other.sendall(b"WHO\n")
                assert read_line(other) == "db"


def test_the_first_sessions_of_a_caller_go_on_when_another_one_is_denied(
    standing: Standing, stranger: Path, haproxy_version: str
) -> None:
    wait_known(standing)
    sidecar, roots = standing.db.sidecar, standing.site.client.root_pems()
    host, port = standing.db.namespace.address, standing.db.public_port
    with contextlib.ExitStack() as opened:
        # As a pool of connections is filled: from before HAProxy knows the caller until after it does.
        deadline = time.monotonic() + 1.0
        sessions = []
        while time.monotonic() < deadline:
            session = opened.enter_context(handshake(standing.client, host, port, roots, stranger))
            if answer(session, b"WHO\n") == b"db\n":
                sessions.append(session)
        assert sessions
        wait_until("it to be remembered", partial(remembers, sidecar, f"{_service(stranger)}:dc1"))
        before = sidecar.metrics()["hcc_sessions_cut_total"]
        with standing.client.connect("127.0.0.1", DB_PORT) as other:
            # Until it is through it could be refused instead of cut.
            other.sendall(b"WHO\n")
            assert read_line(other) == "db"
            with intention(standing, "caller", "db", "deny"):
                assert other.recv(100) == b"", "still open"
                wait_until("the count", lambda: sidecar.metrics()["hcc_sessions_cut_total"] > before)
                if can(haproxy_version, Feature.DYNAMIC_SERVERS):
                    # Also after the second look, half a second later.
                    stays("all of them open", lambda: all(answer(one, b"WHO\n") == b"db\n" for one in sessions), 0.8)


def test_a_session_of_a_caller_that_was_denied_for_a_while_goes_on_when_another_one_is_denied(
    standing: Standing, stranger: Path, haproxy_version: str
) -> None:
    wait_known(standing)
    with introduced(standing, stranger) as other, contextlib.ExitStack() as opened:
        wait_until("it to be remembered", partial(remembers, standing.db.sidecar, f"{_service(stranger)}:dc1"))
        with intention(standing, "caller", "db", "deny"):
            wait_until("tcp to be refused", lambda: is_refused(lambda: tcp_ask(standing.client, DB_PORT)))

        def first_session() -> socket.socket:
            session = opened.enter_context(standing.client.connect("127.0.0.1", DB_PORT))
            session.sendall(b"WHO\n")
            assert read_line(session) == "db"
            return session

        first = wait_until("the first session after it", first_session, pause_s=0.002)
        with intention(standing, _service(stranger), "db", "deny"):
            wait_until("the other one to be cut", lambda: _ended(other))
            if can(haproxy_version, Feature.DYNAMIC_SERVERS):
                first.sendall(b"WHO\n")
                assert read_line(first) == "db"


def test_a_caller_that_came_while_hcc_was_away_is_cut_when_it_is_denied(
    standing: Standing, stranger: Path, haproxy_version: str
) -> None:
    wait_known(standing)
    sidecar = standing.db.sidecar
    wait_until("the known one to have a line", lambda: _is_settled(sidecar, haproxy_version))
    lines, said = _lines(sidecar, haproxy_version), len(sidecar.log_text())
    with contextlib.ExitStack() as opened:
        with away(sidecar):
            came = opened.enter_context(introduced(standing, stranger))
        assert answer(came, b"WHO\n") == b"db\n"
        with intention(standing, _service(stranger), "db", "deny"):
            wait_until("it to be cut", lambda: _ended(came))
        # The new hcc took no line from those that were known.
        assert _lines(sidecar, haproxy_version) >= lines
        assert "delete server app/" not in sidecar.log_text()[said:]
    wait_known(standing)


def test_a_caller_that_was_denied_while_hcc_was_away_is_cut_though_nothing_remembers_it(
    standing: Standing, stranger: Path, haproxy_version: str
) -> None:
    wait_known(standing)
    sidecar = standing.db.sidecar
    wait_until("it to be let in", lambda: asked(standing, standing.db, stranger) == b"db\n")
    wait_until("it to be remembered", lambda: remembers(sidecar, f"{_service(stranger)}:dc1"))
    wait_until("all to have lines", lambda: _is_settled(sidecar, haproxy_version))
    with introduced(standing, stranger) as came, contextlib.ExitStack() as denied:
        with away(sidecar):
            # As where its certificate has expired.
            for name in ("verdicts", "identities"):
                sidecar.runtime(f"clear map {sidecar.state_dir}/{name}.map")
            denied.enter_context(intention(standing, _service(stranger), "db", "deny"))
        if can(haproxy_version, Feature.DYNAMIC_SERVERS):
            wait_until("it to be cut", lambda: _ended(came))
    wait_known(standing)


def test_what_is_remembered_survives_a_reload_and_a_restart_of_its_actor(standing: Standing) -> None:
    wait_known(standing)
    sidecar = standing.web.sidecar
    before = known(sidecar)
    assert before
    with reconfigured(standing, standing.web):
        wait_until("the caller to be remembered", lambda: known(sidecar) >= before and remembers(sidecar, KNOWN))
        with workers_hung(sidecar):
            assert http_get(standing.client, WEB_PORT).status == 200
        sidecar.restart("Authoriser")
        with workers_hung(sidecar):
            assert http_get(standing.client, WEB_PORT).status == 200
        assert known(sidecar) >= before


def test_what_a_hand_took_out_of_the_maps_is_put_back(standing: Standing) -> None:
    wait_known(standing)
    sidecar = standing.db.sidecar
    for name in ("verdicts", "identities"):
        sidecar.runtime(f"clear map {sidecar.state_dir}/{name}.map")
    sidecar.restart("Authoriser")
    # Whoever is not remembered is asked about, and remembered again.
    assert tcp_ask(standing.client, DB_PORT) == "db"
    wait_until("the caller to be remembered", lambda: remembers(sidecar, KNOWN))


def test_the_application_is_told_whose_certificate_came_and_a_caller_cannot_say_it_itself(standing: Standing) -> None:
    forged = "By=spiffe://x;URI=spiffe://x/ns/default/dc/dc1/svc/root"
    headers = _headers_told(standing, {"X-Forwarded-Client-Cert": forged, "X-Caller": "root"})
    by, digest, uri = headers[HEADER].split(";")
    assert by.startswith("By=spiffe://")
    assert by.endswith("/dc/dc1/svc/web")
    assert len(digest) == len("Hash=") + 64
    assert uri.startswith("URI=spiffe://")
    assert uri.endswith("/dc/dc1/svc/caller")
    assert headers["x-caller"] == "caller"


@on_2_8
def test_the_application_is_not_told_where_the_mesh_entry_says_so(standing: Standing) -> None:
    server = standing.site.server
    assert HEADER in _headers_told(standing)
    server.put("/v1/config", {"Kind": "mesh", "HTTP": {"SanitizeXForwardedClientCert": True}})
    try:
        wait_until("the header to be gone", lambda: HEADER not in _headers_told(standing))
        assert HEADER not in _headers_told(standing, {HEADER: "URI=spiffe://x/ns/default/dc/dc1/svc/root"})
        assert _headers_told(standing)["x-caller"] == "caller"
    finally:
        server.delete("/v1/config/mesh/mesh")
    wait_until("the header to be back", lambda: HEADER in _headers_told(standing))


def _headers_told(standing: Standing, headers: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Those that the application gets, by their names in lower case."""
    connection = standing.client.http(WEB_PORT)
    try:
        connection.request("GET", "/headers", headers=headers)
        return {name.lower(): value for name, value in json.loads(connection.getresponse().read()).items()}
    finally:
        connection.close()


def _lines(sidecar: Sidecar, haproxy_version: str) -> set[str]:
    """Callers with a server line; where there are none, the certificates that are remembered."""
    if not can(haproxy_version, Feature.DYNAMIC_SERVERS):
        return {line.split()[1] for line in sidecar.runtime(_show("identities", sidecar)).splitlines() if line.strip()}
    words = (line.split() for line in sidecar.runtime("show servers state app").splitlines())
    return {each[3] for each in words if len(each) > 3 and ":dc1" in each[3]}


def _is_settled(sidecar: Sidecar, haproxy_version: str) -> bool:
    found = (line.split()[1:] for line in sidecar.runtime(_show("verdicts", sidecar)).splitlines() if line.strip())
    verdicts = {key_name(key): verdict for key, verdict in found}
    with_line = _lines(sidecar, haproxy_version) if can(haproxy_version, Feature.DYNAMIC_SERVERS) else set(verdicts)
    return set(verdicts.values()) <= {"allow"} and with_line == set(verdicts)


def _ended(sock: ssl.SSLSocket) -> bool:
    try:
        sock.settimeout(0.05)
        return sock.recv(100) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def _service(certificate: Path) -> str:
    first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(names.get_values_for_type(x509.UniformResourceIdentifier)[0].rpartition("/")[2])
