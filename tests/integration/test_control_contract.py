"""FakeControl, which the actors' tests rely on, does what both back ends do with a real HAProxy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hcc.haproxy.control import Applied, Control
from hcc.haproxy.model import Tls
from hcc.haproxy.plan import (
    Actual,
    AddCaller,
    AddServer,
    DeleteServer,
    Install,
    Plan,
    SetServerWeight,
    WriteConfig,
    plan,
)
from hcc.haproxy.render import Rendered
from hcc.mesh.snapshot import Endpoint, Health, Protocol, Snapshot, Upstream
from hcc.settings import Enforcement
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.dataplane_stage import dataplane_stage
from tests.fakes import FakeControl
from tests.haproxy_stage import Stage, stage, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.integration


class Subject:
    """One control under test, over a stage that renders with real files; the fake runs nothing of it."""

    def __init__(self, made: Stage, *, fake: bool) -> None:
        self._stage = made
        self._fake = FakeControl(made.capabilities) if fake else None
        self.control: Control = self._fake or made.control

    def rendered(
        self, wanted: Snapshot, callers: tuple[str, ...] = (), intentions: Enforcement = Enforcement.OFF
    ) -> Rendered:
        return self._stage.rendered(wanted, self.control, callers=callers, intentions=intentions)

    def converge(
        self, wanted: Snapshot, callers: tuple[str, ...] = (), intentions: Enforcement = Enforcement.OFF
    ) -> tuple[Plan, Applied]:
        rendered = self.rendered(wanted, callers, intentions)
        steps = plan(rendered, self.control.read_actual(rendered))
        applied = self.control.apply(steps)
        if any(isinstance(operation, Install) for operation in steps.operations):
            self._start(rendered)
        return steps, applied

    def actual(self, wanted: Snapshot) -> Actual:
        return self.control.read_actual(self.rendered(wanted))

    @contextlib.contextmanager
    def refusing_at_run_time(self) -> Iterator[None]:
        """The fake takes no change at run time."""
        if self._fake is not None:
            self._fake.unwilling = "no"
        yield
        if self._fake is not None:
            self._fake.unwilling = ""

    def restart(self, wanted: Snapshot) -> None:
        """Another process, with the same files."""
        if self._fake is None:
            self._stage.process.kill()
            wait_until(self._stage.process.reap, "HAProxy ends")
        self._start(self.rendered(wanted))

    def _start(self, rendered: Rendered) -> None:
        if self._fake is not None:
            self._fake.start()
        else:
            self._stage.process.launch()
            self._stage.process.wait_ready(rendered.structure, 15.0)


@pytest.fixture(params=["2.6 fake", "2.6", "2.8", "2.6 dataplane", "2.8 dataplane"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    version, _, kind = request.param.partition(" ")
    with dataplane_stage(version) if kind == "dataplane" else stage(version) as made:
        yield Subject(made, fake=kind == "fake")


@pytest.fixture
def web() -> Upstream:
    return upstream("web", free_port())


def client(web: Upstream, *endpoints: Endpoint) -> Snapshot:
    return snapshot(upstream_state(web, endpoints), proxy_=proxy(local_port=0, upstreams=(web,)))


ONE, TWO = endpoint("127.0.0.1", 21001), endpoint("127.0.0.1", 21002)


def kinds(steps: Plan) -> list[str]:
    return [type(operation).__name__ for operation in steps.operations]


def test_a_control_starts_with_nothing_running_and_installs(subject: Subject, web: Upstream) -> None:
    assert not subject.control.running()

    steps, applied = subject.converge(client(web, ONE))

    assert kinds(steps) == ["Install"]
    assert applied == Applied(steps.operations)
    assert subject.control.running()


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ((ONE, TWO), ["AddServer", "WriteConfig"]),
        ((), ["DeleteServer", "WriteConfig"]),
        ((replace(ONE, weight=7),), ["SetServerWeight", "WriteConfig"]),
        ((replace(ONE, health=Health.CRITICAL),), ["SetServerState", "WriteConfig"]),
    ],
)
def test_each_change_of_endpoints_is_done_and_read_back(
    subject: Subject, web: Upstream, after: tuple[Endpoint, ...], expected: list[str]
) -> None:
    subject.converge(client(web, ONE))

    steps, applied = subject.converge(client(web, *after))

    assert kinds(steps) == expected
    assert applied.failure is None
    assert not applied.reloaded
    believed, seen = subject.control.glance(), subject.actual(client(web, *after))
    assert believed is not None
    # What is on disk is not looked at.
    assert replace(believed, config=None, files=()) == replace(seen, config=None, files=())
    assert not subject.converge(client(web, *after))[0]


@pytest.mark.parametrize("subject", ["2.2 fake", "2.2", "2.2 dataplane"], indirect=True)
@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ((ONE, TWO), ["SetServerAddress", "SetServerState", "WriteConfig"]),
        ((), ["FreeSlot", "WriteConfig"]),
        ((TWO,), ["SetServerAddress", "SetServerState", "FreeSlot", "WriteConfig"]),
        ((replace(ONE, weight=7),), ["SetServerWeight", "WriteConfig"]),
    ],
)
def test_each_change_of_endpoints_in_slots_is_done_and_read_back(
    subject: Subject, web: Upstream, after: tuple[Endpoint, ...], expected: list[str]
) -> None:
    test_each_change_of_endpoints_is_done_and_read_back(subject, web, after, expected)


def test_another_structure_is_one_reload_by_a_new_worker(subject: Subject, web: Upstream) -> None:
    subject.converge(client(web, ONE))
    before = subject.actual(client(web, ONE)).pid
    moved = replace(web, local_bind_port=free_port())

    steps, applied = subject.converge(client(moved, ONE))

    assert kinds(steps) == ["Reload"]
    assert applied.reloaded
    assert subject.actual(client(moved, ONE)).pid != before
    assert not subject.converge(client(moved, ONE))[0]


def test_what_another_process_of_the_same_structure_runs_is_not_known(subject: Subject, web: Upstream) -> None:
    here = client(web, ONE)
    subject.converge(here)
    subject.actual(here)
    assert subject.control.glance() is not None

    subject.restart(here)

    assert subject.control.glance() is None
    assert not subject.converge(here)[0]


def test_what_is_refused_at_run_time_ends_the_plan_and_is_told(subject: Subject, web: Upstream) -> None:
    here = client(web, ONE)
    subject.converge(here)
    backend = subject.rendered(here).desired.backends[0]
    # A certificate that HAProxy has not loaded.
    unknown = Tls("/nowhere/leaf.pem", "/nowhere/roots.pem")
    refused = AddServer(backend.name, replace(backend.servers[0], name="10.0.0.9:1", address="10.0.0.9"), unknown)
    later = SetServerWeight(backend.name, backend.servers[0].name, 9)

    with subject.refusing_at_run_time():
        applied = subject.control.apply(Plan((refused, later), ("a test", "a test")))

    assert applied.done == ()
    assert applied.failure is not None
    assert applied.failure.operation == refused.describe()
    assert not plan(subject.rendered(here), subject.actual(here)).operations


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.HTTP])
def test_a_public_listener_that_refuses_nobody_is_told_apart(
    subject: Subject, web: Upstream, protocol: Protocol
) -> None:
    here = snapshot(proxy_=proxy(bind_port=free_port(), protocol=protocol))
    for intentions in (Enforcement.OFF, Enforcement.ENFORCE, Enforcement.AUDIT):
        assert subject.converge(here, intentions=intentions)[1].failure is None
        assert subject.control.unguarded() is (intentions is not Enforcement.ENFORCE)

    assert subject.converge(client(web, ONE))[1].failure is None
    assert not subject.control.unguarded()


def test_callers_get_server_lines_and_lose_them(subject: Subject) -> None:
    here = snapshot(proxy_=proxy(bind_port=free_port()))
    subject.converge(here)
    for callers, kinds in ((("a:dc1", "b:dc1"), [AddCaller, AddCaller]), (("b:dc1",), [DeleteServer])):
        steps, applied = subject.converge(here, callers)
        assert applied.failure is None
        assert [type(operation) for operation in steps.operations] == [*kinds, WriteConfig]
        assert not plan(subject.rendered(here, callers), subject.control.read_actual(subject.rendered(here, callers)))
