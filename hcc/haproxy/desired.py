"""What HAProxy should do for one proxy, decided from all that Consul said of it.

Nothing here is left out silently: what cannot be served, or not as asked, comes back as a `Problem` for
people. Leaves to others: the words of the file (`hcc.haproxy.render`), servers' weights and names
(`hcc.haproxy.servers`). Source of the rules: reference/consul.md sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hcc.haproxy.desired_public import (
    app_backend,
    authorisation,
    exposed_listeners,
    public_listener,
    taken_first,
    ticket_keys,
)
from hcc.haproxy.desired_terms import Certificates, Options, Problem
from hcc.haproxy.desired_upstreams import Part, upstream_parts
from hcc.haproxy.model import AppBackend, Backend, Desired, ExposedListener, PublicListener, UpstreamListener
from hcc.haproxy.room import Entry, Room, entry, room
from hcc.haproxy.sight import Sight
from hcc.mesh.peer_book import UNVETTED, Vetted
from hcc.mesh.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Result:
    """The wanted configuration, and what in it falls short."""

    desired: Desired
    problems: tuple[Problem, ...]


def desired(
    snapshot: Snapshot,
    options: Options,
    certificates: Certificates,
    callers: tuple[str, ...] = (),
    vetted: Vetted = UNVETTED,
    sight: Sight | None = None,
) -> Result:
    """The configuration that serves a snapshot as far as it can be served now.

    Args:
        snapshot: what Consul said.
        options: what the operator chose.
        certificates: what has been checked and written.
        callers: names of the services that were let in, and are remembered.
        vetted: which endpoints may get traffic.
        sight: what the snapshot's policy looks at in a request; None to find that out here.

    The public listener is there once leaf, roots and (with intentions) policy are; an upstream's once its
    chain is.
    """
    problems: list[Problem] = []
    public = public_listener(snapshot, options, certificates, problems)
    taken = taken_first(snapshot.proxy)
    parts = upstream_parts(snapshot, options, certificates, vetted, taken, problems)
    exposed = tuple(exposed_listeners(snapshot.proxy, taken, problems))
    app = app_backend(snapshot.proxy, callers) if public else None
    found = _room(options, app, parts, exposed)
    process = replace(options.process, max_connections=found.connections, max_requests=found.requests)
    share = entry(found.connections, len(parts), len(exposed))
    wanted = Desired(
        options=process,
        public=_bounded_public(public, found, share, problems) if public else None,
        app=_bounded(app, options, found) if app else None,
        upstreams=tuple(_bounded_upstream(part, found, problems) for part in parts),
        exposed=tuple(_bounded_exposed(one, options, found, share) for one in exposed),
        backends=tuple(_unless_awaited(backend, probing=vetted.probing) for part in parts for backend in part.backends),
        authorisation=authorisation(public, options, snapshot.policy, sight),
        certificates=(certificates.leaf,) if certificates.leaf else (),
        ca_files=(certificates.ca,) if certificates.ca else (),
        ticket_keys=ticket_keys(options, certificates) if public else None,
    )
    return Result(wanted, tuple(problems))


def _room(options: Options, app: AppBackend | None, parts: Sequence[Part], exposed: Sequence[ExposedListener]) -> Room:
    """What there is for each who is reached over HTTP/2, where every request has a connection of its own."""
    paths = {one.name for listener in exposed for one in listener.apps if one.h2}
    asked = sum(part.requests for part in parts) + len(paths) * _most_of_one(options)
    if app and app.h2:
        asked += 2 * _most_of_one(options)
    return room(options.descriptors, len(parts) + len(exposed), options.process.max_connections, asked)


def _most_of_one(options: Options) -> int:
    """Requests that one caller may have in progress at an http2 application."""
    return options.process.max_connections // 2


def _bounded(app: AppBackend, options: Options, found: Room) -> AppBackend:
    """The application, of whose connections no caller gets more than half, nor all together those of others."""
    if not app.h2:
        return app
    most = found.share(_most_of_one(options))
    return replace(app, most_connections=most, most_together=2 * most)


def _bounded_public(public: PublicListener, found: Room, share: Entry, problems: list[Problem]) -> PublicListener:
    """The public listener with the limit of its registration, or where that is more or none, with its share."""
    registered = public.max_connections
    limit = min((most for most in (registered, share.public) if most), default=0)
    if limit < registered:
        text = (
            f"max_inbound_connections is {limit}, not {registered}: HAProxy takes {found.connections} connections,"
            " and keeps some for upstreams and exposed paths"
        )
        problems.append(Problem("public listener", text))
    return replace(public, max_connections=limit, crowded_at=(limit or found.connections) // 2)


def _bounded_exposed(listener: ExposedListener, options: Options, found: Room, share: Entry) -> ExposedListener:
    most = found.share(_most_of_one(options)) if any(one.h2 for one in listener.apps) else 0
    bounded = (
        replace(path, app=replace(path.app, most_connections=most)) if path.app.h2 else path for path in listener.paths
    )
    return replace(listener, paths=tuple(bounded), max_connections=share.exposed)


def _bounded_upstream(part: Part, found: Room, problems: list[Problem]) -> UpstreamListener:
    """The listener with its share of requests over HTTP/2, so that nobody else is held up by instances that hang."""
    if not part.requests:
        return part.listener
    limit = found.share(part.requests)
    if limit < part.registered:
        text = f"limits.max_concurrent_requests is {limit}, as HAProxy may have no more file descriptors"
        problems.append(Problem(f"upstream {part.listener.label}", text))
    return replace(part.listener, limit=limit)


def _unless_awaited(backend: Backend, *, probing: bool) -> Backend:
    """The same; with nobody in service while probes are under way, it is not known yet who is to serve."""
    awaited = probing and bool(backend.servers) and not any(server.enabled for server in backend.servers)
    return replace(backend, known=backend.known and not awaited)
