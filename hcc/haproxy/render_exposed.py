"""Listeners of paths that anybody may ask for, and the way on to the application. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import AppBackend, ExposedListener, Mode
from hcc.haproxy.render_lines import (
    backend_mode,
    bind_address,
    client_timeout,
    connection_limit,
    frontend_mode,
    kept_alive,
    no_h2,
    timeout_lines,
    watched,
)
from hcc.haproxy.render_public import NO_TUNNEL, app_server, no_h2c_tunnel


def exposed_listener(listener: ExposedListener, capabilities: Capabilities, log: Iterable[str]) -> Iterator[str]:
    """The frontend: a path that is not there word for word is answered as Consul's Envoy does, by 404."""
    # Before 2.2 HAProxy has no such answer.
    status = 404 if capabilities.has(Feature.HTTP_RETURN) else 403
    yield ""
    yield f"frontend {words.name(listener.name)}"
    yield from frontend_mode(Mode.HTTP)
    yield f"  bind {bind_address(listener.bind)}"
    yield from client_timeout(listener.client_timeout_ms)
    yield from watched("cli", capabilities)
    if not any(app.h2 for app in listener.apps):
        yield from no_h2(capabilities)
    yield from connection_limit(listener.max_connections)
    yield from kept_alive()
    yield from log
    yield NO_TUNNEL
    yield from (f"  acl hcc_exposed path -m str {words.quoted(one.path)}" for one in listener.paths)
    yield f"  http-request deny deny_status {status} unless hcc_exposed"
    yield from (f"  http-request del-header {words.header(name)}" for name in listener.unsaid)
    first, *others = listener.apps
    for app in others:
        for one in listener.paths:
            if one.app == app:
                yield f"  use_backend {words.name(app.name)} if {{ path -m str {words.quoted(one.path)} }}"
    yield f"  default_backend {words.name(first.name)}"


def exposed_backend(app: AppBackend, capabilities: Capabilities) -> Iterator[str]:
    """The application at the port that answers exposed paths."""
    yield ""
    yield f"backend {words.name(app.name)}"
    yield from backend_mode(Mode.HTTP)
    yield from timeout_lines(app.timeouts)
    yield from no_h2c_tunnel(capabilities)
    yield app_server(app)
