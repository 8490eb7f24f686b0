"""What HAProxy counts, read from its `show info` and `show stat`: of a frontend, a backend, or a server.

Pure; asking is `hcc.haproxy.stats_reader`'s. Counters start anew with every worker, so after a reload, too. Source:
HAProxy management.txt sections 9.1 (CSV) and 9.3; columns compared on 2.2, 2.6, 3.0 and 3.4.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from hcc.errors import PeerError

_HEADER = "# pxname,"
_CODES = ("1xx", "2xx", "3xx", "4xx", "5xx", "other")


class StatsError(PeerError):
    """HAProxy answered something that is no statistics."""


class RowKind(Enum):
    """What a row is about; the values are HAProxy's."""

    FRONTEND = "0"
    BACKEND = "1"
    SERVER = "2"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `show stat`. What HAProxy does not count for its kind is 0.

    Args:
        proxy: name of the frontend or backend.
        server, address: name of the server and where it is (`10.0.0.1:21000`), empty for the others.
        status: HAProxy's word: `OPEN`, `UP`, `no check`, `MAINT`, ..
        open_sessions: now.
        sessions: in all; for a frontend its connections.
        requests: of http.
        responses: of http, by class of their status code (`2xx`, .., `other`).
        bytes_in, bytes_out: from and to the client.
        denied: connections and requests that our rules refused (frontend).
        connect_errors, response_errors: on the way to servers.
        active_servers: those that get traffic (backend).
        *_average_s: over the last 1024 sessions; None where HAProxy does not measure.
    """

    kind: RowKind
    proxy: str
    server: str
    address: str
    status: str
    open_sessions: int
    sessions: int
    requests: int
    responses: tuple[tuple[str, int], ...]
    bytes_in: int
    bytes_out: int
    denied: int
    connect_errors: int
    response_errors: int
    retries: int
    redispatches: int
    active_servers: int
    connect_average_s: float | None
    response_average_s: float | None


@dataclass(frozen=True, slots=True)
class Process:
    """What `show info` says of the worker; `idle` is the share of time without work, 0 to 1."""

    uptime_s: int
    connections: int
    connections_total: int
    max_connections: int
    idle: float


@dataclass(frozen=True, slots=True)
class Stats:
    """One reading."""

    process: Process
    rows: tuple[Row, ...]


def parse_stats(text: str) -> Stats:
    """The joined answers to `show info` and any number of `show stat`.

    Raises:
        StatsError: there is no `show info` in it, or a number is none.
    """
    info: dict[str, str] = {}
    rows: list[Row] = []
    # One table runs from its header to the next blank line.
    tables: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith(_HEADER):
            inside = True
            tables.append([line[2:]])
        elif not line.strip():
            inside = False
        elif inside:
            tables[-1].append(line)
        else:
            name, separator, value = line.partition(": ")
            if separator:
                info[name] = value
    try:
        for table in tables:
            rows.extend(_row(fields) for fields in csv.DictReader(table))
        return Stats(_process(info), tuple(rows))
    except (KeyError, ValueError, csv.Error) as exc:
        raise StatsError(f"expected statistics of HAProxy, found {text.strip()[:120]!r} ({exc})") from exc


def _process(info: Mapping[str, str]) -> Process:
    return Process(
        uptime_s=int(info["Uptime_sec"]),
        connections=int(info["CurrConns"]),
        connections_total=int(info["CumConns"]),
        max_connections=int(info["Maxconn"]),
        idle=int(info["Idle_pct"]) / 100,
    )


def _row(fields: Mapping[str, str]) -> Row:
    kind = RowKind(fields["type"])

    def number(column: str) -> int:
        return int(fields.get(column) or 0)

    return Row(
        kind=kind,
        proxy=fields["pxname"],
        server=fields["svname"] if kind is RowKind.SERVER else "",
        address=fields.get("addr") or "",
        status=fields["status"],
        open_sessions=number("scur"),
        sessions=number("conn_tot") if kind is RowKind.FRONTEND else number("stot"),
        requests=number("req_tot"),
        responses=tuple((code, number(f"hrsp_{code}")) for code in _CODES),
        bytes_in=number("bin"),
        bytes_out=number("bout"),
        denied=number("dreq") + number("dcon") + number("dses"),
        connect_errors=number("econ"),
        response_errors=number("eresp"),
        retries=number("wretr"),
        redispatches=number("wredis"),
        active_servers=number("act"),
        connect_average_s=_seconds(fields.get("ctime")),
        response_average_s=_seconds(fields.get("rtime")),
    )


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None
