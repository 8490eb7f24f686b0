"""The map of leaves in a real HAProxy, and FakeLeaves, which the actor's tests rely on, beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hcc.haproxy.leaf_map import LeafMap
from hcc.haproxy.map_text import MapChange, map_change
from hcc.mesh.snapshot import Snapshot
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.fakes import FakeLeaves
from tests.haproxy_stage import Stage, stage, wait_until
from tests.ports import free_port

pytestmark = pytest.mark.integration

A, B, C = ("A" * 64, "B" * 64, "C" * 64)


class Subject:
    """A map under test, of a HAProxy that runs."""

    def __init__(self, made: Stage, *, fake: bool) -> None:
        self._stage = made
        self._fake = FakeLeaves() if fake else None
        self.leaves: LeafMap | FakeLeaves = self._fake or LeafMap(made.layout, made.capabilities)

    def stop(self) -> None:
        if self._fake:
            self._fake.running = False
        else:
            self._stage.process.kill()
            wait_until(self._stage.process.reap, "HAProxy ends")


def client() -> Snapshot:
    one = upstream("web", free_port())
    state = upstream_state(one, [endpoint("127.0.0.1", 21001)])
    return snapshot(state, proxy_=proxy(local_port=0, upstreams=(one,)))


@pytest.fixture(params=["fake", *HAPROXY_BRANCHES])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    fake = request.param == "fake"
    with stage("2.8" if fake else request.param) as made:
        if not fake:
            made.converge(made.rendered(client()))
        yield Subject(made, fake=fake)


def test_leaves_come_change_and_go(subject: Subject) -> None:
    leaves = subject.leaves
    assert leaves.looks
    assert leaves.entries() == {}
    assert leaves.change(MapChange(added=((A, "spiffe://d/a"), (B, "spiffe://d/b"))))
    assert leaves.entries() == {A: "spiffe://d/a", B: "spiffe://d/b"}

    assert leaves.change(MapChange(added=((C, "spiffe://d/c"),), changed=((A, "spiffe://d/x"),), removed=(B,)))

    assert leaves.entries() == {A: "spiffe://d/x", C: "spiffe://d/c"}
    # What is not there is gone already.
    assert leaves.change(MapChange(removed=(B,)))


def test_many_leaves_are_known_and_forgotten(subject: Subject) -> None:
    many = {f"{number:064X}": f"spiffe://d/ns/default/dc/dc1/svc/s{number}" for number in range(5_000)}
    assert subject.leaves.change(map_change({}, many))
    assert subject.leaves.entries() == many
    assert subject.leaves.change(map_change(many, {}))
    assert subject.leaves.entries() == {}


def test_without_a_haproxy_there_is_no_map_and_nobody_to_be_taken_out(subject: Subject) -> None:
    assert subject.leaves.change(MapChange(added=((A, "spiffe://d/a"),)))
    subject.stop()
    assert subject.leaves.entries() is None
    assert not subject.leaves.change(MapChange(added=((B, "spiffe://d/b"),)))
    assert not subject.leaves.take_out({("127.0.0.1", 21001): "up:web:9191:to".__eq__})
