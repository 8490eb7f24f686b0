"""What runs once operations succeeded, without asking: from one read-back to the next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter

from hcc.haproxy.model import ActualServers, Listening, Server
from hcc.haproxy.plan import (
    Actual,
    AddCaller,
    AddServer,
    DeleteServer,
    EnableListener,
    FreeSlot,
    LiftRateLimit,
    RunTimeOperation,
    ServerOperation,
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


def outcome(actual: Actual, operations: Iterable[RunTimeOperation]) -> Actual:
    """What runs after these; what they did not touch are the same objects."""
    of_backends: dict[str, list[ServerOperation]] = {}
    for operation in operations:
        match operation:
            case SetCa(file):
                loaded = dict(actual.ca_files) | {file.name: file.fingerprints}
                actual = replace(actual, ca_files=tuple(loaded.items()))
            case SetCertificate(file):
                leaves = dict(actual.certificates) | {file.name: file.fingerprint}
                actual = replace(actual, certificates=tuple(leaves.items()))
            case SetTicketKeys(file):
                actual = replace(actual, ticket_keys=file.digest, stored_ticket_keys=file.digest)
            case SetProcessLimit(connections):
                actual = replace(actual, max_connections=connections)
            case LiftRateLimit(what):
                actual = replace(actual, rate_limits=tuple(one for one in actual.rate_limits if one != what))
            case EnableListener() | SetListenerLimit():
                actual = _listener_changed(actual, operation)
            case AddCaller(app):
                of_backends.setdefault(app.name, []).append(operation)
            case _:
                of_backends.setdefault(operation.backend, []).append(operation)
    return replace(actual, servers=_changed(actual.servers, of_backends)) if of_backends else actual


def _listener_changed(actual: Actual, operation: EnableListener | SetListenerLimit) -> Actual:
    change: dict[str, object] = (
        {"state": Listening.OPEN}
        if isinstance(operation, EnableListener)
        else {"max_connections": operation.connections}
    )
    return replace(
        actual,
        listeners=tuple(
            replace(one, **change) if one.name == operation.listener else one  # type: ignore[arg-type] # as above
            for one in actual.listeners
        ),
    )


def _changed(servers: ActualServers, of_backends: dict[str, list[ServerOperation]]) -> ActualServers:
    return tuple((name, _after(found, of_backends[name]) if name in of_backends else found) for name, found in servers)


def _after(found: tuple[Server, ...], operations: Iterable[ServerOperation]) -> tuple[Server, ...]:
    by_name = {server.name: server for server in found}
    for operation in operations:
        match operation:
            case AddServer(_, server, _):
                by_name[server.name] = server
            case AddCaller(app, caller):
                by_name[caller] = Server(caller, *app.place, 0)
            case DeleteServer(_, name):
                by_name.pop(name, None)
            case _:
                by_name[operation.server] = _server_after(by_name[operation.server], operation)
    return tuple(sorted(by_name.values(), key=attrgetter("name")))


def _server_after(server: Server, operation: SetServerAddress | SetServerWeight | SetServerState | FreeSlot) -> Server:
    match operation:
        case SetServerAddress(_, _, address, port):
            return replace(server, address=address, port=port)
        case SetServerWeight(_, _, weight):
            return replace(server, weight=weight)
        case SetServerState(_, _, ready):
            return replace(server, enabled=ready)
        case FreeSlot():
            return replace(server, address=SPARE_ADDRESS, port=SPARE_PORT, enabled=False)
