"""One of HAProxy's maps in the memory of a worker: read and changed by commands. Every function raises ControlError."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hcc.haproxy.control import ControlError
from hcc.haproxy.map_text import MapChange, parse_map, parse_references, payloads
from hcc.haproxy.runtime import NotListeningError, RuntimeSocket

# Room for `add map @N FILE <<` beside the entries.
COMMAND_BYTES = 256
_VERSION_CREATED = "New version created:"
_NOT_LOADED = "Unknown map identifier"
_UNKNOWN_COMMAND = "Unknown command"


class NoTransactionError(ControlError):
    """The worker cannot exchange a map: it is of an older version than its program by now. Nothing was done."""


class _NotLoadedError(ControlError):
    """The worker has not loaded that file."""


def read_map(send: Callable[[str], str], path: str) -> dict[str, str] | None:
    """The entries; None when no worker runs, or one that has not loaded that file."""
    try:
        return loaded_map(send, path)
    except NotListeningError:
        return None


def loaded_map(send: Callable[[str], str], path: str) -> dict[str, str] | None:
    """As `read_map`, of a worker that is there: where it is not that is an error as any other."""
    answer = send(f"show map {path}")
    return None if _NOT_LOADED in answer else parse_map(answer)


def change_map(runtime: RuntimeSocket, path: str, change: MapChange, payload_bytes: int) -> bool:
    """Whether a worker runs that has loaded that file; the change is made then, entry by entry.

    No payload is longer than `payload_bytes`.
    """
    try:
        for payload in payloads(change.added, payload_bytes):
            _silent(runtime.send_payload(f"add map {path}", payload), "add to a map")
        commands = [f"set map {path} {key} {value}" for key, value in change.changed]
        commands += [f"del map {path} {key}" for key in change.removed]
        _silent(runtime.send(*commands), "change a map")
    except (NotListeningError, _NotLoadedError):
        return False
    return True


def swap_map(runtime: RuntimeSocket, path: str, wanted: Mapping[str, str], payload_bytes: int) -> bool:
    """Whether a worker runs that has loaded that file; it has these entries then, all at once. From HAProxy 2.4 on."""
    try:
        answer = runtime.send(f"prepare map {path}")
        _, marker, version = answer.partition(_VERSION_CREATED)
        if _UNKNOWN_COMMAND in answer:
            raise NoTransactionError("expected HAProxy to prepare a map, found one that cannot")
        if not marker or not version.strip().isdigit():
            _silent(answer.strip() or "nothing", "prepare a map")
        at = f"@{version.strip()} {path}"
        for payload in payloads(wanted.items(), payload_bytes):
            _silent(runtime.send_payload(f"add map {at}", payload), "add to a map")
        _silent(runtime.send(f"commit map {at}"), "commit a map")
    except (NotListeningError, _NotLoadedError):
        return False
    return True


def refill_map(runtime: RuntimeSocket, path: str, wanted: Mapping[str, str], payload_bytes: int) -> bool:
    """As `swap_map`, before HAProxy 2.4: what is new comes last, then goes what is not wanted.

    Keys may be anything: on a command line HAProxy reads escapes and ends of commands in them, so they are named by
    reference.
    """
    try:
        answer = runtime.send(f"show map {path}")
        _silent(answer if _NOT_LOADED in answer else "", "show a map")
        found = parse_references(answer)
        there = {entry.partition(" ")[0] for entry in found.values()}
        new = tuple(item for item in wanted.items() if item[0] not in there)
        for payload in payloads(new, payload_bytes):
            _silent(runtime.send_payload(f"add map {path}", payload), "add to a map")
        # The last first: without a rule, what stood after it would say what it must not.
        old = [reference for reference, entry in reversed(found.items()) if entry.partition(" ")[0] not in wanted]
        commands = [f"del map {path} {reference}" for reference in old]
        commands += [
            f"set map {path} {reference} {wanted[key]}"
            for reference, (key, _, value) in ((each, entry.partition(" ")) for each, entry in found.items())
            if wanted.get(key, value) != value
        ]
        _silent(runtime.send(*commands), "change a map")
    except (NotListeningError, _NotLoadedError):
        return False
    return True


def _silent(answer: str, what: str) -> None:
    """Nothing, when HAProxy said nothing."""
    if _NOT_LOADED in answer:
        raise _NotLoadedError(f"expected HAProxy to {what} that it has not loaded")
    # Nothing is there to be removed: as wanted.
    said = answer.replace("Key not found.", "").strip()
    if said:
        raise ControlError(f"expected HAProxy to {what}, it answered: {said[:200]}")
