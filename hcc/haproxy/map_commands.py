"""One of HAProxy's maps in the memory of a worker: read and changed by commands. Every function raises ControlError."""

from __future__ import annotations

from collections.abc import Callable

from hcc.haproxy.control import ControlError
from hcc.haproxy.map_text import MapChange, parse_map, payloads
from hcc.haproxy.runtime import NotListeningError, RuntimeSocket

# Room for `add map @N FILE <<` beside the entries.
COMMAND_BYTES = 256
# Commands joined into one line; each takes less than 300 bytes.
JOINED = 40
_NOT_LOADED = "Unknown map identifier"


def read_map(send: Callable[[str], str], path: str) -> dict[str, str] | None:
    """The entries; None when no worker runs, or one that has not loaded that file."""
    try:
        answer = send(f"show map {path}")
    except NotListeningError:
        return None
    return None if _NOT_LOADED in answer else parse_map(answer)


def map_loaded(send: Callable[[str], str], path: str) -> bool:
    """Whether a worker runs that has loaded that file."""
    try:
        return _NOT_LOADED not in send(f"get map {path} none")
    except NotListeningError:
        return False


def change_map(runtime: RuntimeSocket, path: str, change: MapChange, payload_bytes: int) -> None:
    """Make the change, entry by entry; no payload is longer than this."""
    for payload in payloads(change.added, payload_bytes):
        silent(runtime.send_payload(f"add map {path}", payload), "add to a map")
    commands = [f"set map {path} {key} {value}" for key, value in change.changed]
    commands += [f"del map {path} {key}" for key in change.removed]
    for start in range(0, len(commands), JOINED):
        silent(runtime.send(*commands[start : start + JOINED]), "change a map")


def silent(answer: str, what: str) -> None:
    """Nothing, when HAProxy said nothing."""
    # Nothing is there to be removed: as wanted.
    said = answer.replace("Key not found.", "").strip()
    if said:
        raise ControlError(f"expected HAProxy to {what}, it answered: {said[:200]}")
