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
_NUMBERS = (
    "scur", "stot", "conn_tot", "req_tot", "bin", "bout", "dreq", "dcon", "dses",
    "dresp", "econ", "eresp", "cli_abrt", "wretr", "wredis", "act",
)  # fmt: skip
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
        http: whether requests and responses are counted.
        open_sessions: now.
        sessions: in all; for a frontend its connections.
        requests: of http.
        responses: of http, by class of their status code (`2xx`, .., `other`).
        bytes_in, bytes_out: from and to the client.
        denied: connections and requests that our rules refused (frontend).
        denied_responses: answers that our rules did not let through.
        failed_handshakes: of TLS, with clients or servers; None where HAProxy does not count (2.2).
        connect_errors, response_errors: on the way to servers.
        client_aborts: clients that gave up; of http not all, the others are among the `responses` as `other`.
        active_servers: those that get traffic (backend).
        *_average_s: over the last 1024 sessions; None where HAProxy does not measure.
    """

    kind: RowKind
    proxy: str
    server: str
    address: str
    status: str
    http: bool
    open_sessions: int
    sessions: int
    requests: int
    responses: tuple[tuple[str, int], ...]
    bytes_in: int
    bytes_out: int
    denied: int
    denied_responses: int
    failed_handshakes: int | None
    connect_errors: int
    response_errors: int
    client_aborts: int
    retries: int
    redispatches: int
    active_servers: int
    connect_average_s: float | None
    response_average_s: float | None

    @property
    def failures(self) -> int:
        """How often a server of a backend could not be reached, or a request to one ended without an answer.

        Some count more than once. Of tcp, a client that gave up may have had all that it wanted.
        """
        if not self.http:
            return self._unreached
        # By version and moment, a client that gives up is an abort (and a 4xx), or `other`, or both; if HAProxy does,
        # that is an error of the server.
        return self._unreached + self.client_aborts + self.response_errors + dict(self.responses).get("other", 0)

    @property
    def unanswered(self) -> int:
        """How often a server was not reached, or did not answer before the client gave up.

        Requests whose answer is under way are missing: of http it may fall by those. Of tcp, HAProxy counts no client
        that gave up.
        """
        if not self.http:
            return self._unreached
        # A server's 1xx are above all interim answers (100, 103), which another one follows. One with 101, that is few
        # and goes on, counts as unanswered in the end.
        answered = sum(number for code, number in self.responses if code != "1xx")
        return self.sessions - self.open_sessions - answered

    @property
    def _unreached(self) -> int:
        # It was tried again, another one was, or the request failed.
        return self.retries + self.redispatches + self.connect_errors

    @property
    def serves(self) -> bool:
        """Whether a server gets traffic; `UP 1/3` is on its way down, and still does."""
        return self.status == "no check" or self.status.partition(" ")[0] in ("UP", "OPEN")


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
    table: _Table | None = None
    try:
        for line in text.splitlines():
            # A table runs from its header to the next blank line.
            if line.startswith(_HEADER):
                table = _Table(line[2:])
            elif not line.strip():
                table = None
            elif table is not None:
                rows.append(table.row(line))
            else:
                name, _, value = line.partition(": ")
                info[name] = value
        return Stats(_process(info), tuple(rows))
    except (KeyError, IndexError, ValueError, csv.Error) as exc:
        raise StatsError(f"expected statistics of HAProxy, found {text.strip()[:120]!r} ({exc})") from exc


def _process(info: Mapping[str, str]) -> Process:
    return Process(
        uptime_s=int(info["Uptime_sec"]),
        connections=int(info["CurrConns"]),
        connections_total=int(info["CumConns"]),
        max_connections=int(info["Maxconn"]),
        idle=int(info["Idle_pct"]) / 100,
    )


class _Table:
    """Rows below one header: columns are found by name, once, as there may be 10,000 rows of 100 columns."""

    def __init__(self, header: str) -> None:
        at = {name: place for place, name in enumerate(header.split(","))}
        # A version that lacks a column has nothing there: the place after the last.
        lacking = len(at)
        self._names = [at[name] for name in ("type", "pxname", "svname", "status")]
        self._address, self._mode = at.get("addr", lacking), at.get("mode", lacking)
        self._handshakes = at.get("ssl_failed_handshake", lacking)
        self._numbers = [at.get(name, lacking) for name in _NUMBERS]
        self._responses = [(code, at.get(f"hrsp_{code}", lacking)) for code in _CODES]
        self._averages = [at.get(name, lacking) for name in ("ctime", "rtime")]

    def row(self, line: str) -> Row:
        """One row. A name cannot hold what CSV would have to quote, but a check's last words can."""
        fields = next(csv.reader((line,))) if '"' in line else line.split(",")
        fields.append("")
        type_, proxy, server, status = (fields[place] for place in self._names)
        kind = RowKind(type_)
        numbers = dict(zip(_NUMBERS, (int(fields[place] or 0) for place in self._numbers), strict=True))
        connect_s, response_s = (_seconds(fields[place]) for place in self._averages)
        return Row(
            kind=kind,
            proxy=proxy,
            server=server if kind is RowKind.SERVER else "",
            address=fields[self._address],
            status=status,
            http=fields[self._mode] == "http",
            open_sessions=numbers["scur"],
            sessions=numbers["conn_tot" if kind is RowKind.FRONTEND else "stot"],
            requests=numbers["req_tot"],
            responses=tuple((code, int(fields[place] or 0)) for code, place in self._responses),
            bytes_in=numbers["bin"],
            bytes_out=numbers["bout"],
            denied=numbers["dreq"] + numbers["dcon"] + numbers["dses"],
            denied_responses=numbers["dresp"],
            failed_handshakes=int(failed) if (failed := fields[self._handshakes]) else None,
            connect_errors=numbers["econ"],
            response_errors=numbers["eresp"],
            client_aborts=numbers["cli_abrt"],
            retries=numbers["wretr"],
            redispatches=numbers["wredis"],
            active_servers=numbers["act"],
            connect_average_s=connect_s,
            response_average_s=response_s,
        )


def _seconds(milliseconds: str) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None
