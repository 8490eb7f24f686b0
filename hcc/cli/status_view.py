"""A status as people read it on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hcc.actors.lifecycle import ActorState
from hcc.actors.status import EndpointStatus, IdentityState, ServerState, Status, UpstreamStatus
from hcc.cli.terminal import Cell, Row, styled, table

MAX_ENDPOINTS = 20
MAX_WATCHES = 20
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_GOOD, _BAD, _SO_SO, _QUIET = "green", "bold red", "yellow", "dim"
_STATE_STYLES = {ServerState.UP: _GOOD, ServerState.DOWN: _BAD, ServerState.ABSENT: _SO_SO}
_SOON_S = 12 * _HOUR_S


def view(status: Status) -> Group:
    """All of it, a heading for each part; parts with nothing in them are left out."""
    return Group(*_head(status), *(part for made in _parts(status) for part in (Text(), made)))


def duration(seconds: float) -> str:
    """A time span in its two largest units: `3d 4h`, `5m 7s`, `400ms`."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m {whole % _MINUTE_S}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h {whole % _HOUR_S // _MINUTE_S}m"
    return f"{whole // _DAY_S}d {whole % _DAY_S // _HOUR_S}h"


def _head(status: Status) -> Iterator[Text]:
    sidecar, versions, ready = status.sidecar, status.versions, status.readiness
    state = Text("ready", style=_GOOD) if ready.ready else Text("not ready", style=_BAD)
    yield styled(sidecar.proxy_id, "bold") + Text("  ") + state
    service = f"service {sidecar.service or '-'}" + (f" ({sidecar.service_id})" if sidecar.service_id else "")
    where = f", {sidecar.protocol} on {sidecar.listens}" if sidecar.listens else ""
    place = f" in {sidecar.datacenter}" if sidecar.datacenter else ""
    yield styled(f"{service}{place}{where}, up {duration(status.at - sidecar.started_at)}, process {sidecar.pid}")
    consul = f", Consul {versions.consul}" if versions.consul else ""
    yield Text(
        f"hcc {versions.hcc}, HAProxy {versions.haproxy} ({versions.openssl}), {versions.control}{consul}", style=_QUIET
    )
    yield _haproxy(status)
    if sidecar.exposed:
        yield styled(f"exposed  {', '.join(sidecar.exposed)}")
    for text in ready.missing:
        yield styled(f"missing  {text}", _BAD)
    for text in ready.warnings:
        yield styled(f"warning  {text}", _SO_SO)


def _haproxy(status: Status) -> Text:
    haproxy = status.haproxy
    if not haproxy.running:
        return styled(f"HAProxy does not run {haproxy.problem}".rstrip(), _BAD)
    if haproxy.problem:
        return styled(f"HAProxy runs, but: {haproxy.problem}", _SO_SO)
    uptime = duration(haproxy.uptime_s) if haproxy.uptime_s is not None else "?"
    connections = f"{_number(haproxy.connections)} of {_number(haproxy.max_connections)} connections"
    return Text(f"HAProxy process {haproxy.pid}, worker up {uptime}, {connections}")


def _parts(status: Status) -> Iterator[Table]:
    columns = ("UPSTREAM", "LISTENS", "STATE", "HEALTH", "WEIGHT", "SESSIONS", "CHANGED")
    upstreams = [row for one in status.upstreams for row in _upstream(one, status.at)]
    made = (
        (columns, upstreams),
        (("CALLER", "VERDICT", "REASON", "SESSIONS", "DENIALS", "LAST DENIAL"), list(_callers(status))),
        (("CERTIFICATE", "NAME", "LEFT", "UNTIL"), list(_certificates(status))),
        (("WATCH", "AGE", "STATE"), list(_watches(status))),
        (("ACTOR", "STATE", "RESTARTS", "MAILBOX", "UP", "LAST ERROR"), list(_actors(status))),
        (("PLAN", "TOOK", "OUTCOME", "WHY", "DONE"), list(_plans(status))),
    )
    for names, rows in made:
        if rows:
            yield table(names, rows)


def _upstream(upstream: UpstreamStatus, now: float) -> Iterator[Row]:
    up = sum(one.state is ServerState.UP for one in upstream.endpoints)
    standby = sum(one.standby for one in upstream.endpoints)
    total = len(upstream.endpoints)
    tried = total - standby
    text = f"{up} of {tried} up" + (f", {standby} standby" if standby else "")
    state = Cell(text, _GOOD if up == tried > 0 else _SO_SO if up else _BAD)
    if not upstream.known:
        state = Cell("not known yet", _SO_SO)
    elif not total:
        state = Cell("no instances", _BAD)
    name = upstream.name + (f" ({upstream.protocol})" if upstream.protocol else "")
    yield Cell(name, "bold"), upstream.listens, state, "", "", _number(upstream.sessions), ""
    # What does not get traffic is what one looks for.
    ordered = sorted(upstream.endpoints, key=lambda one: (one.standby, one.state is ServerState.UP))
    for one in ordered[:MAX_ENDPOINTS]:
        yield _endpoint(one, now)
    if total > MAX_ENDPOINTS:
        yield Cell(f"  and {total - MAX_ENDPOINTS} more (--json shows all)", _QUIET), "", "", "", "", "", ""


def _endpoint(one: EndpointStatus, now: float) -> Row:
    host = f"[{one.address}]" if ":" in one.address else one.address
    # Why an endpoint that Consul likes gets no traffic.
    unseen = f", {one.identity.value}" if one.identity in (IdentityState.REFUSED, IdentityState.WAITING) else ""
    unseen = unseen or (", silent" if one.silence else "")
    state = "standby" if one.standby else one.state.value
    return (
        f"  {host}:{one.port}" + (f" ({one.leg})" if one.leg else ""),
        "",
        Cell(state + unseen, _BAD if unseen else _QUIET if one.standby else _STATE_STYLES.get(one.state, _SO_SO)),
        Cell(one.health, _GOOD if one.health == "passing" else _SO_SO if one.health == "warning" else _BAD),
        str(one.weight),
        _number(one.sessions),
        _ago(one.changed_at, now),
    )


def _callers(status: Status) -> Iterator[Row]:
    for one in status.callers:
        verdict = Cell(one.verdict, _GOOD if one.verdict == "allow" else _BAD)
        denied = _ago(one.denied_at, status.at)
        yield one.service, verdict, one.reason, _number(one.sessions), str(one.denials), denied


def _certificates(status: Status) -> Iterator[Row]:
    for one in status.certificates:
        style = _BAD if one.seconds_left <= 0 else _SO_SO if one.seconds_left < _SOON_S else _GOOD
        yield one.kind, one.name, Cell(duration(one.seconds_left), style), _date(one.not_after)


def _watches(status: Status) -> Iterator[Row]:
    ordered = sorted(status.watches, key=lambda one: one.failing_since is None)
    for one in ordered[:MAX_WATCHES]:
        if one.failing_since is not None:
            state = Cell(f"failing for {duration(status.at - one.failing_since)}: {one.problem}", _BAD)
        else:
            state = Cell("answered", _GOOD) if one.answered else Cell("waiting for the first answer", _SO_SO)
        yield one.name, duration(one.age_s), state
    if len(ordered) > MAX_WATCHES:
        yield Cell(f"and {len(ordered) - MAX_WATCHES} more (--json shows all)", _QUIET), "", ""


def _actors(status: Status) -> Iterator[Row]:
    parents = {one.name: one.parent for one in status.actors}
    for one in status.actors:
        depth, parent = 0, one.parent
        while parent:
            depth, parent = depth + 1, parents.get(parent)
        state = Cell(one.state.value, _GOOD if one.state is ActorState.RUNNING else _BAD)
        restarts = Cell(str(one.restarts), _SO_SO if one.restarts else "")
        error = Cell(one.last_error or "-", "" if one.last_error else _QUIET)
        yield "  " * depth + one.name, state, restarts, str(one.mailbox_depth), duration(one.uptime_s), error


def _plans(status: Status) -> Iterator[Row]:
    for one in status.plans[:5]:
        outcome = Cell(one.outcome, _GOOD if one.outcome == "applied" else _BAD)
        count = one.operation_count
        done = f"{count} operation{'' if count == 1 else 's'}" + (", reloaded" if one.reloaded else "")
        why = ("drift: " if one.drift else "") + "; ".join(one.reasons)
        yield _ago(one.at, status.at), duration(one.took_s), outcome, why, one.failure or done


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _ago(moment: float | None, now: float) -> str:
    return "-" if moment is None else f"{duration(max(0.0, now - moment))} ago"


def _date(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
