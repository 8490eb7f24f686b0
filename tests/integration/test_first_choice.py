"""Which instance gets the first connections of a sidecar: not the same one everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hcc.haproxy.model import Server
from hcc.haproxy.servers import in_turn, servers
from hcc.mesh.snapshot import Endpoint
from tests.binaries import HAPROXY_BRANCHES
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import Stage, greeting, stage
from tests.ports import free_port

pytestmark = pytest.mark.integration


@pytest.fixture(params=HAPROXY_BRANCHES)
def made(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with stage(request.param) as running:
        yield running


def offer(made: Stage, port: int, *found: Endpoint) -> list[Server]:
    """Have these served on the port; them in our sidecar's order."""
    state = upstream_state(upstream(port=port), found)
    made.converge(made.rendered(snapshot(state, proxy_=proxy(local_port=0))))
    return in_turn(servers(found), made.leaf.fingerprint)


def test_a_sidecar_begins_with_the_instance_that_comes_first_in_its_own_order(made: Stage) -> None:
    peers = {peer.port: peer.name for peer in (made.peer(f"peer {number}") for number in range(4))}
    port = free_port()
    order = offer(made, port, *(endpoint("127.0.0.1", port=each) for each in peers))
    assert [greeting(port) for _ in peers] == [peers[server.port] for server in order]


def test_so_it_does_with_instances_that_come_later(made: Stage) -> None:
    peers = {peer.port: peer.name for peer in (made.peer(f"peer {number}") for number in range(3))}
    port = free_port()
    offer(made, port)
    order = offer(made, port, *(endpoint("127.0.0.1", port=each) for each in peers))
    assert greeting(port) == peers[order[0].port]
