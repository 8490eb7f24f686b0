from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.haproxy.room import FDS_PER_CONNECTION, FEWEST_CONNECTIONS, SPARE_FDS, Entry, Room, entry, room


@given(
    descriptors=st.integers(1_000, 100_000),
    listeners=st.integers(0, 300),
    connections=st.integers(FEWEST_CONNECTIONS, 20_000),
    asked=st.lists(st.integers(1, 20_000), max_size=20),
)
def test_all_connections_and_shares_fit_into_the_descriptors(
    descriptors: int, listeners: int, connections: int, asked: list[int]
) -> None:
    found = room(descriptors, listeners, connections, sum(asked))
    shares = sum(found.share(one) for one in asked)
    assert shares <= found.requests + len(asked)
    assert FDS_PER_CONNECTION * found.connections + found.requests <= descriptors - SPARE_FDS - listeners
    assert found.connections <= connections


@pytest.mark.parametrize("descriptors", [0, 100_000])
def test_everybody_gets_what_they_ask_for_where_there_are_enough(descriptors: int) -> None:
    found = room(descriptors, 3, 10_000, 11_024)
    assert found == Room(10_000, 11_024, 11_024)
    assert (found.share(1_024), found.share(10_000)) == (1_024, 10_000)


def test_requests_get_a_third_where_there_are_too_few() -> None:
    found = room(4_202, 2, 10_000, 8_000)
    assert (found.connections, found.requests, found.share(2_000)) == (1_333, 1_333, 333)


def test_nobody_is_left_without_any() -> None:
    assert room(64, 1, 10_000, 8_000).share(1_000) == 1


@pytest.mark.parametrize(
    ("upstreams", "exposed", "expected"),
    [
        (0, 0, Entry(0, 0)),
        (7, 0, Entry(9_000, 0)),
        (0, 1, Entry(9_000, 1_000)),
        (1, 4, Entry(8_000, 250)),
        (1, 2_000, Entry(8_000, 1)),
    ],
)
def test_others_keep_their_tenth_of_the_connections(upstreams: int, exposed: int, expected: Entry) -> None:
    assert entry(10_000, upstreams, exposed) == expected
