"""The maps of callers in a real HAProxy, and FakeMaps, which the actor's tests rely on, beside them."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from hcc.haproxy import runtime, stopping
from hcc.haproxy.caller_maps import CallerMaps
from hcc.haproxy.capabilities import Feature, Version, capabilities
from hcc.haproxy.control import ControlError
from hcc.haproxy.files import read_text
from hcc.haproxy.map_commands import read_map
from hcc.haproxy.map_text import MapChange, map_change
from hcc.haproxy.plan import AddCaller, DeleteServer, WriteConfig
from hcc.haproxy.render import Rendered
from hcc.haproxy.runtime import MasterSocket, RuntimeSocket, exchange
from hcc.mesh.snapshot import Protocol
from hcc.settings import Enforcement
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import proxy, snapshot
from tests.e2e.versions import can
from tests.fakes import FakeMaps
from tests.haproxy_stage import Stage, stage, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.integration

MANY = {f"{number:064X}": f"web:dc1|spiffe://d/ns/default/dc/dc1/svc/web|{number}" for number in range(10_000)}


class Subject:
    """Maps under test; `running` of them is a HAProxy with a public listener."""

    def __init__(self, made: Stage, *, fake: bool) -> None:
        self.stage = made
        self._fake = FakeMaps() if fake else None
        self._real = CallerMaps(made.layout, made.capabilities)
        self.maps: CallerMaps | FakeMaps = self._fake or self._real

    def serve(self, *callers: str) -> None:
        """Let a HAProxy run that reads the maps."""
        self.rendered = self.text(*callers)
        self.stage.converge(self.rendered)

    def text(self, *callers: str) -> Rendered:
        here = snapshot(proxy_=proxy(bind_port=self.port))
        return self.stage.rendered(here, intentions=Enforcement.ENFORCE, callers=callers)

    def stop(self) -> None:
        if self._fake:
            self._fake.running = False
        elif self.stage.process.pid:
            self.stage.process.kill()
            while not self.stage.process.reap():
                pass

    port = 0


@pytest.fixture(params=["fake", *HAPROXY_BRANCHES])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    fake = request.param == "fake"
    with stage("2.8" if fake else request.param) as made:
        subject = Subject(made, fake=fake)
        subject.port = free_port()
        if not fake:
            subject.serve()
        yield subject


def test_entries_come_change_and_go(subject: Subject) -> None:
    maps = subject.maps
    maps.change_identities(MapChange(added=(("A" * 64, "web:dc1|spiffe://d/x|1"), ("B" * 64, "db:dc1|spiffe://d/y|2"))))
    assert maps.identities() == {"A" * 64: "web:dc1|spiffe://d/x|1", "B" * 64: "db:dc1|spiffe://d/y|2"}

    maps.change_identities(MapChange(changed=(("A" * 64, "web:dc1|spiffe://d/x|9"),), removed=("B" * 64,)))

    assert maps.identities() == {"A" * 64: "web:dc1|spiffe://d/x|9"}
    maps.change_identities(MapChange(removed=("C" * 64,)))


@pytest.mark.parametrize("wanted", [{"a:dc1": "deny"}, {"a:dc1": "deny", "b:dc1": "allow", "d:dc1": "deny"}, {}])
def test_verdicts_become_what_is_wanted(subject: Subject, wanted: dict[str, str]) -> None:
    maps = subject.maps
    before = {"a:dc1": "allow", "b:dc1": "allow", "c:dc1": "allow"}
    maps.change_verdicts(map_change({}, before), before)
    assert maps.verdicts() == before

    maps.change_verdicts(map_change(before, wanted), wanted)

    assert maps.verdicts() == wanted


def test_ten_thousand_callers_are_remembered_and_forgotten(subject: Subject) -> None:
    maps = subject.maps
    maps.change_identities(map_change({}, MANY))
    assert maps.identities() == MANY
    maps.change_identities(MapChange(removed=tuple(MANY)[:9_999]))
    assert len(maps.identities() or {}) == 1
    # By URIs as long as they come.
    keys = [f"spiffe://{'d' * 100}/ns/default/dc/dc1/svc/{'x' * 400}{number}" for number in range(2_000)]
    found: dict[str, str] = {}
    for wanted in (dict.fromkeys(keys, "allow"), dict.fromkeys(keys, "deny"), {keys[0]: "deny"}):
        maps.change_verdicts(map_change(found, wanted), wanted)
        assert maps.verdicts() == wanted
        found = wanted


def test_without_a_haproxy_there_are_no_maps_but_on_disk(subject: Subject) -> None:
    entry = MapChange(added=(("A" * 64, "web:dc1|spiffe://d/x|1"),))
    assert subject.maps.change_identities(entry)
    one, two = {"a:dc1": "allow"}, {"a:dc1": "deny", "b:dc1": "allow"}
    assert subject.maps.change_verdicts(map_change({}, one), one)
    assert subject.maps.change_verdicts(map_change(one, two), two)
    assert subject.maps.listening()
    subject.stop()
    assert not subject.maps.listening()
    assert not subject.maps.change_identities(entry)
    assert not subject.maps.change_verdicts(map_change(two, one), one)
    assert not subject.maps.change_verdicts(map_change({}, two), two)
    assert not subject.maps.replace_rules({"a:dc1": "x"})
    assert subject.maps.identities() is None
    assert subject.maps.verdicts() is None
    assert subject.maps.lines() == frozenset()
    subject.maps.store_identities({"A" * 64: "web:dc1|spiffe://d/x|1"})
    assert subject.maps.stored_identities() == {"A" * 64: "web:dc1|spiffe://d/x|1"}


@pytest.fixture(params=HAPROXY_BRANCHES)
def real(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with stage(request.param) as made:
        subject = Subject(made, fake=False)
        subject.port = free_port()
        yield subject


@pytest.mark.parametrize(
    "real", [branch for branch in HAPROXY_BRANCHES if can(branch, Feature.MAP_TRANSACTION)], indirect=True
)
def test_verdicts_change_all_at_once_where_haproxy_can(real: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    real.serve()
    keys = [f"spiffe://d/ns/default/dc/dc1/svc/{'x' * 400}{number}" for number in range(200)]
    before, wanted = dict.fromkeys(keys, "allow"), dict.fromkeys(keys, "deny")
    real.maps.change_verdicts(map_change({}, before), before)
    seen: list[set[str]] = []
    layout = real.stage.layout

    def exchanged(path: str, data: bytes, timeout_s: float, *more: Callable[[], bool]) -> str:
        answer = exchange(path, data, timeout_s, *more)
        found = read_map(lambda said: exchange(layout.stats_socket, f"{said}\n".encode(), timeout_s), layout.verdicts)
        seen.append(set((found or {}).values()))
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(runtime, "exchange", exchanged)
        real.maps.change_verdicts(map_change(before, wanted), wanted)

    assert real.maps.verdicts() == wanted
    assert len(seen) >= 3
    assert list(dict.fromkeys(map(frozenset, seen))) == [{"allow"}, {"deny"}], "some had changed, and some had not"


def test_haproxy_starts_and_reloads_with_what_is_on_disk(real: Subject) -> None:
    real.maps.store_identities({"A" * 64: "web:dc1|spiffe://d/x|1"})
    real.maps.store_verdicts({"web:dc1": "deny"})
    real.serve()
    assert real.maps.identities() == {"A" * 64: "web:dc1|spiffe://d/x|1"}
    assert real.maps.verdicts() == {"web:dc1": "deny"}


def test_an_hcc_that_finds_no_haproxy_running_trusts_nobody_remembered(real: Subject) -> None:
    maps = real.maps
    assert isinstance(maps, CallerMaps)
    maps.store_verdicts({"web:dc1": "allow"})
    maps.prepare(running=True)
    assert read_text(real.stage.layout.verdicts) == "web:dc1 allow\n"
    maps.prepare(running=False)
    assert read_text(real.stage.layout.verdicts) == ""


def test_verdicts_that_cannot_be_written_leave_none_for_the_next_haproxy(
    real: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    maps = real.maps
    maps.store_verdicts({"web:dc1": "allow"})
    monkeypatch.setattr("hcc.haproxy.caller_maps.write_private", full)

    with pytest.raises(OSError, match="No space left"):
        maps.store_verdicts({"web:dc1": "deny"})

    assert read_text(real.stage.layout.verdicts) == ""


def test_a_haproxy_without_public_listener_has_no_maps_to_change(real: Subject) -> None:
    real.stage.converge(real.stage.rendered(snapshot(proxy_=proxy(local_port=0))))
    for wanted in ({"a:dc1": "allow"}, {"a:dc1": "deny", "b:dc1": "allow"}):
        assert not real.maps.change_verdicts(map_change({}, wanted), wanted)
        assert not real.maps.replace_rules(wanted)
    assert real.maps.verdicts() is None


def test_of_two_entries_the_one_counts_that_haproxy_goes_by_and_both_are_put_right(real: Subject) -> None:
    real.serve()
    one = {"web:dc1": "allow"}
    real.maps.change_verdicts(map_change({}, one), one)
    # As somebody does who does not know that it is there.
    again = MapChange(added=(("web:dc1", "deny"),))
    real.maps.change_verdicts(again, {"web:dc1": "deny"})
    assert real.maps.verdicts() == {"web:dc1": "allow"}

    real.maps.change_verdicts(MapChange(changed=(("web:dc1", "deny"),)), {"web:dc1": "deny"})

    shown = RuntimeSocket(real.stage.layout.stats_socket).send(f"show map {real.stage.layout.verdicts}").split()
    assert [word for word in shown if word in ("allow", "deny")] == ["deny", "deny"]


BEFORE = {"a:dc1": "allow", "b:dc1": "allow", "c:dc1": "allow"}
WANTED = {"a:dc1": "deny", "c:dc1": "deny", "d:dc1": "allow"}


@contextmanager
def two_stopping(real: Subject) -> Iterator[tuple[CallerMaps, int, int]]:
    """The maps, and the process ids of two workers that stop, with the verdicts BEFORE."""
    maps = real.maps
    assert isinstance(maps, CallerMaps)
    real.serve()
    maps.change_verdicts(map_change({}, BEFORE), BEFORE)
    maps.store_verdicts(BEFORE)
    old: list[int] = []
    with ExitStack() as connections:
        for timeout_ms in (7_000, 8_000):
            # Whoever is connected keeps it.
            connections.enter_context(socket.create_connection(("127.0.0.1", real.port)))
            wait_until(lambda: " 1" in maps._runtime.send("show info").partition("CurrConns:")[2][:3], "the connection")
            old.append(real.stage.worker())
            here = snapshot(proxy_=proxy(bind_port=real.port, read_timeout_ms=timeout_ms))
            real.stage.converge(real.stage.rendered(here, intentions=Enforcement.ENFORCE))
        assert len({*old, real.stage.worker()}) == 3
        yield maps, old[0], old[1]


def verdicts_of(real: Subject, worker: int) -> dict[str, str] | None:
    master = MasterSocket(real.stage.layout.master_socket)
    return read_map(lambda command: master.of_worker(worker, command), real.stage.layout.verdicts)


def test_workers_that_stop_go_by_new_verdicts_too_as_far_as_they_know_the_callers(real: Subject) -> None:
    with two_stopping(real) as (maps, *old):
        assert maps.tell_stopping(BEFORE, (), None) == ((), None)
        assert [verdicts_of(real, worker) for worker in old] == [BEFORE, BEFORE]

        assert maps.tell_stopping(WANTED, {"c:dc1"}, None) == ((), None)

        # What they do not have they ask about.
        assert [verdicts_of(real, worker) for worker in old] == [{"a:dc1": "deny", "c:dc1": "allow"}] * 2
        assert maps.tell_stopping(WANTED, (), None) == ((), None)
        assert [verdicts_of(real, worker) for worker in old] == [{"a:dc1": "deny", "c:dc1": "deny"}] * 2
        assert maps.verdicts() == BEFORE


@pytest.mark.parametrize("first", [True, False])
def test_a_worker_that_stops_and_hangs_is_told_of_and_keeps_no_other_waiting(
    real: Subject, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left for the other one is no matter of how fast it is.
    monkeypatch.setattr(stopping, "ROUND_S", 30.0)
    with two_stopping(real) as (maps, *old):
        hung, other = old if first else reversed(old)
        os.kill(hung, signal.SIGSTOP)
        try:
            _, failure = maps.tell_stopping(WANTED, (), None)
            assert f"worker {hung}: HAProxy does not answer" in str(failure)
            assert f"worker {other}" not in str(failure)
            assert (verdicts_of(real, other) or {})["a:dc1"] == "deny"
        finally:
            os.kill(hung, signal.SIGCONT)
        assert maps.tell_stopping(WANTED, (), None) == ((), None)
        assert (verdicts_of(real, hung) or {})["a:dc1"] == "deny"


def test_where_time_is_over_those_that_were_not_told_come_first_in_the_next_round(
    real: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "ROUND_S", 0.0)
    with two_stopping(real) as (maps, *old):
        _, failure = maps.tell_stopping(WANTED, (), None)
        assert str(failure).count("no time is left") == 2
        for hung in old:
            os.kill(hung, signal.SIGSTOP)
        try:
            # Less than the one that hangs is waited for.
            monkeypatch.setattr(stopping, "ROUND_S", 0.95 * stopping.TIMEOUT_S)
            _, failure = maps.tell_stopping(WANTED, (), None)
            (unreached,) = (pid for pid in old if f"worker {pid}: no time is left" in str(failure))
            os.kill(unreached, signal.SIGCONT)
            maps.tell_stopping(WANTED, (), None)
            assert (verdicts_of(real, unreached) or {})["a:dc1"] == "deny"
        finally:
            for hung in old:
                os.kill(hung, signal.SIGCONT)


def test_while_the_master_hangs_it_is_said_that_workers_that_stop_were_not_told(real: Subject) -> None:
    with two_stopping(real) as (maps, *old):
        master = real.stage.process.pid
        os.kill(master, signal.SIGSTOP)
        try:
            _, failure = maps.tell_stopping(WANTED, (), None)
            assert "which workers stop is not known" in str(failure)
        finally:
            os.kill(master, signal.SIGCONT)
        assert maps.tell_stopping(WANTED, (), None) == ((), None)
        assert [(verdicts_of(real, worker) or {})["a:dc1"] for worker in old] == ["deny", "deny"]


def test_where_nobody_is_asked_which_workers_stop_that_is_said(real: Subject) -> None:
    real.serve()
    real.stop()
    assert isinstance(real.maps, CallerMaps)
    _, failure = real.maps.tell_stopping(WANTED, (), None)
    assert "nobody listens" in str(failure)


@pytest.mark.parametrize("patterns", [("/a;b[0-9]+", r"/c\d+\w \x41"), ("/c#'\"\\$HOME", "/d"), ("/e", "/f;g\\;h")])
def test_rules_are_replaced_whatever_stands_in_them(real: Subject, patterns: tuple[str, str]) -> None:
    entries = [{f"^rules-x{each}{pattern.replace(' ', '')}\\z": "allow" for each in range(3)} for pattern in patterns]
    here = snapshot(proxy_=proxy(bind_port=real.port, protocol=Protocol.HTTP))
    real.maps.store_rules(entries[0])
    real.stage.converge(real.stage.rendered(here, intentions=Enforcement.ENFORCE))
    assert list((real.maps.rules() or {}).items()) == list(entries[0].items())

    other = dict.fromkeys(entries[0], "deny")
    for wanted in (entries[0] | entries[1], entries[1], {}, entries[0], other):
        assert real.maps.replace_rules(wanted)
        assert list((real.maps.rules() or {}).items()) == list(wanted.items())


@pytest.mark.parametrize("real", ["2.2"], indirect=True)
def test_a_haproxy_older_than_its_program_takes_changes_all_the_same(real: Subject) -> None:
    real.serve()
    # Upgraded in place while hcc was away: until it is reloaded the one of before runs, and callers are denied.
    maps = CallerMaps(real.stage.layout, capabilities(Version(2, 6)))
    both = {"a": "allow", "b": "allow"}
    assert maps.change_verdicts(map_change({}, both), both)
    denied = {"a": "deny", "b": "deny"}
    assert maps.change_verdicts(map_change(both, denied), denied)
    assert maps.verdicts() == denied


def test_a_refusal_of_haproxy_is_an_error(real: Subject) -> None:
    real.serve()
    with pytest.raises(ControlError, match="entry not found"):
        real.maps.change_identities(MapChange(changed=(("A" * 64, "x"),)))


def test_a_caller_gets_a_line_of_its_own_without_a_reload_and_the_file_says_so(real: Subject) -> None:
    real.serve()
    stage_, worker = real.stage, real.stage.worker()
    real.serve("web:dc1", "db:dc1")
    assert real.maps.has_lines is stage_.capabilities.has(Feature.DYNAMIC_SERVERS)
    assert real.maps.lines() == ({"web:dc1", "db:dc1"} if real.maps.has_lines else frozenset())
    if not real.maps.has_lines:
        assert "db:dc1" not in real.rendered.config
        return
    assert "  server db:dc1 127.0.0.1:" in (read_text(stage_.layout.config) or "")
    assert not stage_.plan(real.rendered)

    applied = stage_.converge(real.text("web:dc1"))

    assert [type(operation) for operation in applied.done] == [DeleteServer, WriteConfig]
    assert stage_.worker() == worker
    steps = stage_.plan(real.rendered)
    assert [type(operation) for operation in steps.operations] == [AddCaller, WriteConfig]
