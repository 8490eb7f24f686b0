from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.spoe.status import SpopError, Status
from hcc.spoe.varint import MAX_BYTES, MAX_VALUE, decode_varint, encode_varint

# HAProxy doc/SPOE.txt section 3.1; reference/haproxy.md section 1.1. 507 and 16380 were seen on the wire.
KNOWN = {
    0: "00",
    239: "ef",
    240: "f000",
    507: "fb10",
    2287: "ff7f",
    2288: "f08000",
    16380: "fcf006",
    264432: "f0808000",
    2**32 - 1: "fff0fefe7e",
    2**64 - 1: "fff0fefefefefefefe0e",
}


@pytest.mark.parametrize(("value", "encoded"), KNOWN.items())
def test_known_values_have_their_known_bytes(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded
    assert decode_varint(bytes.fromhex(encoded), 0) == (value, len(encoded) // 2)


@given(st.integers(0, MAX_VALUE), st.binary(max_size=3), st.binary(max_size=3))
def test_every_value_comes_back_and_stops_where_it_ends(value: int, before: bytes, after: bytes) -> None:
    encoded = encode_varint(value)
    assert len(encoded) <= MAX_BYTES
    assert decode_varint(before + encoded + after, len(before)) == (value, len(before) + len(encoded))


@given(st.binary(min_size=1, max_size=14))
def test_bytes_that_decode_are_the_only_encoding_of_their_value(data: bytes) -> None:
    try:
        value, end = decode_varint(data, 0)
    except SpopError:
        return
    assert encode_varint(value) == data[:end]


@pytest.mark.parametrize("data", ["", "f0", "ff80", "ffffffffffffffffffff", "fff0fefefefefefefe0f", "ff" + "80" * 20])
def test_truncated_endless_and_too_large_integers_are_invalid(data: str) -> None:
    with pytest.raises(SpopError) as caught:
        decode_varint(bytes.fromhex(data), 0)
    assert caught.value.status is Status.INVALID


@pytest.mark.parametrize("value", [-1, 2**64])
def test_values_out_of_range_are_not_encoded(value: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= value"):
        encode_varint(value)
