from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.model import Server
from hcc.haproxy.servers import in_turn, scaled, servers
from hcc.mesh.peer_book import Peer
from hcc.mesh.snapshot import Endpoint, Health
from tests.builders import endpoint

weights = st.integers(1, 65535)


def test_an_endpoint_becomes_a_server_named_by_its_address() -> None:
    assert servers([endpoint("10.0.0.1", 21000, weight=7)]) == (
        Server("10.0.0.1:21000", "10.0.0.1", 21000, 7, enabled=True),
    )


@pytest.mark.parametrize("off", [endpoint(health=Health.CRITICAL), endpoint(weight=0)])
def test_an_endpoint_that_does_not_serve_stays_in_maintenance(off: Endpoint) -> None:
    (server,) = servers([off])
    assert not server.enabled
    assert server.weight == 1


def test_of_two_on_one_address_the_better_one_counts() -> None:
    worse, better = endpoint(health=Health.CRITICAL, weight=9), endpoint(health=Health.WARNING, weight=2)
    for order in ([worse, better], [better, worse]):
        assert servers(order) == (Server("10.0.0.1:21000", "10.0.0.1", 21000, 2, enabled=True),)


def out(count: int, *silent: int, critical: int = 0) -> list[int]:
    """Of so many endpoints, the numbers of those in maintenance while these are silent, in the order they fell so."""
    some = [endpoint(f"10.0.0.{number}", identity="spiffe://web") for number in range(1, count + 1)]
    some += [endpoint(f"10.0.1.{number}", health=Health.CRITICAL) for number in range(critical)]
    found = servers(some, None, (), [Peer(f"10.0.0.{number}", 21000, "spiffe://web") for number in silent])
    return [
        int(one.address.rpartition(".")[2]) for one in found if one.address.startswith("10.0.0.") and not one.enabled
    ]


def test_one_that_is_silent_is_left_out_while_at_least_half_of_them_serve() -> None:
    assert out(2, 2) == [2]
    assert out(3, 3, 1) == [3]
    assert out(4, 3, 1) == [1, 3]
    assert out(4, 3, 1, 4, 2) == [1, 3]
    assert out(3, 9) == []


def test_the_only_one_that_could_serve_does_even_if_it_is_silent() -> None:
    assert out(1, 1) == []
    assert out(1, 1, critical=3) == []


def test_one_that_is_not_admitted_counts_neither_as_silent_nor_as_serving() -> None:
    one, two = endpoint("10.0.0.1", identity="spiffe://web"), endpoint("10.0.0.2", identity="spiffe://web")
    peers = [Peer("10.0.0.1", 21000, "spiffe://web"), Peer("10.0.0.2", 21000, "spiffe://web")]
    found = servers([one, two], peers[:1], (), peers)
    assert [server.enabled for server in found] == [True, False]


def test_one_is_not_left_out_as_another_service_that_is_listed_there_is_refused() -> None:
    web = [endpoint(f"10.0.0.{number}", identity="spiffe://web") for number in (1, 2)]
    found = servers(
        web, [Peer(one.address, one.port, one.identity) for one in web], (), [Peer("10.0.0.1", 21000, "spiffe://api")]
    )
    assert [server.enabled for server in found] == [True, True]


def test_one_that_stands_by_is_there_in_maintenance_unless_it_is_one_of_the_others() -> None:
    mine, both, theirs = (endpoint(f"10.0.0.{number}", weight=number) for number in (1, 2, 3))
    found = servers([mine, both], None, [both, theirs, endpoint("web.example")])
    assert found == (
        Server("10.0.0.1:21000", "10.0.0.1", 21000, 1, enabled=True),
        Server("10.0.0.2:21000", "10.0.0.2", 21000, 2, enabled=True),
        Server("10.0.0.3:21000", "10.0.0.3", 21000, 3, enabled=False),
    )
    assert not any(server.enabled for server in servers([], None, [theirs]))


def test_one_address_written_two_ways_is_one_server() -> None:
    assert len(servers([endpoint("::1"), endpoint("0:0::1")])) == 1


@pytest.mark.parametrize("address", ["web.example", "fe80::1%eth0", "", "1.2.3.4\n"])
def test_what_is_no_address_is_left_out(address: str) -> None:
    assert servers([endpoint(address)]) == ()


def test_each_server_comes_first_in_some_sidecars() -> None:
    found = servers([endpoint(f"10.0.0.{number}") for number in range(1, 5)])
    turns = [in_turn(found, f"leaf {number}") for number in range(400)]
    firsts = [turn[0] for turn in turns]
    assert all(sorted(turn) == list(found) for turn in turns)
    assert all(60 < firsts.count(server) < 140 for server in found)
    assert in_turn(reversed(found), "leaf 0") == turns[0]


def test_small_weights_stay_as_they_are() -> None:
    found = servers([endpoint("10.0.0.1", weight=1), endpoint("10.0.0.2", weight=256)])
    assert [server.weight for server in found] == [1, 256]


def test_large_weights_keep_their_ratio() -> None:
    found = servers([endpoint("10.0.0.1", weight=1000), endpoint("10.0.0.2", weight=250)])
    assert [server.weight for server in found] == [256, 64]


@given(st.lists(weights, min_size=1, max_size=8))
def test_scaled_weights_are_in_range_and_in_order(given_weights: list[int]) -> None:
    heaviest = max(given_weights)
    found = [scaled(weight, heaviest) for weight in sorted(given_weights)]
    assert found == sorted(found)
    assert all(1 <= weight <= 256 for weight in found)


def test_who_is_not_admitted_as_the_one_that_is_wanted_waits_in_maintenance() -> None:
    one, two, three = (endpoint(f"10.0.0.{number}") for number in (1, 2, 3))
    admitted = {Peer("10.0.0.1", 21000, one.identity), Peer("10.0.0.3", 21000, "spiffe://d/another")}

    found = servers([one, two, three], admitted)

    assert [server.enabled for server in found] == [True, False, False]


def test_weights_do_not_change_as_endpoints_are_admitted() -> None:
    heavy, light = endpoint("10.0.0.1", weight=65535), endpoint("10.0.0.2", weight=655)
    light_only = {Peer("10.0.0.2", 21000, light.identity)}

    assert [one.weight for one in servers([heavy, light], light_only)] == [
        one.weight for one in servers([heavy, light])
    ]


def test_of_two_on_one_address_the_admitted_one_counts() -> None:
    wanted, other = endpoint(), endpoint(weight=9, identity="spiffe://d/another")

    (server,) = servers([other, wanted], {Peer("10.0.0.1", 21000, wanted.identity)})

    assert (server.enabled, server.weight) == (True, 1)
