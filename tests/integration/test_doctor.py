"""The checks of `hcc doctor` against a real agent with ACLs, real sockets and real files."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from hcc.consul.client import ConsulClient
from hcc.consul.environment import consul_settings
from hcc.diagnosis import handshake
from hcc.diagnosis.consul import Right, check_rights, clock_against
from hcc.diagnosis.doctor import examine
from hcc.diagnosis.finding import Finding, Level, Section, any_failed
from hcc.diagnosis.machine import (
    Listener,
    check_access_log,
    check_file_descriptors,
    check_port,
    check_state_directory,
    file_owner,
    socket_owner,
)
from hcc.diagnosis.sidecar import Running, check_sidecar
from hcc.diagnosis.upstream import _haproxy
from hcc.haproxy.capabilities import OLDEST
from hcc.mesh.secret import Secret
from hcc.mesh.snapshot import Leaf
from hcc.settings import Enforcement, RunSettings, Selection, parse_listen_address
from tests import binaries
from tests.builders import endpoint, leaf, roots, upstream
from tests.consul_agent import DevAgent
from tests.consul_http import service_with_sidecar
from tests.fake_consul import FakeConsul, Fault
from tests.pki import Authority, service_uri
from tests.ports import free_port, free_ports
from tests.status_builders import status

pytestmark = pytest.mark.integration

ACL = """
acl { enabled = true default_policy = "deny" tokens { initial_management = "root-token" agent = "root-token" } }
"""
NOBODY = Running(None, "nobody runs")
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    with DevAgent(ACL, "root-token") as running:
        public, local = free_ports(2)
        upstream = {"DestinationName": "db", "LocalBindPort": local}
        web = service_with_sidecar("web", 8181, sidecar_port=public, upstreams=(upstream,))
        running.register({**web, "Tags": ["seasoned"]})
        yield running


@pytest.fixture
def base() -> Iterator[Path]:
    """Short, as sockets go below it: pytest's own names are long under xdist."""
    with tempfile.TemporaryDirectory(prefix="hcc-t-") as made:
        yield Path(made)


def settings(state_dir: Path, **changes: object) -> RunSettings:
    made = RunSettings(
        selection=Selection(sidecar_for="web"),
        haproxy=binaries.haproxy("2.8"),
        control="direct",
        dataplane="",
        state_dir=str(state_dir),
        stats_addr=None,
        stats_service_register=False,
        metrics_per_endpoint=False,
        intentions=Enforcement.ENFORCE,
        spoe_workers=2,
        resync_s=300.0,
        on_exit="drain",
        drain_timeout_s=1.0,
        drain_delay_s=0.0,
        drain_maintenance=False,
        cached_start=True,
        log_level="info",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def found(agent: DevAgent, token: str, state_dir: Path, **changes: object) -> dict[str, Finding]:
    consul = consul_settings(http_addr=agent.http_addr, token=token)
    sections = tuple(examine(settings(state_dir, **changes), consul, lambda _: NOBODY))
    return {finding.subject: finding for section in sections for finding in section.findings}


def token_with(agent: DevAgent, body: dict[str, object]) -> str:
    return str(agent.ask("PUT", "/v1/acl/token", body)["SecretID"])


def levels(findings: dict[str, Finding]) -> set[Level]:
    return {finding.level for finding in findings.values()}


def test_an_agent_whose_connections_are_all_in_use_is_told_as_such(base: Path) -> None:
    most = 5
    with DevAgent(f"limits {{ http_max_conns_per_client = {most} }}") as crowded, contextlib.ExitStack() as others:
        host, _, port = crowded.http_addr.rpartition(":")
        places = 0
        # The agent may still count a connection that its start was waited for with, and refuse one of these. Whoever
        # was answered has a place.
        while places < most:
            other = others.enter_context(contextlib.closing(HTTPConnection(host, int(port), timeout=15)))
            with contextlib.suppress(HTTPException, OSError):
                other.request("GET", "/v1/status/leader")
                answer = other.getresponse()
                answer.read()
                places += answer.status == HTTPStatus.OK
        finding = found(crowded, "", base)["agent"]
    assert finding.level is Level.FAILED
    assert "raise limits.http_max_conns_per_client" in finding.text
    assert "docs/sizing.md" in finding.remedy


def test_a_service_identity_is_all_that_a_sidecar_needs(agent: DevAgent, base: Path) -> None:
    token = token_with(agent, {"ServiceIdentities": [{"ServiceName": "web"}]})

    findings = found(agent, token, base)

    assert Level.FAILED not in levels(findings), findings
    for right in ("service:write on web", "service:read on web-sidecar-proxy", "intention:read on web", "node:read"):
        assert findings[right].level is Level.OK
    assert findings["service:read on db"].level is Level.OK
    assert findings["clock"].level is Level.OK


def test_each_missing_right_is_named_with_what_to_do(agent: DevAgent, base: Path) -> None:
    rules = 'service "web" { policy = "write" } service "web-sidecar-proxy" { policy = "read" }'
    agent.ask("PUT", "/v1/acl/policy", {"Name": "by-hand", "Rules": rules})
    token = token_with(agent, {"Policies": [{"Name": "by-hand"}]})

    findings = found(agent, token, base, stats_service_register=True, stats_addr=parse_listen_address(":1"))

    missing = {subject for subject, finding in findings.items() if finding.text.startswith("missing")}
    assert missing == {"service:read on db", "node:read", "service:write on web-connect-stats"}
    assert "service identity" in findings["node:read"].remedy
    assert 'service "web-connect-stats"' in findings["service:write on web-connect-stats"].remedy


def test_the_rights_of_many_upstreams_are_asked_for(agent: DevAgent) -> None:
    token = token_with(agent, {"ServiceIdentities": [{"ServiceName": "web"}]})
    wanted = tuple(Right("service", "write", name, "a test") for name in (*(f"up-{n}" for n in range(130)), "web"))
    client = ConsulClient(consul_settings(http_addr=agent.http_addr, token=token))
    try:
        findings = tuple(check_rights(client, wanted))
    finally:
        client.close()

    assert [one.subject for one in findings] == [one.label() for one in wanted]
    assert [one.subject for one in findings if one.level is Level.OK] == ["service:write on web"]


def test_a_token_that_consul_does_not_know_is_told(agent: DevAgent, base: Path) -> None:
    findings = found(agent, "nobody-s-token", base)

    assert findings["agent"].level is Level.FAILED
    assert "does not know this token" in findings["agent"].text
    assert "nobody-s-token" not in str(findings)


def test_an_agent_that_is_not_there_is_told_and_the_rest_is_still_looked_at(base: Path) -> None:
    consul = consul_settings(http_addr=f"127.0.0.1:{free_ports(1)[0]}")

    sections = tuple(examine(settings(base), consul, lambda _: NOBODY))

    assert any_failed(sections)
    by_title = {section.title: section.findings for section in sections}
    assert [one.level for title, one in _firsts(by_title) if title.startswith("Consul")] == [Level.FAILED]
    assert any(one.subject == "state directory" for one in by_title["Machine"])


@pytest.mark.parametrize("said", [None, 7, [], "x"])
def test_an_agent_that_answers_with_something_else_is_told(base: Path, said: object) -> None:
    # As whoever answers every request of a machine that has not logged in yet; None is an empty list of fields.
    with FakeConsul() as fake:
        fake.fail("/v1/", Fault("body", body=said), times=20)
        found = tuple(examine(settings(base), consul_settings(http_addr=fake.http_addr), lambda _: NOBODY))

    agent = next(one for section in found for one in section.findings if one.subject == "agent")
    assert (agent.level, "expected an object" in agent.text) == (Level.FAILED, True)


def _firsts(sections: dict[str, tuple[Finding, ...]]) -> list[tuple[str, Finding]]:
    return [(title, findings[0]) for title, findings in sections.items()]


def test_the_sidecar_is_asked_for_by_the_id_that_consul_has(agent: DevAgent, base: Path) -> None:
    asked: list[str] = []

    def running(proxy_id: str) -> Running:
        asked.append(proxy_id)
        return NOBODY

    for selection in (Selection(sidecar_for="web"), Selection(sidecar_for_tag="seasoned"), Selection()):
        chosen = settings(base, selection=selection)
        tuple(examine(chosen, consul_settings(http_addr=agent.http_addr, token="root-token"), running))

    assert asked == ["web-sidecar-proxy", "web-sidecar-proxy", ""]


def test_what_is_wrong_with_the_registration_is_told_once(agent: DevAgent, base: Path) -> None:
    public, local = free_ports(2)
    agent.register(service_with_sidecar("odd", local, sidecar_port=public, config={"read_timeout": "soon"}))

    def told(sections: Iterable[Section]) -> list[str]:
        return [one.text for section in sections for one in section.findings if "read_timeout" in one.text]

    chosen = settings(base, selection=Selection(sidecar_for="odd"))
    consul = consul_settings(http_addr=agent.http_addr, token="root-token")
    (first,) = told(examine(chosen, consul, lambda _: NOBODY))
    complains = replace(
        status().readiness, warnings=(f"registration: {first}", "registration: read_timeout: of before")
    )
    seen = Running(replace(status(), readiness=complains))
    assert told(examine(chosen, consul, lambda _: seen)) == [first, "registration: read_timeout: of before"]


@pytest.mark.parametrize(("reason", "remedy"), [("drained by hcc", "start hcc"), ("disk is full", "if that is over")])
def test_that_consul_has_the_proxy_in_maintenance_mode_is_told(
    agent: DevAgent, base: Path, reason: str, remedy: str
) -> None:
    token = token_with(agent, {"ServiceIdentities": [{"ServiceName": "web"}]})
    client = ConsulClient(consul_settings(http_addr=agent.http_addr, token=token))
    with contextlib.closing(client):
        client.maintenance("web-sidecar-proxy", on=True, reason=reason)
        try:
            told = found(agent, token, base)["maintenance"]
        finally:
            client.maintenance("web-sidecar-proxy", on=False, reason="")

    assert told.level is Level.WARNING
    assert told.text.endswith(f": {reason}")
    assert told.remedy.startswith(remedy)
    assert "consul maint -disable -service=web-sidecar-proxy" in told.remedy
    assert "maintenance" not in found(agent, token, base)


def test_a_sidecar_that_has_its_directory_and_does_not_answer_is_told(agent: DevAgent, base: Path) -> None:
    (base / "web-sidecar-proxy").mkdir(mode=0o700)
    lock = os.open(base / "web-sidecar-proxy" / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        told = found(agent, "root-token", base)["running"]
    finally:
        os.close(lock)

    assert (told.level, told.text) == (Level.FAILED, f"process {os.getpid()} has its state directory, but: nobody runs")
    assert found(agent, "root-token", base)["running"].level is Level.SKIPPED


def test_a_haproxy_that_cannot_serve_and_a_missing_data_plane_api_are_told(agent: DevAgent, base: Path) -> None:
    wrong = found(agent, "root-token", base, haproxy="/bin/true")
    assert wrong["version"].level is Level.FAILED
    assert f"HAProxy {OLDEST.branch} or newer" in wrong["version"].remedy
    lacking = found(agent, "root-token", base, control="dataplane", dataplane="/no/such")
    assert lacking["Data Plane API"].level is Level.FAILED


def test_a_taken_port_is_told_with_its_owner_and_ours_is_fine() -> None:
    listener = Listener("upstream db", "127.0.0.1", free_port())
    with socket.create_server((listener.address, listener.port)):
        taken, ours = check_port(listener, None, 0), check_port(listener, None, os.getpid())

    assert taken.level is Level.FAILED
    assert f"process {os.getpid()}" in taken.text
    assert ours.level is Level.OK
    assert check_port(listener, None, 0).text == "free"
    assert check_port(listener, None, os.getpid()).level is Level.FAILED


def test_a_name_without_an_address_is_told_in_words() -> None:
    told = check_port(Listener("--stats-addr", "nohost.invalid", 1), None, 0)
    assert told.level is Level.FAILED
    assert "Unknown error" not in told.text
    assert "resolution" in told.text or "not known" in told.text


def test_an_instance_that_takes_the_connection_and_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "CONNECT_TIMEOUT_S", 1.0)
    context = ssl.create_default_context()
    context.check_hostname = False
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        (told,) = handshake.check_endpoint(endpoint("127.0.0.1", port=port), context)
    assert told.subject == f"handshake 127.0.0.1:{port}"
    assert told.text == "no answer within 1 s; its HAProxy may hang"


def test_a_handshake_needs_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    authority = Authority()
    issued = authority.leaf(service_uri("web"))

    context = handshake.context_of(leaf(cert_pem=issued.cert_pem, key_pem=issued.key_pem), roots(authority.pem))

    assert context.cert_store_stats()["x509_ca"] == 1


def test_an_address_of_a_family_that_the_kernel_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ipv6(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", without_ipv6)
    told = check_port(Listener("upstream db", "::1", 9191), None, 0)
    assert (told.level, told.text) == (Level.FAILED, "Address family not supported by protocol")


def test_an_address_of_another_machine_is_told() -> None:
    assert "no address of this machine" in check_port(Listener("public", "192.0.2.1", 21000), None, 0).text


def test_a_haproxy_that_was_started_with_fewer_file_descriptors_than_hcc_is_told() -> None:
    with subprocess.Popen(["sh", "-c", "ulimit -n 1000; echo; exec sleep 60"], stdout=subprocess.PIPE) as haproxy:
        try:
            assert haproxy.stdout is not None
            haproxy.stdout.readline()
            told = check_file_descriptors(0, wanted=600, per_connection=1, spare=450, haproxy=haproxy.pid)
        finally:
            haproxy.kill()
    assert (told.level, told.text) == (Level.WARNING, "limit 1000: room for 550 connections at once")
    assert f"HAProxy, process {haproxy.pid}, keeps what it was started with" in told.remedy


@pytest.mark.parametrize("level", [Level.WARNING, Level.FAILED])
def test_too_few_file_descriptors_are_told(level: Level) -> None:
    spare = _limit() - 550 if level is Level.WARNING else _limit()
    assert check_file_descriptors(0, wanted=600, per_connection=1, spare=spare).level is level


def _limit() -> int:
    words = next(line for line in Path("/proc/self/limits").read_text().splitlines() if "open files" in line).split()
    return int(words[4])


def test_a_state_directory_that_others_may_read_is_told_file_by_file(base: Path) -> None:
    directory = base / "web"
    directory.mkdir(mode=0o700)
    (directory / "leaf.pem").touch(mode=0o600)
    assert [one.level for one in check_state_directory(base, directory)] == [Level.OK]

    (directory / "leaf.pem").chmod(0o640)
    assert "leaf.pem (0640)" in next(check_state_directory(base, directory)).text

    directory.chmod(0o755)
    assert "mode 0755" in next(check_state_directory(base, directory)).text


@contextlib.contextmanager
def closed(directory: Path) -> Iterator[None]:
    """Nobody may look into it; nor may we, where root might."""
    mode, root = stat.S_IMODE(directory.stat().st_mode), os.geteuid() == 0
    directory.chmod(0)
    if root:
        os.seteuid(54_001)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(mode)


@pytest.mark.parametrize("below", ["web", "other/web"])
def test_a_state_directory_that_may_not_be_looked_at_is_told(base: Path, below: str) -> None:
    with closed(base):
        (told,) = check_state_directory(base, base / below)
        (unknown,) = check_state_directory(base / "deeper", None)
    assert (told.level, unknown.level) == (Level.FAILED, Level.FAILED)
    assert told.text.endswith("Permission denied")


def test_all_is_looked_at_where_the_state_directory_may_not_be(agent: DevAgent, base: Path) -> None:
    (base / "in").mkdir()
    with closed(base):
        told = found(agent, "root-token", base / "in", haproxy="/no/such")["state directory"]
    assert told.text.endswith("Permission denied")


def test_a_state_directory_that_run_refuses_is_told_before_it_is_made(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = base / ("d" * 100)
    assert "shorter path" in next(check_state_directory(deep, deep / "web")).text
    assert "shorter path" in next(check_state_directory(deep, None)).text
    assert "is no directory" in next(check_state_directory(Path("/dev/null/x"), None)).text
    (base / "web").mkdir(mode=0o700)
    (base / "link").symlink_to(base / "web")
    assert "found a link" in next(check_state_directory(base, base / "link")).text
    monkeypatch.setattr(os, "geteuid", lambda: 54_001)
    theirs = next(check_state_directory(base, base / "web"))
    assert theirs.level is Level.FAILED
    assert "of our own, found it is of the user with the ID" in theirs.text
    # Root may look at the sidecar of another user.
    assert next(check_state_directory(base, base / "web", os.getpid())).level is Level.OK


def test_an_access_log_that_nobody_takes_is_told(agent: DevAgent, base: Path) -> None:
    path = base / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(path))
        assert check_access_log(str(path)).level is Level.OK
    for gone, said in ((path, "Connection refused"), (base / "none", "No such file"), (base / ("x" * 200), "too long")):
        finding = check_access_log(str(gone))
        assert (finding.level, said in finding.text) == (Level.WARNING, True)

    sections = examine(
        settings(base, access_log=str(path)), consul_settings(http_addr=agent.http_addr), lambda _: NOBODY
    )

    assert "access log" in {finding.subject for section in sections for finding in section.findings}


def test_the_owner_of_a_control_socket_is_the_process_that_listens(base: Path) -> None:
    path = base / "control.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert socket_owner(path) == os.getpid()
    assert socket_owner(path) == 0


def test_a_file_of_the_same_name_in_a_container_is_nobodys_here(base: Path) -> None:
    file = base / "lock"
    there = f"mount -t tmpfs none {base} && exec 9> {file} && echo ready && exec sleep 60"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", there], stdout=subprocess.PIPE, text=True) as container:
        try:
            assert container.stdout is not None
            assert container.stdout.readline() == "ready\n"
            owners = [file_owner(file)]
            with file.open("w"):
                owners.append(file_owner(file))
        finally:
            container.kill()
    assert owners == [0, os.getpid()]


@pytest.mark.parametrize(
    ("start", "end", "level", "said"),
    [
        (-1, 71, Level.OK, "71.0 h left"),
        (-71, 1, Level.WARNING, "1.0 h left"),
        (1, 73, Level.FAILED, "3600 s before the leaf becomes valid"),
        (-73, -1, Level.FAILED, "ended 3600 s ago"),
    ],
)
def test_the_clock_is_held_against_the_leaf(start: int, end: int, level: Level, said: str) -> None:
    dates = tuple(f"{NOW + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}" for hours in (start, end))

    finding = clock_against(Leaf("web", "spiffe://x", "pem", Secret("key"), *dates), NOW)

    assert finding.level is level
    assert said in finding.text


@pytest.mark.parametrize(
    ("running", "problem", "said"),
    [
        (True, "it does not answer within 3 s", "process 4712 does not say how it does: it does not answer within 3 s"),
        (False, "nobody listens", "does not run"),
    ],
)
def test_a_haproxy_that_hangs_or_is_gone_is_told(running: bool, problem: str, said: str) -> None:
    seen = Running(replace(status(), haproxy=replace(status().haproxy, running=running, problem=problem)))

    (doctor,) = (one for one in check_sidecar(seen) if one.subject == "HAProxy")
    assert (doctor.level, doctor.text) == (Level.FAILED, said)
    # Its kernel still takes connections for a HAProxy that hangs: nothing of that is shown.
    assert tuple(_haproxy(upstream(), (), seen)) == (doctor,)


def test_what_a_running_sidecar_complains_of_is_told() -> None:
    lacking = replace(status().readiness, ready=False, missing=("leaf: no usable certificate yet",))

    found = {one.subject: one for one in check_sidecar(Running(replace(status(), readiness=lacking)))}

    assert found["running"].level is Level.OK
    assert found["complains"].text == "upstream db: its chain asks for more"
    levels = [one.level for one in check_sidecar(Running(replace(status(), readiness=lacking)))]
    assert levels.count(Level.FAILED) == 1
    assert [one.level for one in check_sidecar(NOBODY)] == [Level.SKIPPED]
    assert [one.level for one in check_sidecar(Running(None, "silence", hangs=True))] == [Level.FAILED]
