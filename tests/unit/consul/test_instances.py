from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.consul.answers import Instance
from hcc.consul.errors import ConsulAnswerError
from hcc.consul.instances import instances, query_instances
from hcc.mesh.snapshot import Health


def entry(
    *statuses: str, node: dict[str, Any] | None = None, destination: str = "db", **service: Any
) -> dict[str, Any]:
    proxy = {"DestinationServiceName": destination}
    return {
        "Node": {"Address": "10.0.0.1", "Datacenter": "dc1"} | (node or {}),
        "Service": {"Kind": "connect-proxy", "Service": "db-sidecar-proxy", "Port": 21000, "Proxy": proxy} | service,
        "Checks": [{"Status": status} for status in statuses],
    }


def only(item: dict[str, Any], *, wan: bool = False) -> Instance:
    (found,) = instances([item], wan=wan)
    return found


@pytest.mark.parametrize(
    ("statuses", "health"),
    [
        ((), Health.PASSING),
        (("passing", "passing"), Health.PASSING),
        (("passing", "warning"), Health.WARNING),
        (("warning", "critical", "passing"), Health.CRITICAL),
        (("maintenance",), Health.CRITICAL),
        (("",), Health.CRITICAL),
    ],
)
def test_the_worst_check_is_the_health(statuses: tuple[str, ...], health: Health) -> None:
    assert only(entry(*statuses)).health is health


@pytest.mark.parametrize(("statuses", "weight"), [(("passing",), 7), (("warning",), 3), (("critical",), 7), ((), 7)])
def test_the_weight_is_that_of_the_health(statuses: tuple[str, ...], weight: int) -> None:
    assert only(entry(*statuses, Weights={"Passing": 7, "Warning": 3})).weight == weight


def test_weights_that_are_missing_are_one_and_negative_ones_are_none() -> None:
    assert only(entry()).weight == 1
    assert only(entry(Weights={"Passing": -4})).weight == 0
    assert only(entry(Weights={"Passing": 0})).weight == 0


def test_at_home_the_service_address_goes_before_that_of_the_node() -> None:
    tagged = {"wan": {"Address": "203.0.113.1", "Port": 443}}
    assert only(entry(Address="10.0.0.2", TaggedAddresses=tagged)).address == "10.0.0.2"
    assert only(entry(TaggedAddresses=tagged)).address == "10.0.0.1"


def test_from_afar_wan_addresses_go_first() -> None:
    node = {"TaggedAddresses": {"wan": "203.0.113.9"}}
    tagged = {"wan": {"Address": "203.0.113.1", "Port": 443}}
    far = only(entry(Address="10.0.0.2", TaggedAddresses=tagged, node=node), wan=True)
    assert (far.address, far.port) == ("203.0.113.1", 443)
    assert only(entry(Address="10.0.0.2", node=node), wan=True).address == "10.0.0.2"
    assert only(entry(node=node), wan=True).address == "203.0.113.9"
    assert only(entry(), wan=True).address == "10.0.0.1"


def test_a_proxy_stands_for_its_destination_and_a_native_service_for_itself() -> None:
    assert only(entry()).service == "db"
    native = entry(Kind="", Service="db-native", Connect={"Native": True}, Proxy={})
    assert only(native).service == "db-native"


def test_what_cannot_be_connected_to_is_left_out() -> None:
    gateway = entry(Kind="mesh-gateway")
    nowhere = entry(node={"Address": ""})
    portless = entry(Port=0)
    assert instances([gateway, nowhere, portless, entry()], wan=False) == (only(entry()),)


def test_a_terminating_gateway_is_known_as_one() -> None:
    gateway = entry(Kind="terminating-gateway", Service="gateway", Proxy={})
    assert [(one.service, one.is_gateway) for one in instances([gateway, entry()], wan=False)] == [
        ("db", False),
        ("gateway", True),
    ]


def test_whoever_registers_an_instance_has_no_say_in_who_it_must_be() -> None:
    # Consul takes that from anybody who may register the service; only what it imports from a peer means it.
    claims = entry(Connect={"PeerMeta": {"SpiffeID": ["spiffe://example.consul/ns/default/dc/dc1/svc/payments"]}})
    assert only(claims) == only(entry())


def test_instances_are_sorted_and_none_is_there_twice() -> None:
    items = [entry(Address=f"10.0.0.{number}") for number in (3, 1, 2, 1)]
    assert [one.address for one in instances(items, wan=False)] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_null_is_no_instance() -> None:
    assert instances(None, wan=False) == ()
    assert query_instances({"Nodes": None}, "dc1") == ()


def test_each_result_of_a_query_is_seen_from_home() -> None:
    tagged = {"wan": {"Address": "203.0.113.1", "Port": 443}}
    here = entry(Address="10.0.0.2", TaggedAddresses=tagged)
    there = entry(Address="10.0.0.3", TaggedAddresses=tagged, node={"Datacenter": "dc2"}, destination="db-2")
    found = query_instances({"Nodes": [here, there]}, "dc1")
    assert [(one.address, one.datacenter, one.service) for one in found] == [
        ("10.0.0.2", "dc1", "db"),
        ("203.0.113.1", "dc2", "db-2"),
    ]


@pytest.mark.parametrize(
    "body", ["x", {}, [1], [{}], [{"Node": [], "Service": {}}], [{"Node": {}, "Service": {"Port": "80"}}]]
)
def test_another_shape_is_an_error(body: object) -> None:
    with pytest.raises(ConsulAnswerError):
        instances(body, wan=False)


@pytest.mark.parametrize("body", [None, [], {}, {"Nodes": {}}, {"Nodes": [{}]}])
def test_a_query_of_another_shape_is_an_error(body: object) -> None:
    with pytest.raises(ConsulAnswerError):
        query_instances(body, "dc1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Node", "Service", "Checks", "Status", "Port", "Address"]), inner, max_size=3
        )
    ),
    max_leaves=10,
)


@given(st.lists(json_values, max_size=3))
def test_any_json_gives_instances_or_an_answer_error(body: list[Any]) -> None:
    try:
        found = instances(body, wan=False)
    except ConsulAnswerError:
        return
    assert isinstance(found, tuple)
