"""Whether an address can be listened on: tried for real, before HAProxy is reloaded with it.

A reload that cannot bind costs seconds of refused connections on all listeners (reference/tools.md,
surprises).
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from hcc.haproxy.control import Taken
from hcc.haproxy.files import is_below
from hcc.haproxy.model import Bind, TcpBind, UnixBind

_LISTEN = "0A"
_ANY = "::"
_CAP_NET_BIND_SERVICE = 1 << 10

Listener = tuple[IPv4Address | IPv6Address, int, int]
"""Address, port and inode."""


def taken_binds(binds: Iterable[Bind], owners: Iterable[int], private: str = "") -> tuple[Taken, ...]:
    """Those of `binds` that cannot be bound; what the processes `owners` listen on counts as free.

    Empty when there are owners but it cannot be seen what they listen on: it may be all of it. Paths must not lead into
    the directory `private`, where our own files and sockets are.
    """
    processes = tuple(owners)
    ours = frozenset(inode for pid in processes for inode in _socket_inodes(pid))
    if processes and not ours:
        return ()
    # Once for all, and only when a port is held: the kernel lists every connection of the machine, not only listeners.
    listeners = cache(lambda: tuple(_tcp_listeners()))
    reserved_below = _reserved_below(processes)

    def reason(bind: Bind) -> str:
        if isinstance(bind, UnixBind):
            return _unix_reason(bind, ours, private)
        return _tcp_reason(bind, ours, listeners, reserved_below)

    return tuple(Taken(bind, why) for bind in binds if (why := reason(bind)))


def _reserved_below(owners: tuple[int, ...]) -> int:
    """The lowest port that the processes may listen on without the capability that they lack; 0 where they lack none.

    They have the rights with which HAProxy was started, maybe by an earlier hcc that had less of them than we have.
    Source: proc(5), CapEff; capabilities(7); ip(7), ip_unprivileged_port_start, which Linux has from 4.11 on.
    """
    words = (line.split() for pid in owners for line in _lines(f"/proc/{pid}/status"))
    effective = [int(row[1], 16) for row in words if row and row[0] == "CapEff:"]
    if not effective or any(rights & _CAP_NET_BIND_SERVICE for rights in effective):
        return 0
    return int(next(iter(_lines("/proc/sys/net/ipv4/ip_unprivileged_port_start")), "1024"))


def _tcp_reason(
    bind: TcpBind, ours: frozenset[int], listeners: Callable[[], tuple[Listener, ...]], reserved_below: int
) -> str:
    family = socket.AF_INET6 if ":" in bind.address else socket.AF_INET
    try:
        trial = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        if exc.errno != errno.EAFNOSUPPORT:
            # Such as a lack of descriptors on our side, which says nothing of the address.
            raise
        return exc.strerror or str(exc)
    with trial:
        # Not SO_REUSEPORT, which HAProxy uses: it would share the port with another sidecar's HAProxy.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Nor IPV6_V6ONLY: what `::` takes of IPv4 is left to the system, as HAProxy leaves it.
        try:
            trial.bind((bind.address, bind.port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE and _all_ours(bind, ours, listeners()):
                return ""
            return exc.strerror or str(exc)
    # Free, as far as we may have it.
    return "HAProxy was started without CAP_NET_BIND_SERVICE" if bind.port < reserved_below else ""


def _all_ours(bind: TcpBind, ours: frozenset[int], listeners: tuple[Listener, ...]) -> bool:
    holders = [inode for address, port, inode in listeners if bind.clashes(TcpBind(str(address), port))]
    if not holders:
        # Of the other family: one of the two is `::`, which then takes IPv4, too.
        alike = ((str(address), inode) for address, port, inode in listeners if port == bind.port)
        holders = [inode for address, inode in alike if _ANY in (address, bind.address)]
    return bool(holders) and all(inode in ours for inode in holders)


def _unix_reason(bind: UnixBind, ours: frozenset[int], private: str) -> str:
    directory = str(Path(bind.path).parent)
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"the directory {directory} is missing or cannot be written"
    if private and is_below(directory, private):
        return f"{private} is for files of hcc alone"
    try:
        mode = Path(bind.path).lstat().st_mode
    except OSError:
        return ""
    if not stat.S_ISSOCK(mode):
        # HAProxy would put its socket in the place of whatever is there.
        return f"{bind.path} is there and no socket"
    return "" if _unix_listeners(bind.path) & ours else _strangers_reason(bind)


def _strangers_reason(bind: UnixBind) -> str:
    """Of a socket that is there, and not ours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(1.0)
        try:
            trial.connect(bind.path)
        except ConnectionRefusedError:
            return ""  # a socket that a dead process left; HAProxy replaces it
        except OSError as exc:
            return str(exc)
    return f"another process listens on {bind.path}"


def _socket_inodes(pid: int) -> Iterator[int]:
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for link in links:
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])


def _tcp_listeners() -> Iterator[Listener]:
    """Every listening TCP socket. Source: proc(5), /proc/net/tcp."""
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in _lines(table)[1:]:
            words = line.split()
            if words[3] == _LISTEN:
                address, _, port = words[1].partition(":")
                yield _address(address), int(port, 16), int(words[9])


def _address(text: str) -> IPv4Address | IPv6Address:
    # The kernel prints 32-bit words in the machine's byte order.
    groups = (text[at : at + 8] for at in range(0, len(text), 8))
    packed = b"".join(int(group, 16).to_bytes(4, "little") for group in groups)
    return ip_address(packed)


def _unix_listeners(path: str) -> set[int]:
    # HAProxy binds `PATH.PID.tmp` and renames it; the kernel goes on telling that.
    name = re.compile(rf"{re.escape(path)}(\.\d+\.tmp)?")
    rows = (line.split(maxsplit=7) for line in _lines("/proc/self/net/unix")[1:])
    return {int(row[6]) for row in rows if len(row) > 7 and name.fullmatch(row[7])}  # noqa: PLR2004 - path column


def _lines(table: str) -> list[str]:
    try:
        return Path(table).read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
