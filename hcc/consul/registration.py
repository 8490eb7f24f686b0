"""The sidecar's own registration from Consul's JSON, defaults filled in.

Source: GET /v1/agent/service/:id; reference/consul.md section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hcc.consul.answers import ChainOverride, Registration
from hcc.consul.conditions import is_writable
from hcc.consul.fields import Fields, fields
from hcc.consul.options import MAX_TIMEOUT_MS, Options, is_host, is_ip
from hcc.mesh.identity import DEFAULT_PARTITION
from hcc.mesh.snapshot import ExposedPath, Protocol, Proxy, Upstream, UpstreamKey, UpstreamType
from hcc.settings import MAX_PORT

_LOCAL = "127.0.0.1"
_ANY = "0.0.0.0"  # noqa: S104 - Consul's own default for a sidecar's public listener
_DEFAULT_CONNECT_TIMEOUT_MS = 5_000
_DEFAULT_POLL_INTERVAL_MS = 30_000
_MIN_POLL_INTERVAL_MS = 100
_GATEWAY_MODES = ("none", "local", "remote")
_FOR_ENVOY, _NOT_SERVED = "for Envoy only", "not served"
# What Envoy waits for a stream by itself, and what takes the place of no limit: HAProxy has none.
_IDLE_TIMEOUT_MS, _NO_TIMEOUT_MS = 300_000, 86_400_000
# Keys of Consul's that its own proxies follow, and by which calls end otherwise than they do here.
_UNSERVED = ("max_request_headers_kb",)
_UNSERVED_OF_UPSTREAMS = ("passive_health_check",)
_UNSERVED_LIMITS = ("max_pending_requests",)
# What an upstream's Config may also spell as service-defaults do (`ConnectTimeoutMs`); agents merge these in so.
# Source: hashicorp/consul agent/structs/config_entry.go (1.20.1), ParseUpstreamConfigNoDefaults and the aliases.
_SPELLED_TWICE = ("connect_timeout_ms", "envoy_cluster_json", "envoy_listener_json", *_UNSERVED_OF_UPSTREAMS)
_LIMITS = ("max_connections", "max_concurrent_requests", *_UNSERVED_LIMITS)
_EXPOSED_PROTOCOLS = (Protocol.HTTP.value, Protocol.HTTP2.value)


def registration(data: object) -> Registration:
    """The registration of a connect-proxy. What in it cannot be used is in `Proxy.warnings`.

    Raises:
        ConsulAnswerError: another shape, or the service is no connect-proxy.
    """
    service = fields(data, "")
    if service.text("Kind") != "connect-proxy":
        raise service.error("Kind", "connect-proxy (give the ID of a sidecar, not of its service)")
    proxy = service.child("Proxy")
    options = Options(proxy.child("Config").values)
    upstreams: list[tuple[Upstream, ChainOverride]] = []
    for item in proxy.children("Upstreams"):
        decoded = _upstream(item, options, proxy.child("MeshGateway").text("Mode"))
        if decoded is not None:
            upstreams.append(decoded)
    return Registration(
        proxy=_proxy(service, proxy, options, tuple(upstream for upstream, _ in upstreams)),
        datacenter=service.text("Datacenter"),
        overrides=tuple(override for _, override in upstreams),
        names_protocol=bool(proxy.child("Config").values.get("protocol")),
        has_namespaces=bool(service.text("Namespace") or service.text("Partition")),
    )


def _proxy(service: Fields, proxy: Fields, options: Options, upstreams: tuple[Upstream, ...]) -> Proxy:
    local_address, local_port = _local(proxy, options)
    bind_address = options.ip_address("bind_address") or _bind_address(service, options)
    decoded = Proxy(
        id=service.required("ID"),
        name=service.text("Service"),
        service=proxy.required("DestinationServiceName"),
        service_id=proxy.text("DestinationServiceID"),
        bind_address=bind_address,
        bind_port=options.number("bind_port", service.number("Port"), low=1, high=MAX_PORT),
        local_address=local_address,
        local_port=local_port,
        local_socket=proxy.text("LocalServiceSocketPath"),
        protocol=options.protocol() or Protocol.TCP,
        local_connect_timeout_ms=_connect_timeout_ms(
            options, ("local_connect_timeout_ms", "connect_timeout_ms"), _DEFAULT_CONNECT_TIMEOUT_MS
        ),
        local_answer_timeout_ms=_answer_timeout_ms(options),
        read_timeout_ms=options.duration_ms("read_timeout", 0),
        max_inbound_connections=options.number("max_inbound_connections", 0),
        forward_for=options.flag("enable_forwardfor"),
        appname_header=options.header_name("appname_header"),
        upstreams=upstreams,
        exposed=tuple(_exposed(proxy.child("Expose"), options.warnings)),
        partition=service.text("Partition") or DEFAULT_PARTITION,
    )
    options.warnings.extend(_unserved(proxy))
    options.ignore(options.envoy_names(), _FOR_ENVOY)
    options.ignore(_UNSERVED, _NOT_SERVED)
    return replace(decoded, warnings=tuple(dict.fromkeys(options.warnings)))


def _unserved(proxy: Fields) -> Iterator[str]:
    """What the registration asks of its proxy that this one does not do; the README's Limits have it."""
    if (mode := proxy.text("Mode")) not in ("", "direct"):
        yield f"Mode: expected direct, found {mode!r}, which is not served: only upstreams with a port or socket are"
    if proxy.child("Expose").flag("Checks"):
        # Consul has rewritten them when it tells of this. Its API does not tell where they went before.
        yield "Expose.Checks: not served; Consul sends the service's HTTP and gRPC checks to the proxy: they fail"
    if proxy.child("AccessLogs").flag("Enabled"):
        yield "AccessLogs: not served, see --access-log; ignored"


def _exposed(expose: Fields, warnings: list[str]) -> Iterator[ExposedPath]:
    for item in expose.children("Paths"):
        path, port, local_port = item.text("Path"), item.number("ListenerPort"), item.number("LocalPathPort")
        protocol = item.text("Protocol") or Protocol.HTTP.value
        wrong = _wrong_exposed(path, port, local_port, protocol)
        if wrong:
            warnings.append(f"Expose.Paths {path}: expected {wrong}; left out")
        else:
            yield ExposedPath(path, port, local_port, h2=protocol == Protocol.HTTP2.value)


def _wrong_exposed(path: str, port: int, local_port: int, protocol: str) -> str:
    """What was expected and found of an exposed path that cannot be served; empty for one that can."""
    if not path.startswith("/"):
        return f"a Path that begins with /, found {path!r}"
    if not is_writable(path):
        return f"a Path that a request can have, found {path!r}"
    for name, found in (("ListenerPort", port), ("LocalPathPort", local_port)):
        if not 1 <= found <= MAX_PORT:
            return f"a {name} from 1 to {MAX_PORT}, found {found}"
    if protocol not in _EXPOSED_PROTOCOLS:
        return f"a Protocol http or http2, found {protocol!r}"
    return ""


def _local(proxy: Fields, options: Options) -> tuple[str, int]:
    address, port = options.host_and_port("local_service_address")
    registered = proxy.text("LocalServiceAddress") or _LOCAL
    if not is_host(registered):
        options.warnings.append(f"LocalServiceAddress: expected an address, found {registered!r}; using {_LOCAL}")
        registered = _LOCAL
    return address or registered, port or proxy.number("LocalServicePort")


def _bind_address(service: Fields, options: Options) -> str:
    address = service.text("Address")
    if address and not is_ip(address):
        options.warnings.append(f"Address: expected an IP address to listen on, found {address!r}; using {_ANY}")
    return address if is_ip(address) else _ANY


def _connect_timeout_ms(options: Options, names: tuple[str, ...], default: int) -> int:
    # HAProxy has no "at once": a connect timeout of 0 would mean none at all.
    for name in names:
        if found := options.number(name, 0, high=MAX_TIMEOUT_MS):
            return found
    return options.duration_ms("connect_timeout", 0) or default


def _answer_timeout_ms(options: Options) -> int:
    """The shorter of both limits that Consul knows, 0 where it leaves them to its proxies. One of 0 is none."""
    request = options.number("local_request_timeout_ms", -1, high=MAX_TIMEOUT_MS)
    if request < 0:
        return options.number("local_idle_timeout_ms", 0, high=MAX_TIMEOUT_MS)
    idle = options.number("local_idle_timeout_ms", _IDLE_TIMEOUT_MS, high=MAX_TIMEOUT_MS)
    return min(request or _NO_TIMEOUT_MS, idle or _NO_TIMEOUT_MS)


def _upstream(item: Fields, into: Options, proxy_gateway: str) -> tuple[Upstream, ChainOverride] | None:
    key = _key(item)
    label = f"upstream {key.label()}: "
    problem = _problem(item, key)
    if problem is not None:
        into.warnings.extend([f"{label}{problem}"] if problem else [])
        return None
    options = Options(item.child("Config").values, label, _SPELLED_TWICE)
    options.warnings = into.warnings
    protocol = options.protocol()
    gateway = item.child("MeshGateway").text("Mode") or proxy_gateway
    limits = options.nested("limits", _LIMITS)
    upstream = Upstream(
        key=key,
        local_bind_address=_listen_address(item, options, label),
        local_bind_port=item.number("LocalBindPort"),
        local_bind_socket=item.text("LocalBindSocketPath"),
        local_bind_socket_mode=item.text("LocalBindSocketMode"),
        protocol=protocol or Protocol.TCP,
        connect_timeout_ms=_connect_timeout_ms(options, ("connect_timeout_ms",), 0),
        read_timeout_ms=options.duration_ms("read_timeout", 0),
        poll_interval_ms=options.duration_ms("poll_interval", _DEFAULT_POLL_INTERVAL_MS, low=_MIN_POLL_INTERVAL_MS),
        max_connections=limits.number("max_connections", 0),
        max_requests=limits.number("max_concurrent_requests", 0),
        mesh_gateway=gateway if gateway in _GATEWAY_MODES else "",
    )
    options.ignore(options.envoy_names(), _FOR_ENVOY)
    options.ignore(_UNSERVED_OF_UPSTREAMS, _NOT_SERVED)
    limits.ignore(_UNSERVED_LIMITS, _NOT_SERVED)
    return upstream, ChainOverride(protocol.value if protocol else "", upstream.mesh_gateway)


def _key(item: Fields) -> UpstreamKey:
    return UpstreamKey(
        type=item.text("DestinationType") or UpstreamType.SERVICE.value,
        name=item.text("DestinationName"),
        datacenter=item.text("Datacenter"),
        namespace=item.text("DestinationNamespace"),
        partition=item.text("DestinationPartition"),
        peer=item.text("DestinationPeer"),
    )


def _problem(item: Fields, key: UpstreamKey) -> str | None:
    """Why an upstream is left out: a text for people, empty when it is meant to be; None when it is not."""
    has_listener = bool(item.number("LocalBindPort") or item.text("LocalBindSocketPath"))
    if item.flag("CentrallyConfigured") and not has_listener:
        # Defaults for transparent proxies: no listener was asked for.
        return ""
    if not key.name:
        return "expected a DestinationName, found nothing; left out"
    if key.type not in {kind.value for kind in UpstreamType}:
        return f"expected DestinationType service or prepared_query, found {key.type!r}; left out"
    if key.peer:
        return f"expected a destination in our own cluster, found the peer {key.peer!r}; left out"
    if not has_listener or not 0 <= item.number("LocalBindPort") <= MAX_PORT:
        return f"expected a LocalBindPort from 1 to {MAX_PORT}, found {item.number('LocalBindPort')}; left out"
    return None


def _listen_address(item: Fields, options: Options, label: str) -> str:
    address = item.text("LocalBindAddress") or _LOCAL
    if is_ip(address):
        return address
    if address != "localhost":
        options.warnings.append(f"{label}LocalBindAddress: expected an IP address, found {address!r}; using {_LOCAL}")
    return _LOCAL
