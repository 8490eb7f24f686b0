"""Run-time operations as commands of HAProxy's runtime socket, each answer checked.

Source: HAProxy management.txt section 9.3; answers as measured on 2.6.12 and 2.8.25.
"""

from __future__ import annotations

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities
from hcc.haproxy.control import ApplyError
from hcc.haproxy.plan import (
    AddCaller,
    AddServer,
    DeleteServer,
    EnableListener,
    FreeSlot,
    LiftRateLimit,
    Operation,
    SetCa,
    SetCertificate,
    SetListenerLimit,
    SetProcessLimit,
    SetServerAddress,
    SetServerState,
    SetServerWeight,
    SetTicketKeys,
)
from hcc.haproxy.render_public import caller_arguments
from hcc.haproxy.render_upstream import server_arguments
from hcc.haproxy.replies import parse_session_counts
from hcc.haproxy.runtime import RuntimeSocket
from hcc.haproxy.slots import SPARE_ADDRESS, SPARE_PORT

ADDED = "New server registered."
THERE = "Already exists a server with the same name"
DELETED = "Server deleted."
BUSY = "still has connections"
SUCCESS = "Success!"
KEY_TAKEN = "TLS ticket key updated"


def run(runtime: RuntimeSocket, operations: tuple[Operation, ...], capabilities: Capabilities) -> None:
    """Carry out operations; several only when they are all states, all weights or all new servers.

    Raises:
        ApplyError: HAProxy answered anything but success; the text is in the message.
        ControlError: the socket failed.
    """
    first = operations[0]
    if isinstance(first, SetServerState | SetServerWeight):
        _silently(runtime, operations)
    elif isinstance(first, AddServer | AddCaller):
        _add(runtime, operations, capabilities)
    elif isinstance(first, SetServerAddress):
        _move(runtime, first, first.address, first.port)
    elif isinstance(first, EnableListener):
        _enable(runtime, first)
    elif isinstance(first, SetListenerLimit | SetProcessLimit | LiftRateLimit):
        _quietly(runtime, first, _limit(first))
    elif isinstance(first, SetCertificate):
        _replace(runtime, first, "cert", first.file.name, first.file.pem.reveal())
    elif isinstance(first, SetCa):
        _replace(runtime, first, "ca-file", first.file.name, first.file.pem)
    elif isinstance(first, SetTicketKeys):
        _replace_keys(runtime, first)
    else:
        raise ApplyError(f"not an operation for run time: {first.describe()}", first.describe())


def delete(runtime: RuntimeSocket, operation: DeleteServer) -> bool:
    """Whether a server in maintenance is gone now; False while it still has connections.

    Raises:
        ApplyError: HAProxy refuses for another reason.
    """
    server = _server(operation.backend, operation.server)
    answer = _lines(runtime.send(f"del server {server}"))
    if DELETED in answer or "No such server" in answer:
        return True
    if BUSY in answer:
        return False
    raise _failure(operation, answer)


def busy(runtime: RuntimeSocket, backend: str) -> frozenset[str]:
    """The servers of a backend that have sessions or requests in progress; idle connections do not count."""
    sessions = parse_session_counts(runtime.send(f"show stat {words.name(backend)} 4 -1"))
    return frozenset(name for name, number in sessions.items() if number)


def free(runtime: RuntimeSocket, operation: FreeSlot) -> None:
    """Make a slot in maintenance spare; its new address closes the idle connections to the old one.

    Raises:
        ApplyError: HAProxy refuses.
    """
    _move(runtime, operation, SPARE_ADDRESS, SPARE_PORT)


def _enable(runtime: RuntimeSocket, operation: EnableListener) -> None:
    answer = _lines(runtime.send(f"enable frontend {words.name(operation.listener)}"))
    if answer and "already enabled" not in answer:
        raise _failure(operation, answer)


def _limit(operation: SetListenerLimit | SetProcessLimit | LiftRateLimit) -> str:
    match operation:
        case SetListenerLimit(listener, connections):
            return f"set maxconn frontend {words.name(listener)} {words.number(connections)}"
        case SetProcessLimit(connections):
            return f"set maxconn global {words.number(connections)}"
        case LiftRateLimit(what):
            return f"set rate-limit {words.name(what)} global 0"


def _quietly(runtime: RuntimeSocket, operation: Operation, command: str) -> None:
    answer = _lines(runtime.send(command))
    if answer:
        raise _failure(operation, answer)


def _silently(runtime: RuntimeSocket, operations: tuple[Operation, ...]) -> None:
    answer = _lines(runtime.send(*(command for operation in operations for command in _commands(operation))))
    if not answer:
        return
    if len(operations) == 1:
        raise _failure(operations[0], answer)
    # One by one tells which; to set again what is set already changes nothing.
    for operation in operations:
        _silently(runtime, (operation,))


def _commands(operation: Operation) -> tuple[str, ...]:
    if isinstance(operation, SetServerWeight):
        server, weight = _server(operation.backend, operation.server), words.number(operation.weight)
        return (f"set server {server} weight {weight}",)
    if isinstance(operation, SetServerState):
        server = _server(operation.backend, operation.server)
        if not operation.ready:
            return (f"set server {server} state maint",)
        # Nothing checks it, so that one that somebody marked down would stay so.
        return f"set server {server} state ready", f"set server {server} health up"
    raise ApplyError(f"no silent command for {operation.describe()}", operation.describe())


def _add(runtime: RuntimeSocket, operations: tuple[Operation, ...], capabilities: Capabilities) -> None:
    found = [_addition(operation, capabilities) for operation in operations]
    answer = _lines(runtime.send(*(command for commands in found for command in commands)))
    if answer.splitlines() == [ADDED] * len(operations):
        return
    if len(operations) == 1:
        raise _failure(operations[0], answer)
    # One by one tells which.
    for operation, commands in zip(operations, found, strict=True):
        answer = _lines(runtime.send(*commands))
        if THERE in answer:
            # Of this batch, or somebody else's, perhaps without TLS.
            server = commands[0].split()[2]
            runtime.send(f"set server {server} state maint", f"del server {server}")
            answer = _lines(runtime.send(*commands))
        if answer != ADDED:
            raise _failure(operation, answer)


def _addition(operation: Operation, capabilities: Capabilities) -> tuple[str, ...]:
    if isinstance(operation, AddServer):
        server, ready = _server(operation.backend, operation.server.name), operation.server.enabled
        arguments = server_arguments(operation.server, operation.tls, capabilities)
    elif isinstance(operation, AddCaller):
        server, ready = _server(operation.app.name, operation.caller), True
        arguments = caller_arguments(operation.app)
    else:
        raise ApplyError(f"no server is added by {operation.describe()}", operation.describe())
    # A server that is added starts in maintenance.
    return (f"add server {server} {arguments}", *((f"set server {server} state ready",) if ready else ()))


def _move(runtime: RuntimeSocket, operation: SetServerAddress | FreeSlot, address: str, port: int) -> None:
    where = f"addr {words.ip(address).strip('[]')} port {words.number(port, words.MAX_PORT)}"
    answer = _lines(runtime.send(f"set server {_server(operation.backend, operation.server)} {where}"))
    if "changed from" not in answer and "no need to change" not in answer:
        raise _failure(operation, answer)


def _replace(runtime: RuntimeSocket, operation: SetCa | SetCertificate, kind: str, name: str, pem: str) -> None:
    file = words.path(name)
    answer = _lines(runtime.send_payload(f"set ssl {kind} {file}", pem))
    if "ongoing transaction" in answer:
        # Left by an hcc that was killed between set and commit.
        runtime.send(f"abort ssl {kind} {_quoted(answer) or file}")
        answer = _lines(runtime.send_payload(f"set ssl {kind} {file}", pem))
    if "ransaction created" not in answer and "ransaction updated" not in answer:
        raise _failure(operation, answer)
    answer = _lines(runtime.send(f"commit ssl {kind} {file}"))
    if SUCCESS not in answer:
        runtime.send(f"abort ssl {kind} {file}")
        raise _failure(operation, answer)


def _replace_keys(runtime: RuntimeSocket, operation: SetTicketKeys) -> None:
    """Each takes the place of the oldest, so that none of the old ones is left."""
    file = words.path(operation.file.name)
    for key in operation.file.keys:
        answer = _lines(runtime.send(f"set ssl tls-key {file} {key.reveal()}"))
        if KEY_TAKEN not in answer:
            raise _failure(operation, answer)


def _quoted(answer: str) -> str:
    """The first name in quotes: The ongoing transaction is about 'NAME' but you are trying to set 'OTHER'."""
    return answer.partition("'")[2].partition("'")[0]


def _server(backend: str, server: str) -> str:
    return f"{words.name(backend)}/{words.name(server)}"


def _lines(answer: str) -> str:
    return "\n".join(line.strip() for line in answer.splitlines() if line.strip())


def _failure(operation: Operation, answer: str) -> ApplyError:
    what = operation.describe()
    return ApplyError(f"expected HAProxy to {what}, it answered: {answer[:300] or 'nothing'}", what)
