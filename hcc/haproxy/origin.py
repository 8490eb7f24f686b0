"""Which of Consul's words a line of haproxy.cfg comes from, so that who wrote them can be told. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from hcc.haproxy.names import AGENTS, APP, EXPOSED, PUBLIC, TOKEN_AGENT
from hcc.haproxy.owners import Owners
from hcc.mesh.naming import parts
from hcc.mesh.snapshot import Proxy, Snapshot, UpstreamState

# By how a line begins; the longest beginning that fits counts.
_OF_PUBLIC: Mapping[str, str] = {
    "mode": "its protocol: Proxy.Config protocol, service-defaults or proxy-defaults of {service}",
    "bind": "Address and Port, Proxy.Config bind_address and bind_port",
    "timeout client": "Proxy.Config read_timeout",
    "tcp-request connection reject if { fe_conn": "Proxy.Config max_inbound_connections",
    "option forwardfor": "Proxy.Config enable_forwardfor",
}
_OF_APP: Mapping[str, str] = {
    "mode": _OF_PUBLIC["mode"],
    "server": "Proxy.LocalServiceAddress, LocalServicePort, LocalServiceSocketPath; Proxy.Config local_service_address",
    "timeout connect": "Proxy.Config local_connect_timeout_ms",
    "http-request set-header": "Proxy.Config appname_header",
    "http-request del-header": "Proxy.Config appname_header",
    "timeout server": "Proxy.Config read_timeout, local_request_timeout_ms, local_idle_timeout_ms",
}
_OF_HEADERS = "RequestHeaders or ResponseHeaders in the service-router or service-splitter of {service}"
_OF_UPSTREAM: Mapping[str, str] = {
    "mode": "its protocol: Config protocol, service-defaults or proxy-defaults of {service}",
    "bind": "LocalBindAddress and LocalBindPort, LocalBindSocketPath and LocalBindSocketMode",
    "timeout client": "Config read_timeout",
    "timeout server": "Config read_timeout",
    "timeout connect": "Config connect_timeout_ms, or the service-resolver of {service}",
    "tcp-request": "Config limits.max_connections, limits.max_concurrent_requests",
    "http-request return": "Config limits.max_connections, limits.max_concurrent_requests",
    "http-request deny": "Config limits.max_connections, limits.max_concurrent_requests",
    "server": "an instance of {service} in the catalogue",
    "http-request set-var(txn.hcc_way)": "the service-router or service-splitter of {service}",
    "acl": "a route of the service-router of {service}",
    "use_backend": "the service-router or service-splitter of {service}",
    "http-request set-path": "PrefixRewrite in the service-router of {service}",
    "http-request set-timeout": "RequestTimeout in the service-router of {service}",
    "http-request set-header": _OF_HEADERS,
    "http-request add-header": _OF_HEADERS,
    "http-request del-header": _OF_HEADERS,
    "http-response set-header": _OF_HEADERS,
    "http-response add-header": _OF_HEADERS,
    "http-response del-header": _OF_HEADERS,
}
_OF_EXPOSED: Mapping[str, str] = {
    "bind": "ListenerPort of a path in Proxy.Expose",
    "acl": "Path in Proxy.Expose",
    "use_backend": "Path in Proxy.Expose",
    "http-request del-header": "Proxy.Config appname_header",
    "server": "LocalPathPort of a path in Proxy.Expose; Proxy.LocalServiceAddress",
    "timeout client": "Proxy.Config read_timeout",
    "timeout server": _OF_APP["timeout server"],
    "timeout connect": "Proxy.Config local_connect_timeout_ms",
}
_SECTIONS = ("global", "defaults", "frontend", "backend")


def origin(text: str, line: int, snapshot: Snapshot) -> str:
    """What in Consul led to a line, in words; empty when nothing of Consul's stands in it.

    Args:
        text: of haproxy.cfg.
        line: counted from 1.
        snapshot: what it was made of.
    """
    lines = text.splitlines()
    if not 0 < line <= len(lines):
        return ""
    name = next((one.partition(" ")[2] for one in reversed(lines[:line]) if one.startswith(_SECTIONS)), "")
    words = lines[line - 1].strip()
    if name in (PUBLIC, AGENTS, APP, TOKEN_AGENT):
        return _of_proxy(snapshot.proxy, _OF_APP if name == APP else _OF_PUBLIC, words)
    if parts(name)[:1] == (EXPOSED,):
        return _of_proxy(snapshot.proxy, _OF_EXPOSED, words)
    state = Owners(snapshot.upstreams).of(name) if name else None
    return _of_upstream(snapshot.proxy, state, words) if state is not None else ""


def _of_proxy(proxy: Proxy, words_of: Mapping[str, str], words: str) -> str:
    return _phrase(f"the registration of {proxy.id}", words_of, words, proxy.service)


def _of_upstream(proxy: Proxy, state: UpstreamState, words: str) -> str:
    key = state.upstream.key
    return _phrase(f"upstream {key.label()} in the registration of {proxy.id}", _OF_UPSTREAM, words, key.name)


def _phrase(owner: str, words_of: Mapping[str, str], words: str, service: str) -> str:
    fitting = max((start for start in words_of if words.startswith(start)), key=len, default="")
    return f"{owner}, {words_of[fitting].format(service=service)}" if fitting else owner
