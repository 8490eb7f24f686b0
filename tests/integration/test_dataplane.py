"""The Data Plane API 1.2.5 as the way to HAProxy: what runs, what the file says and what it believes agree."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import socketserver
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hcc.haproxy.capabilities import Feature
from hcc.haproxy.dataplane_client import READY_TIMEOUT_S
from hcc.haproxy.dataplane_process import end_left_over, is_starting
from hcc.haproxy.dataplane_text import version_of
from hcc.haproxy.plan import AddServer, DeleteServer, Plan, Reload, SetServerWeight, WriteConfig
from hcc.mesh.snapshot import Endpoint, Snapshot, UpstreamState
from hcc.settings import Enforcement
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state, with_text
from tests.dataplane_stage import DataplaneStage, dataplane_stage
from tests.haproxy_examples import examples
from tests.haproxy_stage import Server, greeting, wait_until
from tests.pki import Authority, service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration


@pytest.fixture(params=["2.6", "2.8"])
def there(request: pytest.FixtureRequest) -> Iterator[DataplaneStage]:
    with dataplane_stage(request.param) as made:
        yield made


@pytest.fixture
def plain() -> Iterator[DataplaneStage]:
    with dataplane_stage("2.6") as made:
        yield made


def client_snapshot(*states: UpstreamState) -> Snapshot:
    return snapshot(*states, proxy_=proxy(local_port=0, upstreams=(state.upstream for state in states)))


def holds(path: Path, text: str) -> bool:
    return path.is_file() and text in path.read_text(encoding="utf-8")


def at(server: Server, weight: int = 1) -> Endpoint:
    return endpoint("127.0.0.1", server.port, weight=weight)


def test_endpoints_change_without_a_reload_and_the_file_follows(there: DataplaneStage) -> None:
    first, second = there.peer("first"), there.peer("second")
    port = free_port()
    rendered = there.rendered(client_snapshot(upstream_state(upstream("web", port))))
    there.converge(rendered)
    assert there.file_says(rendered)
    worker = there.worker()
    for endpoints, expected, names in (
        ([at(first)], AddServer, {"first"}),
        ([at(first), at(second, 3)], AddServer, {"first", "second"}),
        ([at(first), at(second, 5)], SetServerWeight, {"first", "second"}),
        ([at(second, 5)], DeleteServer, {"second"}),
    ):
        rendered = there.rendered(client_snapshot(upstream_state(upstream("web", port), endpoints)))
        applied = there.converge(rendered)
        assert [type(operation) for operation in applied.done] == [expected, WriteConfig]
        assert there.file_says(rendered)
        assert not there.plan(rendered), there.plan(rendered).describe()
        assert {greeting(port) for _ in range(12)} == names
        assert there.worker() == worker


def test_while_one_text_is_posted_servers_change_and_the_next_text_follows(there: DataplaneStage) -> None:
    servers, port = [there.peer(name) for name in ("first", "second", "third")], free_port()
    texts = [
        there.rendered(client_snapshot(upstream_state(upstream("web", port), map(at, servers[:number]))))
        for number in (1, 2, 3)
    ]
    there.converge(texts[0])
    _, posted = there.plan(texts[1]).parted()
    with ThreadPoolExecutor(1) as another:
        posting = another.submit(there.control.apply, posted)
        adding, _ = there.plan(texts[2]).parted()
        assert there.control.apply(adding).failure is None
        assert {greeting(port) for _ in range(12)} == {"first", "second", "third"}
        assert posting.result().done == posted.operations
    worker = there.worker()

    applied = there.converge(texts[2])

    assert [type(operation) for operation in applied.done] == [WriteConfig]
    assert there.file_says(texts[2])
    assert not there.plan(texts[2])
    assert there.worker() == worker


def test_a_change_of_structure_is_one_reload(there: DataplaneStage) -> None:
    first = there.peer("first")
    port, other = free_port(), free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(first)]))))
    worker, version = there.worker(), version_of(there.file)
    states = (
        upstream_state(upstream("web", port), [at(first)]),
        upstream_state(upstream("db", other), [at(first)]),
    )
    rendered = there.rendered(client_snapshot(*states))

    applied = there.converge(rendered)

    assert [type(operation) for operation in applied.done] == [Reload]
    assert applied.reloaded
    assert there.worker() != worker
    assert version_of(there.file) == version + 1
    assert there.file_says(rendered)
    assert not there.plan(rendered)
    assert greeting(other) == "first"


def test_a_text_that_haproxy_refuses_changes_neither_what_runs_nor_the_file(there: DataplaneStage) -> None:
    first = there.peer("first")
    port = free_port()
    good = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(first)])))
    there.converge(good)
    worker = there.worker()
    bad = with_text(good, f"{good.config}  nonsense\n", structure="0123456789abcdef")

    applied = there.control.apply(Plan((Reload(bad),)))

    assert applied.failure is not None
    assert "nonsense" in str(applied.failure)
    assert not [one for one in Path(there.layout.dataplane_directory).rglob("*") if holds(one, "nonsense")]
    assert there.worker() == worker
    assert there.file_says(good)
    assert greeting(port) == "first"


def test_a_reload_that_fails_leaves_the_last_good_text(there: DataplaneStage) -> None:
    first = there.peer("first")
    port, blocked = free_port(), free_port()
    good = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(first)])))
    there.converge(good)
    worker = there.worker()
    # Passes the check; only binding fails.
    text = f"{good.config}\nfrontend late\n  mode tcp\n  bind 192.0.2.1:{blocked}\n"
    bad = with_text(good, text, structure="0123456789abcdef")

    applied = there.control.apply(Plan((Reload(bad),)))

    assert applied.failure is not None
    assert str(blocked) in str(applied.failure)
    assert not applied.reloaded
    assert there.worker() == worker
    assert there.file_says(good)
    assert greeting(port) == "first"
    assert not there.plan(good)


@contextlib.contextmanager
def losing_the_answer(there: DataplaneStage, then: Callable[[], object]) -> Iterator[None]:
    """Passes everything on to the Data Plane API and back, but for its first answer to a post; `then` comes instead."""
    path = Path(there.layout.dataplane_socket)
    beyond = path.rename(path.with_suffix(".beyond"))
    lost = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines = list(iter(self.rfile.readline, b"\r\n"))
            length = next((int(line.split()[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as onward:
                onward.connect(str(beyond))
                onward.sendall(b"".join((*lines, b"\r\n", self.rfile.read(length))))
                answer = b"".join(iter(lambda: onward.recv(65536), b""))
            if lines[0].startswith(b"POST") and not lost.is_set():
                lost.set()
                then()
            else:
                self.wfile.write(answer)

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
    assert lost.is_set()


@pytest.mark.parametrize("dies", [False, True])
def test_a_reload_whose_answer_is_lost_is_done_where_the_new_worker_runs(
    there: DataplaneStage, caplog: pytest.LogCaptureFixture, *, dies: bool
) -> None:
    first, port, other = there.peer("first"), free_port(), free_port()
    web, db = (upstream_state(upstream(name, at_port), [at(first)]) for name, at_port in (("web", port), ("db", other)))
    there.converge(there.rendered(client_snapshot(web)))
    worker, rendered = there.worker(), there.rendered(client_snapshot(web, db))

    def end() -> None:
        if dies:
            there.dataplane.kill()
            wait_until(there.dataplane.reap, "the Data Plane API is gone")

    with losing_the_answer(there, end):
        applied = there.control.apply(there.plan(rendered))

    assert (applied.failure, applied.reloaded) == (None, True)
    assert there.worker() != worker
    assert there.file_says(rendered)
    assert greeting(other) == "first"
    assert "HAProxy was reloaded, although: the Data Plane API does not answer" in caplog.text
    assert not there.plan(rendered)


@pytest.mark.parametrize("name", sorted(examples()))
def test_every_construct_passes_unharmed(plain: DataplaneStage, name: str, caplog: pytest.LogCaptureFixture) -> None:
    rendered = plain.rendered(examples()[name], intentions=Enforcement.ENFORCE)

    applied = plain.control.apply(plain.plan(rendered))

    assert applied.failure is None
    assert plain.file_says(rendered)
    assert not caplog.records


def test_the_access_log_s_lines_pass_unharmed(plain: DataplaneStage, caplog: pytest.LogCaptureFixture) -> None:
    rendered = plain.rendered(examples()["http"], access_log="stdout")

    applied = plain.control.apply(plain.plan(rendered))

    assert applied.failure is None
    assert plain.file_says(rendered)
    assert not caplog.records


def test_what_it_drops_is_put_right_before_haproxy_runs_it_and_said_once(
    there: DataplaneStage, caplog: pytest.LogCaptureFixture
) -> None:
    first = there.peer("first")
    port = free_port()
    good = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(first)])))
    there.converge(good)
    worker = there.worker()
    dropped = "  server extra 127.0.0.1:1 pool-low-conn 7\n"
    config = good.config.replace("description hcc:", "description hcc:f")
    harmed = with_text(good, f"{config}{dropped}", structure=f"f{good.structure}")

    for kind in (Reload, WriteConfig):
        with caplog.at_level(logging.WARNING):
            applied = there.control.apply(Plan((kind(harmed),)))
        assert applied.failure is None, applied.failure
        assert dropped in there.file
    assert there.worker() != worker
    assert len([record for record in caplog.records if "lacks: server extra" in record.getMessage()]) == 1
    assert there.password.reveal() not in caplog.text


def test_a_new_leaf_needs_no_reload(there: DataplaneStage) -> None:
    first = there.peer("first")
    port = free_port()
    wanted = client_snapshot(upstream_state(upstream("web", port), [at(first)]))
    there.converge(there.rendered(wanted))
    worker = there.worker()
    assert greeting(port) == "first"
    there.leaf = there.authority.leaf(service_uri("server"))

    applied = there.converge(there.rendered(wanted))

    assert not applied.reloaded
    assert there.worker() == worker
    assert greeting(port) == "first"
    assert len(set(first.caller_serials)) == 2
    assert not there.plan(there.rendered(wanted))


def test_a_new_ca_needs_no_reload_from_2_8(there: DataplaneStage) -> None:
    newer, port = Authority("Newer CA"), free_port()
    newcomer = there.peer("newcomer", leaf=newer.leaf(service_uri("web")))
    wanted = client_snapshot(upstream_state(upstream("web", port, connect_timeout_ms=100), [at(newcomer)]))
    there.converge(there.rendered(wanted))
    worker = there.worker()
    assert greeting(port) == ""
    there.authorities.append(newer)

    applied = there.converge(there.rendered(wanted))

    at_run_time = there.capabilities.has(Feature.CA_UPDATE)
    assert applied.reloaded is not at_run_time
    assert (there.worker() == worker) is at_run_time
    # It has no more than those 100 ms for its handshake.
    wait_until(lambda: greeting(port) == "newcomer", "it gets through")
    assert there.file_says(there.rendered(wanted))
    assert not there.plan(there.rendered(wanted))


def test_one_that_is_killed_is_replaced_and_goes_on(there: DataplaneStage) -> None:
    first = there.peer("first")
    port = free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port)))))
    worker = there.worker()
    os.kill(there.dataplane.pid, signal.SIGKILL)
    wait_until(there.dataplane.reap, "the Data Plane API is gone")
    # What a kill leaves.
    Path(there.layout.dataplane_socket).touch()
    there.dataplane.launch()
    rendered = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(first)])))

    there.converge(rendered)

    assert there.file_says(rendered)
    assert there.worker() == worker
    assert greeting(port) == "first"


def test_one_that_is_gone_fails_a_reload_at_once_and_one_that_starts_is_waited_for(plain: DataplaneStage) -> None:
    port, other = free_port(), free_port()
    plain.converge(plain.rendered(client_snapshot(upstream_state(upstream("web", port)))))
    rendered = plain.rendered(client_snapshot(upstream_state(upstream("web", other))))
    assert is_starting(plain.layout, 3600.0)
    assert not is_starting(plain.layout, 0.0)
    plain.dataplane.kill()
    wait_until(plain.dataplane.reap, "the Data Plane API is gone")
    assert not is_starting(plain.layout, 3600.0)
    began = time.monotonic()

    applied = plain.control.apply(plain.plan(rendered))

    assert "does not answer" in str(applied.failure)
    assert time.monotonic() - began < READY_TIMEOUT_S / 4
    plain.dataplane.launch()
    assert plain.converge(rendered).reloaded


def test_one_left_by_a_killed_hcc_is_ended_by_the_next(plain: DataplaneStage) -> None:
    left = plain.dataplane.pid

    end_left_over(plain.layout)

    wait_until(plain.dataplane.reap, "the left-over is gone")
    plain.dataplane.launch()
    assert plain.dataplane.pid != left


def test_a_version_changed_by_others_does_not_stop_us(plain: DataplaneStage) -> None:
    port = free_port()
    first = plain.peer("first")
    plain.converge(plain.rendered(client_snapshot(upstream_state(upstream("web", port)))))
    path = Path(plain.layout.config)
    path.write_text(plain.file.replace(f"# _version={version_of(plain.file)}", "# _version=99"), encoding="utf-8")
    rendered = plain.rendered(client_snapshot(upstream_state(upstream("web", port), [at(first)])))

    plain.converge(rendered)

    assert plain.file_says(rendered)
    assert greeting(port) == "first"


@pytest.mark.parametrize("damage", ["removed", "emptied", "overwritten"])
def test_a_file_that_somebody_damaged_is_put_back_and_replaced(there: DataplaneStage, damage: str) -> None:
    first, port, other = there.peer("first"), free_port(), free_port()
    path = Path(there.layout.config)
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", port)))))
    for listening, reloads in ((port, False), (other, True)):
        if damage == "removed":
            path.unlink()
        else:
            path.write_text("rubbish\n" if damage == "overwritten" else "")
        rendered = there.rendered(client_snapshot(upstream_state(upstream("web", listening), [at(first)])))

        assert there.converge(rendered).reloaded is reloads

        assert there.file_says(rendered)
        assert greeting(listening) == "first"
        assert not there.plan(rendered)


def test_a_worker_whose_socket_somebody_removed_is_replaced_by_a_reload(there: DataplaneStage) -> None:
    first, port = there.peer("first"), free_port()
    there.converge(there.rendered(client_snapshot(upstream_state(upstream("web", free_port())))))
    Path(there.layout.stats_socket).unlink()
    rendered = there.rendered(client_snapshot(upstream_state(upstream("web", port), [at(first)])))

    assert there.converge(rendered).reloaded

    assert greeting(port) == "first"
    assert not there.plan(rendered)


def test_nobody_else_learns_the_password(plain: DataplaneStage) -> None:
    plain.converge(plain.rendered(client_snapshot(upstream_state(upstream("web", free_port())))))
    secret = plain.password.reveal()
    process = Path(f"/proc/{plain.dataplane.pid}")
    assert secret.encode() not in (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    assert secret not in Path(plain.layout.dataplane_log).read_text(encoding="utf-8")
    assert stat.S_IMODE(Path(plain.directory).stat().st_mode) == 0o700
    for name in (plain.layout.config, plain.layout.dataplane_password, f"{plain.layout.config}.lkg"):
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600, name
