"""What breaks is mended: what the table of faults (test_fault_table.py) has no row for."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hcc.haproxy.files import read_text
from hcc.haproxy.render import MOST_CLIENTS
from hcc.haproxy.runtime import SilentError, exchange
from tests import binaries
from tests.e2e.clients import fresh_requests, http_get, kept_requests, tcp_ask, tcp_requests
from tests.e2e.faults.edges import UNIX_SOCKETS
from tests.e2e.faults.scene import filled, small_disk
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, Site, upstream
from tests.e2e.namespaces import Namespace, is_running
from tests.e2e.sidecar import ACTORS, Sidecar, hcc_run
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import stays, wait_until

pytestmark = pytest.mark.e2e
WEB_PORT, DB_PORT, NEW_PORT, FULL_PORT = 9401, 9402, 9403, 9404
MENDED_S = 20.0


@dataclass
class Pair:
    """An http and a tcp service on one side, one caller of both on the other."""

    mesh: Mesh
    web: Member
    db: Member
    caller: Member

    def loads(self) -> tuple[Load, Load, Load]:
        """Http on new connections, http on kept ones, tcp on new ones."""
        client = self.caller.namespace
        return (
            Load(fresh_requests(client, WEB_PORT, "fweb")),
            Load(kept_requests(client, WEB_PORT, "fweb")),
            Load(tcp_requests(client, DB_PORT, "fdb")),
        )

    def wait_answers(self) -> None:
        """Return when both services answer again."""
        client = self.caller.namespace
        wait_until("http to be answered", lambda: http_get(client, WEB_PORT).text == "fweb", MENDED_S)
        wait_until("tcp to be answered", lambda: tcp_ask(client, DB_PORT) == "fdb", MENDED_S)

    def sidecars(self) -> dict[str, Sidecar]:
        return {"web": self.web.sidecar, "caller": self.caller.sidecar}


@pytest.fixture(scope="module")
def pair(site: Site, haproxy: str) -> Iterator[Pair]:
    mesh = Mesh(site, haproxy)
    try:
        caller = Service("fcaller", host="b", upstreams=(upstream("fweb", WEB_PORT), upstream("fdb", DB_PORT)))
        yield Pair(mesh, *mesh.join(Service("fweb", "http"), Service("fdb"), caller, flags=("--on-exit", "leave")))
    finally:
        mesh.close()


@on_2_8
def test_after_all_those_restarts_changes_still_arrive(pair: Pair) -> None:
    client, server = pair.caller.namespace, pair.mesh.site.server
    for sidecar in pair.sidecars().values():
        for actor in ACTORS:
            sidecar.restart(actor)
    server.set_intention("fcaller", "fweb", "deny")
    try:
        wait_until("the refusal", lambda: http_get(client, WEB_PORT).status == 403)
    finally:
        server.remove_intention("fcaller", "fweb")
    wait_until("the permission", lambda: http_get(client, WEB_PORT).status == 200)
    usual = pair.caller.service
    try:
        pair.caller.register(replace(usual, upstreams=(*usual.upstreams, upstream("fdb", NEW_PORT, Datacenter="dc1"))))
        wait_until("the added upstream", lambda: tcp_ask(client, NEW_PORT) == "fdb")
    finally:
        pair.caller.register(usual)
    wait_until("the removed upstream to close", lambda: not client.listening(NEW_PORT))


@on_2_8
@pytest.mark.parametrize(
    "name",
    [
        *("leaf.pem", "roots.pem", "tickets.keys"),
        *("identities.map", "verdicts.map", "rules.map", "leaves.map"),
        *("haproxy.cfg", "*.side.cfg"),
    ],
)
def test_a_file_that_haproxy_starts_with_and_somebody_removed_is_put_back(pair: Pair, name: str) -> None:
    pair.wait_answers()
    sidecar = pair.web.sidecar
    worker, (master,) = sidecar.worker_pid(), sidecar.haproxy_masters()
    removed = list(sidecar.state_dir.glob(name))
    assert removed
    for path in removed:
        path.unlink()
    os.kill(master, signal.SIGKILL)
    wait_until("another HAProxy", lambda: sidecar.worker_pid() != worker, 15)
    pair.wait_answers()
    assert all(path.exists() for path in removed)


def test_a_haproxy_that_somebody_else_reloads_with_another_file_is_put_right_within_seconds(pair: Pair) -> None:
    pair.wait_answers()
    sidecar, client = pair.caller.sidecar, pair.caller.namespace
    sidecar.wait_rest()
    worker, (master,) = sidecar.worker_pid(), sidecar.haproxy_masters()
    config = sidecar.state_dir / "haproxy.cfg"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(f":{WEB_PORT}", f":{NEW_PORT}"), encoding="utf-8")

    os.kill(master, signal.SIGUSR2)

    wait_until("another worker", lambda: sidecar.worker_pid() not in (0, worker))
    wait_until("http where it was", lambda: http_get(client, WEB_PORT).text == "fweb", MENDED_S)
    wait_until("the file as it was", lambda: config.read_text(encoding="utf-8") == text, MENDED_S)
    sidecar.wait_rest()
    with pytest.raises(OSError, match="refused"):
        http_get(client, NEW_PORT)


@on_2_8
@pytest.mark.parametrize("removed", ["sockets", "directory"])
def test_a_denial_is_enforced_although_somebody_removed_haproxys_sockets_or_all_of_its_directory(
    pair: Pair, removed: str
) -> None:
    pair.wait_answers()
    sidecar, server, client = pair.web.sidecar, pair.mesh.site.server, pair.caller.namespace
    directory = sidecar.state_dir
    # From then on nobody is asked about it.
    wait_until("HAProxy to know the caller", lambda: "fcaller" in sidecar.runtime(f"show map {directory}/verdicts.map"))
    wait_until("its leaf, too", lambda: "fcaller" in sidecar.runtime(f"show map {directory}/identities.map"))
    if removed == "directory":
        # In one step: what hcc writes meanwhile would keep it.
        shutil.rmtree(directory.rename(directory.with_name("removed")))
    else:
        for name in ("stats.sock", "master.sock"):
            (directory / name).unlink()
    server.set_intention("fcaller", "fweb", "deny")
    try:
        wait_until("the sidecar not to be ready", lambda: sidecar.ready()[0] == 503)
        wait_until("the refusal", lambda: _status(client, WEB_PORT) == 403, 15)
        wait_until("readiness", lambda: sidecar.ready()[0] == 200)
    finally:
        server.remove_intention("fcaller", "fweb")
    pair.wait_answers()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all((directory / name).is_socket() for name in UNIX_SOCKETS)
    assert len(sidecar.haproxy_masters()) == 1


@on_2_8
def test_an_hcc_whose_directory_another_one_has_by_now_ends_with_its_haproxy(mesh: Mesh, tmp_path: Path) -> None:
    (member,) = mesh.join(Service("ftwice", app=False))
    first = member.sidecar
    (master,) = first.haproxy_masters()
    port = first.stats_port + 500
    words = hcc_run("ftwice", mesh.haproxy, port, first.state_base)
    second = Sidecar(first.namespace, tmp_path, words, stats_port=port, state_base=first.state_base)
    first.process.signal(signal.SIGSTOP)  # Else it locks its directory again at once.
    try:
        shutil.rmtree(first.state_dir)
        second.start()
        wait_until("a second HAProxy", lambda: len(first.haproxy_masters()) == 2, 20)
        first.process.signal(signal.SIGCONT)

        assert first.process.wait(20) == 1

        assert "another hcc runs this proxy" in first.log_text()
        wait_until("the first HAProxy to end", lambda: not is_running(master))
        # The port that both want is tried again every 5 s.
        wait_until("the second to listen", lambda: first.namespace.listening(member.public_port), 20)
        second.wait_ready()
        wait_until("an answer to an operator", lambda: second.command("actors").returncode == 0)
        assert second.stop() == 0
    finally:
        second.clear()
        second.process.forget()


@on_2_8
def test_a_port_that_somebody_takes_while_haproxy_is_down_costs_that_upstream_alone(pair: Pair) -> None:
    pair.wait_answers()
    client, sidecar = pair.caller.namespace, pair.caller.sidecar
    # Else the file on disk is still to be written, and its ports are looked at for that.
    wait_until("rest", lambda: sidecar.command("plan").stdout.startswith("nothing to do"))
    (master,) = sidecar.haproxy_masters()
    with client.tcp_socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(sidecar.process.pid, signal.SIGSTOP)  # Else it may be there first.
        try:
            os.kill(master, signal.SIGKILL)
            wait_until("the port to be free", lambda: not client.listening(DB_PORT))
            foreign.bind(("127.0.0.1", DB_PORT))
            foreign.listen()
        finally:
            os.kill(sidecar.process.pid, signal.SIGCONT)
        wait_until("http to be answered", lambda: http_get(client, WEB_PORT).text == "fweb", MENDED_S)
        wait_until("a line", lambda: f"cannot listen on 127.0.0.1:{DB_PORT}" in sidecar.log_text())
    wait_until("tcp to be answered", lambda: tcp_ask(client, DB_PORT) == "fdb", 15)


@on_2_8
def test_an_actor_that_does_not_exist_cannot_be_restarted_and_the_answer_names_those_that_do(
    pair: Pair,
) -> None:
    done = pair.web.sidecar.command("restart", "Nobody")
    assert done.returncode != 0
    assert all(actor in done.stderr + done.stdout for actor in ACTORS)


def test_all_spoe_workers_killed_at_once_come_back_and_nobody_is_let_in_meanwhile_who_is_denied(
    pair: Pair,
) -> None:
    sidecar, server = pair.web.sidecar, pair.mesh.site.server
    client = pair.caller.namespace
    server.set_intention("fcaller", "fweb", "deny")
    try:
        wait_until("the refusal", lambda: http_get(client, WEB_PORT).status == 403)
        for pid in sidecar.spoe_workers():
            os.kill(pid, signal.SIGKILL)
        stays("no request let in", lambda: _status(client, WEB_PORT) != 200, 1.0)
    finally:
        server.remove_intention("fcaller", "fweb")
    pair.wait_answers()


@on_2_8
def test_what_workers_have_counted_survives_them_and_a_restart_of_their_actor(pair: Pair) -> None:
    sidecar, server, client = pair.web.sidecar, pair.mesh.site.server, pair.caller.namespace

    def denials() -> float:
        return sidecar.metrics()['hcc_spoe_verdicts_total{verdict="deny"}']

    server.set_intention("fcaller", "fweb", "deny")
    try:
        wait_until("denials", lambda: _status(client, WEB_PORT) == 403 and denials() >= 10)
    finally:
        server.remove_intention("fcaller", "fweb")
    pair.wait_answers()
    before, workers = denials(), set(sidecar.spoe_workers())
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    sidecar.restart("SPOEPool")
    wait_until("others", lambda: len(set(sidecar.spoe_workers()) - workers) == len(workers))
    assert denials() == before


@on_2_8
def test_sockets_of_hcc_that_somebody_removed_are_there_again_and_new_callers_let_in(pair: Pair) -> None:
    pair.wait_answers()
    sidecar, client = pair.web.sidecar, pair.caller.namespace
    directory = sidecar.state_dir
    removed = [path for path in directory.glob("*.sock") if path.name not in ("stats.sock", "master.sock")]
    assert {path.name for path in removed} == {"control.sock", "spoe-1.sock", "spoe-2.sock", "tokens.sock"}
    for path in removed:
        path.unlink()
    wait_until("all of them", lambda: all(path.is_socket() for path in removed))
    wait_until("an answer to operators", lambda: sidecar.command("status").returncode == 0)
    # HAProxy asks again: those that it was connected to are gone.
    sidecar.runtime(f"clear map {directory}/identities.map")
    wait_until("the caller let in", lambda: _status(client, WEB_PORT) == 200)
    pair.wait_answers()


def test_sigterm_under_load_finishes_what_is_in_flight_exits_0_and_leaves_nothing(mesh: Mesh) -> None:
    web, caller = mesh.join(
        Service("gone", "http"), Service("stays", host="b", upstreams=(upstream("gone", NEW_PORT),))
    )
    others = web.namespace.pids()
    answers: list[str] = []
    started = web.sidecar.descendants() | {web.sidecar.process.pid}
    slow = threading.Thread(target=lambda: answers.append(http_get(caller.namespace, NEW_PORT, "/slow/2").text))
    with Load(fresh_requests(caller.namespace, NEW_PORT, "gone")):
        slow.start()
        web.wait_held(1)
        assert web.sidecar.stop(15) == 0
        slow.join(10)
    assert answers == ["gone"]
    wait_until("its processes to be gone", lambda: not [pid for pid in started if is_running(pid)])
    assert web.namespace.pids() <= others - started
    assert not web.namespace.listening(web.public_port, web.namespace.address)
    assert not list(web.sidecar.state_base.rglob("*")), "the state directory is not empty"


@on_2_8
def test_sigterm_before_anything_is_ready_exits_0_too(mesh: Mesh) -> None:
    member = mesh.add(Service("hasty", app=False))
    wait_until("the first page", lambda: member.sidecar.fetch("/health")[0] == 200)
    assert member.sidecar.stop(15) == 0
    assert not list(member.sidecar.state_base.rglob("*")), "the state directory is not empty"


def test_sigterm_while_hcc_still_starts_ends_what_an_earlier_hcc_left(mesh: Mesh) -> None:
    (member,) = mesh.join(Service("early"))
    sidecar = member.sidecar
    sidecar.kill()
    assert sidecar.haproxy_masters()
    sidecar.start()
    wait_until("it to hear signals", lambda: _hears(sidecar.process.pid, signal.SIGTERM), pause_s=0.001)
    assert sidecar.stop(15) == 0
    assert not sidecar.haproxy_masters()
    assert not list(sidecar.state_base.rglob("*")), "the state directory is not empty"
    # Those of the earlier hcc see by themselves that their sockets are gone.
    wait_until("the workers to leave", lambda: not sidecar.spoe_workers())


def _hears(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler. Source: proc(5), /proc/PID/status, SigCgt."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16)
    return bool(caught >> (number - 1) & 1)


@on_2_8
def test_systemd_hears_of_the_whole_life(mesh: Mesh, site: Site) -> None:
    name = str(site.directory / "notify")
    heard: list[str] = []

    def hears(words: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(systemd.recv(4096).decode())
        return any(words in text for text in heard)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.setblocking(False)
        member = mesh.add(Service("watched"), env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "900000"})
        member.wait_ready()
        wait_until("READY", lambda: hears("READY=1\nSTATUS=ready"))
        heard.clear()
        wait_until("a sign of life", lambda: hears("WATCHDOG=1"))
        member.sidecar.hang_up()
        wait_until("the reload", lambda: hears("RELOADING=1\nMONOTONIC_USEC="))
        assert member.sidecar.stop(15) == 0
        assert hears("STOPPING=1\nSTATUS=draining")


@on_2_8
def test_with_the_agent_down_hcc_starts_from_its_last_answers_and_says_that_they_are_stale(pair: Pair) -> None:
    agent, sidecar, client = pair.mesh.site.client, pair.caller.sidecar, pair.caller.namespace
    agent.stop()
    try:
        sidecar.clear()
        wait_until("HAProxy to be gone", lambda: not client.listening(WEB_PORT))
        sidecar.start()
        sidecar.wait_ready()
        status, text = sidecar.ready()
        assert status == 200
        assert "stale: from an earlier run" in text
        assert sidecar.metrics()["hcc_stale_answers"] > 0
        with ExitStack() as stack:
            for load in [stack.enter_context(load) for load in pair.loads()]:
                load.go_on(20)
    finally:
        agent.start()
        agent.wait_ready()
    wait_until("Consul to confirm all", lambda: sidecar.ready() == (200, "ready\n"), 30)
    assert sidecar.metrics()["hcc_stale_answers"] == 0
    pair.wait_answers()


@on_2_8
def test_a_start_that_is_to_keep_nothing_removes_the_answers_of_before(site: Site, haproxy: str) -> None:
    with closing(Mesh(site, haproxy)) as mesh:
        (member,) = mesh.join(Service("fkept"), flags=("--no-cached-start",))
        answers = member.sidecar.state_dir / "answers.json"
        assert not answers.exists()
        answers.write_text("with a key")
        member.sidecar.kill()

        member.sidecar.start()
        member.sidecar.wait_ready()

        assert not answers.exists()


def _status(namespace: Namespace, port: int) -> int:
    try:
        return http_get(namespace, port).status
    except OSError:
        return 0


@on_2_8
def test_on_a_full_disk_a_denial_is_enforced_and_kept_when_haproxy_is_killed(site: Site, haproxy: str) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(site.directory / f"disk-{site.number()}"))
        mesh = Mesh(site, haproxy)
        stack.callback(mesh.close)
        member = mesh.add(Service("ffull", upstreams=(upstream("ffull", FULL_PORT),)), state_base=disk)
        member.wait_ready()
        member.wait_healthy(site.client)
        sidecar, verdicts = member.sidecar, next(disk.glob("*/verdicts.map"))
        answers = verdicts.with_name("answers.json")
        wait_until("an answer", lambda: tcp_ask(member.namespace, FULL_PORT) == "ffull")
        wait_until("the caller on disk", lambda: verdicts.read_text().endswith("/svc/ffull allow\n"))

        with filled(disk):
            kept = answers.read_text()
            mesh.intend("ffull", "ffull", "deny")
            wait_until("the denial", lambda: refused(member))
            worker = sidecar.worker_pid()
            os.kill(worker, signal.SIGKILL)
            wait_until("another HAProxy", lambda: sidecar.worker_pid() not in (0, worker))
            stays("denied", lambda: refused(member), 1.0)
            # The old ones were emptied or removed, in the room of which the new ones may fit.
            assert "allow" not in verdicts.read_text()
            wait_until("the answers of before to be gone", lambda: read_text(str(answers)) != kept)

        wait_until("the denial on disk", lambda: verdicts.read_text().endswith("/svc/ffull deny\n"))
        wait_until("the answers on disk", answers.exists)
        assert "Actor Authoriser" not in sidecar.log_text()


def refused(member: Member) -> bool:
    """Whether the service may not call itself."""
    try:
        return tcp_ask(member.namespace, FULL_PORT) == ""
    except OSError:
        return True


def test_a_haproxy_that_hangs_is_started_again_however_often_it_was_asked_and_by_the_next_hcc(site: Site) -> None:
    mesh = Mesh(site, binaries.haproxy("2.8"))
    try:
        member, _ = mesh.join(Service("fhang"), Service("fother", host="b"))
        sidecar = member.sidecar
        worker = sidecar.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        # More than wait to be taken.
        for _ in range(2 * MOST_CLIENTS):
            with pytest.raises(SilentError):
                exchange(str(sidecar.state_dir / "stats.sock"), b"show info\n", 0.005)
        sidecar.kill()
        sidecar.start()

        def has_ended() -> bool:
            with contextlib.suppress(OSError):
                sidecar.metrics()
            return not is_running(worker)

        # It takes 16 s, from when hcc is there.
        wait_until("its end, while it is asked all the time", has_ended, 40)
        sidecar.wait_ready()
    finally:
        mesh.close()


def test_a_haproxy_that_is_upgraded_is_driven_as_the_new_one_by_the_next_hcc(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.symlink_to(binaries.haproxy("3.2"))
    mesh = Mesh(site, str(program))
    try:
        _, caller = mesh.join(
            Service("fweb", "http"), Service("fcaller", host="b", upstreams=(upstream("fweb", WEB_PORT),))
        )
        with Load(fresh_requests(caller.namespace, WEB_PORT, "fweb")) as load:
            other = tmp_path / "other"
            # Since 3.3 a server's name is verified unless HAProxy is told not to.
            other.symlink_to(binaries.haproxy("3.4"))
            other.replace(program)
            process = caller.sidecar.process
            wait_until("hcc to end", lambda: process.status() is not None, 20)
            assert process.status() == 1
            assert "HAProxy was upgraded to HAProxy 3.4" in caller.sidecar.log_text()
            caller.sidecar.start()
            wait_until("the new version", lambda: "Version: 3.4" in caller.sidecar.runtime("show info"), 20)
            caller.sidecar.wait_ready()
            load.go_on(20)
        load.assert_clean()
    finally:
        mesh.close()


def test_workers_of_an_hcc_that_had_more_end_where_the_next_one_has_fewer(site: Site, tmp_path: Path) -> None:
    mesh = Mesh(site, binaries.haproxy("2.8"), ("--spoe-workers", "3"))
    try:
        web, caller = mesh.join(
            Service("fweb", "http"), Service("fcaller", host="b", upstreams=(upstream("fweb", WEB_PORT),))
        )
        old = web.sidecar
        words = hcc_run("fweb", binaries.haproxy("2.8"), old.stats_port, old.state_base, "--spoe-workers", "1")
        new = Sidecar(web.namespace, tmp_path, words, stats_port=old.stats_port, state_base=old.state_base)
        try:
            before = old.spoe_workers()
            assert len(before) == 3
            with Load(fresh_requests(caller.namespace, WEB_PORT, "fweb")) as load:
                old.kill()
                new.start()
                new.wait_ready()
                wait_until("the old workers to end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))
                load.go_on(20)
            load.assert_clean()
            assert [path.name for path in new.state_dir.glob("spoe-*.sock")] == ["spoe-1.sock"]
        finally:
            new.clear()
            new.process.forget()
    finally:
        mesh.close()


@pytest.mark.parametrize(("first", "then"), [("2.8", "3.4"), ("3.4", "2.2")])
def test_a_haproxy_that_goes_on_is_driven_as_what_it_is_where_another_program_is_named_since(
    site: Site, tmp_path: Path, first: str, then: str
) -> None:
    mesh = Mesh(site, binaries.haproxy(first))
    try:
        _, caller = mesh.join(
            Service("fweb", "http"), Service("fcaller", host="b", upstreams=(upstream("fweb", WEB_PORT),))
        )
        old, usual = caller.sidecar, caller.service
        words = hcc_run("fcaller", binaries.haproxy(then), old.stats_port, old.state_base)
        new = Sidecar(caller.namespace, tmp_path, words, stats_port=old.stats_port, state_base=old.state_base)
        try:
            with Load(fresh_requests(caller.namespace, WEB_PORT, "fweb")) as load:
                old.kill()
                new.start()
                new.wait_ready()
                # One listener more takes a reload.
                more = upstream("fweb", NEW_PORT, Datacenter="dc1")
                caller.register(replace(usual, upstreams=(*usual.upstreams, more)))
                wait_until("its answer", lambda: http_get(caller.namespace, NEW_PORT).text == "fweb", 20)
                assert f"Version: {first}" in new.runtime("show info")
                (master, _) = (new.state_dir / "haproxy.pid").read_text().split()
                assert (
                    f"until hcc was stopped with it: an earlier hcc left it running, process {master}" in new.log_text()
                )
                load.go_on(20)
            load.assert_clean()
        finally:
            new.clear()
            new.process.forget()
    finally:
        mesh.close()
