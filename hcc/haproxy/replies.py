"""What HAProxy answers on its sockets and says on its standard error, read into values.

Source: HAProxy management.txt section 9.3 (runtime commands) and 9.4 (master); measured on 2.6.12 and 2.8.25.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address

from hcc.errors import PeerError
from hcc.haproxy.description import structure_told
from hcc.haproxy.model import ActualListener, ActualServers, Listening, Server, TicketKeys
from hcc.mesh.secret import Secret


class ReplyError(PeerError):
    """HAProxy answered something that is not the answer to the question."""


@dataclass(frozen=True, slots=True)
class Info:
    """`show info` of a worker. `structure` is empty when the process does not run a configuration of ours.

    Args:
        max_connections, most_connections: the limit in force, and what it was at the start.
        rate_limits: which are set of how many of something it takes a second, by the runtime socket's words.
    """

    version: str
    pid: int
    structure: str
    uptime_s: int
    stopping: bool
    max_connections: int = 0
    most_connections: int = 0
    rate_limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker in `show proc`."""

    pid: int
    reloads: int
    current: bool


@dataclass(frozen=True, slots=True)
class Processes:
    """`show proc` of the master; `failed` counts failed reloads, where HAProxy tells (2.6 and newer)."""

    reloads: int
    failed: int
    workers: tuple[Worker, ...]

    @property
    def current(self) -> int:
        """The newest worker's process id, 0 when there is none, as on some versions after a failed reload."""
        return next((worker.pid for worker in self.workers if worker.current), 0)

    @property
    def serving(self) -> int:
        """The process id of the worker that serves: the current one, else the youngest of the old; 0 without any."""
        youngest = min(self.workers, key=lambda worker: (not worker.current, worker.reloads), default=None)
        return youngest.pid if youngest else 0


@dataclass(frozen=True, slots=True)
class ReloadAnswer:
    """`reload` of the master: whether it worked (None: HAProxy does not say), and what it logged."""

    success: bool | None
    log: str

    @property
    def busy(self) -> bool:
        """Whether it was not tried, as another reload is under way (3.1 and newer)."""
        return self.success is False and "Another reload is still in progress" in self.log


@dataclass(frozen=True, slots=True)
class Message:
    """An alert of HAProxy; `line` is 0 when it names none."""

    text: str
    line: int = 0

    def __str__(self) -> str:
        """As it is told to a person."""
        return f"line {self.line}: {self.text}" if self.line else self.text


@dataclass(frozen=True, slots=True)
class Activity:
    """Of backends: requests for http, connections for tcp.

    Args:
        now: in progress, or waiting.
        total: since the worker started.
    """

    now: int = 0
    total: int = 0

    def __add__(self, other: Activity) -> Activity:
        return Activity(self.now + other.now, self.total + other.total)


def parse_activity(text: str) -> dict[str, Activity]:
    """By name, of the backends in an answer to `show stat`."""
    found = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        try:
            # Source: management.txt 9.1, the fields pxname, qcur, scur and stot.
            name, _, waiting, _, current, _, _, total, *_ = line.split(",")
            found[name] = Activity(int(waiting or 0) + int(current), int(total))
        except ValueError as exc:
            raise ReplyError(f"expected a line of statistics, found {line[:80]!r}") from exc
    return found


def count_streams(text: str, backend: str) -> int:
    """Of a backend, in the answer to `show sess`; those that wait for a server are counted, too."""
    return sum(f" be={backend} " in line for line in text.splitlines())


_RATE_LIMITS = {"ConnRateLimit": "connections", "SessRateLimit": "sessions", "SslRateLimit": "ssl-sessions"}


def parse_info(text: str) -> Info:
    """The answer to `show info`."""
    fields = dict(line.partition(": ")[::2] for line in text.splitlines() if ": " in line)
    try:
        return Info(
            version=fields["Version"],
            pid=int(fields["Pid"]),
            structure=structure_told(fields.get("description", "")),
            uptime_s=int(fields["Uptime_sec"]),
            stopping=fields.get("Stopping", "0") not in ("", "0"),
            max_connections=int(fields.get("Maxconn", "0")),
            most_connections=int(fields.get("Hard_maxconn", "0")),
            rate_limits=tuple(name for field, name in _RATE_LIMITS.items() if int(fields.get(field, "0"))),
        )
    except (KeyError, ValueError) as exc:
        raise _unexpected("show info", text) from exc


# Bits of srv_admin_state: forced, inherited and resolver maintenance; forced and inherited drain.
# Source: HAProxy include/haproxy/server-t.h, enum srv_admin.
_OUT_OF_SERVICE = 0x01 | 0x02 | 0x20 | 0x08 | 0x10
# srv_op_state: stopped, and soft-stopping. Where nothing checks a server, somebody set that by hand.
_NOT_RUNNING = ("0", "3")
# The bit of srv_check_state by which a check is made. Source: HAProxy include/haproxy/check-t.h, CHK_ST_ENABLED.
_CHECKED = 0x04


def parse_servers(text: str) -> ActualServers:
    """The answer to `show servers state`: servers per backend, sorted; one on a unix socket has no address.

    Source: management.txt, `show servers state`, file format version 1.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    version, columns_line = [*lines[:2], "", ""][:2]
    if version.strip() != "1" or not columns_line.startswith("# "):
        raise _unexpected("show servers state", text)
    try:
        at = [columns_line[2:].split().index(column) for column in _COLUMNS]
        rows = [_row(line.split(), at) for line in lines[2:]]
    except (IndexError, ValueError) as exc:
        raise _unexpected("show servers state", text) from exc
    backends: dict[str, list[Server]] = {}
    for name, server in rows:
        backends.setdefault(name, []).append(server)
    return tuple((name, tuple(sorted(backends[name]))) for name in sorted(backends))


_COLUMNS = (
    *("be_name", "srv_name", "srv_addr", "srv_port", "srv_uweight"),
    *("srv_admin_state", "srv_op_state", "srv_check_state"),
)


def _row(fields: list[str], at: list[int]) -> tuple[str, Server]:
    """A backend's name and its server."""
    backend, name, address, port, weight, state, running, checked = (fields[column] for column in at)
    down_by_hand = running in _NOT_RUNNING and not int(checked) & _CHECKED
    enabled = not int(state) & _OUT_OF_SERVICE and not down_by_hand
    return backend, Server(name, "" if address == "-" else _canonical(address), int(port), int(weight), enabled)


def parse_without_tls(text: str) -> tuple[tuple[str, str], ...]:
    """The answer to `show servers state`: backend and name of each server that is spoken to without TLS.

    None before 2.4, which does not tell, and where nobody can switch it off.
    """
    _, columns, *rows = [line for line in text.splitlines() if line.strip()]
    names = columns.removeprefix("# ").split()
    if _USES_TLS not in names:
        return ()
    backend, server, uses = (names.index(column) for column in ("be_name", "srv_name", _USES_TLS))
    return tuple((row[backend], row[server]) for row in map(str.split, rows) if row[uses] == "0")


_USES_TLS = "srv_use_ssl"


def _canonical(address: str) -> str:
    # Only IPv6 can be written in several ways.
    return str(ip_address(address)) if ":" in address else address


def parse_session_counts(text: str) -> dict[str, int]:
    """The answer to `show stat BACKEND 4 -1`: sessions and requests in progress per server."""
    header, *rows = [line for line in text.splitlines() if line.strip()] or [""]
    columns = header.removeprefix("# ").split(",")
    try:
        name, sessions = columns.index("svname"), columns.index("scur")
        return {fields[name]: int(fields[sessions]) for fields in (row.split(",") for row in rows)}
    except (IndexError, ValueError) as exc:
        raise _unexpected("show stat", text) from exc


_PAUSED, _STOPPED = "PAUSED", "STOP"


def parse_listeners(text: str, *, shut_are_listed: bool) -> tuple[ActualListener, ...]:
    """The answer to `show stat -1 1 -1`: every frontend.

    Args:
        text: the answer.
        shut_are_listed: whether those that were shut are; where not, `STOP` is a paused one.
    """
    header, *rows = [line for line in text.splitlines() if line.strip()] or [""]
    columns = header.removeprefix("# ").split(",")
    shut = Listening.SHUT if shut_are_listed else Listening.PAUSED
    states = {_PAUSED: Listening.PAUSED, _STOPPED: shut}
    try:
        name, status, limit = (columns.index(column) for column in ("pxname", "status", "slim"))
        found = [row.split(",") for row in rows]
        return tuple(
            ActualListener(row[name], states.get(row[status], Listening.OPEN), int(row[limit])) for row in found
        )
    except (IndexError, ValueError) as exc:
        raise _unexpected("show stat", text) from exc


def parse_backends(text: str) -> tuple[str, ...]:
    """The answer to `show backend`: names of all backends, sorted."""
    header, *names = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if header != "# name":
        raise _unexpected("show backend", text)
    return tuple(sorted(names))


_FINGERPRINT = re.compile(r"^SHA1 FingerPrint: ([0-9A-Fa-f]{40})\s*$", re.MULTILINE)


def parse_certificate(text: str) -> str | None:
    """The leaf's SHA-1 in the answer to `show ssl cert NAME`, None when HAProxy has not loaded that name."""
    found = _FINGERPRINT.search(text)
    if found:
        return found[1].upper()
    if "not found" in text.lower() or "Status: Empty" in text:
        return None
    raise _unexpected("show ssl cert", text)


def parse_ca_file(text: str) -> frozenset[str] | None:
    """The SHA-1 of every CA in the answer to `show ssl ca-file NAME`, None when it is not loaded."""
    found = _FINGERPRINT.findall(text)
    if found or text.lstrip().startswith("Filename:"):
        return frozenset(fingerprint.upper() for fingerprint in found)
    if "not found" in text.lower():
        return None
    raise _unexpected("show ssl ca-file", text)


_TICKET_KEY = re.compile(r"^\d+\.\d+ (\S+)$", re.MULTILINE)


def parse_ticket_keys(text: str) -> str:
    """The digest, as of `model.TicketKeys`, of the answer to `show tls-keys NAME`; empty when none are loaded."""
    keys = _TICKET_KEY.findall(text)
    return TicketKeys("", tuple(Secret(key) for key in keys)).digest if keys else ""


_PROC = re.compile(r"^(\d+)\s+(master|worker)\s+(\d+)(?:\s+\[failed: (\d+)\])?.*?(\S+)\s*$", re.MULTILINE)
# Before 2.5 there is one more column, a process's number; of an old worker it is `[was: 1]`.
_NUMBERED_PROC = re.compile(r"^(\d+)\s+(master|worker)\s+(?:\d+|\[was: \d+\])\s+(\d+)().*?(\S+)\s*$", re.MULTILINE)


def parse_processes(text: str) -> Processes:
    """The answer to the master's `show proc`."""
    current, _, old = text.partition("# old workers")
    row = _NUMBERED_PROC if "<relative PID>" in text else _PROC
    listed = row.findall(current)
    for _, kind, reloads, failed, version in listed:
        if kind == "master":
            workers = (*_workers(listed, version), *_workers(row.findall(old)))
            return Processes(int(reloads), int(failed or 0), workers)
    raise _unexpected("show proc", text)


def _workers(rows: list[tuple[str, ...]], version: str = "") -> tuple[Worker, ...]:
    """The workers among these; the current one, if there is one, is of the master's `version`.

    A master that was upgraded in place takes an old worker of another version for a current one as well (2.2 to 2.6).
    """
    workers = [row for row in rows if row[1] == "worker"]
    newest = next((row for row in workers if row[4] == version), workers[0] if workers and version else None)
    return tuple(Worker(int(row[0]), int(row[2]), row is newest) for row in workers)


def parse_reload(text: str) -> ReloadAnswer:
    """The master's answer to `reload`: nothing before 2.7, later `Success=0|1` and the start-up log."""
    first, _, rest = text.strip().partition("\n")
    if not first:
        return ReloadAnswer(None, "")
    if first not in ("Success=1", "Success=0"):
        raise _unexpected("reload", text)
    return ReloadAnswer(first == "Success=1", rest.removeprefix("--").strip())


_ALERT = re.compile(r"^\[ALERT\]\s+(?:\(\d+\)|\S+ \(\d+\))\s*: (?P<text>.*)$")
_LINE = re.compile(r"(?:parsing )?\[[^\]]*:(?P<line>\d+)\](?: \(\d+\))?\s*:\s*")
# What follows each complaint and tells nothing new.
_SUMMARIES = (
    "Error(s) found in configuration file",
    "Fatal errors found in configuration",
    "Some protocols failed",
)


def alerts(text: str) -> tuple[Message, ...]:
    """The alerts in HAProxy's own log, oldest first, without the summaries at the end.

    Each has the line of the configuration file where HAProxy names one: `[ALERT] (1) : config : parsing
    [file:12] : ...`.
    """
    found = []
    for line in text.splitlines():
        match = _ALERT.match(line)
        if match and not any(summary in match["text"] for summary in _SUMMARIES):
            found.append(_message(match["text"]))
    return tuple(found)


def _message(text: str) -> Message:
    text = text.removeprefix("config : ")
    line = 0
    match = _LINE.search(text)
    while match:
        line = int(match["line"])
        text = text[: match.start()] + text[match.end() :]
        match = _LINE.search(text)
    return Message(text.strip(), line)


def _unexpected(command: str, text: str) -> ReplyError:
    return ReplyError(f"expected an answer to `{command}`, found {text.strip()[:120]!r}")
