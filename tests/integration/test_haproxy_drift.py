"""What somebody changes by hand on the runtime socket is seen by reading back, and put right by what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from hcc.haproxy.capabilities import Feature
from hcc.haproxy.plan import (
    AddCaller,
    AddServer,
    DeleteServer,
    EnableListener,
    FreeSlot,
    LiftRateLimit,
    Operation,
    Reload,
    SetCa,
    SetCertificate,
    SetListenerLimit,
    SetProcessLimit,
    SetServerAddress,
    SetServerState,
    SetServerWeight,
    SetTicketKeys,
    WriteConfig,
)
from hcc.haproxy.render import Rendered
from hcc.mesh.snapshot import Snapshot
from hcc.settings import Enforcement
from tests.builders import endpoint, proxy, snapshot, upstream, upstream_state
from tests.haproxy_stage import Stage, greeting, stage
from tests.pki import Authority, service_uri
from tests.ports import free_port

pytestmark = pytest.mark.integration

CALLERS = ("a:dc1", "b:dc1")


@dataclass
class Scene:
    """A sidecar with everything in it, as it should be."""

    there: Stage
    port: int = field(default_factory=free_port)
    public: int = field(default_factory=free_port)

    def start(self) -> None:
        self.peer, self.app = self.there.peer("peer"), self.there.app()
        self.there.converge(self.rendered())
        assert not self.there.plan(self.rendered())

    def rendered(self) -> Rendered:
        return self.there.rendered(self.wanted(), intentions=Enforcement.ENFORCE, callers=CALLERS)

    def wanted(self) -> Snapshot:
        peers = [endpoint("127.0.0.1", self.peer.port, weight=3)]
        return snapshot(
            upstream_state(upstream("web", self.port), peers),
            proxy_=proxy(bind_port=self.public, local_port=self.app.port),
        )

    def say(self, *commands: str) -> str:
        return self.there.control._runtime.send(*commands)

    def names(self) -> dict[str, str]:
        address = f"127.0.0.1:{self.peer.port}"
        return {"server": self.server, "listener": self.listener, "address": address}

    @property
    def listener(self) -> str:
        return f"up:web:{self.port}"

    @property
    def server(self) -> str:
        (backend,) = self.rendered().desired.backends
        return f"{backend.name}/{backend.servers[0].name}"


def other_leaf(there: Scene) -> None:
    leaf = there.there.authority.leaf(service_uri("server"))
    there.there.control._runtime.send_payload(f"set ssl cert {there.there.layout.leaf}", leaf.combined_pem)
    assert "Success" in there.say(f"commit ssl cert {there.there.layout.leaf}")


def other_roots(there: Scene) -> None:
    roots = there.there.layout.roots
    there.there.control._runtime.send_payload(f"set ssl ca-file {roots}", Authority("Somebody's").pem)
    assert "Success" in there.say(f"commit ssl ca-file {roots}")


def other_ticket_keys(there: Scene) -> None:
    # With one that somebody knows TLS sessions could be made that nobody verified.
    assert "updated" in there.say(f"set ssl tls-key {there.there.layout.ticket_keys} {'A' * 64}")


Kinds = list[type[Operation]]
Change = tuple[str, Callable[[Scene], object], Kinds]


def said(*commands: str) -> Callable[[Scene], object]:
    """Saying this, with the names put in."""
    return lambda there: there.say(*(text.format_map(there.names()) for text in commands))


EVERYWHERE: tuple[Change, ...] = (
    ("a weight", said("set server {server} weight 200"), [SetServerWeight]),
    ("maintenance", said("set server {server} state maint"), [SetServerState]),
    ("a drain", said("set server {server} state drain"), [SetServerState]),
    ("marked down", said("set server {server} health down"), [SetServerState]),
    ("all of it", said("set server {server} weight 9", "disable server {server}"), [SetServerWeight, SetServerState]),
    ("the application", said("disable server app/app"), [SetServerState]),
    ("a worker", said("disable server spoe_agents/w2"), [SetServerState]),
    ("a paused upstream", said("disable frontend {listener}"), [EnableListener]),
    ("a paused public listener", said("disable frontend public"), [EnableListener]),
    ("a listener's limit", said("set maxconn frontend {listener} 1"), [SetListenerLimit]),
    ("the limit of all", said("set maxconn global 2"), [SetProcessLimit]),
    ("the rate of all", said("set rate-limit connections global 1"), [LiftRateLimit]),
    ("the rate of TLS", said("set rate-limit ssl-sessions global 1"), [LiftRateLimit]),
    ("the application's address", said("set server app/app addr 127.9.9.9 port 1"), [SetServerAddress]),
    (
        "a worker that is not checked any more",
        said("disable health spoe_agents/w1", "set server spoe_agents/w1 health down"),
        [SetServerState],
    ),
    ("other keys of TLS sessions", other_ticket_keys, [SetTicketKeys]),
    ("a shut listener", said("shutdown frontend {listener}"), [Reload]),
)
WITH_DYNAMIC_SERVERS: tuple[Change, ...] = (
    # One that was added at run time refuses that.
    ("a server without TLS", said("set server {server} ssl off"), [Reload]),
    ("an address", said("set server {server} addr 127.9.9.9"), [SetServerAddress]),
    ("a caller's weight", said("set server app/a:dc1 weight 7"), [SetServerWeight]),
    ("a caller out of service", said("disable server app/b:dc1"), [SetServerState]),
    ("a caller's line gone", said("disable server app/b:dc1", "del server app/b:dc1"), [AddCaller]),
    ("a server gone", said("disable server {server}", "del server {server}"), [AddServer]),
    ("a caller's address", said("set server app/a:dc1 addr 127.9.9.9"), [SetServerAddress]),
    ("a worker too many", said("add server spoe_agents/w9 127.0.0.1:1"), [DeleteServer]),
    (
        "another server, without TLS, in its place",
        said(
            "disable server {server}",
            "del server {server}",
            "add server {server} {address} weight 3",
            "enable server {server}",
        ),
        [Reload],
    ),
    ("a server too many", said("add server {listener}:to/mine 127.0.0.1:1"), [DeleteServer]),
)
# Whoever is not in its slot any more gets another one.
IN_SLOTS: tuple[Change, ...] = (
    (
        "an address",
        said("set server {server} addr 127.9.9.9"),
        [SetServerAddress, SetServerWeight, SetServerState, FreeSlot, WriteConfig],
    ),
)


@pytest.fixture(params=["2.2", "2.6", "2.8", "3.0", "3.2", "3.4"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with stage(request.param) as there:
        made = Scene(there)
        made.start()
        yield made


def test_each_change_made_by_hand_is_seen_and_put_right_by_what_it_takes_and_no_more(scene: Scene) -> None:
    there = scene.there
    able = there.capabilities.has
    changes = [*EVERYWHERE, *(WITH_DYNAMIC_SERVERS if able(Feature.DYNAMIC_SERVERS) else IN_SLOTS)]
    if able(Feature.SERVER_CERT_UPDATE):
        changes.append(("another leaf", other_leaf, [SetCertificate]))
    if able(Feature.CA_UPDATE):
        changes.append(("other roots", other_roots, [SetCa]))
    for name, change, expected in changes:
        change(scene)
        applied = there.converge(scene.rendered())
        assert [type(operation) for operation in applied.done] == expected, name
        assert not there.plan(scene.rendered()), name
        assert greeting(scene.port) == "peer", name
