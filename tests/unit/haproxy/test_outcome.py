from __future__ import annotations

import pytest

from hcc.haproxy.model import (
    ActualListener,
    AppBackend,
    CaFile,
    CertificateFile,
    Listening,
    Mode,
    Server,
    TicketKeys,
    Timeouts,
)
from hcc.haproxy.outcome import outcome
from hcc.haproxy.plan import (
    Actual,
    AddCaller,
    DeleteServer,
    EnableListener,
    FreeSlot,
    RunTimeOperation,
    SetCa,
    SetCertificate,
    SetListenerLimit,
    SetProcessLimit,
    SetServerAddress,
    SetServerState,
    SetServerWeight,
    SetTicketKeys,
)
from hcc.haproxy.slots import SPARE_ADDRESS, SPARE_PORT
from hcc.mesh.secret import Secret

APP = AppBackend("app", Mode.HTTP, "127.0.0.1", 8080, Timeouts(1, 1))
ON_SOCKET = AppBackend("app", Mode.HTTP, "", 0, Timeouts(1, 1), socket="/run/app")
KEYS = TicketKeys("keys", (Secret("a"),))
ONE, TWO = Server("s1", "10.0.0.1", 80, 7), Server("s2", "10.0.0.2", 80, 7)
RUNS = Actual(
    running=True,
    pid=9,
    max_connections=100,
    listeners=(ActualListener("other", Listening.PAUSED, 10), ActualListener("public", Listening.PAUSED, 10)),
    servers=(("app", (Server("app", "127.0.0.1", 8080, 1),)), ("up", (ONE, TWO))),
    certificates=(("leaf", "A"), ("other", "B")),
    ca_files=(("ca", frozenset("A")), ("other", frozenset("B"))),
)


def up(*servers: Server) -> dict[str, object]:
    return {"servers": (RUNS.servers[0], ("up", servers))}


def caller(address: str, port: int) -> dict[str, object]:
    # No weight: nobody gets to a caller's line by balancing.
    line = Server("web:dc1", address, port, 0)
    return {"servers": (("app", (*RUNS.servers[0][1], line)), RUNS.servers[1])}


def public(state: Listening, connections: int) -> dict[str, object]:
    return {"listeners": (RUNS.listeners[0], ActualListener("public", state, connections))}


@pytest.mark.parametrize(
    ("operation", "changed"),
    [
        (SetCa(CaFile("ca", frozenset("C"), "")), {"ca_files": (("ca", frozenset("C")), RUNS.ca_files[1])}),
        (
            SetCertificate(CertificateFile("leaf", "C", Secret("x"))),
            {"certificates": (("leaf", "C"), RUNS.certificates[1])},
        ),
        (SetTicketKeys(KEYS), {"ticket_keys": KEYS.digest, "stored_ticket_keys": KEYS.digest}),
        (SetProcessLimit(50), {"max_connections": 50}),
        (EnableListener("public"), public(Listening.OPEN, 10)),
        (SetListenerLimit("public", 5), public(Listening.PAUSED, 5)),
        (AddCaller(APP, "web:dc1"), caller("127.0.0.1", 8080)),
        (AddCaller(ON_SOCKET, "web:dc1"), caller("", 0)),
        (SetServerAddress("up", "s1", "10.0.0.9", 81), up(Server("s1", "10.0.0.9", 81, 7), TWO)),
        (SetServerWeight("up", "s1", 3), up(Server("s1", "10.0.0.1", 80, 3), TWO)),
        (SetServerState("up", "s1", False), up(Server("s1", "10.0.0.1", 80, 7, enabled=False), TWO)),
        (DeleteServer("up", "s1"), up(TWO)),
        (FreeSlot("up", "s1"), up(Server("s1", SPARE_ADDRESS, SPARE_PORT, 7, enabled=False), TWO)),
    ],
)
def test_an_operation_changes_what_it_is_about_and_nothing_else(
    operation: RunTimeOperation, changed: dict[str, object]
) -> None:
    after = outcome(RUNS, (operation,))

    found = {name: getattr(after, name) for name in Actual.__slots__}
    assert found == {name: getattr(RUNS, name) for name in Actual.__slots__} | changed
