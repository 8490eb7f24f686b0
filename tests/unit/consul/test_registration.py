from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.consul.answers import ChainOverride, Registration
from hcc.consul.errors import ConsulAnswerError
from hcc.consul.registration import registration
from hcc.mesh.snapshot import ExposedPath, Protocol, Proxy, Upstream

PROXY = {"DestinationServiceName": "web", "DestinationServiceID": "web-1"}


def decoded(
    config: dict[str, Any] | None = None,
    *upstreams: dict[str, Any],
    proxy: dict[str, Any] | None = None,
    **service: Any,
) -> Registration:
    body = PROXY | {"Config": config, "Upstreams": list(upstreams)} | (proxy or {})
    return registration({"Kind": "connect-proxy", "ID": "p", "Service": "p", "Port": 21000, "Proxy": body} | service)


def of(config: dict[str, Any]) -> Proxy:
    return decoded(config).proxy


def one(config: dict[str, Any] | None = None, **fields: Any) -> tuple[Upstream, ChainOverride, tuple[str, ...]]:
    item = {"DestinationName": "db", "LocalBindPort": 9191, "Config": config} | fields
    found = decoded(None, item)
    return found.proxy.upstreams[0], found.overrides[0], found.proxy.warnings


def test_the_least_registration_gets_the_defaults_of_consul() -> None:
    found = registration({"Kind": "connect-proxy", "ID": "p", "Port": 21000, "Proxy": PROXY})
    assert found == Registration(
        Proxy(
            id="p",
            name="",
            service="web",
            service_id="web-1",
            bind_address="0.0.0.0",
            bind_port=21000,
            local_address="127.0.0.1",
            local_port=0,
        ),
        names_protocol=False,
    )


@pytest.mark.parametrize(
    ("more", "has"), [({}, False), ({"Namespace": "default"}, True), ({"Partition": "east"}, True)]
)
def test_consul_has_namespaces_where_it_names_those_of_a_service(more: dict[str, str], has: bool) -> None:
    found = registration({"Kind": "connect-proxy", "ID": "p", "Port": 21000, "Proxy": PROXY} | more)
    assert found.has_namespaces is has
    assert found.proxy.partition == more.get("Partition", "default")


def test_a_whole_config_is_read() -> None:
    proxy = of(
        {
            "protocol": "http",
            "bind_address": "10.0.0.9",
            "bind_port": 20000,
            "local_connect_timeout_ms": 1500,
            "max_inbound_connections": 50,
            "read_timeout": "90s",
            "enable_forwardfor": True,
            "appname_header": "X-App",
            "local_service_address": "127.0.0.2:8080",
        }
    )
    assert (proxy.protocol, proxy.bind_address, proxy.bind_port) == (Protocol.HTTP, "10.0.0.9", 20000)
    assert (proxy.local_connect_timeout_ms, proxy.max_inbound_connections) == (1500, 50)
    assert (proxy.read_timeout_ms, proxy.forward_for, proxy.appname_header) == (90_000, True, "X-App")
    assert (proxy.local_address, proxy.local_port) == ("127.0.0.2", 8080)
    assert proxy.warnings == ()


def test_values_are_weakly_typed_and_names_have_no_case() -> None:
    proxy = of({"Bind_Port": "20000", "local_connect_timeout_ms": 1500.0, "enable_forwardfor": "true"})
    assert (proxy.bind_port, proxy.local_connect_timeout_ms, proxy.forward_for) == (20000, 1500, True)
    assert of({"enable_forwardfor": 1}).forward_for
    assert not of({"enable_forwardfor": "0"}).forward_for


@pytest.mark.parametrize(
    ("config", "milliseconds"),
    [
        ({"connect_timeout": "10s"}, 10_000),
        ({"connect_timeout": 7_000_000_000}, 7000),
        ({"connect_timeout_ms": "250"}, 250),
        ({"connect_timeout": "10s", "local_connect_timeout_ms": 3}, 3),
        ({"local_connect_timeout_ms": 0}, 5000),
        ({}, 5000),
    ],
)
def test_the_connect_timeout_has_the_names_of_consul_and_of_the_go_program(
    config: dict[str, Any], milliseconds: int
) -> None:
    assert of(config).local_connect_timeout_ms == milliseconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("protocol", "thrift"),
        ("protocol", 7),
        ("bind_address", "not an address"),
        ("bind_port", 70_000),
        ("bind_port", "x"),
        ("local_connect_timeout_ms", -1),
        ("local_connect_timeout_ms", True),
        ("max_inbound_connections", [1]),
        ("connect_timeout", "soon"),
        ("read_timeout", "-5s"),
        ("read_timeout", "9" * 5000),
        ("connect_timeout", "9" * 400 + "s"),
        ("local_request_timeout_ms", "soon"),
        ("local_idle_timeout_ms", -1),
        ("enable_forwardfor", "perhaps"),
        ("appname_header", "two words"),
        ("appname_header", "x\r\ny"),
        ("local_service_address", "nohost"),
        ("local_service_address", "h:99999"),
    ],
)
def test_a_bad_value_warns_and_leaves_the_default(name: str, value: object) -> None:
    proxy = of({name: value})
    (warning,) = proxy.warnings
    assert warning.startswith(f"{name}: expected ")
    assert replace(proxy, warnings=()) == of({})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"Mode": "transparent"}, "Mode: expected direct, found 'transparent', which is not served"),
        ({"Expose": {"Checks": True}}, "Expose.Checks: not served; Consul sends the service's HTTP and gRPC checks to"),
        ({"AccessLogs": {"Enabled": True}}, "AccessLogs: not served, see --access-log; ignored"),
    ],
)
def test_what_is_asked_of_another_kind_of_proxy_is_warned_of(asked: dict[str, Any], said: str) -> None:
    (warning,) = decoded(proxy=asked).proxy.warnings
    assert warning.startswith(said)


def exposing(**path: Any) -> Proxy:
    one = {"Path": "/health", "ListenerPort": 22900, "LocalPathPort": 8181}
    return decoded(proxy={"Expose": {"Paths": [{**one, **path}, {**one, "Path": "/last"}]}}).proxy


@pytest.mark.parametrize(("protocol", "h2"), [("", False), ("http", False), ("http2", True)])
def test_exposed_paths_are_read(protocol: str, h2: bool) -> None:
    found = exposing(Protocol=protocol)
    assert found.exposed == (ExposedPath("/health", 22900, 8181, h2=h2), ExposedPath("/last", 22900, 8181))
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"Path": "health"}, "Expose.Paths health: expected a Path that begins with /, found 'health'; left out"),
        ({"Path": "/\0"}, "Expose.Paths /\0: expected a Path that a request can have, found '/\\x00'; left out"),
        ({"ListenerPort": 0}, "Expose.Paths /health: expected a ListenerPort from 1 to 65535, found 0; left out"),
        ({"LocalPathPort": 70000}, "Expose.Paths /health: expected a LocalPathPort from 1 to 65535, found 70000; left"),
        ({"Protocol": "tcp"}, "Expose.Paths /health: expected a Protocol http or http2, found 'tcp'; left out"),
    ],
)
def test_an_exposed_path_that_cannot_be_served_is_warned_of(wrong: dict[str, Any], said: str) -> None:
    found = exposing(**wrong)
    (warning,) = found.warnings
    assert warning.startswith(said)
    assert [one.path for one in found.exposed] == ["/last"]


def test_an_ordinary_proxy_is_not_warned_of() -> None:
    asked = {"Mode": "direct", "Expose": {"Checks": False, "Paths": None}, "AccessLogs": {"Enabled": False}}
    assert decoded(proxy=asked).proxy.warnings == ()


@pytest.mark.parametrize(
    ("given", "answer_ms"),
    [
        ({}, 0),
        ({"local_request_timeout_ms": "120000"}, 120_000),
        ({"local_request_timeout_ms": 400_000}, 300_000),
        ({"local_request_timeout_ms": 0}, 300_000),
        ({"local_request_timeout_ms": 0, "local_idle_timeout_ms": 0}, 86_400_000),
        ({"local_request_timeout_ms": 0, "local_idle_timeout_ms": 500}, 500),
        ({"local_request_timeout_ms": 700, "local_idle_timeout_ms": 0}, 700),
        ({"local_request_timeout_ms": 700, "local_idle_timeout_ms": 500}, 500),
        ({"local_idle_timeout_ms": 500}, 500),
        ({"local_idle_timeout_ms": 0}, 0),
    ],
)
def test_the_application_is_waited_for_as_consuls_keys_say(given: dict[str, object], answer_ms: int) -> None:
    proxy = of(given)
    assert (proxy.local_answer_timeout_ms, proxy.warnings) == (answer_ms, ())


def test_options_for_envoy_get_one_warning() -> None:
    proxy = of({"envoy_prometheus_bind_addr": "x", "envoy_statsd_url": "y"})
    assert proxy.warnings == ("envoy_prometheus_bind_addr, envoy_statsd_url: for Envoy only; ignored",)


def test_what_consul_knows_and_is_not_served_is_warned_of() -> None:
    # As agents merge it from service-defaults (1.20.1).
    assert of({"balance_inbound_connections": "exact_balance"}).warnings == ()
    said = "upstream db: passive_health_check: not served; ignored"
    assert one({"passive_health_check": {"MaxFailures": 2}})[2] == (said,)
    assert one({"passive_health_check": {}})[2] == ()


def test_the_public_listener_takes_config_then_service_address_then_any() -> None:
    assert decoded({"bind_address": "10.0.0.1"}, Address="10.0.0.2").proxy.bind_address == "10.0.0.1"
    assert decoded({}, Address="10.0.0.2").proxy.bind_address == "10.0.0.2"
    named = decoded({}, Address="node.example").proxy
    assert named.bind_address == "0.0.0.0"
    assert "node.example" in named.warnings[0]


def test_a_socket_and_address_of_the_application_are_kept() -> None:
    fields = {"LocalServiceAddress": "10.0.0.3", "LocalServicePort": 80, "LocalServiceSocketPath": "/run/app"}
    proxy = decoded({}, proxy=fields).proxy
    assert (proxy.local_address, proxy.local_port, proxy.local_socket) == ("10.0.0.3", 80, "/run/app")


def test_the_datacenter_comes_along() -> None:
    assert decoded({}, Datacenter="dc7").datacenter == "dc7"


def test_an_upstream_has_its_defaults() -> None:
    upstream, override, warnings = one()
    assert (upstream.key.type, upstream.key.label()) == ("service", "db")
    assert (upstream.local_bind_address, upstream.local_bind_port) == ("127.0.0.1", 9191)
    assert (upstream.protocol, upstream.connect_timeout_ms, upstream.poll_interval_ms) == (Protocol.TCP, 0, 30_000)
    assert (override, warnings) == (ChainOverride(), ())


def test_an_upstream_config_is_read() -> None:
    upstream, override, warnings = one(
        {
            "protocol": "grpc",
            "connect_timeout_ms": "3000",
            "read_timeout": "5s",
            "poll_interval": "2s",
            "limits": {"max_connections": "9"},
        },
        MeshGateway={"Mode": "local"},
    )
    assert (upstream.protocol, upstream.connect_timeout_ms, upstream.read_timeout_ms) == (Protocol.GRPC, 3000, 5000)
    assert (upstream.poll_interval_ms, upstream.max_connections) == (2000, 9)
    assert (override, warnings) == (ChainOverride("grpc", "local"), ())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"MaxConnections": 7, "MaxPendingRequests": None}, 7),  # as agents merge it in (1.14.4, 1.20.1)
        ({"MaxConnections": None}, 0),
        ({"max_connections": 3}, 3),
        (None, 0),
    ],
)
def test_the_limit_of_service_defaults_counts_where_the_registration_has_none(
    limits: dict[str, int | None] | None, expected: int
) -> None:
    upstream, _, warnings = one({"limits": limits})
    assert (upstream.max_connections, warnings) == (expected, ())


@pytest.mark.parametrize(
    ("config", "unserved"),
    [
        ({"limits": {"max_pending_requests": 1}}, "limits.max_pending_requests"),
        ({"limits": {"MaxPendingRequests": 0, "MaxConnections": 9}}, "limits.max_pending_requests"),
        ({"Limits": {"maxPendingRequests": "1"}}, "limits.max_pending_requests"),
        ({"passive_health_check": {"interval": "1s"}}, "passive_health_check"),
        ({"PassiveHealthCheck": {"Interval": 1_000_000_000}}, "passive_health_check"),
    ],
)
def test_what_an_upstream_asks_for_and_is_not_served_is_named(config: dict[str, Any], unserved: str) -> None:
    assert one(config)[2] == (f"upstream db: {unserved}: not served; ignored",)


@pytest.mark.parametrize("name", ["max_concurrent_requests", "MaxConcurrentRequests"])
def test_a_limit_of_requests_is_read(name: str) -> None:
    upstream, _, warnings = one({"limits": {name: 9}})
    assert (upstream.max_connections, upstream.max_requests, warnings) == (0, 9, ())


def test_a_largest_head_of_requests_is_named_as_not_served() -> None:
    assert of({"max_request_headers_kb": 96}).warnings == ("max_request_headers_kb: not served; ignored",)


def test_an_upstream_s_config_may_be_spelled_as_service_defaults_are() -> None:
    assert one({"ConnectTimeoutMs": 3000})[0].connect_timeout_ms == 3000
    # What is registered and, as an agent merges it in (1.20.1), what service-defaults say.
    assert one({"ConnectTimeoutMs": 3000, "connect_timeout_ms": 2000})[0].connect_timeout_ms == 3000
    assert one({"EnvoyClusterJSON": "{}"})[2] == ("upstream db: envoy_cluster_json: for Envoy only; ignored",)


def test_a_mesh_gateway_mode_of_the_proxy_holds_for_its_upstreams() -> None:
    found = decoded({}, {"DestinationName": "db", "LocalBindPort": 1}, proxy={"MeshGateway": {"Mode": "remote"}})
    assert found.overrides == (ChainOverride(mesh_gateway="remote"),)


@pytest.mark.parametrize(
    "config", [{"protocol": "x"}, {"poll_interval": "1ms"}, {"limits": 3}, {"limits": {"max_connections": -1}}]
)
def test_a_bad_upstream_value_warns_with_its_name(config: dict[str, Any]) -> None:
    assert one(config)[2][0].startswith("upstream db: ")


def test_an_upstream_for_envoy_is_warned_of() -> None:
    assert one({"envoy_cluster_json": "{}"})[2] == ("upstream db: envoy_cluster_json: for Envoy only; ignored",)


def test_upstreams_with_one_name_in_two_datacenters_are_two() -> None:
    found = decoded(
        {},
        {"DestinationName": "db", "LocalBindPort": 1, "Datacenter": "dc1"},
        {"DestinationName": "db", "LocalBindPort": 2, "Datacenter": "dc2"},
        {"DestinationName": "db", "LocalBindPort": 3, "DestinationType": "prepared_query"},
    )
    labels = [upstream.key.label() for upstream in found.proxy.upstreams]
    assert labels == ["db.dc1", "db.dc2", "query:db"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"DestinationPeer": "east"}, "the peer 'east'"),
        ({"LocalBindPort": 0}, "LocalBindPort"),
        ({"LocalBindPort": 70_000}, "LocalBindPort"),
        ({"DestinationType": "magic"}, "'magic'"),
        ({"DestinationName": ""}, "DestinationName"),
    ],
)
def test_an_upstream_that_cannot_be_served_is_left_out_and_said(fields: dict[str, Any], reason: str) -> None:
    found = decoded({}, {"DestinationName": "db", "LocalBindPort": 9191} | fields)
    assert (found.proxy.upstreams, found.overrides) == ((), ())
    assert reason in found.proxy.warnings[0]


def test_central_defaults_without_a_listener_are_no_upstream_and_no_fault() -> None:
    found = decoded({}, {"DestinationName": "*", "CentrallyConfigured": True})
    assert (found.proxy.upstreams, found.proxy.warnings) == ((), ())


def test_an_upstream_may_listen_on_a_socket_or_on_localhost() -> None:
    upstream = one(LocalBindPort=0, LocalBindSocketPath="/run/db", LocalBindSocketMode="0600")[0]
    assert (upstream.local_bind_socket, upstream.local_bind_socket_mode) == ("/run/db", "0600")
    assert one(LocalBindAddress="localhost")[0].local_bind_address == "127.0.0.1"
    upstream, _, warnings = one(LocalBindAddress="elsewhere")
    assert upstream.local_bind_address == "127.0.0.1"
    assert "elsewhere" in warnings[0]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"Kind": "", "ID": "web"},
        {"Kind": "connect-proxy", "ID": "p"},
        {"Kind": "connect-proxy", "ID": "p", "Proxy": {"DestinationServiceName": 3}},
        {"Kind": "connect-proxy", "ID": "p", "Proxy": PROXY | {"Upstreams": {}}},
    ],
)
def test_another_shape_is_an_error(body: object) -> None:
    with pytest.raises(ConsulAnswerError):
        registration(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    [
        "protocol",
        "bind_address",
        "bind_port",
        "local_connect_timeout_ms",
        "max_inbound_connections",
        "connect_timeout",
        "read_timeout",
        "enable_forwardfor",
        "appname_header",
        "local_service_address",
        "poll_interval",
        "limits",
    ]
)


@given(st.dictionaries(names, json_values))
def test_no_config_whatever_makes_a_registration_unusable(config: dict[str, Any]) -> None:
    item = {"DestinationName": "db", "LocalBindPort": 1, "Config": config}
    found = decoded(config, item)
    assert found.proxy.bind_port > 0
    assert len(found.proxy.upstreams) == 1
    assert found.proxy.upstreams[0].poll_interval_ms >= 100
