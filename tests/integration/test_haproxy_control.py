from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from hcc.haproxy import commands, runtime
from hcc.haproxy.binary import probe
from hcc.haproxy.capabilities import Feature, capabilities
from hcc.haproxy.control import Applied, ApplyError
from hcc.haproxy.direct import DirectControl
from hcc.haproxy.execution import DELETE_BUDGET_S
from hcc.haproxy.model import TcpBind
from hcc.haproxy.plan import (
    AddServer,
    DeleteServer,
    FreeSlot,
    Operation,
    Plan,
    Reload,
    SetCa,
    SetCertificate,
    SetServerAddress,
    SetServerState,
    SetServerWeight,
    SetTicketKeys,
    WriteConfig,
    changes,
)
from hcc.haproxy.process import HAProxyProcess
from hcc.haproxy.render import Rendered
from hcc.haproxy.replies import Processes
from hcc.haproxy.runtime import MasterSocket, RuntimeSocket, RuntimeSocketError
from hcc.haproxy.stats_reader import BACKENDS, StatsReader
from hcc.haproxy.takeover import RELOAD_TIMEOUT_S
from hcc.mesh.snapshot import Endpoint, Health, Protocol, Snapshot, UpstreamState
from hcc.settings import Enforcement
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state, with_text
from tests.haproxy_stage import (
    BINARIES,
    DEADLINE_S,
    Server,
    Stage,
    exists,
    greeting,
    http_answer,
    read_http,
    stage,
    wait_until,
)
from tests.pki import Authority, IssuedLeaf, service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration
# A reload takes part of a second; what was not seen to take effect is waited for a minute.
RELOADED_S = 20.0


@pytest.fixture(params=sorted(BINARIES))
def there(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as made:
        yield made


def client_snapshot(*states: UpstreamState) -> Snapshot:
    """A sidecar that only has upstreams."""
    return snapshot(*states, proxy_=proxy(local_port=0, upstreams=(state.upstream for state in states)))


def at(server: Server, weight: int = 1, health: Health = Health.PASSING) -> Endpoint:
    return endpoint("127.0.0.1", server.port, weight=weight, health=health)


def kinds(applied: Applied) -> list[type[Operation]]:
    return [type(operation) for operation in applied.done]


def tls_greeting(there: Stage, port: int, leaf: IssuedLeaf | None, *, verify: bool = True) -> tuple[str, bytes]:
    """What a tcp caller reads first through the public listener, and the certificate it is shown."""
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, leaf)
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as raw,
        context.wrap_socket(raw) as client,
    ):
        shown = client.getpeercert(binary_form=True) or b""
        return client.recv(100).decode().strip(), shown


def assert_guarded(there: Stage, public: int) -> None:
    """The handshake still refuses who has no certificate, or a foreign one."""
    with pytest.raises(OSError, match=r"(?i)certificate required"):
        tls_greeting(there, public, None)
    with pytest.raises(OSError, match=r"(?i)unknown ca"):
        tls_greeting(there, public, Authority("Foreign CA").leaf(service_uri("caller")))


def test_what_was_applied_needs_no_further_plan(there: Stage) -> None:
    first, second = there.peer("first"), there.peer("second")
    port, query_port = free_port(), free_port()
    states = (
        upstream_state(upstream("web", port), [at(first, 300), at(second, 1000, Health.CRITICAL)]),
        upstream_state(upstream("db", query_port, query=True), [at(second)]),
        upstream_state(upstream("none.such_Thing", free_port(), datacenter="dc 2"), protocol="http"),
    )
    rendered = there.rendered(client_snapshot(*states))
    there.converge(rendered)
    assert not there.plan(rendered), there.plan(rendered).describe()
    assert greeting(port) == "first"
    assert greeting(query_port) == "second"


def test_a_reload_of_a_haproxy_that_ends_meanwhile_does_not_wait_for_it(there: Stage) -> None:
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", free_port())))))
    plan = there.plan(there.rendered(client_snapshot(upstream_state(upstream("api", free_port())))))
    assert plan.reloads
    os.kill(there.process.pid, signal.SIGSTOP)  # So it neither reloads nor answers.
    applied: list[Applied] = []
    applying = threading.Thread(target=lambda: applied.append(there.control.apply(plan)))
    applying.start()
    time.sleep(0.3)
    there.process.kill()
    wait_until(there.process.reap, "it is gone")
    applying.join(DEADLINE_S)
    assert applied, "it still waits"
    assert applied[0].failure is not None


def test_a_reload_with_an_older_program_under_the_same_name_waits_for_no_answer(tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.symlink_to(BINARIES["3.2"]())
    with contextlib.closing(Stage(str(program))) as there:
        peer, port = there.peer("peer"), free_port()
        there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(peer)]))))
        master = there.process.pid
        program.unlink()
        # Its master keeps the connection that a newer one answers after a reload, and says nothing on it.
        program.symlink_to(BINARIES["2.6"]())
        there.capabilities = capabilities(probe(str(program)).version)
        there.control = DirectControl(str(program), there.layout, there.capabilities)
        began = time.monotonic()
        applied = there.converge(there.rendered(client_snapshot(upstream_state(upstream("api", port), [at(peer)]))))
        assert applied.reloaded
        assert time.monotonic() - began < DEADLINE_S
        assert there.process.pid == master
        assert greeting(port) == "peer"
        assert "Version: 2.6" in RuntimeSocket(there.layout.stats_socket).send("show info")


@pytest.mark.parametrize(("older", "newer"), [("2.2", "2.8"), ("2.6", "2.8"), ("3.2", "3.4")])
def test_a_haproxy_of_another_version_than_is_installed_is_not_asked_but_reloaded(
    tmp_path: Path, older: str, newer: str
) -> None:
    program = tmp_path / "haproxy"
    program.symlink_to(BINARIES[older]())
    with contextlib.closing(Stage(str(program))) as there:
        peer, port = there.peer("peer"), free_port()
        wanted = client_snapshot(upstream_state(upstream("web", port), [at(peer)]))
        there.converge(there.rendered(wanted))
        program.unlink()
        program.symlink_to(BINARIES[newer]())
        # The next hcc.
        there.capabilities = capabilities(probe(str(program)).version)
        there.control = DirectControl(str(program), there.layout, there.capabilities)
        steps = there.plan(there.rendered(wanted))
        assert [type(operation) for operation in steps.operations] == [Reload]
        assert f"that of HAProxy {older}" in steps.reasons[0]
        there.converge(there.rendered(wanted))
        assert f"Version: {newer}" in RuntimeSocket(there.layout.stats_socket).send("show info")
        assert not there.plan(there.rendered(wanted))
        assert greeting(port) == "peer"


def test_endpoints_come_and_go_without_a_reload(there: Stage) -> None:
    # Where servers cannot be created, they are in slots.
    dynamic = there.capabilities.has(Feature.DYNAMIC_SERVERS)
    added: list[type[Operation]] = [AddServer] if dynamic else [SetServerAddress, SetServerState]
    heavier: list[type[Operation]] = [AddServer] if dynamic else [SetServerAddress, SetServerWeight, SetServerState]
    removed: list[type[Operation]] = [DeleteServer] if dynamic else [FreeSlot]
    first, second = there.peer("first"), there.peer("second")
    port = free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port)))))
    worker = there.worker()
    steps: tuple[tuple[list[Endpoint], list[type[Operation]], set[str]], ...] = (
        ([at(first)], added, {"first"}),
        ([at(first), at(second, 3)], heavier, {"first", "second"}),
        ([at(first), at(second, 5)], [SetServerWeight], {"first", "second"}),
        ([at(first), at(second, 5, Health.CRITICAL)], [SetServerState], {"first"}),
        ([at(first), at(second, 5)], [SetServerState], {"first", "second"}),
        ([at(second, 5)], removed, {"second"}),
        ([], removed, {""}),
    )
    for endpoints, expected, names in steps:
        rendered = there.rendered(client_snapshot(upstream_state(upstream("web", port), endpoints)))
        applied = there.converge(rendered)
        assert kinds(applied) == [*expected, WriteConfig]
        assert not there.plan(rendered)
        assert {greeting(port) for _ in range(12)} == names
    assert there.worker() == worker


def test_many_endpoints_that_come_at_once_are_all_there_and_one_that_is_refused_is_named(there: Stage) -> None:
    port = free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port)))))
    many = [endpoint("127.0.0.1", 20_000 + number) for number in range(50)]
    rendered = there.rendered(client_snapshot(upstream_state(upstream("web", port), many)))
    additions = [one for one in there.plan(rendered).operations if isinstance(one, AddServer)]

    there.converge(rendered)

    assert not there.plan(rendered)
    if not there.capabilities.has(Feature.DYNAMIC_SERVERS):
        return
    assert len(additions) == 50
    new, lost = (replace(additions[3], backend=name) for name in (additions[3].backend, "nowhere"))
    new = replace(new, server=replace(new.server, name="new"))
    runtime = RuntimeSocket(there.layout.stats_socket, there.capabilities.payload_bytes)
    with pytest.raises(ApplyError, match="add server nowhere/"):
        commands.run(runtime, (new, lost), there.capabilities)


def test_many_endpoints_of_a_service_with_a_long_name_come_into_service_at_once(there: Stage) -> None:
    port = free_port()
    for health in (Health.CRITICAL, Health.PASSING):
        many = [endpoint("127.0.0.1", 20_000 + number, health=health) for number in range(60)]
        rendered = there.rendered(client_snapshot(upstream_state(upstream("long-" * 40, port), many)))
        there.converge(rendered)
        assert not there.plan(rendered)


def test_a_deleted_server_keeps_its_connection_until_that_ends(there: Stage) -> None:
    first, second = there.peer("first"), there.peer("second")
    port = free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(first)]))))
    after = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(second)])))
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        assert client.recv(100) == b"first\n"
        applied = there.converge(after)
        waits = DeleteServer if there.capabilities.has(Feature.DYNAMIC_SERVERS) else FreeSlot
        assert [type(operation) for operation in applied.pending] == [waits]
        assert not applied.reloaded
        assert greeting(port) == "second"
        client.sendall(b"still here")
        assert client.recv(100) == b"still here"
    wait_until(lambda: not there.converge(after).pending, "the server is deleted")
    assert not there.plan(after)


class PausesAlone:
    """A time in which nothing takes any but pauses, however long HAProxy waits for a core."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds
        time.sleep(seconds)


@pytest.mark.parametrize("there", ["2.2", "2.8", "3.0"], indirect=True)
def test_long_connections_to_those_who_left_hold_up_only_the_first_plan_and_that_once(
    there: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, stays = [there.peer(f"left{number}") for number in range(4)], there.peer("stays")
    port = free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port), map(at, left)))))
    after = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(stays)])))
    clock = PausesAlone()
    with contextlib.ExitStack() as stack:
        for _ in left:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S))
            assert client.recv(100).startswith(b"left")

        monkeypatch.setattr("hcc.haproxy.execution.time", clock)
        assert len(there.converge(after).pending) == len(left)
        # The last pause may begin just before the end.
        waited_s = clock.monotonic()
        assert DELETE_BUDGET_S <= waited_s <= DELETE_BUDGET_S + 0.02
        assert there.converge(after).pending
        assert clock.monotonic() == waited_s
    monkeypatch.undo()
    wait_until(lambda: not there.converge(after).pending, "they are gone")


@pytest.mark.parametrize("there", ["2.2", "2.8"], indirect=True)
def test_what_waits_for_its_last_connection_is_known_to_be_out_of_service(there: Stage) -> None:
    left, port = there.peer("left"), free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(left)]))))
    after = there.rendered(client_snapshot(upstream_state(upstream("web", port), [])))
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        assert client.recv(100) == b"left\n"
        assert there.converge(after).pending
        believed = there.control.glance()
        assert believed is not None
        assert believed.servers == there.actual(after).servers


def test_what_runs_is_not_known_any_more_when_a_command_was_refused(there: Stage) -> None:
    rendered = there.rendered(client_snapshot(upstream_state(upstream("web", free_port()), [at(there.peer("one"))])))
    there.converge(rendered)
    there.actual(rendered)
    assert there.control.glance() is not None
    ((backend, (server,)),) = [(one.name, one.servers[:1]) for one in rendered.desired.backends]

    applied = there.control.apply(
        Plan((SetServerWeight(backend, server.name, 7), SetServerAddress(backend, "nobody", "127.0.0.1", 1)), ("",))
    )

    assert applied.failure is not None
    assert there.control.glance() is None


def test_an_application_whose_host_name_has_no_address_is_nothing_to_repair(there: Stage) -> None:
    nowhere = proxy(bind_port=free_port(), local_address="no-such-host.invalid")
    rendered = there.rendered(snapshot(proxy_=nowhere))
    there.converge(rendered)
    assert not there.plan(rendered), there.plan(rendered).describe()


def test_who_cannot_be_asked_or_runs_something_else_than_the_file_says_is_taken_for_unguarded(there: Stage) -> None:
    assert there.control.unguarded()
    app = there.app()
    there.converge(
        there.rendered(
            snapshot(proxy_=proxy(local_port=app.port, bind_port=free_port())), intentions=Enforcement.ENFORCE
        )
    )
    assert not there.control.unguarded()
    config = Path(there.layout.config)
    text = config.read_text()
    config.write_text(text.replace("description hcc:", "description hcc:0"))
    assert there.control.unguarded()
    config.write_text(text)
    assert not there.control.unguarded()
    os.kill(there.process.pid, signal.SIGKILL)
    wait_until(lambda: not there.process.alive() and there.control.unguarded(), "nobody to answer")


def served_leaf(there: Stage, port: int, caller: IssuedLeaf) -> bytes:
    """The present leaf, as soon as a new handshake shows it: after a reload the old worker may take one more."""
    leaf = there.leaf.certificate.public_bytes(Encoding.DER)
    wait_until(lambda: tls_greeting(there, port, caller) == ("app", leaf), "the new leaf is served")
    return leaf


def test_a_new_leaf_is_shown_by_new_handshakes_without_a_reload_from_2_4(there: Stage) -> None:
    app, peer = there.app(), there.peer("peer")
    public, port = free_port(), free_port()
    state = upstream_state(upstream("web", port), [at(peer)])
    wanted = snapshot(state, proxy_=proxy(bind_port=public, local_port=app.port))
    there.converge(there.rendered(wanted))
    worker = there.worker()
    caller = there.authority.leaf(service_uri("caller"))
    name, before = tls_greeting(there, public, caller)
    assert name == "app"
    assert greeting(port) == "peer"

    there.leaf = there.authority.leaf(service_uri("server"))
    applied = there.converge(there.rendered(wanted))
    at_run_time = there.capabilities.has(Feature.SERVER_CERT_UPDATE)
    assert kinds(applied) == ([SetCertificate, SetTicketKeys] if at_run_time else [Reload])
    assert before != served_leaf(there, public, caller)
    assert greeting(port) == "peer"
    assert int(peer.caller_serials[-1], 16) == there.leaf.certificate.serial_number
    assert_guarded(there, public)
    assert (there.worker() == worker) is at_run_time
    assert not there.plan(there.rendered(wanted))


@pytest.mark.parametrize("there", ["2.8"], indirect=True)
def test_a_full_disk_keeps_neither_ticket_keys_nor_servers_from_haproxy(
    there: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: str, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    peer, port, served = there.peer("peer"), free_port(), proxy(bind_port=free_port(), local_port=free_port())

    def rendered(health: Health) -> Rendered:
        return there.rendered(snapshot(upstream_state(upstream("web", port), [at(peer, health=health)]), proxy_=served))

    there.converge(rendered(Health.PASSING))
    there.leaf = there.authority.leaf(service_uri("server"))
    sick = rendered(Health.CRITICAL)
    steps = changes(sick, there.control.read_actual(sick))
    monkeypatch.setattr("hcc.haproxy.side_files.write_private", full)

    applied = there.control.apply(steps)

    assert applied.failure is None
    assert kinds(applied) == [SetCertificate, SetTicketKeys, SetServerState]
    assert not changes(sick, there.control.read_actual(sick))
    assert "No space left" in caplog.text
    monkeypatch.undo()
    assert [type(one) for one in there.plan(sick).operations] == [WriteConfig]
    there.converge(sick)


def test_new_roots_admit_new_callers_and_servers_without_a_reload_from_2_8(there: Stage) -> None:
    app = there.app()
    public = free_port()
    wanted = snapshot(proxy_=proxy(bind_port=public, local_port=app.port))
    there.converge(there.rendered(wanted))
    worker = there.worker()
    newer = Authority("Newer CA")
    stranger = newer.leaf(service_uri("caller"))
    with pytest.raises(OSError, match=r"(?i)unknown ca|reset|eof"):
        tls_greeting(there, public, stranger)

    there.authorities.append(newer)
    there.leaf = newer.leaf(service_uri("server"))
    applied = there.converge(there.rendered(wanted))
    at_run_time = there.capabilities.has(Feature.CA_UPDATE)
    leaf = [SetCertificate] if there.capabilities.has(Feature.SERVER_CERT_UPDATE) else []
    assert kinds(applied) == ([SetCa, *leaf, SetTicketKeys] if at_run_time else [*leaf, Reload])
    assert tls_greeting(there, public, stranger)[0] == "app"
    assert tls_greeting(there, public, there.authority.leaf(service_uri("old")))[0] == "app"
    assert_guarded(there, public)
    assert (there.worker() == worker) is at_run_time
    assert not there.plan(there.rendered(wanted))

    # A leaf that comes later must still reach the bind: in some branches an update of CAs cuts it off.
    there.leaf = newer.leaf(service_uri("server"))
    there.converge(there.rendered(wanted))
    served_leaf(there, public, stranger)


def test_a_transaction_left_open_by_a_killed_hcc_does_not_stop_a_rotation(there: Stage) -> None:
    public = free_port()
    wanted = snapshot(proxy_=proxy(bind_port=public, local_port=there.app().port))
    there.converge(there.rendered(wanted))
    runtime = there.control._runtime
    other = there.authority.leaf(service_uri("server"))
    assert "created" in runtime.send_payload(f"set ssl cert {there.layout.leaf}", other.combined_pem)
    there.leaf = there.authority.leaf(service_uri("server"))
    there.converge(there.rendered(wanted))
    assert not there.plan(there.rendered(wanted))


def test_a_new_listener_takes_one_reload_and_old_connections_live_on(there: Stage) -> None:
    peer = there.peer("peer")
    port, other = free_port(), free_port()
    one = upstream_state(upstream("web", port), [at(peer)])
    there.converge(there.rendered(client_snapshot(one)))
    worker = there.worker()
    both = there.rendered(client_snapshot(one, upstream_state(upstream("api", other), [at(peer)])))
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        assert client.recv(100) == b"peer\n"
        applied = there.converge(both)
        assert applied.reloaded
        client.sendall(b"old worker")
        assert client.recv(100) == b"old worker"
    assert there.worker() != worker
    assert greeting(other) == greeting(port) == "peer"
    assert not there.plan(both)


def test_reloads_may_follow_each_other_at_once(there: Stage) -> None:
    peer = there.peer("peer")
    port = free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(peer)]))))
    for step in range(1, 6):
        state = upstream_state(upstream("web", port, max_connections=100 + step), [at(peer)])
        assert there.converge(there.rendered(client_snapshot(state))).reloaded
        assert greeting(port) == "peer"


def test_a_refused_text_changes_nothing_and_the_error_names_the_line(there: Stage) -> None:
    peer = there.peer("peer")
    port = free_port()
    good = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(peer)])))
    there.converge(good)
    worker = there.worker()
    text = good.config.replace("balance roundrobin", "balance nonsense")
    bad = with_text(good, text, structure="ffffffffffffffff")
    before = reloads(there)
    applied = there.control.apply(there.plan(bad))
    assert applied.failure is not None
    # From 3.2 on two that fail cost the runtime socket.
    assert reloads(there) == before, "it was reloaded with a text that it refuses"
    assert applied.failure.excerpt == "balance nonsense"
    assert applied.failure.line == good.config.splitlines().index("  balance roundrobin") + 1
    assert "nonsense" in str(applied.failure)
    assert there.worker() == worker
    assert greeting(port) == "peer"
    assert not there.plan(good)


def reloads(there: Stage) -> tuple[int, int]:
    """How many there were, and how many failed."""
    told: list[Processes] = []

    def ask() -> bool:
        # Up to 3.0 the master starts anew once its first worker runs; whoever has connected is cut off then.
        with contextlib.suppress(RuntimeSocketError):
            told.append(MasterSocket(there.layout.master_socket).processes())
        return bool(told)

    wait_until(ask, "the master answers")
    return told[-1].reloads, told[-1].failed


def test_a_failed_reload_leaves_the_last_good_configuration(there: Stage) -> None:
    peer = there.peer("peer")
    port = free_port()
    good = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(peer)])))
    there.converge(good)
    worker = there.worker()
    taken = free_port()
    with socket.create_server(("127.0.0.1", taken)):
        states = (upstream_state(upstream("web", port), [at(peer)]), upstream_state(upstream("api", taken)))
        bad = there.rendered(client_snapshot(*states))
        wanted = there.plan(bad)
        found = there.control.taken(bad.desired, there.actual(bad))
        assert [taken_bind.bind for taken_bind in found] == [TcpBind("127.0.0.1", taken)]
        began_s = time.monotonic()
        applied = there.control.apply(wanted)
    assert applied.failure is not None
    assert time.monotonic() - began_s < RELOAD_TIMEOUT_S / 2, "it was waited for, not noticed"
    assert str(taken) in str(applied.failure)
    assert not applied.reloaded
    assert there.worker() == worker
    assert greeting(port) == "peer"
    assert not there.plan(good)
    # And it is not stuck: with the port free again the same plan works.
    assert there.converge(bad).reloaded


def test_one_whose_program_is_gone_is_told_no_reload_and_goes_on(there: Stage) -> None:
    peer, port, later = there.peer("peer"), free_port(), free_port()
    # As an earlier hcc started it, by a path that is no more.
    program = Path(there.directory, "haproxy-of-before")
    program.symlink_to(there.binary)
    there.process = HAProxyProcess(str(program), there.layout)
    served = upstream_state(upstream("web", port), [at(peer)])
    there.converge(there.rendered(client_snapshot(served)))
    worker = there.worker()
    program.unlink()
    more = there.rendered(client_snapshot(served, upstream_state(upstream("api", later), [at(peer)])))
    failed = there.control.apply(there.plan(more)).failure
    assert failed is not None
    assert f"its program {program} is gone" in str(failed)
    assert there.worker() == worker
    assert greeting(port) == "peer"
    # Nor does it hold up what is done at run time; and with its program back it is reloaded.
    program.symlink_to(there.binary)
    assert there.converge(more).reloaded
    assert greeting(later) == "peer"


@pytest.mark.parametrize("there", ["3.2", "3.4"], indirect=True)
def test_after_two_failed_reloads_changes_are_still_applied_and_a_good_reload_heals(
    there: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = there.peer("first"), there.peer("second")
    port = free_port()
    web = upstream("web", port)
    there.converge(there.rendered(client_snapshot(upstream_state(web, [at(first)]))))
    worker = there.worker()
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        taken = upstream_state(upstream("api", int(foreign.getsockname()[1])))
        for _ in range(2):
            bad = there.rendered(client_snapshot(upstream_state(web, [at(first)]), taken))
            assert there.control.apply(there.plan(bad)).failure is not None
    # It no longer listens on its runtime socket. A restarted hcc must not take it for dead.
    assert not _listens(there.layout.stats_socket)
    there.control = DirectControl(there.binary, there.layout, there.capabilities)
    assert there.control.running()
    there.leaf = there.authority.leaf(service_uri("server"))
    changed = there.rendered(client_snapshot(upstream_state(web, [at(first), at(second, 3)])))
    assert not there.converge(changed).reloaded
    assert not there.plan(changed)
    assert {greeting(port) for _ in range(12)} == {"first", "second"}
    assert int(second.caller_serials[-1], 16) == there.leaf.certificate.serial_number
    assert there.actual(changed).pid == worker
    assert caplog.text.count("commands go through its master") == 1

    gone = there.rendered(client_snapshot(upstream_state(web, [at(second)])))
    assert not there.converge(gone).pending
    good = there.rendered(client_snapshot(upstream_state(replace(web, max_connections=9), [at(second)])))
    assert there.converge(good).reloaded
    assert _listens(there.layout.stats_socket)
    assert not there.plan(good)
    assert greeting(port) == "second"


@pytest.mark.parametrize("there", ["2.6", "3.4"], indirect=True)
def test_many_endpoints_at_once_are_added_together_also_when_some_are_there(there: Stage) -> None:
    port = free_port()
    web = upstream("web", port)
    there.converge(there.rendered(client_snapshot(upstream_state(web))))
    addresses = [f"127.0.1.{number}" for number in range(1, 36)]
    many = [endpoint(address, 21000, weight=5) for address in addresses[:-1]]
    many.append(endpoint(addresses[-1], 21000, health=Health.CRITICAL))
    rendered = there.rendered(client_snapshot(upstream_state(web, many)))
    steps = there.plan(rendered)
    # Somebody is quicker.
    added = there.control._runtime.send(f"add server up:web:{port}:to/127.0.1.7:21000 127.0.1.7:21000")
    assert "New server registered." in added

    applied = there.control.apply(steps)

    assert applied.failure is None, applied.failure
    assert kinds(applied) == [*([AddServer] * 35), WriteConfig]
    # That one had no TLS and another weight.
    assert not there.plan(rendered)
    (servers,) = [servers for name, servers in there.control.servers() if name.startswith("up:")]
    assert [server.address for server in servers if not server.enabled] == [addresses[-1]]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master that waits for a core does not count as one that knows of no worker."""
    monkeypatch.setattr(runtime, "LOST_FILE_TIMEOUT_S", DEADLINE_S)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("there", ["2.2", "2.6", "3.2"], indirect=True)
def test_a_socket_whose_file_somebody_removed_does_not_keep_changes_away(there: Stage) -> None:
    first, second = there.peer("first"), there.peer("second")
    port = free_port()
    web = upstream("web", port)
    there.converge(there.rendered(client_snapshot(upstream_state(web, [at(first)]))))
    worker = there.worker()
    there.wait_master()
    Path(there.layout.stats_socket).unlink()

    changed = there.rendered(client_snapshot(upstream_state(web, [at(first), at(second)])))
    assert there.control.running()
    assert not there.converge(changed).reloaded

    assert {greeting(port) for _ in range(12)} == {"first", "second"}
    assert there.actual(changed).pid == worker
    assert not there.plan(changed)


@pytest.mark.usefixtures("patient")
def test_a_worker_whose_socket_somebody_removed_is_replaced_by_reloads_at_once(there: Stage) -> None:
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", free_port())))))
    master = there.process.pid
    there.wait_master()
    Path(there.layout.stats_socket).unlink()

    for name, port in (("first", free_port()), ("second", last := free_port())):
        changed = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(there.peer(name))])))
        began_s = time.monotonic()
        assert there.converge(changed).reloaded
        assert time.monotonic() - began_s < RELOADED_S
        assert greeting(port) == name
        assert not there.plan(changed)
    assert there.process.pid == master
    # Who looks at its statistics finds the worker of now, too.
    stats = StatsReader(there.layout.stats_socket, BACKENDS, master=there.layout.master_socket).read()
    assert f"up:web:{last}:to" in {row.proxy for row in stats.rows}


def test_a_master_whose_socket_somebody_removed_reloads_all_the_same(there: Stage) -> None:
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", free_port())))))
    master = there.process.pid
    Path(there.layout.master_socket).unlink()
    port = free_port()
    changed = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(there.peer("first"))])))

    assert there.converge(changed).reloaded

    assert greeting(port) == "first"
    assert there.process.pid == master
    assert _listens(there.layout.master_socket)
    assert not there.plan(changed)


def test_a_reload_that_somebody_else_began_is_waited_for(there: Stage) -> None:
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", free_port())))))
    port = free_port()
    changed = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(there.peer("first"))])))
    plan = there.plan(changed)
    there.wait_master()
    os.kill(there.process.pid, signal.SIGUSR2)

    assert there.control.apply(plan).failure is None

    assert greeting(port) == "first"


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def test_what_a_haproxy_listens_on_that_came_up_after_the_look_at_it_is_not_taken(there: Stage) -> None:
    own, other = upstream("web", free_port()), upstream("db", free_port())
    before = there.actual(there.rendered(client_snapshot(upstream_state(own))))
    assert not before.running
    there.converge(there.rendered(client_snapshot(upstream_state(own))))
    with socket.create_server(("127.0.0.1", other.local_bind_port)):
        wanted = there.rendered(client_snapshot(upstream_state(own), upstream_state(other))).desired

        found = there.control.taken(wanted, before)

    assert [one.bind for one in found] == [TcpBind("127.0.0.1", other.local_bind_port)]


def test_an_address_shared_by_another_process_with_reuseport_is_found_taken(there: Stage) -> None:
    mine = free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", mine)))))
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        port = int(foreign.getsockname()[1])
        wanted = there.rendered(
            client_snapshot(upstream_state(upstream("web", mine)), upstream_state(upstream("api", port)))
        )
        actual = there.actual(wanted)
        found = there.control.taken(wanted.desired, actual)
        assert [taken.bind for taken in found] == [TcpBind("127.0.0.1", port)]
        # Our own listener moved to every address is not somebody else's.
        moved = there.rendered(client_snapshot(upstream_state(upstream("web", mine, address="0.0.0.0"))))
        assert not there.control.taken(moved.desired, actual)
        there.converge(moved)
    assert not there.plan(moved)


@pytest.mark.parametrize("theirs", ["0.0.0.0", "127.0.0.1"])
def test_all_addresses_of_ipv6_are_taken_with_one_of_ipv4(there: Stage, theirs: str) -> None:
    mine = free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", mine)))))
    with socket.socket() as foreign:
        foreign.bind((theirs, 0))
        foreign.listen()
        port = int(foreign.getsockname()[1])
        wanted = there.rendered(client_snapshot(upstream_state(upstream("web", port, address="::"))))
        found = there.control.taken(wanted.desired, there.actual(wanted))
        assert [taken.bind for taken in found] == [TcpBind("::", port)]


def test_a_listener_of_ours_moves_between_all_addresses_of_ipv6_and_ipv4(there: Stage) -> None:
    peer, port = there.peer("peer"), free_port()
    for address in ("::", "0.0.0.0", "::", "127.0.0.1"):
        web = upstream("web", port, address=address)
        rendered = there.rendered(client_snapshot(upstream_state(web, [at(peer)])))
        assert not there.control.taken(rendered.desired, there.actual(rendered)), address
        there.converge(rendered)
        assert greeting(port) == "peer"


def test_after_a_reload_no_listener_of_ours_is_taken_for_somebody_else_s(there: Stage, tmp_path: Path) -> None:
    peer, port, path = there.peer("peer"), free_port(), f"{tmp_path}/up.sock"
    states = (
        upstream_state(upstream("web", port), [at(peer)]),
        upstream_state(upstream("db", socket=path), [at(peer)]),
    )
    there.converge(there.rendered(client_snapshot(*states)))
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S):
        # The old worker stays for it.
        rendered = there.rendered(client_snapshot(*states, upstream_state(upstream("api", free_port()))))
        assert there.converge(rendered).reloaded
        assert not there.control.taken(rendered.desired, there.actual(rendered))


def test_a_socket_is_not_ours_because_one_of_ours_has_a_longer_name(there: Stage, tmp_path: Path) -> None:
    ours = upstream_state(upstream("replica", socket=f"{tmp_path}/db-replica"))
    there.converge(there.rendered(client_snapshot(ours)))
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(f"{tmp_path}/db")
        foreign.listen()
        wanted = there.rendered(client_snapshot(ours, upstream_state(upstream("db", socket=f"{tmp_path}/db"))))
        found = there.control.taken(wanted.desired, there.actual(wanted))
        assert [str(taken) for taken in found] == [
            f"cannot listen on {tmp_path}/db: another process listens on {tmp_path}/db"
        ]


def privileged_port() -> int:
    """A free one that not everybody may listen on."""
    for port in range(1023, 512, -1):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("expected a free port below 1024, found none")


def test_a_port_that_we_may_have_and_haproxy_may_not_is_left_out(there: Stage, tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-net_bind_service {there.binary} "$@"\n')
    program.chmod(0o755)
    there.process = HAProxyProcess(str(program), there.layout)
    ours, port = upstream_state(upstream("web", free_port())), privileged_port()
    there.converge(there.rendered(client_snapshot(ours)))

    wanted = there.rendered(client_snapshot(ours, upstream_state(upstream("db", port))))

    assert [str(taken) for taken in there.control.taken(wanted.desired, there.actual(wanted))] == [
        f"cannot listen on 127.0.0.1:{port}: HAProxy was started without CAP_NET_BIND_SERVICE"
    ]
    # So it is: the reload fails as a whole.
    assert "cannot bind socket" in str(there.control.apply(there.plan(wanted)).failure)


@pytest.mark.parametrize("there", ["3.4"], indirect=True)
def test_a_port_that_haproxy_may_have_is_bound(there: Stage) -> None:
    ours, port = upstream_state(upstream("web", free_port())), privileged_port()
    there.converge(there.rendered(client_snapshot(ours)))
    wanted = there.rendered(client_snapshot(ours, upstream_state(upstream("db", port))))
    assert there.control.taken(wanted.desired, there.actual(wanted)) == ()
    there.converge(wanted)
    assert there.control.taken(wanted.desired, there.actual(wanted)) == ()


@pytest.mark.parametrize("there", ["2.8"], indirect=True)
def test_no_application_is_looked_for_behind_a_link_to_haproxys_own_sockets(there: Stage, tmp_path: Path) -> None:
    public, link = free_port(), tmp_path / "app.sock"
    there.converge(there.rendered(snapshot(proxy_=proxy(bind_port=public, local_port=free_port()))))
    link.symlink_to(there.layout.stats_socket)
    registered = proxy(bind_port=public, local_socket=str(link))
    applied = there.control.apply(there.plan(there.rendered(snapshot(proxy_=registered))))
    assert not applied.done
    assert "leads to files of hcc" in str(applied.failure)


@pytest.mark.parametrize("there", ["2.8"], indirect=True)
def test_a_circle_of_links_in_the_place_of_the_application_keeps_nothing_from_being_applied(
    there: Stage, tmp_path: Path
) -> None:
    link = tmp_path / "app.sock"
    link.symlink_to(link)
    peer, port = there.peer("peer"), free_port()
    called = upstream_state(upstream("db", port), [endpoint("127.0.0.1", peer.port)])
    registered = proxy(bind_port=free_port(), local_socket=str(link))
    there.converge(there.rendered(snapshot(called, proxy_=registered)))
    assert greeting(port) == "peer"


def test_a_unix_socket_listener_serves_with_its_mode(there: Stage, tmp_path: Path) -> None:
    peer = there.peer("peer")
    path = f"{tmp_path}/up.sock"
    state = upstream_state(upstream("web", socket=path, socket_mode="0600"), [at(peer)])
    rendered = there.rendered(client_snapshot(state))
    there.converge(rendered)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(path)
        assert client.recv(100) == b"peer\n"
    assert not there.control.taken(rendered.desired, there.actual(rendered))


def test_an_upstream_without_instances_answers_at_once(there: Stage) -> None:
    tcp, http = free_port(), free_port()
    states = (
        upstream_state(upstream("web", tcp)),
        upstream_state(upstream("api", http), [endpoint(health=Health.CRITICAL)], protocol="http"),
    )
    there.converge(there.rendered(client_snapshot(*states)))
    assert greeting(tcp) == ""
    assert http_answer(http) == (503, "no healthy upstream")


def test_connections_beyond_an_upstreams_limit_are_refused(there: Stage) -> None:
    peer = there.peer("peer")
    tcp = free_port()
    limited = upstream_state(upstream("web", tcp, max_connections=1), [at(peer)])
    there.converge(there.rendered(client_snapshot(limited)))
    with socket.create_connection(("127.0.0.1", tcp), timeout=DEADLINE_S) as client:
        assert client.recv(100) == b"peer\n"
        assert greeting(tcp) == ""
    wait_until(lambda: greeting(tcp) == "peer", "the connection is no longer counted")


# A connection that is reset before `wrap_socket` looks at it is left open by that call (Lib/ssl.py of Python 3.11.7,
# `SSLSocket._create`, where recv(1) of one without a peer fails otherwise than by ENOTCONN).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_connections_beyond_the_public_limit_are_refused(there: Stage) -> None:
    app = there.app()
    public = free_port()
    limited = proxy(bind_port=public, local_port=app.port, max_inbound_connections=1)
    there.converge(there.rendered(snapshot(proxy_=limited)))
    caller = there.authority.leaf(service_uri("caller"))
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, caller)
    with (
        socket.create_connection(("127.0.0.1", public), timeout=DEADLINE_S) as raw,
        context.wrap_socket(raw) as client,
    ):
        assert client.recv(100) == b"app\n"
        with pytest.raises(OSError, match=r"(?i)reset|eof"):
            tls_greeting(there, public, caller)
    wait_until(lambda: _comes_in(there, public, caller), "the connection is no longer counted")


def _comes_in(there: Stage, port: int, leaf: IssuedLeaf) -> bool:
    try:
        return tls_greeting(there, port, leaf)[0] == "app"
    except OSError:
        return False


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.HTTP])
def test_without_an_agent_nobody_comes_in(there: Stage, protocol: Protocol) -> None:
    app = there.app(http=protocol.is_http)
    public = free_port()
    wanted = snapshot(proxy_=proxy(bind_port=public, local_port=app.port, protocol=protocol))
    rendered = there.rendered(wanted, intentions=Enforcement.ENFORCE)
    there.converge(rendered)
    assert all(exists(file.path) for file in rendered.files)
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, there.authority.leaf(service_uri("caller")))
    with (
        socket.create_connection(("127.0.0.1", public), timeout=DEADLINE_S) as raw,
        context.wrap_socket(raw) as client,
    ):
        client.settimeout(DEADLINE_S)
        if protocol.is_http:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_http(client)[0] == 403
        else:
            assert client.recv(100) == b""


def test_a_caller_without_a_certificate_is_refused_at_the_handshake(there: Stage) -> None:
    public = free_port()
    there.converge(there.rendered(snapshot(proxy_=proxy(bind_port=public, local_port=there.app().port))))
    with pytest.raises(OSError, match=r"(?i)certificate required|reset|eof"):
        tls_greeting(there, public, None)


def test_a_resumed_session_comes_in_too(there: Stage) -> None:
    public = free_port()
    there.converge(there.rendered(snapshot(proxy_=proxy(bind_port=public, local_port=there.app().port))))
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, there.authority.leaf(service_uri("caller")))
    session = None
    for resumed in (False, True):
        raw = socket.create_connection(("127.0.0.1", public), timeout=DEADLINE_S)
        with raw, context.wrap_socket(raw, session=session) as client:
            assert client.recv(100) == b"app\n"
            assert client.session_reused is resumed
            session = client.session


def test_http_passes_both_ways_and_claimed_names_do_not(there: Stage) -> None:
    peer, app = there.peer("peer", http=True), there.app(http=True)
    port, public = free_port(), free_port()
    wanted = snapshot(
        upstream_state(upstream("web", port), [at(peer)], protocol="http"),
        proxy_=proxy(
            bind_port=public,
            local_port=app.port,
            protocol=Protocol.HTTP,
            appname_header="X-App",
            forward_for=True,
        ),
    )
    there.converge(there.rendered(wanted))
    status, body = http_answer(port, "X-Mark: 1")
    assert status == 200
    assert body.startswith("peer\nGET / HTTP/1.1")
    context = there.context(ssl.PROTOCOL_TLS_CLIENT, there.authority.leaf(service_uri("caller")))
    with (
        socket.create_connection(("127.0.0.1", public), timeout=DEADLINE_S) as raw,
        context.wrap_socket(raw) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-App: admin\r\nConnection: close\r\n\r\n")
        status, body = read_http(client)
    assert status == 200
    assert "x-app" not in body.lower()
    assert "x-forwarded-for: 127.0.0.1" in body.lower()


def test_a_server_with_a_foreign_certificate_gets_no_traffic(there: Stage) -> None:
    foreign = Authority("Foreign CA")
    impostor = there.peer("impostor", leaf=foreign.leaf(service_uri("web")))
    port = free_port()
    state = upstream_state(upstream("web", port, connect_timeout_ms=100), [at(impostor)])
    there.converge(there.rendered(client_snapshot(state)))
    assert greeting(port) == ""


def test_after_rotations_of_leaf_and_roots_servers_are_still_verified(there: Stage) -> None:
    newer = Authority("Newer CA")
    impostor = there.peer("impostor", leaf=Authority("Foreign CA").leaf(service_uri("web")))
    fixed, added = free_port(), free_port()
    # HAProxy pauses this long before it tries a refused server again.
    web, api = (upstream("web", fixed, connect_timeout_ms=100), upstream("api", added, connect_timeout_ms=100))
    one = upstream_state(web, [at(impostor)])
    there.converge(there.rendered(client_snapshot(one, upstream_state(api))))
    two = upstream_state(api, [at(impostor)])
    there.converge(there.rendered(client_snapshot(one, two)))
    for step in ("leaf", "roots", "leaf"):
        if step == "leaf":
            there.leaf = there.authorities[-1].leaf(service_uri("server"))
        else:
            there.authorities.append(newer)
        there.converge(there.rendered(client_snapshot(one, two)))
        assert greeting(fixed) == greeting(added) == ""
    genuine = there.peer("genuine", leaf=newer.leaf(service_uri("web")))
    better = (upstream_state(state.upstream, [at(genuine)]) for state in (one, two))
    there.converge(there.rendered(client_snapshot(*better)))
    # A peer that is right, too, has no more than those 100 ms for its handshake.
    wait_until(lambda: greeting(fixed) == greeting(added) == "genuine", "both get through")


def test_weights_share_out_the_connections(there: Stage) -> None:
    heavy, light = there.peer("heavy"), there.peer("light")
    port = free_port()
    states = upstream_state(upstream("web", port), [at(heavy, 6), at(light, 2)])
    there.converge(there.rendered(client_snapshot(states)))
    names = [greeting(port) for _ in range(16)]
    assert names.count("heavy") == 12
    assert names.count("light") == 4
